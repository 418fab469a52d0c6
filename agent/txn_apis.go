package agent

import (
	"context"
	"errors"
	"time"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// Transactions. Any agent serves any transactional id: its coordinator is the database.

const (
	// maxTransactionTimeout is Kafka's transaction.max.timeout.ms.
	maxTransactionTimeout = 15 * time.Minute
	// txnTimeout bounds one change of a transactional id.
	txnTimeout = 20 * time.Second
	// coordinatorEpoch stands in markers. There are no coordinators that could be older.
	coordinatorEpoch int32 = 0
	// transactionVersion is KIP-890's.
	transactionVersion int16 = 2

	// First versions that know PRODUCER_FENCED.
	initFenced int16 = 4
	txnFenced  int16 = 2
	// endTxnBumps is the first version of EndTxn with KIP-890's rules, txnOffsetsJoin that of TxnOffsetCommit, produceJoins
	// that of Produce. produceAbortable is the first that knows TRANSACTION_ABORTABLE.
	endTxnBumps      int16 = 5
	txnOffsetsJoin   int16 = 5
	produceJoins     int16 = 12
	produceAbortable int16 = 11
)

func (s *Server) txnAPIs() []api {
	return []api{
		{key: 24, name: "AddPartitionsToTxn", min: 0, max: 3, handle: s.addPartitionsToTxn, note: "Versions 4 and 5 are between " +
			"brokers."},
		{key: 25, name: "AddOffsetsToTxn", min: 0, max: 4, handle: s.addOffsetsToTxn},
		{key: 26, name: "EndTxn", min: 0, max: 5, handle: s.endTxn, note: "One database transaction: there is no state between " +
			"ongoing and complete. With versions 0 to 4 (the original protocol) a delayed request can end a later transaction of " +
			"the same epoch, as everywhere; version 5 (KIP-890) cures it."},
		{key: 27, name: "WriteTxnMarkers", min: 1, max: 2, handle: s.writeTxnMarkers, note: "For `kafka-transactions abort`. Of a " +
			"transaction that its transactional id still knows it aborts all, not one partition; COMMIT of one gets INVALID_TXN_STATE."},
		{key: 28, name: "TxnOffsetCommit", min: 0, max: 5, handle: s.txnOffsetCommit, note: "With the original protocol the group " +
			"need not have been added by AddOffsetsToTxn, only the transaction have begun."},
		{key: 61, name: "DescribeProducers", min: 0, max: 0, handle: s.describeProducers, note: "The coordinator epoch is 0; the last " +
			"timestamp is the commit's."},
		{key: 65, name: "DescribeTransactions", min: 0, max: 0, handle: s.describeTransactions, note: "Committed offsets are not " +
			"among the partitions: there is no `__consumer_offsets`."},
		{key: 66, name: "ListTransactions", min: 0, max: 2, handle: s.listTransactions, note: "All transactional ids of the cluster, " +
			"from every agent."},
	}
}

// txnCode gives Kafka's code for an error of a change; ok is false when the connection is over. fenced is the code for a
// producer that has a newer instance.
func (s *Server) txnCode(ctx context.Context, what string, err error, fenced int16) (code int16, ok bool) {
	var refused *groupRefusal
	switch {
	case err == nil:
		return codeNone, true
	case errors.Is(err, txn.ErrFenced):
		return fenced, true
	case errors.Is(err, txn.ErrMapping):
		return codeInvalidProducerIDMapping, true
	case errors.Is(err, txn.ErrState):
		return codeInvalidTxnState, true
	case errors.Is(err, txn.ErrConcurrent):
		return codeConcurrentTransactions, true
	case errors.As(err, &refused):
		return refused.code, true
	case ctx.Err() != nil:
		return 0, false
	case errors.Is(err, metadata.ErrCorrupt):
		s.log.Error(what+" failed", "error", err)
		return codeUnknownServerError, true
	}
	s.log.Warn(what+" failed", "error", err)
	// The one error that every client takes for "ask again", without looking for another coordinator first.
	return codeCoordinatorLoadInProgress, true
}

// fencedCode is PRODUCER_FENCED, for versions that know it.
func fencedCode(version, known int16) int16 {
	if version < known {
		return codeInvalidProducerEpoch
	}
	return codeProducerFenced
}

func validTransactionalID(id string) bool {
	return id != "" && len(id) <= metadata.MaxTransactionalIDBytes
}

// freshRule is a rule that may need a fresh producer id: then it gives txn.ErrNeedProducerID, and is asked again with one.
// An error beside a change is told when the change is done.
type freshRule func(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error)

// changeTxn runs a rule by one of the store's ways, ChangeTxn or EndTxn.
func (s *Server) changeTxn(
	ctx context.Context, id string, run func(context.Context, metadata.TransactionalID, metadata.TxnRule) error, rule freshRule,
) error {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	fresh := metadata.NoProducer
	for {
		var verdict error
		err := run(ctx, metadata.TransactionalID(id), func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
			var change *metadata.TxnChange
			if change, verdict = rule(now, t, fresh); change == nil {
				return nil, verdict
			}
			if change.End != metadata.TxnGoesOn {
				change.Marker = marker(now, change)
			}
			return change, nil
		})
		switch {
		case err == nil:
			return verdict
		case !errors.Is(err, txn.ErrNeedProducerID) || fresh != metadata.NoProducer:
			return err
		}
		if fresh, err = s.ids.next(ctx, s.catalogueVersion()); err != nil {
			return err
		}
	}
}

// marker makes the control batch that ends a transaction.
func marker(now metadata.Millis, c *metadata.TxnChange) []byte {
	kind := record.ControlAbort
	if c.End == metadata.TxnCommits {
		kind = record.ControlCommit
	}
	return record.ControlBatch(kind, int64(c.Producer), int16(c.Epoch), coordinatorEpoch, int64(now))
}

// catalogueVersion is that of the newest catalogue seen.
func (s *Server) catalogueVersion() metadata.CatalogueVersion {
	if c := s.catalogue.Load(); c != nil {
		return c.Version
	}
	return 0
}
