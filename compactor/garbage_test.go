package compactor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// TestRetention: records go by age, by size and by DeleteRecords, what nobody may read any more goes from the bucket, and
// what stays can be read.
func TestRetention(t *testing.T) {
	r := newRig(t, 3, map[string]string{"retention.ms": "7200000"})
	c := r.compactor(Options{})
	hour := func() {
		for i := range 3 {
			r.write(false, part{i, [][]byte{r.batchOf(r.clock.now().UnixMilli(), record.CodecNone, "k", fmt.Sprint(len(r.want[i])))}})
		}
		r.must(c.MergeEverything(t.Context()))
		r.clock.advance(time.Hour)
	}
	for range 6 {
		hour()
	}
	r.must(c.Retention(t.Context()))
	for i := range 3 {
		if got := r.read(r.store, i, 0); len(got) != 1 || got[0] != "5:k=5" {
			t.Errorf("partition %d: %v", i, got)
		}
	}
	place := r.topic.Partitions[1]
	_, err := r.store.DeleteRecords(t.Context(), []metadata.DeleteRecords{{Partition: metadata.PartitionID{Block: place.Block, Slot: place.Slot}, Before: 6}})
	r.must(err)
	r.settle(c) // hours pass
	if got := r.read(r.store, 1, 0); len(got) != 0 {
		t.Errorf("partition 1: %v", got)
	}
	if keys := r.keys(); len(keys) != 0 {
		t.Errorf("%d objects left of nothing", len(keys))
	}
	r.fsck()
	hour()
	if got := r.read(r.store, 0, 0); len(got) != 1 || got[0] != "6:k=6" {
		t.Errorf("the log goes on: %v", got)
	}

	r = newRig(t, 1, map[string]string{"retention.bytes": "300", "retention.ms": "-1"})
	c = r.compactor(Options{})
	for i := range 10 {
		r.write(i%2 == 0, part{0, [][]byte{r.batchOf(1, record.CodecNone, "k", fmt.Sprintf("%090d", i))}}) // 165 bytes
		r.must(c.MergeEverything(t.Context()))
	}
	r.must(c.Retention(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 2 {
		t.Errorf("%d records within 300 bytes", len(got))
	}
	r.settle(c)
	r.fsck()
}

// TestTopicDeletion: a deleted topic's bytes go; those of its neighbours in the same block and objects stay.
func TestTopicDeletion(t *testing.T) {
	r := newRig(t, 3, map[string]string{"retention.ms": "-1"})
	whole := r.create("whole", 64, nil) // blocks of its own
	c := r.compactor(Options{})
	r.some(20)
	stays := r.topic
	wants := r.want
	r.topic, r.want = r.create("gone", 2, nil), make([][]string, 2)
	r.some(20)
	r.must(c.MergeEverything(t.Context()))
	r.some(20)
	r.topic, r.want = whole, make([][]string, 64)
	r.some(20)
	_, errs, err := r.store.DeleteTopics(t.Context(), []metadata.TopicRef{{Name: "gone"}, {Name: "whole"}})
	r.must(errors.Join(append(errs, err)...))
	r.topic, r.want = stays, wants
	r.settle(c)
	r.check(r.store)
	r.fsck()
	r.must(c.eachBlock(t.Context(), func(page []metadata.BacklogRow) error {
		for _, b := range page {
			if b.Row.ID == whole.Partitions[0].Block {
				t.Error("the block of a deleted topic is there")
			}
			runs, err := r.driver.LoadRuns(t.Context(), b.Row.ID, 0, 0, 1000)
			for _, x := range runs {
				if b.Row.Deleted&(1<<x.Slot) != 0 {
					t.Errorf("run of a deleted partition: %+v", x)
				}
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

// TestOrphans: what no row ever named goes, by the bucket's dates, however wrong this process's clock is; other people's
// objects stay.
func TestOrphans(t *testing.T) {
	r := newRig(t, 1, nil)
	r.some(5)
	c := r.compactor(Options{})
	put := func(key string) {
		r.must(r.bucket.Put(t.Context(), key, objstore.Bytes([]byte("x")), objstore.PutOptions{}))
	}
	put("seg/00/orphan")
	put("run/00/orphan")
	put("backup/of/somebody")
	collect := func() {
		r.must(c.Orphans(t.Context()))
		r.must(c.Garbage(t.Context()))
	}
	// The bucket's clock is the rig's; this process's stands hours behind it after a while.
	collect()
	if n := len(r.keys()); n < 2 {
		t.Fatalf("%d keys: young objects are gone", n)
	}
	for range 2 {
		r.clock.advance(2 * time.Hour)
		collect()
	}
	for _, key := range []string{"seg/00/orphan", "run/00/orphan"} {
		if _, ok := find(r.keys(), key); ok {
			t.Errorf("%s is still there", key)
		}
	}
	if _, err := r.bucket.Head(t.Context(), "backup/of/somebody"); err != nil {
		t.Error(err)
	}
	r.check(r.store)
	r.fsck()
}

// TestHalt: nothing is deleted by a database that is behind the bucket's marker, or another one, until fsck releases it.
func TestHalt(t *testing.T) {
	for name, m := range map[string]marker{
		"behind":  {Generation: 99},
		"another": {Generation: 1, System: "another"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, nil)
			r.some(10)
			c := r.compactor(Options{})
			g, err := r.driver.GCState(t.Context())
			r.must(err)
			if m.System == "" {
				m.System = g.NowSystem
			}
			data, err := json.Marshal(m)
			r.must(err)
			r.must(r.bucket.Put(t.Context(), markerKey, objstore.Bytes(data), objstore.PutOptions{}))
			r.must(c.MergeEverything(t.Context()))
			r.must(c.Release(t.Context()))
			r.must(c.Garbage(t.Context()))
			before := len(r.keys())
			r.clock.advance(3 * time.Hour)
			for range 2 {
				if err := c.Garbage(t.Context()); !errors.Is(err, ErrHalted) {
					t.Fatalf("garbage collection: %v", err)
				}
			}
			if n := len(r.keys()); n != before {
				t.Fatalf("%d objects, there were %d", n, before)
			}
			if rep := check(r); rep.Unrepaired != 1 || rep.Problems[0].Kind != KindHalted {
				t.Fatalf("fsck: %+v", rep.Problems)
			}
			rep, err := Check(t.Context(), CheckOptions{Driver: r.driver, Store: r.store, Bucket: r.bucket, Repair: true})
			r.must(err)
			if rep.Unrepaired != 0 || rep.ProblemCount != 1 {
				t.Fatalf("fsck --repair: %+v", rep.Problems)
			}
			r.fsck()
			r.must(c.Garbage(t.Context()))
			if n := len(r.keys()); n >= before {
				t.Errorf("%d objects after the release, there were %d", n, before)
			}
			r.check(r.store)
		})
	}
}

// TestRepair: fsck finds each kind of damage to the database and mends what loses nothing.
func TestRepair(t *testing.T) {
	r := newRig(t, 2, nil)
	r.some(30)
	c := r.compactor(Options{})
	r.must(c.MergeEverything(t.Context()))
	r.must(c.Release(t.Context()))
	r.some(10)
	r.clock.advance(time.Hour)
	live := func() metadata.ObjectListing {
		list, err := r.driver.ListObjects(t.Context(), "", 1000)
		r.must(err)
		for _, o := range list {
			if o.State == metadata.ObjectLive {
				return o
			}
		}
		t.Fatal("no live object")
		return metadata.ObjectListing{}
	}
	set := func(o metadata.ObjectListing, change func(*metadata.ObjectRow)) {
		now := o.ObjectRow
		change(&now)
		if ok, err := r.driver.SetObject(t.Context(), o, now.Refs, now.State); err != nil || !ok {
			t.Fatal(ok, err)
		}
		r.clock.advance(time.Minute)
	}
	for _, tt := range []struct {
		name   string
		damage func()
		kind   Kind
	}{
		{"too many references", func() { set(live(), func(o *metadata.ObjectRow) { o.Refs += 3 }) }, KindRefs},
		{"too few references", func() { set(live(), func(o *metadata.ObjectRow) { o.Refs, o.State = 0, metadata.ObjectGarbage }) }, KindRefs},
		{"condemned though named", func() { set(live(), func(o *metadata.ObjectRow) { o.State = metadata.ObjectCondemned }) }, KindCondemned},
		{"orphan", func() {
			r.must(r.bucket.Put(t.Context(), "seg/00/x", objstore.Bytes([]byte("xyz")), objstore.PutOptions{}))
			r.clock.advance(time.Hour)
			if rep := r.fsck(); rep.Uncommitted != 1 || rep.UncommittedBytes != 3 { // as a dead agent's
				t.Errorf("%+v", rep)
			}
			r.clock.advance(orphansKept)
		}, KindOrphan},
	} {
		r.fsck()
		tt.damage()
		rep := check(r)
		if rep.Unrepaired != 1 || rep.Problems[0].Kind != tt.kind || rep.Problems[0].Bytes == 0 {
			t.Errorf("%s: %+v", tt.name, rep.Problems)
		}
		rep, err := Check(t.Context(), CheckOptions{Driver: r.driver, Store: r.store, Bucket: r.bucket, Repair: true})
		r.must(err)
		if rep.Unrepaired != 0 || rep.ProblemCount != 1 || rep.Problems[0].Repaired == "" {
			t.Errorf("%s, repaired: %+v", tt.name, rep.Problems)
		}
		r.clock.advance(time.Minute)
	}
	r.fsck()
	r.settle(c)
	r.check(r.store)
	// Every byte of a run counts.
	key := r.keys()[0]
	data, err := objstore.ReadAll(t.Context(), r.bucket, key, 1<<30)
	r.must(err)
	for _, at := range []int{20, len(data) / 2, len(data) - 30} {
		broken := bytes.Clone(data)
		broken[at] ^= 4
		r.must(r.bucket.Put(t.Context(), key, objstore.Bytes(broken), objstore.PutOptions{}))
		if rep := check(r); rep.Unrepaired == 0 || rep.Problems[0].Kind != KindCorrupt {
			t.Errorf("byte %d: %+v", at, rep.Problems)
		}
	}
	r.must(r.bucket.Delete(t.Context(), key))
	missing := 0
	rep := check(r)
	for _, p := range rep.Problems {
		if p.Kind == KindMissing {
			missing++
		}
	}
	if missing == 0 || missing != rep.Unrepaired {
		t.Errorf("a lost object: %+v", rep.Problems)
	}
	if _, err := json.Marshal(rep); err != nil {
		t.Error(err)
	}
}

// TestPlanRemerge: runs are rewritten about once for each tier, and become long.
func TestPlanRemerge(t *testing.T) {
	var runs []metadata.RunRow
	var written, in int64
	next := metadata.Offset(0)
	for range 20_000 {
		const raw = 40 << 10
		runs = append(runs, metadata.RunRow{Base: next, Last: next, Raw: raw, Level: 1})
		next++
		in += raw
		for {
			tail := runs[max(0, len(runs)-tailRuns):]
			x, ok := planRemerge(tail, bounds{raw: runBytes}, jobBytes)
			if !ok {
				break
			}
			if x.raw > runBytes {
				t.Fatalf("a run of %d bytes", x.raw)
			}
			at := int(x.runs[0].Base)
			made := metadata.RunRow{Base: x.runs[0].Base, Last: x.runs[len(x.runs)-1].Last, Raw: x.raw, Level: 2}
			var rest []metadata.RunRow
			for _, r := range runs {
				if int(r.Base) < at || r.Base > made.Last {
					rest = append(rest, r)
				} else if int(r.Base) == at {
					rest = append(rest, made)
				}
			}
			runs = rest
			written += x.raw
		}
	}
	covered := metadata.Offset(0)
	for _, r := range runs {
		if r.Base != covered {
			t.Fatalf("run at %d, want %d", r.Base, covered)
		}
		covered = r.Last + 1
	}
	if covered != next {
		t.Errorf("covered up to %d of %d", covered, next)
	}
	long := in/runBytes*2 + 40
	if int64(len(runs)) > long {
		t.Errorf("%d runs for %d MiB", len(runs), in>>20)
	}
	if amplification := float64(written) / float64(in); amplification > 6 {
		t.Errorf("rewritten %.1f times", amplification)
	}
	t.Logf("%d MiB: %d runs, rewritten %.2f times", in>>20, len(runs), float64(written)/float64(in))
}
