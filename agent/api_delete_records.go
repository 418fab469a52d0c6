package agent

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// DeleteRecords, key 21, versions 0 to 2: moves log starts. What lies before is gone for readers of every agent when the
// response is there; the compactor removes its bytes later.

// noWatermark is the low watermark of a partition with an error.
const noWatermark int64 = -1

// trim is one partition of a DeleteRecords request.
type trim struct {
	req metadata.DeleteRecords
	out *kmsg.DeleteRecordsResponseTopicPartition
}

func (s *Server) deleteRecords(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DeleteRecordsRequest)
	call, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	c, err := s.freshCatalogue(call)
	resp := kmsg.NewPtrDeleteRecordsResponse()
	resp.SetVersion(r.version)
	resp.Topics = make([]kmsg.DeleteRecordsResponseTopic, len(req.Topics))
	configs := topicconf.All()
	var trims []trim
	for i := range req.Topics {
		q, out := &req.Topics[i], &resp.Topics[i]
		out.Topic = q.Topic
		out.Partitions = make([]kmsg.DeleteRecordsResponseTopicPartition, len(q.Partitions))
		var t *metadata.Topic
		if err == nil {
			t = c.ByName(q.Topic)
		}
		for j := range q.Partitions {
			p, x := &q.Partitions[j], &out.Partitions[j]
			x.Default()
			x.Partition, x.LowWatermark = p.Partition, noWatermark
			switch {
			case err != nil:
				x.ErrorCode = codeOf(err)
			case t == nil || p.Partition < 0 || int(p.Partition) >= len(t.Partitions):
				x.ErrorCode = codeUnknownTopicOrPartition
			case onlyCompacted(configs, t):
				x.ErrorCode = codePolicyViolation
			default:
				place := t.Partitions[p.Partition]
				trims = append(trims, trim{out: x, req: metadata.DeleteRecords{
					Partition: metadata.PartitionID{Block: place.Block, Slot: place.Slot}, Before: metadata.Offset(p.Offset),
				}})
			}
		}
	}
	if err == nil {
		err = s.trim(call, trims)
	}
	if err != nil {
		if err := s.ended(ctx, "DeleteRecords", err); err != nil {
			return reply{}, err
		}
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			r.note(resp.Topics[i].Partitions[j].ErrorCode)
		}
	}
	return reply{msg: resp}, nil
}

// onlyCompacted says whether a topic's records go by compaction alone: nobody may delete them by offset.
func onlyCompacted(configs topicconf.Set, t *metadata.Topic) bool {
	v := configs.Values(t.Configs)
	return v.Compact && !v.Delete
}

// trim moves the log starts.
func (s *Server) trim(ctx context.Context, trims []trim) error {
	if len(trims) == 0 {
		return nil
	}
	reqs := make([]metadata.DeleteRecords, len(trims))
	for i := range trims {
		reqs[i] = trims[i].req
	}
	results, err := s.store.DeleteRecords(ctx, reqs)
	for i := range trims {
		out := trims[i].out
		switch {
		case err != nil:
			out.ErrorCode = codeOf(err)
		case errors.Is(results[i].Err, metadata.ErrUnknownTopic): // deleted meanwhile
			out.ErrorCode = codeUnknownTopicOrPartition
		case results[i].Err != nil:
			out.ErrorCode = codeOf(results[i].Err)
		default:
			out.LowWatermark = int64(results[i].LogStart)
		}
	}
	return err
}
