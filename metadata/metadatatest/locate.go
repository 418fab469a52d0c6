package metadatatest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/skeinio/skein/metadata"
)

// extent is where the model says that offsets of a partition are.
type extent struct {
	base, end metadata.Offset
	maxTS     metadata.Millis
	size      int64
	flush     metadata.FlushID // zero in a run
	object    metadata.ObjectKey
}

// layout is a block full of commits, and what the model knows of them.
type layout struct {
	*env
	s       *metadata.Store
	parts   []metadata.Partition
	extents [][]extent // by partition
	runs    []int      // how many of the extents are runs, by partition
}

// newLayout commits random batches to three partitions of one block: a busy one, a slow one, and one that is written at
// the beginning and the end only. Timestamps go up and down.
func newLayout(e *env, seed uint64, commits int) *layout {
	random := rand.New(rand.NewPCG(seed, 0))
	l := &layout{env: e, s: e.store(), extents: make([][]extent, 3), runs: make([]int, 3)}
	l.parts = e.topic(l.s, fmt.Sprint("t", seed), 3).Partitions
	for i := range commits {
		touched := []int{0}
		if i%7 == 3 {
			touched = append(touched, 1)
		}
		if i < 2 || i > commits-3 {
			touched = append(touched, 2)
		}
		var pieces []piece
		for _, j := range touched {
			x := of(l.parts[j])
			for range 1 + random.IntN(2) {
				b := plain(1 + random.Int32N(4))
				b.MaxTimestamp = metadata.Millis(10*i + random.IntN(200))
				x.batches = append(x.batches, b)
			}
			pieces = append(pieces, x)
		}
		f := e.flush(l.s, pieces...)
		results := e.commit(l.s, f)
		for k, j := range touched {
			x := extent{flush: f.ID, base: results[0].Base, end: results[0].Base, maxTS: metadata.NoTimestamp}
			for _, b := range f.Extents[k].Batches {
				x.end += metadata.Offset(b.Records)
				x.maxTS = max(x.maxTS, b.MaxTimestamp)
				x.size += int64(b.Length)
				results = results[1:]
			}
			l.extents[j] = append(l.extents[j], x)
		}
	}
	return l
}

// want gives the model's answer from offset on.
func (l *layout) want(part int, offset metadata.Offset, rows int, bytes int64) []extent {
	var found []extent
	var size int64
	for _, x := range l.extents[part] {
		if x.end <= offset {
			continue
		}
		if len(found) == rows || (len(found) > 0 && size+x.size > bytes) {
			break
		}
		size += x.size
		found = append(found, x)
	}
	return found
}

func (l *layout) compare(what string, part int, got []metadata.Located, want []extent) {
	l.Helper()
	if len(got) != len(want) {
		l.Fatalf("%s: %d extents, want %d: %+v, %+v", what, len(got), len(want), got, want)
	}
	for i, g := range got {
		w := want[i]
		if g.Base != w.base || g.End != w.end || g.MaxTS != w.maxTS || g.Flush != w.flush || g.Object != w.object || g.Length != w.size {
			l.Fatalf("%s: extent %d is %+v, want %+v", what, i, g, w)
		}
		if w.object != "" {
			continue
		}
		if g.RawLength != w.size || len(g.Batches) == 0 || g.Seq == 0 {
			l.Fatalf("%s: extent %d is %+v", what, i, g)
		}
	}
	_ = part
}

// checkLocate compares the answers for every offset, from the rows in memory where they reach and from the database.
func (l *layout) checkLocate(stores ...*metadata.Store) {
	l.Helper()
	for _, s := range stores {
		for part := range l.parts {
			for _, bound := range []struct {
				rows  int
				bytes int64
			}{{1, 1}, {3, 1 << 30}, {100, 500}, {1000, 1 << 30}} {
				l.locateAll(s, part, bound.rows, bound.bytes)
			}
		}
	}
}

func (l *layout) locateAll(s *metadata.Store, part int, rows int, bytes int64) {
	l.Helper()
	p := l.parts[part]
	end := l.extents[part][len(l.extents[part])-1].end
	var queries []metadata.LocateQuery
	for o := metadata.Offset(0); o <= end+1; o++ {
		queries = append(queries, metadata.LocateQuery{Block: p.Block, Slot: p.Slot, Offset: o, MaxRows: rows, MaxBytes: bytes})
	}
	got, err := s.Locate(l.Context(), queries)
	l.must(err)
	for i, q := range queries {
		l.compare(fmt.Sprintf("partition %d, offset %d, %d rows, %d bytes", part, q.Offset, rows, bytes), part,
			got[i], l.want(part, q.Offset, rows, bytes))
	}
}

func commitsFor(full int) int {
	if testing.Short() {
		return full / 5
	}
	return full
}

func testLocate(e *env) {
	l := newLayout(e, 1, commitsFor(300))
	warm := e.store()
	e.view(warm, l.parts[0].Block)
	l.checkLocate(l.s, warm, e.store())
	// A Store whose rows in memory begin in the middle.
	e.checkpoint(e.db.Driver(e.T), l.parts[0].Block, metadata.Seq(commitsFor(300)/2))
	middle := e.store()
	e.view(middle, l.parts[0].Block)
	l.checkLocate(middle)
	// Mixed with others, unsorted, and twice.
	p := l.parts
	got, err := e.store().Locate(e.Context(), []metadata.LocateQuery{
		{Block: p[2].Block, Slot: p[2].Slot, Offset: 3, MaxRows: 2, MaxBytes: 1 << 20},
		{Block: p[0].Block + 50, Slot: 1, Offset: 0, MaxRows: 2, MaxBytes: 1 << 20},
		{Block: p[0].Block, Slot: p[0].Slot, Offset: 9, MaxRows: 2, MaxBytes: 1 << 20},
		{Block: p[2].Block, Slot: p[2].Slot, Offset: 3, MaxRows: 2, MaxBytes: 1 << 20},
	})
	e.must(err)
	l.compare("first", 2, got[0], l.want(2, 3, 2, 1<<20))
	l.compare("unknown", 0, got[1], nil)
	l.compare("third", 0, got[2], l.want(0, 9, 2, 1<<20))
	l.compare("fourth", 2, got[3], l.want(2, 3, 2, 1<<20))
}

// wantTime gives the model's answer: from the first extent whose running maximum reaches the time.
func (l *layout) wantTime(part int, at metadata.Millis, offset metadata.Offset, rows int) []extent {
	running := metadata.NoTimestamp
	for _, x := range l.extents[part] {
		running = max(running, x.maxTS)
		if running >= at && x.end > offset {
			return l.want(part, max(offset, x.base), rows, 1<<60)
		}
	}
	return nil
}

func (l *layout) checkLocateTime(s *metadata.Store) {
	l.Helper()
	for part, p := range l.parts {
		end := l.extents[part][len(l.extents[part])-1].end
		var queries []metadata.LocateTimeQuery
		for at := metadata.Millis(-1); at < 3300; at += 13 {
			for _, offset := range []metadata.Offset{0, end / 2, end - 1, end} {
				queries = append(queries, metadata.LocateTimeQuery{
					Block: p.Block, Slot: p.Slot, Timestamp: at, Offset: offset, MaxRows: 1 + int(at+1)%4,
				})
			}
		}
		got, err := s.LocateTime(l.Context(), queries)
		l.must(err)
		for i, q := range queries {
			l.compare(fmt.Sprintf("partition %d, time %d from offset %d, %d rows", part, q.Timestamp, q.Offset, q.MaxRows), part,
				got[i], l.wantTime(part, q.Timestamp, q.Offset, q.MaxRows))
		}
	}
}

func testLocateTime(e *env) {
	l := newLayout(e, 2, commitsFor(300))
	l.checkLocateTime(l.s)
	l.checkLocateTime(e.store())
}

// merge turns the extents up to seq into runs of a few extents each.
func (l *layout) merge(seq metadata.Seq) {
	l.Helper()
	var runs []metadata.RunRow
	p := l.parts
	for part := range l.parts {
		old := l.extents[part][l.runs[part]:]
		merged := l.extents[part][:l.runs[part]:l.runs[part]]
		running, bytes := metadata.NoTimestamp, int64(0)
		for _, x := range merged {
			running, bytes = max(running, x.maxTS), bytes+x.size
		}
		for n := 0; len(old) > 0 && l.seqOf(part, old[0]) <= seq; n++ {
			run := old[0]
			run.flush, run.object = metadata.FlushID{}, metadata.ObjectKey(fmt.Sprintf("run-%d-%d", part, run.base))
			old = old[1:]
			for i := 0; i < n%4 && len(old) > 0 && l.seqOf(part, old[0]) <= seq; i++ {
				run.end, run.maxTS, run.size = old[0].end, max(run.maxTS, old[0].maxTS), run.size+old[0].size
				old = old[1:]
			}
			running, bytes = max(running, run.maxTS), bytes+run.size
			merged = append(merged, run)
			runs = append(runs, metadata.RunRow{
				Block: p[part].Block, Slot: p[part].Slot, Base: run.base, Last: run.end - 1, Object: run.object,
				Position: 7, Length: run.size, MaxTS: run.maxTS, RunningMaxTS: running, Bytes: bytes, Level: 1,
			})
		}
		l.runs[part] = len(merged)
		l.extents[part] = append(merged, old...)
	}
	l.checkpoint(l.db.Driver(l.T), p[0].Block, seq)
	l.db.Merge(l.T, p[0].Block, seq, runs)
}

// seqOf gives the seq of an extent's row, as another Store locates it.
func (l *layout) seqOf(part int, x extent) metadata.Seq {
	l.Helper()
	p := l.parts[part]
	got, err := l.s.Locate(l.Context(), []metadata.LocateQuery{{Block: p.Block, Slot: p.Slot, Offset: x.base, MaxRows: 1}})
	l.must(err)
	return got[0][0].Seq
}

func testLocateRuns(e *env) {
	n := commitsFor(200)
	l := newLayout(e, 3, n)
	stale := e.store()
	e.view(stale, l.parts[0].Block)
	for _, seq := range []int{n / 3, n / 2, n} {
		l.merge(metadata.Seq(seq))
		e.view(l.s, l.parts[0].Block)
		middle := e.store()
		e.view(middle, l.parts[0].Block)
		l.checkLocate(l.s, middle, e.store())
		if v := e.view(stale, l.parts[0].Block); v.Row.MergedSeq != metadata.Seq(seq) {
			e.Fatalf("view with merged seq %d, want %d", v.Row.MergedSeq, seq)
		}
	}
	// The newest row stays, so that the log goes on.
	e.expect("after all was merged", e.one(e.store(), l.parts[0], plain(1)), metadata.CodeAccepted,
		l.extents[0][len(l.extents[0])-1].end)
}

func testLocateTimeRuns(e *env) {
	n := commitsFor(200)
	l := newLayout(e, 4, n)
	for _, seq := range []int{n / 2, n} {
		l.merge(metadata.Seq(seq))
		l.checkLocateTime(e.store())
	}
}

// testMergedAway lets a Store go on that was behind when rows above its seq were merged and deleted.
func testMergedAway(e *env) {
	behind, ahead := e.store(), e.storeWith(metadata.Options{CheckpointRows: 10})
	p := e.topic(ahead, "t", 1).Partitions[0]
	ids, err := ahead.AllocateProducerIDs(e.Context(), 1)
	e.must(err)
	d := e.db.Driver(e.T)
	for i := range metadata.Sequence(40) {
		if i == 5 {
			e.view(behind, p.Block)
		}
		e.expect("batch", e.one(ahead, p, idempotent(ids.First, 0, i, 1)), metadata.CodeAccepted, metadata.Offset(i))
	}
	e.checkpoint(d, p.Block, 30)
	e.db.Merge(e.T, p.Block, 20, []metadata.RunRow{{
		Block: p.Block, Slot: p.Slot, Base: 0, Last: 19, Object: "run", Length: 1, MaxTS: metadata.NoTimestamp,
		RunningMaxTS: metadata.NoTimestamp, Level: 1,
	}})
	e.expect("retry at the one behind", e.one(behind, p, idempotent(ids.First, 0, 39, 1)), metadata.CodeDuplicate, 39)
	e.expect("next at the one behind", e.one(behind, p, idempotent(ids.First, 0, 40, 1)), metadata.CodeAccepted, 40)
	if hw := e.highWatermark(behind, p); hw != 41 {
		e.Fatalf("high watermark %d", hw)
	}
}
