package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// ConsumerGroupDescribe, key 69, versions 0 and 1 (KIP-848). Classic groups are GROUP_ID_NOT_FOUND, on which the Java admin
// client falls back to DescribeGroups.

// Types of members (version 1).
const (
	describedClassic  int8 = 0
	describedConsumer int8 = 1
)

func (s *Server) consumerGroupDescribe(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ConsumerGroupDescribeRequest)
	resp := kmsg.NewPtrConsumerGroupDescribeResponse()
	resp.SetVersion(r.version)
	described, err := s.loadGroups(ctx, req.Groups)
	var c *metadata.Catalogue
	if err == nil {
		c, err = s.store.Catalogue(ctx)
	}
	code, ok := s.groupCode(ctx, "ConsumerGroupDescribe", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	for _, id := range req.Groups {
		x := kmsg.NewConsumerGroupDescribeResponseGroup()
		x.Group = id
		g := described[metadata.GroupID(id)]
		switch {
		case code != codeNone:
			x.ErrorCode = code
		case !validGroupID(id):
			x.ErrorCode = codeInvalidGroupID
		case g == nil || g.Kind != metadata.GroupConsumer:
			text := "Group " + id + " is not a consumer group."
			x.ErrorCode, x.ErrorMessage = int16(group.GroupIDNotFound), &text
		default:
			describeConsumer(&x, g, groupTopics{c})
			if req.IncludeAuthorizedOperations {
				x.AuthorizedOperations = groupOperations
			}
		}
		r.note(x.ErrorCode)
		resp.Groups = append(resp.Groups, x)
	}
	return reply{msg: resp}, nil
}

func describeConsumer(x *kmsg.ConsumerGroupDescribeResponseGroup, g *group.Group, t group.Topics) {
	x.State, x.Epoch, x.AssignmentEpoch, x.AssignorName = g.Shown().String(), g.Consumer.Epoch, g.Consumer.TargetEpoch, g.Assignor()
	for _, m := range g.Sorted() {
		c := m.Consumer
		y := kmsg.NewConsumerGroupDescribeResponseGroupMember()
		y.MemberID, y.MemberEpoch, y.ClientID, y.ClientHost = string(m.ID), c.Epoch, m.ClientID, m.ClientHost
		if m.Instance != "" {
			y.InstanceID = &m.Instance
		}
		if c.Rack != "" {
			y.RackID = &c.Rack
		}
		if c.Regex != "" {
			y.SubscribedTopicRegex = &c.Regex
		}
		y.SubscribedTopics = append([]string{}, c.Topics...)
		y.Assignment, y.TargetAssignment = described(c.Assigned, t), described(c.Target, t)
		if y.MemberType = describedConsumer; c.Classic {
			y.MemberType = describedClassic
		}
		x.Members = append(x.Members, y)
	}
}

func described(a group.Assignment, t group.Topics) kmsg.Assignment {
	out := kmsg.NewAssignment()
	for id, list := range a.Sorted() {
		x := kmsg.NewAssignmentTopicPartition()
		x.TopicID, x.Topic, x.Partitions = id, t.Name(id), list
		out.TopicPartitions = append(out.TopicPartitions, x)
	}
	return out
}
