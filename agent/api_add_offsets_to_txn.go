package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

// AddOffsetsToTxn, key 25, versions 0 to 4: the transaction begins where it has not. The group's offsets have no partition
// that could be added.

func (s *Server) addOffsetsToTxn(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.AddOffsetsToTxnRequest)
	resp := kmsg.NewPtrAddOffsetsToTxnResponse()
	resp.SetVersion(r.version)
	switch {
	case !validTransactionalID(req.TransactionalID):
		resp.ErrorCode = r.note(codeInvalidRequest)
		return reply{msg: resp}, nil
	case !validGroupID(req.Group):
		resp.ErrorCode = r.note(codeInvalidGroupID)
		return reply{msg: resp}, nil
	}
	add := txn.Add{
		Producer: txn.Identity{Producer: metadata.ProducerID(req.ProducerID), Epoch: metadata.ProducerEpoch(req.ProducerEpoch)},
		Protocol: metadata.TxnOriginal,
	}
	err := s.changeTxn(ctx, req.TransactionalID, s.store.ChangeTxn,
		func(now metadata.Millis, t *metadata.Txn, _ metadata.ProducerID) (*metadata.TxnChange, error) {
			return add.Decide(now, t)
		})
	code, ok := s.txnCode(ctx, "AddOffsetsToTxn", err, fencedCode(r.version, txnFenced))
	if !ok {
		return reply{}, ctx.Err()
	}
	resp.ErrorCode = r.note(code)
	return reply{msg: resp}, nil
}
