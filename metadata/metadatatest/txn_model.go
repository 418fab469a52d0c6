package metadatatest

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/skeinio/skein/metadata"
)

// txnBook is what became of an actor's transactions.
type txnBook struct {
	txns []txnRecord
}

type txnRecord struct {
	producer metadata.ProducerID
	epoch    metadata.ProducerEpoch
	wrote    map[metadata.PartitionID]int32 // records
	commit   bool
}

// transact runs one transaction to its end, through stores that fail.
func (a *actor) transact(stores []*metadata.Store, random *rand.Rand, p []metadata.Partition, book *txnBook) error {
	record := txnRecord{
		producer: a.producer, epoch: a.epoch, wrote: map[metadata.PartitionID]int32{}, commit: random.IntN(3) > 0,
	}
	for range 1 + random.IntN(3) {
		var pieces []piece
		for _, i := range random.Perm(len(p))[:1+random.IntN(len(p))] {
			records := 1 + random.Int32N(3)
			pieces = append(pieces, of(p[i], a.batch(p[i], records, true)))
			record.wrote[place(p[i])] += records
			a.seq[place(p[i])] += metadata.Sequence(records)
		}
		if err := a.deliver(stores, random, pieces); err != nil {
			return err
		}
	}
	for range 100 {
		err := stores[random.IntN(len(stores))].EndTxn(a.e.Context(), a.id, a.rule(record.commit))
		switch {
		case err == nil:
			book.txns = append(book.txns, record)
			a.next()
			return nil
		case !errors.Is(err, metadata.ErrUnavailable):
			return err
		}
	}
	return errors.New("never ended")
}

// deliver commits one flush until it is known what became of it.
func (a *actor) deliver(stores []*metadata.Store, random *rand.Rand, pieces []piece) error {
	f := a.e.flush(stores[0], pieces...)
	for range 100 {
		results, err := stores[random.IntN(len(stores))].Commit(a.e.Context(), []*metadata.Flush{copyOf(f)})
		switch {
		case errors.Is(err, metadata.ErrUnavailable), errors.Is(err, metadata.ErrUnknownOutcome):
			continue
		case err != nil:
			return err
		}
		for i, r := range results[0].Batches {
			if r.Code != metadata.CodeAccepted {
				return fmt.Errorf("batch %d: code %d", i, r.Code)
			}
		}
		return nil
	}
	return errors.New("never delivered")
}

type txnKey struct {
	producer metadata.ProducerID
	epoch    metadata.ProducerEpoch
}

// checkTxns reads all partitions as a read_committed reader does, with the aborted transactions that the Store gives for
// each extent, and compares what it sees with what was committed.
func (e *env) checkTxns(s *metadata.Store, p []metadata.Partition, books []txnBook) {
	e.Helper()
	want := map[metadata.PartitionID]map[txnKey]int32{}
	for _, b := range books {
		for _, t := range b.txns {
			for at, n := range t.wrote {
				if want[at] == nil {
					want[at] = map[txnKey]int32{}
				}
				if t.commit {
					want[at][txnKey{t.producer, t.epoch}] += n
				}
			}
		}
	}
	for _, at := range p {
		got, markers := e.readCommitted(s, at)
		for k, n := range got {
			if want[place(at)][k] != n {
				e.Errorf("%v: %d records of %v are seen, %d were committed", place(at), n, k, want[place(at)][k])
			}
		}
		for k, n := range want[place(at)] {
			if got[k] != n {
				e.Errorf("%v: %d records of %v were committed, %d are seen", place(at), n, k, got[k])
			}
		}
		if markers == 0 {
			e.Errorf("%v: no marker", place(at))
		}
		v := e.view(s, at.Block)
		if v.LSO(at.Slot) != v.HighWatermark(at.Slot) {
			e.Errorf("%v: something is open at %d", place(at), v.LSO(at.Slot))
		}
	}
}

// readCommitted gives how many records of each transaction a reader sees, and how many markers it met.
func (e *env) readCommitted(s *metadata.Store, at metadata.Partition) (seen map[txnKey]int32, markers int) {
	e.Helper()
	seen = map[txnKey]int32{}
	v := e.view(s, at.Block)
	offset := v.LogStart(at.Slot)
	for offset < v.LSO(at.Slot) {
		found, err := s.Locate(e.Context(), []metadata.LocateQuery{{
			Block: at.Block, Slot: at.Slot, Offset: offset, MaxBytes: 1 << 10, MaxRows: 3,
		}})
		e.must(err)
		if len(found[0]) == 0 {
			e.Fatalf("nothing at %d of %v", offset, place(at))
		}
		end := found[0][len(found[0])-1].End
		hidden := e.aborted(s, at, offset, end)
		for _, l := range found[0] {
			base := l.Base
			for _, b := range l.Batches {
				if b.Flags&metadata.FlagAccepted == 0 {
					continue
				}
				switch {
				case b.Flags&metadata.FlagControl != 0:
					markers++
				case !abortedAt(hidden, b.Producer, base):
					seen[txnKey{b.Producer, b.Epoch}] += b.Records
				}
				base += metadata.Offset(b.Records)
			}
		}
		offset = end
	}
	return seen, markers
}

// abortedAt says whether an offset of a producer lies in one of its aborted transactions.
func abortedAt(hidden []metadata.AbortedTxn, producer metadata.ProducerID, at metadata.Offset) bool {
	for _, h := range hidden {
		if h.Producer == producer && h.First <= at && at < h.Marker {
			return true
		}
	}
	return false
}
