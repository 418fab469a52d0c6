package compactor

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// TestMemoryBound merges flushes of which each block has one as large as a job, one batch of 64 MiB, and one flush larger than a
// job, and weighs what is alive at every step: it stays within what one job may take.
func TestMemoryBound(t *testing.T) {
	const blocks = 8
	r := newRig(t, blocks*metadata.SlotsPerBlock, nil)
	disk, err := objstore.OpenFile(t.TempDir())
	r.must(err)
	r.faults = objstore.NewFaults(disk)
	r.bucket.Bucket = r.faults
	batch := func(size int) []byte {
		b := record.NewBuilder()
		b.Append(1, nil, bytes.Repeat([]byte("what compresses well, so that it counts decoded only. "), size/54))
		data, err := b.Build()
		r.must(err)
		return data
	}
	write := func(parts ...part) {
		res, err := r.store.Commit(t.Context(), []*metadata.Flush{r.flush(false, parts...)})
		r.must(err)
		r.must(res[0].Err)
	}
	large, huge := batch(40<<20), batch(64<<20)
	for b := range blocks {
		write(part{b * metadata.SlotsPerBlock, [][]byte{large}})
	}
	write(part{1, [][]byte{huge}})
	write(part{2, [][]byte{large}}, part{3, [][]byte{large}}, part{4, [][]byte{large}}, part{metadata.SlotsPerBlock + 1, [][]byte{large}})
	for range 20 {
		write(part{5, [][]byte{batch(100)}}, part{metadata.SlotsPerBlock + 5, [][]byte{batch(100)}})
	}
	alive := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := alive()
	peak, portions := int64(0), 0
	c := r.compactor(Options{Crash: func(p Point) error {
		peak = max(peak, alive()-before)
		if p == PointPut {
			portions++
		}
		return nil
	}})
	r.must(c.MergeEverything(t.Context()))
	if bound := int64(jobCopies * jobBytes); peak > bound {
		t.Errorf("%d MiB were alive, bound %d", peak>>20, bound>>20)
	}
	t.Logf("%d MiB alive at most, %d objects", peak>>20, portions)
	runtime.KeepAlive(large)
	runtime.KeepAlive(huge)
	rep := r.fsck()
	if rep.Batches < blocks+5 || rep.Runs == 0 {
		t.Errorf("%d batches in %d runs", rep.Batches, rep.Runs)
	}
}

// TestGate: jobs wait for memory, and one that wants more than there is gets all of it.
func TestGate(t *testing.T) {
	r := newRig(t, 1, nil)
	g := r.compactor(Options{Config: Config{LargestExtent: 1 << 30}}).memory
	if want := int64(jobCopies << 30); g.size != want || MemoryBound(1<<30) <= want {
		t.Fatalf("%d bytes, want %d", g.size, want)
	}
	done, err := g.take(t.Context(), 1<<50)
	r.must(err)
	if g.sem.TryAcquire(1) {
		t.Fatal("there is memory left")
	}
	got := make(chan error)
	go func() {
		done, err := g.take(t.Context(), 5)
		if err == nil {
			done()
		}
		got <- err
	}()
	done()
	r.must(<-got)
	if !g.sem.TryAcquire(g.size) {
		t.Error("memory was not given back")
	}
}

// TestPlanPortions: a merge is one portion unless it is larger than a job, and none is larger than a job or one extent.
func TestPlanPortions(t *testing.T) {
	of := func(sizes ...int64) *merging {
		m := &merging{}
		for _, n := range sizes {
			m.inputs = append(m.inputs, &input{blob: blob{raw: n << 20}, touched: &metadata.Touched{}})
		}
		return m
	}
	for _, tt := range []struct {
		list []*merging
		want string
	}{
		{[]*merging{of(1, 2), of(3), of(50)}, "[[1 2] [3] [50]]"},
		{[]*merging{of(1, 70, 2), of(3)}, "[[1]] [[70]] [[2] [3]]"},
		{[]*merging{of(40, 40, 20, 40), of(10, 40)}, "[[40]] [[40 20]] [[40] [10]] [[40]]"},
		{[]*merging{of(100), of()}, "[[100] []]"},
	} {
		var got string
		total := 0
		for _, p := range portions(tt.list) {
			var list [][]int64
			for _, x := range p {
				sizes := []int64{}
				for _, in := range x.inputs {
					sizes = append(sizes, in.raw>>20)
					total++
				}
				list = append(list, sizes)
			}
			got += fmt.Sprint(" ", list)
		}
		if got != " "+tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
	}
}

// TestAllowance: each block has its share, a first row may be more where there is room, and one row always goes.
func TestAllowance(t *testing.T) {
	x := allowance{share: jobBytes / 4}
	for i, tt := range []struct {
		n    int64
		rows int
		next bool // block
		want bool
	}{
		{10, 0, false, true}, {8, 1, false, false}, {6, 1, false, true}, {1, 2, false, false},
		{40, 0, true, true}, {1, 1, false, false}, {40, 0, true, false}, {8, 0, true, true},
	} {
		if tt.next {
			x.block = 0
		}
		if got := x.take(tt.n<<20, tt.rows); got != tt.want {
			t.Errorf("%d: %v", i, got)
		}
	}
	alone := allowance{share: jobBytes / 4}
	if !alone.take(10*jobBytes, 0) || alone.take(1, 1) {
		t.Error("a row larger than a job")
	}
}

// TestLate: the limit of bandwidth does not count while a block nears the write stall or rows are old.
func TestLate(t *testing.T) {
	c := Config{MaxUnmerged: 1000}.withDefaults()
	const now = metadata.Millis(1 << 40)
	for i, tt := range []struct {
		b    backlog
		want bool
	}{
		{backlog{}, false},
		{backlog{worst: 500, oldest: now - 1000}, false},
		{backlog{worst: 501, oldest: now - 1000}, true},
		{backlog{worst: 1, oldest: now.Add(-lateAges * c.MergeAge)}, false},
		{backlog{worst: 1, oldest: now.Add(-lateAges*c.MergeAge) - 1}, true},
	} {
		if got := c.late(&tt.b, now); got != tt.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}
