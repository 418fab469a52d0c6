package batcher

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/metadata"
)

const second = time.Second

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantLog(t *testing.T, r *rig, part metadata.Partition, want ...uint64) {
	t.Helper()
	if got := numbers(t, r.store.log(part)); !slices.Equal(got, want) {
		t.Errorf("log of %v is %v, want %v", part, got, want)
	}
}

func TestSmallRecordIsInlineAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		start := time.Now()
		for i := range 3 {
			res := r.submit(1, 30*second, plain(t, partition(1, 0), i)).wait()
			if res[0].Err != nil || res[0].Base != metadata.Offset(i) {
				t.Fatalf("got %+v, want base %d", res[0], i)
			}
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("a quiet agent waited %v", waited)
		}
		time.Sleep(time.Minute)
		if p, c := r.bucket.count(), r.store.committed(); p != 0 || c != 3 {
			t.Errorf("%d PUTs and %d commits, want 0 and 3", p, c)
		}
		wantLog(t, r, partition(1, 0), 0, 1, 2)
		r.checkEmpty()
		r.close()
	})
}

func TestFlushesBecomePutsOverTheResidentBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.store.set(func() { r.store.resident = 256 << 20 })
		wantErr(t, "produce", r.submit(1, 30*second, plain(t, partition(1, 0), 0)).err(), nil)
		if r.bucket.count() != 1 {
			t.Errorf("%d PUTs, want 1", r.bucket.count())
		}
		r.close()
	})
}

func TestBudgetsThenLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.PutBudget, c.InlineMaxBytes = 1, 0 })
		for i, want := range []time.Duration{0, 250 * time.Millisecond, 250 * time.Millisecond} {
			start := time.Now()
			wantErr(t, "produce", r.submit(1, 30*second, plain(t, partition(1, 0), i)).err(), nil)
			if got := time.Since(start); got != want {
				t.Errorf("produce %d took %v, want %v", i, got, want)
			}
		}
		r.close()
	})
}

func TestFullSegmentsGoInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.SegmentBytes, c.PutBudget, c.InlineMaxBytes, c.Uploads = 16<<10, 0.001, 0, 3 })
		r.bucket.fault = func(int, string) (outcome, time.Duration) { return succeed, 100 * time.Millisecond }
		wantErr(t, "takes the token", r.submit(1, 30*second, plain(t, partition(1, 0), 0)).err(), nil)
		start := time.Now()
		var all []*answer
		for i := range 12 { // four batches fill a segment
			all = append(all, r.submit(uint64(i), 30*second, makeBatch(t, partition(1, 0), -1, -1, -1, uint64(i), 4000)))
		}
		for _, a := range all {
			wantErr(t, "produce", a.err(), nil)
		}
		// The first two segments go when they are full, the last when linger has passed.
		if got := time.Since(start); got != 350*time.Millisecond || r.bucket.count() != 4 {
			t.Errorf("took %v in %d PUTs, want 350ms and 4", got, r.bucket.count())
		}
		r.close()
	})
}

func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.SegmentBytes, c.InlineMaxBytes, c.CommitBudget = 1<<10, 0, 0 })
		r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) { return succeed, 100 * time.Millisecond }
		var all []*answer
		for i := range 5 { // each fills a segment
			all = append(all, r.submit(1, 30*second, makeBatch(t, partition(1, 0), -1, -1, -1, uint64(i), 2000)))
			synctest.Wait()
		}
		for _, a := range all {
			wantErr(t, "produce", a.err(), nil)
		}
		if r.store.committed() != 2 {
			t.Errorf("%d commits, want 2: the first alone, the others together", r.store.committed())
		}
		wantLog(t, r, partition(1, 0), 0, 1, 2, 3, 4)
		r.checkEmpty()
		r.close()
	})
}

// One request may be larger than a flush.
func TestFlushesAreBoundedInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		batches := make([]Batch, maxFlushBatches+10)
		for i := range batches {
			batches[i] = plain(t, partition(metadata.BlockID(1+i/64), metadata.Slot(i%64)), i)
		}
		largest := 0
		r.store.fault = func(_ int, flushes []*metadata.Flush) (outcome, time.Duration) {
			for _, f := range flushes {
				largest = max(largest, len(f.Extents))
			}
			return succeed, 0
		}
		for _, res := range r.submit(1, 30*second, batches...).wait() {
			wantErr(t, "produce", res.Err, nil)
		}
		if largest != maxFlushBatches {
			t.Errorf("the largest flush had %d batches, want %d", largest, maxFlushBatches)
		}
		r.checkEmpty()
		r.close()
	})
}

// A slow upload stalls only what shares a chain with it.
func TestSlowUploadStallsOnlyItsChains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes, c.PutBudget = 0, 0 })
		r.bucket.fault = func(n int, _ string) (outcome, time.Duration) {
			if n == 1 {
				return succeed, 5 * second
			}
			return succeed, 0
		}
		slow := r.submit(1, 30*second, plain(t, partition(1, 0), 1))
		synctest.Wait()
		other := r.submit(2, 30*second, plain(t, partition(1, 0), 2))
		synctest.Wait()
		behind := r.submit(1, 30*second, plain(t, partition(1, 0), 3))
		synctest.Wait()
		if other.pending() || !slow.pending() || !behind.pending() {
			t.Errorf("pending: slow %v, other %v, behind %v; want true, false, true", slow.pending(), other.pending(), behind.pending())
		}
		wantErr(t, "slow", slow.err(), nil)
		wantErr(t, "behind", behind.err(), nil)
		wantLog(t, r, partition(1, 0), 2, 1, 3)
		r.checkEmpty()
		r.close()
	})
}

// Commits of disjoint blocks run side by side, those of one block never do (the fake store checks that).
func TestCommitsOfDisjointBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes, c.PutBudget, c.CommitBudget = 0, 0, 0 })
		r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) { return succeed, second }
		start := time.Now()
		var all []*answer
		for i := range 6 {
			all = append(all, r.submit(uint64(i), 30*second, plain(t, partition(metadata.BlockID(1+i%3), 0), i)))
			synctest.Wait()
		}
		for _, a := range all {
			wantErr(t, "produce", a.err(), nil)
		}
		if got := time.Since(start); got != 2*second {
			t.Errorf("three blocks, two commits each, took %v, want 2s", got)
		}
		r.close()
	})
}

func TestEachWaiterItsOwnResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		gone := partition(1, 3)
		r.store.set(func() {
			r.store.part(1, 3).deleted = true
			r.store.part(1, 2).logStart = 7
		})
		fenced := makeBatch(t, partition(1, 1), 9, 3, 0, 1, 8)
		wantErr(t, "epoch 3", r.submit(1, 30*second, fenced).err(), nil)
		res := r.submit(1, 30*second, plain(t, partition(1, 2), 1), plain(t, gone, 2), makeBatch(t, partition(1, 1), 9, 2, 0, 3, 8),
			makeBatch(t, partition(1, 1), 9, 3, 0, 4, 8)).wait()
		wantErr(t, "good", res[0].Err, nil)
		if res[0].LogStart != 7 {
			t.Errorf("log start %d, want 7", res[0].LogStart)
		}
		wantErr(t, "deleted", res[1].Err, ErrUnknownPartition)
		wantErr(t, "old epoch", res[2].Err, ErrFenced)
		if res[3].Err != nil || !res[3].Duplicate || res[3].Base != 0 {
			t.Errorf("duplicate: got %+v", res[3])
		}
		r.checkEmpty()
		r.close()
	})
}

func TestInvalidBatchDoesNotHarmOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		bad := plain(t, partition(1, 0), 1)
		bad.Data = bad.Data[:40]
		res := r.submit(1, 30*second, bad, plain(t, partition(1, 1), 2)).wait()
		wantErr(t, "cut off", res[0].Err, ErrInvalidBatch)
		wantErr(t, "good", res[1].Err, nil)
		if res := r.submit(1, 30*second).wait(); len(res) != 0 {
			t.Errorf("an empty request got %d results", len(res))
		}
		r.checkEmpty()
		r.close()
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Linger, c.CommitBudget = time.Minute, 0.001 })
		wantErr(t, "first takes the token", r.submit(1, 30*second, plain(t, partition(1, 0), 0)).err(), nil)
		waiting := r.submit(1, 30*second, plain(t, partition(1, 0), 1))
		synctest.Wait()
		if !waiting.pending() {
			t.Fatal("the second did not wait")
		}
		r.close()
		wantErr(t, "drained", waiting.err(), nil)
		wantErr(t, "after drain", r.submit(1, 30*second, plain(t, partition(1, 0), 2)).err(), ErrNotPersisted)
		if err := r.Run(t.Context()); err == nil {
			t.Error("Run after Drain: no error")
		}
	})
}

func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes = 0 })
		r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
			return map[bool]outcome{true: loseAll, false: fail}[n == 1], 0
		}
		unknown := r.submit(1, 60*second, plain(t, partition(1, 0), 0))
		synctest.Wait()
		r.bucket.set(func() {
			r.bucket.fault = func(int, string) (outcome, time.Duration) { return fail, 0 }
		})
		certain := r.submit(2, 60*second, plain(t, partition(1, 0), 1))
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drain: %v, want a deadline exceeded", err)
		}
		wantErr(t, "unknown", unknown.err(), ErrMaybePersisted)
		wantErr(t, "certain", certain.err(), ErrNotPersisted)
		<-r.ended
	})
}

func TestDrainWithoutRun(t *testing.T) {
	bucket := newFakeBucket()
	b, err := New(Options{Config: DefaultConfig(), Bucket: bucket, Store: newFakeStore(t, bucket)})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Batcher: b, t: t}
	a := r.submit(1, second, plain(t, partition(1, 0), 0))
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "never ran", a.err(), ErrNotPersisted)
}
