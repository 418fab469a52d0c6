package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

// EndTxn, key 26, versions 0 to 5; from version 5 on every end moves the epoch (KIP-890).

func (s *Server) endTxn(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.EndTxnRequest)
	resp := kmsg.NewPtrEndTxnResponse()
	resp.SetVersion(r.version)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if !validTransactionalID(req.TransactionalID) {
		resp.ErrorCode = r.note(codeInvalidRequest)
		return reply{msg: resp}, nil
	}
	end := txn.End{
		Producer: txn.Identity{Producer: metadata.ProducerID(req.ProducerID), Epoch: metadata.ProducerEpoch(req.ProducerEpoch)},
		Commit:   req.Commit, Protocol: metadata.TxnOriginal,
	}
	if r.version >= endTxnBumps {
		end.Protocol = metadata.TxnKIP890
	}
	var next txn.Identity
	err := s.changeTxn(ctx, req.TransactionalID, s.store.EndTxn,
		func(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error) {
			with := end
			with.Fresh = fresh
			var change *metadata.TxnChange
			var err error
			change, next, err = with.Decide(now, t)
			return change, err
		})
	code, ok := s.txnCode(ctx, "EndTxn", err, fencedCode(r.version, txnFenced))
	if !ok {
		return reply{}, ctx.Err()
	}
	if resp.ErrorCode = r.note(code); code == codeNone {
		resp.ProducerID, resp.ProducerEpoch = int64(next.Producer), int16(next.Epoch)
	}
	return reply{msg: resp}, nil
}
