package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// DescribeTransactions, key 65, version 0.

func (s *Server) describeTransactions(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeTransactionsRequest)
	resp := kmsg.NewPtrDescribeTransactionsResponse()
	resp.SetVersion(r.version)
	ids := make([]metadata.TransactionalID, len(req.TransactionalIDs))
	for i, id := range req.TransactionalIDs {
		ids[i] = metadata.TransactionalID(id)
	}
	call, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	_, txns, err := s.store.LoadTxns(call, ids...)
	var topics map[metadata.PartitionID]topicIndex
	if err == nil {
		topics, err = s.placesOf(call, txns)
	}
	code, ok := s.txnCode(ctx, "DescribeTransactions", err, codeProducerFenced)
	if !ok {
		return reply{}, ctx.Err()
	}
	for i, id := range req.TransactionalIDs {
		x := kmsg.NewDescribeTransactionsResponseTransactionState()
		x.TransactionalID, x.ErrorCode = id, code
		x.ProducerID, x.ProducerEpoch, x.StartTimestamp = -1, -1, -1
		switch {
		case code != codeNone:
		case txns[i].Version == 0:
			x.ErrorCode = codeTransactionalIDNotFound
		default:
			describeTxn(&x, &txns[i], topics)
		}
		r.note(x.ErrorCode)
		resp.TransactionStates = append(resp.TransactionStates, x)
	}
	return reply{msg: resp}, nil
}

func describeTxn(x *kmsg.DescribeTransactionsResponseTransactionState, t *metadata.Txn, topics map[metadata.PartitionID]topicIndex) {
	x.State, x.TimeoutMillis = t.State.String(), int32(t.Timeout.Milliseconds())
	x.ProducerID, x.ProducerEpoch = int64(t.Producer), int16(t.Epoch)
	if t.State == metadata.TxnOngoing {
		x.StartTimestamp = int64(t.Started)
	}
	byTopic := map[string][]int32{}
	for _, p := range t.Open {
		if at, ok := topics[p]; ok { // else it was deleted
			byTopic[at.topic] = append(byTopic[at.topic], at.index)
		}
	}
	for name, indexes := range byTopic {
		slices.Sort(indexes)
		topic := kmsg.NewDescribeTransactionsResponseTransactionStateTopic()
		topic.Topic, topic.Partitions = name, indexes
		x.Topics = append(x.Topics, topic)
	}
	slices.SortFunc(x.Topics, func(a, b kmsg.DescribeTransactionsResponseTransactionStateTopic) int {
		return strings.Compare(a.Topic, b.Topic)
	})
}

// placesOf names the partitions of transactions.
func (s *Server) placesOf(ctx context.Context, txns []metadata.Txn) (map[metadata.PartitionID]topicIndex, error) {
	wanted := map[metadata.PartitionID]topicIndex{}
	for i := range txns {
		for _, p := range txns[i].Open {
			wanted[p] = topicIndex{}
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	c, err := s.store.RefreshCatalogue(ctx)
	if err != nil {
		return nil, err
	}
	found := make(map[metadata.PartitionID]topicIndex, len(wanted))
	for _, t := range c.Topics() {
		for i, p := range t.Partitions {
			id := metadata.PartitionID{Block: p.Block, Slot: p.Slot}
			if _, ok := wanted[id]; ok {
				found[id] = topicIndex{topic: t.Name, index: int32(i)}
			}
		}
	}
	return found, nil
}
