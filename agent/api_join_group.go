package agent

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// JoinGroup, key 11, versions 0 to 9. From version 4 a dynamic member gets its id first and comes back with it (KIP-394);
// version 9 knows SkipAssignment (KIP-814). Any protocol type is served: what members and leaders send each other is opaque.

const (
	joinRebalanceTimeout int16 = 1
	joinMemberIDRequired int16 = 4
	joinNullProtocol     int16 = 7
	joinSkipAssignment   int16 = 9
)

func (s *Server) joinGroup(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.JoinGroupRequest)
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.SetVersion(r.version)
	resp.Generation, resp.MemberID = -1, req.MemberID
	if code := checkJoin(req); code != codeNone {
		return joinReply(r, resp, group.JoinReply{Code: group.Code(code), Member: metadata.MemberID(req.MemberID), Generation: -1}), nil
	}
	id := metadata.GroupID(req.Group)
	q := asJoin(r, req)
	var out group.JoinReply
	err := s.groups.apply(ctx, id, func(e group.Event, g *group.Group) { out = g.Join(e, q) })
	if err == nil && out.Wait {
		err = s.groups.wait(ctx, id, out.Member, func(g *group.Group) bool {
			answer, ok := g.AnswerJoin(out.Member, q.Instance, out.After)
			if ok {
				out = answer
				if m := g.Members[out.Member]; m != nil {
					s.groups.hear(id, m)
				}
			}
			return ok
		})
	}
	code, ok := s.groupCode(ctx, "JoinGroup", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	if code != codeNone {
		out = group.JoinReply{Code: group.Code(code), Member: metadata.MemberID(req.MemberID), Generation: -1}
	}
	return joinReply(r, resp, out), nil
}

// checkJoin refuses what cannot be kept.
func checkJoin(req *kmsg.JoinGroupRequest) int16 {
	switch {
	case !validGroupID(req.Group):
		return codeInvalidGroupID
	case !storable(req.MemberID, metadata.MaxMemberIDBytes):
		return codeUnknownMemberID
	case !storable(deref(req.InstanceID), metadata.MaxMemberIDBytes/2), !storable(req.ProtocolType, metadata.MaxGroupIDBytes):
		return codeInvalidRequest
	}
	return codeNone
}

func asJoin(r *request, req *kmsg.JoinGroupRequest) group.JoinRequest {
	q := group.JoinRequest{
		Member: metadata.MemberID(req.MemberID), Instance: deref(req.InstanceID), ClientID: r.clientID, ClientHost: clientHost(r),
		RequireKnown: r.version >= joinMemberIDRequired, SkipAssign: r.version >= joinSkipAssignment,
		Session:      time.Duration(req.SessionTimeoutMillis) * time.Millisecond,
		Rebalance:    time.Duration(req.RebalanceTimeoutMillis) * time.Millisecond,
		ProtocolType: req.ProtocolType,
	}
	if r.version < joinRebalanceTimeout {
		q.Rebalance = q.Session
	}
	if q.Member == "" {
		q.NewMember = newMemberID(r.clientID, q.Instance)
	}
	for _, p := range req.Protocols {
		q.Protocols = append(q.Protocols, group.Protocol{Name: p.Name, Metadata: p.Metadata})
	}
	return q
}

func joinReply(r *request, resp *kmsg.JoinGroupResponse, out group.JoinReply) reply {
	resp.ErrorCode = r.note(int16(out.Code))
	resp.MemberID, resp.Generation, resp.LeaderID = string(out.Member), out.Generation, string(out.Leader)
	resp.SkipAssignment = out.SkipAssign
	if out.ProtocolType != "" {
		resp.ProtocolType = &out.ProtocolType
	}
	if out.Protocol != "" || r.version < joinNullProtocol {
		resp.Protocol = &out.Protocol
	}
	for _, m := range out.Members {
		x := kmsg.NewJoinGroupResponseMember()
		x.MemberID, x.ProtocolMetadata = string(m.Member), m.Metadata
		if m.Instance != "" {
			x.InstanceID = &m.Instance
		}
		resp.Members = append(resp.Members, x)
	}
	return reply{msg: resp}
}
