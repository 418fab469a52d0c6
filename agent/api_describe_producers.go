package agent

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// DescribeProducers, key 61, version 0: what partitions know of their producers.

func (s *Server) describeProducers(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeProducersRequest)
	resp := kmsg.NewPtrDescribeProducersResponse()
	resp.SetVersion(r.version)
	call, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	c, err := s.lookup(call, topicNames(len(req.Topics), func(i int) string { return req.Topics[i].Topic }))
	for i := range req.Topics {
		t := kmsg.NewDescribeProducersResponseTopic()
		t.Topic = req.Topics[i].Topic
		for _, index := range req.Topics[i].Partitions {
			p := kmsg.NewDescribeProducersResponseTopicPartition()
			p.Partition = index
			part, code := findPart(c, t.Topic, index, err)
			if p.ErrorCode = code; code == codeNone {
				s.activeProducers(call, part.place, &p)
			}
			if ctx.Err() != nil {
				return reply{}, ctx.Err()
			}
			r.note(p.ErrorCode)
			t.Partitions = append(t.Partitions, p)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return reply{msg: resp}, nil
}

func (s *Server) activeProducers(ctx context.Context, place metadata.PartitionID, p *kmsg.DescribeProducersResponseTopicPartition) {
	list, err := s.store.Producers(ctx, place)
	switch {
	case errors.Is(err, metadata.ErrUnknownTopic):
		p.ErrorCode = codeUnknownTopicOrPartition
	case err != nil:
		p.ErrorCode = codeRequestTimedOut
	}
	for _, a := range list {
		x := kmsg.NewDescribeProducersResponseTopicPartitionActiveProducer()
		x.ProducerID, x.ProducerEpoch, x.LastSequence = int64(a.Producer), int32(a.Epoch), int32(a.Last)
		x.LastTimestamp, x.CoordinatorEpoch, x.CurrentTxnStartOffset = int64(a.At), coordinatorEpoch, int64(a.TxnStart)
		p.ActiveProducers = append(p.ActiveProducers, x)
	}
}
