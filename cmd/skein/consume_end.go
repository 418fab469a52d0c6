package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/record"
)

// probeAfter is how long nothing comes before a reader looks whether there is anything left.
const probeAfter = time.Second

// endReader reads partitions to the ends that they had at the start. Key compaction may leave batches without records
// there, of which a client shows nothing: it finds out about those itself.
type endReader struct {
	client *kgo.Client
	topic  string
	left   map[int32]int64 // ends; callers remove what was read
	at     map[int32]int64 // what comes next
}

func newEndReader(client *kgo.Client, topic string, from map[int32]kgo.Offset, left map[int32]int64) *endReader {
	e := &endReader{client: client, topic: topic, left: left, at: map[int32]int64{}}
	for p := range left {
		e.at[p] = from[p].EpochOffset().Offset
	}
	return e
}

// poll gives what comes next; nothing when nothing is left. The client itself would wait for an agent for ever.
func (e *endReader) poll(ctx context.Context) (kgo.Fetches, error) {
	start := time.Now()
	for {
		poll, cancel := context.WithTimeout(ctx, probeAfter)
		fetches := e.client.PollFetches(poll)
		cancel()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := fetches.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("consume: %w", err)
		}
		if !fetches.Empty() {
			fetches.EachPartition(func(t kgo.FetchTopicPartition) {
				if n := len(t.Records); n > 0 {
					e.at[t.Partition] = t.Records[n-1].Offset + 1
				}
			})
			return fetches, nil
		}
		err := e.probe(ctx)
		if len(e.left) == 0 {
			return nil, nil
		}
		if time.Since(start) > readTimeout {
			return nil, errors.Join(fmt.Errorf("consume: nothing came for %v, and the end is not reached", readTimeout), err)
		}
	}
}

// probe removes the partitions that have no records up to their ends.
func (e *endReader) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	topics, err := kadm.NewClient(e.client).ListTopics(ctx, e.topic)
	if err != nil {
		return err
	}
	for p, end := range e.left {
		empty, err := e.emptyTo(ctx, topics[e.topic].ID, p, end)
		if err != nil {
			return err
		}
		if empty {
			delete(e.left, p)
		}
	}
	return nil
}

// emptyTo says whether all batches from where the partition was read to on, up to an offset, are without records.
func (e *endReader) emptyTo(ctx context.Context, id kadm.TopicID, partition int32, end int64) (bool, error) {
	for at := e.at[partition]; at < end; {
		next, err := e.skipEmpty(ctx, id, partition, at)
		if err != nil || next <= at {
			return false, err
		}
		at = next
	}
	return true, nil
}

// skipEmpty fetches from an offset, and gives what comes after the batches without records there.
func (e *endReader) skipEmpty(ctx context.Context, id kadm.TopicID, partition int32, at int64) (int64, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.MaxBytes, req.SessionEpoch = -1, 1<<20, -1
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, at, 1<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID, t.Partitions = e.topic, id, []kmsg.FetchRequestTopicPartition{p}
	req.Topics = append(req.Topics, t)
	rep, err := req.RequestWith(ctx, e.client)
	if err != nil {
		return 0, err
	}
	for i := range rep.Topics {
		for j := range rep.Topics[i].Partitions {
			x := &rep.Topics[i].Partitions[j]
			if err := kerr.ErrorForCode(x.ErrorCode); err != nil {
				return 0, err
			}
			for b, err := range record.Batches(x.RecordBatches) {
				if err != nil || b.RecordCount > 0 {
					return at, nil
				}
				at = b.LastOffset() + 1
			}
		}
	}
	return at, nil
}
