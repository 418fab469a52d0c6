package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

// WriteTxnMarkers, key 27, versions 1 and 2: what `kafka-transactions abort` sends. Between agents nothing is sent.
//
// A transaction that its transactional id still knows is aborted as a whole: in Kafka the tool ends it in one partition,
// behind the coordinator's back. Markers for one partition alone are written only for what nobody else will ever end.

func (s *Server) writeTxnMarkers(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.WriteTxnMarkersRequest)
	resp := kmsg.NewPtrWriteTxnMarkersResponse()
	resp.SetVersion(r.version)
	call, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	for i := range req.Markers {
		m := &req.Markers[i]
		x := kmsg.NewWriteTxnMarkersResponseMarker()
		x.ProducerID = m.ProducerID
		c, err := s.lookup(call, topicNames(len(m.Topics), func(j int) string { return m.Topics[j].Topic }))
		for j := range m.Topics {
			t := kmsg.NewWriteTxnMarkersResponseMarkerTopic()
			t.Topic = m.Topics[j].Topic
			for _, index := range m.Topics[j].Partitions {
				p := kmsg.NewWriteTxnMarkersResponseMarkerTopicPartition()
				p.Partition = index
				part, code := findPart(c, t.Topic, index, err)
				if p.ErrorCode = code; code == codeNone {
					p.ErrorCode = s.writeMarker(call, m, part.place)
				}
				if ctx.Err() != nil {
					return reply{}, ctx.Err()
				}
				r.note(p.ErrorCode)
				t.Partitions = append(t.Partitions, p)
			}
			x.Topics = append(x.Topics, t)
		}
		resp.Markers = append(resp.Markers, x)
	}
	return reply{msg: resp}, nil
}

// writeMarker ends what a producer has open in a partition, and gives the partition's code.
func (s *Server) writeMarker(ctx context.Context, m *kmsg.WriteTxnMarkersRequestMarker, place metadata.PartitionID) int16 {
	producer, epoch := metadata.ProducerID(m.ProducerID), metadata.ProducerEpoch(m.ProducerEpoch)
	ended, err := s.abortKnown(ctx, m, place)
	code, _ := s.txnCode(ctx, "WriteTxnMarkers", err, codeInvalidProducerEpoch)
	if ended || code != codeNone {
		return code
	}
	now, err := s.store.Now(ctx)
	if err != nil {
		return codeRequestTimedOut
	}
	change := &metadata.TxnChange{End: metadata.TxnAborts, Producer: producer, Epoch: epoch}
	if m.Committed {
		change.End = metadata.TxnCommits
	}
	results, err := s.store.WriteMarkers(ctx, producer, epoch, []metadata.PartitionID{place}, m.Committed, marker(now, change))
	if err != nil {
		s.log.Warn("WriteTxnMarkers failed", "error", err)
		return codeRequestTimedOut
	}
	switch results[0].Code {
	case metadata.CodeAccepted, metadata.CodeDuplicate:
		return codeNone
	case metadata.CodeFenced:
		return codeInvalidProducerEpoch
	case metadata.CodeUnknownPartition:
		return codeUnknownTopicOrPartition
	}
	return codeInvalidTxnState
}

// abortKnown aborts the producer's transaction when its transactional id knows that the partition is part of it.
func (s *Server) abortKnown(ctx context.Context, m *kmsg.WriteTxnMarkersRequestMarker, place metadata.PartitionID) (ended bool, err error) {
	ids, err := s.store.TxnsOf(ctx, metadata.ProducerID(m.ProducerID))
	if err != nil || len(ids) == 0 {
		return false, err
	}
	err = s.changeTxn(ctx, string(ids[0]), s.store.EndTxn,
		func(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error) {
			ended = false
			if t.Producer != metadata.ProducerID(m.ProducerID) || t.State != metadata.TxnOngoing || !hasPartition(t, place) {
				return nil, nil
			}
			if ended = true; m.Committed {
				return nil, txn.ErrState
			}
			return txn.Abort(now, t, fresh)
		})
	return ended, err
}

func hasPartition(t *metadata.Txn, place metadata.PartitionID) bool {
	for _, p := range t.Open {
		if p == place {
			return true
		}
	}
	return false
}
