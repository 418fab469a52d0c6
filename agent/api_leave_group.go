package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// LeaveGroup, key 13, versions 0 to 5: one member, from version 3 several (KIP-345).

// leaveBatch is the first version that names several members.
const leaveBatch int16 = 3

func (s *Server) leaveGroup(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.LeaveGroupRequest)
	resp := kmsg.NewPtrLeaveGroupResponse()
	resp.SetVersion(r.version)
	if !validGroupID(req.Group) {
		resp.ErrorCode = r.note(codeInvalidGroupID)
		return reply{msg: resp}, nil
	}
	var leavers []group.Leaver
	if r.version < leaveBatch {
		leavers = []group.Leaver{{Member: metadata.MemberID(req.MemberID)}}
	}
	for _, m := range req.Members {
		leavers = append(leavers, group.Leaver{Member: metadata.MemberID(m.MemberID), Instance: deref(m.InstanceID)})
	}
	var codes []group.Code
	err := s.groups.apply(ctx, metadata.GroupID(req.Group), func(e group.Event, g *group.Group) { codes = g.Leave(e, leavers) })
	code, ok := s.groupCode(ctx, "LeaveGroup", err)
	switch {
	case !ok:
		return reply{}, ctx.Err()
	case code != codeNone:
		resp.ErrorCode = r.note(code)
		return reply{msg: resp}, nil
	case r.version < leaveBatch:
		resp.ErrorCode = r.note(int16(codes[0]))
		return reply{msg: resp}, nil
	}
	for i := range req.Members {
		x := kmsg.NewLeaveGroupResponseMember()
		x.MemberID, x.InstanceID, x.ErrorCode = req.Members[i].MemberID, req.Members[i].InstanceID, r.note(int16(codes[i]))
		resp.Members = append(resp.Members, x)
	}
	return reply{msg: resp}, nil
}
