package agent

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// OffsetFetch, key 9, versions 1 to 10: one group, from version 8 several (KIP-709); from version 2 null asks for all
// topics, from version 10 topics are named by id. What was never committed is offset -1, of groups that are not there too.

const (
	offsetFetchAll      int16 = 2
	offsetFetchGroups   int16 = 8
	offsetFetchTopicIDs int16 = 10
)

// offsetQuery is one group of a request, whatever its version.
type offsetQuery struct {
	group  string
	member string
	epoch  int32
	all    bool
	topics []offsetTopic
	code   int16
	// pending have an offset in an ongoing transaction, where stable ones are asked for.
	pending []metadata.TopicPartition
}

type offsetTopic struct {
	name       string
	id         metadata.TopicID
	known      bool
	partitions []int32
}

func (s *Server) offsetFetch(ctx context.Context, r *request) (reply, error) {
	queries := asOffsetQueries(r.version, r.msg.(*kmsg.OffsetFetchRequest))
	answers := make([][]metadata.GroupOffset, len(queries))
	c, err := s.resolveOffsets(ctx, r.version, queries)
	if err == nil {
		err = s.checkFetchers(ctx, r.version, queries)
	}
	if err == nil {
		answers, err = s.loadOffsets(ctx, queries, r.msg.(*kmsg.OffsetFetchRequest).RequireStable)
	}
	code, ok := s.groupCode(ctx, "OffsetFetch", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	resp := kmsg.NewPtrOffsetFetchResponse()
	resp.SetVersion(r.version)
	for i, q := range queries {
		if q.code == codeNone {
			q.code = code
		}
		x := kmsg.NewOffsetFetchResponseGroup()
		x.Group, x.ErrorCode = q.group, r.note(q.code)
		if q.code == codeNone {
			x.Topics = q.answer(r.version, answers[i], c)
		} else if r.version < offsetFetchAll {
			x.Topics = q.refused()
		}
		resp.Groups = append(resp.Groups, x)
	}
	if r.version < offsetFetchGroups {
		flattenOffsets(resp)
	}
	return reply{msg: resp}, nil
}

func asOffsetQueries(version int16, req *kmsg.OffsetFetchRequest) []*offsetQuery {
	var list []*offsetQuery
	if version < offsetFetchGroups {
		q := &offsetQuery{group: req.Group, epoch: -1, all: version >= offsetFetchAll && req.Topics == nil}
		for _, t := range req.Topics {
			q.topics = append(q.topics, offsetTopic{name: t.Topic, partitions: t.Partitions})
		}
		list = append(list, q)
	}
	for _, g := range req.Groups {
		q := &offsetQuery{group: g.Group, member: deref(g.MemberID), epoch: g.MemberEpoch, all: g.Topics == nil}
		for _, t := range g.Topics {
			q.topics = append(q.topics, offsetTopic{name: t.Topic, id: t.TopicID, partitions: t.Partitions})
		}
		list = append(list, q)
	}
	for _, q := range list {
		if q.group != "" && !validGroupID(q.group) {
			q.code = codeInvalidGroupID
		}
	}
	return list
}

// resolveOffsets finds the topics that are asked for.
func (s *Server) resolveOffsets(ctx context.Context, version int16, queries []*offsetQuery) (*metadata.Catalogue, error) {
	find := func(c *metadata.Catalogue, t *offsetTopic) *metadata.Topic {
		if version >= offsetFetchTopicIDs {
			return c.ByID(t.id)
		}
		return c.ByName(t.name)
	}
	c, err := s.catalogueWith(ctx, func(c *metadata.Catalogue) bool {
		for _, q := range queries {
			for i := range q.topics {
				if find(c, &q.topics[i]) == nil {
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	for _, q := range queries {
		for i := range q.topics {
			t := &q.topics[i]
			if x := find(c, t); x != nil {
				t.name, t.id, t.known = x.Name, x.ID, true
			}
		}
	}
	return c, nil
}

// checkFetchers checks the member epochs that version 9 and up may send.
func (s *Server) checkFetchers(ctx context.Context, version int16, queries []*offsetQuery) error {
	for _, q := range queries {
		if q.code != codeNone || q.member == "" || q.epoch < 0 || version < 9 {
			continue
		}
		_, rows, err := s.store.LoadGroups(ctx, metadata.GroupID(q.group))
		if err != nil {
			return err
		}
		g, err := group.Decode(&rows[0])
		if err != nil {
			return err
		}
		q.code = int16(g.CheckFetch(metadata.MemberID(q.member), q.epoch))
	}
	return nil
}

func (s *Server) loadOffsets(ctx context.Context, queries []*offsetQuery, stable bool) ([][]metadata.GroupOffset, error) {
	list := make([]metadata.OffsetQuery, len(queries))
	for i, q := range queries {
		list[i] = metadata.OffsetQuery{Group: metadata.GroupID(q.group), All: q.all && q.code == codeNone}
		for _, t := range q.topics {
			for _, p := range t.partitions {
				if t.known && q.code == codeNone {
					list[i].Partitions = append(list[i].Partitions, metadata.TopicPartition{Topic: t.id, Partition: p})
				}
			}
		}
	}
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	if stable {
		// Before the offsets: what is pending now is told, what was committed since is read.
		pending, err := s.store.PendingOffsets(call, list)
		if err != nil {
			return nil, err
		}
		for i, q := range queries {
			q.pending = pending[i]
		}
	}
	return s.store.LoadOffsets(call, list)
}

// answer gives the topics of a group's answer.
func (q *offsetQuery) answer(version int16, offsets []metadata.GroupOffset, c *metadata.Catalogue) []kmsg.OffsetFetchResponseGroupTopic {
	found := make(map[metadata.TopicPartition]*metadata.GroupOffset, len(offsets))
	topics := q.topics
	for i := range offsets {
		o := &offsets[i]
		found[o.TopicPartition] = o
		if !q.all {
			continue
		}
		t := c.ByID(o.Topic)
		if t == nil {
			continue // deleted, or too new for the catalogue at hand
		}
		if n := len(topics); n == 0 || topics[n-1].id != o.Topic {
			topics = append(topics, offsetTopic{name: t.Name, id: t.ID, known: true})
		}
		last := &topics[len(topics)-1]
		last.partitions = append(last.partitions, o.Partition)
	}
	out := make([]kmsg.OffsetFetchResponseGroupTopic, 0, len(topics))
	for _, t := range topics {
		x := kmsg.NewOffsetFetchResponseGroupTopic()
		x.Topic, x.TopicID = t.name, t.id
		for _, p := range t.partitions {
			y := unknownOffset(p)
			if o := found[metadata.TopicPartition{Topic: t.id, Partition: p}]; o != nil && t.known {
				text := string(o.Metadata)
				y.Offset, y.LeaderEpoch, y.Metadata = int64(o.Offset), o.LeaderEpoch, &text
			}
			if slices.Contains(q.pending, metadata.TopicPartition{Topic: t.id, Partition: p}) && t.known {
				y = unknownOffset(p)
				y.ErrorCode = codeUnstableOffsetCommit
			}
			if !t.known && version >= offsetFetchTopicIDs {
				y.ErrorCode = codeUnknownTopicID
			}
			x.Partitions = append(x.Partitions, y)
		}
		out = append(out, x)
	}
	return out
}

// refused gives every partition the group's code: version 1 has no place for it elsewhere.
func (q *offsetQuery) refused() []kmsg.OffsetFetchResponseGroupTopic {
	var out []kmsg.OffsetFetchResponseGroupTopic
	for _, t := range q.topics {
		x := kmsg.NewOffsetFetchResponseGroupTopic()
		x.Topic = t.name
		for _, p := range t.partitions {
			y := unknownOffset(p)
			y.ErrorCode = q.code
			x.Partitions = append(x.Partitions, y)
		}
		out = append(out, x)
	}
	return out
}

func unknownOffset(partition int32) kmsg.OffsetFetchResponseGroupTopicPartition {
	y := kmsg.NewOffsetFetchResponseGroupTopicPartition()
	none := ""
	y.Partition, y.Offset, y.LeaderEpoch, y.Metadata = partition, -1, -1, &none
	return y
}

// flattenOffsets puts the one group of an older version where that has it.
func flattenOffsets(resp *kmsg.OffsetFetchResponse) {
	g := resp.Groups[0]
	resp.Groups, resp.ErrorCode = nil, g.ErrorCode
	for _, t := range g.Topics {
		x := kmsg.NewOffsetFetchResponseTopic()
		x.Topic = t.Topic
		for _, p := range t.Partitions {
			y := kmsg.NewOffsetFetchResponseTopicPartition()
			y.Partition, y.Offset, y.LeaderEpoch, y.Metadata, y.ErrorCode = p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode
			x.Partitions = append(x.Partitions, y)
		}
		resp.Topics = append(resp.Topics, x)
	}
}
