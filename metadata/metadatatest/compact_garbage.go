package metadatatest

import (
	"errors"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

func testRetentionStarts(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	e.commit(s, e.flush(s, of(p[0], plain(40)), of(p[1], plain(1))))
	e.swap(d, metadata.SwapSave{Lease: e.lease(d, p[0].Block), Block: p[0].Block, To: 1, Add: []metadata.RunRow{
		runOf(p[0], 0, 9, "a", 100, 100), runOf(p[0], 10, 19, "b", 300, 200), runOf(p[0], 20, 29, "c", 200, 300), runOf(p[0], 30, 39, "d", 400, 400),
	}})
	const none = -1
	for _, tt := range []struct {
		start, want  metadata.Offset
		cutoff       metadata.Millis
		keep         int64
		slot         metadata.Slot
		what         string
		partitionTwo bool
	}{
		{want: -1, cutoff: none, keep: none, what: "no rule"},
		{want: -1, cutoff: 100, keep: none, what: "nothing is old enough"},
		{want: 10, cutoff: 101, keep: none, what: "one run"},
		{want: 10, cutoff: 250, keep: none, what: "a younger run shields an older one behind it"},
		{want: 30, cutoff: 301, keep: none, what: "three"},
		{want: 40, cutoff: 1000, keep: none, what: "all"},
		{want: -1, cutoff: none, keep: 0, what: "nothing is too much"},
		{want: 10, cutoff: none, keep: 100, what: "first"},
		{want: 10, cutoff: none, keep: 199, what: "a run that is needed in part stays"},
		{want: 40, cutoff: none, keep: 400, what: "all by size"},
		{want: 20, cutoff: 101, keep: 200, what: "the later of both"},
		{start: 25, want: -1, cutoff: 101, keep: none, what: "behind the log's start"},
		{start: 25, want: 30, cutoff: 201, keep: none, what: "from the log's start on"},
	} {
		got, err := d.RetentionStarts(e.Context(), []metadata.RetentionQuery{
			{Block: p[1].Block, Slot: p[1].Slot, Cutoff: 1000, KeepBytes: 1000}, // has no runs
			{Block: p[0].Block, Slot: p[0].Slot, LogStart: tt.start, Cutoff: tt.cutoff, KeepBytes: tt.keep},
		})
		e.must(err)
		if len(got) != 2 || got[0] != -1 || got[1] != tt.want {
			e.Errorf("%s: %v, want %d", tt.what, got, tt.want)
		}
	}
}

func testDropRuns(e *env) {
	d := e.compaction()
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	e.commit(s, e.flush(s, of(p[0], plain(40)), of(p[1], plain(10))))
	e.swap(d, metadata.SwapSave{Lease: e.lease(d, p[0].Block), Block: p[0].Block, To: 1, Add: []metadata.RunRow{
		runOf(p[0], 0, 9, "a", 1, 100), runOf(p[0], 10, 19, "a", 1, 200), runOf(p[0], 20, 29, "a", 1, 300), runOf(p[0], 30, 39, "b", 1, 400),
		runOf(p[1], 0, 9, "b", 1, 100),
	}})
	changed, err := d.MoveLogStarts(e.Context(), []metadata.LogStart{{Block: p[0].Block, Slot: p[0].Slot, Offset: 25}, {Block: p[0].Block + 9, Offset: 4}})
	e.must(err)
	if len(changed) != 1 || changed[0] != p[0].Block {
		e.Errorf("changed %v", changed)
	}
	if changed, err = d.MoveLogStarts(e.Context(), []metadata.LogStart{{Block: p[0].Block, Slot: p[0].Slot, Offset: 24}}); err != nil || len(changed) != 0 {
		e.Errorf("moved back: %v, %v", changed, err)
	}
	if v := e.view(e.store(), p[0].Block); v.LogStart(p[0].Slot) != 25 || v.LogStart(p[1].Slot) != 0 {
		e.Errorf("log starts %d, %d", v.LogStart(p[0].Slot), v.LogStart(p[1].Slot))
	}
	below := []metadata.RunsBelow{{Block: p[0].Block, Slot: p[0].Slot, Below: 25}, {Block: p[1].Block, Slot: p[1].Slot, Below: 9}}
	for i, want := range []struct {
		count int
		from  metadata.Offset
	}{{1, 10}, {1, 20}, {0, 20}} {
		if err := d.DropRuns(e.Context(), below, 1); err != nil || below[0].Count != want.count || below[0].From != want.from ||
			below[1].Count != 0 || below[1].From != 0 {
			e.Errorf("step %d: %+v, want %+v; %v", i, below, want, err)
		}
	}
	if o, _ := e.db.Object(e.T, "a"); o.Refs != 1 || o.State != metadata.ObjectLive {
		e.Errorf("object a %+v", o)
	}
	below = []metadata.RunsBelow{{Block: p[0].Block, Slot: p[0].Slot, From: below[0].From, Below: 40}}
	if err := d.DropRuns(e.Context(), below, 100); err != nil || below[0].Count != 2 || below[0].From != 40 {
		e.Errorf("%+v, %v", below, err)
	}
	if err := d.DropRuns(e.Context(), below, 100); err != nil || below[0].Count != 0 || below[0].From != 40 {
		e.Errorf("nothing left: %+v, %v", below, err)
	}
	if o, _ := e.db.Object(e.T, "a"); o.Refs != 0 || o.State != metadata.ObjectGarbage {
		e.Errorf("object a %+v", o)
	}
	if o, _ := e.db.Object(e.T, "b"); o.Refs != 1 || o.State != metadata.ObjectLive {
		e.Errorf("object b %+v", o)
	}
}

func testDropBlock(e *env) {
	d := e.compaction()
	s := e.store()
	own := e.topic(s, "own", 64).Partitions
	small := e.topic(s, "small", 1).Partitions
	e.one(s, own[5], plain(1))
	e.one(s, small[0], plain(1))
	drop := func(what string, id metadata.BlockID, want bool) {
		e.Helper()
		gone, err := d.DropBlocks(e.Context(), []metadata.BlockID{small[0].Block, id, 1 << 30})
		if err != nil || slices.Contains(gone, id) != want || len(gone) > 1 {
			e.Errorf("%s: %v, want %v; %v", what, gone, want, err)
		}
	}
	drop("in use", own[0].Block, false)
	_, errs, err := s.DeleteTopics(e.Context(), []metadata.TopicRef{{Name: "own"}, {Name: "small"}})
	e.must(append(errs, err)...)
	drop("not merged", own[0].Block, false)
	for _, x := range []metadata.BlockID{own[0].Block, small[0].Block} {
		e.must(d.Swap(e.Context(), metadata.SwapSave{Lease: e.lease(d, x), Block: x, To: 1}))
		e.must2(d.ReleaseRows(e.Context(), x, 10))
	}
	drop("free slots", small[0].Block, false)
	drop("all gone", own[0].Block, true)
	drop("twice", own[0].Block, false)
	if n := e.db.Count(e.T, "level0"); n != 1 {
		e.Errorf("%d rows", n)
	}
	if v, err := e.store().View(e.Context(), own[0].Block); err != nil || v != nil {
		e.Errorf("view of a dropped block %v, %v", v, err)
	}
	r := e.commit(e.store(), e.flush(s, of(own[5], plain(1))))
	e.expect("commit to a dropped block", r[0], metadata.CodeUnknownPartition, -1)
}

func testCondemn(e *env) {
	d := e.compaction()
	ctx := e.Context()
	s := e.store()
	p := e.topic(s, "t", 1).Partitions
	e.db.SetObject(e.T, metadata.ObjectRow{Key: "garbage", Size: 5, State: metadata.ObjectGarbage})
	e.db.SetObject(e.T, metadata.ObjectRow{Key: "live", Size: 5, Refs: 1, State: metadata.ObjectLive})
	e.must(d.RegisterObjects(ctx, []metadata.ObjectRow{{Key: "registered", Size: 5}}))
	if n, err := d.Condemn(ctx, time.Hour, 10); err != nil || n != 1 {
		e.Errorf("condemned %d, %v", n, err)
	}
	if n, err := d.Condemn(ctx, -time.Hour, 10); err != nil || n != 1 {
		e.Errorf("condemned %d that were registered long ago, %v", n, err)
	}
	unknown, err := d.CondemnUnknown(ctx, []metadata.ObjectRow{{Key: "live"}, {Key: "orphan", Size: 7}, {Key: "garbage"}})
	e.must(err)
	if len(unknown) != 1 || unknown[0] != "orphan" {
		e.Errorf("unknown %v", unknown)
	}
	for _, key := range []metadata.ObjectKey{"garbage", "registered", "orphan"} {
		f := e.uploaded(s, key, of(p[0], plain(1)))
		if _, err := s.Commit(ctx, []*metadata.Flush{f}); !errors.Is(err, metadata.ErrCondemned) {
			e.Errorf("commit of %s: %v", key, err)
		}
	}
	if list, err := d.Condemned(ctx, time.Hour, 10); err != nil || len(list) != 0 {
		e.Errorf("deletable within the grace: %v, %v", list, err)
	}
	list, err := d.Condemned(ctx, -time.Hour, 10)
	e.must(err)
	if len(list) != 3 {
		e.Errorf("deletable: %+v", list)
	}
	var keys []metadata.ObjectKey
	for _, o := range list {
		keys = append(keys, o.Key)
	}
	e.must(d.ObjectsDeleted(ctx, append(keys, "live")))
	if list, err := d.Condemned(ctx, -time.Hour, 10); err != nil || len(list) != 0 {
		e.Errorf("to be deleted twice: %v, %v", list, err)
	}
	f := e.uploaded(s, "orphan", of(p[0], plain(1)))
	if _, err := s.Commit(ctx, []*metadata.Flush{f}); !errors.Is(err, metadata.ErrCondemned) {
		e.Errorf("commit of a deleted key: %v", err)
	}
	if old, err := d.OldCondemned(ctx, time.Hour, 10); err != nil || len(old) != 0 {
		e.Errorf("forgotten too early: %v, %v", old, err)
	}
	old, err := d.OldCondemned(ctx, -time.Hour, 10)
	e.must(err)
	if n, err := d.ForgetObjects(ctx, append(old, "live")); err != nil || len(old) != 3 || n != 3 {
		e.Errorf("forgot %d of %v, %v", n, old, err)
	}
	all, err := d.ListObjects(ctx, "", 10)
	e.must(err)
	if len(all) != 1 || all[0].Key != "live" || all[0].Refs != 1 {
		e.Errorf("objects left: %+v", all)
	}
	was := all[0]
	wrong := was
	wrong.Refs = 4
	if ok, err := d.SetObject(ctx, wrong, 0, metadata.ObjectGarbage); err != nil || ok {
		e.Errorf("corrected what was not so: %v, %v", ok, err)
	}
	wrong = was
	wrong.Changed--
	if ok, err := d.SetObject(ctx, wrong, 0, metadata.ObjectGarbage); err != nil || ok {
		e.Errorf("corrected what has changed since: %v, %v", ok, err)
	}
	if ok, err := d.SetObject(ctx, was, 0, metadata.ObjectGarbage); err != nil || !ok {
		e.Errorf("not corrected: %v", err)
	}
}

// testCountReferences: what names an object is counted by rows and runs, without what was released; inline payloads know
// whether a row needs them.
func testCountReferences(e *env) {
	d, s := e.compaction(), e.store()
	p := e.topic(s, "t", 1).Partitions
	f := e.flush(s, of(p[0], plain(1)))
	f.Object, f.ObjectSize = "x", 10
	e.commit(s, f)
	e.one(s, p[0], plain(1)) // inline
	e.must(d.RegisterObjects(e.Context(), []metadata.ObjectRow{{Key: "run", Size: 7}}))
	keys := []metadata.ObjectKey{"run", "nobody", "x"}
	expect := func(run, x int, inline bool) {
		e.Helper()
		found, err := d.CountReferences(e.Context(), keys)
		e.must(err)
		if len(found) != 3 || found[0].Named != run || found[0].Refs != run || !found[0].Known || found[0].Size != 7 ||
			found[1].Named != 0 || found[1].Known || found[2].Named != x || found[2].Refs != x || !found[2].Known || found[2].Key != "x" {
			e.Errorf("%+v", found)
		}
		list, err := d.ListInline(e.Context(), metadata.FlushID{}, 10)
		e.must(err)
		if len(list) != 1 || list[0].Named != inline {
			e.Errorf("payloads %+v", list)
		}
	}
	expect(0, 1, true)
	lease := e.lease(d, p[0].Block)
	e.must(d.Swap(e.Context(), metadata.SwapSave{
		Lease: lease, Block: p[0].Block, To: 1, Add: []metadata.RunRow{runOf(p[0], 0, 0, "run", 1, 1)},
	}))
	expect(1, 1, true)
	e.must2(d.ReleaseRows(e.Context(), p[0].Block, 10))
	expect(1, 0, true)
}

func testGCState(e *env) {
	d := e.compaction()
	g, err := d.GCState(e.Context())
	e.must(err)
	if g.Generation != 0 || g.Halted != "" || g.System != "" || g.NowSystem == "" || g.Moved() {
		e.Errorf("at first %+v", g)
	}
	n, err := d.NextGC(e.Context())
	e.must(err)
	if n.Generation != 1 || n.System != n.NowSystem || n.Timeline != n.NowTimeline || n.Moved() {
		e.Errorf("after a pass %+v", n)
	}
	n.Halted, n.Generation, n.System = "because", 9, "another"
	e.must(d.SetGC(e.Context(), n))
	g, err = d.GCState(e.Context())
	e.must(err)
	if g.Halted != "because" || g.Generation != 9 || !g.Moved() {
		e.Errorf("halted %+v", g)
	}
}
