package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// DescribeGroups, key 15, versions 0 to 6. A group that is not there is Dead without an error, from version 6 it is
// GROUP_ID_NOT_FOUND (KIP-1043), as is a group of the consumer protocol, which ConsumerGroupDescribe shows.

const (
	describeNotFound   int16 = 6
	describeOperations int16 = 3
	// groupOperations are read, delete, describe: one bit for each of Kafka's AclOperation codes that groups have.
	groupOperations int32 = 1<<3 | 1<<6 | 1<<8
)

func (s *Server) describeGroups(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeGroupsRequest)
	resp := kmsg.NewPtrDescribeGroupsResponse()
	resp.SetVersion(r.version)
	described, err := s.loadGroups(ctx, req.Groups)
	code, ok := s.groupCode(ctx, "DescribeGroups", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	for _, id := range req.Groups {
		x := kmsg.NewDescribeGroupsResponseGroup()
		x.Group = id
		g := described[metadata.GroupID(id)]
		switch {
		case code != codeNone:
			x.ErrorCode = code
		case !validGroupID(id):
			x.ErrorCode = codeInvalidGroupID
		case g == nil || g.Kind == metadata.GroupConsumer:
			x.State = group.Dead.String()
			if r.version >= describeNotFound {
				text := "Group " + id + " not found."
				if g != nil {
					text = "Group " + id + " is not a classic group."
				}
				x.ErrorCode, x.ErrorMessage = int16(group.GroupIDNotFound), &text
			}
		default:
			describeClassic(&x, g)
		}
		if req.IncludeAuthorizedOperations && r.version >= describeOperations && x.ErrorCode == codeNone {
			x.AuthorizedOperations = groupOperations
		}
		r.note(x.ErrorCode)
		resp.Groups = append(resp.Groups, x)
	}
	return reply{msg: resp}, nil
}

// loadGroups reads groups by id, those that are there and can be.
func (s *Server) loadGroups(ctx context.Context, names []string) (map[metadata.GroupID]*group.Group, error) {
	var ids []metadata.GroupID
	for _, name := range names {
		if validGroupID(name) {
			ids = append(ids, metadata.GroupID(name))
		}
	}
	found := make(map[metadata.GroupID]*group.Group, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	_, rows, err := s.store.LoadGroups(call, ids...)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		if rows[i].Group.Version == 0 {
			continue
		}
		g, err := group.Decode(&rows[i])
		if err != nil {
			return nil, err
		}
		found[g.ID] = g
	}
	return found, nil
}

func describeClassic(x *kmsg.DescribeGroupsResponseGroup, g *group.Group) {
	x.State, x.ProtocolType = g.Shown().String(), g.ProtocolType
	if g.State == group.Stable {
		x.Protocol = g.Protocol
	}
	for _, m := range g.Sorted() {
		y := kmsg.NewDescribeGroupsResponseGroupMember()
		y.MemberID, y.ClientID, y.ClientHost = string(m.ID), m.ClientID, m.ClientHost
		if m.Instance != "" {
			y.InstanceID = &m.Instance
		}
		y.ProtocolMetadata, y.MemberAssignment = []byte{}, []byte{}
		if g.State == group.Stable {
			y.ProtocolMetadata = append(y.ProtocolMetadata, m.MetadataOf(g.Protocol)...)
			y.MemberAssignment = append(y.MemberAssignment, m.Assignment...)
		}
		x.Members = append(x.Members, y)
	}
}
