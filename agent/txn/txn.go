// Package txn is the rules of transactional producers, pure: from a transactional id as it is, a request and the
// database's time to the change and the reply. The store runs them under the row's lock; they may be asked again, with
// another row. It knows neither Kafka's messages nor the database.
//
// KIP-98 (original protocol), KIP-360 (epoch bumps by the producer), KIP-890 (an epoch for every transaction).
package txn

import (
	"errors"
	"math"
	"time"

	"github.com/skeinio/skein/metadata"
)

// Errors of the rules. They are the reply; nothing is changed but where it says so.
var (
	// ErrFenced: another instance of the producer has a newer epoch (Kafka's 90, or 47 in old versions).
	ErrFenced = errors.New("producer is fenced by a newer epoch")
	// ErrMapping: the transactional id has another producer id, or is unknown (Kafka's 49).
	ErrMapping = errors.New("transactional id does not have this producer id")
	// ErrState: the request does not fit the transaction's state (Kafka's 48).
	ErrState = errors.New("request does not fit the state of the transaction")
	// ErrConcurrent: the producer's former transaction was just aborted; ask again (Kafka's 51).
	ErrConcurrent = errors.New("former transaction was being ended")
	// ErrNeedProducerID: the rule needs a fresh producer id; ask again with one.
	ErrNeedProducerID = errors.New("a fresh producer id is needed")
)

// lastEpoch is the last epoch that is given to a producer; the one above it is only for markers that fence.
const lastEpoch metadata.ProducerEpoch = math.MaxInt16 - 1

// Identity is a producer id and epoch.
type Identity struct {
	Producer metadata.ProducerID
	Epoch    metadata.ProducerEpoch
}

// NoIdentity is what a request has that names none.
var NoIdentity = Identity{Producer: metadata.NoProducer, Epoch: metadata.NoEpoch}

func current(t *metadata.TxnRow) Identity { return Identity{t.Producer, t.Epoch} }

func last(t *metadata.TxnRow) Identity { return Identity{t.LastProducer, t.LastEpoch} }

// with gives a row with a new identity that follows old.
func with(t metadata.TxnRow, id, old Identity) metadata.TxnRow {
	t.Producer, t.Epoch, t.LastProducer, t.LastEpoch = id.Producer, id.Epoch, old.Producer, old.Epoch
	return t
}

// Init is InitProducerId with a transactional id.
type Init struct {
	Timeout  time.Duration
	Supplied Identity // KIP-360; NoIdentity where the producer starts
	// Fresh is a producer id that nobody had, NoProducer as long as none is needed.
	Fresh metadata.ProducerID
}

// Decide gives the producer its identity. ErrConcurrent comes with a change: the ongoing transaction is aborted, and the
// retry gets an epoch.
func (in Init) Decide(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, Identity, error) {
	supplied := in.Supplied != NoIdentity
	switch {
	case t.Version == 0:
		if in.Fresh == metadata.NoProducer {
			return nil, NoIdentity, ErrNeedProducerID
		}
		return in.give(now, t, Identity{in.Fresh, 0}, NoIdentity)
	case t.State == metadata.TxnOngoing:
		if supplied && in.Supplied != current(&t.TxnRow) {
			return nil, NoIdentity, ErrFenced
		}
		return in.fence(now, t)
	case supplied && in.Supplied == last(&t.TxnRow):
		return nil, current(&t.TxnRow), nil // a retry whose answer was lost
	case supplied && in.Supplied != current(&t.TxnRow):
		return nil, NoIdentity, ErrFenced
	}
	next, err := follow(current(&t.TxnRow), in.Fresh)
	if err != nil {
		return nil, NoIdentity, err
	}
	old := NoIdentity
	if supplied {
		old = in.Supplied
	}
	return in.give(now, t, next, old)
}

// follow gives the identity after id: the next epoch, or a fresh producer id when there is none.
func follow(id Identity, fresh metadata.ProducerID) (Identity, error) {
	if id.Epoch < lastEpoch {
		return Identity{id.Producer, id.Epoch + 1}, nil
	}
	if fresh == metadata.NoProducer {
		return NoIdentity, ErrNeedProducerID
	}
	return Identity{fresh, 0}, nil
}

func (in Init) give(now metadata.Millis, t *metadata.Txn, id, old Identity) (*metadata.TxnChange, Identity, error) {
	row := with(t.TxnRow, id, old)
	row.State, row.Timeout, row.Started, row.Updated = metadata.TxnEmpty, in.Timeout, 0, now
	if row.Protocol == 0 {
		row.Protocol = metadata.TxnOriginal
	}
	return &metadata.TxnChange{Row: row}, id, nil
}

// fence aborts the ongoing transaction under an epoch that nobody has.
func (in Init) fence(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, Identity, error) {
	change, err := Abort(now, t, in.Fresh)
	if err != nil {
		return nil, NoIdentity, err
	}
	if in.Supplied != NoIdentity {
		// The same producer asks again, and nobody else was given the new epoch.
		change.Row.LastProducer, change.Row.LastEpoch = in.Supplied.Producer, in.Supplied.Epoch
	}
	return change, NoIdentity, ErrConcurrent
}

// Abort aborts an ongoing transaction and fences its producer.
func Abort(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error) {
	next, err := follow(current(&t.TxnRow), fresh)
	if err != nil {
		return nil, err
	}
	row := with(t.TxnRow, next, NoIdentity)
	row.State, row.Started, row.Updated = metadata.TxnCompleteAbort, 0, now
	return &metadata.TxnChange{Row: row, End: metadata.TxnAborts, Producer: t.Producer, Epoch: t.Epoch + 1}, nil
}

// Expire aborts a transaction that has timed out; nil where it has not.
func Expire(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error) {
	if t.State != metadata.TxnOngoing || t.Due() > now {
		return nil, nil
	}
	return Abort(now, t, fresh)
}

// known checks that a request comes from the transactional id's current producer.
func known(t *metadata.TxnRow, id Identity) error {
	switch {
	case t.Version == 0, t.Producer != id.Producer:
		return ErrMapping
	case t.Epoch != id.Epoch:
		return ErrFenced
	}
	return nil
}

// Add is AddPartitionsToTxn, AddOffsetsToTxn (with no partitions) and TxnOffsetCommit.
type Add struct {
	Producer   Identity
	Partitions []metadata.PartitionID
	// Offsets are to be committed with the transaction. With the original protocol it must have begun.
	Offsets  *metadata.OffsetCommit
	Protocol metadata.TxnProtocol
}

// Decide makes partitions or offsets part of the transaction, which begins with the first.
func (a Add) Decide(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
	if err := known(&t.TxnRow, a.Producer); err != nil {
		return nil, err
	}
	row := t.TxnRow
	if row.State != metadata.TxnOngoing {
		if a.Offsets != nil && a.Protocol == metadata.TxnOriginal {
			return nil, ErrState
		}
		row.State, row.Started = metadata.TxnOngoing, now
	} else if a.Offsets == nil && contains(t.Open, a.Partitions) {
		return nil, nil
	}
	row.Protocol, row.Updated = a.Protocol, now
	return &metadata.TxnChange{Row: row, Add: a.Partitions, Offsets: a.Offsets}, nil
}

// contains says whether all of some are in open.
func contains(open, some []metadata.PartitionID) bool {
	if len(some) > len(open) {
		return false
	}
	has := make(map[metadata.PartitionID]struct{}, len(open))
	for _, p := range open {
		has[p] = struct{}{}
	}
	for _, p := range some {
		if _, ok := has[p]; !ok {
			return false
		}
	}
	return true
}

// End is EndTxn.
type End struct {
	Producer Identity
	Commit   bool
	Protocol metadata.TxnProtocol // KIP-890 from version 5 on
	Fresh    metadata.ProducerID  // as in Init
}

// Decide ends the transaction. The identity is what the producer goes on with (KIP-890).
func (e End) Decide(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, Identity, error) {
	if e.Protocol == metadata.TxnKIP890 {
		return e.bump(now, t)
	}
	if err := known(&t.TxnRow, e.Producer); err != nil {
		return nil, NoIdentity, err
	}
	switch {
	case t.State == metadata.TxnOngoing:
		row := t.TxnRow
		e.complete(now, &row)
		return e.change(row, e.Producer), e.Producer, nil
	case t.State == e.completed():
		return nil, e.Producer, nil // a retry, as far as that protocol can tell
	}
	return nil, NoIdentity, ErrState
}

func (e End) completed() metadata.TxnState {
	if e.Commit {
		return metadata.TxnCompleteCommit
	}
	return metadata.TxnCompleteAbort
}

func (e End) complete(now metadata.Millis, row *metadata.TxnRow) {
	row.State, row.Started, row.Updated = e.completed(), 0, now
}

func (e End) change(row metadata.TxnRow, marker Identity) *metadata.TxnChange {
	c := &metadata.TxnChange{Row: row, End: metadata.TxnAborts, Producer: marker.Producer, Epoch: marker.Epoch}
	if e.Commit {
		c.End = metadata.TxnCommits
	}
	return c
}

// bump is the end with KIP-890: every end moves the epoch, so that nothing late can meet another transaction.
func (e End) bump(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, Identity, error) {
	ended := t.State == metadata.TxnCompleteCommit || t.State == metadata.TxnCompleteAbort
	switch {
	case t.Version == 0:
		return nil, NoIdentity, ErrMapping
	case ended && e.Producer != NoIdentity && e.Producer == before(&t.TxnRow):
		if t.State != e.completed() {
			return nil, NoIdentity, ErrState // ended the other way, by its timeout
		}
		return nil, current(&t.TxnRow), nil // a retry whose answer was lost
	}
	if err := known(&t.TxnRow, e.Producer); err != nil {
		return nil, NoIdentity, err
	}
	if e.Commit && t.State != metadata.TxnOngoing {
		return nil, NoIdentity, ErrState
	}
	next, err := follow(e.Producer, e.Fresh)
	if err != nil {
		return nil, NoIdentity, err
	}
	row := with(t.TxnRow, next, e.Producer)
	row.Protocol = metadata.TxnKIP890
	e.complete(now, &row)
	return e.change(row, Identity{e.Producer.Producer, e.Producer.Epoch + 1}), next, nil
}

// before gives the identity whose transaction the state is about.
func before(t *metadata.TxnRow) Identity {
	if t.Epoch > 0 {
		return Identity{t.Producer, t.Epoch - 1}
	}
	return last(t)
}
