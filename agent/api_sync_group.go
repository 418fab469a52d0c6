package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// SyncGroup, key 14, versions 0 to 5.

func (s *Server) syncGroup(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.SyncGroupRequest)
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.SetVersion(r.version)
	resp.MemberAssignment = []byte{}
	if !validGroupID(req.Group) {
		resp.ErrorCode = r.note(codeInvalidGroupID)
		return reply{msg: resp}, nil
	}
	id := metadata.GroupID(req.Group)
	q := group.SyncRequest{
		Member: metadata.MemberID(req.MemberID), Instance: deref(req.InstanceID), Generation: req.Generation,
		ProtocolType: deref(req.ProtocolType), Protocol: deref(req.Protocol),
		Assignments: make(map[metadata.MemberID][]byte, len(req.GroupAssignment)),
	}
	for _, a := range req.GroupAssignment {
		q.Assignments[metadata.MemberID(a.MemberID)] = a.MemberAssignment
	}
	var out group.SyncReply
	err := s.groups.apply(ctx, id, func(e group.Event, g *group.Group) { out = g.Sync(e, q) })
	if err == nil && out.Wait {
		err = s.groups.wait(ctx, id, q.Member, func(g *group.Group) bool {
			answer, ok := g.AnswerSync(q)
			if ok {
				out = answer
			}
			return ok
		})
	}
	code, ok := s.groupCode(ctx, "SyncGroup", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	if code != codeNone {
		out = group.SyncReply{Code: group.Code(code)}
	}
	resp.ErrorCode = r.note(int16(out.Code))
	if out.Code == group.None {
		resp.MemberAssignment = append(resp.MemberAssignment, out.Assignment...)
		resp.ProtocolType, resp.Protocol = &out.ProtocolType, &out.Protocol
	}
	return reply{msg: resp}, nil
}
