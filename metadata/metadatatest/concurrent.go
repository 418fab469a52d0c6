package metadatatest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/skeinio/skein/metadata"
)

// span is offsets that a batch got.
type span struct {
	base metadata.Offset
	n    int32
}

// ledger collects, for each partition, which offsets were handed out.
type ledger struct {
	mu    sync.Mutex
	spans map[metadata.PartitionID][]span
}

func (l *ledger) add(p metadata.Partition, base metadata.Offset, n int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := metadata.PartitionID{Block: p.Block, Slot: p.Slot}
	l.spans[id] = append(l.spans[id], span{base, n})
}

// check asserts that each partition's offsets are dense, none twice, and that every Store sees their end.
func (l *ledger) check(e *env, stores ...*metadata.Store) {
	e.Helper()
	for id, spans := range l.spans {
		slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.base, b.base) })
		next := metadata.Offset(0)
		for _, s := range spans {
			if s.base != next {
				e.Fatalf("%v: offset %d was handed out where %d was next", id, s.base, next)
			}
			next += metadata.Offset(s.n)
		}
		for i, s := range stores {
			if hw := e.view(s, id.Block).HighWatermark(id.Slot); hw != next {
				e.Fatalf("%v: store %d has high watermark %d, want %d", id, i, hw, next)
			}
		}
	}
}

// testConcurrent lets several Stores with several committers each commit to overlapping partitions of three blocks.
func testConcurrent(e *env) {
	const stores, committers = 3, 4
	commits := 60
	if testing.Short() {
		commits = 15
	}
	l := &ledger{spans: map[metadata.PartitionID][]span{}}
	first := e.store()
	p := slices.Concat(
		e.topic(first, "a", 128).Partitions[60:70], e.topic(first, "b", 1).Partitions, e.topic(first, "c", 2).Partitions)
	all := []*metadata.Store{first}
	for len(all) < stores {
		all = append(all, e.store())
	}
	for _, s := range all {
		e.run(s)
	}
	var wg sync.WaitGroup
	errs := make(chan error, stores*committers)
	for i := range stores * committers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for range commits {
				var flushes []*metadata.Flush
				for range 1 + random.IntN(3) {
					flushes = append(flushes, e.randomFlush(all[i%stores], random, p))
				}
				results, err := all[i%stores].Commit(e.Context(), flushes)
				if err != nil {
					errs <- err
					return
				}
				for j, f := range flushes {
					l.note(f, results[j].Batches)
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		e.Error(err)
	}
	l.check(e, append(all, e.store())...)
}

// note adds what a flush got.
func (l *ledger) note(f *metadata.Flush, results []metadata.BatchResult) {
	for i := range f.Extents {
		x := &f.Extents[i]
		for j := range x.Batches {
			if r := results[0]; r.Code == metadata.CodeAccepted {
				l.add(metadata.Partition{Block: x.Block, Slot: x.Slot}, r.Base, x.Batches[j].Records)
			}
			results = results[1:]
		}
	}
}

// randomFlush makes a flush of plain batches for some of the partitions.
func (e *env) randomFlush(s *metadata.Store, random *rand.Rand, p []metadata.Partition) *metadata.Flush {
	var pieces []piece
	for _, i := range random.Perm(len(p))[:1+random.IntN(len(p))] {
		x := of(p[i])
		for range 1 + random.IntN(2) {
			x.batches = append(x.batches, plain(1+random.Int32N(9)))
		}
		pieces = append(pieces, x)
	}
	return e.flush(s, pieces...)
}

// testConcurrentProducers lets idempotent producers write through Stores whose commits fail at random, each batch
// submitted again, at a random Store, until it is known what became of it: nothing is lost, nothing is there twice.
func testConcurrentProducers(e *env) {
	const producers = 6
	batches := metadata.Sequence(60)
	if testing.Short() {
		batches = 15
	}
	l := &ledger{spans: map[metadata.PartitionID][]span{}}
	var stores []*metadata.Store
	for i := range 3 {
		random := rand.New(rand.NewPCG(7, uint64(i)))
		d := &faulty{Driver: e.db.Driver(e.T), choose: func() fault { return fault(max(0, random.IntN(12)-6)) }}
		s := e.storeWith(metadata.Options{Driver: d, CheckpointRows: 20})
		e.run(s)
		stores = append(stores, s)
	}
	p := e.topic(stores[0], "t", 66).Partitions[62:66]
	ids, err := stores[1].AllocateProducerIDs(e.Context(), producers)
	e.must(err)
	var wg sync.WaitGroup
	errs := make(chan error, producers)
	for i := range producers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(8, uint64(i)))
			for seq := range batches {
				if err := e.deliver(l, stores, random, p, ids.First+metadata.ProducerID(i), seq); err != nil {
					errs <- fmt.Errorf("producer %d, sequence %d: %w", i, seq, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		e.Error(err)
	}
	l.check(e, append(stores, e.store())...)
	for _, at := range p {
		if hw := e.highWatermark(e.store(), at); hw != metadata.Offset(producers*batches) {
			e.Errorf("%v: high watermark %d, want %d", at, hw, producers*batches)
		}
	}
	var of []metadata.PartitionProducer
	for _, at := range p {
		for i := range producers + 1 {
			of = append(of, metadata.PartitionProducer{Partition: place(at), Producer: ids.First + metadata.ProducerID(i)})
		}
	}
	for _, s := range append(stores, e.store()) { // the last is cold
		progress, err := s.Progress(e.Context(), of)
		e.must(err)
		for i, got := range progress {
			want := metadata.Progress{Epoch: 0, Last: batches - 1}
			if of[i].Producer == ids.First+producers {
				want = metadata.Progress{Epoch: -1, Last: -1} // it has written nothing
			}
			if got != want {
				e.Errorf("%v: got %+v, want %+v", of[i], got, want)
			}
		}
	}
}

// deliver sends one record of a producer to every partition until it is known to be there.
func (e *env) deliver(
	l *ledger, stores []*metadata.Store, random *rand.Rand, p []metadata.Partition, id metadata.ProducerID, seq metadata.Sequence,
) error {
	var pieces []piece
	for _, at := range p {
		pieces = append(pieces, of(at, idempotent(id, 0, seq, 1)))
	}
	f := e.flush(stores[0], pieces...)
	unknown := false // whether an attempt of f may have been committed
	for range 100 {
		results, err := stores[random.IntN(len(stores))].Commit(e.Context(), []*metadata.Flush{f})
		switch {
		case errors.Is(err, metadata.ErrUnavailable), errors.Is(err, metadata.ErrUnknownOutcome):
			unknown = unknown || errors.Is(err, metadata.ErrUnknownOutcome)
			if !unknown && random.IntN(4) == 0 {
				f = e.flush(stores[0], pieces...) // nothing was committed: another flush may carry it
			}
			continue
		case err != nil:
			return err
		}
		for i, r := range results[0].Batches {
			if r.Code != metadata.CodeAccepted {
				return fmt.Errorf("partition %d: code %d", i, r.Code)
			}
		}
		l.note(f, results[0].Batches)
		return nil
	}
	return errors.New("never delivered")
}
