package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// CreateTopics, key 19, versions 2 to 7. Any agent answers: there is no controller. A manual assignment is checked and
// its number of replicas kept for display, but not followed.

const (
	// useDefault as number of partitions or replicas asks for the default.
	useDefault = -1
	// defaultReplicationFactor is what is shown for topics that do not say; the bucket replicates.
	defaultReplicationFactor int16 = 1
	// metadataLogTopic is Kafka's own log of metadata, which nobody may create.
	metadataLogTopic = "__cluster_metadata"
	// createTopicsDescribes is the first version whose response describes the topics.
	createTopicsDescribes int16 = 5
)

// createCall is one CreateTopics request under way. The three slices run in parallel, one entry for each name.
type createCall struct {
	s        *Server
	names    []string
	topics   []metadata.NewTopic // as they are to be created
	refusals []*refusal          // nil where there is none
	made     []*metadata.Topic   // nil where there is none
}

func (s *Server) createTopics(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.CreateTopicsRequest)
	c := createCall{s: s}
	c.check(req.Topics)
	call, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	if err := c.create(call, req.ValidateOnly); err != nil {
		if err := s.ended(ctx, "CreateTopics", err); err != nil {
			return reply{}, err
		}
		c.refuseRest(refusalOf(err))
	}
	resp := kmsg.NewPtrCreateTopicsResponse()
	resp.SetVersion(r.version)
	resp.Topics = make([]kmsg.CreateTopicsResponseTopic, len(c.names))
	for i := range resp.Topics {
		c.fill(&resp.Topics[i], r, i, req.ValidateOnly)
	}
	return reply{msg: resp}, nil
}

// check fills in what is asked for and what is wrong with it. A name that is there more than once has one entry.
func (c *createCall) check(topics []kmsg.CreateTopicsRequestTopic) {
	configs := topicconf.All()
	at := make(map[string]int, len(topics))
	partitions := 0
	for i := range topics {
		t := &topics[i]
		if j, again := at[t.Topic]; again {
			c.refusals[j] = duplicateTopic()
			continue
		}
		at[t.Topic] = len(c.names)
		n := metadata.NewTopic{Name: t.Topic}
		why := c.s.newTopic(t, configs, &n)
		if why == nil {
			partitions += int(n.Partitions)
		}
		c.names, c.topics, c.refusals = append(c.names, t.Topic), append(c.topics, n), append(c.refusals, why)
	}
	c.made = make([]*metadata.Topic, len(c.names))
	if partitions > maxPartitionsPerRequest {
		c.refuseRest(tooManyPartitions())
	}
	if len(c.names) > maxTopicsPerRequest {
		c.refuseRest(tooManyTopics())
	}
}

// newTopic fills in a topic to be created, or says what is wrong with it.
func (s *Server) newTopic(t *kmsg.CreateTopicsRequestTopic, configs topicconf.Set, n *metadata.NewTopic) *refusal {
	if t.Topic == metadataLogTopic {
		return refusef(codeInvalidRequest, "Creation of internal topic %s is prohibited.", metadataLogTopic)
	}
	if why := badTopicName(t.Topic); why != nil {
		return why
	}
	if why := newConfigs(t.Configs, configs, n); why != nil {
		return why
	}
	if len(t.ReplicaAssignment) > 0 {
		return s.newAssignment(t, n)
	}
	n.Partitions, n.ReplicationFactor = t.NumPartitions, t.ReplicationFactor
	if n.ReplicationFactor == useDefault {
		n.ReplicationFactor = defaultReplicationFactor
	}
	if n.Partitions == useDefault {
		n.Partitions = s.cfg.DefaultPartitions
	}
	switch {
	case n.ReplicationFactor < 1:
		return refusef(codeInvalidReplicationFactor, "Replication factor must be larger than 0, or -1 to use the default value.")
	case n.Partitions < 1:
		return refusef(codeInvalidPartitions, "Number of partitions was set to an invalid non-positive value.")
	case n.Partitions > maxPartitionsPerRequest:
		return tooManyPartitions()
	}
	return nil
}

// newConfigs takes over and checks the configs.
func newConfigs(asked []kmsg.CreateTopicsRequestTopicConfig, configs topicconf.Set, n *metadata.NewTopic) *refusal {
	n.Configs = make(map[string]string, len(asked))
	var null []string
	for i := range asked {
		if asked[i].Value == nil {
			null = append(null, asked[i].Name)
			continue
		}
		n.Configs[asked[i].Name] = *asked[i].Value
	}
	if len(null) > 0 {
		return refusef(codeInvalidConfig, "Null value not supported for topic configs: %s", strings.Join(null, ","))
	}
	return refusalOf(configs.Validate(n.Configs))
}

// newAssignment checks a manual assignment and takes its numbers.
func (s *Server) newAssignment(t *kmsg.CreateTopicsRequestTopic, n *metadata.NewTopic) *refusal {
	const manual = "A manual partition assignment was specified, but "
	if t.ReplicationFactor != useDefault {
		return refusef(codeInvalidRequest, manual+"replication factor was not set to -1.")
	}
	if t.NumPartitions != useDefault {
		return refusef(codeInvalidRequest, manual+"numPartitions was not set to -1.")
	}
	seen := make(map[int32]bool, len(t.ReplicaAssignment))
	for i := range t.ReplicaAssignment {
		a := &t.ReplicaAssignment[i]
		if seen[a.Partition] {
			return refusef(codeInvalidReplicaAssignment, "Found multiple manual partition assignments for partition %d", a.Partition)
		}
		seen[a.Partition] = true
		if why := s.badReplicas(a.Replicas); why != nil {
			return why
		}
		if have := len(t.ReplicaAssignment[0].Replicas); len(a.Replicas) != have {
			return refusef(codeInvalidReplicaAssignment, "The manual partition assignment includes a partition with %d replica(s), "+
				"but this is not consistent with previous partitions, which have %d replica(s).", len(a.Replicas), have)
		}
	}
	for i := range t.ReplicaAssignment {
		if !seen[int32(i)] {
			return refusef(codeInvalidReplicaAssignment, "partitions should be a consecutive 0-based integer sequence")
		}
	}
	n.Partitions, n.ReplicationFactor = int32(len(t.ReplicaAssignment)), int16(len(t.ReplicaAssignment[0].Replicas))
	return nil
}

// refuseRest refuses what was not refused yet.
func (c *createCall) refuseRest(why *refusal) {
	for i := range c.refusals {
		if c.refusals[i] == nil {
			c.refusals[i] = why
		}
	}
}

// create creates what was not refused.
func (c *createCall) create(ctx context.Context, validateOnly bool) error {
	var wanted []metadata.NewTopic
	var at []int
	for i, why := range c.refusals {
		if why == nil {
			wanted, at = append(wanted, c.topics[i]), append(at, i)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	made, errs, err := c.s.store.CreateTopics(ctx, wanted, validateOnly)
	if err != nil {
		return err
	}
	for k, i := range at {
		c.made[i] = made[k]
		switch err := errs[k]; {
		case errors.Is(err, metadata.ErrTopicExists):
			c.refusals[i] = refusef(codeTopicAlreadyExists, "Topic '%s' already exists.", c.names[i])
		case errors.Is(err, metadata.ErrTopicCollides):
			c.refusals[i] = refusef(codeInvalidTopicException, "Topic '%s' collides with an existing topic whose name differs only "+
				"in '.' and '_'.", c.names[i])
		default:
			c.refusals[i] = refusalOf(err)
		}
	}
	return nil
}

// fill writes the i-th result into the response.
func (c *createCall) fill(out *kmsg.CreateTopicsResponseTopic, r *request, i int, validateOnly bool) {
	*out = kmsg.NewCreateTopicsResponseTopic()
	out.Topic = c.names[i]
	out.Configs = []kmsg.CreateTopicsResponseTopicConfig{} // null would say that they may not be seen
	if out.ErrorCode, out.ErrorMessage = c.refusals[i].fail(r); c.refusals[i] != nil {
		return
	}
	t := c.made[i]
	if !validateOnly {
		out.TopicID = t.ID
	}
	out.NumPartitions, out.ReplicationFactor = int32(len(t.Partitions)), t.ReplicationFactor
	if r.version < createTopicsDescribes {
		return
	}
	configs := topicconf.All()
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		e := topicEntry(configs, t.Configs, name)
		x := kmsg.NewCreateTopicsResponseTopicConfig()
		x.Name, x.Value, x.Source = e.name, e.value, int8(e.source)
		out.Configs = append(out.Configs, x)
	}
}
