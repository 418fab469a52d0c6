package compactor

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// writer is a batcher over a rig, without inline flushes and budgets.
type writer struct {
	*batcher.Batcher
	r       *rig
	metrics *prometheus.Registry
}

func newWriter(t *testing.T, r *rig) *writer {
	t.Helper()
	cfg := batcher.DefaultConfig()
	cfg.InlineMaxBytes, cfg.PutBudget, cfg.CommitBudget = 0, 0, 0
	w := &writer{r: r, metrics: prometheus.NewRegistry()}
	var err error
	w.Batcher, err = batcher.New(batcher.Options{Config: cfg, Bucket: r.bucket, Store: r.store, Registerer: w.metrics})
	r.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

// produce writes a record and waits for its result.
func (w *writer) produce(value string) {
	w.r.Helper()
	data := w.r.batchOf(time.Now().UnixMilli(), record.CodecNone, "k", value)
	h, err := record.Parse(data)
	w.r.must(err)
	done := make(chan []batcher.Result, 1)
	w.Submit(batcher.Produce{
		Conn: 1, Deadline: time.Now().Add(time.Minute), Done: func(res []batcher.Result) { done <- res },
		Batches: []batcher.Batch{{
			Topic: w.r.topic.ID, Partition: w.r.topic.Partitions[0], Data: data,
			Meta: metadata.Batch{
				Length: int32(len(data)), Records: 1, MaxTimestamp: metadata.Millis(h.MaxTimestamp),
				Producer: metadata.NoProducer, Epoch: -1, First: -1, Last: -1, Validated: 1 << 40,
			},
		}},
	})
	w.r.must((<-done)[0].Err)
	w.r.want[0] = append(w.r.want[0], "k="+value)
}

func (w *writer) wantHedges(t *testing.T, won, lost int) {
	t.Helper()
	want := "# HELP skein_segment_hedges_total Segment uploads that were slow and begun again under a second key, by whether " +
		"that one landed first.\n# TYPE skein_segment_hedges_total counter\n" +
		fmt.Sprintf("skein_segment_hedges_total{won=\"false\"} %d\nskein_segment_hedges_total{won=\"true\"} %d\n", lost, won)
	if err := testutil.GatherAndCompare(w.metrics, strings.NewReader(want), "skein_segment_hedges_total"); err != nil {
		t.Error(err)
	}
}

// TestHedgedPut: a PUT hangs and is begun again under a second key. Whichever lands first is the one that the rows name;
// the other, which the store keeps though its client gave up, is found by the listing, condemned and deleted, and once
// more when it lands again after that. What was acknowledged is read the same all the while.
func TestHedgedPut(t *testing.T) {
	for name, hedgeWins := range map[string]bool{"the hedge lands first": true, "the hedge lands last": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, nil)
			w := newWriter(t, r)
			for i := range 16 { // as many as it takes to know how long a PUT takes
				w.produce(fmt.Sprint(i))
			}
			first, second := make(chan string, 1), make(chan string, 1)
			hang := make(chan struct{})
			r.faults.Inject(objstore.Fault{Op: objstore.OpPut, Times: 1, Entered: first, Block: hang})
			if !hedgeWins {
				r.faults.Inject(objstore.Fault{Op: objstore.OpPut, Times: 1, Entered: second, Block: make(chan struct{})})
				go func() {
					second <- <-second
					close(hang)
				}()
			}
			w.produce("slow")
			loser, winner := <-first, ""
			if hedgeWins {
				winner = strings.TrimSuffix(loser, "-1") + "-2"
				w.wantHedges(t, 1, 0)
			} else {
				winner, loser = loser, <-second
				w.wantHedges(t, 0, 1)
			}
			if !strings.HasSuffix(loser, map[bool]string{true: "-1", false: "-2"}[hedgeWins]) {
				t.Errorf("keys %s, %s", winner, loser)
			}
			w.produce("after")
			checkLoserGoes(t, r, winner, loser)
		})
	}
}

// checkLoserGoes lands the other object of a hedged PUT and follows it to its end.
func checkLoserGoes(t *testing.T, r *rig, winner, loser string) {
	t.Helper()
	body, err := objstore.ReadAll(t.Context(), r.bucket, winner, 1<<20)
	r.must(err)
	land := func() { r.must(r.bucket.Put(t.Context(), loser, objstore.Bytes(body), objstore.PutOptions{})) }
	wantThere := func(when string, key string, want bool) {
		t.Helper()
		if _, ok := find(r.keys(), key); ok != want {
			t.Fatalf("%s: %s is there: %v", when, key, ok)
		}
		r.check(r.store)
	}
	c := r.compactor(Options{})
	collect := func() {
		r.must(c.Orphans(t.Context()))
		r.must(c.Garbage(t.Context()))
	}
	land()
	collect()
	wantThere("young", loser, true)
	if n := testutil.ToFloat64(c.metrics.objects.WithLabelValues("orphans")); n != 0 {
		t.Errorf("%v young orphans", n)
	}
	r.clock.advance(2 * time.Hour)
	collect()
	wantThere("condemned", loser, true)
	if n := testutil.ToFloat64(c.metrics.objects.WithLabelValues("orphans")); n != 1 {
		t.Errorf("the listing found %v orphans, want the loser", n)
	}
	r.clock.advance(2 * time.Hour)
	collect()
	wantThere("after the grace", loser, false)
	wantThere("after the grace", winner, true)
	land()
	collect()
	wantThere("landed again", loser, true)
	r.clock.advance(metadata.CondemnedKept + time.Hour)
	collect()
	wantThere("at last", loser, false)
	wantThere("at last", winner, true)
	r.fsck()
}
