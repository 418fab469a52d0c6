package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

// AddPartitionsToTxn, key 24, versions 0 to 3: all partitions or none.

func (s *Server) addPartitionsToTxn(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.AddPartitionsToTxnRequest)
	names := make([]string, len(req.Topics))
	for i := range req.Topics {
		names[i] = req.Topics[i].Topic
	}
	parts, missing, code, err := s.txnPartitions(ctx, req)
	if err != nil {
		return reply{}, err
	}
	if code == codeNone && len(missing) == 0 {
		add := txn.Add{
			Producer:   txn.Identity{Producer: metadata.ProducerID(req.ProducerID), Epoch: metadata.ProducerEpoch(req.ProducerEpoch)},
			Partitions: parts, Protocol: metadata.TxnOriginal,
		}
		err := s.changeTxn(ctx, req.TransactionalID, s.store.ChangeTxn,
			func(now metadata.Millis, t *metadata.Txn, _ metadata.ProducerID) (*metadata.TxnChange, error) {
				return add.Decide(now, t)
			})
		var ok bool
		if code, ok = s.txnCode(ctx, "AddPartitionsToTxn", err, fencedCode(r.version, txnFenced)); !ok {
			return reply{}, ctx.Err()
		}
	}
	resp := kmsg.NewPtrAddPartitionsToTxnResponse()
	resp.SetVersion(r.version)
	for i := range req.Topics {
		t := kmsg.NewAddPartitionsToTxnResponseTopic()
		t.Topic = names[i]
		for _, index := range req.Topics[i].Partitions {
			p := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
			p.Partition = index
			switch {
			case code != codeNone:
				p.ErrorCode = code
			case missing[topicIndex{names[i], index}]:
				p.ErrorCode = codeUnknownTopicOrPartition
			case len(missing) > 0:
				p.ErrorCode = codeOperationNotAttempted
			}
			r.note(p.ErrorCode)
			t.Partitions = append(t.Partitions, p)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return reply{msg: resp}, nil
}

type topicIndex struct {
	topic string
	index int32
}

// txnPartitions finds the request's partitions, and which of them are not there.
func (s *Server) txnPartitions(ctx context.Context, req *kmsg.AddPartitionsToTxnRequest) (
	parts []metadata.PartitionID, missing map[topicIndex]bool, code int16, err error,
) {
	if !validTransactionalID(req.TransactionalID) {
		return nil, nil, codeInvalidRequest, nil
	}
	c, err := s.catalogueWith(ctx, func(c *metadata.Catalogue) bool {
		for i := range req.Topics {
			if c.ByName(req.Topics[i].Topic) == nil {
				return false
			}
		}
		return true
	})
	if err != nil {
		code, ok := s.txnCode(ctx, "AddPartitionsToTxn", err, codeProducerFenced)
		if !ok {
			return nil, nil, 0, ctx.Err()
		}
		return nil, nil, code, nil
	}
	missing = map[topicIndex]bool{}
	for i := range req.Topics {
		t := c.ByName(req.Topics[i].Topic)
		for _, index := range req.Topics[i].Partitions {
			if t == nil || index < 0 || int(index) >= len(t.Partitions) {
				missing[topicIndex{req.Topics[i].Topic, index}] = true
				continue
			}
			p := t.Partitions[index]
			parts = append(parts, metadata.PartitionID{Block: p.Block, Slot: p.Slot})
		}
	}
	return parts, missing, codeNone, nil
}
