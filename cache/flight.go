package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skeinio/skein/objstore"
)

const (
	// loadTimeout bounds one load with its retries, from when it has its place among the concurrent ones.
	loadTimeout = 30 * time.Second
	// getTries is how often a read is tried when the bucket may recover, with a pause of retryPause, doubled each time,
	// between the tries.
	getTries   = 4
	retryPause = 50 * time.Millisecond
)

// flight is an extent being loaded. Its fields are guarded by Cache.mu until done is closed.
type flight struct {
	extent   Extent
	class    Class // whose entry it will be
	ahead    bool  // prefetched, and nobody asked for it yet
	group    *group
	waiters  int
	finished bool
	done     chan struct{}
	data     []byte
	err      error
}

// group is the flights of one GET, or of one read of inline payloads. Cache.mu guards what changes.
type group struct {
	class   Class // whose limits it runs under
	inline  bool
	pinned  int64 // bytes that reading and decoding take, within the class's bound
	flights []*flight
	waiters int  // of the flights that are not finished
	left    int  // flights that are not finished
	started bool // it has its place among the concurrent loads
	cancel  context.CancelFunc
}

// wait is one caller's place at a flight; at is the index of its result.
type wait struct {
	flight *flight
	at     int
}

func newFlight(class Class, e *Extent) *flight {
	return &flight{extent: *e, class: class, done: make(chan struct{})}
}

func (g *group) addWaiter() {
	if g != nil {
		g.waiters++
	}
}

// queued says whether a flight is in a cold load that has no place yet. A reader at the tail does not queue behind cold
// readers: it takes such a flight over. c.mu is held.
func (f *flight) queued() bool { return f.group != nil && f.group.class == Cold && !f.group.started }

// takeOver takes a flight with its waiters out of a load that has not started, to be launched anew. c.mu is held.
func (c *Cache) takeOver(f *flight) {
	g := f.group
	g.flights = slices.DeleteFunc(g.flights, func(other *flight) bool { return other == f })
	f.group = nil
	g.lose(f)
	if g.left > 0 && g.waiters == 0 {
		c.abandon(g)
	}
}

// lose takes a flight off what a group waits for; with the last one the group is done. c.mu is held.
func (g *group) lose(f *flight) {
	g.waiters -= f.waiters
	if g.left--; g.left == 0 {
		g.cancel()
	}
}

// asked notes that somebody wants a flight that was begun ahead. c.mu is held.
func (c *Cache) asked(f *flight) {
	if f.ahead {
		f.ahead = false
		c.unread -= f.extent.RawLength
	}
}

// launch starts the loads of new flights. c.mu is held.
func (c *Cache) launch(ctx context.Context, class Class, fresh []*flight) {
	if len(fresh) == 0 {
		return
	}
	for _, flights := range coalesce(fresh) {
		g := &group{class: class, inline: flights[0].extent.Object == "", flights: flights, left: len(flights)}
		var gctx context.Context
		// The load serves whoever asks for it, so it outlives the caller: give up and Close end it.
		gctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
		for _, f := range flights {
			f.group = g
			g.waiters += f.waiters
			g.pinned += f.extent.pinned()
		}
		g.pinned = min(g.pinned, c.limits[class].maxBytes)
		c.groups[g] = struct{}{}
		c.loads.Add(1)
		go c.run(gctx, g)
	}
}

// await collects the results of what is being loaded.
func (c *Cache) await(ctx context.Context, waits []wait, results []Result) {
	for i, w := range waits {
		select {
		case <-w.flight.done:
		default:
			select {
			case <-w.flight.done:
			case <-ctx.Done():
				c.giveUp(ctx.Err(), waits[i:], results)
				return
			}
		}
		f := w.flight
		results[w.at] = Result{Data: f.data, Err: f.err}
	}
}

// giveUp leaves flights, taking the results of those that are done. A load that nobody waits for any more is cancelled.
func (c *Cache) giveUp(reason error, waits []wait, results []Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range waits {
		f := w.flight
		if f.finished {
			results[w.at] = Result{Data: f.data, Err: f.err}
			continue
		}
		results[w.at].Err = reason
		f.waiters--
		f.group.waiters--
		if f.group.waiters == 0 {
			c.abandon(f.group)
		}
	}
}

// abandon cancels a load and makes sure that nobody joins it. c.mu is held.
func (c *Cache) abandon(g *group) {
	g.cancel()
	for _, f := range g.flights {
		if !f.finished {
			c.finish(f, nil, context.Canceled)
		}
	}
}

// finish ends a flight. c.mu is held.
func (c *Cache) finish(f *flight, data []byte, err error) {
	if f.finished {
		return
	}
	f.finished, f.data, f.err = true, data, err
	delete(c.flights, f.extent.Key)
	if f.group != nil {
		f.group.lose(f)
	}
	kept := err == nil && c.keep(f)
	if !kept {
		c.asked(f)
	}
	close(f.done)
}

// keep makes a flight's data an entry. c.mu is held.
func (c *Cache) keep(f *flight) bool {
	e := &entry{data: f.data, ahead: f.ahead}
	return c.regions[f.class].add(f.extent.Key, e)
}

// run loads a group.
func (c *Cache) run(ctx context.Context, g *group) {
	defer c.loads.Done()
	defer g.cancel()
	err := c.load(ctx, g)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.groups, g)
	if c.closed && errors.Is(err, context.Canceled) {
		err = ErrClosed
	}
	for _, f := range g.flights {
		if !f.finished {
			c.finish(f, nil, fmt.Errorf("read %s: %w", &f.extent, err))
		}
	}
}

// load waits for its place and reads. Flights that it leaves unfinished fail with the error.
func (c *Cache) load(ctx context.Context, g *group) error {
	l := &c.limits[g.class]
	places := l.gets
	if g.inline {
		places = l.inline
	}
	if err := places.Acquire(ctx, 1); err != nil {
		return err
	}
	defer places.Release(1)
	if err := l.bytes.Acquire(ctx, g.pinned); err != nil {
		return err
	}
	defer c.releaseBytes(l.bytes, g.class, g.pinned)
	c.metrics.inFlight(g.class, g.pinned)
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if g.inline {
		return c.loadInline(ctx, c.begin(g))
	}
	return c.loadObject(ctx, g)
}

func (c *Cache) releaseBytes(s *semaphore.Weighted, class Class, n int64) {
	c.metrics.inFlight(class, -n)
	s.Release(n)
}

// begin gives what of a group is not finished: Put may have been faster.
func (c *Cache) begin(g *group) []*flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.started = true
	var rest []*flight
	for _, f := range g.flights {
		if !f.finished {
			rest = append(rest, f)
		}
	}
	return rest
}

func (c *Cache) loadInline(ctx context.Context, flights []*flight) error {
	if len(flights) == 0 {
		return nil
	}
	extents := make([]Extent, len(flights))
	for i, f := range flights {
		extents[i] = f.extent
	}
	c.metrics.loaded(kindInline)
	parts, err := c.inline(ctx, extents)
	if err != nil {
		return err
	}
	if len(parts) != len(extents) {
		return fmt.Errorf("%d inline payloads read, asked for %d", len(parts), len(extents))
	}
	for i, f := range flights {
		switch {
		case parts[i] == nil:
			c.deliver(f, nil, fmt.Errorf("%w: %s", ErrMissing, &f.extent))
		case int64(len(parts[i])) != f.extent.Length:
			c.deliver(f, nil, fmt.Errorf("%w: %s: got %d bytes", ErrCorrupt, &f.extent, len(parts[i])))
		default:
			data, err := c.decoded(f, parts[i])
			c.deliver(f, data, err)
		}
	}
	return nil
}

// loadObject reads a group from the disk tier, what is left of it by one GET, and again when the bucket may have recovered.
func (c *Cache) loadObject(ctx context.Context, g *group) error {
	if c.disk != nil {
		c.loadDisk(c.begin(g))
	}
	pause := retryPause
	for try := 1; ; try++ {
		flights := c.begin(g)
		if len(flights) == 0 {
			return nil
		}
		err := c.getAll(ctx, g.class, flights)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, objstore.ErrNotFound):
			return fmt.Errorf("%w: %w", ErrMissing, err)
		case errors.Is(err, objstore.ErrRange):
			return fmt.Errorf("%w: object is too short: %w", ErrCorrupt, err)
		case !objstore.Retriable(err) || try == getTries:
			return err
		}
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil {
			return err
		}
		pause *= 2
	}
}

// loadDisk finishes what the disk tier has. What it has that does not decode is a miss.
func (c *Cache) loadDisk(flights []*flight) {
	for _, f := range flights {
		stored, ok := c.disk.read(&f.extent)
		if !ok {
			continue
		}
		data, err := c.decoded(f, stored)
		if err != nil {
			c.disk.unusable(f.extent.Key)
			continue
		}
		c.deliver(f, data, nil)
	}
}

// getAll reads flights by one GET; where the disk tier had what lies between them, by as many as the gaps ask for.
func (c *Cache) getAll(ctx context.Context, class Class, flights []*flight) error {
	for _, part := range coalesce(flights) {
		if err := c.get(ctx, class, part); err != nil {
			return err
		}
	}
	return nil
}

// get reads flights, which are in order of position, by one GET, each into memory of its own. While it goes on reading
// others decode: it returns when they have.
func (c *Cache) get(ctx context.Context, class Class, flights []*flight) error {
	first, last := &flights[0].extent, &flights[len(flights)-1].extent
	pos, end := first.Position, last.Position+last.Length
	c.metrics.loaded(kindObject)
	r, err := c.bucket.Get(ctx, first.Object, pos, end-pos)
	if err != nil {
		return err
	}
	defer r.Close()
	var decoding sync.WaitGroup
	defer decoding.Wait()
	for i, f := range flights {
		skipped, err := io.CopyN(io.Discard, r, f.extent.Position-pos)
		pos += skipped
		if err != nil {
			return short(err, pos)
		}
		buf := make([]byte, f.extent.Length)
		n, err := io.ReadFull(r, buf)
		pos += int64(n)
		c.metrics.readBytes(class, n)
		if err != nil {
			return short(err, pos)
		}
		if i == len(flights)-1 || !c.decoders.TryAcquire(1) {
			c.decodeRead(class, f, buf)
			continue
		}
		decoding.Go(func() {
			defer c.decoders.Release(1)
			c.decodeRead(class, f, buf)
		})
	}
	return nil
}

// decodeRead finishes a flight with what was read from the bucket.
func (c *Cache) decodeRead(class Class, f *flight, stored []byte) {
	data, err := c.decoded(f, stored)
	if err == nil && class == Cold && c.disk != nil {
		c.disk.offer(f.extent.Key, stored)
	}
	c.deliver(f, data, err)
}

// short tells an object that ends too early from a failure of the bucket: the bucket's errors are its own, even where
// their cause is a connection's early end.
func short(err error, pos int64) error {
	var oe *objstore.Error
	if !errors.As(err, &oe) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return fmt.Errorf("%w: object ends at %d", ErrCorrupt, pos)
	}
	return err
}

// decoded verifies and decodes what was read.
func (c *Cache) decoded(f *flight, stored []byte) ([]byte, error) {
	data, err := c.decode(&f.extent, stored)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, &f.extent, err)
	}
	if int64(len(data)) != f.extent.RawLength {
		return nil, fmt.Errorf("%w: %s: decoded to %d bytes, expected %d", ErrCorrupt, &f.extent, len(data), f.extent.RawLength)
	}
	return data, nil
}

func (c *Cache) deliver(f *flight, data []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(f, data, err)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
