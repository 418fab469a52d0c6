package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// DeleteGroups, key 42, versions 0 to 2: groups without members, with their offsets.

func (s *Server) deleteGroups(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DeleteGroupsRequest)
	resp := kmsg.NewPtrDeleteGroupsResponse()
	resp.SetVersion(r.version)
	for _, id := range req.Groups {
		x := kmsg.NewDeleteGroupsResponseGroup()
		x.Group = id
		if !validGroupID(id) {
			x.ErrorCode = r.note(codeInvalidGroupID)
			resp.Groups = append(resp.Groups, x)
			continue
		}
		var out group.Code
		err := s.groups.apply(ctx, metadata.GroupID(id), func(_ group.Event, g *group.Group) {
			if out = g.Delete(); out == group.None {
				g.MarkDeleted()
			}
		})
		code, ok := s.groupCode(ctx, "DeleteGroups", err)
		if !ok {
			return reply{}, ctx.Err()
		}
		if code == codeNone {
			code = int16(out)
		}
		x.ErrorCode = r.note(code)
		resp.Groups = append(resp.Groups, x)
	}
	return reply{msg: resp}, nil
}
