package batcher

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// recorder is a Sink that keeps what it is told.
type recorder struct {
	mu     sync.Mutex
	stored []StoredExtent
}

func (s *recorder) Stored(e StoredExtent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Raw = [][]byte{slices.Concat(e.Raw...)}
	s.stored = append(s.stored, e)
}

func (s *recorder) take() []StoredExtent {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.stored
	s.stored = nil
	return taken
}

// The sink hears of accepted extents before their waiters do, with their bytes, and of no others.
func TestSink(t *testing.T) {
	for _, inline := range []int64{0, 64 << 10} {
		synctest.Test(t, func(t *testing.T) {
			sink := &recorder{}
			r := newRig(t, func(c *Config) { c.InlineMaxBytes = inline })
			r.sink = sink
			r.store.set(func() { r.store.part(1, 1).deleted = true })
			good, twice := plain(t, partition(1, 0), 1), idem(t, partition(1, 2), 0)
			want := [][]byte{slices.Clone(good.Data), slices.Clone(twice.Data)}
			heard := make(chan []StoredExtent, 1)
			r.Submit(Produce{
				Conn: 1, Deadline: time.Now().Add(30 * second), Batches: []Batch{good, plain(t, partition(1, 1), 2), twice},
				Done: func([]Result) { heard <- sink.take() },
			})
			stored := <-heard
			if len(stored) != 2 {
				t.Fatalf("told of %d extents before the waiters, want 2", len(stored))
			}
			for i, e := range stored {
				if !bytes.Equal(e.Raw[0], want[i]) || int(e.RawLength) != len(want[i]) || (e.Object == "") != (inline > 0) {
					t.Errorf("extent %d: object %q, %d bytes; want %d", i, e.Object, e.RawLength, len(want[i]))
				}
			}
			if stored[1].Position <= stored[0].Position || stored[0].Flush != stored[1].Flush {
				t.Errorf("positions %d, %d of flushes %s, %s", stored[0].Position, stored[1].Position, stored[0].Flush, stored[1].Flush)
			}
			wantErr(t, "duplicate", r.submit(1, 30*second, idem(t, partition(1, 2), 0)).err(), nil)
			if again := sink.take(); len(again) != 0 {
				t.Errorf("told of %d extents of a duplicate", len(again))
			}
			r.close()
		})
	}
}

// What came uncompressed is compressed when it pays, inline and in segments; the fake store reads it back.
func TestCompression(t *testing.T) {
	for _, inline := range []int64{0, 64 << 10} {
		bucket := newFakeBucket()
		store := newFakeStore(t, bucket)
		config := DefaultConfig()
		config.InlineMaxBytes = inline
		b, err := New(Options{Config: config, Bucket: bucket, Store: store})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		codecs := map[metadata.Codec]int{}
		store.fault = func(_ int, flushes []*metadata.Flush) (outcome, time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range flushes[0].Extents {
				codecs[e.Codec]++
			}
			return succeed, 0
		}
		r := &rig{Batcher: b, t: t, store: store, ended: make(chan struct{})}
		go func() {
			defer close(r.ended)
			if err := b.Run(context.Background()); err != nil {
				t.Errorf("run: %v", err)
			}
		}()
		loose := makeBatch(t, partition(1, 0), metadata.NoProducer, -1, -1, 1, 6000)
		packed := makeBatch(t, partition(1, 1), metadata.NoProducer, -1, -1, 2, 6000)
		packed.Uncompressed = false
		want := [][]byte{slices.Clone(loose.Data), slices.Clone(packed.Data)}
		for _, res := range r.submit(1, 30*second, loose, packed).wait() {
			wantErr(t, "produce", res.Err, nil)
		}
		r.close()
		mu.Lock()
		if codecs[metadata.CodecZstd] != 1 || codecs[metadata.CodecStored] != 1 {
			t.Errorf("codecs of extents: %v, want one of each", codecs)
		}
		mu.Unlock()
		for i, data := range want {
			if log := store.log(partition(1, metadata.Slot(i))); len(log) != 1 || !bytes.Equal(log[0].data, data) {
				t.Errorf("partition %d does not have the bytes it was given", i)
			}
		}
		if inline > 0 {
			continue
		}
		checkSegments(t, bucket)
	}
}

// checkSegments opens every object as a segment.
func checkSegments(t *testing.T, bucket *fakeBucket) {
	t.Helper()
	found := 0
	for _, key := range bucket.keys(t) {
		data := bucket.read(t, key)
		index, err := segment.OpenIndex(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatalf("object %s: %v", key, err)
		}
		if len(index.Extents) != 2 || index.Level != 0 {
			t.Errorf("object %s: %d extents at level %d", key, len(index.Extents), index.Level)
		}
		found++
	}
	if found != 1 {
		t.Errorf("%d objects, want 1", found)
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		r := newRig(t, func(c *Config) { c.InlineMaxBytes = 1 << 10 })
		if err := r.metrics.register(registry); err != nil {
			t.Fatal(err)
		}
		if err := r.metrics.register(registry); err == nil {
			t.Error("registered twice without an error")
		}
		wantErr(t, "small", r.submit(1, 30*second, plain(t, partition(1, 0), 1)).err(), nil)
		r.store.set(func() {
			n := 0
			r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) {
				n++
				return []outcome{loseReply, succeed}[n-1], 0
			}
		})
		wantErr(t, "large", r.submit(1, 30*second, makeBatch(t, partition(1, 0), -1, -1, -1, 1, 4000)).err(), nil)
		held := r.submit(1, 30*second, idem(t, partition(1, 0), 5))
		r.store.set(func() { r.store.fault = nil })
		synctest.Wait()
		got := gather(t, registry)
		for name, want := range map[string]float64{
			`skein_flushes_total{kind=inline,reason=early}`:      2,
			`skein_flushes_total{kind=put,reason=early}`:         1,
			`skein_commits_total{kind=inline}`:                   2,
			`skein_commits_total{kind=put}`:                      1,
			`skein_commit_failures_total{cause=unknown_outcome}`: 1,
			`skein_segment_put_seconds`:                          1,
			`skein_commit_seconds`:                               3,
			`skein_batch_results_total{result=accepted}`:         2,
			`skein_batcher_flushes{phase=committing}`:            0,
			`skein_batcher_unsettled_flushes`:                    0,
			`skein_batcher_marks`:                                1,
			`skein_batcher_held_bytes`:                           76,
			`skein_batcher_buffered_bytes`:                       76,
		} {
			if v, ok := got[name]; !ok || v != want {
				t.Errorf("%s is %v (present: %v), want %v", name, v, ok, want)
			}
		}
		wantErr(t, "held", held.err(), ErrNotPersisted)
		r.close()
	})
}

// gather reads all metrics; of histograms the count.
func gather(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for i, l := range m.GetLabel() {
				name += []string{"{", ","}[min(i, 1)] + l.GetName() + "=" + l.GetValue()
			}
			if len(m.GetLabel()) > 0 {
				name += "}"
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}
