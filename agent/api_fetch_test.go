package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/metadata"
)

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func storedExtent(f *metadata.Flush, x metadata.Extent, raw ...[]byte) batcher.StoredExtent {
	return batcher.StoredExtent{
		Object: f.Object, Flush: f.ID, Position: x.Position, RawLength: x.RawLength, Raw: raw,
	}
}

// waitFor polls a condition that has no signal of its own.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// polling starts a fetch that waits, and returns when it does.
func (w *world) polling(ctx context.Context, t *testing.T, req *kmsg.FetchRequest) <-chan *kmsg.FetchResponse {
	t.Helper()
	out := make(chan *kmsg.FetchResponse, 1)
	before := testutil.ToFloat64(w.server.reader.waiting)
	go func() {
		defer close(out)
		r, err := w.tryFetch(ctx, req)
		if err == nil {
			out <- r
		} else if ctx.Err() == nil {
			t.Errorf("fetch: %v", err)
		}
	}()
	waitFor(t, "the fetch to wait", func() bool { return testutil.ToFloat64(w.server.reader.waiting) > before })
	return out
}

// receive waits for a response, far less long than the fetch would.
func receive(t *testing.T, c <-chan *kmsg.FetchResponse) *kmsg.FetchResponse {
	t.Helper()
	select {
	case r := <-c:
		if r == nil {
			t.Fatal("no response")
		}
		return r
	case <-time.After(testTimeout):
		t.Fatal("the fetch was not woken")
		return nil
	}
}

// A waiting fetch wakes on a commit by this agent, and by another.
func TestLongPollWakes(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	b := timedBatch(t, 10, times(5)...)
	agents := map[string]*world{"own commit": w, "another agent's": w.another()}
	next := int64(0)
	for _, name := range []string{"own commit", "another agent's"} {
		t.Run(name, func(t *testing.T) {
			req := fetchReq("t", next, 0)
			req.MaxWaitMillis = 600_000
			got := w.polling(t.Context(), t, req)
			agents[name].write(false, chunk{topic, 0, [][]byte{b}})
			wantOffsets(t, part(receive(t, got), 0), spanOf(next, 5))
			next += 5
		})
	}
}

func TestLongPollMinBytes(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	b := timedBatch(t, 1000, 1)
	req := fetchReq("t", 0, 0)
	req.MaxWaitMillis, req.MinBytes = 600_000, int32(2*len(b))
	got := w.polling(t.Context(), t, req)
	w.write(false, chunk{topic, 0, [][]byte{b}})
	w.write(false, chunk{topic, 1, [][]byte{b}})
	r := receive(t, got)
	wantOffsets(t, part(r, 0), "0-0")
	wantOffsets(t, part(r, 1), "0-0")

	req.MaxWaitMillis, req.MinBytes = 20, int32(3*len(b)) // time over: what there is
	wantOffsets(t, part(w.fetch(req), 0), "0-0")
	req.MinBytes, req.MaxWaitMillis = 1<<30, 600_000 // more than the request takes: not waited for
	req.MaxBytes = int32(len(b))
	r = w.fetch(req)
	wantOffsets(t, part(r, 0), "0-0")
	wantOffsets(t, part(r, 1))
}

func TestLongPollEnds(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	req := fetchReq("t", 0)
	req.MaxWaitMillis = 30
	start := time.Now()
	wantOffsets(t, part(w.fetch(req), 0))
	if d := time.Since(start); d < 30*time.Millisecond {
		t.Errorf("returned after %v", d)
	}
	req.MinBytes, req.MaxWaitMillis = 0, 600_000 // no bytes wanted: no waiting
	wantOffsets(t, part(w.fetch(req), 0))

	req.MinBytes = 1
	ctx, cancel := context.WithCancel(t.Context())
	got := w.polling(ctx, t, req)
	cancel() // the connection ends
	if r := <-got; r != nil {
		t.Error("a response without a connection")
	}

	got = w.polling(t.Context(), t, req)
	if _, errs, err := w.store.DeleteTopics(t.Context(), []metadata.TopicRef{{ID: topic.ID}}); err != nil || errs[0] != nil {
		t.Fatal(err, errs)
	}
	if c := part(receive(t, got), 0).ErrorCode; c != codeUnknownTopicOrPartition {
		t.Errorf("topic deleted meanwhile: %s", codeName(c))
	}
	if n := testutil.ToFloat64(w.server.reader.waiting); n != 0 {
		t.Errorf("%v fetches wait at the end", n)
	}
}

// All versions are served, and decode.
func TestFetchVersions(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 20_000, times(2)...), timedBatch(t, 20, times(2)...)}})
	for version := int16(4); version <= 18; version++ {
		for _, isolation := range []int8{0, 1} {
			req := fetchReq("t", 1)
			req.Version, req.IsolationLevel, req.Topics[0].TopicID = version, isolation, topic.ID
			wire := kmsg.NewPtrFetchRequest() // as it comes over the wire
			wire.Version = version
			if err := wire.ReadFrom(req.AppendTo(nil)); err != nil {
				t.Fatal(err)
			}
			r := w.fetch(wire)
			wantOffsets(t, part(r, 0), "0-1", "2-3")
		}
	}
}

// read_committed ends at the LSO: nothing of an open transaction, and nothing behind it.
func TestFetchReadCommitted(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	b := timedBatch(t, 10, times(5)...)
	w.write(false, chunk{topic, 0, [][]byte{b, b}})
	p := &partRead{place: metadata.PartitionID{Block: topic.Partitions[0].Block, Slot: topic.Partitions[0].Slot}, max: 1 << 20}
	if err := w.server.reader.look(t.Context(), []*partRead{p}, true); err != nil || p.limit != p.lso() {
		t.Fatalf("limit %d, LSO %d, %v", p.limit, p.lso(), err)
	}
	p.limit = 5
	if n, err := w.server.reader.plan(t.Context(), []*partRead{p}, 1<<20); err != nil || n != len(b) || len(p.picks) != 1 {
		t.Errorf("planned %d bytes up to the LSO, want %d; %v", n, len(b), err)
	}
}

func spanOf(base int64, n int64) string {
	return fmt.Sprintf("%d-%d", base, base+n-1)
}
