package metadatatest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// RunCompaction runs the suite of what the compactor needs of a driver; open makes an empty database.
func RunCompaction(t *testing.T, open func(t *testing.T) Database) {
	for _, test := range []struct {
		name string
		run  func(e *env)
	}{
		{"Leases", testLeases},
		{"Backlog", testBacklog},
		{"Swap", testSwap},
		{"SwapFenced", testSwapFenced},
		{"Release", testRelease},
		{"ReleaseShared", testReleaseShared},
		{"Rewrite", testRewrite},
		{"RetentionStarts", testRetentionStarts},
		{"DropRuns", testDropRuns},
		{"DropBlock", testDropBlock},
		{"Condemn", testCondemn},
		{"CountReferences", testCountReferences},
		{"GCState", testGCState},
		{"Cleaned", testCleaned},
		{"Stall", testStall},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(&env{T: t, db: open(t)}) })
	}
}

func (e *env) compaction() metadata.Compaction {
	e.Helper()
	d, ok := e.db.Driver(e.T).(metadata.Compaction)
	if !ok {
		e.Fatal("the driver has no compaction")
	}
	return d
}

// lease takes a block's lease.
func (e *env) lease(d metadata.Compaction, id metadata.BlockID) metadata.Lease {
	e.Helper()
	l, ok, err := d.AcquireLease(e.Context(), metadata.BlockLease(id), "test", time.Minute)
	e.must(err)
	if !ok {
		e.Fatalf("lease of block %d is held", id)
	}
	return l
}

func (e *env) backlogOf(d metadata.Compaction, id metadata.BlockID) metadata.BacklogRow {
	e.Helper()
	page, err := d.Backlog(e.Context(), id-1, 1)
	e.must(err)
	if len(page) != 1 || page[0].Row.ID != id {
		e.Fatalf("backlog of block %d: %+v", id, page)
	}
	return page[0]
}

// runOf is a run of a partition in an object.
func runOf(p metadata.Partition, base, last metadata.Offset, key metadata.ObjectKey, maxTS metadata.Millis, bytes int64) metadata.RunRow {
	return metadata.RunRow{
		Block: p.Block, Slot: p.Slot, Base: base, Last: last, Object: key, Position: 16, Length: 100, MaxTS: maxTS, RunningMaxTS: maxTS,
		Bytes: bytes, Level: 1, Raw: 200, ObjectSize: 1000,
	}
}

// swap registers the keys of the runs and swaps them in.
func (e *env) swap(d metadata.Compaction, s metadata.SwapSave) {
	e.Helper()
	seen := map[metadata.ObjectKey]bool{}
	for _, r := range s.Add {
		if !seen[r.Object] {
			seen[r.Object] = true
			e.must(d.RegisterObjects(e.Context(), []metadata.ObjectRow{{Key: r.Object, Size: r.ObjectSize}}))
		}
	}
	e.must(d.Swap(e.Context(), s))
}

func testLeases(e *env) {
	d := e.compaction()
	ctx := e.Context()
	a := e.lease(d, 1)
	if _, ok, err := d.AcquireLease(ctx, metadata.BlockLease(1), "other", time.Minute); err != nil || ok {
		e.Fatalf("a held lease was given: %v", err)
	}
	b, err := d.RenewLease(ctx, a, time.Hour)
	e.must(err)
	if b.Expires <= a.Expires || b.Token != a.Token {
		e.Errorf("renewed %+v to %+v", a, b)
	}
	e.must(d.ReleaseLease(ctx, b))
	c := e.lease(d, 1)
	if c.Token <= a.Token {
		e.Errorf("token %d after %d", c.Token, a.Token)
	}
	if _, err := d.RenewLease(ctx, b, time.Minute); !errors.Is(err, metadata.ErrFenced) {
		e.Errorf("renewing a lost lease: %v", err)
	}
	e.must(d.ReleaseLease(ctx, b)) // of nobody's business
	if _, ok, err := d.AcquireLease(ctx, metadata.BlockLease(1), "other", time.Minute); err != nil || ok {
		e.Errorf("a lost lease that was released freed its successor's: %v", err)
	}
	// Only one of many gets it when it runs out.
	if _, ok, err := d.AcquireLease(ctx, "x", "short", 0); err != nil || !ok {
		e.Fatal(ok, err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	winners := 0
	for i := range 8 {
		wg.Go(func() {
			_, ok, err := d.AcquireLease(ctx, "x", fmt.Sprint(i), time.Minute)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				e.Errorf("%d: %v", i, err)
			}
			if ok {
				winners++
			}
		})
	}
	wg.Wait()
	if winners != 1 {
		e.Errorf("%d holders", winners)
	}
}

func testBacklog(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 66).Partitions
	if b := e.backlogOf(d, p[0].Block); b.Unmerged() != 0 || b.Last != 0 || b.First != 0 || b.Oldest != 0 || b.Photo.MaxTS[0] != metadata.NoTimestamp {
		e.Errorf("empty block: %+v", b)
	}
	for range 5 {
		e.one(s, p[0], plain(2))
	}
	b := e.backlogOf(d, p[0].Block)
	if b.Unmerged() != 5 || b.UnmergedBytes() != 700 || b.First != 1 || b.Oldest == 0 || b.LastTime < b.Oldest || b.Checkpoint != 0 {
		e.Errorf("%+v", b)
	}
	seq, err := s.Checkpoint(e.Context(), p[0].Block)
	e.must(err)
	if b = e.backlogOf(d, p[0].Block); seq != 5 || b.Checkpoint != 5 {
		e.Errorf("checkpoint %d, %+v", seq, b)
	}
	rows, err := d.LoadRows(e.Context(), p[0].Block, 2, 2)
	e.must(err)
	if len(rows) != 2 || rows[0].Seq != 3 || rows[1].Photo.Next[p[0].Slot] != 8 {
		e.Errorf("rows above 2: %+v", rows)
	}
	page, err := d.Backlog(e.Context(), 0, 10)
	e.must(err)
	if len(page) != 2 || page[1].Row.ID != p[65].Block {
		e.Errorf("%d blocks", len(page))
	}
	places, err := d.PlacesOf(e.Context(), []metadata.BlockID{p[65].Block})
	e.must(err)
	if len(places) != 2 || places[1].Index != 65 || places[1].Slot != p[65].Slot || places[1].Topic.IsZero() {
		e.Errorf("places %+v", places)
	}
}

func testSwap(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	for range 4 {
		e.commit(s, e.flush(s, of(p[0], plain(2)), of(p[1], plain(1))))
	}
	before := e.view(s, p[0].Block)
	l := e.lease(d, p[0].Block)
	e.swap(d, metadata.SwapSave{Lease: l, Block: p[0].Block, From: 0, To: 3, MergedBytes: 630, Add: []metadata.RunRow{
		runOf(p[0], 0, 5, "run", 10, 420), runOf(p[1], 0, 2, "run", 10, 210),
	}})
	s.Changed(p[0].Block)
	v := e.view(s, p[0].Block)
	if v.Row.MergedSeq != 3 || v.Row.Version != before.Row.Version+1 || v.HighWatermark(p[0].Slot) != 8 {
		e.Errorf("view %+v", v.Row)
	}
	if o, ok := e.db.Object(e.T, "run"); !ok || o.State != metadata.ObjectLive || o.Refs != 2 || o.Size != 1000 {
		e.Errorf("object %+v", o)
	}
	b := e.backlogOf(d, p[0].Block)
	if b.Unmerged() != 1 || b.UnmergedBytes() != 210 {
		e.Errorf("backlog %d rows, %d bytes", b.Unmerged(), b.UnmergedBytes())
	}
	for _, store := range []*metadata.Store{s, e.store()} {
		found, err := store.Locate(e.Context(), []metadata.LocateQuery{{Block: p[0].Block, Slot: p[0].Slot, Offset: 1, MaxRows: 5, MaxBytes: 1 << 20}})
		e.must(err)
		if len(found[0]) != 2 || !found[0][0].Run || found[0][0].ObjectSize != 1000 || found[0][1].Run || found[0][1].Base != 6 {
			e.Errorf("located %+v", found[0])
		}
	}
	runs, err := d.LoadRuns(e.Context(), p[0].Block, p[0].Slot, 1, 10)
	e.must(err)
	if len(runs) != 1 || runs[0] != runOf(p[1], 0, 2, "run", 10, 210) {
		e.Errorf("runs from (0, 1) on: %+v", runs)
	}
	tail, err := d.TailRuns(e.Context(), p[0].Block, 1)
	e.must(err)
	if len(tail) != 2 || tail[0].Slot != p[0].Slot {
		e.Errorf("newest runs: %+v", tail)
	}
	e.expect("after it", e.one(s, p[0], plain(1)), metadata.CodeAccepted, 8)
}

// testSwapFenced: nothing of a refused swap is there.
func testSwapFenced(e *env) {
	d := e.compaction()
	ctx := e.Context()
	s := e.store()
	p := e.topic(s, "t", 1).Partitions
	for range 4 {
		e.one(s, p[0], plain(1))
	}
	id := p[0].Block
	old := e.lease(d, id)
	e.must(d.ReleaseLease(ctx, old))
	l := e.lease(d, id)
	register := func(key metadata.ObjectKey) []metadata.RunRow {
		e.must(d.RegisterObjects(ctx, []metadata.ObjectRow{{Key: key, Size: 1}}))
		return []metadata.RunRow{runOf(p[0], 0, 3, key, 1, 280)}
	}
	condemned := register("condemned")
	e.db.SetObject(e.T, metadata.ObjectRow{Key: "condemned", State: metadata.ObjectCondemned})
	for _, tt := range []struct {
		name string
		swap metadata.SwapSave
		want error
	}{
		{"lost lease", metadata.SwapSave{Lease: old, Block: id, To: 4, Add: register("a")}, metadata.ErrFenced},
		{"merged seq", metadata.SwapSave{Lease: l, Block: id, From: 1, To: 4, Add: register("b")}, metadata.ErrFenced},
		{"no such block", metadata.SwapSave{Lease: l, Block: id + 7, To: 4, Add: register("c")}, metadata.ErrFenced},
		{"no such run", metadata.SwapSave{Lease: l, Block: id, Add: register("d"), Remove: []metadata.RunRow{runOf(p[0], 0, 3, "x", 1, 280)}}, metadata.ErrFenced},
		{"condemned", metadata.SwapSave{Lease: l, Block: id, To: 4, Add: condemned}, metadata.ErrCondemned},
		{"not registered", metadata.SwapSave{Lease: l, Block: id, To: 4, Add: []metadata.RunRow{runOf(p[0], 0, 3, "nowhere", 1, 280)}}, metadata.ErrCondemned},
	} {
		if err := d.Swap(ctx, tt.swap); !errors.Is(err, tt.want) {
			e.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if b := e.backlogOf(d, id); b.Row.MergedSeq != 0 {
			e.Errorf("%s: merged up to %d", tt.name, b.Row.MergedSeq)
		}
		if runs, err := d.LoadRuns(ctx, id, 0, 0, 10); err != nil || len(runs) != 0 {
			e.Errorf("%s: runs %+v, %v", tt.name, runs, err)
		}
	}
	if o, _ := e.db.Object(e.T, "a"); o.State != metadata.ObjectRegistered || o.Refs != 0 {
		e.Errorf("object of a refused swap: %+v", o)
	}
	if err := d.RegisterObjects(ctx, []metadata.ObjectRow{{Key: "a"}}); err == nil {
		e.Error("a key was registered twice")
	}
}

// testRelease: rows give up their references in steps; the newest row stays; objects become garbage, payloads go.
func testRelease(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 1).Partitions
	for i := range 3 {
		e.commit(s, e.flush(s, of(p[0], plain(1))))
		e.commit(s, e.uploaded(s, metadata.ObjectKey(fmt.Sprint("seg", i)), of(p[0], plain(1))))
	}
	resident, err := d.InlineResident(e.Context())
	e.must(err)
	if n, err := d.ReleaseRows(e.Context(), p[0].Block, 10); err != nil || n != 0 {
		e.Fatalf("%d rows released before they were merged, %v", n, err)
	}
	l := e.lease(d, p[0].Block)
	e.must2(s.Checkpoint(e.Context(), p[0].Block))
	e.swap(d, metadata.SwapSave{Lease: l, Block: p[0].Block, To: 6, MergedBytes: 420, Add: []metadata.RunRow{runOf(p[0], 0, 5, "run", 1, 420)}})
	for i, want := range []int{4, 2, 0} {
		n, err := d.ReleaseRows(e.Context(), p[0].Block, 4)
		e.must(err)
		if n != want {
			e.Errorf("step %d released %d rows, want %d", i, n, want)
		}
	}
	if n := e.db.Count(e.T, "level0"); n != 1 {
		e.Errorf("%d rows left, want the newest", n)
	}
	if n := e.db.Count(e.T, "inline"); n != 0 {
		e.Errorf("%d payloads left", n)
	}
	if now, err := d.InlineResident(e.Context()); err != nil || resident == 0 || now != 0 {
		e.Errorf("resident %d, then %d, %v", resident, now, err)
	}
	for i := range 3 {
		if o, _ := e.db.Object(e.T, metadata.ObjectKey(fmt.Sprint("seg", i))); o.State != metadata.ObjectGarbage || o.Refs != 0 {
			e.Errorf("object %d: %+v", i, o)
		}
	}
	// The log goes on, and the row that stayed goes without giving up its reference twice.
	cold := e.store()
	e.expect("after it", e.one(cold, p[0], plain(1)), metadata.CodeAccepted, 6)
	e.swap(d, metadata.SwapSave{Lease: l, Block: p[0].Block, From: 6, To: 7, MergedBytes: 490, Add: []metadata.RunRow{runOf(p[0], 6, 6, "run2", 1, 490)}})
	e.must2(d.ReleaseRows(e.Context(), p[0].Block, 4))
	if n := e.db.Count(e.T, "level0"); n != 1 {
		e.Errorf("%d rows left", n)
	}
	if o, _ := e.db.Object(e.T, "run"); o.Refs != 1 {
		e.Errorf("the run's object: %+v", o)
	}
}

// must2 is must for a call whose first result is of no interest.
func (e *env) must2(_ any, err error) {
	e.Helper()
	e.must(err)
}

// testReleaseShared: objects and payloads that several blocks' rows name go with the last of them, also when two compactors
// are at it at once.
func testReleaseShared(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 129).Partitions
	three := []metadata.Partition{p[0], p[64], p[128]}
	const flushes = 20
	for i := range flushes {
		pieces := func() (list []piece) {
			for _, x := range three {
				list = append(list, of(x, plain(1)))
			}
			return list
		}
		e.commit(s, e.flush(s, pieces()...))
		e.commit(s, e.uploaded(s, metadata.ObjectKey(fmt.Sprint("seg", i)), pieces()...))
	}
	merge := func(x metadata.Partition) {
		e.must2(s.Checkpoint(e.Context(), x.Block))
		e.swap(d, metadata.SwapSave{Lease: e.lease(d, x.Block), Block: x.Block, To: 2 * flushes, Add: []metadata.RunRow{
			runOf(x, 0, 2*flushes-1, metadata.ObjectKey(fmt.Sprint("run", x.Block)), 1, 70),
		}})
	}
	merge(three[0])
	e.must2(d.ReleaseRows(e.Context(), three[0].Block, 1000))
	if n := e.db.Count(e.T, "inline"); n != flushes {
		e.Errorf("%d payloads, two blocks still need them", n)
	}
	if o, _ := e.db.Object(e.T, "seg3"); o.Refs != 2 || o.State != metadata.ObjectLive {
		e.Errorf("object %+v", o)
	}
	merge(three[1])
	merge(three[2])
	var wg sync.WaitGroup
	for _, x := range three[1:] {
		wg.Go(func() {
			for n := 1; n > 0; {
				var err error
				if n, err = d.ReleaseRows(e.Context(), x.Block, 3); err != nil {
					e.Errorf("block %d: %v", x.Block, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := e.db.Count(e.T, "inline"); n != 0 {
		e.Errorf("%d payloads left", n)
	}
	for i := range flushes {
		if o, _ := e.db.Object(e.T, metadata.ObjectKey(fmt.Sprint("seg", i))); o.Refs != 0 || o.State != metadata.ObjectGarbage {
			e.Errorf("object %d: %+v", i, o)
		}
	}
}

func testRewrite(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 1).Partitions
	e.one(s, p[0], plain(10))
	l := e.lease(d, p[0].Block)
	a, b, c := runOf(p[0], 0, 3, "a", 1, 100), runOf(p[0], 4, 6, "b", 1, 200), runOf(p[0], 7, 9, "b", 1, 300)
	e.swap(d, metadata.SwapSave{Lease: l, Block: p[0].Block, To: 1, Add: []metadata.RunRow{a, b, c}})
	version := e.backlogOf(d, p[0].Block).Row.Version
	e.swap(d, metadata.SwapSave{
		Lease: l, Block: p[0].Block, From: 1, To: 1, Remove: []metadata.RunRow{a, b}, Add: []metadata.RunRow{runOf(p[0], 0, 6, "ab", 1, 200)},
		Cleaned: &metadata.CleanedRow{Block: p[0].Block, Slot: p[0].Slot, UpTo: 7},
	})
	runs, err := d.LoadRuns(e.Context(), p[0].Block, 0, 0, 10)
	e.must(err)
	if len(runs) != 2 || runs[0].Object != "ab" || runs[1] != c {
		e.Errorf("runs %+v", runs)
	}
	for key, want := range map[metadata.ObjectKey]metadata.ObjectRow{
		"a": {State: metadata.ObjectGarbage}, "b": {State: metadata.ObjectLive, Refs: 1}, "ab": {State: metadata.ObjectLive, Refs: 1},
	} {
		if o, _ := e.db.Object(e.T, key); o.State != want.State || o.Refs != want.Refs {
			e.Errorf("object %s: %+v", key, o)
		}
	}
	if v := e.backlogOf(d, p[0].Block).Row.Version; v != version {
		e.Errorf("rewriting runs changed the block's version from %d to %d", version, v)
	}
	// Left where it is, with another level: the same key is taken and given back.
	left := c
	left.Level = 0
	e.must(d.Swap(e.Context(), metadata.SwapSave{Lease: l, Block: p[0].Block, From: 1, To: 1, Remove: []metadata.RunRow{c}, Add: []metadata.RunRow{left}}))
	if o, _ := e.db.Object(e.T, "b"); o.State != metadata.ObjectLive || o.Refs != 1 {
		e.Errorf("object b: %+v", o)
	}
}

func testCleaned(e *env) {
	d := e.compaction()
	want := metadata.CleanedRow{Block: 3, Slot: 7, UpTo: 10, Bytes: 11, Horizon: 12}
	e.must(d.SaveCleaned(e.Context(), want))
	want.UpTo = 20
	e.must(d.SaveCleaned(e.Context(), want))
	got, err := d.Cleaned(e.Context(), 3)
	e.must(err)
	if len(got) != 1 || got[0].At == 0 {
		e.Fatalf("%+v", got)
	}
	want.At = got[0].At
	if got[0] != want {
		e.Errorf("%+v, want %+v", got[0], want)
	}
}

// testStall: over the bound commits take longer, and are counted.
func testStall(e *env) {
	s := e.storeWith(metadata.Options{MaxUnmerged: 4})
	p := e.topic(s, "t", 1).Partitions
	for range 4 {
		e.one(s, p[0], plain(1))
	}
	if n := s.Stalls(); n != 0 || s.Stalled() != 0 {
		e.Errorf("%d commits held up within the bound", n)
	}
	if n := s.Unmerged(); n != 4 { // seen before anybody is slowed
		e.Errorf("%d unmerged rows, want 4", n)
	}
	began := time.Now()
	e.one(s, p[0], plain(1))
	if n, took := s.Stalls(), time.Since(began); n != 1 || took < 200*time.Millisecond || s.Stalled() != 250*time.Millisecond {
		e.Errorf("%d commits held up, the last took %s", n, took)
	}
}
