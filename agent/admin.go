package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// What the handlers of the admin APIs share. They ask the database for the catalogue instead of trusting the cached one:
// who changes a thing through one agent and looks at it through another sees the change.

// Admin is what the admin APIs need of the catalogue beside Topics.
type Admin interface {
	DeleteTopics(ctx context.Context, refs []metadata.TopicRef) ([]metadata.TopicRow, []error, error)
	CreatePartitions(ctx context.Context, name string, count int32, validateOnly bool) error
	AlterConfigs(ctx context.Context, changes []metadata.ConfigChange) ([]error, error)
	DeleteRecords(ctx context.Context, reqs []metadata.DeleteRecords) ([]metadata.DeleteRecordsResult, error)
}

const (
	codeMismatchedEndpointType  int16 = 114
	codeUnsupportedEndpointType int16 = 115

	// minAdminTimeout and maxAdminTimeout bound the client's timeout, defaultAdminTimeout is for requests that have none.
	minAdminTimeout     = time.Second
	maxAdminTimeout     = time.Minute
	defaultAdminTimeout = 30 * time.Second

	// maxPartitionsPerRequest bounds the partitions that one request creates.
	maxPartitionsPerRequest = metadata.MaxPartitionsPerTopic
	// maxTopicsPerRequest bounds the topics that one request creates, deletes or alters.
	maxTopicsPerRequest = 10_000
	// maxDescribedConfigs bounds the configs in one DescribeConfigs response: a request of six bytes for each resource must
	// not ask for gigabytes.
	maxDescribedConfigs = 400_000
)

func adminTimeout(millis int32) time.Duration {
	return min(max(time.Duration(millis)*time.Millisecond, minAdminTimeout), maxAdminTimeout)
}

// refusal is why one topic or resource of a request was refused: Kafka's code, and a text that tools show.
type refusal struct {
	code int16
	text string // "" = none
}

func refusef(code int16, format string, args ...any) *refusal {
	return &refusal{code: code, text: fmt.Sprintf(format, args...)}
}

// refusalOf gives the refusal for an error, nil for nil.
func refusalOf(err error) *refusal {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, topicconf.ErrInvalid), errors.Is(err, topicconf.ErrUnknown):
		return refusef(codeInvalidConfig, "%s", err)
	}
	return refusef(codeOf(err), "%s", err)
}

// fail notes the refusal's code for metrics and gives what goes into the response.
func (f *refusal) fail(r *request) (code int16, text *string) {
	if f == nil {
		return codeNone, nil
	}
	if f.text != "" {
		text = &f.text
	}
	return r.note(f.code), text
}

// Refusals that several APIs share.
func tooManyTopics() *refusal {
	return refusef(codePolicyViolation, "Excessively large number of topics per request: the limit is %d.", maxTopicsPerRequest)
}

func tooManyPartitions() *refusal {
	return refusef(codePolicyViolation, "Excessively large number of partitions per request.")
}

func duplicateTopic() *refusal { return refusef(codeInvalidRequest, "Duplicate topic name.") }

func unknownTopic() *refusal {
	return refusef(codeUnknownTopicOrPartition, "This server does not host this topic-partition.")
}

// badTopicName says what is wrong with a topic's name, nil if nothing is.
func badTopicName(name string) *refusal {
	var why string
	switch {
	case validTopicName(name):
		return nil
	case name == "":
		why = "the empty string is not allowed"
	case name == "." || name == "..":
		why = fmt.Sprintf("'%s' is not allowed", name)
	case len(name) > maxTopicNameBytes:
		why = fmt.Sprintf("the length of '%s' is longer than the max allowed length %d", name, maxTopicNameBytes)
	default:
		why = fmt.Sprintf("'%s' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'", name)
	}
	return refusef(codeInvalidTopicException, "Topic name is invalid: %s", why)
}

// badReplicas says what is wrong with a manual assignment of one partition, nil if nothing is. Kafka's order of checks.
func (s *Server) badReplicas(ids []int32) *refusal {
	const assignment = "The manual partition assignment includes "
	if len(ids) == 0 {
		return refusef(codeInvalidReplicaAssignment, assignment+"an empty replica list.")
	}
	sorted := slices.Sorted(slices.Values(ids))
	brokers := s.brokers("")
	for i, id := range sorted {
		if i > 0 && sorted[i-1] == id {
			return refusef(codeInvalidReplicaAssignment, assignment+"the broker %d more than once.", id)
		}
		if !slices.ContainsFunc(brokers, func(b broker) bool { return b.id == id }) {
			return refusef(codeInvalidReplicaAssignment, assignment+"broker %d, but no such broker is registered.", id)
		}
	}
	return nil
}

// badBrokerID says what is wrong with a broker resource's name where it is not "", nil if nothing is. other is what the
// name may be beside this agent's id.
func (s *Server) badBrokerID(name, noun, other string) *refusal {
	id, err := strconv.ParseInt(name, 10, 32)
	if err != nil {
		return refusef(codeInvalidRequest, "%s id must be an integer, but it is: %s", noun, name)
	}
	if int32(id) != s.node() {
		return refusef(codeInvalidRequest, "Unexpected broker id, expected %d%s, but received %s", s.node(), other, name)
	}
	return nil
}

// freshCatalogue asks the database for the catalogue.
func (s *Server) freshCatalogue(ctx context.Context) (*metadata.Catalogue, error) {
	c, err := s.store.RefreshCatalogue(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the catalogue: %w", err)
	}
	s.saw(c)
	return c, nil
}

// ended gives the connection's end as an error, which closes it: an answer would not arrive. Otherwise what failed is
// logged and answered.
func (s *Server) ended(conn context.Context, what string, err error) error {
	if conn.Err() != nil {
		return conn.Err()
	}
	s.log.Warn(what+" failed", "error", err)
	return nil
}

// adminAPIs are the lines of the table whose handlers change or show topics, configs and the cluster.
func (s *Server) adminAPIs() []api {
	const placement = "Manual assignments are checked and not followed: every agent serves every partition."
	return []api{
		{key: 19, name: "CreateTopics", min: 2, max: 7, handle: s.createTopics, note: placement + " Any replication factor is " +
			"taken and stored for display; at most 100,000 partitions and 10,000 topics a request."},
		{key: 20, name: "DeleteTopics", min: 1, max: 6, handle: s.deleteTopics},
		{key: 21, name: "DeleteRecords", min: 0, max: 2, handle: s.deleteRecords},
		{key: 32, name: "DescribeConfigs", min: 1, max: 4, handle: s.describeConfigs, note: "Topics and this agent. Broker " +
			"loggers, client metrics and groups get INVALID_REQUEST."},
		{key: 33, name: "AlterConfigs", min: 0, max: 2, handle: s.alterConfigs, note: "Topics, and the group.* configs of all agents."},
		{key: 35, name: "DescribeLogDirs", min: 1, max: 4, handle: s.describeLogDirs, note: "One virtual folder that holds " +
			"everything; sizes are the bytes ever appended; lag 0."},
		{key: 37, name: "CreatePartitions", min: 0, max: 3, handle: s.createPartitions, note: placement},
		{key: 44, name: "IncrementalAlterConfigs", min: 0, max: 1, handle: s.incrementalAlterConfigs, note: "Topics, and the group.* configs of all agents."},
		{key: 60, name: "DescribeCluster", min: 0, max: 2, handle: s.describeCluster, note: "Brokers only: endpoint type 2 " +
			"(controllers) gets MISMATCHED_ENDPOINT_TYPE."},
		{key: 74, name: "ListConfigResources", min: 0, max: 1, handle: s.listConfigResources, note: "There are no broker " +
			"loggers, client metrics subscriptions or group configs to list."},
		{key: 75, name: "DescribeTopicPartitions", min: 0, max: 0, handle: s.describeTopicPartitions},
	}
}
