package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

const (
	// txnSweepInterval is how often transactions that timed out are looked for: Kafka's
	// transaction.abort.timed.out.transaction.cleanup.interval.ms. Every agent looks, one aborts what it finds.
	txnSweepInterval = 10 * time.Second
	// txnSweepLimit bounds one look.
	txnSweepLimit = 100
	// txnSweepLease is the lease for aborting, and how long others wait for an agent that died with it: longer than a sweep
	// may take. Who loses it does no harm, because an end checks the row that it was planned from.
	txnSweepLease    = "job/txn-sweep"
	txnSweepLeaseTTL = txnTimeout + 5*time.Second
)

// runTxns aborts transactions that have timed out, until ctx ends.
func (s *Server) runTxns(ctx context.Context) {
	for {
		// Not all agents at once.
		t := time.NewTimer(txnSweepInterval/2 + rand.N(txnSweepInterval))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		for s.sweepTxns(ctx) == txnSweepLimit && ctx.Err() == nil {
		}
	}
}

// sweepTxns aborts what has timed out and gives how many transactions that were; 0 after an error.
func (s *Server) sweepTxns(ctx context.Context) int {
	call, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	due, err := s.store.DueTxns(call, txnSweepLimit)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("transactions that timed out not looked for", "error", err)
		}
		return 0
	}
	if len(due) == 0 {
		s.store.Did(metadata.ChoreTimeouts)
		return 0
	}
	lease, ok, err := s.store.AcquireLease(call, txnSweepLease, s.sweeper, txnSweepLeaseTTL)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("no lease for aborting transactions that timed out", "error", err)
	}
	if err != nil || !ok {
		return 0
	}
	aborted := s.abortDue(call, due)
	if err := s.store.ReleaseLease(call, lease); err != nil && ctx.Err() == nil {
		s.log.Warn("lease for aborting transactions not given back: it expires", "error", err)
	}
	return aborted
}

// abortDue aborts what has timed out and gives how many transactions that were; 0 after an error.
func (s *Server) abortDue(ctx context.Context, due []metadata.TransactionalID) int {
	failed := false
	for _, id := range due {
		aborted := false
		err := s.changeTxn(ctx, string(id), s.store.EndTxn,
			func(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error) {
				change, err := txn.Expire(now, t, fresh)
				aborted = change != nil
				return change, err
			})
		switch {
		case err != nil:
			failed = true
			s.log.Warn("transaction that timed out not aborted", "transactional_id", string(id), "error", err)
		case aborted:
			s.log.Info("transaction timed out and was aborted", "transactional_id", string(id))
		}
	}
	if failed {
		return 0
	}
	s.store.Did(metadata.ChoreTimeouts)
	return len(due)
}
