package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/skeinio/skein/metadata"
)

// fault is where a commit fails.
type fault int

const (
	noFault         fault = iota
	failBefore            // the database is not reached
	failLoaded            // the connection drops before the rules ran
	failDecided           // the connection drops between the rules and COMMIT
	failLost              // COMMIT was not done, and its caller does not know
	failUnknown           // COMMIT was done, and its caller does not know
	numberOfFaults  = int(failUnknown) + 1
	commitsDoneFrom = failUnknown // faults from here on leave the commit done
)

// faulty is a Driver whose commits fail where choose says.
type faulty struct {
	metadata.Driver
	mu     sync.Mutex
	choose func() fault
}

var errDropped = fmt.Errorf("%w: dropped by the test", metadata.ErrUnavailable)

func (d *faulty) next() fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.choose()
}

func (d *faulty) Commit(
	ctx context.Context, load metadata.CommitLoad, decide func(*metadata.CommitLoaded) (*metadata.CommitSave, error),
) error {
	f := d.next()
	if f == failBefore {
		return errDropped
	}
	err := d.Driver.Commit(ctx, load, func(l *metadata.CommitLoaded) (*metadata.CommitSave, error) {
		if f == failLoaded {
			return nil, errDropped
		}
		save, err := decide(l)
		if err == nil && (f == failDecided || f == failLost) {
			return nil, errDropped
		}
		return save, err
	})
	switch {
	case f == failLost && errors.Is(err, errDropped), f == failUnknown && err == nil:
		return fmt.Errorf("%w: dropped by the test", metadata.ErrUnknownOutcome)
	}
	return err
}

// testFaults lets a commit fail at every point, then submits it again at the same Store and at another.
func testFaults(e *env) {
	for f := failBefore; int(f) < numberOfFaults; f++ {
		for _, elsewhere := range []bool{false, true} {
			testFault(e, f, elsewhere)
		}
	}
}

func testFault(e *env, f fault, elsewhere bool) {
	e.Helper()
	next := noFault
	d := &faulty{Driver: e.db.Driver(e.T), choose: func() fault { return next }}
	s := e.storeWith(metadata.Options{Driver: d})
	at := s
	if elsewhere {
		at = e.store()
	}
	p := e.topic(s, fmt.Sprintf("t%d%v", f, elsewhere), 66).Partitions
	ids, err := s.AllocateProducerIDs(e.Context(), 1)
	e.must(err)
	e.one(s, p[0], idempotent(ids.First, 0, 0, 2))
	old := e.view(s, p[0].Block)

	next = f
	flush := e.flush(s, of(p[0], idempotent(ids.First, 0, 2, 3), plain(1)), of(p[65], idempotent(ids.First, 0, 0, 1)))
	_, err = s.Commit(e.Context(), []*metadata.Flush{flush})
	want := metadata.ErrUnavailable
	if f == failLost || f == failUnknown {
		want = metadata.ErrUnknownOutcome
	}
	if !errors.Is(err, want) {
		e.Fatalf("fault %d: %v, want %v", f, err, want)
	}
	next = noFault
	if v, err := s.View(e.Context(), p[0].Block); err != nil || v.Seq < old.Seq || (f < commitsDoneFrom && v.Seq != old.Seq) {
		e.Fatalf("fault %d: view at %+v, %v; was at %d", f, v, err, old.Seq)
	}
	r := e.commitResult(at, flush)
	if r.Err != nil || r.Resubmitted != (f >= commitsDoneFrom) {
		e.Fatalf("fault %d: submitted again: %+v", f, r)
	}
	bases := []metadata.Offset{2, 5, 0}
	if p[65].Block < p[0].Block {
		bases = []metadata.Offset{0, 2, 5}
	}
	for i, base := range bases {
		e.expect(fmt.Sprintf("fault %d, batch %d", f, i), r.Batches[i], metadata.CodeAccepted, base)
	}
	for _, store := range []*metadata.Store{s, at, e.store()} {
		e.expect("retry by the producer", e.one(store, p[0], idempotent(ids.First, 0, 2, 3)), metadata.CodeDuplicate, 2)
		if hw := e.highWatermark(store, p[0]); hw != 6 {
			e.Fatalf("fault %d: high watermark %d, want 6", f, hw)
		}
	}
	e.expect("next", e.one(s, p[0], idempotent(ids.First, 0, 5, 1)), metadata.CodeAccepted, 6)
}
