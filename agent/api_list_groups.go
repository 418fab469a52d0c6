package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// ListGroups, key 16, versions 0 to 5: from version 4 filtered by state (KIP-518), from version 5 by type (KIP-848). Each
// agent lists the groups that it is shown as the coordinator of: tools ask every broker.

const (
	// listPage is how many groups one statement reads.
	listPage = 1000
	// classicType and consumerType are Kafka's names of the kinds of groups.
	classicType  = "classic"
	consumerType = "consumer"
)

func (s *Server) listGroups(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ListGroupsRequest)
	resp := kmsg.NewPtrListGroupsResponse()
	resp.SetVersion(r.version)
	resp.Groups = []kmsg.ListGroupsResponseGroup{}
	wanted := func(filter []string, value string) bool {
		return len(filter) == 0 || slices.ContainsFunc(filter, func(f string) bool { return strings.EqualFold(f, value) })
	}
	err := s.eachGroup(ctx, func(g *metadata.GroupRow) {
		if !s.coordinates(string(g.ID)) {
			return
		}
		typ := groupType(g.Kind)
		if !wanted(req.StatesFilter, g.State) || !wanted(req.TypesFilter, typ) {
			return
		}
		x := kmsg.NewListGroupsResponseGroup()
		x.Group, x.ProtocolType, x.GroupState, x.GroupType = string(g.ID), g.ProtocolType, g.State, typ
		resp.Groups = append(resp.Groups, x)
	})
	code, ok := s.groupCode(ctx, "ListGroups", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	if resp.ErrorCode = r.note(code); code != codeNone {
		resp.Groups = nil
	}
	return reply{msg: resp}, nil
}

// groupType gives Kafka's name of a kind: groups that only hold offsets are classic ones.
func groupType(k metadata.GroupKind) string {
	if k == metadata.GroupConsumer {
		return consumerType
	}
	return classicType
}

// eachGroup calls fn for every group by id.
func (s *Server) eachGroup(ctx context.Context, fn func(*metadata.GroupRow)) error {
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	for after := metadata.GroupID(""); ; {
		page, err := s.store.ListGroups(call, after, listPage)
		if err != nil {
			return err
		}
		for i := range page {
			fn(&page[i])
			after = page[i].ID
		}
		if len(page) < listPage {
			return nil
		}
	}
}
