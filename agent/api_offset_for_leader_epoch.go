package agent

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// OffsetForLeaderEpoch, key 23, versions 2 to 4 (KIP-101, KIP-320).
//
// The leader epoch of every partition is 0 for ever, so epoch 0 ends at the high watermark. For an epoch that was never
// there the answer is epoch and offset -1, as Kafka's is.

// offsetForLeaderEpoch serves an OffsetForLeaderEpoch request. It asks the database.
func (s *Server) offsetForLeaderEpoch(ctx context.Context, r *request) (reply, error) {
	req, ok := r.msg.(*kmsg.OffsetForLeaderEpochRequest)
	if !ok {
		return reply{}, fmt.Errorf("offset for leader epoch: request is %T", r.msg)
	}
	var resp *kmsg.OffsetForLeaderEpochResponse
	err := s.resolved(ctx, func(c *metadata.Catalogue, err error) (unknown bool, _ error) {
		resp, unknown, err = s.epochsIn(ctx, req, c, err)
		return unknown, err
	})
	if err != nil {
		return reply{}, err
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			r.note(resp.Topics[i].Partitions[j].ErrorCode)
		}
	}
	return reply{msg: resp}, nil
}

// epochsIn answers a request by a catalogue; err is why there is none. unknown: a partition is not there.
func (s *Server) epochsIn(
	ctx context.Context, req *kmsg.OffsetForLeaderEpochRequest, topics *metadata.Catalogue, err error,
) (resp *kmsg.OffsetForLeaderEpochResponse, unknown bool, _ error) {
	resp = kmsg.NewPtrOffsetForLeaderEpochResponse()
	resp.Version = req.Version
	var parts []*partRead
	var at []*kmsg.OffsetForLeaderEpochResponseTopicPartition
	resp.Topics = make([]kmsg.OffsetForLeaderEpochResponseTopic, len(req.Topics))
	for i := range req.Topics {
		t, out := &req.Topics[i], &resp.Topics[i]
		out.Topic = t.Topic
		out.Partitions = make([]kmsg.OffsetForLeaderEpochResponseTopicPartition, len(t.Partitions))
		for j := range t.Partitions {
			p, x := &t.Partitions[j], &out.Partitions[j]
			x.Default()
			x.Partition, x.LeaderEpoch, x.EndOffset = p.Partition, noLeaderEpoch, int64(noOffset)
			part, code := findPart(topics, t.Topic, p.Partition, err)
			unknown = unknown || code == codeUnknownTopicOrPartition
			if code == codeNone {
				code = checkLeaderEpoch(p.CurrentLeaderEpoch)
			}
			if x.ErrorCode = code; code == codeNone && p.LeaderEpoch == leaderEpoch {
				parts, at = append(parts, part), append(at, x)
			}
		}
	}
	if err := s.reader.fresh(ctx, parts); err != nil {
		return nil, false, err
	}
	for i, p := range parts {
		unknown = unknown || p.code == codeUnknownTopicOrPartition
		if at[i].ErrorCode = p.code; p.code == codeNone {
			at[i].LeaderEpoch, at[i].EndOffset = leaderEpoch, int64(p.highWatermark())
		}
	}
	return resp, unknown, nil
}

// resolved answers a request that names its topics: by the catalogue at hand, and where something is unknown to that, or
// deleted, once more by the database's: another agent may have made it, made it again, or given it more partitions.
func (s *Server) resolved(ctx context.Context, answer func(c *metadata.Catalogue, err error) (unknown bool, _ error)) error {
	c, err := s.store.Catalogue(ctx)
	for again := true; ; again = false {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		unknown, failed := answer(c, err)
		if failed != nil || !unknown || !again {
			return failed
		}
		c, err = s.store.RefreshCatalogue(ctx)
	}
}

// topicNames gives n names.
func topicNames(n int, name func(i int) string) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = name(i)
	}
	return names
}

// lookup gives a catalogue that has the topics, asking the database once when the cached one does not.
func (s *Server) lookup(ctx context.Context, names []string) (*metadata.Catalogue, error) {
	c, err := s.store.Catalogue(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if c.ByName(name) == nil {
			return s.store.RefreshCatalogue(ctx)
		}
	}
	return c, nil
}

// findPart finds a partition, or gives the code that says why not; err is why there is no catalogue.
func findPart(c *metadata.Catalogue, topic string, index int32, err error) (*partRead, int16) {
	if err != nil {
		return nil, readCode(err)
	}
	t := c.ByName(topic)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil, codeUnknownTopicOrPartition
	}
	place := t.Partitions[index]
	return &partRead{
		topic: topic, index: index, place: metadata.PartitionID{Block: place.Block, Slot: place.Slot},
	}, codeNone
}
