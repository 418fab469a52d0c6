package agent

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// ConsumerGroupHeartbeat, key 68, versions 0 and 1 (KIP-848). From version 1 members make their ids themselves. A heartbeat
// that changes nothing is answered from memory, as the classic protocol's are.

// heartbeatOwnID is the first version whose members come with an id.
const heartbeatOwnID int16 = 1

func (s *Server) consumerGroupHeartbeat(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ConsumerGroupHeartbeatRequest)
	resp := kmsg.NewPtrConsumerGroupHeartbeatResponse()
	resp.SetVersion(r.version)
	q := asHeartbeat(r, req)
	var out group.HeartbeatReply
	code, text := q.Check()
	switch {
	case !validGroupID(req.Group):
		code, text = group.InvalidRequest, "GroupId must have 1 to 1,024 bytes of UTF-8."
	case !storable(string(q.Member), metadata.MaxMemberIDBytes) || !storable(deref(q.Instance), metadata.MaxMemberIDBytes/2):
		code, text = group.InvalidRequest, "MemberId and InstanceId must be UTF-8 and not that long."
	}
	if out.Code, out.Message = code, text; code == group.None {
		var err error
		out, err = s.groups.consumerHeartbeat(ctx, metadata.GroupID(req.Group), q)
		failed, ok := s.groupCode(ctx, "ConsumerGroupHeartbeat", err)
		if !ok {
			return reply{}, ctx.Err()
		}
		if failed != codeNone {
			out = group.HeartbeatReply{Code: group.Code(failed)}
		}
	}
	resp.ErrorCode, resp.HeartbeatIntervalMillis = r.note(int16(out.Code)), int32(s.groups.settings().ConsumerHeartbeat.Milliseconds())
	if out.Code != group.None {
		resp.ErrorMessage, resp.HeartbeatIntervalMillis = &out.Message, 0
		return reply{msg: resp}, nil
	}
	id := string(out.Member)
	resp.MemberID, resp.MemberEpoch = &id, out.Epoch
	if out.Assignment != nil {
		resp.Assignment = &kmsg.ConsumerGroupHeartbeatResponseAssignment{}
		for topic, list := range out.Assignment.Sorted() {
			x := kmsg.NewConsumerGroupHeartbeatResponseAssignmentTopic()
			x.TopicID, x.Partitions = topic, list
			resp.Assignment.Topics = append(resp.Assignment.Topics, x)
		}
	}
	return reply{msg: resp}, nil
}

func asHeartbeat(r *request, req *kmsg.ConsumerGroupHeartbeatRequest) group.HeartbeatRequest {
	q := group.HeartbeatRequest{
		Member: metadata.MemberID(req.MemberID), Instance: req.InstanceID, Epoch: req.MemberEpoch, Rack: req.RackID,
		Rebalance: time.Duration(req.RebalanceTimeoutMillis) * time.Millisecond, Topics: req.SubscribedTopicNames,
		Regex: req.SubscribedTopicRegex, Assignor: req.ServerAssignor, ClientID: r.clientID, ClientHost: clientHost(r),
	}
	if r.version < heartbeatOwnID && q.Member == "" && q.Epoch == group.EpochJoin {
		q.Member = metadata.MemberID(uuid.NewString())
	}
	if req.Topics != nil {
		q.Owned = group.Assignment{}
		for _, t := range req.Topics {
			for _, p := range t.Partitions {
				q.Owned.Add(t.TopicID, p)
			}
		}
	}
	return q
}

// consumerHeartbeat answers a heartbeat of a consumer group.
func (gs *groups) consumerHeartbeat(ctx context.Context, id metadata.GroupID, q group.HeartbeatRequest) (group.HeartbeatReply, error) {
	if q.Epoch > group.EpochJoin {
		out, ok, err := gs.settled(ctx, id, q)
		if err != nil || ok {
			return out, err
		}
	}
	var out group.HeartbeatReply
	var m *group.Member
	err := gs.apply(ctx, id, func(e group.Event, g *group.Group) {
		out = g.ConsumerHeartbeat(e, q)
		m = g.Members[q.Member]
	})
	if err != nil {
		return out, err
	}
	gs.metrics.heartbeats.WithLabelValues(fromDatabase).Inc()
	if out.Code == group.None && m != nil {
		gs.hear(id, m)
	}
	return out, nil
}

// settled answers from memory when nothing changes.
func (gs *groups) settled(ctx context.Context, id metadata.GroupID, q group.HeartbeatRequest) (out group.HeartbeatReply, ok bool, err error) {
	g, from, err := gs.heartbeatSnapshot(ctx, id, func(g *group.Group) time.Duration {
		if m := g.Members[q.Member]; m != nil {
			return m.Session
		}
		return 0
	})
	if err != nil {
		return out, false, err
	}
	if out, ok = g.Settled(q); !ok || gs.outdated(ctx, id, g) {
		return out, false, nil
	}
	gs.metrics.heartbeats.WithLabelValues(from).Inc()
	gs.hear(id, g.Members[q.Member])
	return out, true, nil
}

// outdated says whether topics that a group subscribes to have changed. It is worked out once for each version of the
// catalogue.
func (gs *groups) outdated(ctx context.Context, id metadata.GroupID, g *group.Group) bool {
	c, err := gs.store.Catalogue(ctx)
	if err != nil {
		return false // of a database that is out of reach nothing new is known
	}
	gs.mu.Lock()
	x := gs.entry(id)
	seen := x.checked == g && x.catalogue == c.Version
	gs.mu.Unlock()
	if seen {
		return false
	}
	if g.Outdated(groupTopics{c}) {
		return true
	}
	gs.mu.Lock()
	x.checked, x.catalogue = g, c.Version
	gs.mu.Unlock()
	return false
}
