package agent

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// newWholeServer is a server with a real batcher and cache, on a bucket whose faults a test injects. Nothing is inline.
func newWholeServer(t *testing.T) (*testServer, *objstore.Faults) {
	t.Helper()
	return newTunedServer(t, func(*batcher.Options) {})
}

// newTunedServer is newWholeServer with a changed batcher and more options.
func newTunedServer(t *testing.T, tune func(*batcher.Options), more ...testOption) (*testServer, *objstore.Faults) {
	t.Helper()
	faults := objstore.NewFaults(objstore.NewMemory())
	whole := func(_ *Config, d *Deps) {
		store := d.Store.(*metadata.Store)
		held, err := NewExtentCache(store, cache.Options{Bucket: faults})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(held.Close)
		cfg := batcher.DefaultConfig()
		cfg.InlineMaxBytes, cfg.PutBudget, cfg.CommitBudget = 0, 0, 0
		o := batcher.Options{Config: cfg, Bucket: faults, Store: store, Sink: CacheSink{Cache: held}}
		tune(&o)
		b, err := batcher.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			<-ended
		})
		d.Producer, d.Extents, d.Logger = b, held, nil
	}
	return newTestServer(t, append([]testOption{whole}, more...)...), faults
}

// TestProducersThroughFailingPuts: several idempotent producers write to the same two partitions while PUTs fail in
// bursts; what was acknowledged is there, once, and in each producer's order.
func TestProducersThroughFailingPuts(t *testing.T) {
	ts, faults := newWholeServer(t)
	ts.createTopic("t", 2, nil)
	const producers, each = 4, 100
	var all sync.WaitGroup
	for p := range producers {
		cl := ts.client(kgo.DefaultProduceTopic("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(20),
			kgo.ProducerLinger(0))
		all.Go(func() {
			var acked sync.WaitGroup
			for i := range each {
				if i%50 == 25 {
					// Half of them store the object and say that they did not.
					faults.Inject(objstore.Fault{Op: objstore.OpPut, Times: 1, Before: objstore.ErrUnavailable})
					faults.Inject(objstore.Fault{Op: objstore.OpPut, Times: 1, After: objstore.ErrUnavailable})
				}
				acked.Add(1)
				r := &kgo.Record{Partition: int32(i % 2), Value: fmt.Appendf(nil, "%d-%d", p, i)}
				cl.Produce(context.Background(), r, func(_ *kgo.Record, err error) {
					defer acked.Done()
					if err != nil {
						t.Errorf("producer %d, record %d: %v", p, i, err)
					}
				})
			}
			acked.Wait()
		})
	}
	all.Wait()
	if n := faults.Calls(objstore.OpPut); n == 0 {
		t.Fatal("nothing was put")
	}
	reader := ts.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	last := map[string]int{}
	for partition, records := range consume(t, reader, producers*each) {
		for i, r := range records {
			var p, n int
			if _, err := fmt.Sscanf(string(r.Value), "%d-%d", &p, &n); err != nil {
				t.Fatal(err)
			}
			key := fmt.Sprint(p, "/", partition)
			before, ok := last[key]
			if !ok {
				before = int(partition) - 2
			}
			if r.Offset != int64(i) || n != before+2 {
				t.Fatalf("partition %d, offset %d: record %d of producer %d comes after %d", partition, r.Offset, n, p, before)
			}
			last[key] = n
		}
	}
}
