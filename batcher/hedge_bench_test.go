package batcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// BenchmarkHedge measures what producers wait for on a bucket whose PUTs take 20 ms, but one in 50 takes 500 ms, with and
// without hedging: 16 producers, each with one record in flight, 100 records each.
//
//	go test ./batcher -run xxx -bench Hedge -benchtime=1x -count=5
func BenchmarkHedge(b *testing.B) {
	for _, hedge := range []bool{false, true} {
		b.Run(fmt.Sprintf("hedge=%v", hedge), func(b *testing.B) { benchmarkHedge(b, hedge) })
	}
}

func benchmarkHedge(b *testing.B, hedge bool) {
	const producers, records, slowOneIn = 16, 100, 50
	bucket := objstore.NewFaults(objstore.NewMemory())
	rnd := rand.New(rand.NewPCG(1, 2))
	bucket.Inject(objstore.Fault{ // Match is called under the decorator's lock
		Op: objstore.OpPut, Match: func(string) bool { return rnd.IntN(slowOneIn) == 0 }, Delay: 500 * time.Millisecond,
	})
	bucket.Inject(objstore.Fault{Op: objstore.OpPut, Delay: 20 * time.Millisecond})
	c := DefaultConfig()
	c.Hedge, c.InlineMaxBytes, c.PutBudget, c.CommitBudget = hedge, 0, 0, 0
	batcher, err := New(Options{Config: c, Bucket: bucket, Store: &nullStore{}})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- batcher.Run(context.Background()) }()
	var mu sync.Mutex
	var took []time.Duration
	for b.Loop() {
		var wg sync.WaitGroup
		for p := range producers {
			sample := makeBatch(b, partition(metadata.BlockID(1+p), 0), metadata.NoProducer, -1, -1, 1, 1000)
			wg.Go(func() {
				for range records {
					began, answered := time.Now(), make(chan error)
					batcher.Submit(Produce{
						Conn: uint64(p), Deadline: began.Add(30 * time.Second), Batches: []Batch{sample},
						Done: func(res []Result) { answered <- res[0].Err },
					})
					if err := <-answered; err != nil {
						b.Error(err)
					}
					mu.Lock()
					took = append(took, time.Since(began))
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	slices.Sort(took)
	for _, q := range []struct {
		name string
		of   float64
	}{{"p50_ms", 0.5}, {"p99_ms", 0.99}, {"p99.9_ms", 0.999}} {
		b.ReportMetric(took[int(float64(len(took)-1)*q.of)].Seconds()*1e3, q.name)
	}
	b.ReportMetric(float64(bucket.Calls(objstore.OpPut)), "PUTs")
	b.ReportMetric(testutil.ToFloat64(batcher.metrics.hedges[0])+testutil.ToFloat64(batcher.metrics.hedges[1]), "hedges")
	if err := batcher.Drain(context.Background()); err != nil {
		b.Error(err)
	}
	if err := <-ended; err != nil {
		b.Error(err)
	}
}
