package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/objstore"
)

// bucket counts and delays the GETs of a memory bucket.
type bucket struct {
	*objstore.Memory
	mu        sync.Mutex
	gets      []string
	gate      chan struct{} // when not nil a GET takes a token first
	fail      func(n int) error
	cancelled atomic.Int64
	running   atomic.Int64
	most      atomic.Int64
}

func (b *bucket) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.gets = append(b.gets, fmt.Sprintf("%s[%d:+%d]", key, offset, length))
	n, fail := len(b.gets), b.fail
	b.mu.Unlock()
	now := b.running.Add(1)
	defer b.running.Add(-1)
	for most := b.most.Load(); now > most && !b.most.CompareAndSwap(most, now); most = b.most.Load() {
	}
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-ctx.Done():
			b.cancelled.Add(1)
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		if err := fail(n); err != nil {
			return nil, err
		}
	}
	return b.Memory.Get(ctx, key, offset, length)
}

func (b *bucket) wantGets(t *testing.T, want ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	got := slices.Clone(b.gets)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("GETs %v, want %v", got, want)
	}
}

// put stores an object of random bytes cut into extents of the given sizes with gap bytes between them.
func (b *bucket) put(t testing.TB, key string, gap int, sizes ...int) []Extent {
	t.Helper()
	var object []byte
	var extents []Extent
	rnd := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", key))))
	for _, n := range sizes {
		data := make([]byte, n)
		_, _ = rnd.Read(data)
		extents = append(extents, Extent{
			Key: Key{Object: key, Position: int64(len(object))}, Length: int64(n), RawLength: int64(n),
			CRC: crc32.ChecksumIEEE(data),
		})
		object = append(append(object, data...), make([]byte, gap)...)
	}
	if err := b.Put(t.Context(), key, objstore.Bytes(object), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	return extents
}

// decode: codec 0 is as it is, 1 is every byte twice.
func decode(e *Extent, stored []byte) ([]byte, error) {
	if crc32.ChecksumIEEE(stored) != e.CRC {
		return nil, errors.New("checksum")
	}
	if e.Codec == 1 {
		return slices.Concat(stored, stored), nil
	}
	return stored, nil
}

func noInline(context.Context, []Extent) ([][]byte, error) {
	return nil, errors.New("no inline payloads")
}

func newCache(t testing.TB, b Source, change func(*Options)) *Cache {
	t.Helper()
	o := Options{Bucket: b, Decode: decode, Inline: noInline}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func wantData(t *testing.T, results []Result, extents []Extent) {
	t.Helper()
	for i, r := range results {
		if r.Err != nil || crc32.ChecksumIEEE(r.Data) != extents[i].CRC {
			t.Fatalf("extent %d: error %v, %d bytes with another checksum", i, r.Err, len(r.Data))
		}
	}
}

func TestReadOnce(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	x := b.put(t, "a", 0, 1000, 2000)
	c := newCache(t, b, nil)
	for range 3 {
		for _, class := range []Class{Tail, Cold} {
			wantData(t, c.Get(t.Context(), class, x), x)
		}
	}
	b.wantGets(t, "a[0:+3000]")
}

func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		x := b.put(t, "a", 0, 1000)
		c := newCache(t, b, nil)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { wantData(t, c.Get(t.Context(), Class(i%2), x), x) })
		}
		synctest.Wait()
		close(b.gate)
		wg.Wait()
		// A cold flight that had no place yet may be doubled by one of the tail's, never more.
		if n := len(b.gets); n > 2 {
			t.Errorf("%d GETs", n)
		}
	})
}

// A reader that gives up does not cancel others; the last one that does cancels the read, and a later reader starts anew.
func TestCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		x := b.put(t, "a", 0, 1000, 1000)
		c := newCache(t, b, nil)
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		results := make(chan error, 2)
		go func() { results <- c.Get(ctx1, Tail, x)[0].Err }()
		synctest.Wait()
		go func() { results <- c.Get(ctx2, Tail, x[1:])[0].Err }()
		synctest.Wait()
		cancel1()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Fatalf("reader that gave up: %v", err)
		}
		synctest.Wait()
		if n := b.cancelled.Load(); n != 0 {
			t.Fatal("the read was cancelled although somebody waits for it")
		}
		cancel2()
		<-results
		synctest.Wait()
		if n := b.cancelled.Load(); n != 1 {
			t.Fatalf("%d reads cancelled after the last reader gave up, want 1", n)
		}
		go func() { results <- c.Get(t.Context(), Tail, x)[0].Err }()
		synctest.Wait()
		b.gate <- struct{}{}
		if err := <-results; err != nil {
			t.Fatalf("reader after a cancelled read: %v", err)
		}
	})
}

// Results that were there before the context ended are given.
func TestCancelledWithPartOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{}, 1)}
		x := slices.Concat(b.put(t, "a", 0, 1000), b.put(t, "b", 0, 1000))
		c := newCache(t, b, nil)
		b.gate <- struct{}{}
		wantData(t, c.Get(t.Context(), Tail, x[1:]), x[1:])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := c.Get(ctx, Tail, x)
		if !errors.Is(r[0].Err, context.DeadlineExceeded) || r[1].Err != nil {
			t.Errorf("results %v, %v", r[0].Err, r[1].Err)
		}
	})
}

func TestCoalesce(t *testing.T) {
	at := func(key string, pos, n int64) Extent {
		return Extent{Key: Key{Object: key, Position: pos}, Length: n, RawLength: n}
	}
	inline := func(id byte, n int64) Extent {
		return Extent{Key: Key{Inline: [16]byte{id}}, Length: n, RawLength: n}
	}
	for _, tt := range []struct {
		name string
		in   []Extent
		want string
	}{
		{"one", []Extent{at("a", 0, 10)}, "a0"},
		{"adjacent, out of order", []Extent{at("a", 10, 10), at("a", 0, 10)}, "a0 a10"},
		{"small gap", []Extent{at("a", 0, 10), at("a", 10+MaxGapBytes, 10)}, fmt.Sprintf("a0 a%d", 10+MaxGapBytes)},
		{"large gap", []Extent{at("a", 0, 10), at("a", 11+MaxGapBytes, 10)}, fmt.Sprintf("a0|a%d", 11+MaxGapBytes)},
		{"two objects", []Extent{at("b", 0, 10), at("a", 0, 10)}, "a0|b0"},
		{"overlapping", []Extent{at("a", 0, 10), at("a", 5, 10)}, "a0|a5"},
		{"too much", []Extent{at("a", 0, 5<<20), at("a", 5<<20, 3<<20), at("a", 8<<20, 1)}, "a0 a5242880|a8388608"},
		{"one large", []Extent{at("a", 0, 20<<20), at("a", 20<<20, 1)}, "a0|a20971520"},
		{"inline", []Extent{inline(2, 10), inline(1, 10), at("a", 0, 10)}, "i1 i2|a0"},
		{"inline too much", []Extent{inline(2, 5<<20), inline(1, 5<<20)}, "i1|i2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var flights []*flight
			for i := range tt.in {
				flights = append(flights, newFlight(Tail, &tt.in[i]))
			}
			var got []string
			for _, g := range coalesce(flights) {
				var names []string
				for _, f := range g {
					if f.extent.Object == "" {
						names = append(names, fmt.Sprintf("i%d", f.extent.Inline[0]))
					} else {
						names = append(names, fmt.Sprintf("%s%d", f.extent.Object, f.extent.Position))
					}
				}
				got = append(got, strings.Join(names, " "))
			}
			if s := strings.Join(got, "|"); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
		})
	}
}

func TestCoalescedReadWithGaps(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	x := b.put(t, "a", 1000, 100, 200, 300)
	c := newCache(t, b, nil)
	r := c.Get(t.Context(), Tail, []Extent{x[2], x[0], x[1]})
	wantData(t, r, []Extent{x[2], x[0], x[1]})
	b.wantGets(t, "a[0:+2600]")
	for i := range r {
		if cap(r[i].Data) > 2*len(r[i].Data) {
			t.Errorf("an extent of %d bytes pins %d", len(r[i].Data), cap(r[i].Data))
		}
	}
}

func TestPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		c := newCache(t, b, nil)
		raw := [][]byte{[]byte("hello "), []byte("world")}
		e := Extent{Key: Key{Object: "a", Position: 16}, Length: 5, RawLength: 11}
		waiting := make(chan Result, 1)
		go func() { waiting <- c.Get(t.Context(), Cold, []Extent{e})[0] }()
		synctest.Wait() // its GET hangs
		c.Put(e, raw)
		if r := <-waiting; string(r.Data) != "hello world" {
			t.Errorf("reader that waited: %q, %v", r.Data, r.Err)
		}
		synctest.Wait()
		if n := b.cancelled.Load(); n != 1 {
			t.Errorf("%d GETs cancelled that nobody needs any more, want 1", n)
		}
		raw[0][0] = 'J'
		if r := c.Get(t.Context(), Tail, []Extent{e})[0]; string(r.Data) != "hello world" {
			t.Errorf("got %q, %v: it must be a copy", r.Data, r.Err)
		}
		e.RawLength = 12
		if r := c.Get(t.Context(), Tail, []Extent{e})[0]; !errors.Is(r.Err, ErrCorrupt) {
			t.Errorf("extent of another length: %q, %v", r.Data, r.Err)
		}
	})
}

func TestDecoded(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	x := b.put(t, "a", 0, 1000)
	x[0].Codec, x[0].RawLength = 1, 2000
	c := newCache(t, b, nil)
	if r := c.Get(t.Context(), Tail, x)[0]; r.Err != nil || len(r.Data) != 2000 || !bytes.Equal(r.Data[:1000], r.Data[1000:]) {
		t.Errorf("%d bytes, %v", len(r.Data), r.Err)
	}
}

func TestFaults(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	x := b.put(t, "a", 0, 1000, 1000, 1000)
	bad := x[1]
	bad.CRC++
	past := Extent{Key: Key{Object: "a", Position: 2500}, Length: 1000, RawLength: 1000}
	outside := Extent{Key: Key{Object: "a", Position: 1 << 30}, Length: 1000, RawLength: 1000}
	gone := Extent{Key: Key{Object: "b"}, Length: 1, RawLength: 1}
	absurd := Extent{Key: Key{Object: "a", Position: 7}, Length: 1 << 40, RawLength: 1}
	for _, tt := range []struct {
		name   string
		extent Extent
		want   error
		names  string
	}{
		{"checksum", bad, ErrCorrupt, `object "a" bytes [1000:+1000]`},
		{"cut off", past, ErrCorrupt, `object "a" bytes [2500:+1000]`},
		{"behind the end", outside, ErrCorrupt, `object "a" bytes [1073741824:+1000]`},
		{"missing", gone, ErrMissing, `object "b" bytes [0:+1]`},
		{"absurd", absurd, ErrCorrupt, `object "a" bytes [7:+1099511627776]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCache(t, b, nil)
			for range 2 { // an error is not kept
				good := []Extent{x[0], tt.extent, x[2]}
				r := c.Get(t.Context(), Tail, good)
				if !errors.Is(r[1].Err, tt.want) || !strings.Contains(fmt.Sprint(r[1].Err), tt.names) || r[1].Data != nil {
					t.Errorf("got %v, want %v naming %s", r[1].Err, tt.want, tt.names)
				}
				wantData(t, r[:1], good[:1])
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.has(tt.extent.Key) || len(c.flights) != 0 {
				t.Error("a failure was kept")
			}
		})
	}
}

func TestRetry(t *testing.T) {
	for _, failures := range []int{1, getTries - 1, getTries} {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &bucket{Memory: objstore.NewMemory(), fail: func(n int) error {
					if n > failures {
						return nil
					}
					return &objstore.Error{Op: objstore.OpGet, Kind: objstore.ErrUnavailable, Err: io.ErrUnexpectedEOF}
				}}
				x := b.put(t, "a", 0, 1000)
				c := newCache(t, b, nil)
				err := c.Get(t.Context(), Tail, x)[0].Err
				if failures < getTries && err != nil {
					t.Errorf("after %d failures: %v", failures, err)
				}
				if failures == getTries && (!errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, ErrCorrupt)) {
					t.Errorf("a bucket that stays away: %v", err)
				}
			})
		})
	}
}

func TestLoadTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		x := b.put(t, "a", 0, 1000)
		c := newCache(t, b, nil)
		start := time.Now()
		if err := c.Get(t.Context(), Tail, x)[0].Err; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a GET that hangs: %v", err)
		}
		if d := time.Since(start); d != loadTimeout {
			t.Errorf("gave up after %v", d)
		}
	})
}

func TestEvictionKeepsBounds(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	reg := prometheus.NewRegistry()
	c := newCache(t, b, func(o *Options) { o.Bytes, o.ColdBytes, o.Registerer = 1<<20, 256<<10, reg })
	var all []Extent
	for i := range 64 {
		all = append(all, b.put(t, fmt.Sprint("o", i), 0, 10_000, 30_000)...)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range 300 {
				i := rnd.IntN(len(all) - 4)
				wantData(t, c.Get(t.Context(), Class(w%2), all[i:i+4]), all[i:i+4])
				c.mu.Lock()
				for class := range classes {
					if r := c.regions[class]; r.bytes > r.max || r.bytes < 0 {
						t.Errorf("%s holds %d of %d bytes", class, r.bytes, r.max)
					}
				}
				c.mu.Unlock()
			}
		})
	}
	wg.Wait()
	c.Close() // loads give their bytes back after their readers have the data
	var sum int64
	for _, k := range c.regions[Cold].lru.Keys() {
		sum += c.regions[Cold].peek(k).weight()
	}
	if sum != c.regions[Cold].bytes || sum == 0 {
		t.Errorf("cold entries weigh %d, counted %d", sum, c.regions[Cold].bytes)
	}
	if v := testutil.ToFloat64(c.metrics.flying[Tail]); v != 0 {
		t.Errorf("%v bytes in flight at the end", v)
	}
	if n, err := testutil.GatherAndCount(reg, "skein_pinned_bytes"); err != nil || n != 2 {
		t.Errorf("%d pinned pools, %v", n, err)
	}
}

// A replay of more than the cache holds leaves the tail's entries alone.
func TestColdDoesNotEvictTail(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	c := newCache(t, b, func(o *Options) { o.Bytes, o.ColdBytes = 1<<20, 256<<10 })
	tail := b.put(t, "tail", 0, 300_000, 300_000)
	wantData(t, c.Get(t.Context(), Tail, tail), tail)
	for i := range 50 {
		x := b.put(t, fmt.Sprint("cold", i), 0, 100_000)
		wantData(t, c.Get(t.Context(), Cold, x), x)
	}
	before := len(b.gets)
	wantData(t, c.Get(t.Context(), Tail, tail), tail)
	if len(b.gets) != before {
		t.Error("the tail's entries were evicted by a cold reader")
	}
}

// Cold reads that hang hold neither places nor bytes that the tail needs, not even for the same extent.
func TestColdDoesNotBlockTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		b := &bucket{Memory: objstore.NewMemory(), gate: gate}
		c := newCache(t, b, func(o *Options) { o.ColdGets, o.ColdInFlightBytes = 2, 1500 })
		var cold []Extent
		for i := range 8 {
			cold = append(cold, b.put(t, fmt.Sprint("c", i), 0, 1000)...)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Get(ctx, Cold, cold); close(done) }()
		synctest.Wait()
		if n := b.running.Load(); n != 1 {
			t.Fatalf("%d cold GETs run, the bytes allow 1", n)
		}
		waiting := cold[:1] // one that has no place yet
		if b.gets[0] == "c0[0:+1000]" {
			waiting = cold[1:2]
		}
		want := slices.Concat(b.put(t, "t", 0, 1000), waiting)
		got := make(chan []Result, 1)
		go func() { got <- c.Get(t.Context(), Tail, want) }()
		synctest.Wait()
		if n := b.running.Load(); n != 3 {
			t.Fatalf("%d GETs run, want 3: one cold one and the tail's two", n)
		}
		cancel() // the cold ones go
		<-done
		close(gate)
		wantData(t, <-got, want)
	})
}

// What waits for its place in a cold load is read once all the same when a reader at the tail takes it over, with those
// that waited for it; what nobody waits for after that is not read.
func TestTailTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		c := newCache(t, b, func(o *Options) { o.ColdGets = 1 })
		first, second := b.put(t, "a", 0, 1000), b.put(t, "b", 0, 1000, 1000, 1000)
		get := func(ctx context.Context, class Class, x []Extent) chan []Result {
			got := make(chan []Result, 1)
			go func() { got <- c.Get(ctx, class, x) }()
			synctest.Wait()
			return got
		}
		running := get(t.Context(), Cold, first)
		patient := get(t.Context(), Cold, second[:2])
		ctx, cancel := context.WithCancel(t.Context())
		leaving := get(ctx, Cold, second[2:])
		taking := get(t.Context(), Tail, second[1:])
		b.wantGets(t, "a[0:+1000]", "b[1000:+2000]")
		cancel()
		if r := <-leaving; !errors.Is(r[0].Err, context.Canceled) {
			t.Errorf("one that left got %v", r[0].Err)
		}
		close(b.gate)
		wantData(t, <-running, first)
		wantData(t, <-patient, second[:2])
		wantData(t, <-taking, second[1:])
		b.wantGets(t, "a[0:+1000]", "b[0:+1000]", "b[1000:+2000]")
		if n := b.cancelled.Load(); n != 0 {
			t.Errorf("%d GETs were cancelled", n)
		}
	})
}

// Of a cold load whose callers gave up, a reader at the tail takes what it wants; the rest is not read.
func TestTailTakesTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		c := newCache(t, b, func(o *Options) { o.ColdGets = 1 })
		first, second := b.put(t, "a", 0, 1000), b.put(t, "b", 0, 1000, 1000)
		go c.Get(t.Context(), Cold, first)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan []Result, 1)
		go func() { left <- c.Get(ctx, Cold, second) }() // both
		synctest.Wait()
		go c.Get(t.Context(), Cold, second[:1])
		synctest.Wait()
		cancel()
		<-left // nobody waits for the second extent now, somebody does for the first
		got := make(chan []Result, 1)
		go func() { got <- c.Get(t.Context(), Tail, second[:1]) }()
		synctest.Wait()
		close(b.gate)
		wantData(t, <-got, second[:1])
		synctest.Wait()
		b.wantGets(t, "a[0:+1000]", "b[0:+1000]")
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := len(c.flights) + len(c.groups); n != 0 {
			t.Errorf("%d flights and loads are left", n)
		}
	})
}

func TestGetsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		c := newCache(t, b, func(o *Options) { o.Gets = 3 })
		var x []Extent
		for i := range 10 {
			x = append(x, b.put(t, fmt.Sprint("o", i), 0, 1000)...)
		}
		got := make(chan []Result, 1)
		go func() { got <- c.Get(t.Context(), Tail, x) }()
		synctest.Wait()
		if n := b.running.Load(); n != 3 {
			t.Errorf("%d GETs run, want 3", n)
		}
		close(b.gate)
		wantData(t, <-got, x)
		if n := b.most.Load(); n != 3 {
			t.Errorf("at most %d GETs ran, want 3", n)
		}
	})
}

func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory()}
		c := newCache(t, b, func(o *Options) { o.Bytes, o.ColdBytes = 1<<20, 100<<10 })
		x := b.put(t, "a", 0, 20_000, 20_000, 20_000, 20_000, 20_000, 20_000)
		c.Prefetch(t.Context(), x)
		synctest.Wait()
		b.wantGets(t, "a[0:+40000]") // half of the cold bytes
		c.Prefetch(t.Context(), x)   // nothing was read: no more room
		synctest.Wait()
		b.wantGets(t, "a[0:+40000]")
		wantData(t, c.Get(t.Context(), Cold, x[:2]), x[:2])
		c.Prefetch(t.Context(), x)
		synctest.Wait()
		b.wantGets(t, "a[0:+40000]", "a[40000:+40000]")
		wantData(t, c.Get(t.Context(), Cold, x[2:4]), x[2:4])
		b.wantGets(t, "a[0:+40000]", "a[40000:+40000]")
		if c.unread != 0 {
			t.Errorf("%d bytes count as prefetched and unread", c.unread)
		}
		b.fail = func(int) error { return &objstore.Error{Op: objstore.OpGet, Kind: objstore.ErrNotFound} }
		c.Prefetch(t.Context(), x)
		synctest.Wait()
		if c.unread != 0 {
			t.Errorf("%d bytes count as prefetched after a failure", c.unread)
		}
	})
}

// TestPrefetchIsLong: as a reader goes on, what lies ahead is read in long GETs, of all streams together.
func TestPrefetchIsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory()}
		c := newCache(t, b, nil)
		x := b.put(t, "a", 0, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000)
		y := b.put(t, "b", 0, 1000, 1000, 1000, 1000, 1000, 1000)
		for at := range 5 { // four ahead
			c.Prefetch(t.Context(), x[at:min(at+4, len(x))], y[at:min(at+2, len(y))])
			synctest.Wait()
		}
		// What lies ahead of x is half missing at 2 and at 4; of y always.
		b.wantGets(t, "a[0:+4000]", "a[4000:+2000]", "a[6000:+2000]", "b[0:+2000]", "b[2000:+1000]", "b[3000:+1000]", "b[4000:+1000]", "b[5000:+1000]")
		wantData(t, c.Get(t.Context(), Cold, x), x)
		wantData(t, c.Get(t.Context(), Cold, y), y)
	})
}

// TestDecodesBeside: an extent that is slow to decode does not stop the GET that goes on behind it.
func TestDecodesBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory()}
		slow := make(chan struct{})
		var decoding atomic.Int64
		c := newCache(t, b, func(o *Options) {
			decode := o.Decode
			o.Decode = func(e *Extent, stored []byte) ([]byte, error) {
				if decoding.Add(1); e.Position == 0 {
					<-slow
				}
				return decode(e, stored)
			}
		})
		x := b.put(t, "a", 0, 1000, 1000)
		got := make(chan []Result)
		go func() { got <- c.Get(t.Context(), Cold, x) }()
		synctest.Wait()
		if n := decoding.Load(); n != 2 {
			t.Errorf("%d extents are being decoded, want 2", n)
		}
		close(slow)
		wantData(t, <-got, x)
	})
}

func TestInline(t *testing.T) {
	b := &bucket{Memory: objstore.NewMemory()}
	var calls [][]Extent
	c := newCache(t, b, func(o *Options) {
		o.Inline = func(_ context.Context, extents []Extent) ([][]byte, error) {
			calls = append(calls, slices.Clone(extents))
			parts := make([][]byte, len(extents))
			for i, e := range extents {
				switch e.Inline[0] {
				case 1:
					parts[i] = []byte("abc")[e.Position : e.Position+e.Length]
				case 3:
					parts[i] = []byte("x")
				}
			}
			return parts, nil
		}
	})
	at := func(id byte, pos, n int64, data string) Extent {
		return Extent{
			Key: Key{Inline: [16]byte{id}, Position: pos}, Length: n, RawLength: n, CRC: crc32.ChecksumIEEE([]byte(data)),
		}
	}
	x := []Extent{at(1, 0, 1, "a"), at(2, 0, 2, ""), at(1, 1, 2, "bc"), at(3, 0, 2, "xy")}
	for range 2 {
		r := c.Get(t.Context(), Tail, x)
		if string(r[0].Data) != "a" || string(r[2].Data) != "bc" {
			t.Errorf("got %q and %q", r[0].Data, r[2].Data)
		}
		if !errors.Is(r[1].Err, ErrMissing) || !errors.Is(r[3].Err, ErrCorrupt) {
			t.Errorf("got %v and %v", r[1].Err, r[3].Err)
		}
	}
	if len(calls) != 2 || len(calls[0]) != 4 || len(calls[1]) != 2 {
		t.Errorf("calls %v, want one for all and one for those that failed", calls)
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{Memory: objstore.NewMemory(), gate: make(chan struct{})}
		x := b.put(t, "a", 0, 1000)
		c := newCache(t, b, nil)
		got := make(chan error, 1)
		go func() { got <- c.Get(t.Context(), Tail, x)[0].Err }()
		synctest.Wait()
		c.Close()
		if err := <-got; !errors.Is(err, ErrClosed) {
			t.Errorf("reader during Close: %v", err)
		}
		if err := c.Get(t.Context(), Tail, x)[0].Err; !errors.Is(err, ErrClosed) {
			t.Errorf("reader after Close: %v", err)
		}
	})
}

func TestOptions(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("a cache without a bucket")
	}
	o := Options{Bucket: objstore.NewMemory(), Decode: decode, Inline: noInline, Bytes: 10, ColdBytes: 10}
	if _, err := New(o); err == nil {
		t.Error("a cache with nothing for the tail")
	}
}

func BenchmarkHit(b *testing.B) {
	bk := &bucket{Memory: objstore.NewMemory()}
	x := bk.put(b, "a", 0, 1000, 1000, 1000, 1000)
	c := newCache(b, bk, nil)
	c.Get(b.Context(), Tail, x)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if c.Get(b.Context(), Tail, x)[3].Err != nil {
				b.Error("miss")
			}
		}
	})
}

// BenchmarkPut keeps what an agent wrote: extents of 1 MiB in parts of 16 KiB.
func BenchmarkPut(b *testing.B) {
	c := newCache(b, &bucket{Memory: objstore.NewMemory()}, func(o *Options) { o.Bytes = 256 << 20 })
	parts := make([][]byte, 64)
	for i := range parts {
		parts[i] = make([]byte, 16<<10)
	}
	b.SetBytes(1 << 20)
	position := int64(0)
	for b.Loop() {
		c.Put(Extent{Key: Key{Object: "o", Position: position}, Length: 1 << 20, RawLength: 1 << 20}, parts)
		position += 1 << 20
	}
}
