package batcher

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/metadata"
)

// Batches that come before the one they follow are held, in order, and do not stand in anybody's way.
func TestHoldUntilTheGapIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		third := r.submit(1, 30*second, idem(t, partition(1, 0), 2))
		synctest.Wait()
		fourth := r.submit(1, 30*second, idem(t, partition(1, 0), 3))
		synctest.Wait()
		fifth := r.submit(1, 30*second, idem(t, partition(1, 0), 4))
		synctest.Wait()
		if n := r.store.committed(); n != 1 {
			t.Errorf("%d commits though nothing moved, want 1: what comes after a held batch is held without asking", n)
		}
		wantErr(t, "another producer", r.submit(2, 30*second, plain(t, partition(1, 0), 100)).err(), nil)
		second1 := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		synctest.Wait()
		if !third.pending() || !fourth.pending() || !fifth.pending() || !second1.pending() {
			t.Error("a held batch was answered")
		}
		start := time.Now()
		wantErr(t, "first", r.submit(1, 30*second, idem(t, partition(1, 0), 0)).err(), nil)
		for i, a := range []*answer{second1, third, fourth, fifth} {
			if res := a.wait()[0]; res.Err != nil || res.Base != metadata.Offset(i+2) {
				t.Errorf("held %d: got %+v", i+1, res)
			}
		}
		if got := time.Since(start); got != 0 {
			t.Errorf("held batches went %v after the gap was filled", got)
		}
		wantLog(t, r, partition(1, 0), 100, 0, 1, 2, 3, 4)
		r.checkEmpty()
		if n := r.remembered(); n != 0 {
			t.Errorf("%d chains are remembered though the gap is filled", n)
		}
		r.close()
	})
}

// Another agent fills the gap: nothing but the partition's move tells of it.
func TestHoldUntilThePartitionMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		time.Sleep(100 * time.Millisecond)
		tries := r.store.committed()
		r.store.accept(idem(t, partition(1, 0), 0))
		r.mu.Lock()
		notify(r.heldChanged) // what a wake-up of the block does
		r.mu.Unlock()
		start := time.Now()
		wantErr(t, "held", a.err(), nil)
		if got := time.Since(start); got != 0 {
			t.Errorf("held for %v after the move", got)
		}
		if tries != 1 {
			t.Errorf("%d commits while nothing moved, want 1", tries)
		}
		r.close()
	})
}

// The wake-up is lost.
func TestHoldPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		a := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		time.Sleep(100 * time.Millisecond)
		r.store.accept(idem(t, partition(1, 0), 0))
		start := time.Now()
		wantErr(t, "held", a.err(), nil)
		if got := time.Since(start); got > holdPoll {
			t.Errorf("held for %v after the move, want at most %v", got, holdPoll)
		}
		r.close()
	})
}

func TestHoldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		start := time.Now()
		second1 := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		third := r.submit(1, 30*second, idem(t, partition(1, 0), 2))
		wantErr(t, "second", second1.err(), ErrNotPersisted)
		if got := time.Since(start); got != 2*second {
			t.Errorf("held for %v, want 2s", got)
		}
		wantErr(t, "third", third.err(), ErrNotPersisted)
		// A client tries again and again, in order, and hears 45 two minutes after the gap was first seen.
		for {
			again := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
			behind := r.submit(1, 30*second, idem(t, partition(1, 0), 2))
			err := again.err()
			since := time.Since(start)
			if since < gapLimit {
				wantErr(t, "again", err, ErrNotPersisted)
				wantErr(t, "behind", behind.err(), ErrNotPersisted)
			} else {
				wantErr(t, "after two minutes", err, ErrOutOfOrder)
				wantErr(t, "behind, after two minutes", behind.err(), ErrOutOfOrder)
				break
			}
			if t.Failed() {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		wantErr(t, "at once from then on", r.submit(1, 30*second, idem(t, partition(1, 0), 1)).err(), ErrOutOfOrder)
		wantErr(t, "what was missing", r.submit(1, 30*second, idem(t, partition(1, 0), 0)).err(), nil)
		wantErr(t, "what was out of order", r.submit(1, 30*second, idem(t, partition(1, 0), 1)).err(), nil)
		wantLog(t, r, partition(1, 0), 0, 1)
		r.checkEmpty()
		r.close()
	})
}

func TestHoldIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := idem(t, partition(1, 0), 1)
		r := newRig(t, func(c *Config) { c.SequenceHoldBytes = int64(len(one.Data))*2 + 1 })
		first := r.submit(1, 30*second, one)
		synctest.Wait()
		second1 := r.submit(1, 30*second, idem(t, partition(1, 0), 2))
		wantErr(t, "over the bound", r.submit(1, 30*second, idem(t, partition(1, 0), 3)).err(), ErrNotPersisted)
		wantErr(t, "over the bound, another chain", r.submit(1, 30*second, idem(t, partition(1, 1), 3)).err(), ErrNotPersisted)
		wantErr(t, "zero", r.submit(1, 30*second, idem(t, partition(1, 0), 0)).err(), nil)
		wantErr(t, "held first", first.err(), nil)
		wantErr(t, "held second", second1.err(), nil)
		r.close()
	})
}

func TestHeldBatchHonoursItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		start := time.Now()
		earlier := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		wantErr(t, "held", r.submit(1, second, idem(t, partition(1, 0), 2)).err(), ErrNotPersisted)
		if !earlier.pending() {
			t.Error("what comes before it in its chain was answered with it")
		}
		if got := time.Since(start); got != second {
			t.Errorf("answered after %v, want 1s", got)
		}
		wantErr(t, "earlier", earlier.err(), ErrNotPersisted)
		r.checkEmpty()
		r.close()
	})
}

func TestHoldAcrossTheSequenceWrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.store.set(func() { r.store.strict = false })
		last := makeBatch(t, partition(1, 0), 1, 0, metadata.MaxSequence-1, 1, 8)
		wantErr(t, "near the end", r.submit(1, 30*second, last).err(), nil)
		zero := r.submit(1, 30*second, makeBatch(t, partition(1, 0), 1, 0, 0, 3, 8))
		synctest.Wait()
		if !zero.pending() {
			t.Fatal("0 was not held for 2147483647")
		}
		wantErr(t, "the end", r.submit(1, 30*second, makeBatch(t, partition(1, 0), 1, 0, metadata.MaxSequence, 2, 8)).err(), nil)
		wantErr(t, "zero", zero.err(), nil)
		wantLog(t, r, partition(1, 0), 1, 2, 3)
		r.close()
	})
}

// A stale batch fails retriably, and nothing that follows it in its chain is committed with it or before it.
func TestStaleFailsItsChain(t *testing.T) {
	for _, producer := range []metadata.ProducerID{metadata.NoProducer, 1} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.store.set(func() {
				r.store.part(1, 0).configs = 5
				r.store.strict = false
				r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) { return succeed, 600 * time.Millisecond }
			})
			busy := r.submit(9, 30*second, plain(t, partition(1, 1), 9)) // the others gather behind its commit
			synctest.Wait()
			batch := func(n int, validated metadata.CatalogueVersion) Batch {
				b := makeBatch(t, partition(1, 0), producer, 0, metadata.Sequence(n), uint64(n), 8)
				b.Meta.Validated = validated
				return b
			}
			stale := r.submit(1, 30*second, batch(0, 4))
			stale2 := r.submit(1, 30*second, batch(1, 4))
			fresh := r.submit(1, 30*second, batch(2, 5))
			wantErr(t, "busy", busy.err(), nil)
			wantErr(t, "stale", stale.err(), ErrNotPersisted)
			wantErr(t, "stale too", stale2.err(), ErrNotPersisted)
			wantErr(t, "validated anew but behind", fresh.err(), ErrNotPersisted)
			wantLog(t, r, partition(1, 0))
			for i := range 3 {
				wantErr(t, "again", r.submit(1, 30*second, batch(i, 5)).err(), nil)
			}
			wantLog(t, r, partition(1, 0), 0, 1, 2)
			r.checkEmpty()
			r.close()
		})
	}
}

// Marks are bounded: over the bound the oldest are forgotten.
func TestMarksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.store.set(func() { r.store.down = true })
		b := idem(t, partition(1, 0), 0)
		var all []*answer
		for i := range maxMarks + 100 {
			b.Meta.Producer = metadata.ProducerID(i)
			b.Data = append([]byte(nil), b.Data...)
			all = append(all, r.submit(1, second, b))
		}
		for _, a := range all {
			wantErr(t, "database down", a.err(), ErrNotPersisted)
		}
		synctest.Wait()
		if n := r.remembered(); n != maxMarks {
			t.Errorf("%d chains are remembered, want %d", n, maxMarks)
		}
		r.close()
	})
}
