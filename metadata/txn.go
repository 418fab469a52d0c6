package metadata

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// TransactionalID names a transactional producer across its restarts.
type TransactionalID string

// MaxTransactionalIDBytes bounds transactional ids: keys of an index in Postgres must stay below 2,700 bytes.
const MaxTransactionalIDBytes = 1024

// TxnState is where a transactional id stands. There is no "prepared": a transaction ends in one database transaction.
type TxnState int16

// States of transactional ids. The numbers are in the database.
const (
	TxnEmpty          TxnState = 0
	TxnOngoing        TxnState = 1
	TxnCompleteCommit TxnState = 2
	TxnCompleteAbort  TxnState = 3
)

// String is the state's name in Kafka's protocol.
func (s TxnState) String() string {
	switch s {
	case TxnEmpty:
		return "Empty"
	case TxnOngoing:
		return "Ongoing"
	case TxnCompleteCommit:
		return "CompleteCommit"
	case TxnCompleteAbort:
		return "CompleteAbort"
	}
	return fmt.Sprintf("TxnState(%d)", int16(s))
}

// TxnProtocol says by which protocol a transaction runs. The numbers are in the database.
type TxnProtocol int16

// Protocols of transactions.
const (
	TxnOriginal TxnProtocol = 1 // KIP-98: partitions are added by request, the epoch stays
	TxnKIP890   TxnProtocol = 2 // partitions join by being written to, the epoch moves with every end
)

// NoEpoch is the epoch where there is none.
const NoEpoch ProducerEpoch = -1

// TxnRow is a transactional id's row.
type TxnRow struct {
	ID      TransactionalID
	Version int64 // raised by every change, of its partitions too; 0: there is no such row
	// Producer and Epoch are the current ones: NoProducer and NoEpoch before the first.
	Producer ProducerID
	Epoch    ProducerEpoch
	// LastProducer and LastEpoch are those that the current ones follow, where a retry may still name them.
	LastProducer ProducerID
	LastEpoch    ProducerEpoch
	State        TxnState
	Protocol     TxnProtocol // of the ongoing or last transaction
	Timeout      time.Duration
	Started      Millis // of the ongoing transaction, else 0
	Updated      Millis
}

// Due is when the ongoing transaction is aborted, 0 where there is none.
func (r *TxnRow) Due() Millis {
	if r.State != TxnOngoing {
		return 0
	}
	return r.Started.Add(r.Timeout)
}

// Txn is a transactional id with what its ongoing transaction has touched.
type Txn struct {
	TxnRow
	Open []PartitionID // by block and slot
}

// TxnOutcome is how a change ends a transaction.
type TxnOutcome uint8

// Outcomes of a transaction.
const (
	TxnGoesOn  TxnOutcome = 0 // or there is none
	TxnAborts  TxnOutcome = 1
	TxnCommits TxnOutcome = 2
)

// TxnChange is what a rule wants of a transactional id.
type TxnChange struct {
	Row TxnRow        // as it is to be; ID and Version are filled in
	Add []PartitionID // that join the transaction
	End TxnOutcome
	// Producer and Epoch stand in the markers, Marker is their bytes: one control batch, the same for every partition.
	Producer ProducerID
	Epoch    ProducerEpoch
	Marker   []byte
	// Offsets are committed with the transaction. Their Check is asked under the group's lock.
	Offsets *OffsetCommit
}

// TxnRule decides on a change from a transactional id as it is; nil leaves it so. It must be pure: it may be called again.
type TxnRule func(now Millis, txn *Txn) (*TxnChange, error)

// TxnPart is a partition in a producer's transaction.
type TxnPart struct {
	Producer ProducerID
	PartitionID
}

// TxnLoad is which transactional ids a commit locks and loads: those of the producers in Parts, or the one named ID.
type TxnLoad struct {
	Parts []TxnPart // by producer, block, slot
	// Exclusive: not FOR SHARE, because some of Parts may have to join.
	Exclusive bool
	ID        TransactionalID // locked exclusively
}

// TxnEnd ends a producer's transaction: its partitions are none any more, its pending offsets committed or dropped.
type TxnEnd struct {
	Producer ProducerID
	Commit   bool
}

// TxnSave is what ChangeTxn of a driver writes.
type TxnSave struct {
	Row     TxnRow
	Add     []PartitionID
	End     *TxnEnd
	Offsets *OffsetCommit
}

// AbortedTxn is an aborted transaction in a partition.
type AbortedTxn struct {
	Partition PartitionID
	Marker    Offset // of its control batch
	First     Offset
	Producer  ProducerID
	// LSO is the last stable offset behind the marker: all transactions that began before it have ended. It never falls
	// from one marker to the next.
	LSO Offset
}

// AbortedQuery asks for the aborted transactions that may touch the offsets from From up to To.
type AbortedQuery struct {
	Partition PartitionID
	From, To  Offset
}

// TxnDriver loads and saves transactions' rows. It is part of Driver. Locks: transactions, then groups and members,
// topics, blocks, offsets.
type TxnDriver interface {
	// LoadTxns gives transactional ids in one statement's view, in the order asked for; one that is not there has
	// Version 0.
	LoadTxns(ctx context.Context, ids []TransactionalID) (Millis, []Txn, error)

	// TxnsOf gives the transactional ids of producers; those that have none are left out.
	TxnsOf(ctx context.Context, producers []ProducerID) ([]TransactionalID, error)

	// ChangeTxn runs one transaction: lock the row (a new one, of version 0, where there is none), load it, call fn, save
	// what it returns. A nil save, like an error, leaves everything as it was.
	ChangeTxn(ctx context.Context, id TransactionalID, fn func(now Millis, txn *Txn) (*TxnSave, error)) error

	// ListTxns gives up to limit rows by id, after the given one.
	ListTxns(ctx context.Context, after TransactionalID, limit int) (Millis, []TxnRow, error)

	// DueTxns gives up to limit transactional ids whose ongoing transaction has timed out, the longest due first.
	DueTxns(ctx context.Context, limit int) ([]TransactionalID, error)

	// ExpireTxns removes up to limit transactional ids without an ongoing transaction that did not change for so long.
	ExpireTxns(ctx context.Context, olderThan time.Duration, limit int) (int, error)

	// PendingOffsets gives, for each query, the partitions that have an offset in an ongoing transaction.
	PendingOffsets(ctx context.Context, queries []OffsetQuery) ([][]TopicPartition, error)

	// Aborted answers each query, by marker.
	Aborted(ctx context.Context, queries []AbortedQuery) ([][]AbortedTxn, error)

	// PruneAborted looks at up to partitions partitions that have aborted transactions, after the given place, and removes
	// up to rows entries of each whose marker is below the log start, or whose partition is deleted. next is the last place
	// looked at, zero when there are no more.
	PruneAborted(ctx context.Context, after PartitionID, partitions, rows int) (next PartitionID, removed int, err error)
}

// Errors of transactions.
var (
	// ErrTxnMoved: a transactional id changed all the time while it was to be ended; nothing was done.
	ErrTxnMoved = errors.New("transaction keeps changing")
	// errTxnMoved: it changed since the end was planned.
	errTxnMoved = errors.New("transaction changed since its end was planned")
	// errTxnExclusive: a batch joins a transaction whose row is locked FOR SHARE only.
	errTxnExclusive = errors.New("a partition joins a transaction that is not locked for it")
)

const (
	// maxTxnTries bounds how often the end of a transaction is planned anew because it changed meanwhile.
	maxTxnTries = 16
	// settlePause is between attempts to find out what became of an end of unknown outcome.
	settlePause = 50 * time.Millisecond
	// TxnIDExpiry is how long an unused transactional id is kept: Kafka's transactional.id.expiration.ms.
	TxnIDExpiry = 7 * 24 * time.Hour
	// abortedPruneInterval, abortedPartitions and abortedRows bound the removal of aborted transactions below the log start.
	abortedPruneInterval = time.Minute
	abortedPartitions    = 500
	abortedRows          = 1000
	txnExpiryLimit       = 1000
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChangeTxn applies a rule to a transactional id. A change that ends a transaction with partitions is one commit: markers
// with real offsets in all of them, pending offsets, aborted entries and the row. It was done when there is no error,
// perhaps done after ErrUnknownOutcome, else not.
func (s *Store) ChangeTxn(ctx context.Context, id TransactionalID, rule TxnRule) error {
	var err error
	for range maxTxnTries {
		var plan *txnPlan
		err = s.driver.ChangeTxn(ctx, id, func(now Millis, txn *Txn) (*TxnSave, error) {
			s.clock.saw(now)
			var save *TxnSave
			var err error
			plan, save, err = planTxn(now, txn, rule)
			return save, err
		})
		if err == nil && plan != nil {
			err = s.endTxn(ctx, plan)
		}
		if !errors.Is(err, errTxnMoved) {
			break
		}
	}
	return txnError(id, err)
}

// EndTxn is ChangeTxn for a rule that most likely ends a transaction: it reads before it locks, which saves round trips.
func (s *Store) EndTxn(ctx context.Context, id TransactionalID, rule TxnRule) error {
	for range maxTxnTries {
		now, txns, err := s.driver.LoadTxns(ctx, []TransactionalID{id})
		if err != nil {
			return txnError(id, err)
		}
		s.clock.saw(now)
		plan, save, err := planTxn(now, &txns[0], rule)
		switch {
		case err != nil:
			return txnError(id, err)
		case plan != nil:
			if err = s.endTxn(ctx, plan); !errors.Is(err, errTxnMoved) {
				return txnError(id, err)
			}
		case save != nil:
			return s.ChangeTxn(ctx, id, rule)
		default:
			return nil
		}
	}
	return txnError(id, errTxnMoved)
}

func txnError(id TransactionalID, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTxnMoved):
		err = fmt.Errorf("%w: %w", ErrUnavailable, ErrTxnMoved)
	}
	return fmt.Errorf("transactional id %q: %w", id, err)
}

// txnPlan is an end of a transaction that has partitions.
type txnPlan struct {
	id      TransactionalID
	version int64 // of the row that it was planned from
	now     Millis
	open    []PartitionID
	change  *TxnChange
}

// planTxn asks the rule: what it wants is either saved with the row or, when partitions get markers, planned.
func planTxn(now Millis, txn *Txn, rule TxnRule) (*txnPlan, *TxnSave, error) {
	change, err := rule(now, txn)
	if err != nil || change == nil {
		return nil, nil, err
	}
	change.Row.ID = txn.ID
	change.Row.Version = NextVersion(txn.Version, now)
	if change.End != TxnGoesOn && len(txn.Open) > 0 {
		return &txnPlan{id: txn.ID, version: txn.Version, now: now, open: txn.Open, change: change}, nil, nil
	}
	save := &TxnSave{Row: change.Row, Add: change.Add, Offsets: change.Offsets}
	if change.End != TxnGoesOn {
		save.End = change.end()
	}
	return nil, save, nil
}

func (c *TxnChange) end() *TxnEnd { return &TxnEnd{Producer: c.Producer, Commit: c.End == TxnCommits} }

// endTxn commits the end of a transaction, and finds out what became of it when an answer is lost: the flush has a receipt.
func (s *Store) endTxn(ctx context.Context, plan *txnPlan) error {
	f, err := plan.flush()
	if err != nil {
		return err
	}
	unknown := false
	for {
		err := s.commitEnd(ctx, f, plan)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrUnknownOutcome):
			unknown = true
		case !unknown || !errors.Is(err, ErrUnavailable):
			// errTxnMoved among them: without a receipt and with another version it was not done.
			return err
		}
		if pause(ctx, settlePause) != nil {
			return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
	}
}

// flush makes the flush of markers: every extent is the same bytes.
func (p *txnPlan) flush() (*Flush, error) {
	id, err := NewFlushID()
	if err != nil {
		return nil, err
	}
	return markerFlush(id, p.now, p.open, p.change.Producer, p.change.Epoch, p.change.End == TxnCommits, p.change.Marker), nil
}

func markerFlush(
	id FlushID, now Millis, parts []PartitionID, producer ProducerID, epoch ProducerEpoch, commits bool, marker []byte,
) *Flush {
	size := int32(len(marker))
	flags := FlagTransactional | FlagControl
	if commits {
		flags |= FlagCommit
	}
	f := &Flush{ID: id, Seen: now, Inline: [][]byte{marker}, Extents: make([]Extent, len(parts))}
	sum := crc32.Checksum(marker, castagnoli)
	for i, p := range parts {
		f.Extents[i] = Extent{
			Block: p.Block, Slot: p.Slot, Length: size, RawLength: size, CRC: sum,
			Batches: []Batch{{
				Length: size, Records: 1, MaxTimestamp: now, Producer: producer, Epoch: epoch, First: -1, Last: -1, Flags: flags,
			}},
		}
	}
	return f
}

// commitEnd makes one attempt.
func (s *Store) commitEnd(ctx context.Context, f *Flush, plan *txnPlan) error {
	c := &commit{store: s, flushes: []*Flush{f}, markers: true, plan: plan}
	results, err := c.run(ctx)
	if err != nil {
		return err
	}
	return results[0].Err
}

// WriteMarkers ends what a producer has open in partitions without its coordinator: for transactions that hang because
// their transactional id is gone. Each partition gets its own code: CodeInvalidTxnState where the producer has nothing open.
func (s *Store) WriteMarkers(
	ctx context.Context, producer ProducerID, epoch ProducerEpoch, parts []PartitionID, commits bool, marker []byte,
) ([]BatchResult, error) {
	id, err := NewFlushID()
	if err != nil {
		return nil, err
	}
	now, err := s.Now(ctx)
	if err != nil {
		return nil, err
	}
	c := &commit{
		store: s, markers: true, onlyOpen: true,
		flushes: []*Flush{markerFlush(id, now, parts, producer, epoch, commits, marker)},
	}
	results, err := c.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("write markers of producer %d: %w", producer, err)
	}
	return results[0].Batches, results[0].Err
}

// LoadTxns gives transactional ids as they are now; one that is not there has Version 0.
func (s *Store) LoadTxns(ctx context.Context, ids ...TransactionalID) (Millis, []Txn, error) {
	now, txns, err := s.driver.LoadTxns(ctx, ids)
	if err != nil {
		return 0, nil, fmt.Errorf("load %d transactional ids: %w", len(ids), err)
	}
	s.clock.saw(now)
	return now, txns, nil
}

// TxnsOf gives the transactional ids of producers.
func (s *Store) TxnsOf(ctx context.Context, producers ...ProducerID) ([]TransactionalID, error) {
	return s.driver.TxnsOf(ctx, producers)
}

// ListTxns gives a page of transactional ids.
func (s *Store) ListTxns(ctx context.Context, after TransactionalID, limit int) (Millis, []TxnRow, error) {
	return s.driver.ListTxns(ctx, after, limit)
}

// DueTxns gives transactional ids whose transaction has timed out.
func (s *Store) DueTxns(ctx context.Context, limit int) ([]TransactionalID, error) {
	return s.driver.DueTxns(ctx, limit)
}

// AcquireLease takes a lease that nobody holds; ok is false when somebody does.
func (s *Store) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (lease Lease, ok bool, err error) {
	return s.driver.AcquireLease(ctx, name, holder, ttl)
}

// ReleaseLease ends a lease early.
func (s *Store) ReleaseLease(ctx context.Context, lease Lease) error {
	return s.driver.ReleaseLease(ctx, lease)
}

// PendingOffsets gives the partitions that have an offset in an ongoing transaction. Who asks for stable offsets asks this
// before LoadOffsets: then an offset that was pending is either told or already there.
func (s *Store) PendingOffsets(ctx context.Context, queries []OffsetQuery) ([][]TopicPartition, error) {
	return s.driver.PendingOffsets(ctx, queries)
}

// Aborted gives the aborted transactions that may touch ranges of offsets below the last stable offset of a view. Those
// are the same in every later state of the database: a transaction that ends after the view begins at or above its last
// stable offset.
func (s *Store) Aborted(ctx context.Context, queries []AbortedQuery) ([][]AbortedTxn, error) {
	found, err := s.driver.Aborted(ctx, queries)
	if err != nil {
		return nil, fmt.Errorf("look up aborted transactions: %w", err)
	}
	return found, nil
}

// runTxnHousekeeping removes transactional ids that nobody uses and aborted transactions below the log starts.
func (s *Store) runTxnHousekeeping(ctx context.Context) error {
	var after PartitionID
	for {
		if err := pause(ctx, abortedPruneInterval); err != nil {
			return err
		}
		next, _, err := s.driver.PruneAborted(ctx, after, abortedPartitions, abortedRows)
		if err == nil {
			after = next
			s.Did(ChoreAborted)
			_, err = s.driver.ExpireTxns(ctx, TxnIDExpiry, txnExpiryLimit)
		}
		if err == nil {
			s.Did(ChoreTxnIDs)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("old transactions not removed", "error", err)
		}
	}
}
