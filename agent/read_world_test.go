package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/objstore"
)

// countedBucket counts GETs.
type countedBucket struct {
	objstore.Bucket
	mu   sync.Mutex
	gets int
}

func (b *countedBucket) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.gets++
	b.mu.Unlock()
	return b.Bucket.Get(ctx, key, offset, length)
}

func (b *countedBucket) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gets
}

// wired gives a driver of one agent the wake-ups that one of many has.
type wired struct {
	metadata.Driver
	mu        sync.Mutex
	listeners map[int]func(metadata.Event)
	next      int
}

func (d *wired) Notify(_ context.Context, e metadata.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fn := range d.listeners {
		fn(e)
	}
	return nil
}

func (d *wired) Listen(ctx context.Context, fn func(metadata.Event)) error {
	d.mu.Lock()
	id := d.next
	d.next++
	d.listeners[id] = fn
	d.mu.Unlock()
	fn(metadata.Event{All: true})
	<-ctx.Done()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.listeners, id)
	return ctx.Err()
}

// world is a real store on SQLite, a bucket in memory, and the read half of an agent over them.
type world struct {
	t      testing.TB
	driver metadata.Driver
	bucket *countedBucket

	store   *metadata.Store
	cache   *cache.Cache
	server  *Server
	logs    *lockedBuffer
	metrics *prometheus.Registry
	runs    context.Context
	stop    context.CancelFunc
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	driver, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { driver.Close() })
	wiredDriver := &wired{Driver: driver, listeners: map[int]func(metadata.Event){}}
	w := &world{t: t, driver: wiredDriver, bucket: &countedBucket{Bucket: objstore.NewMemory()}}
	return w.another()
}

// another is another agent on the same database and bucket.
func (w *world) another() *world {
	a := *w
	a.logs = &lockedBuffer{}
	log := slog.New(slog.NewTextHandler(a.logs, nil))
	// Polling is slow: what these tests wait for must come by wake-ups.
	a.store = metadata.NewStore(metadata.Options{Driver: a.driver, PollInterval: time.Hour})
	var err error
	a.metrics = prometheus.NewRegistry()
	a.cache, err = NewExtentCache(a.store, cache.Options{Bucket: a.bucket, Registerer: a.metrics})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(a.cache.Close)
	a.server = &Server{store: a.store, log: log, reader: newReader(a.store, a.cache, a.bucket, log, a.metrics)}
	a.runs, a.stop = context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.store.Run(a.runs); err != nil {
			a.t.Errorf("store: %v", err)
		}
	}()
	a.t.Cleanup(func() { a.stop(); <-done })
	return &a
}

func (w *world) topic(name string, partitions int32) *metadata.Topic {
	w.t.Helper()
	topics, errs, err := w.store.CreateTopics(w.t.Context(), []metadata.NewTopic{{Name: name, Partitions: partitions}}, false)
	if err != nil || errs[0] != nil {
		w.t.Fatal(err, errs)
	}
	return topics[0]
}

// chunk is batches of one partition for one flush.
type chunk struct {
	topic   *metadata.Topic
	index   int
	batches [][]byte
}

// timedBatch makes a batch of records with the given timestamps and values of n bytes.
func timedBatch(t testing.TB, n int, times ...int64) []byte {
	t.Helper()
	b := record.NewBuilder()
	for i, ts := range times {
		b.Append(ts, []byte(fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, n))
	}
	data, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// metaOf describes a batch as the write path does.
func metaOf(t testing.TB, b []byte) metadata.Batch {
	t.Helper()
	h, err := record.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	m := metadata.Batch{
		Length: int32(len(b)), Records: h.LastOffsetDelta + 1, MaxTimestamp: metadata.Millis(h.MaxTimestamp),
		Producer: metadata.NoProducer, Epoch: -1, First: -1, Last: -1, Validated: 1 << 40,
	}
	if h.HasProducerID() {
		m.Producer, m.Epoch = metadata.ProducerID(h.ProducerID), metadata.ProducerEpoch(h.ProducerEpoch)
		m.First, m.Last = metadata.Sequence(h.BaseSequence), metadata.Sequence(h.LastSequence())
	}
	return m
}

// write uploads a segment (or hands over a payload) and commits it; it gives the flush's results and where it is.
func (w *world) write(inline bool, chunks ...chunk) (metadata.FlushResult, *metadata.Flush) {
	w.t.Helper()
	ctx := w.t.Context()
	id, err := metadata.NewFlushID()
	if err != nil {
		w.t.Fatal(err)
	}
	now, err := w.store.Now(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	f := &metadata.Flush{ID: id, Seen: now}
	sw := segment.NewWriter(segment.Options{ID: segment.ID(id)})
	for _, c := range chunks {
		place := c.topic.Partitions[c.index]
		x := metadata.Extent{Block: place.Block, Slot: place.Slot, Created: place.Created}
		for _, b := range c.batches {
			x.Batches = append(x.Batches, metaOf(w.t, b))
		}
		m, err := segment.Describe(segment.TopicID(c.topic.ID), int32(c.index), c.batches)
		if err != nil {
			w.t.Fatal(err)
		}
		p, err := sw.Add(m, c.batches)
		if err != nil {
			w.t.Fatal(err)
		}
		x.Position, x.Length, x.RawLength = p.Position, p.StoredLength, p.RawLength
		x.Codec, x.CRC = metadata.Codec(p.Codec), p.CRC
		f.Extents = append(f.Extents, x)
	}
	o, err := sw.Finish()
	if err != nil {
		w.t.Fatal(err)
	}
	if inline {
		f.Inline = o.Parts
	} else {
		f.Object, f.ObjectSize = metadata.ObjectKey("segments/"+id.String()), o.Size
		if err := w.bucket.Put(ctx, string(f.Object), o.Parts, objstore.PutOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
	results, err := w.store.Commit(ctx, []*metadata.Flush{f})
	if err != nil || results[0].Err != nil {
		w.t.Fatal(err, results)
	}
	return results[0], f
}

// fetchReq is a Fetch request of version 11, for partitions of one topic at offsets.
func fetchReq(topic string, offsets ...int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxBytes, req.MinBytes = 11, 50<<20, 1
	t := kmsg.NewFetchRequestTopic()
	t.Topic = topic
	for i, o := range offsets {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = int32(i), o, 1<<20
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return req
}

// fetch serves a request and decodes the response.
func (w *world) fetch(req *kmsg.FetchRequest) *kmsg.FetchResponse {
	w.t.Helper()
	resp, err := w.tryFetch(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

func (w *world) tryFetch(ctx context.Context, req *kmsg.FetchRequest) (*kmsg.FetchResponse, error) {
	rep, err := w.server.fetch(ctx, &request{key: 1, version: req.Version, msg: req})
	if err != nil {
		return nil, err
	}
	if rep.msg != nil {
		return rep.msg.(*kmsg.FetchResponse), nil
	}
	body := bytes.Join(rep.body, nil)
	rep.release()
	if rep.size != len(body) {
		return nil, fmt.Errorf("reply of %d bytes says %d", len(body), rep.size)
	}
	resp := kmsg.NewPtrFetchResponse()
	resp.Version = req.Version
	return resp, resp.ReadFrom(body)
}

// part gives the i-th partition of a response to fetchReq.
func part(r *kmsg.FetchResponse, i int) *kmsg.FetchResponseTopicPartition {
	return &r.Topics[0].Partitions[i]
}

// offsetsOf gives "base-last" of each batch of a partition and checks the checksums.
func offsetsOf(t testing.TB, p *kmsg.FetchResponseTopicPartition) []string {
	t.Helper()
	got := []string{}
	for b, err := range record.Batches(p.RecordBatches) {
		if err != nil {
			t.Fatalf("partition %d: %v", p.Partition, err)
		}
		if err := record.VerifyCRC(b.Bytes); err != nil {
			t.Fatalf("partition %d: %v", p.Partition, err)
		}
		if b.LeaderEpoch != 0 {
			t.Errorf("leader epoch %d", b.LeaderEpoch)
		}
		got = append(got, fmt.Sprintf("%d-%d", b.BaseOffset, b.LastOffset()))
	}
	return got
}
