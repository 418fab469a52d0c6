package metadata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// tailRows is how many of a block's newest rows a view holds: readers at the tail need no database.
const tailRows = 256

// tailLeft is how many of them stay when memory is short.
const tailLeft = 8

// rowOverhead is about what a row takes in memory beside its batches.
const rowOverhead = PhotoSize + 256

// View is one block as of one (Seq, Row.Version): what a reader sees comes from one View. It is never changed.
type View struct {
	Seq   Seq
	Row   BlockRow
	Photo Photo
	lso   *[SlotsPerBlock]Offset // nil: the high watermarks
	tail  []*Row                 // the newest rows, up to Seq
}

// Deleted says whether the slot's partition is deleted.
func (v *View) Deleted(s Slot) bool { return v.Row.Deleted&(1<<s) != 0 }

// LogStart is the first offset that may be read.
func (v *View) LogStart(s Slot) Offset { return v.Row.LogStart[s] }

// HighWatermark is the next offset to be assigned.
func (v *View) HighWatermark(s Slot) Offset { return v.Photo.Next[s] }

// LSO is the last stable offset: the first offset of the earliest open transaction, else the high watermark. It is never
// below the log start, as in Kafka: there is nothing to read there.
func (v *View) LSO(s Slot) Offset {
	if v.lso != nil {
		return max(v.lso[s], v.LogStart(s))
	}
	return v.Photo.Next[s]
}

// block is a cached block.
type block struct {
	id    BlockID
	token chan struct{} // held by the one commit in flight
	view  atomic.Pointer[View]
	marks atomic.Int64 // how often the block was marked as moved
	fresh atomic.Int64 // the marks that the view has caught up with: it is stale while there are more
	used  atomic.Int64 // Store-wide clock of last use, for eviction
	size  atomic.Int64 // bytes, as of the last publish

	absent  atomic.Bool           // the last load found no such block
	failure atomic.Pointer[error] // of the last fold; nil when it was good

	mu         sync.Mutex // guards the fold below; a commit holds it from decide to its outcome
	state      *State     // nil: cold
	tail       []*Row
	tailBytes  int64
	checkpoint Seq // newest written or queued by us, or loaded
	history    int // how many histories of the database were given up (Store.Forget)

	watchMu sync.Mutex
	watches map[*Watch]struct{}
}

func (s *Store) block(id BlockID) *block {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blocks[id]
	if b == nil {
		b = &block{id: id, token: make(chan struct{}, 1), watches: map[*Watch]struct{}{}}
		b.mark()
		s.blocks[id] = b
	}
	b.used.Store(s.tick())
	return b
}

// mark notes that the block moved, or may have: its view is stale.
func (b *block) mark() { b.marks.Add(1) }

// caughtUp notes that the view has all that was there when the block had that many marks.
func (b *block) caughtUp(marks int64) {
	for {
		old := b.fresh.Load()
		if marks <= old || b.fresh.CompareAndSwap(old, marks) {
			return
		}
	}
}

// current gives the view, or nil when it is stale.
func (b *block) current() *View {
	if b.fresh.Load() < b.marks.Load() {
		return nil
	}
	return b.view.Load()
}

// View gives the block's view: the cached one unless it is known to be stale. It is nil when there is no such block.
func (s *Store) View(ctx context.Context, id BlockID) (*View, error) {
	b := s.block(id)
	if v := b.current(); v != nil {
		return v, nil
	}
	for range maxLoadTries {
		if err := s.Refresh(ctx, id); err != nil {
			return nil, err
		}
		if v := b.view.Load(); v != nil || b.absent.Load() {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%w: block %d is evicted as fast as it is loaded", ErrUnavailable, id)
}

// Views is View for several blocks, in at most one load.
func (s *Store) Views(ctx context.Context, ids []BlockID) ([]*View, error) {
	var stale []BlockID
	for _, id := range ids {
		if s.block(id).current() == nil {
			stale = append(stale, id)
		}
	}
	if len(stale) > 0 {
		if err := s.Refresh(ctx, stale...); err != nil {
			return nil, err
		}
	}
	views := make([]*View, len(ids))
	for i, id := range ids {
		b := s.block(id)
		if views[i] = b.view.Load(); views[i] != nil || b.absent.Load() {
			continue
		}
		v, err := s.View(ctx, id) // evicted meanwhile
		if err != nil {
			return nil, err
		}
		views[i] = v
	}
	return views, nil
}

// Refresh asks the database for what is new of the blocks: when it returns, their views are at least as new as the call.
func (s *Store) Refresh(ctx context.Context, ids ...BlockID) error {
	if len(ids) == 0 {
		return nil
	}
	if err := s.refresh.do(ctx, ids...); err != nil {
		return err
	}
	for _, id := range ids {
		if err := s.block(id).failure.Load(); err != nil {
			return *err
		}
	}
	return nil
}

// errFoldLost says that a block went cold between the reading of its known seq and the folding of what was loaded
// above that: load again.
var errFoldLost = errors.New("the fold was thrown away meanwhile")

// maxLoadTries bounds how often a load is repeated because of errFoldLost.
const maxLoadTries = 5

// loadBlocks is one load for Refresh.
func (s *Store) loadBlocks(ctx context.Context, ids []BlockID) error {
	slices.Sort(ids)
	for try := 0; ; try++ {
		lost, err := s.loadOnce(ctx, ids)
		if err != nil || len(lost) == 0 {
			return err
		}
		if try == maxLoadTries {
			return fmt.Errorf("%w: load blocks %v: %w", ErrUnavailable, lost, errFoldLost)
		}
		ids = lost
	}
}

// loadOnce loads and folds; it gives the blocks that must be loaded again.
func (s *Store) loadOnce(ctx context.Context, ids []BlockID) (lost []BlockID, err error) {
	known := make([]BlockSeq, len(ids))
	from := make(map[BlockID]loadFrom, len(ids))
	for i, id := range ids {
		f := s.block(id).loadFrom()
		known[i], from[id] = BlockSeq{Block: id, Seq: f.seq}, f
	}
	loaded, err := s.driver.LoadBlocks(ctx, known)
	if err != nil {
		return nil, fmt.Errorf("load %d blocks: %w", len(ids), err)
	}
	s.clock.saw(loaded.Now)
	for i := range loaded.Blocks {
		d := &loaded.Blocks[i]
		if s.foldLoaded(d, from[d.Row.ID]) {
			lost = append(lost, d.Row.ID)
		}
		delete(from, d.Row.ID)
	}
	for id := range from {
		s.lose(s.block(id))
	}
	s.evict(ids)
	return lost, nil
}

// foldLoaded folds what was loaded of one block; lost says that it must be loaded again. A block that does not fold
// fails its own readers and commits, not those of others.
func (s *Store) foldLoaded(d *BlockDelta, from loadFrom) (lost bool) {
	b := s.block(d.Row.ID)
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.catchUp(d, from)
	if err != nil {
		s.forget(b)
		if lost = errors.Is(err, errFoldLost); !lost {
			b.failure.Store(&err)
			s.log.Error("block does not fold", "block", b.id, "error", err)
		}
		return lost
	}
	b.failure.Store(nil)
	s.publish(b)
	b.caughtUp(from.marks)
	s.queueCheckpoint(b)
	return false
}

// lose drops all that is kept of a block that is not there (any more).
func (s *Store) lose(b *block) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.forget(b)
	b.failure.Store(nil)
	b.absent.Store(true)
	b.view.Store(nil)
}

// loadFrom is what a load begins from: the seq up to which the block is folded, the marks it answers, and the history of
// the database that it reads.
type loadFrom struct {
	seq     Seq
	marks   int64
	history int
}

// loadFrom is taken before a load is asked for. While a commit decides it waits for the outcome.
func (b *block) loadFrom() loadFrom {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := loadFrom{seq: SeqCold, marks: b.marks.Load(), history: b.history}
	if b.state != nil {
		f.seq = b.state.Seq
	}
	return f
}

// catchUp folds what was loaded above from; rows that are folded already are passed over. b.mu is held.
func (b *block) catchUp(d *BlockDelta, from loadFrom) error {
	if from.history != b.history || (b.state == nil && from.seq != SeqCold) {
		return errFoldLost
	}
	// Another load or commit may have warmed the block since this load was asked for, to an older seq than the checkpoint
	// that this one starts from.
	if b.state == nil || (d.Checkpoint != nil && d.Checkpoint.Seq > b.state.Seq) {
		if err := b.warmUp(d); err != nil {
			return err
		}
	}
	if d.Row.Version >= b.state.Row.Version {
		b.state.Row = d.Row
	}
	for _, r := range d.Rows {
		if r.Seq <= b.state.Seq {
			continue
		}
		if r.Seq != b.state.Seq+1 {
			return errFoldLost // merged away in between: a cold load starts at a checkpoint above them
		}
		if err := b.state.Apply(r); err != nil {
			return err
		}
		b.keep(r)
	}
	// A cold load that began before the newest commit of ours may end after that was folded and forgotten again: readers
	// must not be taken back.
	if v := b.view.Load(); v != nil && (b.state.Seq < v.Seq || b.state.Row.Version < v.Row.Version) {
		return errFoldLost
	}
	return nil
}

// warmUp starts a cold block's state from its checkpoint, or from nothing.
func (b *block) warmUp(d *BlockDelta) error {
	b.tail, b.tailBytes = nil, 0
	if d.Checkpoint == nil {
		if len(d.Rows) > 0 && d.Rows[0].Seq != 1 {
			return fmt.Errorf("%w: block %d was loaded from seq %d without a checkpoint", ErrCorrupt, b.id, d.Rows[0].Seq)
		}
		b.state, b.checkpoint = NewState(d.Row), 0
		return nil
	}
	state, err := FromCheckpoint(d.Row, d.Checkpoint.State)
	if err != nil {
		return err
	}
	b.state, b.checkpoint = state, state.Seq
	return nil
}

// keep adds a row to the tail. Views share the tail's array: it is only ever appended to, and copied when it is cut.
func (b *block) keep(r *Row) {
	if len(b.tail) >= 2*tailRows {
		b.cut(tailRows)
	}
	b.tail = append(b.tail, r)
	b.tailBytes += rowSize(r)
}

// cut leaves the newest rows of the tail.
func (b *block) cut(rows int) {
	b.tail = append(make([]*Row, 0, 2*rows), b.tail[len(b.tail)-rows:]...)
	b.tailBytes = 0
	for _, r := range b.tail {
		b.tailBytes += rowSize(r)
	}
}

func rowSize(r *Row) int64 {
	n := int64(rowOverhead)
	for i := range r.Touched {
		n += 64 + int64(len(r.Touched[i].Batches))*64
	}
	return n
}

// publish makes the fold's state the view and wakes the watchers when it moved. b.mu is held.
func (s *Store) publish(b *block) {
	old := b.view.Load()
	if old != nil && old.Seq == b.state.Seq && old.Row.Version == b.state.Row.Version && len(old.tail) >= len(b.tail) {
		return
	}
	s.show(b)
	b.watchMu.Lock()
	defer b.watchMu.Unlock()
	for w := range b.watches {
		w.wake()
	}
}

// show makes the fold's state the view. b.mu is held.
func (s *Store) show(b *block) {
	b.absent.Store(false)
	b.view.Store(&View{
		Seq: b.state.Seq, Row: b.state.Row, Photo: b.state.Photo, lso: b.state.lsos(), tail: b.tail[:len(b.tail):len(b.tail)],
	})
	s.resize(b, b.state.Size()+b.tailBytes)
}

// resize notes what a block's fold takes, in bytes.
func (s *Store) resize(b *block, size int64) { s.cached.Add(size - b.size.Swap(size)) }

// forget throws the fold away: the next use loads it again. The view stays: what it says was true. b.mu is held.
func (s *Store) forget(b *block) {
	b.state, b.tail, b.tailBytes = nil, nil, 0
	b.mark()
	s.resize(b, 0)
}

func (b *block) watchers() int {
	b.watchMu.Lock()
	defer b.watchMu.Unlock()
	return len(b.watches)
}

// evict keeps the folds within their bound. It first cuts the tails of the least recently used blocks, which only save
// readers a query, then forgets the folds of those that are neither watched nor in use by a commit. Those of keep, which
// were just loaded for somebody, stay whole.
func (s *Store) evict(keep []BlockID) {
	if s.cached.Load() <= s.opts.FoldCacheBytes {
		return
	}
	s.mu.Lock()
	byAge := make([]*block, 0, len(s.blocks))
	for _, b := range s.blocks {
		if b.size.Load() > 0 && !slices.Contains(keep, b.id) {
			byAge = append(byAge, b)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(byAge, func(a, b *block) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	target := s.opts.FoldCacheBytes / 4 * 3
	for _, cut := range []func(*block){s.cutTail, s.drop} {
		for _, b := range byAge {
			if s.cached.Load() <= target {
				return
			}
			if b.mu.TryLock() {
				cut(b)
				b.mu.Unlock()
			}
		}
	}
}

// cutTail leaves a block's fold only its newest rows. b.mu is held.
func (s *Store) cutTail(b *block) {
	if b.state == nil || len(b.tail) <= tailLeft {
		return
	}
	b.cut(tailLeft)
	s.show(b)
}

// drop forgets a block unless it is in use. b.mu is held.
func (s *Store) drop(b *block) {
	if b.watchers() > 0 || len(b.token) > 0 {
		return
	}
	s.forget(b)
	b.view.Store(nil)
}

// Watch wakes when one of its blocks moves.
type Watch struct {
	store  *Store
	blocks []*block
	c      chan struct{}
}

// Watch registers for the blocks' moves. Check the views after registering, then wait. Close it when done.
func (s *Store) Watch(ids []BlockID) *Watch {
	w := &Watch{store: s, c: make(chan struct{}, 1)}
	for _, id := range ids {
		b := s.block(id)
		b.watchMu.Lock()
		b.watches[w] = struct{}{}
		b.watchMu.Unlock()
		w.blocks = append(w.blocks, b)
	}
	return w
}

// C has a token after a move.
func (w *Watch) C() <-chan struct{} { return w.c }

// Close ends the watch.
func (w *Watch) Close() {
	for _, b := range w.blocks {
		b.watchMu.Lock()
		delete(b.watches, w)
		b.watchMu.Unlock()
	}
}

func (w *Watch) wake() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// checkpointJob is an encoded state to be saved.
type checkpointJob struct {
	block BlockID
	seq   Seq
	state []byte
}

// queueCheckpoint encodes a checkpoint when enough rows were folded since the last. When the queue is full it waits for
// the next commit. b.mu is held.
func (s *Store) queueCheckpoint(b *block) {
	every := Seq(s.opts.CheckpointRows + b.state.Producers()/checkpointProducers)
	if b.state.Seq-b.checkpoint < every || len(s.checkpoints) == cap(s.checkpoints) {
		return
	}
	b.state.prune()
	job := checkpointJob{block: b.id, seq: b.state.Seq, state: b.state.AppendCheckpoint(nil)}
	select {
	case s.checkpoints <- job:
		b.checkpoint = job.seq
	default:
	}
}

func (s *Store) runCheckpoints(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case job := <-s.checkpoints:
			if err := s.driver.SaveCheckpoint(ctx, job.block, job.seq, job.state); err != nil && ctx.Err() == nil {
				s.log.Warn("checkpoint not saved", "block", job.block, "seq", job.seq, "error", err)
			}
		}
	}
}
