package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

func wantOffsets(t *testing.T, p *kmsg.FetchResponseTopicPartition, want ...string) {
	t.Helper()
	if p.ErrorCode != 0 {
		t.Errorf("partition %d: %s", p.Partition, codeName(p.ErrorCode))
	}
	if got := offsetsOf(t, p); !slices.Equal(got, want) {
		t.Errorf("partition %d: batches %v, want %v", p.Partition, got, want)
	}
}

// times gives n timestamps.
func times(n int) []int64 {
	ts := make([]int64, n)
	for i := range ts {
		ts[i] = int64(i + 1)
	}
	return ts
}

// Segments and inline payloads, extents with one batch and with several, from every offset: the batch that contains it
// comes first.
func TestReadEveryOffset(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 3)
	small, large := timedBatch(t, 10, times(3)...), timedBatch(t, 20_000, times(2)...)
	w.write(false, chunk{topic, 1, [][]byte{small, large, small}}, chunk{topic, 2, [][]byte{small}})
	w.write(true, chunk{topic, 1, [][]byte{small}})
	w.write(false, chunk{topic, 1, [][]byte{large}})
	all := []string{"0-2", "3-4", "5-7", "8-10", "11-12"}
	first := []int{0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5}
	for _, agent := range []*world{w, w.another()} {
		for offset, i := range first {
			r := agent.fetch(fetchReq("t", 0, int64(offset)))
			wantOffsets(t, part(r, 1), all[i:]...)
			if p := part(r, 1); p.HighWatermark != 13 || p.LastStableOffset != 13 || p.LogStartOffset != 0 {
				t.Errorf("high watermark %d, LSO %d, log start %d", p.HighWatermark, p.LastStableOffset, p.LogStartOffset)
			}
			wantOffsets(t, part(r, 0))
		}
	}
}

// Whatever the number of readers, and whatever they read again: one GET for an extent, and one for neighbours.
func TestReadOncePerAgent(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 4)
	b := timedBatch(t, 100, times(5)...)
	w.write(false, chunk{topic, 0, [][]byte{b}}, chunk{topic, 1, [][]byte{b}}, chunk{topic, 3, [][]byte{b}})
	done := make(chan error)
	const readers = 20
	for range readers {
		go func() {
			r, err := w.tryFetch(t.Context(), fetchReq("t", 0, 0, 0, 0))
			if err == nil && len(part(r, 3).RecordBatches) != len(b) {
				err = errors.New("wrong records")
			}
			done <- err
		}()
	}
	for range readers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := w.bucket.count(); n != 1 {
		t.Errorf("%d GETs, want 1", n)
	}
}

// What this agent wrote is served without a GET.
func TestReadOwnWrites(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	b := timedBatch(t, 100, times(5)...)
	_, f := w.write(false, chunk{topic, 0, [][]byte{b}})
	stored := f.Extents[0]
	sink := CacheSink{w.cache}
	sink.Stored(storedExtent(f, stored, b))
	wantOffsets(t, part(w.fetch(fetchReq("t", 0)), 0), "0-4")
	_, f = w.write(true, chunk{topic, 0, [][]byte{b}})
	sink.Stored(storedExtent(f, f.Extents[0], b))
	wantOffsets(t, part(w.fetch(fetchReq("t", 5)), 0), "5-9")
	if n := w.bucket.count(); n != 0 {
		t.Errorf("%d GETs", n)
	}
}

// A duplicate and a refused batch are in the object and are not served.
func TestReadSkipsWhatWasNotAccepted(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	idempotent := func(epoch int16, seq int32, n int) []byte {
		b := record.NewBuilder().SetProducer(7, epoch, seq)
		for i := range n {
			b.Append(int64(i), nil, []byte("v"))
		}
		data, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	w.write(false, chunk{topic, 0, [][]byte{idempotent(1, 0, 3)}})
	r, _ := w.write(false, chunk{topic, 0, [][]byte{
		idempotent(1, 0, 3), idempotent(0, 0, 4), idempotent(1, 3, 2), idempotent(1, 3, 2), idempotent(1, 5, 1),
	}})
	codes := make([]metadata.Code, len(r.Batches))
	for i := range r.Batches {
		codes[i] = r.Batches[i].Code
	}
	want := []metadata.Code{
		metadata.CodeDuplicate, metadata.CodeFenced, metadata.CodeAccepted, metadata.CodeDuplicate, metadata.CodeAccepted,
	}
	if !slices.Equal(codes, want) {
		t.Fatalf("codes %v, want %v", codes, want)
	}
	for offset, want := range [][]string{
		{"0-2", "3-4", "5-5"}, {"0-2", "3-4", "5-5"}, {"0-2", "3-4", "5-5"}, {"3-4", "5-5"}, {"3-4", "5-5"}, {"5-5"}, {},
	} {
		wantOffsets(t, part(w.fetch(fetchReq("t", int64(offset))), 0), want...)
	}
}

func TestReadBounds(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 3)
	b := timedBatch(t, 1000, 1)
	n := int32(len(b))
	w.write(false, chunk{topic, 0, [][]byte{b, b, b, b}}, chunk{topic, 1, [][]byte{b, b, b, b}}, chunk{topic, 2, [][]byte{b, b}})
	for _, tt := range []struct {
		name      string
		max, part int32
		want      [3]int
	}{
		{"all", 1 << 20, 1 << 20, [3]int{4, 4, 2}},
		{"partition's maximum", 1 << 20, 2 * n, [3]int{2, 2, 2}},
		{"not half a batch", 1 << 20, 2*n - 1, [3]int{1, 1, 1}},
		{"request's maximum, in the request's order", 5 * n, 1 << 20, [3]int{4, 1, 0}},
		{"both", 5 * n, 2 * n, [3]int{2, 2, 1}},
		{"one batch over the request's maximum", 1, 1 << 20, [3]int{1, 0, 0}},
		{"one batch over the partition's maximum", 1 << 20, 1, [3]int{1, 0, 0}},
		{"zero", 0, 0, [3]int{1, 0, 0}},
		{"negative", -1, -1, [3]int{1, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := fetchReq("t", 0, 0, 0)
			req.MaxBytes = tt.max
			for i := range req.Topics[0].Partitions {
				req.Topics[0].Partitions[i].PartitionMaxBytes = tt.part
			}
			r := w.fetch(req)
			for i, want := range tt.want {
				if got := len(offsetsOf(t, part(r, i))); got != want {
					t.Errorf("partition %d: %d batches, want %d", i, got, want)
				}
			}
		})
	}
	t.Run("the first batch goes to the first that has one", func(t *testing.T) {
		req := fetchReq("t", 4, 0, 0)
		req.MaxBytes = 1
		r := w.fetch(req)
		wantOffsets(t, part(r, 0))
		wantOffsets(t, part(r, 1), "0-0")
		wantOffsets(t, part(r, 2))
	})
	t.Run("another order", func(t *testing.T) {
		req := fetchReq("t", 0, 0, 0)
		slices.Reverse(req.Topics[0].Partitions)
		req.MaxBytes = 3 * n
		r := w.fetch(req)
		if p := part(r, 0); p.Partition != 2 || len(offsetsOf(t, p)) != 2 || len(offsetsOf(t, part(r, 1))) != 1 {
			t.Errorf("partition %d got %d batches, then %d", p.Partition, len(offsetsOf(t, p)), len(offsetsOf(t, part(r, 1))))
		}
	})
}

// More partitions than are located at a time, of several blocks.
func TestReadManyPartitions(t *testing.T) {
	w := newWorld(t)
	const n = 3*locateParts + 5
	topic := w.topic("t", n)
	b := timedBatch(t, 10, 1)
	var chunks []chunk
	for i := range n {
		chunks = append(chunks, chunk{topic, i, [][]byte{b}})
	}
	w.write(false, chunks...)
	req := fetchReq("t", make([]int64, n)...)
	r := w.fetch(req)
	for i := range n {
		wantOffsets(t, part(r, i), "0-0")
	}
	req.MaxBytes = int32((locateParts + 3) * len(b))
	r = w.fetch(req)
	for i := range n {
		want := []string{"0-0"}
		if i >= locateParts+3 {
			want = nil
		}
		wantOffsets(t, part(r, i), want...)
	}
}

func TestReadOutOfRange(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	b := timedBatch(t, 10, times(5)...)
	w.write(false, chunk{topic, 0, [][]byte{b, b}}, chunk{topic, 1, [][]byte{b}})
	place := topic.Partitions[0]
	res, err := w.store.DeleteRecords(t.Context(), []metadata.DeleteRecords{
		{Partition: metadata.PartitionID{Block: place.Block, Slot: place.Slot}, Before: 3},
	})
	if err != nil || res[0].Err != nil {
		t.Fatal(err, res)
	}
	for _, offset := range []int64{0, 2, 11, -1} {
		req := fetchReq("t", offset, 0)
		req.MaxWaitMillis, req.MinBytes = 60_000, 1<<20 // an error does not wait
		r := w.fetch(req)
		p := part(r, 0)
		if p.ErrorCode != codeOffsetOutOfRange || p.HighWatermark != -1 || p.LogStartOffset != -1 || p.RecordBatches == nil {
			t.Errorf("offset %d: %s, high watermark %d", offset, codeName(p.ErrorCode), p.HighWatermark)
		}
		wantOffsets(t, part(r, 1), "0-4")
	}
	r := w.fetch(fetchReq("t", 3))
	wantOffsets(t, part(r, 0), "0-4", "5-9")
	if p := part(r, 0); p.LogStartOffset != 3 {
		t.Errorf("log start %d", p.LogStartOffset)
	}
	wantOffsets(t, part(w.fetch(fetchReq("t", 10)), 0))
}

// An offset that another agent assigned is asked of the database before it is out of range.
func TestReadBeyondAStaleView(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	b := timedBatch(t, 10, times(5)...)
	w.write(false, chunk{topic, 0, [][]byte{b}})
	wantOffsets(t, part(w.fetch(fetchReq("t", 0)), 0), "0-4")
	w.stop() // no wake-up reaches this agent any more
	other := w.another()
	other.write(false, chunk{topic, 0, [][]byte{b, b}})
	wantOffsets(t, part(w.fetch(fetchReq("t", 10)), 0), "10-14")
}

func TestFetchUnknown(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	other := w.another()
	late := other.topic("late", 1)
	other.write(false, chunk{late, 0, [][]byte{timedBatch(t, 10, 1)}})

	r := w.fetch(fetchReq("nope", 0))
	if c := part(r, 0).ErrorCode; c != codeUnknownTopicOrPartition {
		t.Errorf("unknown topic: %s", codeName(c))
	}
	if c := part(w.fetch(fetchReq("t", 0, 0)), 1).ErrorCode; c != codeUnknownTopicOrPartition {
		t.Errorf("unknown partition: %s", codeName(c))
	}
	wantOffsets(t, part(w.fetch(fetchReq("late", 0)), 0), "0-0") // made by another agent a moment ago

	byID := fetchReq("", 0)
	byID.Version = 13
	byID.Topics[0].TopicID = [16]byte{1}
	r = w.fetch(byID)
	if p := part(r, 0); p.ErrorCode != codeUnknownTopicID || r.Topics[0].TopicID != byID.Topics[0].TopicID {
		t.Errorf("unknown id: %s", codeName(p.ErrorCode))
	}
	byID.Topics[0].TopicID = late.ID
	wantOffsets(t, part(w.fetch(byID), 0), "0-0")

	epoch := fetchReq("t", 0)
	epoch.Topics[0].Partitions[0].CurrentLeaderEpoch = 1
	if c := part(w.fetch(epoch), 0).ErrorCode; c != codeUnknownLeaderEpoch {
		t.Errorf("leader epoch 1: %s", codeName(c))
	}
	if _, errs, err := w.store.DeleteTopics(t.Context(), []metadata.TopicRef{{ID: topic.ID}}); err != nil || errs[0] != nil {
		t.Fatal(err, errs)
	}
	if c := part(w.fetch(fetchReq("t", 0)), 0).ErrorCode; c != codeUnknownTopicOrPartition {
		t.Errorf("deleted topic: %s", codeName(c))
	}
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes = 11, 60_000, 1
	if r := w.fetch(req); len(r.Topics) != 0 {
		t.Error("an empty request got topics")
	}
}

func TestFetchSessions(t *testing.T) {
	w := newWorld(t)
	w.topic("t", 1)
	for _, tt := range []struct {
		id, epoch int32
		want      int16
	}{
		{0, -1, 0}, {0, 0, 0}, {77, -1, 0}, {77, 0, 0},
		{77, 1, codeFetchSessionIDNotFound}, {0, 1, codeFetchSessionIDNotFound},
	} {
		req := fetchReq("t", 0)
		req.SessionID, req.SessionEpoch = tt.id, tt.epoch
		if r := w.fetch(req); r.ErrorCode != tt.want || r.SessionID != 0 {
			t.Errorf("session %d epoch %d: %s, session id %d", tt.id, tt.epoch, codeName(r.ErrorCode), r.SessionID)
		}
	}
}

// A corrupt object fails its partition, says which object and range, and leaves the others alone. What comes before it is
// served.
func TestReadCorrupt(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 3)
	b := timedBatch(t, 100, times(5)...)
	w.write(false, chunk{topic, 0, [][]byte{b}}, chunk{topic, 1, [][]byte{b}})
	_, f := w.write(false, chunk{topic, 1, [][]byte{b}}, chunk{topic, 2, [][]byte{b}})
	x := f.Extents[0]
	object, err := objstore.ReadAll(t.Context(), w.bucket, string(f.Object), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	object[x.Position+20] ^= 1
	if err := w.bucket.Put(t.Context(), string(f.Object), objstore.Bytes(object), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	r := w.fetch(fetchReq("t", 0, 0, 0))
	wantOffsets(t, part(r, 0), "0-4")
	wantOffsets(t, part(r, 1), "0-4")
	wantOffsets(t, part(r, 2), "0-4")
	r = w.fetch(fetchReq("t", 0, 5, 0))
	wantOffsets(t, part(r, 0), "0-4")
	wantOffsets(t, part(r, 2), "0-4")
	if p := part(r, 1); p.ErrorCode != codeCorruptMessage || p.HighWatermark != -1 || len(p.RecordBatches) != 0 {
		t.Errorf("%s, high watermark %d, %d bytes", codeName(p.ErrorCode), p.HighWatermark, len(p.RecordBatches))
	}
	want := fmt.Sprintf(`object \"%s\" bytes [%d:+%d]`, f.Object, x.Position, x.Length)
	if !strings.Contains(w.logs.String(), want) {
		t.Errorf("log does not say %s:\n%s", want, w.logs)
	}
	if n := testutil.ToFloat64(w.server.reader.errors.WithLabelValues("corrupt")); n != 1 {
		t.Errorf("%v corrupt reads counted", n)
	}
}

// An object that is gone is a loss when it is still named after a refresh.
func TestReadMissing(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	b := timedBatch(t, 100, times(5)...)
	_, f := w.write(false, chunk{topic, 0, [][]byte{b}})
	w.write(false, chunk{topic, 1, [][]byte{b}})
	if err := w.bucket.Delete(t.Context(), string(f.Object)); err != nil {
		t.Fatal(err)
	}
	r := w.fetch(fetchReq("t", 0, 0))
	if c := part(r, 0).ErrorCode; c != codeKafkaStorageError {
		t.Errorf("missing object: %s", codeName(c))
	}
	wantOffsets(t, part(r, 1), "0-4")
	if log := w.logs.String(); !strings.Contains(log, string(f.Object)) || !strings.Contains(log, "level=ERROR") {
		t.Errorf("log: %s", log)
	}
}

// movedReads serves a stale place at first, as if the compactor had moved the extent meanwhile.
type movedReads struct {
	Reads
	stale func(l *metadata.Located)
	calls int
}

func (m *movedReads) Locate(ctx context.Context, q []metadata.LocateQuery) ([][]metadata.Located, error) {
	a, err := m.Reads.Locate(ctx, q)
	if m.calls++; m.calls == 1 {
		for i := range a {
			for j := range a[i] {
				m.stale(&a[i][j])
			}
		}
	}
	return a, err
}

func TestReadRelocates(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	b := timedBatch(t, 100, times(5)...)
	w.write(false, chunk{topic, 0, [][]byte{b}}, chunk{topic, 1, [][]byte{b}})
	w.server.reader.store = &movedReads{Reads: w.store, stale: func(l *metadata.Located) { l.Object = "segments/gone" }}
	r := w.fetch(fetchReq("t", 0, 2))
	wantOffsets(t, part(r, 0), "0-4")
	wantOffsets(t, part(r, 1), "0-4")
	if log := w.logs.String(); log != "" {
		t.Errorf("log: %s", log)
	}
	// An inline payload that was merged likewise.
	w.write(true, chunk{topic, 0, [][]byte{b}})
	w.server.reader.store = &movedReads{Reads: w.store, stale: func(l *metadata.Located) { l.Flush[0]++ }}
	wantOffsets(t, part(w.fetch(fetchReq("t", 5)), 0), "5-9")
}

// What is no run is not read as one, and what the database says wrongly is not cut up.
func TestReadWhatCannotBe(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 100, times(5)...)}})
	for _, tt := range []struct {
		change func(l *metadata.Located)
		code   int16
		log    string
	}{
		{func(l *metadata.Located) { l.Run, l.Level, l.Batches = true, 1, nil }, codeCorruptMessage, "index of object"},
		{func(l *metadata.Located) { l.Batches = []metadata.Batch{{Length: 1 << 30}} }, codeCorruptMessage, "batches of"},
		{func(l *metadata.Located) {
			l.Batches = slices.Clone(l.Batches)
			l.Batches[0].Records = 4
			l.Base++
		}, codeCorruptMessage, "expected"},
	} {
		w.server.reader.store = &movedReads{Reads: w.store, stale: tt.change}
		if c := part(w.fetch(fetchReq("t", 1)), 0).ErrorCode; c != tt.code || !strings.Contains(w.logs.String(), tt.log) {
			t.Errorf("got %s, want %s; log %s", codeName(c), codeName(tt.code), w.logs)
		}
	}
}

// brokenReads fails as a database that is away.
type brokenReads struct{ Reads }

func (brokenReads) Views(context.Context, []metadata.BlockID) ([]*metadata.View, error) {
	return nil, metadata.ErrUnavailable
}

func (brokenReads) Refresh(context.Context, ...metadata.BlockID) error {
	return metadata.ErrUnavailable
}

func TestReadDatabaseAway(t *testing.T) {
	w := newWorld(t)
	w.topic("t", 2)
	w.server.reader.store = brokenReads{w.store}
	r := w.fetch(fetchReq("t", 0, 0))
	for i := range 2 {
		if c := part(r, i).ErrorCode; c != codeKafkaStorageError {
			t.Errorf("fetch: %s", codeName(c))
		}
	}
	l := w.list(7, 0, "t", -1)
	if c := l[0].ErrorCode; c != codeKafkaStorageError {
		t.Errorf("list offsets: %s", codeName(c))
	}
}

// Responses that are not taken hold memory: over the bound a fetch waits, and then returns nothing rather than grow.
func TestReadPinned(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	b := timedBatch(t, 100_000, 1)
	w.write(false, chunk{topic, 0, [][]byte{b}})
	pinned := w.server.reader.pinned[0]
	pinned.limit = int64(len(b)) * 3 / 2
	pinned.sem = newBudget("x", pinned.limit, newRegistry()).sem
	req := fetchReq("t", 0)
	rep, err := w.server.fetch(t.Context(), &request{version: req.Version, msg: req})
	if err != nil {
		t.Fatal(err)
	}
	if n := pinned.used.Load(); n < int64(len(b)) {
		t.Errorf("%d bytes pinned by a response of %d", n, rep.size)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() {
		_, err := w.tryFetch(ctx, req)
		got <- err
	}()
	waitFor(t, "the fetch to wait for memory", func() bool { return pinned.waiting.Load() > 0 })
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("a fetch over the bound: %v", err)
	}
	go func() {
		r, err := w.tryFetch(t.Context(), req)
		if err == nil && len(part(r, 0).RecordBatches) == 0 {
			err = errors.New("no records")
		}
		got <- err
	}()
	rep.release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if n := pinned.used.Load(); n != 0 {
		t.Errorf("%d bytes pinned at the end", n)
	}
}

// A replay from far behind reads every segment once, ahead of what is asked for, in the cold readers' part of the cache.
func TestReadReplay(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	const segments = coldRows + 40
	b := timedBatch(t, 50_000, 1)
	for range segments {
		w.write(false, chunk{topic, 0, [][]byte{b, b}})
	}
	reader := w.another() // its cache is empty
	offset, fetches := int64(0), 0
	for offset < 2*segments {
		req := fetchReq("t", offset)
		req.Topics[0].Partitions[0].PartitionMaxBytes = int32(len(b))
		p := part(reader.fetch(req), 0)
		wantOffsets(t, p, fmt.Sprintf("%d-%d", offset, offset))
		offset++
		fetches++
	}
	if n := w.bucket.count(); n != segments {
		t.Errorf("%d GETs for %d segments", n, segments)
	}
	count := func(class string) float64 {
		got, err := reader.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range got {
			for _, m := range f.GetMetric() {
				if f.GetName() == "skein_cache_misses_total" && m.GetLabel()[0].GetValue() == class {
					return m.GetCounter().GetValue()
				}
			}
		}
		return -1
	}
	// Of the cold reads only the first had to wait for a GET of its own; others may have met one under way.
	if tail := count("tail"); tail > coldRows+1 || tail < 1 {
		t.Errorf("%v misses at the tail", tail)
	}
	if cold := count("cold"); cold < 1 {
		t.Errorf("%v cold misses", cold)
	}
}
