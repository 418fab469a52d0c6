package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// Defaults of Options.
const (
	// DefaultBytes bounds all entries together.
	DefaultBytes = 512 << 20
	// coldFraction: one part in so many of the bytes is for cold readers.
	coldFraction = 4
	// DefaultGets and DefaultColdGets are GETs at a time.
	DefaultGets     = 32
	DefaultColdGets = 16
	// DefaultInFlightBytes and DefaultColdInFlightBytes bound what is being read and decoded at a time, in bytes.
	DefaultInFlightBytes     = 128 << 20
	DefaultColdInFlightBytes = 64 << 20
)

// Other bounds.
const (
	// MaxExtentBytes bounds one extent, stored and decoded alike: nothing is allocated for more.
	MaxExtentBytes = 256 << 20
	// EntryOverheadBytes is about what an entry takes beside its bytes.
	EntryOverheadBytes = 256
	// inlineLoads is how many loads of inline payloads run at a time, for each class.
	inlineLoads = 4
	// prefetchFraction: what was prefetched and not read yet takes at most one part in so many of the cold bytes.
	prefetchFraction = 2
)

// Errors of a Result. They come wrapped in what names the object and the range. Match with errors.Is.
var (
	// ErrCorrupt: the bytes are not what they should be (checksum, encoding, an object that is too short).
	ErrCorrupt = errors.New("corrupt extent")
	// ErrMissing: the object or the inline payload is not there.
	ErrMissing = errors.New("extent is gone")
	// ErrClosed: the cache was closed.
	ErrClosed = errors.New("cache is closed")
)

// Class is a kind of reader.
type Class uint8

// The classes of readers.
const (
	Tail Class = iota // near the end of the log
	Cold              // far behind, sequential
	classes
)

func (c Class) String() string { return [classes]string{"tail", "cold"}[c] }

// Key names an extent: where it starts in an object, or in an inline payload when Object is "".
type Key struct {
	Object   string
	Inline   [16]byte // the payload's id
	Position int64    // bytes
}

// Extent is what to read and how it is stored. Codec and CRC are the DecodeFunc's business.
type Extent struct {
	Key
	Length    int64 // bytes stored
	RawLength int64 // bytes decoded
	Codec     uint8
	CRC       uint32
}

func (e *Extent) String() string {
	if e.Object == "" {
		return fmt.Sprintf("inline payload %x bytes [%d:+%d]", e.Inline, e.Position, e.Length)
	}
	return fmt.Sprintf("object %q bytes [%d:+%d]", e.Object, e.Position, e.Length)
}

// pinned is how many bytes reading and decoding the extent takes.
func (e *Extent) pinned() int64 {
	if e.RawLength == e.Length {
		return e.Length
	}
	return e.Length + e.RawLength
}

// check refuses what no extent can be.
func (e *Extent) check() error {
	if e.Position < 0 || e.Length <= 0 || e.Length > MaxExtentBytes || e.RawLength <= 0 || e.RawLength > MaxExtentBytes {
		return fmt.Errorf("%w: %s, decoded %d bytes: out of bounds", ErrCorrupt, e, e.RawLength)
	}
	return nil
}

// Result is an extent's decoded bytes, or why there are none. Data is shared: it must not be changed.
type Result struct {
	Data []byte
	Err  error
}

// Source is what the cache needs of a bucket (objstore.Bucket).
type Source interface {
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
}

// DecodeFunc verifies stored bytes and gives the decoded ones, which may be the same memory. It is called once per load.
type DecodeFunc func(e *Extent, stored []byte) ([]byte, error)

// InlineFunc reads parts of inline payloads, one slice for each extent, nil where the payload is gone.
type InlineFunc func(ctx context.Context, extents []Extent) ([][]byte, error)

// Options of a Cache. Zero numbers take the defaults.
type Options struct {
	Bucket Source
	Inline InlineFunc
	Decode DecodeFunc
	// Bytes bounds the entries of both classes with their overhead; ColdBytes is the cold readers' part of it.
	Bytes, ColdBytes int64
	// Gets and ColdGets bound the GETs at a time.
	Gets, ColdGets int
	// InFlightBytes and ColdInFlightBytes bound the bytes being read at a time. A single larger extent is read alone.
	InFlightBytes, ColdInFlightBytes int64
	// Disk is the second tier; nil: none. It is the caller's to run and to close, after the cache.
	Disk *Disk
	// Registerer takes the metrics; nil: none are registered.
	Registerer prometheus.Registerer
}

func (o *Options) setDefaults() {
	set := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&o.Bytes, DefaultBytes)
	set(&o.ColdBytes, o.Bytes/coldFraction)
	set(&o.InFlightBytes, DefaultInFlightBytes)
	set(&o.ColdInFlightBytes, DefaultColdInFlightBytes)
	if o.Gets <= 0 {
		o.Gets = DefaultGets
	}
	if o.ColdGets <= 0 {
		o.ColdGets = DefaultColdGets
	}
}

// limits are one class's.
type limits struct {
	gets     *semaphore.Weighted
	inline   *semaphore.Weighted
	bytes    *semaphore.Weighted
	maxBytes int64
}

// Cache is safe for concurrent use. The goroutines that load belong to it: Close ends and awaits them.
type Cache struct {
	bucket  Source
	inline  InlineFunc
	decode  DecodeFunc
	disk    *Disk // nil: none
	limits  [classes]limits
	metrics *metrics
	// decoders are those that decode beside the GETs they read, over all loads: as many as there are processors.
	decoders *semaphore.Weighted

	mu       sync.Mutex
	regions  [classes]*region
	flights  map[Key]*flight
	groups   map[*group]struct{}
	unread   int64 // bytes prefetched, on their way or not read yet
	maxAhead int64 // bound of unread
	closed   bool
	loads    sync.WaitGroup
}

// New makes a cache. It starts nothing.
func New(o Options) (*Cache, error) {
	o.setDefaults()
	if o.Bucket == nil || o.Decode == nil || o.Inline == nil {
		return nil, errors.New("cache: Bucket, Inline and Decode are needed")
	}
	if o.ColdBytes >= o.Bytes {
		return nil, fmt.Errorf("cache: %d bytes for cold readers of %d in all", o.ColdBytes, o.Bytes)
	}
	c := &Cache{
		bucket: o.Bucket, inline: o.Inline, decode: o.Decode, disk: o.Disk,
		flights: map[Key]*flight{}, groups: map[*group]struct{}{}, maxAhead: o.ColdBytes / prefetchFraction,
		decoders: semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0))),
	}
	for class := range classes {
		l := &c.limits[class]
		gets := o.Gets
		size := o.Bytes - o.ColdBytes
		l.maxBytes = o.InFlightBytes
		if class == Cold {
			gets, size, l.maxBytes = o.ColdGets, o.ColdBytes, o.ColdInFlightBytes
		}
		l.gets = semaphore.NewWeighted(int64(gets))
		l.inline = semaphore.NewWeighted(inlineLoads)
		l.bytes = semaphore.NewWeighted(l.maxBytes)
		r, err := newRegion(size, func(e *entry) { c.read(e) })
		if err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		c.regions[class] = r
	}
	var err error
	if c.metrics, err = newMetrics(c, o.Registerer); err != nil {
		return nil, fmt.Errorf("cache: register metrics: %w", err)
	}
	return c, nil
}

// Get gives the extents' bytes, a Result for each, in order. It waits for all of them; when ctx ends first those that are
// not there yet fail with its error, and what nobody else waits for is not read any further.
func (c *Cache) Get(ctx context.Context, class Class, extents []Extent) []Result {
	results := make([]Result, len(extents))
	var waits []wait
	var fresh []*flight
	hits := 0
	c.mu.Lock()
	for i := range extents {
		e := &extents[i]
		if data, ok := c.lookup(class, e.Key); ok {
			results[i] = hit(e, data)
			hits++
			continue
		}
		if err := c.refuse(e); err != nil {
			results[i].Err = err
			continue
		}
		f := c.flights[e.Key]
		switch {
		case f == nil:
			f = newFlight(class, e)
			c.flights[e.Key] = f
			fresh = append(fresh, f)
		case class == Tail && f.queued():
			c.takeOver(f)
			fresh = append(fresh, f)
		default:
			f.group.addWaiter() // a flight of this very call has none yet: launch counts it
		}
		if class == Tail {
			f.class = Tail
		}
		c.asked(f)
		f.waiters++
		waits = append(waits, wait{flight: f, at: i})
	}
	c.metrics.lookups(class, hits, len(waits))
	c.launch(ctx, class, fresh)
	c.mu.Unlock()
	c.await(ctx, waits, results)
	return results
}

// Put adds what the caller wrote itself: e.RawLength bytes, decoded, which it copies. Whoever is loading that extent is
// served with it.
func (c *Cache) Put(e Extent, raw [][]byte) {
	if e.check() != nil {
		return
	}
	data := join(raw)
	if int64(len(data)) != e.RawLength {
		return // not that extent: readers will find what the bucket has
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[e.Key]; f != nil {
		f.class = Tail
		c.finish(f, data, nil)
		return
	}
	c.regions[Tail].add(e.Key, &entry{data: data})
}

// join copies the parts into one slice, which must not be changed. It was a quarter of the processor time of an agent that
// writes all it can: make and slices.Concat first clear what is then written over, a strings.Builder does not.
func join(parts [][]byte) []byte {
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	var b strings.Builder
	b.Grow(size)
	for _, part := range parts {
		b.Write(part)
	}
	joined := b.String()
	return unsafe.Slice(unsafe.StringData(joined), len(joined))
}

// Prefetch starts to read extents that a cold reader will ask for soon: of each of its streams what lies ahead, in order. As
// long as more than half of that is there it reads nothing, so that GETs are long. It does not wait, and leaves out what goes over the bound of what was prefetched and not read yet.
func (c *Cache) Prefetch(ctx context.Context, streams ...[]Extent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var due [][]*Extent
	for _, ahead := range streams {
		var missing []*Extent
		var all, lacking int64
		for j := range ahead {
			e := &ahead[j]
			all += e.Length
			if c.flights[e.Key] == nil && !c.has(e.Key) && c.refuse(e) == nil {
				lacking += e.Length
				missing = append(missing, e)
			}
		}
		if lacking > 0 && 2*lacking >= all {
			due = append(due, missing)
		}
	}
	c.launch(ctx, Cold, c.ahead(due))
}

// ahead makes flights of what is prefetched, as much as there is room for. c.mu is held.
func (c *Cache) ahead(missing [][]*Extent) (fresh []*flight) {
	for _, stream := range missing {
		for _, e := range stream {
			if c.unread+e.RawLength > c.maxAhead {
				return fresh
			}
			if c.flights[e.Key] != nil {
				continue // of two streams
			}
			f := newFlight(Cold, e)
			f.ahead = true
			f.waiters = 1 // nobody gives it up but Close
			c.unread += e.RawLength
			c.flights[e.Key] = f
			fresh = append(fresh, f)
		}
	}
	return fresh
}

// Close ends all loads, which fail with ErrClosed, and waits for them.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	for g := range c.groups {
		g.cancel()
	}
	c.mu.Unlock()
	c.loads.Wait()
}

// refuse says why an extent cannot be loaded. c.mu is held.
func (c *Cache) refuse(e *Extent) error {
	if c.closed {
		return ErrClosed
	}
	return e.check()
}

// lookup finds an entry. The other class's entries do not become younger by it. c.mu is held.
func (c *Cache) lookup(class Class, k Key) ([]byte, bool) {
	e := c.regions[class].get(k)
	if e == nil {
		e = c.regions[1-class].peek(k)
	}
	if e == nil {
		return nil, false
	}
	c.read(e)
	return e.data, true
}

func (c *Cache) has(k Key) bool {
	return c.regions[Tail].peek(k) != nil || c.regions[Cold].peek(k) != nil
}

// read notes that an entry was read, or is gone: it does not count as prefetched any more. c.mu is held.
func (c *Cache) read(e *entry) {
	if e.ahead {
		e.ahead = false
		c.unread -= int64(len(e.data))
	}
}

// hit makes the result of an entry; its length is the last thing that tells two extents apart.
func hit(e *Extent, data []byte) Result {
	if int64(len(data)) != e.RawLength {
		return Result{Err: fmt.Errorf("%w: %s is %d bytes decoded, expected %d", ErrCorrupt, e, len(data), e.RawLength)}
	}
	return Result{Data: data}
}
