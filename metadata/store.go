package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Defaults and bounds of a Store.
const (
	// DefaultFoldCacheBytes bounds the folded states that an agent keeps.
	DefaultFoldCacheBytes = 256 << 20
	// DefaultCheckpointRows is after how many rows of a block whoever folded them writes a checkpoint; a block with many
	// producers waits longer (one more row for every checkpointProducers of them), so that checkpoints cost no more than
	// the rows they save reading.
	DefaultCheckpointRows = 256
	checkpointProducers   = 8
	checkpointQueue       = 64
	// notifyInterval is the least time between two wake-ups sent.
	notifyInterval = 5 * time.Millisecond
	// DefaultPollInterval is how soon a watcher sees a commit whose wake-up was lost.
	DefaultPollInterval = 250 * time.Millisecond
	// cataloguePoll is how soon a change of the catalogue is seen whose wake-up was lost.
	cataloguePoll = time.Second
	// loadTimeout bounds one coalesced load.
	loadTimeout = 10 * time.Second
	// housekeepInterval and housekeepLimit bound the removal of old receipts.
	housekeepInterval = 30 * time.Second
	housekeepLimit    = 10_000
	housekeepPause    = 100 * time.Millisecond // between steps, when there is more than one step to do
	// residentPoll is how often the size of the inline payloads is read.
	residentPoll = 5 * time.Second
)

// Options of a Store. Zero values take the defaults.
type Options struct {
	Driver         Driver
	Logger         *slog.Logger
	FoldCacheBytes int64
	CheckpointRows int
	PollInterval   time.Duration
	// MaxUnmerged is the unmerged level0 rows of a block over which commits to it are slowed; 0: never.
	MaxUnmerged int64
}

// Store is the rules over a Driver, with the folded states of blocks and the catalogue cached. It is safe for concurrent
// use. Commits and reads work without Run; wake-ups, checkpoints and housekeeping need it.
type Store struct {
	driver Driver
	log    *slog.Logger
	opts   Options
	clock  clock
	ages   ageCache
	cached atomic.Int64 // bytes of the folds in blocks

	mu     sync.Mutex
	blocks map[BlockID]*block

	refresh   coalescer[BlockID]
	catalogue atomic.Pointer[Catalogue]
	// The catalogue is stale while what it has is older than what is wanted: both count what is known to have moved it.
	catWanted atomic.Int64
	catHas    atomic.Int64
	reload    coalescer[struct{}]

	events      eventQueue
	pending     eventQueue // to be notified
	checkpoints chan checkpointJob
	resident    atomic.Int64
	uses        atomic.Int64
	stalls      atomic.Int64 // commits held up (compact.go)
	stalled     atomic.Int64 // ns
	chores      chores
	onGroups    atomic.Pointer[func(groups []GroupVersion, all bool)]
	onAgents    func()
}

// tick gives the next value of the clock of block uses.
func (s *Store) tick() int64 { return s.uses.Add(1) }

// NewStore makes a Store. It starts nothing.
func NewStore(opts Options) *Store {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.FoldCacheBytes <= 0 {
		opts.FoldCacheBytes = DefaultFoldCacheBytes
	}
	if opts.CheckpointRows <= 0 {
		opts.CheckpointRows = DefaultCheckpointRows
	}
	if opts.PollInterval <= 0 {
		opts.PollInterval = DefaultPollInterval
	}
	s := &Store{
		driver: opts.Driver, log: opts.Logger, opts: opts,
		blocks:      map[BlockID]*block{},
		events:      newEventQueue(),
		pending:     newEventQueue(),
		checkpoints: make(chan checkpointJob, checkpointQueue),
		chores:      chores{start: time.Now(), done: map[Chore]time.Time{}},
	}
	s.refresh = coalescer[BlockID]{call: s.loadBlocks, timeout: loadTimeout}
	s.reload = coalescer[struct{}]{call: s.loadCatalogue, timeout: loadTimeout}
	s.catalogueMoved()
	if w, ok := opts.Driver.(IncarnationWatcher); ok {
		w.OnIncarnation(s.Forget)
	}
	return s
}

// Run listens for wake-ups, sends them, writes checkpoints and keeps house until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.driver.Listen(ctx, s.onEvent) })
	g.Go(func() error { return s.runEvents(ctx) })
	g.Go(func() error { return s.runNotifier(ctx) })
	g.Go(func() error { return s.runCheckpoints(ctx) })
	g.Go(func() error { return s.runHousekeeping(ctx) })
	g.Go(func() error { return s.runResident(ctx) })
	g.Go(func() error { return s.runTxnHousekeeping(ctx) })
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Ping reads the database's clock.
func (s *Store) Ping(ctx context.Context) error {
	now, err := s.driver.Now(ctx)
	if err != nil {
		return err
	}
	s.clock.saw(now)
	return nil
}

// Now gives database time: the last one seen plus the monotonic time since. It asks the database when none was seen yet.
func (s *Store) Now(ctx context.Context) (Millis, error) {
	if now, ok := s.clock.now(); ok {
		return now, nil
	}
	if err := s.Ping(ctx); err != nil {
		return 0, err
	}
	now, _ := s.clock.now()
	return now, nil
}

// ClusterID gives the cluster's id.
func (s *Store) ClusterID(ctx context.Context) (string, error) { return s.driver.ClusterID(ctx) }

// InlineResident is the bytes of inline payloads in the database as last read, up to residentPoll old, plus what this
// Store committed since.
func (s *Store) InlineResident() int64 { return s.resident.Load() }

// AllocateProducerIDs hands out consecutive producer ids.
func (s *Store) AllocateProducerIDs(ctx context.Context, count int) (ProducerRange, error) {
	r, err := s.driver.AllocateProducerIDs(ctx, count)
	if err != nil {
		return r, fmt.Errorf("allocate producer ids: %w", err)
	}
	s.ages.learn([]ProducerRange{r}, nil)
	return r, nil
}

// LoadInline reads parts of inline payloads; a payload that is gone (merged) gives nil.
func (s *Store) LoadInline(ctx context.Context, parts []InlinePart) ([][]byte, error) {
	return s.driver.LoadInline(ctx, parts)
}

// eventQueue merges events until they are taken.
type eventQueue struct {
	mu     *sync.Mutex
	event  *Event
	blocks map[BlockID]Seq
	groups map[GroupID]int64
	signal chan struct{}
}

func newEventQueue() eventQueue {
	return eventQueue{
		mu: &sync.Mutex{}, event: &Event{}, blocks: map[BlockID]Seq{}, groups: map[GroupID]int64{},
		signal: make(chan struct{}, 1),
	}
}

func (q *eventQueue) add(e Event) {
	q.mu.Lock()
	q.event.All = q.event.All || e.All
	q.event.Catalogue = max(q.event.Catalogue, e.Catalogue)
	for _, b := range e.Changed {
		if !slices.Contains(q.event.Changed, b) {
			q.event.Changed = append(q.event.Changed, b)
		}
	}
	for _, b := range e.Blocks {
		q.blocks[b.Block] = max(q.blocks[b.Block], b.Seq)
	}
	q.event.AllGroups = q.event.AllGroups || e.AllGroups
	q.event.Agents = q.event.Agents || e.Agents
	for _, g := range e.Groups {
		q.groups[g.ID] = max(q.groups[g.ID], g.Version)
	}
	q.mu.Unlock()
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

func (q *eventQueue) take() Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := *q.event
	*q.event = Event{}
	for b, seq := range q.blocks {
		e.Blocks = append(e.Blocks, BlockSeq{Block: b, Seq: seq})
	}
	clear(q.blocks)
	for id, v := range q.groups {
		e.Groups = append(e.Groups, GroupVersion{ID: id, Version: v})
	}
	clear(q.groups)
	slices.SortFunc(e.Blocks, func(a, b BlockSeq) int { return int(a.Block - b.Block) })
	return e
}

func (s *Store) onEvent(e Event) {
	s.groupsMoved(e)
	s.agentsMoved(e)
	e.Groups, e.AllGroups, e.Agents = nil, false, false
	s.events.add(e)
}

// runNotifier sends what this Store changed, at most every notifyInterval.
func (s *Store) runNotifier(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.pending.signal:
		}
		if err := s.driver.Notify(ctx, s.pending.take()); err != nil && ctx.Err() == nil {
			// A lost wake-up costs other agents' readers one poll interval.
			s.log.Warn("wake-up not sent", "error", err)
		}
		if err := pause(ctx, notifyInterval); err != nil {
			return err
		}
	}
}

// runEvents moves on what wake-ups tell of, and polls for lost ones while somebody waits.
func (s *Store) runEvents(ctx context.Context) error {
	poll := time.NewTicker(s.opts.PollInterval)
	defer poll.Stop()
	catalogue := time.NewTicker(cataloguePoll)
	defer catalogue.Stop()
	for {
		var wanted []BlockID
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.events.signal:
			e := s.events.take()
			wanted = s.moved(e)
			if c := s.catalogue.Load(); e.All || c == nil || e.Catalogue > c.Version {
				s.catalogueMoved()
				s.tryReload(ctx)
			}
		case <-poll.C:
			wanted = s.watched()
		case <-catalogue.C:
			s.tryReload(ctx)
		}
		if len(wanted) == 0 {
			continue
		}
		if err := s.Refresh(ctx, wanted...); err != nil && ctx.Err() == nil {
			s.log.Warn("views not refreshed", "blocks", len(wanted), "error", err)
		}
	}
}

func (s *Store) tryReload(ctx context.Context) {
	if err := s.reload.do(ctx, struct{}{}); err != nil && ctx.Err() == nil {
		s.log.Warn("catalogue not refreshed", "error", err)
	}
}

// moved marks the blocks of an event stale and gives those that are watched.
func (s *Store) moved(e Event) []BlockID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var wanted []BlockID
	mark := func(b *block) {
		b.mark()
		if b.watchers() > 0 {
			wanted = append(wanted, b.id)
		}
	}
	if e.All {
		for _, b := range s.blocks {
			mark(b)
		}
		return wanted
	}
	for _, x := range e.Blocks {
		if b := s.blocks[x.Block]; b != nil {
			if v := b.view.Load(); v == nil || v.Seq < x.Seq {
				mark(b)
			}
		}
	}
	for _, id := range e.Changed {
		if b := s.blocks[id]; b != nil {
			mark(b)
		}
	}
	return wanted
}

func (s *Store) watched() []BlockID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []BlockID
	for _, b := range s.blocks {
		if b.watchers() > 0 {
			ids = append(ids, b.id)
		}
	}
	return ids
}

func (s *Store) runHousekeeping(ctx context.Context) error {
	for {
		if err := pause(ctx, housekeepInterval); err != nil {
			return err
		}
		for n := housekeepLimit; n == housekeepLimit; {
			var err error
			if n, err = s.driver.ExpireReceipts(ctx, ReceiptRetention, housekeepLimit); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("receipts not expired", "error", err)
				}
				break
			}
			if n < housekeepLimit {
				s.Did(ChoreReceipts)
			}
			if err := pause(ctx, housekeepPause); err != nil {
				return err
			}
		}
	}
}

func (s *Store) runResident(ctx context.Context) error {
	for {
		n, err := s.driver.InlineResident(ctx)
		if err == nil {
			s.resident.Store(n)
		} else if ctx.Err() == nil {
			s.log.Warn("size of inline payloads not read", "error", err)
		}
		if err := pause(ctx, residentPoll); err != nil {
			return err
		}
	}
}

// pause waits for d or for ctx's end.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
