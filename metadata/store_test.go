package metadata

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memDriver keeps blocks in memory. Its hooks come between the reading of a view and its return.
type memDriver struct {
	Driver
	mu          sync.Mutex
	blocks      map[BlockID]*BlockDelta // all rows, and the newest checkpoint
	loads       int
	afterLoad   func() // of LoadBlocks, once
	expire      []int  // results of ExpireReceipts
	expired     []time.Time
	notified    []Event
	notifiedAt  []time.Time
	resident    int64
	saved       []BlockSeq
	failCommit  error
	commitsDone int
}

func newMemDriver(blocks ...BlockID) *memDriver {
	d := &memDriver{blocks: map[BlockID]*BlockDelta{}}
	for _, id := range blocks {
		d.blocks[id] = &BlockDelta{Row: BlockRow{ID: id, Version: 1}}
	}
	return d
}

func (d *memDriver) deltas(known []BlockSeq) []BlockDelta {
	var out []BlockDelta
	for _, k := range known {
		b := d.blocks[k.Block]
		if b == nil {
			continue
		}
		delta := BlockDelta{Row: b.Row}
		from := k.Seq
		if k.Seq == SeqCold {
			delta.Checkpoint, from = b.Checkpoint, 0
			if b.Checkpoint != nil {
				from = b.Checkpoint.Seq
			}
		}
		for _, r := range b.Rows {
			if r.Seq > from {
				delta.Rows = append(delta.Rows, r)
			}
		}
		out = append(out, delta)
	}
	return out
}

func (d *memDriver) LoadBlocks(_ context.Context, known []BlockSeq) (*BlocksLoaded, error) {
	d.mu.Lock()
	d.loads++
	loaded := &BlocksLoaded{Now: 1000, Blocks: d.deltas(known)}
	hook := d.afterLoad
	d.afterLoad = nil
	d.mu.Unlock()
	if hook != nil {
		hook()
	}
	return loaded, nil
}

func (d *memDriver) Commit(_ context.Context, load CommitLoad, decide func(*CommitLoaded) (*CommitSave, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	save, err := decide(&CommitLoaded{Now: 1000, Blocks: d.deltas(load.Blocks)})
	if err != nil {
		return err
	}
	if d.failCommit != nil {
		return d.failCommit
	}
	d.commitsDone++
	for _, r := range save.Rows {
		b := d.blocks[r.Block]
		b.Rows = append(b.Rows, r)
	}
	return nil
}

func (d *memDriver) SaveCheckpoint(_ context.Context, block BlockID, seq Seq, state []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blocks[block].Checkpoint = &Checkpoint{Seq: seq, State: state}
	d.saved = append(d.saved, BlockSeq{block, seq})
	return nil
}

func (d *memDriver) Listen(ctx context.Context, fn func(Event)) error {
	fn(Event{All: true})
	<-ctx.Done()
	return ctx.Err()
}

func (d *memDriver) Notify(_ context.Context, e Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notified, d.notifiedAt = append(d.notified, e), append(d.notifiedAt, time.Now())
	return nil
}

func (d *memDriver) PruneAborted(context.Context, PartitionID, int, int) (PartitionID, int, error) {
	return PartitionID{}, 0, nil
}

func (d *memDriver) ExpireTxns(context.Context, time.Duration, int) (int, error) { return 0, nil }

func (d *memDriver) ExpireReceipts(_ context.Context, _ time.Duration, limit int) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expired = append(d.expired, time.Now())
	if len(d.expire) == 0 {
		return 0, errors.New("no more")
	}
	n := d.expire[0]
	d.expire = d.expire[1:]
	return min(n, limit), nil
}

func (d *memDriver) InlineResident(context.Context) (int64, error) { return d.resident, nil }

func (d *memDriver) LoadTopics(context.Context, CatalogueVersion) (*TopicsLoaded, error) {
	return &TopicsLoaded{}, nil
}

// write commits one record to slot 0 of each block.
func write(t *testing.T, s *Store, blocks ...BlockID) error {
	t.Helper()
	id, err := NewFlushID()
	if err != nil {
		t.Fatal(err)
	}
	f := &Flush{ID: id, Seen: 1000, Object: "o"}
	for _, b := range blocks {
		f.Extents = append(f.Extents, Extent{Block: b, Batches: []Batch{{Records: 1, Length: 1, Producer: NoProducer}}})
	}
	_, err = s.Commit(t.Context(), []*Flush{f})
	return err
}

func mustWrite(t *testing.T, s *Store, blocks ...BlockID) {
	t.Helper()
	if err := write(t, s, blocks...); err != nil {
		t.Fatal(err)
	}
}

func mustView(t *testing.T, s *Store, id BlockID) *View {
	t.Helper()
	v, err := s.View(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestViewNeverGoesBack: a cold load's answer is older than a commit that came between, and the fold is cold again when
// it arrives.
func TestViewNeverGoesBack(t *testing.T) {
	d := newMemDriver(1)
	other := NewStore(Options{Driver: d})
	for range 3 {
		mustWrite(t, other, 1)
	}
	s := NewStore(Options{Driver: d})
	lost := errors.New("lost")
	d.afterLoad = func() {
		mustWrite(t, s, 1) // published at seq 4
		d.failCommit = lost
		if err := write(t, s, 1); !errors.Is(err, lost) { // and forgotten
			t.Error(err)
		}
		d.failCommit = nil
	}
	if err := s.Refresh(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if v := s.block(1).view.Load(); v.Seq != 4 || v.HighWatermark(0) != 4 {
		t.Fatalf("view at seq %d, high watermark %d; 4 was published before", v.Seq, v.HighWatermark(0))
	}
	if d.loads != 2 {
		t.Errorf("%d loads, want the old one and another", d.loads)
	}
}

// TestForget: what a load or a commit read of the history that was given up is not folded.
func TestForget(t *testing.T) {
	d := newMemDriver(1)
	s, other := NewStore(Options{Driver: d}), NewStore(Options{Driver: d})
	for range 3 {
		mustWrite(t, other, 1)
	}
	restore := func() { // a copy of the database from when there was one row
		d.mu.Lock()
		d.blocks[1].Rows = d.blocks[1].Rows[:1]
		d.mu.Unlock()
		s.Forget()
	}
	d.afterLoad = restore
	if v := mustView(t, s, 1); v.HighWatermark(0) != 1 || d.loads != 2 {
		t.Fatalf("a load during the change: high watermark %d after %d loads", v.HighWatermark(0), d.loads)
	}
	mustWrite(t, s, 1)
	mustWrite(t, s, 1)
	restore()
	if v := mustView(t, s, 1); v.HighWatermark(0) != 1 {
		t.Fatalf("after the change: high watermark %d", v.HighWatermark(0))
	}
}

// TestCheckpointAheadOfWarmFold: a cold load starts at a checkpoint that is ahead of what a commit warmed meanwhile.
func TestCheckpointAheadOfWarmFold(t *testing.T) {
	d := newMemDriver(1)
	s, other := NewStore(Options{Driver: d}), NewStore(Options{Driver: d})
	mustWrite(t, other, 1)
	// The load's view is read after the other's rows and checkpoint, s's own commit comes before them.
	mustWrite(t, s, 1)
	b := s.block(1)
	old := b.state
	for range 5 {
		mustWrite(t, other, 1)
	}
	d.blocks[1].Checkpoint = &Checkpoint{Seq: 6, State: other.block(1).stateAt(t, d, 6)}
	delta := d.deltas([]BlockSeq{{1, SeqCold}})[0]
	if lost := s.foldLoaded(&delta, loadFrom{seq: SeqCold}); lost || old.Seq != 2 {
		t.Fatalf("the load is lost (warm at %d)", old.Seq)
	}
	if v := s.block(1).view.Load(); v.Seq != 7 || v.HighWatermark(0) != 7 || len(v.tail) != 1 {
		t.Fatalf("view at %d with %d rows", v.Seq, len(v.tail))
	}
}

// stateAt encodes the state as of seq.
func (b *block) stateAt(t *testing.T, d *memDriver, seq Seq) []byte {
	t.Helper()
	s := NewState(d.blocks[b.id].Row)
	for _, r := range d.blocks[b.id].Rows[:seq] {
		apply(t, s, r)
	}
	return s.AppendCheckpoint(nil)
}

// TestCorruptBlockFailsAlone: a block that does not fold fails its own views, those loaded with it are fine.
func TestCorruptBlockFailsAlone(t *testing.T) {
	d := newMemDriver(1, 2)
	writer := NewStore(Options{Driver: d})
	mustWrite(t, writer, 1, 2)
	d.blocks[1].Checkpoint = &Checkpoint{Seq: 1, State: []byte("nonsense")}
	s := NewStore(Options{Driver: d})
	if _, err := s.Views(t.Context(), []BlockID{1, 2}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("views with a corrupt one: %v", err)
	}
	if v := mustView(t, s, 2); v.HighWatermark(0) != 1 {
		t.Fatalf("the good block: %+v", v)
	}
	if _, err := s.View(t.Context(), 1); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("the corrupt block: %v", err)
	}
	d.blocks[1].Checkpoint = nil
	if v := mustView(t, s, 1); v.HighWatermark(0) != 1 {
		t.Fatalf("the mended block: %+v", v)
	}
}

// TestViewIsLoadedWhenItMoved: a view needs no query until the block is marked; a mark that comes during a load counts
// for the next.
func TestViewIsLoadedWhenItMoved(t *testing.T) {
	d := newMemDriver(1)
	s, other := NewStore(Options{Driver: d}), NewStore(Options{Driver: d})
	loads := 0
	check := func(what string, more int, hw Offset) {
		t.Helper()
		loads += more
		if v := mustView(t, s, 1); v.HighWatermark(0) != hw || d.loads != loads {
			t.Fatalf("%s: high watermark %d after %d loads, want %d after %d", what, v.HighWatermark(0), d.loads, hw, loads)
		}
	}
	check("cold", 1, 0)
	check("warm", 0, 0)
	mustWrite(t, s, 1)
	check("own commit", 0, 1)
	mustWrite(t, other, 1)
	check("nobody told of the other's commit", 0, 1)
	s.moved(Event{Blocks: []BlockSeq{{1, 2}}})
	check("told", 1, 2)
	s.moved(Event{Blocks: []BlockSeq{{1, 2}}})
	check("told again", 0, 2)
	s.moved(Event{Changed: []BlockID{1}})
	d.afterLoad = func() {
		mustWrite(t, other, 1)
		s.moved(Event{Blocks: []BlockSeq{{1, 3}}})
	}
	check("moved during the load", 1, 2)
	check("which counts for the next", 1, 3)
	mustWrite(t, other, 1)
	s.moved(Event{Blocks: []BlockSeq{{1, 4}}})
	mustWrite(t, s, 1)
	check("the commit has read what it was told of", 0, 5)
	d.failCommit = errors.New("lost")
	if err := write(t, s, 1); !errors.Is(err, d.failCommit) {
		t.Fatal(err)
	}
	check("after a commit that failed", 1, 5)
}

// TestRemovedBlock: a block that is gone has no view any more.
func TestRemovedBlock(t *testing.T) {
	d := newMemDriver(1)
	s := NewStore(Options{Driver: d})
	mustWrite(t, s, 1)
	delete(d.blocks, 1)
	if err := s.Refresh(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if v := mustView(t, s, 1); v != nil {
		t.Fatalf("view of a removed block: %+v", v)
	}
}

func TestEvict(t *testing.T) {
	ids := []BlockID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	d := newMemDriver(ids...)
	const room = 300 << 10 // of the ten states and 100 rows
	s := NewStore(Options{Driver: d, FoldCacheBytes: room})
	w := s.Watch([]BlockID{1})
	defer w.Close()
	warm := func() (n, rows int) {
		for _, id := range ids {
			b := s.block(id)
			if b.state != nil {
				n++
			}
			rows += len(b.tail)
		}
		return n, rows
	}
	for range 100 {
		mustWrite(t, s, ids...)
		if got := s.cached.Load(); got > room+10*(rowOverhead+200) {
			t.Fatalf("%d bytes are cached, the bound is %d", got, room)
		}
	}
	if n, rows := warm(); n != 10 || rows > room/rowOverhead {
		t.Fatalf("%d of 10 blocks are warm, with %d rows: cutting the tails was enough", n, rows)
	}
	s.opts.FoldCacheBytes = 5 * (stateSize + tailLeft*rowOverhead*2)
	mustWrite(t, s, 7)
	n, _ := warm()
	if s.cached.Load() > s.opts.FoldCacheBytes || n >= 10 || s.block(1).state == nil || s.block(7).state == nil {
		t.Fatalf("%d blocks are warm, %d bytes: the watched and the used one must be among them", n, s.cached.Load())
	}
	var sum int64
	for _, id := range ids {
		sum += s.block(id).size.Load()
	}
	if sum != s.cached.Load() {
		t.Fatalf("blocks take %d bytes, %d are counted", sum, s.cached.Load())
	}
	for _, id := range ids {
		want := Offset(100)
		if id == 7 {
			want++
		}
		if v := mustView(t, s, id); v.HighWatermark(0) != want {
			t.Fatalf("block %d: high watermark %d, want %d", id, v.HighWatermark(0), want)
		}
	}
}

// TestTailIsBounded: views keep their rows while the tail moves on.
func TestTailIsBounded(t *testing.T) {
	s := NewStore(Options{Driver: newMemDriver(1)})
	var old *View
	for i := range 3 * tailRows {
		mustWrite(t, s, 1)
		if i == tailRows {
			old = mustView(t, s, 1)
		}
	}
	v := mustView(t, s, 1)
	if len(v.tail) > 2*tailRows || len(v.tail) < tailRows {
		t.Fatalf("a view holds %d rows", len(v.tail))
	}
	for _, view := range []*View{v, old} {
		for i, r := range view.tail {
			if want := view.Seq - Seq(len(view.tail)-1-i); r.Seq != want {
				t.Fatalf("row %d of the view at %d has seq %d, want %d", i, view.Seq, r.Seq, want)
			}
		}
	}
}

func TestRunKeepsHouse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDriver(1)
		d.resident = 77
		d.expire = []int{housekeepLimit, housekeepLimit, 5, 0}
		s := NewStore(Options{Driver: d, CheckpointRows: 10})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- s.Run(ctx) }()
		for range 25 {
			mustWrite(t, s, 1)
		}
		time.Sleep(housekeepInterval * 5 / 2)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		var at []time.Duration
		for _, x := range d.expired {
			at = append(at, x.Sub(start))
		}
		want := []time.Duration{
			housekeepInterval, housekeepInterval + housekeepPause, housekeepInterval + 2*housekeepPause,
			2*housekeepInterval + 3*housekeepPause,
		}
		if !slices.Equal(at, want) {
			t.Errorf("receipts were expired at %v, want %v", at, want)
		}
		if age := s.SinceDone(ChoreReceipts); age != housekeepInterval/2-3*housekeepPause {
			t.Errorf("receipts were last expired %v ago", age)
		}
		if age := s.SinceDone(ChoreOffsets); age != housekeepInterval*5/2 { // the agent's
			t.Errorf("offsets were last expired %v ago", age)
		}
		if s.InlineResident() != 77 {
			t.Errorf("%d bytes of inline payloads", s.InlineResident())
		}
		if !slices.Equal(d.saved, []BlockSeq{{1, 10}, {1, 20}}) {
			t.Errorf("checkpoints were saved at %v", d.saved)
		}
	})
}

// TestNotifierCoalesces: commits that come closer than notifyInterval are told of together.
func TestNotifierCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDriver(1, 2)
		s := NewStore(Options{Driver: d})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		mustWrite(t, s, 1)
		synctest.Wait()
		for range 4 {
			time.Sleep(notifyInterval / 5)
			mustWrite(t, s, 1)
			mustWrite(t, s, 2)
		}
		time.Sleep(time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(d.notified) != 2 || !slices.Equal(d.notified[0].Blocks, []BlockSeq{{1, 1}}) ||
			!slices.Equal(d.notified[1].Blocks, []BlockSeq{{1, 5}, {2, 4}}) {
			t.Fatalf("told of %+v", d.notified)
		}
		if gap := d.notifiedAt[1].Sub(d.notifiedAt[0]); gap != notifyInterval {
			t.Errorf("told of twice within %v", gap)
		}
	})
}

// TestLostWakeUp: a watcher sees another Store's commit after one poll interval, without any wake-up.
func TestLostWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDriver(1)
		s, other := NewStore(Options{Driver: d, PollInterval: 40 * time.Millisecond}), NewStore(Options{Driver: d})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		mustView(t, s, 1)
		synctest.Wait()
		w := s.Watch([]BlockID{1})
		start := time.Now()
		mustWrite(t, other, 1)
		<-w.C()
		if took := time.Since(start); took > 40*time.Millisecond || mustView(t, s, 1).HighWatermark(0) != 1 {
			t.Errorf("seen after %v: %+v", took, mustView(t, s, 1))
		}
		w.Close()
		loads := d.loads
		time.Sleep(time.Second)
		if d.loads != loads {
			t.Errorf("%d loads with nobody waiting", d.loads-loads)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestEventQueueMerges(t *testing.T) {
	q := newEventQueue()
	q.add(Event{Blocks: []BlockSeq{{3, 9}, {1, 4}}, Catalogue: 5, Changed: []BlockID{7}})
	q.add(Event{Blocks: []BlockSeq{{3, 8}, {2, 1}}, Catalogue: 4, Changed: []BlockID{7, 8}})
	<-q.signal
	e := q.take()
	if e.All || e.Catalogue != 5 || !slices.Equal(e.Changed, []BlockID{7, 8}) ||
		!slices.Equal(e.Blocks, []BlockSeq{{1, 4}, {2, 1}, {3, 9}}) {
		t.Fatalf("%+v", e)
	}
	q.add(Event{All: true})
	if e = q.take(); !e.All || e.Catalogue != 0 || e.Blocks != nil || e.Changed != nil {
		t.Fatalf("%+v", e)
	}
}

// TestAgesOutliveTheCache: a commit knows the ages it looked up, however many others were learned since.
func TestAgesOutliveTheCache(t *testing.T) {
	var c ageCache
	var mine idRanges
	c.learn([]ProducerRange{{First: 10, Count: 5, At: 99}}, []ProducerID{12, 7})
	if !c.copyTo(&mine, 12) || !c.copyTo(&mine, 7) || c.copyTo(&mine, 8) {
		t.Fatal("12 is in a range, 7 in none, of 8 nothing is known")
	}
	for i := range ProducerID(3 * maxIDRanges) {
		c.learn([]ProducerRange{{First: 100 + i, Count: 1, At: 1}}, nil)
	}
	if len(c.ranges) > maxIDRanges {
		t.Fatalf("%d ranges are kept", len(c.ranges))
	}
	if c.copyTo(&idRanges{}, 12) {
		t.Fatal("the oldest range was not let go")
	}
	if at, ok := mine.HandedOut(12); !ok || at != 99 {
		t.Fatalf("%d, %v", at, ok)
	}
	if _, ok := mine.HandedOut(7); ok {
		t.Fatal("7 was handed out by nobody")
	}
}

// TestMissIsForgottenWhenHandedOut: an id that was in no range is found once it is handed out here.
func TestMissIsForgottenWhenHandedOut(t *testing.T) {
	var c ageCache
	c.learn(nil, []ProducerID{5})
	c.learn([]ProducerRange{{First: 5, Count: 1, At: 3}}, nil)
	var mine idRanges
	if !c.copyTo(&mine, 5) || !mine.contains(5) {
		t.Fatal("the range is not found")
	}
}
