package batcher

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/metadata"
)

// Options of a Batcher.
type Options struct {
	Config     Config
	Bucket     Bucket
	Store      Store
	Sink       Sink                  // nil: nobody is told
	Registerer prometheus.Registerer // nil: metrics are not registered
	Logger     *slog.Logger          // nil: nothing is logged
}

// Batcher makes record batches durable. It is safe for concurrent use. One goroutine, Run's, decides all that happens;
// uploads and commits have one each and report back to it.
type Batcher struct {
	cfg     Config
	policy  policy
	bucket  Bucket
	store   Store
	sink    Sink
	log     *slog.Logger
	metrics *metrics
	times   putTimes

	wake        chan struct{} // something happened: Run looks again
	heldChanged chan struct{} // batches are held that were not before
	doubts      chan struct{} // there are chains in doubted
	idle        chan struct{} // the last pending request was answered
	stopped     chan struct{} // closed when Run has ended
	pending     atomic.Int64  // requests without an answer
	wg          sync.WaitGroup

	mu       sync.Mutex
	started  bool
	draining bool // Submit refuses
	stop     context.CancelFunc

	open    *flush
	flushes []*flush // cut and not done, in order
	chains  map[chainKey]*chain
	aged    *list.List // of *chain with a mark or gap, by touched

	spareChains []*chain
	heldChains  map[*chain]struct{}
	doubted     map[chainKey]struct{} // whose marks the database is to be asked about
	finished    []*request            // to be told by unlock

	puts, commitTokens, inline bucket

	uploading  int // PUT flushes in upload goroutines
	commits    int // in flight
	unsettled  int // frozen flushes
	groups     int64
	committing map[metadata.BlockID]struct{} // blocks that commits in flight touch
	reserved   map[metadata.BlockID]struct{} // scratch of formGroup

	buffered  int64 // bytes of batches that are not released
	heldBytes int64
}

// New makes a Batcher. It starts nothing.
func New(o Options) (*Batcher, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, fmt.Errorf("batcher: %w", err)
	}
	if o.Bucket == nil || o.Store == nil {
		return nil, errors.New("batcher: needs a bucket and a store")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := o.Config
	b := &Batcher{
		cfg: c,
		policy: policy{
			linger: c.Linger, segmentBytes: c.SegmentBytes, inlineMax: c.InlineMaxBytes, inlineResident: c.InlineResidentBytes,
			uploads: c.Uploads,
		},
		bucket: o.Bucket, store: o.Store, sink: o.Sink, log: o.Logger,
		wake: make(chan struct{}, 1), heldChanged: make(chan struct{}, 1), idle: make(chan struct{}, 1),
		doubts: make(chan struct{}, 1), doubted: map[chainKey]struct{}{},
		stopped: make(chan struct{}),
		open:    &flush{}, chains: map[chainKey]*chain{}, aged: list.New(), heldChains: map[*chain]struct{}{},
		puts: newBucket(c.PutBudget, 1), commitTokens: newBucket(c.CommitBudget, 1),
		times:      putTimes{classes: map[int]*durations{}},
		inline:     newBucket(float64(c.InlineBytesPerSecond), float64(c.InlineMaxBytes)),
		committing: map[metadata.BlockID]struct{}{}, reserved: map[metadata.BlockID]struct{}{},
	}
	b.metrics = newMetrics(b)
	if o.Registerer != nil {
		if err := b.metrics.register(o.Registerer); err != nil {
			return nil, fmt.Errorf("batcher: %w", err)
		}
	}
	return b, nil
}

// Submit takes a request's batches; Done is told their results. It never waits for the bucket or the database. Nothing of
// p is kept but Done and the batches' Data. Batches of one chain must be submitted in their order.
func (b *Batcher) Submit(p Produce) {
	now := time.Now()
	r, items := newRequest(&p, now)
	b.pending.Add(1)
	if len(items) == 0 {
		b.deliver([]*request{r})
		return
	}
	b.mu.Lock()
	defer b.unlock()
	before, cut := b.open.bytes, len(b.flushes)
	for i := range items {
		it := &items[i]
		b.buffered += int64(len(it.data))
		switch {
		case b.draining:
			b.reject(it, ErrNotPersisted)
		case !it.valid():
			b.reject(it, ErrInvalidBatch)
		default:
			it.chain = b.chainOf(p.Conn, it)
			b.place(it, now)
		}
	}
	// What else the policy depends on has its own wake-up.
	after := b.open.bytes
	crossed := func(bound int64) bool { return before < bound && after >= bound }
	if len(b.flushes) != cut || crossed(1) || crossed(b.cfg.InlineMaxBytes) || crossed(b.cfg.SegmentBytes) ||
		b.open.live >= maxFlushBatches {
		notify(b.wake)
	}
}

// reject answers a batch that has not entered its chain.
func (b *Batcher) reject(it *item, err error) {
	it.answered = true
	it.req.results[it.place] = failure(err)
	b.metrics.result(err, false)
	b.release(it)
}

// place puts a new batch into its chain and into the open flush. b.mu is held.
func (b *Batcher) place(it *item, now time.Time) {
	c := it.chain
	if !b.admit(c, it, now) {
		b.doubt(c, now)
		b.reject(it, ErrNotPersisted)
		return
	}
	c.link(it)
	if c.held > 0 {
		if h := c.firstHeld(); h.meta.Epoch == it.meta.Epoch && !it.precedes(h) {
			b.holdBehind(it, now)
			return
		}
	}
	b.enqueue(it, now)
}

// enqueue puts a batch into the open flush. b.mu is held.
func (b *Batcher) enqueue(it *item, now time.Time) {
	c := it.chain
	// Two batches that were validated against different configs must not share a commit: the first could be refused as
	// stale and the second accepted.
	sameConfigs := c.validated == it.meta.Validated
	if b.open.live > 0 {
		if c.last == b.open && !sameConfigs {
			b.cut(b.policy.kind(b.load(now)), ReasonBarrier)
		} else if b.open.bytes+int64(len(it.data)) > b.cfg.SegmentBytes || b.open.live >= maxFlushBatches {
			b.cut(b.policy.kind(b.load(now)), ReasonFull)
		}
	}
	f := b.open
	if l := c.last; l != nil && l != f && !l.done() {
		f.dependOn(l)
		if !sameConfigs && !slices.Contains(f.hard, l) {
			f.hard = append(f.hard, l)
		}
	}
	c.last, c.validated = f, it.meta.Validated
	it.flush = f
	if len(f.items) == 0 {
		f.oldest = now
	}
	f.items = append(f.items, it)
	f.live++
	f.bytes += int64(len(it.data))
	f.next = earliest(f.next, it.req.deadline)
}

// load gathers what the policy judges. b.mu is held.
func (b *Batcher) load(now time.Time) *load {
	b.puts.fill(now)
	b.commitTokens.fill(now)
	b.inline.fill(now)
	l := &load{
		bytes: b.open.bytes, batches: b.open.live, oldest: b.open.oldest, commits: b.commits,
		puts: b.puts, commitTokens: b.commitTokens, inline: b.inline, resident: b.store.InlineResident(), draining: b.draining,
	}
	for _, f := range b.flushes {
		switch f.phase {
		case phaseQueued, phaseUploading:
			if f.kind == KindPut {
				l.uploads++
			} else {
				l.queued++
			}
		case phaseReady:
			l.queued++
		}
	}
	return l
}

// cut closes the open flush and pays for it. b.mu is held.
func (b *Batcher) cut(kind Kind, reason Reason) {
	f := b.open
	f.kind, f.reason, f.phase = kind, reason, phaseQueued
	b.flushes = append(b.flushes, f)
	b.open = &flush{items: make([]*item, 0, len(f.items))}
	b.commitTokens.spend(1)
	if kind == KindPut {
		b.puts.spend(1)
	} else {
		b.inline.spend(float64(f.bytes))
	}
	b.metrics.flush(f)
}

// Run does the work until ctx ends or Drain has finished. Requests that then still wait are answered: with
// ErrMaybePersisted where a commit's outcome is unknown, else with ErrNotPersisted.
func (b *Batcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.mu.Lock()
	if b.started || b.draining {
		b.mu.Unlock()
		return errors.New("batcher: runs or ran already")
	}
	b.started, b.stop = true, cancel
	b.mu.Unlock()
	defer close(b.stopped)
	b.wg.Go(func() { b.watchHeld(ctx) })
	b.wg.Go(func() { b.watchDoubts(ctx) })
	b.loop(ctx)
	b.wg.Wait()
	b.abandon()
	return nil
}

func (b *Batcher) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := b.step(ctx)
		var tick <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			tick = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		case <-tick:
		}
	}
}

// step does all that is due and gives when to look again when nothing happens before.
func (b *Batcher) step(ctx context.Context) (next time.Time) {
	b.mu.Lock()
	defer b.unlock()
	now := time.Now()
	next = b.expireHeld(now)
	next = earliest(next, b.expire(b.open, now))
	for _, f := range b.flushes {
		next = earliest(next, b.expire(f, now))
	}
	b.tidy()
	v := b.policy.decide(b.load(now), now)
	switch {
	case v.flush:
		b.cut(v.kind, v.reason)
	case b.open.live == 0 && len(b.open.items) > 0:
		// All of it was answered: it still stands between its chains' flushes before and after it.
		b.flushes = append(b.flushes, b.open)
		b.open.phase = phaseQueued
		b.open = &flush{}
	}
	next = earliest(next, v.again)
	b.startUploads(ctx)
	next = earliest(next, b.startCommits(ctx, now))
	return earliest(next, b.sweepMarks(now))
}

// expire answers the batches of a flush whose deadline has passed; the others go on. It gives the next deadline.
func (b *Batcher) expire(f *flush, now time.Time) time.Time {
	if f.live == 0 || f.phase >= phaseSettling {
		return time.Time{}
	}
	if f.next.After(now) {
		return f.next
	}
	for _, it := range f.items {
		if !it.answered && it.flush == f && !it.req.deadline.After(now) {
			b.failChain(it, it.retriable(), now)
		}
	}
	f.refresh()
	return f.next
}

// tidy mends flushes of which batches were answered after they were encoded: extents without a waiter are left out, others
// are encoded (and uploaded) anew, and a flush without any waiter ends. b.mu is held.
func (b *Batcher) tidy() {
	for _, f := range b.flushes {
		if f.phase != phaseReady || f.frozen || !f.dirty {
			continue
		}
		switch {
		case f.live == 0:
			// Later flushes of its chains know of the earlier ones through this one.
			if !slices.ContainsFunc(f.deps, func(d *flush) bool { return !d.done() }) {
				b.finish(f)
			}
		case f.prune():
			f.phase, f.encoded = phaseQueued, false
		default:
			f.dirty = false
		}
	}
	b.flushes = slices.DeleteFunc(b.flushes, (*flush).done)
}

// finish ends a flush. b.mu is held.
func (b *Batcher) finish(f *flush) {
	f.phase = phaseDone
	if f.frozen {
		f.frozen = false
		b.unsettled--
	}
	for _, it := range f.items {
		b.drop(it.chain)
	}
	f.items, f.deps, f.hard, f.encoding = nil, nil, nil, encoding{}
}

// Drain refuses new requests, flushes what is buffered, waits for all waiters and ends Run. When ctx ends first the rest is
// answered as Run says, and ctx's error is returned.
func (b *Batcher) Drain(ctx context.Context) error {
	b.mu.Lock()
	b.draining = true
	started, stop := b.started, b.stop
	b.mu.Unlock()
	if !started {
		b.abandon()
		return nil
	}
	notify(b.wake)
	var err error
	for b.pending.Load() > 0 && err == nil {
		select {
		case <-b.idle:
		case <-b.stopped:
		case <-ctx.Done():
			err = fmt.Errorf("drain batcher: %w", ctx.Err())
		}
	}
	notify(b.idle) // another Drain may wait
	stop()
	<-b.stopped
	return err
}

// abandon answers everybody who is left.
func (b *Batcher) abandon() {
	b.mu.Lock()
	defer b.unlock()
	b.draining = true
	for _, c := range b.chains {
		for it := c.head; it != nil; it = c.head {
			b.unhold(it)
			b.answer(it, failure(it.retriable()))
		}
	}
}

// Buffered is the bytes of batches that have been submitted and not been released.
func (b *Batcher) Buffered() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffered
}
