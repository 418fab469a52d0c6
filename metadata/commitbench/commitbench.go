// Package commitbench measures commits: whole ones, with level0 rows, receipts, objects and producer states, through a
// Store on a real driver. It puts nothing in a bucket.
package commitbench

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skeinio/skein/metadata"
)

// Open makes a driver. It is called once for every committer: each is an agent of its own.
type Open func(ctx context.Context) (metadata.Driver, error)

// Options of a run. Zero values take the defaults.
type Options struct {
	Partitions int           // that every commit writes to; default 1
	Committers int           // that commit to the same partitions at once; default 1
	Duration   time.Duration // default 10 s, after a warm-up of a tenth of it
	Producers  int           // idempotent producers of each committer, among whom its partitions are divided; default 1
	Records    int           // of each batch; default 1
	Rate       float64       // commits per second of each committer; 0: as fast as they go
	// Snapshot opens a snapshot of the database, as somebody's long report has one, and gives what closes it. When it is
	// set the run is measured without it for a fifth of Duration first, then with it open for Duration.
	Snapshot func(ctx context.Context) (release func() error, err error)
}

// Result of a run.
type Result struct {
	PartitionCommitsPerSecond float64 `json:"partition_commits_per_second"`
	CommitsPerSecond          float64 `json:"commits_per_second"`
	P50Millis                 float64 `json:"p50_ms"`
	P99Millis                 float64 `json:"p99_ms"`
	Commits                   int     `json:"commits"`
	// Only with a snapshot: the median before it was opened, and that of the last tenth of the commits under it.
	P50MillisBefore float64 `json:"p50_before_ms,omitempty"`
	P50MillisEnd    float64 `json:"p50_end_ms,omitempty"`
}

// Defaults.
const (
	DefaultDuration = 10 * time.Second
	// batchBytes is what each batch claims to take.
	batchBytes = 1024
	// cleanupTimeout bounds the deletion of the topic.
	cleanupTimeout = 10 * time.Second
)

func (o *Options) defaults() error {
	if o.Partitions == 0 {
		o.Partitions = 1
	}
	o.Committers = max(o.Committers, 1)
	o.Producers = max(o.Producers, 1)
	o.Records = max(o.Records, 1)
	if o.Duration <= 0 {
		o.Duration = DefaultDuration
	}
	if o.Partitions < 1 || o.Partitions > metadata.MaxPartitionsPerTopic {
		return fmt.Errorf("%d partitions: want 1 to %d", o.Partitions, metadata.MaxPartitionsPerTopic)
	}
	return nil
}

// Run makes a topic, commits to it as fast as it can and deletes it.
func Run(ctx context.Context, open Open, opts Options) (res Result, err error) {
	if err := opts.defaults(); err != nil {
		return res, err
	}
	committers := make([]*committer, opts.Committers)
	defer func() {
		for _, c := range committers {
			if c != nil {
				err = errors.Join(err, c.driver.Close())
			}
		}
	}()
	for i := range committers {
		driver, err := open(ctx)
		if err != nil {
			return res, fmt.Errorf("open the database: %w", err)
		}
		committers[i] = &committer{driver: driver, store: metadata.NewStore(metadata.Options{Driver: driver}), opts: opts}
	}
	topic := "skein-bench-commit-" + strings.ToLower(rand.Text()[:8])
	parts, err := createTopic(ctx, committers[0].store, topic, opts.Partitions)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, deleteTopic(ctx, committers[0].store, topic)) }()
	for i, c := range committers {
		if err := c.prepare(ctx, parts); err != nil {
			return res, fmt.Errorf("committer %d: %w", i, err)
		}
	}
	if opts.Snapshot == nil {
		return measure(ctx, committers, opts)
	}
	return measureSnapshot(ctx, committers, opts)
}

// measureSnapshot measures without the snapshot, then with it.
func measureSnapshot(ctx context.Context, committers []*committer, opts Options) (res Result, err error) {
	without := opts
	without.Duration = opts.Duration / 5
	before, err := measure(ctx, committers, without)
	if err != nil {
		return res, err
	}
	release, err := opts.Snapshot(ctx)
	if err != nil {
		return res, fmt.Errorf("open a snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, release()) }()
	if res, err = measure(ctx, committers, opts); err != nil {
		return res, err
	}
	var end []time.Duration
	for _, c := range committers {
		end = append(end, c.took[len(c.took)*9/10:]...)
	}
	slices.Sort(end)
	res.P50MillisBefore, res.P50MillisEnd = before.P50Millis, quantile(end, 0.50)
	return res, nil
}

func createTopic(ctx context.Context, s *metadata.Store, name string, partitions int) ([]metadata.Partition, error) {
	made, errs, err := s.CreateTopics(ctx, []metadata.NewTopic{{Name: name, Partitions: int32(partitions), ReplicationFactor: 1}}, false)
	if err == nil {
		err = errs[0]
	}
	if err != nil {
		return nil, err
	}
	// A flush's extents are ordered by block and slot. The last partitions may share a block that is older than the others.
	parts := made[0].Partitions
	slices.SortFunc(parts, func(a, b metadata.Partition) int {
		return cmp.Or(cmp.Compare(a.Block, b.Block), cmp.Compare(a.Slot, b.Slot))
	})
	return parts, nil
}

func deleteTopic(ctx context.Context, s *metadata.Store, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	_, _, err := s.DeleteTopics(ctx, []metadata.TopicRef{{Name: name}})
	return err
}

func measure(ctx context.Context, committers []*committer, opts Options) (Result, error) {
	g, ctx := errgroup.WithContext(ctx)
	background, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, len(committers))
	warm := time.Now().Add(opts.Duration / 10)
	end := warm.Add(opts.Duration)
	for _, c := range committers {
		c.took, c.last = nil, time.Time{}
		go func() { done <- c.store.Run(background) }()
		g.Go(func() error { return c.run(ctx, warm, end) })
	}
	err := g.Wait()
	stop()
	for range committers {
		err = errors.Join(err, <-done)
	}
	if err != nil {
		return Result{}, err
	}
	var all []time.Duration
	var last time.Time
	for _, c := range committers {
		all = append(all, c.took...)
		if c.last.After(last) {
			last = c.last
		}
	}
	slices.Sort(all)
	perSecond := float64(len(all)) / last.Sub(warm).Seconds()
	return Result{
		CommitsPerSecond: perSecond, PartitionCommitsPerSecond: perSecond * float64(opts.Partitions), Commits: len(all),
		P50Millis: quantile(all, 0.50), P99Millis: quantile(all, 0.99),
	}, nil
}

func quantile(sorted []time.Duration, q float64) float64 {
	return float64(sorted[int(q*float64(len(sorted)-1))]) / float64(time.Millisecond)
}

// committer commits one flush after the other.
type committer struct {
	driver  metadata.Driver
	store   *metadata.Store
	opts    Options
	parts   []metadata.Partition
	ids     metadata.ProducerRange
	version metadata.CatalogueVersion
	next    metadata.Sequence
	took    []time.Duration
	last    time.Time // end of the last commit that counts
}

func (c *committer) prepare(ctx context.Context, parts []metadata.Partition) error {
	c.parts = parts
	catalogue, err := c.store.Catalogue(ctx)
	if err != nil {
		return err
	}
	c.version = catalogue.Version
	c.ids, err = c.store.AllocateProducerIDs(ctx, c.opts.Producers)
	return err
}

func (c *committer) run(ctx context.Context, warm, end time.Time) error {
	var pace <-chan time.Time // nil: do not wait
	if c.opts.Rate > 0 {
		ticker := time.NewTicker(time.Duration(float64(time.Second) / c.opts.Rate))
		defer ticker.Stop()
		pace = ticker.C
	}
	for {
		if pace != nil {
			select {
			case <-pace:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		f, err := c.flush(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		results, err := c.store.Commit(ctx, []*metadata.Flush{f})
		if err != nil {
			return err
		}
		now := time.Now()
		for _, r := range results[0].Batches {
			if r.Code != metadata.CodeAccepted {
				return fmt.Errorf("a batch got code %d", r.Code)
			}
		}
		if start.After(warm) {
			c.took, c.last = append(c.took, now.Sub(start)), now
		}
		if now.After(end) && len(c.took) > 0 { // one commit at least, however slow it is
			return nil
		}
	}
}

// flush makes the next flush: a batch for every partition, each of the producer whose share it is.
func (c *committer) flush(ctx context.Context) (*metadata.Flush, error) {
	id, err := metadata.NewFlushID()
	if err != nil {
		return nil, err
	}
	now, err := c.store.Now(ctx)
	if err != nil {
		return nil, err
	}
	f := &metadata.Flush{
		ID: id, Seen: now, Object: metadata.ObjectKey("bench/" + id.String()), ObjectSize: int64(len(c.parts)) * batchBytes,
		Extents: make([]metadata.Extent, len(c.parts)),
	}
	batches := make([]metadata.Batch, len(c.parts))
	records := int32(c.opts.Records)
	for i, p := range c.parts {
		producer := c.ids.First + metadata.ProducerID(i*c.opts.Producers/len(c.parts))
		batches[i] = metadata.Batch{
			Length: batchBytes, Records: records, MaxTimestamp: now, Producer: producer, First: c.next,
			Last: c.next.Next(records - 1), Validated: c.version,
		}
		f.Extents[i] = metadata.Extent{
			Block: p.Block, Slot: p.Slot, Position: int64(i) * batchBytes, Length: batchBytes, RawLength: batchBytes,
			CRC: uint32(i) * 2654435761, Created: p.Created, Batches: batches[i : i+1 : i+1],
		}
	}
	c.next = c.next.Next(records)
	return f, nil
}
