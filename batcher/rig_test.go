package batcher

import (
	"context"
	"encoding/binary"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// rig is a running batcher on fakes.
type rig struct {
	*Batcher
	t      *testing.T
	bucket *fakeBucket
	store  *fakeStore
	ended  chan struct{}
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	bucket := newFakeBucket()
	return newRigOn(t, bucket, bucket, change)
}

// newRigOn runs a batcher on one bucket whose store reads from another (or the same).
func newRigOn(t *testing.T, bucket *fakeBucket, front Bucket, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, bucket: bucket, store: newFakeStore(t, bucket), ended: make(chan struct{})}
	c := DefaultConfig()
	c.Compression = segment.CompressionNone // pooled zstd coders may not wander between synctest's bubbles
	if change != nil {
		change(&c)
	}
	b, err := New(Options{Config: c, Bucket: front, Store: r.store, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	r.Batcher = b
	go func() {
		defer close(r.ended)
		if err := b.Run(context.Background()); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	return r
}

// close drains and checks that nothing is left behind.
func (r *rig) close() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := r.Drain(ctx); err != nil {
		r.t.Errorf("drain: %v", err)
	}
	<-r.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.buffered != 0 || r.heldBytes != 0 || len(r.heldChains) != 0 {
		r.t.Errorf("after drain %d bytes are buffered, %d held of %d chains", r.buffered, r.heldBytes, len(r.heldChains))
	}
}

// checkEmpty waits, in a synctest bubble, until nothing moves, and checks that the pipeline is empty and that no chain is
// left without a reason.
func (r *rig) checkEmpty() {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.flushes) != 0 || r.open.live != 0 || r.uploading != 0 || r.commits != 0 || r.unsettled != 0 || len(r.committing) != 0 {
		r.t.Errorf("pipeline is not empty: %d flushes, %d open, %d uploads, %d commits, %d unsettled, %d blocks",
			len(r.flushes), r.open.live, r.uploading, r.commits, r.unsettled, len(r.committing))
	}
	if len(r.chains) != r.aged.Len() {
		r.t.Errorf("%d chains are left, %d of them with mark or gap", len(r.chains), r.aged.Len())
	}
}

// checkLetGo checks that no upload that waits to be tried again refers to bytes of answered batches.
func (r *rig) checkLetGo() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.flushes {
		if f.dirty && !f.reading && f.payload != nil {
			r.t.Errorf("flush %s refers to the bytes of answered batches", f.id)
		}
	}
}

// remembered is how many chains there are.
func (r *rig) remembered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.chains)
}

// answer is one request's results, to come.
type answer struct {
	t       *testing.T
	results chan []Result
}

func (a *answer) wait() []Result {
	a.t.Helper()
	return <-a.results
}

// err waits for a request of one batch.
func (a *answer) err() error { return a.wait()[0].Err }

func (a *answer) pending() bool { return len(a.results) == 0 }

func (r *rig) submit(conn uint64, timeout time.Duration, batches ...Batch) *answer {
	a := &answer{t: r.t, results: make(chan []Result, 1)}
	r.Submit(Produce{
		Conn: conn, Deadline: time.Now().Add(timeout), Batches: batches,
		Done: func(res []Result) {
			for i := range batches {
				clear(batches[i].Data) // the memory is the caller's again
			}
			a.results <- res
		},
	})
	return a
}

// partition gives the nth partition, in the given block.
func partition(block metadata.BlockID, slot metadata.Slot) metadata.Partition {
	return metadata.Partition{Block: block, Slot: slot, Created: 1}
}

// makeBatch makes a batch of one record that carries number.
func makeBatch(t testing.TB, part metadata.Partition, producer metadata.ProducerID, epoch metadata.ProducerEpoch,
	first metadata.Sequence, number uint64, size int) Batch {
	value := make([]byte, max(8, size))
	binary.BigEndian.PutUint64(value, number)
	for i := 8; i < len(value); i++ {
		value[i] = byte(uint64(i) * (number + 7) >> 3)
	}
	rb := record.NewBuilder().Append(1_700_000_000_000+int64(number), nil, value)
	meta := metadata.Batch{
		Records: 1, MaxTimestamp: metadata.Millis(1_700_000_000_000 + int64(number)), Producer: producer, Epoch: epoch,
		First: -1, Last: -1,
	}
	if producer != metadata.NoProducer {
		rb.SetProducer(int64(producer), int16(epoch), int32(first))
		meta.First, meta.Last = first, first
	}
	data, err := rb.Build()
	if err != nil {
		t.Fatal(err)
	}
	meta.Length = int32(len(data))
	return Batch{
		Topic: metadata.TopicID{1, byte(part.Block)}, Index: int32(part.Slot), Partition: part, Data: data, Uncompressed: true, Meta: meta,
	}
}

// number reads what makeBatch put in.
func number(t *testing.T, data []byte) uint64 {
	t.Helper()
	for r, err := range record.Records(data, 64<<20) {
		if err != nil {
			t.Fatalf("batch in the log: %v", err)
		}
		return binary.BigEndian.Uint64(r.Value)
	}
	t.Fatal("batch in the log has no record")
	return 0
}

func numbers(t *testing.T, log []entry) []uint64 {
	t.Helper()
	var all []uint64
	for _, e := range log {
		all = append(all, number(t, e.data))
	}
	return all
}

// idem makes producer 1's batch of a sequence, which is also its number.
func idem(t testing.TB, part metadata.Partition, seq int) Batch {
	return makeBatch(t, part, 1, 0, metadata.Sequence(seq), uint64(seq), 8)
}

// plain makes a batch without a producer.
func plain(t testing.TB, part metadata.Partition, n int) Batch {
	return makeBatch(t, part, metadata.NoProducer, -1, -1, uint64(n), 8)
}
