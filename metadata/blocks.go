package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// tailRows is how many of a block's newest rows a view holds: readers at the tail need no database.
const tailRows = 256

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

// LSO is the last stable offset: the first offset of the earliest open transaction, else the high watermark.
func (v *View) LSO(s Slot) Offset {
	if v.lso != nil {
		return v.lso[s]
	}
	return v.Photo.Next[s]
}

// block is a cached block.
type block struct {
	id    BlockID
	token chan struct{} // held by the one commit in flight
	view  atomic.Pointer[View]
	stale atomic.Bool
	used  atomic.Int64 // Store-wide clock of last use, for eviction
	size  atomic.Int64 // bytes, as of the last publish

	mu         sync.Mutex // guards the fold below; a commit holds it from decide to its outcome
	state      *State     // nil: cold
	tail       []*Row
	tailBytes  int64
	checkpoint Seq // newest written or queued by us, or loaded

	watchMu sync.Mutex
	watches map[*Watch]struct{}
}

func (s *Store) block(id BlockID) *block {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blocks[id]
	if b == nil {
		b = &block{id: id, token: make(chan struct{}, 1), watches: map[*Watch]struct{}{}}
		b.stale.Store(true)
		s.blocks[id] = b
	}
	b.used.Store(s.tick())
	return b
}

// View gives the block's view: the cached one unless it is known to be stale. It is nil when there is no such block.
func (s *Store) View(ctx context.Context, id BlockID) (*View, error) {
	b := s.block(id)
	if v := b.view.Load(); v != nil && !b.stale.Load() {
		return v, nil
	}
	if err := s.Refresh(ctx, id); err != nil {
		return nil, err
	}
	return b.view.Load(), nil
}

// Views is View for several blocks, in at most one load.
func (s *Store) Views(ctx context.Context, ids []BlockID) ([]*View, error) {
	var stale []BlockID
	for _, id := range ids {
		if b := s.block(id); b.stale.Load() || b.view.Load() == nil {
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
		views[i] = s.block(id).view.Load()
	}
	return views, nil
}

// Refresh asks the database for what is new of the blocks: when it returns, their views are at least as new as the call.
func (s *Store) Refresh(ctx context.Context, ids ...BlockID) error {
	if len(ids) == 0 {
		return nil
	}
	return s.refresh.do(ctx, ids...)
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
	from := make(map[BlockID]Seq, len(ids))
	for i, id := range ids {
		b := s.block(id)
		known[i] = BlockSeq{Block: id, Seq: b.known()}
		from[id] = known[i].Seq
		b.stale.Store(false) // before the load: a wake-up during it marks it again
	}
	loaded, err := s.driver.LoadBlocks(ctx, known)
	if err != nil {
		for _, id := range ids {
			s.block(id).stale.Store(true)
		}
		return nil, fmt.Errorf("load %d blocks: %w", len(ids), err)
	}
	s.clock.saw(loaded.Now)
	for i := range loaded.Blocks {
		d := &loaded.Blocks[i]
		switch err := s.foldLoaded(d, from[d.Row.ID]); {
		case errors.Is(err, errFoldLost):
			lost = append(lost, d.Row.ID)
		case err != nil:
			return nil, err
		}
	}
	s.evict()
	return lost, nil
}

func (s *Store) foldLoaded(d *BlockDelta, from Seq) error {
	b := s.block(d.Row.ID)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.catchUp(d, from); err != nil {
		b.forget()
		return err
	}
	b.publish()
	s.queueCheckpoint(b)
	return nil
}

// known is the seq up to which the block is folded. While a commit decides it waits for the outcome.
func (b *block) known() Seq {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == nil {
		return SeqCold
	}
	return b.state.Seq
}

// catchUp folds what was loaded above from; rows that are folded already are passed over. b.mu is held.
func (b *block) catchUp(d *BlockDelta, from Seq) error {
	if b.state == nil {
		if from != SeqCold {
			return errFoldLost
		}
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
		if err := b.state.Apply(r); err != nil {
			return err
		}
		b.keep(r)
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
		b.tail = append(make([]*Row, 0, 2*tailRows+1), b.tail[len(b.tail)-tailRows:]...)
		b.tailBytes = 0
		for _, r := range b.tail {
			b.tailBytes += rowSize(r)
		}
	}
	b.tail = append(b.tail, r)
	b.tailBytes += rowSize(r)
}

func rowSize(r *Row) int64 {
	n := int64(rowOverhead)
	for i := range r.Touched {
		n += 64 + int64(len(r.Touched[i].Batches))*64
	}
	return n
}

// publish makes the fold's state the view and wakes the watchers when it moved. b.mu is held.
func (b *block) publish() {
	old := b.view.Load()
	if old != nil && old.Seq == b.state.Seq && old.Row.Version == b.state.Row.Version {
		return
	}
	b.view.Store(&View{
		Seq: b.state.Seq, Row: b.state.Row, Photo: b.state.Photo, lso: b.state.lsos(), tail: b.tail[:len(b.tail):len(b.tail)],
	})
	b.size.Store(b.state.Size() + b.tailBytes)
	b.watchMu.Lock()
	defer b.watchMu.Unlock()
	for w := range b.watches {
		w.wake()
	}
}

// forget throws the fold away: the next use loads it again. The view stays: what it says was true. b.mu is held.
func (b *block) forget() {
	b.state, b.tail, b.tailBytes = nil, nil, 0
	b.stale.Store(true)
}

func (b *block) watchers() int {
	b.watchMu.Lock()
	defer b.watchMu.Unlock()
	return len(b.watches)
}

// evict forgets the least recently used blocks while the cache is over its bound. Blocks that are watched or in use by a
// commit stay.
func (s *Store) evict() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var total int64
	for _, b := range s.blocks {
		total += b.size.Load()
	}
	if total <= s.opts.FoldCacheBytes {
		return
	}
	byAge := make([]*block, 0, len(s.blocks))
	for _, b := range s.blocks {
		byAge = append(byAge, b)
	}
	slices.SortFunc(byAge, func(a, b *block) int { return int(a.used.Load() - b.used.Load()) })
	for _, b := range byAge {
		if total <= s.opts.FoldCacheBytes*3/4 {
			return
		}
		if b.watchers() > 0 || len(b.token) > 0 || !b.mu.TryLock() {
			continue
		}
		total -= b.size.Load()
		b.forget()
		b.size.Store(0)
		b.view.Store(nil)
		b.mu.Unlock()
	}
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
