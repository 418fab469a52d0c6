package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

// TxnOffsetCommit, key 28, versions 0 to 5: offsets that are committed when the transaction is. From version 3 on the
// member is checked (KIP-447), from version 5 on they begin the transaction where it has not begun (KIP-890).

func (s *Server) txnOffsetCommit(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.TxnOffsetCommitRequest)
	resp := kmsg.NewPtrTxnOffsetCommitResponse()
	resp.SetVersion(r.version)
	var taken []*kmsg.TxnOffsetCommitResponseTopicPartition
	commit := metadata.OffsetCommit{
		Group: metadata.GroupID(req.Group), Member: metadata.MemberID(req.MemberID), Instance: deref(req.InstanceID),
	}
	code := codeNone
	switch {
	case !validTransactionalID(req.TransactionalID):
		code = codeInvalidRequest
	case !validGroupID(req.Group):
		code = codeInvalidGroupID
	}
	c, err := s.catalogueWith(ctx, func(c *metadata.Catalogue) bool {
		for i := range req.Topics {
			if c.ByName(req.Topics[i].Topic) == nil {
				return false
			}
		}
		return true
	})
	if code == codeNone && err != nil {
		var ok bool
		if code, ok = s.txnCode(ctx, "TxnOffsetCommit", err, codeInvalidProducerEpoch); !ok {
			return reply{}, ctx.Err()
		}
	}
	limit := s.groups.settings().MaxOffsetMetadata
	resp.Topics = make([]kmsg.TxnOffsetCommitResponseTopic, len(req.Topics))
	for i := range req.Topics {
		t, x := &req.Topics[i], &resp.Topics[i]
		x.Topic = t.Topic
		x.Partitions = make([]kmsg.TxnOffsetCommitResponseTopicPartition, len(t.Partitions))
		for j := range t.Partitions {
			p, y := &t.Partitions[j], &x.Partitions[j]
			y.Partition, y.ErrorCode = p.Partition, code
			if code != codeNone {
				continue
			}
			topic := c.ByName(t.Topic)
			switch {
			case topic == nil || p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
				y.ErrorCode = codeUnknownTopicOrPartition
			case len(deref(p.Metadata)) > limit:
				y.ErrorCode = codeOffsetMetadataTooLarge
			default:
				commit.Offsets = append(commit.Offsets, metadata.GroupOffset{
					TopicPartition: metadata.TopicPartition{Topic: topic.ID, Partition: p.Partition},
					Offset:         metadata.Offset(p.Offset), LeaderEpoch: p.LeaderEpoch, Metadata: []byte(deref(p.Metadata)),
				})
				taken = append(taken, y)
			}
		}
	}
	if len(taken) > 0 {
		code, ok := s.addTxnOffsets(ctx, r.version, req, commit)
		if !ok {
			return reply{}, ctx.Err()
		}
		for _, y := range taken {
			y.ErrorCode = code
		}
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			r.note(resp.Topics[i].Partitions[j].ErrorCode)
		}
	}
	return reply{msg: resp}, nil
}

// addTxnOffsets makes offsets part of the transaction, and gives the code of all their partitions.
func (s *Server) addTxnOffsets(ctx context.Context, version int16, req *kmsg.TxnOffsetCommitRequest, commit metadata.OffsetCommit) (
	code int16, ok bool,
) {
	who := group.Committer{
		Member: commit.Member, Instance: commit.Instance, Generation: req.Generation, Transactional: true,
	}
	commit.Check = func(_ metadata.Millis, row *metadata.GroupRow, members []metadata.MemberRow) error {
		code, err := group.CheckCommit(row, members, who)
		if err != nil {
			return err
		}
		// The codes that clients of transactions know.
		switch code {
		case group.GroupIDNotFound, group.StaleMemberEpoch:
			code = group.IllegalGeneration
		}
		return refuse(code)
	}
	add := txn.Add{
		Producer: txn.Identity{Producer: metadata.ProducerID(req.ProducerID), Epoch: metadata.ProducerEpoch(req.ProducerEpoch)},
		Offsets:  &commit, Protocol: metadata.TxnOriginal,
	}
	if version >= txnOffsetsJoin {
		add.Protocol = metadata.TxnKIP890
	}
	err := s.changeTxn(ctx, req.TransactionalID, s.store.ChangeTxn,
		func(now metadata.Millis, t *metadata.Txn, _ metadata.ProducerID) (*metadata.TxnChange, error) {
			return add.Decide(now, t)
		})
	return s.txnCode(ctx, "TxnOffsetCommit", err, codeInvalidProducerEpoch)
}
