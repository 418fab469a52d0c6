package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
	"github.com/skeinio/skein/objstore"
)

// Store is what the compactor needs of the metadata store.
type Store interface {
	// Checkpoint saves the block's state: merging may go up to the seq it gives.
	Checkpoint(ctx context.Context, id metadata.BlockID) (metadata.Seq, error)
	// Changed tells all agents that the blocks' rows changed.
	Changed(ids ...metadata.BlockID)
	RefreshCatalogue(ctx context.Context) (*metadata.Catalogue, error)
	Refresh(ctx context.Context, ids ...metadata.BlockID) error
	View(ctx context.Context, id metadata.BlockID) (*metadata.View, error)
	LoadInline(ctx context.Context, parts []metadata.InlinePart) ([][]byte, error)
	// Aborted gives the aborted transactions that may touch ranges of offsets below the last stable one.
	Aborted(ctx context.Context, queries []metadata.AbortedQuery) ([][]metadata.AbortedTxn, error)
}

var _ Store = (*metadata.Store)(nil)

// Compactor does one process's share of the work. Its passes are safe for concurrent use with those of other Compactors;
// of one Compactor each runs once at a time.
type Compactor struct {
	cfg     Config
	holder  string
	db      metadata.Compaction
	store   Store
	bucket  objstore.Bucket
	log     *slog.Logger
	metrics *metrics
	crash   func(Point) error
	configs topicconf.Set
	memory  *gate
	dropped map[metadata.PartitionID]droppedTo // by Retention, which runs once at a time
	pace    pace                               // of bytes read and written
	pressed atomic.Bool                        // a block has so much unmerged that the limit does not count

	mu      sync.Mutex
	touched map[metadata.BlockID]bool          // merged since their runs were last looked at
	seen    map[metadata.PartitionID]seenClean // by key compaction
	looked  bool                               // at all blocks, once after the start
}

// New makes a Compactor. It starts nothing.
func New(o Options) (*Compactor, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	if o.Crash == nil {
		o.Crash = func(Point) error { return nil }
	}
	c := &Compactor{
		cfg: o.Config.withDefaults(), holder: o.Holder, db: o.Driver, store: o.Store, bucket: o.Bucket, log: o.Logger,
		metrics: newMetrics(o.Registerer), crash: o.Crash, configs: topicconf.All(), touched: map[metadata.BlockID]bool{},
		seen: map[metadata.PartitionID]seenClean{},
	}
	c.dropped = map[metadata.PartitionID]droppedTo{}
	c.memory = newGate(gateBytes(o.Config.LargestExtent), c.metrics.memory)
	return c, nil
}

// job is one kind of work that is done again and again.
type job struct {
	name  string
	every time.Duration
	run   func(context.Context) error
}

// Names of jobs in metrics and leases.
const (
	jobMerge     = "merge"
	jobRemerge   = "remerge"
	jobClean     = "clean"
	jobRelease   = "release"
	jobRetention = "retention"
	jobGarbage   = "garbage"
	jobOrphans   = "orphans"
	jobTidy      = "tidy"
)

func jobNames() []string {
	return []string{jobMerge, jobRelease, jobRemerge, jobClean, jobRetention, jobGarbage, jobOrphans, jobTidy}
}

func (c *Compactor) jobs() []job {
	slow := retentionIntervals * c.cfg.Interval
	return []job{
		{jobMerge, c.cfg.Interval, c.MergeAll},
		{jobRelease, c.cfg.Interval, c.Release},
		{jobRemerge, c.cfg.Interval, c.Remerge},
		{jobClean, c.cfg.Interval, c.Clean},
		{jobRetention, slow, c.Retention},
		{jobGarbage, slow, c.Garbage},
		{jobOrphans, c.cfg.OrphanInterval, c.Orphans},
		{jobTidy, slow, c.Tidy},
	}
}

// Run works until ctx ends. Merging, which producers depend on, does not wait for the other jobs.
func (c *Compactor) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var others []job
	for _, j := range c.jobs() {
		if j.name == jobMerge {
			g.Go(func() error { return c.repeat(ctx, []job{j}) })
			continue
		}
		others = append(others, j)
	}
	g.Go(func() error { return c.repeat(ctx, others) })
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// repeat runs jobs one after another, each at its interval. One that fails is tried again at its next time.
func (c *Compactor) repeat(ctx context.Context, jobs []job) error {
	due := make([]time.Time, len(jobs))
	for i := range jobs {
		due[i] = time.Now().Add(min(jobs[i].every, c.cfg.Interval))
	}
	for {
		next := due[0]
		for _, d := range due {
			if d.Before(next) {
				next = d
			}
		}
		if err := pause(ctx, time.Until(next)); err != nil {
			return err
		}
		for i, j := range jobs {
			if time.Now().Before(due[i]) {
				continue
			}
			c.work(ctx, j)
			due[i] = time.Now().Add(j.every)
		}
	}
}

func (c *Compactor) work(ctx context.Context, j job) {
	started := time.Now()
	err := j.run(ctx)
	c.metrics.done(j.name, err, time.Since(started))
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, metadata.ErrFenced), errors.Is(err, metadata.ErrUnavailable):
		c.log.Warn("compactor job not finished, trying again", "job", j.name, "error", err)
	default:
		c.log.Error("compactor job failed, trying again", "job", j.name, "error", err)
	}
}

// held is leases that are renewed until release is called. Its context ends when one of them is lost.
type held struct {
	ctx    context.Context // of the work under the leases; a held lives for one call
	cancel context.CancelCauseFunc
	db     metadata.Compaction
	mu     sync.Mutex
	leases map[string]metadata.Lease
	done   chan struct{}
}

// hold takes leases; those that somebody else holds are left out. It gives nil when none was to be had.
func (c *Compactor) hold(ctx context.Context, names ...string) (*held, error) {
	h := &held{db: c.db, leases: map[string]metadata.Lease{}, done: make(chan struct{})}
	h.ctx, h.cancel = context.WithCancelCause(ctx)
	for _, name := range names {
		l, ok, err := c.db.AcquireLease(ctx, name, c.holder, c.cfg.LeaseTTL)
		if err != nil {
			close(h.done)
			h.release(ctx)
			return nil, err
		}
		if ok {
			h.leases[name] = l
		}
	}
	if len(h.leases) == 0 {
		h.cancel(nil)
		return nil, nil
	}
	go h.renew(c.cfg.LeaseTTL)
	return h, nil
}

// renew keeps the leases alive.
func (h *held) renew(ttl time.Duration) {
	defer close(h.done)
	for {
		if err := pause(h.ctx, ttl/3); err != nil {
			return
		}
		for name, l := range h.all() {
			l, err := h.db.RenewLease(h.ctx, l, ttl)
			if errors.Is(err, metadata.ErrFenced) {
				h.cancel(err)
				return
			}
			if err == nil {
				h.mu.Lock()
				h.leases[name] = l
				h.mu.Unlock()
			}
		}
	}
}

func (h *held) all() map[string]metadata.Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make(map[string]metadata.Lease, len(h.leases))
	for name, l := range h.leases {
		list[name] = l
	}
	return list
}

func (h *held) get(name string) (metadata.Lease, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, ok := h.leases[name]
	return l, ok
}

// releaseTimeout bounds the giving back of leases at the end of a job; after it they run out.
const releaseTimeout = 2 * time.Second

// release ends the renewing and gives the leases back.
func (h *held) release(ctx context.Context) {
	h.cancel(nil)
	<-h.done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	for _, l := range h.all() {
		// A lease that cannot be given back runs out by itself.
		_ = h.db.ReleaseLease(ctx, l)
	}
}

// alone runs a job that one compactor of the cluster does at a time. When another one is at it, this one does nothing.
func (c *Compactor) alone(ctx context.Context, name string, run func(context.Context) error) error {
	h, err := c.hold(ctx, "job/"+name)
	if err != nil || h == nil {
		return err
	}
	defer h.release(ctx)
	if err := run(h.ctx); err != nil {
		if cause := context.Cause(h.ctx); cause != nil && ctx.Err() == nil {
			err = errors.Join(err, cause)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// eachBlock calls fn for every page of the backlog.
func (c *Compactor) eachBlock(ctx context.Context, fn func([]metadata.BacklogRow) error) error {
	after := metadata.BlockID(0)
	for {
		page, err := c.db.Backlog(ctx, after, backlogPage)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		if err := fn(page); err != nil {
			return err
		}
		after = page[len(page)-1].Row.ID
	}
}

// pace spreads bytes over time.
type pace struct {
	mu   sync.Mutex
	next time.Time // when what was spent so far is paid for
}

// spend waits until n bytes may be moved.
func (c *Compactor) spend(ctx context.Context, n int64) error {
	if c.cfg.BytesPerSecond <= 0 || c.pressed.Load() {
		return nil
	}
	c.pace.mu.Lock()
	now := time.Now()
	if c.pace.next.Before(now) {
		c.pace.next = now
	}
	wait := c.pace.next.Sub(now)
	c.pace.next = c.pace.next.Add(time.Duration(float64(n) / float64(c.cfg.BytesPerSecond) * float64(time.Second)))
	c.pace.mu.Unlock()
	return pause(ctx, wait)
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
