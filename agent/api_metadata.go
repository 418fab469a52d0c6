package agent

import (
	"context"
	"errors"

	"github.com/skeinio/skein/metadata"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Metadata, key 3, versions 0 to 13. Topology "virtual": this agent is the only broker and the leader of everything; "direct":
// topology.go says who leads what, which depends on the client's zone. Leader epochs are 0 for ever, the in-sync replicas are the
// replicas, and topics that are created on the way are there at once, without a LEADER_NOT_AVAILABLE first.

const (
	// metadataNullIsAll: from this version on null asks for all topics and an empty list for none.
	metadataNullIsAll int16 = 1
	// metadataAutoCreate: from this version on the client says whether topics may be created (KIP-4).
	metadataAutoCreate int16 = 4

	// maxAutoCreated bounds the topics that one request creates; the rest are told to ask again.
	maxAutoCreated = 1000

	// metadataTopicBytes and metadataPartitionBytes are about what a topic and a partition take in a response, before and
	// after it is encoded.
	metadataTopicBytes     = 256
	metadataPartitionBytes = 160

	// topicOperations and clusterOperations are what may be done where nobody is forbidden anything: one bit for each of
	// Kafka's AclOperation codes that topics and clusters have.
	topicOperations   int32 = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11
	clusterOperations int32 = 1<<5 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 | 1<<12
)

// broker is an agent as clients see it.
type broker struct {
	id   int32
	host string
	port int32
	rack string // "" = none
}

// clusterID gives the cluster's id, or nil while the database cannot tell.
func (s *Server) clusterID(ctx context.Context) *string {
	if id := s.cluster.Load(); id != nil {
		return id
	}
	id, err := s.store.ClusterID(ctx)
	if err != nil {
		s.log.Warn("cluster id not known", "error", err)
		return nil
	}
	s.cluster.Store(&id)
	return &id
}

func (s *Server) metadata(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.MetadataRequest)
	m := metadataCall{s: s, r: r, req: req, placement: s.placement(r.clientID)}
	resp := kmsg.NewPtrMetadataResponse()
	resp.SetVersion(r.version)
	for _, b := range s.brokers(r.conn.listener) {
		x := kmsg.NewMetadataResponseBroker()
		x.NodeID, x.Host, x.Port = b.id, b.host, b.port
		if b.rack != "" {
			x.Rack = &b.rack
		}
		resp.Brokers = append(resp.Brokers, x)
	}
	resp.ClusterID = s.clusterID(ctx)
	resp.ControllerID = s.controller()
	if req.IncludeClusterAuthorizedOperations {
		resp.AuthorizedOperations = clusterOperations
	}
	var err error
	if req.Topics == nil || (r.version < metadataNullIsAll && len(req.Topics) == 0) {
		resp.Topics, err = m.all(ctx)
	} else {
		resp.Topics, err = m.asked(ctx)
	}
	if err != nil {
		call(m.release)
		return reply{}, err
	}
	return reply{msg: resp, release: m.release}, nil
}

// metadataCall is one Metadata request under way.
type metadataCall struct {
	s       *Server
	r       *request
	req     *kmsg.MetadataRequest
	release func() // of the memory for the response
	placement
}

// reserve takes memory for topics of so many partitions.
func (m *metadataCall) reserve(ctx context.Context, topics, partitions int) (err error) {
	m.release, err = m.s.reserve(ctx, int64(topics)*metadataTopicBytes+int64(partitions)*metadataPartitionBytes)
	return err
}

// newest asks the database for the catalogue, so that what was created, deleted or grown at any agent before the request
// is in the answer. It falls back to the last catalogue seen: an old answer keeps clients going through a pause of the
// database, and what they do with it is checked again.
func (m *metadataCall) newest(ctx context.Context) (*metadata.Catalogue, error) {
	old := m.s.catalogue.Load()
	asking := ctx
	if old != nil {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, catalogueWait)
		defer cancel()
	}
	c, err := m.s.freshCatalogue(asking)
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	if old != nil {
		m.s.log.Warn("answering from an old catalogue", "error", err)
		return old, nil
	}
	return nil, err
}

// all describes all topics. Without any catalogue the connection is closed: an empty list would be believed.
func (m *metadataCall) all(ctx context.Context) ([]kmsg.MetadataResponseTopic, error) {
	c, err := m.newest(ctx)
	if err != nil {
		return nil, err
	}
	partitions := 0
	for _, t := range c.Topics() {
		partitions += len(t.Partitions)
	}
	if err := m.reserve(ctx, len(c.Topics()), partitions); err != nil {
		return nil, err
	}
	out := make([]kmsg.MetadataResponseTopic, 0, len(c.Topics()))
	for _, t := range c.Topics() {
		out = append(out, m.describe(t))
	}
	return out, nil
}

// asked describes the topics that were asked for, creating them where that is wanted.
func (m *metadataCall) asked(ctx context.Context) ([]kmsg.MetadataResponseTopic, error) {
	c, err := m.newest(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		m.s.log.Warn("no catalogue", "error", err)
		return m.failed(codeLeaderNotAvailable), nil
	}
	codes := map[string]int16{}
	if m.mayCreate() {
		if c, err = m.create(ctx, c, codes); err != nil {
			return nil, err
		}
	}
	if err := m.reserve(ctx, len(m.req.Topics), m.partitions(c)); err != nil {
		return nil, err
	}
	out := make([]kmsg.MetadataResponseTopic, 0, len(m.req.Topics))
	// Each once: a request that names one large topic ten thousand times would be answered with gigabytes.
	names := make(map[string]struct{}, len(m.req.Topics))
	ids := map[metadata.TopicID]struct{}{}
	for i := range m.req.Topics {
		q := &m.req.Topics[i]
		if q.Topic == nil || byID(q) {
			if first(ids, q.TopicID) {
				out = append(out, m.byID(c, q))
			}
		} else if first(names, *q.Topic) {
			out = append(out, m.byName(c, *q.Topic, codes))
		}
	}
	return out, nil
}

// first adds k to seen and says whether it was not there.
func first[K comparable](seen map[K]struct{}, k K) bool {
	_, again := seen[k]
	seen[k] = struct{}{}
	return !again
}

// partitions counts the partitions of the topics that were asked for.
func (m *metadataCall) partitions(c *metadata.Catalogue) (n int) {
	for i := range m.req.Topics {
		q := &m.req.Topics[i]
		if byID(q) {
			if t := c.ByID(q.TopicID); t != nil {
				n += len(t.Partitions)
			}
		} else if q.Topic != nil {
			if t := c.ByName(*q.Topic); t != nil {
				n += len(t.Partitions)
			}
		}
	}
	return n
}

// byID says whether a topic is asked for by its id.
func byID(q *kmsg.MetadataRequestTopic) bool { return q.TopicID != [16]byte{} }

// failed answers every topic with an error.
func (m *metadataCall) failed(code int16) []kmsg.MetadataResponseTopic {
	out := make([]kmsg.MetadataResponseTopic, 0, len(m.req.Topics))
	for i := range m.req.Topics {
		q := &m.req.Topics[i]
		out = append(out, m.problem(q.Topic, q.TopicID, code))
	}
	return out
}

func (m *metadataCall) byID(c *metadata.Catalogue, q *kmsg.MetadataRequestTopic) kmsg.MetadataResponseTopic {
	if t := c.ByID(q.TopicID); t != nil {
		return m.describe(t)
	}
	return m.problem(nil, q.TopicID, codeUnknownTopicID)
}

func (m *metadataCall) byName(c *metadata.Catalogue, name string, codes map[string]int16) kmsg.MetadataResponseTopic {
	if t := c.ByName(name); t != nil {
		return m.describe(t)
	}
	code, ok := codes[name]
	switch {
	case !validTopicName(name):
		code = codeInvalidTopicException
	case !ok:
		code = codeUnknownTopicOrPartition
	}
	return m.problem(&name, metadata.TopicID{}, code)
}

// problem describes a topic that cannot be described.
func (m *metadataCall) problem(name *string, id metadata.TopicID, code int16) kmsg.MetadataResponseTopic {
	t := kmsg.NewMetadataResponseTopic()
	t.Topic, t.TopicID, t.ErrorCode = name, id, m.r.note(code)
	return t
}

// describe describes a topic.
func (m *metadataCall) describe(t *metadata.Topic) kmsg.MetadataResponseTopic {
	out := kmsg.NewMetadataResponseTopic()
	out.Topic, out.TopicID = &t.Name, t.ID
	if m.req.IncludeTopicAuthorizedOperations {
		out.AuthorizedOperations = topicOperations
	}
	out.Partitions = make([]kmsg.MetadataResponseTopicPartition, len(t.Partitions))
	for i := range out.Partitions {
		p := kmsg.NewMetadataResponseTopicPartition()
		replicas := m.replicas(t.ID, int32(i))
		p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR = int32(i), replicas[0], 0, replicas, replicas
		out.Partitions[i] = p
	}
	return out
}

// mayCreate says whether topics that are missing are to be created.
func (m *metadataCall) mayCreate() bool {
	return m.s.cfg.AutoCreateTopics && (m.r.version < metadataAutoCreate || m.req.AllowAutoTopicCreation)
}

// create creates the topics that are missing and gives the catalogue after it. Why a topic could not be created goes into
// codes.
func (m *metadataCall) create(ctx context.Context, c *metadata.Catalogue, codes map[string]int16) (*metadata.Catalogue, error) {
	var missing []metadata.NewTopic
	for i := range m.req.Topics {
		q := &m.req.Topics[i]
		if byID(q) || q.Topic == nil || !validTopicName(*q.Topic) || c.ByName(*q.Topic) != nil {
			continue
		}
		if _, again := codes[*q.Topic]; again {
			continue
		}
		codes[*q.Topic] = codeLeaderNotAvailable
		if len(missing) < maxAutoCreated {
			missing = append(missing, metadata.NewTopic{
				Name: *q.Topic, Partitions: m.s.cfg.DefaultPartitions, ReplicationFactor: 1,
			})
		}
	}
	if len(missing) == 0 {
		return c, nil
	}
	_, errs, err := m.s.store.CreateTopics(ctx, missing, false)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		m.s.log.Warn("topics not created", "topics", len(missing), "error", err)
		return c, nil
	}
	for i, err := range errs {
		if err != nil && !errors.Is(err, metadata.ErrTopicExists) {
			codes[missing[i].Name] = codeOf(err)
		}
	}
	fresh, err := m.newest(ctx)
	if err != nil {
		return nil, err
	}
	return fresh, nil
}
