package metadatatest

import (
	"context"
	"fmt"
	"sync"

	"github.com/skeinio/skein/metadata"
)

// watched is a Driver that tells of its checkpoints and of the seqs its loads began from.
type watched struct {
	metadata.Driver
	saved chan metadata.BlockSeq
	mu    sync.Mutex
	rows  int // loaded by LoadBlocks
}

func (d *watched) SaveCheckpoint(ctx context.Context, block metadata.BlockID, seq metadata.Seq, state []byte) error {
	err := d.Driver.SaveCheckpoint(ctx, block, seq, state)
	if err == nil && d.saved != nil {
		select {
		case d.saved <- metadata.BlockSeq{Block: block, Seq: seq}:
		case <-ctx.Done():
		}
	}
	return err
}

func (d *watched) LoadBlocks(ctx context.Context, known []metadata.BlockSeq) (*metadata.BlocksLoaded, error) {
	l, err := d.Driver.LoadBlocks(ctx, known)
	if err == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i := range l.Blocks {
			d.rows += len(l.Blocks[i].Rows)
		}
	}
	return l, err
}

// testColdStore compares a Store that folds from a checkpoint with the one that made all commits.
func testColdStore(e *env) {
	const rows, every = 110, 20
	d := &watched{Driver: e.db.Driver(e.T), saved: make(chan metadata.BlockSeq, rows)}
	warm := e.storeWith(metadata.Options{Driver: d, CheckpointRows: every})
	p := e.topic(warm, "t", 3).Partitions
	ids, err := warm.AllocateProducerIDs(e.Context(), 5)
	e.must(err)
	batch := func(i int) metadata.Batch {
		return idempotent(ids.First+metadata.ProducerID(i%5), 2, metadata.Sequence(i/5*2), 2)
	}
	for i := range rows {
		e.expect(fmt.Sprint("row ", i), e.one(warm, p[i%2], batch(i/2)), metadata.CodeAccepted, metadata.Offset(i/2*2))
	}
	e.run(warm) // writes what is queued
	ctx := e.within()
	for range rows / every {
		select {
		case <-d.saved:
		case <-ctx.Done():
			e.Fatal("checkpoints are not written")
		}
	}
	if n := e.db.Count(e.T, "checkpoints"); n != 2 {
		e.Errorf("%d checkpoints are kept, want the newest and the one before it", n)
	}
	d = &watched{Driver: e.db.Driver(e.T)}
	cold := e.storeWith(metadata.Options{Driver: d})
	got, want := e.view(cold, p[0].Block), e.view(warm, p[0].Block)
	if got.Seq != want.Seq || got.Photo != want.Photo || got.Row != want.Row {
		e.Fatalf("cold view at %d differs from the warm one at %d", got.Seq, want.Seq)
	}
	if d.rows >= 2*every {
		e.Errorf("the cold Store read %d rows, a checkpoint is written every %d", d.rows, every)
	}
	for i := rows - 25; i < rows; i++ { // more than half of these are older than the checkpoint
		for _, s := range []*metadata.Store{cold, warm} {
			e.expect(fmt.Sprint("retry of row ", i), e.one(s, p[i%2], batch(i/2)), metadata.CodeDuplicate, metadata.Offset(i/2*2))
		}
	}
	e.expect("a gap, cold", e.one(cold, p[0], batch(60)), metadata.CodeNotYet, -1)
	e.expect("the next, cold", e.one(cold, p[0], batch(55)), metadata.CodeAccepted, 110)
	e.expect("retry of that, warm", e.one(warm, p[0], batch(55)), metadata.CodeDuplicate, 110)

	// A checkpoint as of the newest row: there is nothing to fold on it.
	e.checkpoint(d, p[0].Block, e.view(warm, p[0].Block).Seq)
	d = &watched{Driver: e.db.Driver(e.T)}
	cold = e.storeWith(metadata.Options{Driver: d})
	if got, want = e.view(cold, p[0].Block), e.view(warm, p[0].Block); got.Seq != want.Seq || got.Photo != want.Photo || d.rows != 0 {
		e.Fatalf("from a checkpoint of the newest row: seq %d after %d rows, want %d", got.Seq, d.rows, want.Seq)
	}
	e.expect("retry on a checkpoint alone", e.one(cold, p[0], batch(55)), metadata.CodeDuplicate, 110)
	e.expect("the next on a checkpoint alone", e.one(cold, p[1], batch(55)), metadata.CodeAccepted, 110)
}

// checkpoint saves a checkpoint of a block as of seq, as a Store would.
func (e *env) checkpoint(d metadata.Driver, block metadata.BlockID, seq metadata.Seq) {
	e.Helper()
	l, err := d.LoadBlocks(e.Context(), []metadata.BlockSeq{{Block: block, Seq: metadata.SeqCold}})
	e.must(err)
	b := l.Blocks[0]
	state := metadata.NewState(b.Row)
	if b.Checkpoint != nil {
		state, err = metadata.FromCheckpoint(b.Row, b.Checkpoint.State)
		e.must(err)
	}
	for _, r := range b.Rows {
		if r.Seq <= seq {
			e.must(state.Apply(r))
		}
	}
	if state.Seq != seq {
		e.Fatalf("block %d cannot be folded to seq %d, only to %d", block, seq, state.Seq)
	}
	e.must(d.SaveCheckpoint(e.Context(), block, seq, state.AppendCheckpoint(nil)))
}

// testCheckpoints is SaveCheckpoint by itself.
func testCheckpoints(e *env) {
	d := e.db.Driver(e.T)
	s := e.storeWith(metadata.Options{Driver: d})
	p := e.topic(s, "t", 1).Partitions[0]
	for range 9 {
		e.one(s, p, plain(1))
	}
	load := func() *metadata.BlockDelta {
		e.Helper()
		l, err := d.LoadBlocks(e.Context(), []metadata.BlockSeq{{Block: p.Block, Seq: metadata.SeqCold}})
		e.must(err)
		return &l.Blocks[0]
	}
	if c := load(); c.Checkpoint != nil || len(c.Rows) != 9 {
		e.Fatalf("before the first checkpoint: %+v", c)
	}
	for i, save := range []struct {
		seq  metadata.Seq
		want metadata.Seq // newest afterwards
		kept int
	}{{3, 3, 1}, {3, 3, 1}, {5, 5, 2}, {2, 5, 2}, {7, 7, 2}, {9, 9, 2}} {
		e.must(d.SaveCheckpoint(e.Context(), p.Block, save.seq, []byte{byte(i)}))
		c := load()
		if c.Checkpoint == nil || c.Checkpoint.Seq != save.want || len(c.Rows) != 9-int(save.want) {
			e.Fatalf("after saving a checkpoint at %d: %+v, %d rows", save.seq, c.Checkpoint, len(c.Rows))
		}
		if same := c.Checkpoint.State[0] == byte(i); same == (i == 1 || i == 3) {
			e.Fatalf("after saving checkpoint %d: it holds %v", i, c.Checkpoint.State)
		}
		if n := e.db.Count(e.T, "checkpoints"); n != save.kept {
			e.Fatalf("after saving a checkpoint at %d: %d are kept, want %d", save.seq, n, save.kept)
		}
	}
	for known, want := range map[metadata.Seq]int{0: 9, 4: 5, 9: 0} {
		l, err := d.LoadBlocks(e.Context(), []metadata.BlockSeq{{Block: p.Block, Seq: known}})
		e.must(err)
		if b := l.Blocks[0]; b.Checkpoint != nil || len(b.Rows) != want {
			e.Errorf("above seq %d: checkpoint %v, %d rows, want %d", known, b.Checkpoint, len(b.Rows), want)
		}
	}
}

func testUnknownBlock(e *env) {
	s := e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	views, err := s.Views(e.Context(), []metadata.BlockID{p.Block + 7, p.Block})
	e.must(err)
	if views[0] != nil || views[1] == nil || views[1].Seq != 0 {
		e.Fatalf("views of an unknown and an empty block: %+v", views)
	}
	found, err := e.db.Driver(e.T).Locate(e.Context(), []metadata.LocateQuery{
		{Block: p.Block + 7, MaxRows: 1}, {Block: p.Block, MaxRows: 1},
	})
	e.must(err)
	if !found[0].Missing || found[1].Missing || len(found[1].Rows) != 0 {
		e.Fatalf("located in an unknown and an empty block: %+v", found)
	}
}

// testSmallCache lets a Store work whose cache holds next to nothing.
func testSmallCache(e *env) {
	s := e.storeWith(metadata.Options{FoldCacheBytes: 1})
	p := e.topic(s, "t", 64*4).Partitions
	for i := range 40 {
		f := e.flush(s, of(p[i%2*64], plain(1)), of(p[128], plain(1)), of(p[192+i%64], plain(1)))
		for j, r := range e.commit(s, f)[:2] {
			e.expect(fmt.Sprintf("commit %d, batch %d", i, j), r, metadata.CodeAccepted, metadata.Offset(i/(2-j)))
		}
		ids := []metadata.BlockID{p[0].Block, p[64].Block, p[128].Block, p[192].Block}
		views, err := s.Views(e.Context(), ids)
		e.must(err)
		for j, v := range views {
			if v == nil {
				e.Fatalf("commit %d: no view of block %d", i, ids[j])
			}
		}
		if hw := views[2].HighWatermark(p[128].Slot); hw != metadata.Offset(i+1) {
			e.Fatalf("commit %d: high watermark %d", i, hw)
		}
	}
}
