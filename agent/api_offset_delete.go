package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// OffsetDelete, key 47, version 0 (KIP-496): offsets of topics that a group's members do not subscribe to.

func (s *Server) offsetDelete(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.OffsetDeleteRequest)
	resp := kmsg.NewPtrOffsetDeleteResponse()
	resp.SetVersion(r.version)
	if !validGroupID(req.Group) {
		resp.ErrorCode = r.note(codeInvalidGroupID)
		return reply{msg: resp}, nil
	}
	c, err := s.catalogueWith(ctx, func(c *metadata.Catalogue) bool {
		for i := range req.Topics {
			if c.ByName(req.Topics[i].Topic) == nil {
				return false
			}
		}
		return true
	})
	subscribed := map[string]bool{}
	if err == nil {
		subscribed, err = s.deleteOffsets(ctx, req, c)
	}
	code, ok := s.groupCode(ctx, "OffsetDelete", err)
	if !ok {
		return reply{}, ctx.Err()
	}
	if resp.ErrorCode = r.note(code); code != codeNone {
		return reply{msg: resp}, nil
	}
	for i := range req.Topics {
		t := &req.Topics[i]
		x := kmsg.NewOffsetDeleteResponseTopic()
		x.Topic = t.Topic
		for _, p := range t.Partitions {
			y := kmsg.NewOffsetDeleteResponseTopicPartition()
			y.Partition = p.Partition
			switch topic := c.ByName(t.Topic); {
			case topic == nil || p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
				y.ErrorCode = r.note(codeUnknownTopicOrPartition)
			case subscribed[t.Topic]:
				y.ErrorCode = r.note(int16(group.GroupSubscribedToTopic))
			}
			x.Partitions = append(x.Partitions, y)
		}
		resp.Topics = append(resp.Topics, x)
	}
	return reply{msg: resp}, nil
}

// deleteOffsets deletes what may be deleted and gives the topics that the members subscribe to.
func (s *Server) deleteOffsets(ctx context.Context, req *kmsg.OffsetDeleteRequest, c *metadata.Catalogue) (map[string]bool, error) {
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	id := metadata.GroupID(req.Group)
	check := func(unsubscribed map[string]bool) func(metadata.Millis, *metadata.GroupRows) error {
		return func(_ metadata.Millis, rows *metadata.GroupRows) error {
			g, err := group.Decode(rows)
			if err != nil {
				return err
			}
			if !g.Exists() {
				return refuse(group.GroupIDNotFound)
			}
			topics, known := g.Subscribed()
			if !known {
				return refuse(group.NonEmptyGroup)
			}
			for name := range unsubscribed {
				if topics[name] {
					return errStillNeeded
				}
			}
			return nil
		}
	}
	_, rows, err := s.store.LoadGroups(call, id)
	if err != nil {
		return nil, err
	}
	if err := check(nil)(0, &rows[0]); err != nil {
		return nil, err
	}
	g, err := group.Decode(&rows[0])
	if err != nil {
		return nil, err
	}
	subscribed, _ := g.Subscribed()
	deleted := map[string]bool{}
	var list []metadata.TopicPartition
	for i := range req.Topics {
		t := &req.Topics[i]
		if topic := c.ByName(t.Topic); topic != nil && !subscribed[t.Topic] {
			deleted[t.Topic] = true
			for _, p := range t.Partitions {
				list = append(list, metadata.TopicPartition{Topic: topic.ID, Partition: p.Partition})
			}
		}
	}
	if len(list) == 0 {
		return subscribed, nil
	}
	return subscribed, s.store.DeleteOffsets(call, id, list, 0, check(deleted))
}
