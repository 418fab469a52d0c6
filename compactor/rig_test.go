package compactor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/objstore"
)

// clock is the database's, moved by tests.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// dated is a bucket whose dates are another clock's than this process's.
type dated struct {
	objstore.Bucket
	clock *clock
	mu    sync.Mutex
	put   map[string]time.Time
}

func (d *dated) Put(ctx context.Context, key string, body objstore.Payload, o objstore.PutOptions) error {
	err := d.Bucket.Put(ctx, key, body, o)
	if err == nil {
		d.mu.Lock()
		d.put[key] = d.clock.now()
		d.mu.Unlock()
	}
	return err
}

func (d *dated) date(i objstore.Info) objstore.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	i.LastModified = d.put[i.Key]
	return i
}

func (d *dated) Head(ctx context.Context, key string) (objstore.Info, error) {
	i, err := d.Bucket.Head(ctx, key)
	return d.date(i), err
}

func (d *dated) List(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	return d.Bucket.List(ctx, prefix, after, func(i objstore.Info) error { return fn(d.date(i)) })
}

// rig is a real store on SQLite, a bucket in memory, and what was produced.
type rig struct {
	testing.TB
	clock  *clock
	path   string // of the SQLite database
	driver metadata.Compaction
	store  *metadata.Store
	faults *objstore.Faults
	bucket *dated
	topic  *metadata.Topic
	want   [][]string // by partition: what was produced, by offset
	random *rand.Rand
}

func newRig(t testing.TB, partitions int32, configs map[string]string) *rig {
	t.Helper()
	c := &clock{}
	path := filepath.Join(t.TempDir(), "metadata.db")
	d, err := sqlite.Open(t.Context(), path, sqlite.Options{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := newRigOn(t, c, d, partitions, configs)
	r.path = path
	return r
}

// damage changes rows behind the driver's back. The rig is on SQLite.
func (r *rig) damage(query string, args ...any) {
	r.Helper()
	db, err := sql.Open("sqlite", r.path)
	r.must(err)
	defer db.Close()
	res, err := db.Exec(query, args...)
	r.must(err)
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		r.Fatalf("%s changed %d rows, %v", query, n, err)
	}
}

// newRigOn is newRig on another database, whose clock is c.
func newRigOn(t testing.TB, c *clock, d metadata.Compaction, partitions int32, configs map[string]string) *rig {
	t.Helper()
	r := &rig{TB: t, clock: c, driver: d, random: rand.New(rand.NewPCG(7, uint64(partitions)))}
	r.faults = objstore.NewFaults(objstore.NewMemory())
	r.bucket = &dated{Bucket: r.faults, clock: r.clock, put: map[string]time.Time{}}
	r.store = metadata.NewStore(metadata.Options{Driver: r.driver})
	r.topic = r.create("t", partitions, configs)
	r.want = make([][]string, partitions)
	return r
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) create(name string, partitions int32, configs map[string]string) *metadata.Topic {
	r.Helper()
	made, errs, err := r.store.CreateTopics(r.Context(), []metadata.NewTopic{{Name: name, Partitions: partitions, Configs: configs}}, false)
	r.must(errors.Join(append(errs, err)...))
	return made[0]
}

// compactor makes one more.
func (r *rig) compactor(o Options) *Compactor {
	r.Helper()
	o.Driver, o.Bucket = r.driver, r.bucket
	if o.Store == nil {
		o.Store = r.store
	}
	if o.Holder == "" {
		o.Holder = "test"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(r.Output(), nil))
	}
	c, err := New(o)
	r.must(err)
	return c
}

// part is batches of one partition.
type part struct {
	index   int
	batches [][]byte
}

// write commits one flush, inline or as an object, and gives its key.
func (r *rig) write(inline bool, parts ...part) metadata.ObjectKey {
	r.Helper()
	slices.SortFunc(parts, func(a, b part) int {
		x, y := r.topic.Partitions[a.index], r.topic.Partitions[b.index]
		if x.Block != y.Block {
			return int(x.Block - y.Block)
		}
		return int(x.Slot) - int(y.Slot)
	})
	for {
		f := r.flush(inline, parts...)
		res, err := r.store.Commit(r.Context(), []*metadata.Flush{f})
		if errors.Is(err, metadata.ErrCondemned) {
			continue // where garbage has no grace; an agent does the same
		}
		r.must(err)
		r.must(res[0].Err)
		r.acknowledge(&res[0], parts)
		return f.Object
	}
}

// acknowledge notes what was committed.
func (r *rig) acknowledge(res *metadata.FlushResult, parts []part) {
	r.Helper()
	n := 0
	for _, p := range parts {
		for _, b := range p.batches {
			if res.Batches[n].Code != metadata.CodeAccepted {
				r.Fatalf("batch %d: %+v", n, res.Batches[n])
			}
			if int(res.Batches[n].Base) != len(r.want[p.index]) {
				r.Fatalf("batch at %d, want %d", res.Batches[n].Base, len(r.want[p.index]))
			}
			n++
			for rec, err := range record.Records(b, 0) {
				r.must(err)
				r.want[p.index] = append(r.want[p.index], fmt.Sprintf("%s=%s", rec.Key, rec.Value))
			}
		}
	}
}

func (r *rig) flush(inline bool, parts ...part) *metadata.Flush {
	r.Helper()
	id, err := metadata.NewFlushID()
	r.must(err)
	r.must(r.store.Ping(r.Context()))
	now, err := r.store.Now(r.Context())
	r.must(err)
	f := &metadata.Flush{ID: id, Seen: now}
	w := segment.NewWriter(segment.Options{ID: segment.ID(id), Compression: segment.CompressionAuto})
	for _, p := range parts {
		place := r.topic.Partitions[p.index]
		x := metadata.Extent{Block: place.Block, Slot: place.Slot, Created: place.Created}
		for _, b := range p.batches {
			h, err := record.Parse(b)
			r.must(err)
			m := metadata.Batch{
				Length: int32(len(b)), Records: h.LastOffsetDelta + 1, MaxTimestamp: metadata.Millis(h.MaxTimestamp),
				Producer: metadata.NoProducer, Epoch: -1, First: -1, Last: -1, Validated: 1 << 40,
			}
			x.Batches = append(x.Batches, m)
		}
		meta, err := segment.Describe(segment.TopicID(r.topic.ID), int32(p.index), p.batches)
		r.must(err)
		at, err := w.Add(meta, p.batches)
		r.must(err)
		x.Position, x.Length, x.RawLength = at.Position, at.StoredLength, at.RawLength
		x.Codec, x.CRC = metadata.Codec(at.Codec), at.CRC
		f.Extents = append(f.Extents, x)
	}
	o, err := w.Finish()
	r.must(err)
	if inline {
		f.Inline = o.Parts
		return f
	}
	f.Object, f.ObjectSize = metadata.ObjectKey(fmt.Sprintf("seg/%02x/%s-1", id[15], id)), o.Size
	r.must(r.bucket.Put(r.Context(), string(f.Object), o.Parts, objstore.PutOptions{}))
	return f
}

// batchOf makes a batch of records key=value at a time.
func (r *rig) batchOf(ts int64, codec record.Codec, pairs ...string) []byte {
	r.Helper()
	b := record.NewBuilder().SetCodec(codec, record.DefaultLevel)
	for i := 0; i < len(pairs); i += 2 {
		b.Append(ts, []byte(pairs[i]), []byte(pairs[i+1]))
	}
	data, err := b.Build()
	r.must(err)
	return data
}

// some writes n random flushes over random partitions.
func (r *rig) some(n int) {
	r.Helper()
	for range n {
		var parts []part
		for _, i := range r.random.Perm(len(r.want))[:1+r.random.IntN(min(len(r.want), 8))] {
			p := part{index: i}
			for range 1 + r.random.IntN(3) {
				var pairs []string
				for range 1 + r.random.IntN(5) {
					pairs = append(pairs, fmt.Sprint("k", r.random.IntN(50)), fmt.Sprintf("%x", r.random.Uint64()))
				}
				codec := record.CodecNone
				if r.random.IntN(4) == 0 {
					codec = record.CodecZstd
				}
				p.batches = append(p.batches, r.batchOf(r.clock.now().UnixMilli(), codec, pairs...))
			}
			parts = append(parts, p)
		}
		r.write(r.random.IntN(2) == 0, parts...)
	}
}

// read reads a partition from an offset to its end as a reader does: locate, read, decode, and gives offset=record.
func (r *rig) read(s *metadata.Store, index int, from metadata.Offset) []string {
	r.Helper()
	place := r.topic.Partitions[index]
	ctx := r.Context()
	r.must(s.Refresh(ctx, place.Block))
	v, err := s.View(ctx, place.Block)
	r.must(err)
	var got []string
	for next := max(from, v.LogStart(place.Slot)); next < v.HighWatermark(place.Slot); {
		end, more := r.readOnce(s, place, next)
		got = append(got, more...)
		if end <= next {
			r.Fatalf("partition %d: nothing at offset %d of %d", index, next, v.HighWatermark(place.Slot))
		}
		next = end
	}
	return got
}

// readOnce reads what is at an offset; where it is gone meanwhile it locates again, once.
func (r *rig) readOnce(s *metadata.Store, place metadata.Partition, next metadata.Offset) (metadata.Offset, []string) {
	r.Helper()
	ctx := r.Context()
	for try := 0; ; try++ {
		found, err := s.Locate(ctx, []metadata.LocateQuery{{Block: place.Block, Slot: place.Slot, Offset: next, MaxRows: 3, MaxBytes: 1 << 20}})
		r.must(err)
		if len(found[0]) == 0 {
			return next, nil
		}
		l := &found[0][0]
		batches, err := r.batches(s, l)
		if err != nil {
			if try == 0 {
				r.must(s.Refresh(ctx, place.Block))
				continue
			}
			r.Fatalf("offset %d of %v: %v", next, place, err)
		}
		var got []string
		for i := range batches {
			for rec, err := range record.Records(batches[i].data, 0) {
				r.must(err)
				if o := metadata.Offset(batches[i].BaseOffset) + metadata.Offset(rec.OffsetDelta); o >= next {
					value := string(rec.Value)
					if rec.Value == nil {
						value = "<nil>"
					}
					got = append(got, fmt.Sprintf("%d:%s=%s", o, rec.Key, value))
				}
			}
		}
		return l.End, got
	}
}

func (r *rig) batches(s *metadata.Store, l *metadata.Located) ([]batch, error) {
	c := &Compactor{bucket: r.bucket, store: s, metrics: newMetrics(noRegistry{})}
	if l.Run {
		run := metadata.RunRow{Object: l.Object, Position: l.Position, Length: l.Length, Base: l.Base, Last: l.End - 1, ObjectSize: l.ObjectSize}
		return c.readRuns(r.Context(), "test", map[metadata.ObjectKey]*segment.Index{}, []metadata.RunRow{run})
	}
	b := &blob{object: l.Object, flush: l.Flush, position: l.Position, length: l.Length, raw: l.RawLength, codec: segment.Codec(l.Codec), crc: l.CRC}
	if err := c.read(r.Context(), "test", []*blob{b}); err != nil {
		return nil, err
	}
	if b.err != nil {
		return nil, b.err
	}
	return cut(b.data, &metadata.Touched{Batches: l.Batches}, l.Base)
}

// check reads all partitions whole and from some offsets, and compares with what was produced.
func (r *rig) check(s *metadata.Store) {
	r.Helper()
	for i, want := range r.want {
		for _, from := range []int{0, len(want) / 3, len(want) - 1} {
			if from < 0 {
				continue
			}
			got := r.read(s, i, metadata.Offset(from))
			if len(got) != len(want)-from {
				r.Fatalf("partition %d from %d: %d records, want %d", i, from, len(got), len(want)-from)
			}
			for j, g := range got {
				if w := fmt.Sprintf("%d:%s", from+j, want[from+j]); g != w {
					r.Fatalf("partition %d: %s, want %s", i, g, w)
				}
			}
		}
	}
}

// settle does all jobs until nothing is left to do, a while later.
func (r *rig) settle(c *Compactor) {
	r.Helper()
	ctx := r.Context()
	for range 3 {
		r.must(c.MergeEverything(ctx))
		r.must(c.Remerge(ctx))
		r.must(c.Release(ctx))
		r.must(c.Retention(ctx))
		r.must(c.Orphans(ctx))
		r.must(c.Garbage(ctx))
		r.clock.advance(3 * DefaultGCGrace)
	}
}

// fsck fails the test on anything wrong.
func (r *rig) fsck() *Report {
	r.Helper()
	rep, err := Check(r.Context(), CheckOptions{Driver: r.driver, Store: r.store, Bucket: r.bucket})
	r.must(err)
	for _, p := range rep.Problems {
		r.Errorf("fsck: %+v", p)
	}
	return rep
}

// keys lists the bucket's segments.
func (r *rig) keys() (keys []string) {
	r.Helper()
	for _, p := range prefixes {
		r.must(r.bucket.List(r.Context(), p, "", func(i objstore.Info) error {
			keys = append(keys, i.Key)
			return nil
		}))
	}
	return keys
}
