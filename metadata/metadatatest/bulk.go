package metadatatest

import (
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// testBulk fills a block with a million rows and a partition with a million runs, and asserts that queries search by
// index: by their plans, and by doing them.
func testBulk(e *env) {
	n := 1_000_000
	if testing.Short() {
		n = 50_000
	}
	s := e.store()
	p := e.topic(s, "t", 64*2).Partitions
	rows, merged := p[0], p[64]
	const slot = 0 // the slot of both
	// Whole photographs for the rows that are decoded: the last ones and every thousandth.
	whole := func(i int) bool { return i%1000 < 2 || i >= n-600 }
	start := time.Now()
	e.db.FillRows(e.T, n, func(i int) (*metadata.Row, int) {
		r := &metadata.Row{Block: rows.Block, Seq: metadata.Seq(i + 1), Time: metadata.Millis(i + 1), Photo: metadata.EmptyPhoto()}
		r.Flush[0], r.Flush[12], r.Flush[13], r.Flush[14], r.Flush[15] = 1, byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
		b := plain(2)
		b.MaxTimestamp, b.Flags = metadata.Millis(10*i), metadata.FlagAccepted
		r.Touched = []metadata.Touched{{Slot: slot, Length: b.Length, RawLength: b.Length, Batches: []metadata.Batch{b}}}
		r.Photo.Next[slot], r.Photo.MaxTS[slot], r.Photo.Bytes[slot] = metadata.Offset(2*(i+1)), b.MaxTimestamp, 140*int64(i+1)
		if whole(i) {
			return r, metadata.PhotoSize
		}
		return r, metadata.PhotoSize / metadata.SlotsPerBlock
	})
	e.Logf("%d rows filled in in %v", n, time.Since(start))
	start = time.Now()
	e.db.FillRuns(e.T, n, func(i int) metadata.RunRow {
		return metadata.RunRow{
			Block: merged.Block, Slot: slot, Base: metadata.Offset(2 * i), Last: metadata.Offset(2*i + 1), Object: "o", Position: int64(i),
			Length: 10, MaxTS: metadata.Millis(10 * i), RunningMaxTS: metadata.Millis(10 * i), Bytes: 20 * int64(i), Level: 1,
		}
	})
	e.db.Merge(e.T, merged.Block, 1, nil)
	e.Logf("%d runs filled in in %v", n, time.Since(start))

	l := &layout{env: e}
	for i := 0; i < n; i += n / 10 {
		e.locateBulk(s, rows, metadata.Offset(2*i+1), metadata.Millis(10*i-5))
		e.locateBulk(s, merged, metadata.Offset(2*i+1), metadata.Millis(10*i-5))
	}
	var queries []metadata.LocateQuery
	for range 200 {
		for _, at := range []metadata.Partition{rows, merged} {
			queries = append(queries, metadata.LocateQuery{Block: at.Block, Slot: slot, Offset: metadata.Offset(n), MaxRows: 1})
		}
	}
	start = time.Now()
	got, err := s.Locate(e.Context(), queries)
	e.must(err)
	e.Logf("%d offsets located in %v", len(queries), time.Since(start))
	for i := range got {
		if len(got[i]) != 1 || got[i][0].Base != metadata.Offset(n) {
			l.Fatalf("query %d: %+v", i, got[i])
		}
	}
	e.bulkCommits(rows, n)
	e.db.CheckPlans(e.T)
}

// locateBulk asks for one offset and for one time; both are in the same extent.
func (e *env) locateBulk(s *metadata.Store, at metadata.Partition, offset metadata.Offset, ts metadata.Millis) {
	e.Helper()
	byOffset, err := s.Locate(e.Context(), []metadata.LocateQuery{
		{Block: at.Block, Slot: at.Slot, Offset: offset, MaxRows: 2, MaxBytes: 1 << 20},
	})
	e.must(err)
	byTime, err := s.LocateTime(e.Context(), []metadata.LocateTimeQuery{
		{Block: at.Block, Slot: at.Slot, Timestamp: ts, MaxRows: 2},
	})
	e.must(err)
	for _, got := range [][]metadata.Located{byOffset[0], byTime[0]} {
		if len(got) != 2 || got[0].Base != offset-1 || got[0].End != offset+1 || got[1].Base != offset+1 {
			e.Fatalf("offset %d, time %d: %+v", offset, ts, got)
		}
	}
}

// bulkCommits commits to the full block: a Store that is near its end reads what is new and no more.
func (e *env) bulkCommits(at metadata.Partition, n int) {
	d := e.db.Driver(e.T)
	start := time.Now()
	l, err := d.LoadBlocks(e.Context(), []metadata.BlockSeq{{Block: at.Block, Seq: metadata.Seq(n - 501)}})
	e.must(err)
	if len(l.Blocks[0].Rows) != 501 {
		e.Fatalf("%d rows above seq %d", len(l.Blocks[0].Rows), n-501)
	}
	state := metadata.NewState(l.Blocks[0].Row)
	state.Seq, state.Photo = metadata.Seq(n-500), l.Blocks[0].Rows[0].Photo
	for _, r := range l.Blocks[0].Rows[1:] {
		e.must(state.Apply(r))
	}
	e.must(d.SaveCheckpoint(e.Context(), at.Block, state.Seq, state.AppendCheckpoint(nil)))
	e.Logf("500 rows loaded, folded and a checkpoint saved in %v", time.Since(start))
	s := e.storeWith(metadata.Options{Driver: d})
	start = time.Now()
	for i := range 20 {
		e.expect("commit to a full block", e.one(s, at, plain(1)), metadata.CodeAccepted, metadata.Offset(2*n+i))
	}
	e.Logf("20 commits to a block of %d rows in %v", n, time.Since(start))
}
