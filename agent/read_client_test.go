package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// newReadServer is a test server that reads, and the world that writes to its store and bucket.
func newReadServer(t *testing.T) (*testServer, *world) {
	t.Helper()
	w := &world{t: t, bucket: &countedBucket{Bucket: objstore.NewMemory()}, logs: &lockedBuffer{}}
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		w.store = d.Store.(*metadata.Store)
		var err error
		w.cache, err = NewExtentCache(w.store, cache.Options{Bucket: w.bucket, Registerer: d.Metrics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.cache.Close)
		d.Extents = w.cache
		d.Logger = slog.New(slog.NewTextHandler(w.logs, nil))
	})
	w.server = ts.Server
	return ts, w
}

// consume polls until n records came, and gives them by partition.
func consume(t *testing.T, c *kgo.Client, n int) map[int32][]*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	got := map[int32][]*kgo.Record{}
	for have := 0; have < n; {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", have, n, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			got[r.Partition] = append(got[r.Partition], r)
			have++
		})
	}
	return got
}

// clientVersions are an old client without flexible versions, one without topic ids, and the newest.
var clientVersions = map[string]*kversion.Versions{
	"2.1": kversion.V2_1_0(), "2.8": kversion.V2_8_0(), "newest": kversion.Stable(),
}

func TestClientConsumes(t *testing.T) {
	ts, w := newReadServer(t)
	topic := ts.createTopic("t", 3, nil)
	const flushes, perBatch = 10, 20
	for i := range flushes {
		ts := int64(i * 1000)
		times := make([]int64, perBatch)
		for j := range times {
			times[j] = ts + int64(j)
		}
		b := timedBatch(t, 1000, times...)
		w.write(i%3 == 0, chunk{topic, 0, [][]byte{b}}, chunk{topic, 1, [][]byte{b, b}}, chunk{topic, 2, [][]byte{b}})
	}
	total := flushes * perBatch
	for name, versions := range clientVersions {
		t.Run(name, func(t *testing.T) {
			at := func(o kgo.Offset, n int, first map[int32]int64) {
				t.Helper()
				c := ts.client(kgo.MaxVersions(versions), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: o, 1: o, 2: o}}),
					kgo.FetchMaxPartitionBytes(8000))
				for p, records := range consume(t, c, n) {
					for i, r := range records {
						if r.Offset != first[p]+int64(i) || len(r.Value) != 1000 {
							t.Fatalf("partition %d: record %d has offset %d", p, i, r.Offset)
						}
					}
				}
			}
			at(kgo.NewOffset().AtStart(), 4*total, map[int32]int64{})
			at(kgo.NewOffset().At(37), 4*total-3*37, map[int32]int64{0: 37, 1: 37, 2: 37})
			at(kgo.NewOffset().AfterMilli(5003), 2*(total-103)+2*total-203, map[int32]int64{0: 103, 1: 203, 2: 103})
		})
	}
}

// What one client produces another that waits at the end receives, and it does not wait for a timer.
func TestClientTail(t *testing.T) {
	ts, _ := newReadServer(t)
	ts.createTopic("t", 2, nil)
	consumer := ts.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(time.Minute))
	producer := ts.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	for i := range 20 {
		r := &kgo.Record{Topic: "t", Partition: int32(i % 2), Value: fmt.Append(nil, i)}
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		for p, records := range consume(t, consumer, 1) {
			if string(records[0].Value) != fmt.Sprint(i) || p != int32(i%2) || records[0].Offset != int64(i/2) {
				t.Fatalf("record %d came as %s at %d/%d", i, records[0].Value, p, records[0].Offset)
			}
		}
	}
}

// A corrupt object stops its partition only.
func TestClientCorrupt(t *testing.T) {
	ts, w := newReadServer(t)
	topic := ts.createTopic("t", 2, nil)
	b := timedBatch(t, 100, times(10)...)
	w.write(false, chunk{topic, 0, [][]byte{b}}, chunk{topic, 1, [][]byte{b}})
	_, f := w.write(false, chunk{topic, 0, [][]byte{b}}, chunk{topic, 1, [][]byte{b}})
	object, err := objstore.ReadAll(t.Context(), w.bucket, string(f.Object), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	object[f.Extents[0].Position] ^= 1
	if err := w.bucket.Put(t.Context(), string(f.Object), objstore.Bytes(object), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	start := kgo.NewOffset().AtStart()
	c := ts.client(kgo.KeepRetryableFetchErrors(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: start, 1: start}}))
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	counts := map[int32]int{}
	var failure error
	for counts[1] < 20 || counts[0] < 10 || failure == nil {
		fetches := c.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("records %v, error %v", counts, failure)
		}
		fetches.EachRecord(func(r *kgo.Record) { counts[r.Partition]++ })
		fetches.EachError(func(_ string, p int32, err error) {
			if failure = err; p != 0 || !errors.Is(err, kerr.CorruptMessage) {
				t.Fatalf("partition %d: %v", p, err)
			}
		})
	}
	if counts[0] != 10 || counts[1] != 20 {
		t.Errorf("records by partition: %v", counts)
	}
}

func TestClientListsOffsets(t *testing.T) {
	ts, w := newReadServer(t)
	topic := ts.createTopic("t", 1, nil)
	for i := range int64(5) {
		w.write(i%2 == 0, chunk{topic, 0, [][]byte{timedBatch(t, 10, 1000*i, 1000*i+500)}})
	}
	for name, versions := range clientVersions {
		t.Run(name, func(t *testing.T) {
			adm := kadm.NewClient(ts.client(kgo.MaxVersions(versions)))
			for what, x := range map[string]struct {
				list func(context.Context, ...string) (kadm.ListedOffsets, error)
				want int64
			}{
				"start": {adm.ListStartOffsets, 0}, "end": {adm.ListEndOffsets, 10}, "committed": {adm.ListCommittedOffsets, 10},
				"after 3001": {func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
					return adm.ListOffsetsAfterMilli(ctx, 3001, topics...)
				}, 7},
			} {
				got, err := x.list(t.Context(), "t")
				if err != nil {
					t.Fatal(err)
				}
				if o, ok := got.Lookup("t", 0); !ok || o.Err != nil || o.Offset != x.want {
					t.Errorf("%s: %+v, want %d", what, o, x.want)
				}
			}
		})
	}
}
