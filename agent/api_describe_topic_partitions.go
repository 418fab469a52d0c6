package agent

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// DescribeTopicPartitions, key 75, version 0 (KIP-966): topics by name, in pages. The next page begins at the cursor.

// maxDescribedPartitions bounds the partitions of one response: Kafka's max.request.partition.size.limit.
const maxDescribedPartitions = 2000

func (s *Server) describeTopicPartitions(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeTopicPartitionsRequest)
	resp := kmsg.NewPtrDescribeTopicPartitionsResponse()
	resp.SetVersion(r.version)
	names := make([]string, len(req.Topics))
	for i := range req.Topics {
		names[i] = req.Topics[i].Topic
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if c := req.Cursor; c != nil && (c.Partition < 0 || (len(names) > 0 && !slices.Contains(names, c.Topic))) {
		describeNone(resp, names, r.note(codeInvalidRequest))
		return reply{msg: resp}, nil
	}
	call, cancel := context.WithTimeout(ctx, defaultAdminTimeout)
	defer cancel()
	c, err := s.freshCatalogue(call)
	if err != nil {
		if err := s.ended(ctx, "DescribeTopicPartitions", err); err != nil {
			return reply{}, err
		}
		if len(names) == 0 {
			return reply{}, err // there is no field to say it in, and an empty list would be believed
		}
		describeNone(resp, names, r.note(codeOf(err)))
		return reply{msg: resp}, nil
	}
	if len(names) == 0 {
		for _, t := range c.Topics() {
			names = append(names, t.Name)
		}
	}
	s.describePage(resp, r, c, names)
	return reply{msg: resp}, nil
}

// describeNone answers every topic with an error.
func describeNone(resp *kmsg.DescribeTopicPartitionsResponse, names []string, code int16) {
	for _, name := range names {
		x := kmsg.NewDescribeTopicPartitionsResponseTopic()
		x.Topic, x.ErrorCode = &name, code
		resp.Topics = append(resp.Topics, x)
	}
}

// describePage fills in one page of the topics, which are sorted.
func (s *Server) describePage(
	resp *kmsg.DescribeTopicPartitionsResponse, r *request, c *metadata.Catalogue, names []string,
) {
	req := r.msg.(*kmsg.DescribeTopicPartitionsRequest)
	place := s.placement(r.clientID)
	left := max(min(int(req.ResponsePartitionLimit), maxDescribedPartitions), 1)
	for _, name := range names {
		from := 0
		if cursor := req.Cursor; cursor != nil {
			if name < cursor.Topic {
				continue
			}
			if name == cursor.Topic {
				from = int(cursor.Partition)
			}
		}
		if left == 0 {
			resp.NextCursor = cursorAt(name, 0)
			return
		}
		t := c.ByName(name)
		if t == nil {
			resp.Topics = append(resp.Topics, s.undescribed(r, name))
			continue
		}
		from = min(from, len(t.Partitions))
		to := min(from+left, len(t.Partitions))
		resp.Topics = append(resp.Topics, s.describePartitions(&place, t, from, to))
		left -= to - from
		if to < len(t.Partitions) {
			resp.NextCursor = cursorAt(name, to)
			return
		}
	}
}

func cursorAt(name string, partition int) *kmsg.DescribeTopicPartitionsResponseNextCursor {
	c := kmsg.NewDescribeTopicPartitionsResponseNextCursor()
	c.Topic, c.Partition = name, int32(partition)
	return &c
}

// undescribed says why a topic is not described.
func (s *Server) undescribed(r *request, name string) kmsg.DescribeTopicPartitionsResponseTopic {
	x := kmsg.NewDescribeTopicPartitionsResponseTopic()
	x.Topic, x.ErrorCode, x.AuthorizedOperations = &name, codeUnknownTopicOrPartition, topicOperations
	if !validTopicName(name) {
		x.ErrorCode = codeInvalidTopicException
	}
	r.note(x.ErrorCode)
	return x
}

// describePartitions describes a topic's partitions from (inclusive) to to (exclusive).
func (s *Server) describePartitions(place *placement, t *metadata.Topic, from, to int) kmsg.DescribeTopicPartitionsResponseTopic {
	x := kmsg.NewDescribeTopicPartitionsResponseTopic()
	x.Topic, x.TopicID, x.AuthorizedOperations = &t.Name, t.ID, topicOperations
	x.Partitions = make([]kmsg.DescribeTopicPartitionsResponseTopicPartition, to-from)
	for i := range x.Partitions {
		p := &x.Partitions[i]
		p.Default()
		replicas := place.replicas(t.ID, int32(from+i))
		p.Partition, p.LeaderID, p.LeaderEpoch, p.Replicas, p.ISR = int32(from+i), replicas[0], leaderEpoch, replicas, replicas
		p.EligibleLeaderReplicas, p.LastKnownELR = []int32{}, []int32{}
	}
	return x
}
