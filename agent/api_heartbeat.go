package agent

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// Heartbeat, key 12, versions 0 to 4. It is answered from memory for a third of the session timeout since the database last
// confirmed the group, and writes nothing: whom the agent heard of is written back in batches.

func (s *Server) heartbeat(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.HeartbeatRequest)
	resp := kmsg.NewPtrHeartbeatResponse()
	resp.SetVersion(r.version)
	if !validGroupID(req.Group) {
		resp.ErrorCode = r.note(codeInvalidGroupID)
		return reply{msg: resp}, nil
	}
	code, err := s.groups.heartbeat(ctx, metadata.GroupID(req.Group), metadata.MemberID(req.MemberID), deref(req.InstanceID), req.Generation)
	failed, ok := s.groupCode(ctx, "Heartbeat", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	if failed != codeNone {
		code = group.Code(failed)
	}
	resp.ErrorCode = r.note(int16(code))
	return reply{msg: resp}, nil
}

// heartbeat answers a heartbeat.
func (gs *groups) heartbeat(ctx context.Context, id metadata.GroupID, member metadata.MemberID, instance string, generation int32) (group.Code, error) {
	session := func(g *group.Group) time.Duration {
		if m := g.Members[member]; m != nil {
			return m.Session
		}
		return 0 // not known here: ask
	}
	g, from, err := gs.heartbeatSnapshot(ctx, id, session)
	if err != nil {
		return group.None, err
	}
	gs.metrics.heartbeats.WithLabelValues(from).Inc()
	if !g.Exists() {
		return group.UnknownMemberID, nil
	}
	code, heard := g.Heartbeat(member, instance, generation)
	if heard {
		gs.hear(id, g.Members[member])
	}
	if code == group.RebalanceInProgress && g.NeedsRejoinNote(member) {
		// A classic member of a consumer group: from now on it has its rebalance timeout to rejoin.
		err = gs.apply(ctx, id, func(e group.Event, g *group.Group) {
			if code, _ := g.Heartbeat(member, instance, generation); code == group.RebalanceInProgress {
				g.HeartbeatRejoin(e, member)
			}
		})
	}
	return code, err
}
