package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

func (r *rig) repair() *Report {
	r.Helper()
	rep, err := Check(r.Context(), CheckOptions{Driver: r.driver, Store: r.store, Bucket: r.bucket, Repair: true})
	r.must(err)
	return rep
}

func kinds(problems []Problem) (list []Kind) {
	for _, p := range problems {
		list = append(list, p.Kind)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// TestDamagedRows damages rows of each table. fsck finds what is wrong and nothing else, goes on after it, and --repair mends what
// loses nothing, says so, and leaves the rest alone.
func TestDamagedRows(t *testing.T) {
	const unmerged = "(SELECT count(*) FROM level0) > 3 AND place = (SELECT max(place) - %d FROM level0)"
	for _, tt := range []struct {
		name     string
		query    string
		args     []any
		found    []Kind
		unmended []Kind
	}{
		{"garbage in a row", "UPDATE level0 SET touched = x'ff00ff' WHERE " + fmt.Sprintf(unmerged, 2), nil, []Kind{KindCorrupt}, []Kind{KindCorrupt}},
		{"garbage in the newest row", "UPDATE level0 SET photo = x'ff00ff' WHERE " + fmt.Sprintf(unmerged, 0), nil, []Kind{KindCorrupt}, []Kind{KindCorrupt}},
		{"a row lost", "DELETE FROM level0 WHERE object = '' AND " + fmt.Sprintf(unmerged, 2), nil,
			[]Kind{KindCounters, KindOffsets, KindOrphan}, []Kind{KindCounters, KindOffsets}},
		{"a run lost", "DELETE FROM runs WHERE base = (SELECT max(base) FROM runs WHERE slot = 0) AND slot = 0", nil,
			[]Kind{KindOffsets, KindRefs}, []Kind{KindOffsets}},
		{"a run's counters", "UPDATE runs SET bytes = -5 WHERE slot = 1 AND base = (SELECT max(base) FROM runs WHERE slot = 1)", nil,
			[]Kind{KindCounters}, []Kind{KindCounters}},
		{"a run's length", "UPDATE runs SET raw = raw + 1 WHERE slot = 1 AND base = (SELECT max(base) FROM runs WHERE slot = 1)", nil,
			[]Kind{KindCounters}, []Kind{KindCounters}},
		{"a run's place", "UPDATE runs SET position = position + 1 WHERE slot = 1 AND base = (SELECT max(base) FROM runs WHERE slot = 1)", nil,
			[]Kind{KindCorrupt}, []Kind{KindCorrupt}},
		{"an object's row lost", "DELETE FROM objects WHERE state = 1 AND key LIKE 'run/%'", nil, []Kind{KindRefs}, nil},
		{"an object forgotten too early", "UPDATE objects SET state = 3, refs = -1 WHERE key = (SELECT object FROM runs LIMIT 1)", nil,
			[]Kind{KindCondemned}, []Kind{KindCondemned}},
		{"references of all", "UPDATE objects SET refs = 0, state = 2 WHERE state = 1", nil, []Kind{KindRefs}, nil},
		{"a payload lost", "DELETE FROM inline WHERE flush IN (SELECT flush FROM level0 WHERE object = '' LIMIT 1)", nil, []Kind{KindMissing}, []Kind{KindMissing}},
		{"a payload's byte", "UPDATE inline SET payload = zeroblob(length(payload)) WHERE flush IN (SELECT flush FROM level0 WHERE object = '' LIMIT 1)", nil,
			[]Kind{KindCorrupt}, []Kind{KindCorrupt}},
		{"a payload too many", "INSERT INTO inline (flush, size, payload) VALUES (x'00000000000000000000000000000001', 3, x'010203')", nil, []Kind{KindOrphan}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 2, nil)
			c := r.compactor(Options{})
			for range 2 {
				r.some(12)
				r.must(c.MergeEverything(t.Context()))
				r.must(c.Release(t.Context()))
			}
			// One object and payloads after it, to be sure of each kind of row.
			r.write(false, part{0, [][]byte{r.batchOf(1, 0, "k", "v")}}, part{1, [][]byte{r.batchOf(1, 0, "k", "v")}})
			for range 3 {
				r.write(true, part{0, [][]byte{r.batchOf(1, 0, "k", "v")}})
			}
			r.clock.advance(time.Hour)
			r.fsck()
			r.damage(tt.query, tt.args...)
			r.clock.advance(time.Minute)
			rep := check(r)
			if got := kinds(rep.Problems); !slices.Equal(got, tt.found) || rep.Unrepaired != rep.ProblemCount {
				t.Errorf("found %v, want %v: %+v", got, tt.found, rep.Problems)
			}
			rep = r.repair()
			left := slices.DeleteFunc(slices.Clone(rep.Problems), func(p Problem) bool { return p.Repaired != "" })
			if got := kinds(left); !slices.Equal(got, tt.unmended) || rep.Unrepaired != len(left) || rep.ProblemCount != len(rep.Problems) {
				t.Errorf("not mended %v, want %v: %+v", got, tt.unmended, rep.Problems)
			}
			r.clock.advance(time.Minute)
			if got := kinds(check(r).Problems); !slices.Equal(got, tt.unmended) {
				t.Errorf("after the repair %v, want %v", got, tt.unmended)
			}
		})
	}
}

// TestDamagedBlockAlone: a row that cannot be read holds up its block only.
func TestDamagedBlockAlone(t *testing.T) {
	r := newRig(t, 70, nil) // two blocks
	r.some(60)
	other := r.topic.Partitions[69].Block
	r.damage("UPDATE level0 SET photo = x'ff00ff' WHERE place = (SELECT max(place) FROM level0 WHERE place >> 40 = ?)", int64(r.topic.Partitions[0].Block))
	c := r.compactor(Options{})
	if err := c.MergeEverything(t.Context()); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("merge: %v", err)
	}
	r.must(c.Retention(t.Context()))
	page, err := r.driver.Backlog(t.Context(), other-1, 1)
	r.must(err)
	if page[0].Unmerged() != 0 {
		t.Errorf("%d rows of the other block are not merged", page[0].Unmerged())
	}
}

// live runs fsck with --repair over and over beside two compactors, a producer, DeleteRecords and key compaction: it finds
// nothing, and mends nothing that was right.
func live(t *testing.T, r *rig, stores func(i int) (metadata.Compaction, *metadata.Store), rounds int) {
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for i := range 2 {
		d, store := stores(i)
		c, err := New(Options{Holder: fmt.Sprint(i), Driver: d, Store: store, Bucket: r.bucket, Config: Config{GCGrace: time.Nanosecond}})
		r.must(err)
		busy.Go(func() {
			for ctx.Err() == nil {
				for _, j := range c.jobs() {
					run := j.run
					if j.name == jobMerge {
						run = c.MergeEverything
					}
					if err := run(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, metadata.ErrFenced) {
						t.Errorf("%s: %v", j.name, err)
						return
					}
				}
			}
		})
	}
	checks := make(chan *Report)
	d, store := stores(2)
	busy.Go(func() {
		defer close(checks)
		for range rounds {
			rep, err := Check(ctx, CheckOptions{Driver: d, Store: store, Bucket: r.bucket, Repair: true})
			if err != nil {
				t.Errorf("fsck: %v", err)
				return
			}
			checks <- rep
		}
	})
	moving := int64(0)
	for n := 0; ; n++ {
		r.some(2)
		place := r.topic.Partitions[n%len(r.want)]
		if before := metadata.Offset(len(r.want[n%len(r.want)]) / 2); before > 0 {
			_, err := r.store.DeleteRecords(t.Context(), []metadata.DeleteRecords{{Partition: metadata.PartitionID{Block: place.Block, Slot: place.Slot}, Before: before}})
			r.must(err)
		}
		select {
		case rep, ok := <-checks:
			if !ok {
				stop()
				busy.Wait()
				t.Logf("%d flushes, %d rows or objects changed while they were looked at", 2*n, moving)
				return
			}
			moving += rep.Moving
			for _, p := range rep.Problems {
				t.Errorf("%+v", p)
			}
		default:
		}
	}
}

func TestFsckBesideAgents(t *testing.T) {
	r := newRig(t, 66, nil)
	live(t, r, func(int) (metadata.Compaction, *metadata.Store) { return r.driver, r.store }, 40)
	r.settle(r.compactor(Options{Holder: "last"}))
	if rep := r.fsck(); rep.Waiting != 0 || rep.Uncommitted != 0 || rep.Inline != 0 {
		t.Errorf("left: %+v", rep)
	}
}

func TestFsckBesideAgentsOnPostgres(t *testing.T) {
	open := onPostgres(t)
	r := newRigOn(t, &clock{}, open(), 66, nil)
	live(t, r, func(int) (metadata.Compaction, *metadata.Store) {
		d := open()
		return d, metadata.NewStore(metadata.Options{Driver: d})
	}, 12)
	c := r.compactor(Options{Holder: "last", Config: Config{GCGrace: time.Nanosecond}})
	for range 2 {
		for _, j := range c.jobs() {
			if j.name == jobMerge {
				j.run = c.MergeEverything
			}
			r.must(j.run(t.Context()))
		}
	}
	r.fsck()
}
