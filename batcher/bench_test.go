package batcher

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/objstore"
)

// nullBucket and nullStore take everything at once.
type nullBucket struct{}

func (nullBucket) Put(context.Context, string, objstore.Payload, objstore.PutOptions) error {
	return nil
}

type nullStore struct{}

func (*nullStore) Now(context.Context) (metadata.Millis, error) { return 1, nil }
func (*nullStore) InlineResident() int64                        { return 0 }
func (*nullStore) Watch([]metadata.BlockID) *metadata.Watch     { return &metadata.Watch{} }
func (*nullStore) Progress(context.Context, []metadata.PartitionProducer) ([]metadata.Progress, error) {
	return nil, metadata.ErrUnavailable
}
func (*nullStore) View(context.Context, metadata.BlockID) (*metadata.View, error) {
	return &metadata.View{}, nil
}

func (s *nullStore) Commit(_ context.Context, flushes []*metadata.Flush) ([]metadata.FlushResult, error) {
	results := make([]metadata.FlushResult, len(flushes))
	for i, f := range flushes {
		n := 0
		for j := range f.Extents {
			n += len(f.Extents[j].Batches)
		}
		results[i].Batches = make([]metadata.BatchResult, n)
	}
	return results, nil
}

// BenchmarkSingleRecord measures how long a quiet agent takes for one small record on the embedded database.
func BenchmarkSingleRecord(b *testing.B) {
	ctx := context.Background()
	driver, err := sqlite.Open(ctx, filepath.Join(b.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	store := metadata.NewStore(metadata.Options{Driver: driver})
	made, errs, err := store.CreateTopics(ctx, []metadata.NewTopic{{Name: "events", Partitions: 1}}, false)
	if err != nil || errs[0] != nil {
		b.Fatal(err, errs)
	}
	c := DefaultConfig()
	c.CommitBudget, c.InlineBytesPerSecond = 0, 0
	batcher, err := New(Options{Config: c, Bucket: nullBucket{}, Store: store})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := batcher.Run(ctx); err != nil {
			b.Error(err)
		}
	}()
	sample := makeBatch(b, made[0].Partitions[0], metadata.NoProducer, -1, -1, 1, 100)
	b.ReportAllocs()
	b.ResetTimer()
	answered := make(chan error)
	for range b.N {
		batcher.Submit(Produce{
			Conn: 1, Deadline: time.Now().Add(30 * time.Second), Batches: []Batch{sample},
			Done: func(res []Result) { answered <- res[0].Err },
		})
		if err := <-answered; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := errors.Join(batcher.Drain(ctx), driver.Close()); err != nil {
		b.Error(err)
	}
	<-ended
}

// BenchmarkSubmit measures the whole way from Submit to Done without bucket and database: bytes per second, and time and
// allocations per batch.
func BenchmarkSubmit(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		for _, mode := range []segment.Compression{segment.CompressionNone, segment.CompressionAuto} {
			b.Run(fmt.Sprintf("batch=%dKiB/compression=%s", size>>10, mode), func(b *testing.B) { benchmarkSubmit(b, size, mode) })
		}
	}
}

func benchmarkSubmit(b *testing.B, size int, mode segment.Compression) {
	const conns, inFlight, partitions, perRequest = 8, 5, 256, 16
	c := DefaultConfig()
	c.Compression = mode
	c.PutBudget, c.CommitBudget, c.InlineBytesPerSecond = 0, 0, 0 // the clients' windows do not fill a segment
	batcher, err := New(Options{Config: c, Bucket: nullBucket{}, Store: &nullStore{}})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := batcher.Run(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	sample := makeBatch(b, partition(1, 0), metadata.NoProducer, -1, -1, 1, size)
	sample.Uncompressed = mode != segment.CompressionNone
	b.SetBytes(int64(len(sample.Data)))
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for conn := range conns {
		wg.Go(func() {
			slots := make(chan struct{}, inFlight)
			var answered sync.WaitGroup
			for k := conn; left.Add(-perRequest) > -perRequest; k++ {
				slots <- struct{}{}
				batches := make([]Batch, perRequest)
				for i := range batches {
					batches[i] = sample
					n := (k*perRequest + i) % partitions
					batches[i].Partition = partition(metadata.BlockID(1+n/64), metadata.Slot(n%64))
				}
				answered.Add(1)
				batcher.Submit(Produce{
					Conn: uint64(conn), Deadline: time.Now().Add(30 * time.Second), Batches: batches,
					Done: func(res []Result) {
						if res[0].Err != nil {
							b.Error(res[0].Err)
						}
						<-slots
						answered.Done()
					},
				})
			}
			answered.Wait()
		})
	}
	wg.Wait()
	b.StopTimer()
	if err := batcher.Drain(context.Background()); err != nil {
		b.Error(err)
	}
	<-ended
}
