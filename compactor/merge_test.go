package compactor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// TestMerge merges many small flushes and reads everything from runs, with a warm and a cold store.
func TestMerge(t *testing.T) {
	r := newRig(t, 70, nil) // two blocks
	c := r.compactor(Options{})
	for range 4 {
		r.some(60)
		r.must(c.MergeEverything(t.Context()))
		r.check(r.store)
	}
	r.check(metadata.NewStore(metadata.Options{Driver: r.driver}))
	r.fsck()
	r.settle(c)
	r.check(r.store)
	rep := r.fsck()
	if rep.Inline != 0 || rep.Waiting != 0 {
		t.Errorf("inline payloads %d, objects waiting %d", rep.Inline, rep.Waiting)
	}
	if rows := rep.Rows; rows != 2 {
		t.Errorf("%d level0 rows left, want the newest of two blocks", rows)
	}
	if rep.InBucket == 0 || rep.InBucket > 40 {
		t.Errorf("%d objects in the bucket", rep.InBucket)
	}
	r.some(20) // the log goes on
	r.check(r.store)
	r.settle(c)
	r.check(r.store)
	r.fsck()
}

var errCrash = errors.New("crashed here")

// TestCrashes ends the work at every step, and lets another compactor take over when the lease has run out.
func TestCrashes(t *testing.T) {
	for _, point := range Points() {
		for _, nth := range []int{1, 2} {
			t.Run(fmt.Sprint(point, nth), func(t *testing.T) {
				r := newRig(t, 70, map[string]string{"retention.bytes": "-1"})
				r.some(80)
				seen := 0
				dying := r.compactor(Options{Holder: "dying", Crash: func(p Point) error {
					if p == point {
						if seen++; seen == nth {
							return errCrash
						}
					}
					return nil
				}})
				crashed := false
				for range 4 {
					for _, run := range dying.jobs() {
						if run.name == jobMerge {
							run.run = dying.MergeEverything
						}
						err := run.run(t.Context())
						if errors.Is(err, errCrash) {
							crashed = true
							break
						}
						r.must(err)
					}
					if crashed {
						break
					}
					r.some(20)
					r.clock.advance(2 * DefaultGCGrace)
				}
				if !crashed && nth == 1 {
					t.Fatalf("point %s was not reached", point)
				}
				r.check(r.store)
				for _, p := range check(r).Problems {
					t.Errorf("after the crash: %+v", p)
				}
				r.clock.advance(time.Hour) // the lease runs out
				r.some(10)
				r.settle(r.compactor(Options{Holder: "heir"}))
				r.check(r.store)
				if rep := r.fsck(); rep.Waiting != 0 || rep.Uncommitted != 0 || rep.Inline != 0 {
					t.Errorf("left: %d objects, %d payloads", rep.Waiting, rep.Inline)
				}
			})
		}
	}
}

func check(r *rig) *Report {
	rep, err := Check(r.Context(), CheckOptions{Driver: r.driver, Store: r.store, Bucket: r.bucket})
	r.must(err)
	return rep
}

// TestTwoCompactors lets two work at once, round by round, while a producer writes and a reader reads everything.
func TestTwoCompactors(t *testing.T) {
	r := newRig(t, 130, nil) // three blocks
	r.some(60)
	var wg sync.WaitGroup
	var rounds [2]chan struct{}
	for i := range rounds {
		c := r.compactor(Options{Holder: fmt.Sprint(i)})
		rounds[i] = make(chan struct{}, 1)
		wg.Go(func() {
			for range rounds[i] {
				for _, run := range []func(context.Context) error{c.MergeEverything, c.Remerge, c.Release, c.Garbage} {
					if err := run(t.Context()); err != nil {
						t.Errorf("compactor %d: %v", i, err)
						return
					}
				}
			}
		})
	}
	for range 5 {
		for _, c := range rounds {
			c <- struct{}{}
		}
		r.some(15)
		r.check(r.store)
	}
	for _, c := range rounds {
		close(c)
	}
	wg.Wait()
	r.settle(r.compactor(Options{Holder: "last"}))
	r.check(r.store)
	r.fsck()
}

// TestPausedCompactor wakes after another one did its work: its swap is refused, and what it wrote goes.
func TestPausedCompactor(t *testing.T) {
	r := newRig(t, 3, nil)
	r.some(20)
	other := r.compactor(Options{Holder: "other"})
	paused := r.compactor(Options{Holder: "paused", Crash: func(p Point) error {
		if p == PointPut { // asleep for longer than its lease, and longer than the grace
			r.clock.advance(3 * time.Hour)
			r.must(other.MergeEverything(t.Context()))
			r.must(other.Garbage(t.Context()))
		}
		return nil
	}})
	if err := paused.MergeEverything(t.Context()); !errors.Is(err, metadata.ErrFenced) {
		t.Fatalf("a swap after the lease: %v", err)
	}
	r.check(r.store)
	r.settle(other)
	r.check(r.store)
	if rep := r.fsck(); rep.Waiting != 0 {
		t.Errorf("%d objects left", rep.Waiting)
	}
}

// TestCommitOfCondemned: an agent that wakes after its object was found to be nobody's is refused, and its late PUT goes.
func TestCommitOfCondemned(t *testing.T) {
	r := newRig(t, 1, nil)
	r.some(3)
	c := r.compactor(Options{})
	f := r.flush(false, part{0, [][]byte{r.batchOf(time.Now().UnixMilli(), record.CodecNone, "k", "late")}})
	r.must(c.Orphans(t.Context()))
	if _, ok := find(r.keys(), string(f.Object)); !ok {
		t.Fatal("the young object is gone")
	}
	r.clock.advance(2 * time.Hour)
	r.must(c.Orphans(t.Context())) // condemned
	r.must(c.Garbage(t.Context()))
	if _, ok := find(r.keys(), string(f.Object)); !ok {
		t.Fatal("deleted without grace")
	}
	f.Seen = metadata.Millis(r.clock.now().UnixMilli()) // as an agent would say that has just woken
	if _, err := r.store.Commit(t.Context(), []*metadata.Flush{f}); !errors.Is(err, metadata.ErrCondemned) {
		t.Fatalf("commit of a condemned key: %v", err)
	}
	r.clock.advance(2 * time.Hour)
	r.must(c.Garbage(t.Context()))
	if _, ok := find(r.keys(), string(f.Object)); ok {
		t.Fatal("not deleted after the grace")
	}
	// The PUT, or its hedge, lands late.
	r.must(r.bucket.Put(t.Context(), string(f.Object), objstore.Bytes([]byte("late")), objstore.PutOptions{}))
	if res, err := r.store.Commit(t.Context(), []*metadata.Flush{f}); err != nil || !errors.Is(res[0].Err, metadata.ErrFlushTooOld) {
		t.Fatalf("commit hours later: %v, %v", res, err)
	}
	r.clock.advance(metadata.CondemnedKept + time.Hour)
	r.must(c.Garbage(t.Context()))
	if _, ok := find(r.keys(), string(f.Object)); ok {
		t.Fatal("what landed late stays")
	}
	r.check(r.store)
}

func find(keys []string, key string) (int, bool) {
	for i, k := range keys {
		if k == key {
			return i, true
		}
	}
	return 0, false
}

// TestDamage: a corrupt and a missing object cost their own records only, and nothing gets stuck.
func TestDamage(t *testing.T) {
	r := newRig(t, 2, nil)
	var keys []metadata.ObjectKey
	for i := range 9 {
		keys = append(keys, r.write(false,
			part{0, [][]byte{r.batchOf(time.Now().UnixMilli(), record.CodecNone, "a", fmt.Sprint(i))}}, part{1, [][]byte{r.batchOf(time.Now().UnixMilli(), record.CodecNone, "b", fmt.Sprint(i))}}))
	}
	r.faults.Inject(objstore.Fault{Op: objstore.OpGet, Match: func(k string) bool { return k == string(keys[3]) },
		Corrupt: func(data []byte, offset int64) {
			for i := range data {
				if offset+int64(i) == 40 { // in the first extent
					data[i] ^= 1
				}
			}
		}})
	r.must(r.bucket.Delete(t.Context(), string(keys[6])))
	c := r.compactor(Options{})
	r.must(c.MergeEverything(t.Context()))
	r.settle(c)
	rep := check(r)
	missing, corrupt := 0, 0
	for _, p := range rep.Problems {
		switch p.Kind {
		case KindMissing:
			missing++
		case KindCorrupt:
			corrupt++
		default:
			t.Errorf("%+v", p)
		}
	}
	if missing == 0 || corrupt == 0 {
		t.Errorf("missing %d, corrupt %d: %+v", missing, corrupt, rep.Problems)
	}
	for _, want := range []struct {
		index, from, to int
	}{{0, 0, 3}, {0, 4, 6}, {0, 7, 9}, {1, 0, 6}, {1, 7, 9}} {
		place := r.topic.Partitions[want.index]
		for o := want.from; o < want.to; o++ {
			_, got := r.readOnce(r.store, place, metadata.Offset(o))
			if len(got) == 0 || got[0] != fmt.Sprintf("%d:%s", o, r.want[want.index][o]) {
				t.Errorf("partition %d, offset %d: %v", want.index, o, got)
			}
		}
	}
}

// TestBucketDown: a merge while the bucket fails changes nothing, and the next one goes on.
func TestBucketDown(t *testing.T) {
	for _, op := range []objstore.Op{objstore.OpGet, objstore.OpPut} {
		r := newRig(t, 3, nil)
		r.some(20)
		remove := r.faults.Inject(objstore.Fault{Op: op, Before: objstore.ErrAccess})
		c := r.compactor(Options{})
		if err := c.MergeEverything(t.Context()); !errors.Is(err, objstore.ErrAccess) {
			t.Fatalf("%s: %v", op, err)
		}
		remove()
		r.check(r.store)
		r.settle(c)
		r.check(r.store)
		if rep := r.fsck(); rep.Waiting != 0 {
			t.Errorf("%s: %d objects left", op, rep.Waiting)
		}
	}
}

// TestYoung: what is young waits for more, unless it is inline and the inline payloads take half of what they may; the records
// of a quiet partition are merged when they are old enough, and go when their time has come.
func TestYoung(t *testing.T) {
	r := newRig(t, 1, map[string]string{"retention.ms": "3600000"})
	rows := func() int64 {
		page, err := r.driver.Backlog(t.Context(), r.topic.Partitions[0].Block-1, 1)
		r.must(err)
		return page[0].Unmerged()
	}
	write := func() {
		r.write(true, part{0, [][]byte{r.batchOf(r.clock.now().UnixMilli(), record.CodecNone, "k", fmt.Sprintf("%01000d", len(r.want[0])))}})
	}
	c := r.compactor(Options{Config: Config{InlineResidentBytes: 5 << 10}})
	write()
	write()
	r.must(c.MergeAll(t.Context()))
	if n := rows(); n != 2 {
		t.Errorf("%d young rows left, want 2", n)
	}
	write()
	r.must(c.MergeAll(t.Context()))
	r.must(c.Release(t.Context()))
	if n, err := r.driver.InlineResident(t.Context()); rows() != 0 || n != 0 || err != nil {
		t.Errorf("%d rows and %d bytes left, %v", rows(), n, err)
	}
	write()
	r.must(c.MergeAll(t.Context()))
	if n := rows(); n != 1 {
		t.Errorf("%d young rows left, want 1", n)
	}
	r.clock.advance(c.cfg.MergeAge + time.Second)
	r.must(c.MergeAll(t.Context()))
	if n := rows(); n != 0 {
		t.Errorf("%d old rows left", n)
	}
	r.clock.advance(time.Hour)
	r.must(c.Retention(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 0 {
		t.Errorf("left after their time: %v", got)
	}
	r.fsck()
}
