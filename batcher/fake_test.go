package batcher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// outcome is what a fault makes of a Put or a Commit.
type outcome int

const (
	succeed   outcome = iota
	fail              // nothing happened, and that is known
	loseReply         // it happened, the caller sees an error
	loseAll           // it did not happen, the caller cannot know
	condemn           // the object key is refused
)

var errInjected = errors.New("injected fault")

// fakeBucket is a memory bucket with faults.
type fakeBucket struct {
	*objstore.Memory
	mu    sync.Mutex
	puts  int
	fault func(n int, key string) (outcome, time.Duration) // of the nth Put, from 1
}

func newFakeBucket() *fakeBucket { return &fakeBucket{Memory: objstore.NewMemory()} }

func (f *fakeBucket) Put(ctx context.Context, key string, body objstore.Payload, opts objstore.PutOptions) error {
	f.mu.Lock()
	f.puts++
	var out outcome
	var delay time.Duration
	if f.fault != nil {
		out, delay = f.fault(f.puts, key)
	}
	f.mu.Unlock()
	if delay > 0 && !sleep(ctx, delay) {
		return objstore.NewError(ctx, objstore.OpPut, key, nil, nil)
	}
	if out == fail || out == loseAll {
		return objstore.NewError(ctx, objstore.OpPut, key, objstore.ErrUnavailable, errInjected)
	}
	if err := f.Memory.Put(ctx, key, body, opts); err != nil || out == succeed {
		return err
	}
	return objstore.NewError(ctx, objstore.OpPut, key, objstore.ErrUnavailable, errInjected)
}

// set changes the bucket, or what its fault looks at, under its lock.
func (f *fakeBucket) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeBucket) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.puts
}

// stubbornBucket's Puts do not heed their context until stuck is closed.
type stubbornBucket struct {
	*fakeBucket
	stuck chan struct{}
}

func (f *stubbornBucket) Put(ctx context.Context, key string, body objstore.Payload, opts objstore.PutOptions) error {
	<-f.stuck
	return f.fakeBucket.Put(ctx, key, body, opts)
}

// entry is a batch in a partition's log, as it is read back from the bucket or the inline payload.
type entry struct {
	base metadata.Offset
	data []byte
	meta metadata.Batch
}

type fakeProducer struct {
	epoch metadata.ProducerEpoch
	last  []entry // up to five
}

type fakePartition struct {
	next      metadata.Offset
	log       []entry
	producers map[metadata.ProducerID]*fakeProducer
	deleted   bool
	configs   metadata.CatalogueVersion
	logStart  metadata.Offset
}

// fakeStore decides commits by the rules of metadata, in memory, and reads back every byte it is told of.
type fakeStore struct {
	t      *testing.T
	bucket *fakeBucket

	shared *fakeStore // whose partitions and receipts count; nil = its own

	mu       sync.Mutex
	commits  int
	flushes  int
	parts    map[metadata.PartitionID]*fakePartition
	receipts map[metadata.FlushID][]metadata.BatchResult
	first    map[metadata.FlushID]metadata.Millis // Seen of the first attempt
	inFlight map[metadata.BlockID]bool
	strict   bool // a producer's first sequence must be 0
	resident int64
	down     bool
	fault    func(n int, flushes []*metadata.Flush) (outcome, time.Duration) // of the nth Commit, from 1
	watch    *metadata.Store                                                 // only for its watches
}

func newFakeStore(t *testing.T, bucket *fakeBucket) *fakeStore {
	return &fakeStore{
		t: t, bucket: bucket, parts: map[metadata.PartitionID]*fakePartition{}, strict: true,
		receipts: map[metadata.FlushID][]metadata.BatchResult{}, first: map[metadata.FlushID]metadata.Millis{},
		inFlight: map[metadata.BlockID]bool{}, watch: metadata.NewStore(metadata.Options{}),
	}
}

func (s *fakeStore) Now(context.Context) (metadata.Millis, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return 0, metadata.ErrUnavailable
	}
	return metadata.Millis(time.Now().UnixMilli()), nil
}

func (s *fakeStore) InlineResident() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resident
}

func (s *fakeStore) Watch(ids []metadata.BlockID) *metadata.Watch { return s.watch.Watch(ids) }

func (s *fakeStore) View(_ context.Context, id metadata.BlockID) (*metadata.View, error) {
	s = s.root()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &metadata.View{}
	for p, x := range s.parts {
		if p.Block == id {
			v.Photo.Next[p.Slot] = x.next
		}
	}
	return v, nil
}

func (s *fakeStore) part(block metadata.BlockID, slot metadata.Slot) *fakePartition {
	id := metadata.PartitionID{Block: block, Slot: slot}
	p := s.parts[id]
	if p == nil {
		p = &fakePartition{producers: map[metadata.ProducerID]*fakeProducer{}}
		s.parts[id] = p
	}
	return p
}

func (s *fakeStore) Commit(ctx context.Context, flushes []*metadata.Flush) ([]metadata.FlushResult, error) {
	s.mu.Lock()
	s.commits++
	var out outcome
	var delay time.Duration
	if s.fault != nil {
		out, delay = s.fault(s.commits, flushes)
	}
	var blocks []metadata.BlockID
	for _, f := range flushes {
		if seen, ok := s.first[f.ID]; ok && seen != f.Seen {
			s.t.Errorf("flush %s: Seen changed from %d to %d", f.ID, seen, f.Seen)
		}
		s.first[f.ID] = f.Seen
		for i := range f.Extents {
			if !slices.Contains(blocks, f.Extents[i].Block) {
				blocks = append(blocks, f.Extents[i].Block)
			}
		}
	}
	for _, id := range blocks {
		if s.inFlight[id] {
			s.t.Errorf("two commits in flight touch block %d", id)
		}
		s.inFlight[id] = true
	}
	down := s.down
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range blocks {
			delete(s.inFlight, id)
		}
	}()
	if delay > 0 && !sleep(ctx, delay) {
		return nil, fmt.Errorf("%w: %w", metadata.ErrUnavailable, ctx.Err())
	}
	switch {
	case down || out == fail:
		return nil, fmt.Errorf("%w: %w", metadata.ErrUnavailable, errInjected)
	case out == loseAll:
		return nil, fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, errInjected)
	case out == condemn && !s.settled(flushes):
		return nil, fmt.Errorf("%w: %w", metadata.ErrCondemned, errInjected)
	}
	results := s.root().decideAll(flushes)
	if out == loseReply {
		return nil, fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, errInjected)
	}
	return results, nil
}

// root is the store whose partitions count.
func (s *fakeStore) root() *fakeStore {
	if s.shared != nil {
		return s.shared
	}
	return s
}

func (s *fakeStore) decideAll(flushes []*metadata.Flush) []metadata.FlushResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make([]metadata.FlushResult, len(flushes))
	for i, f := range flushes {
		results[i] = s.decide(f)
	}
	return results
}

// settled says whether a flush has a receipt: then its object is not looked at.
func (s *fakeStore) settled(flushes []*metadata.Flush) bool {
	s = s.root()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(flushes, func(f *metadata.Flush) bool { return s.receipts[f.ID] != nil })
}

func (s *fakeStore) decide(f *metadata.Flush) metadata.FlushResult {
	n := 0
	for i := range f.Extents {
		n += len(f.Extents[i].Batches)
	}
	if r, ok := s.receipts[f.ID]; ok {
		if len(r) != n {
			s.t.Errorf("flush %s was submitted with %d batches and again with %d", f.ID, len(r), n)
		}
		return metadata.FlushResult{Batches: r, Resubmitted: true}
	}
	if time.Since(f.Seen.Time()) > metadata.MaxResubmit {
		return metadata.FlushResult{Err: metadata.ErrFlushTooOld}
	}
	s.flushes++
	var results []metadata.BatchResult
	for i := range f.Extents {
		e := &f.Extents[i]
		if i > 0 && comparePlaces(&metadata.Partition{Block: f.Extents[i-1].Block, Slot: f.Extents[i-1].Slot},
			&metadata.Partition{Block: e.Block, Slot: e.Slot}) >= 0 {
			s.t.Errorf("flush %s: extents are not in order", f.ID)
		}
		raw := s.read(f, e)
		for _, m := range e.Batches {
			r := s.batch(s.part(e.Block, e.Slot), m, raw[:m.Length])
			raw = raw[m.Length:]
			results = append(results, r)
		}
	}
	s.receipts[f.ID] = results
	return metadata.FlushResult{Batches: results}
}

// read gets an extent's batches back from where the flush says that they are.
func (s *fakeStore) read(f *metadata.Flush, e *metadata.Extent) []byte {
	stored := make([]byte, e.Length)
	if f.Object == "" {
		copy(stored, slices.Concat(f.Inline...)[e.Position:])
		s.resident += int64(e.Length)
	} else if err := objstore.ReadRange(context.Background(), s.bucket.Memory, string(f.Object), e.Position, int(e.Length), stored); err != nil {
		s.t.Errorf("extent of a committed flush: %v", err)
	}
	raw, err := segment.DecodeExtent(stored, segment.Codec(e.Codec), int64(e.RawLength), e.CRC)
	if err != nil {
		s.t.Fatalf("extent of a committed flush: %v", err)
	}
	return raw
}

func (s *fakeStore) batch(p *fakePartition, m metadata.Batch, raw []byte) metadata.BatchResult {
	r := metadata.BatchResult{Base: -1, LogStart: p.logStart}
	switch {
	case p.deleted:
		r.Code = metadata.CodeUnknownPartition
		return r
	case m.Validated < p.configs:
		r.Code = metadata.CodeStale
		return r
	}
	if m.Producer != metadata.NoProducer {
		r.Code, r.Base = s.sequence(p, m)
		if r.Code != metadata.CodeAccepted {
			return r
		}
	}
	r.Base = p.next
	e := entry{base: p.next, data: slices.Clone(raw), meta: m}
	p.next += metadata.Offset(m.Records)
	p.log = append(p.log, e)
	if m.Producer != metadata.NoProducer {
		x := p.producers[m.Producer]
		if x == nil || x.epoch != m.Epoch {
			x = &fakeProducer{epoch: m.Epoch}
			p.producers[m.Producer] = x
		}
		if x.last = append(x.last, e); len(x.last) > 5 {
			x.last = x.last[1:]
		}
	}
	return r
}

func (s *fakeStore) sequence(p *fakePartition, m metadata.Batch) (metadata.Code, metadata.Offset) {
	x := p.producers[m.Producer]
	switch {
	case x == nil:
		if m.First != 0 && s.strict {
			return metadata.CodeNotYet, -1
		}
		return metadata.CodeAccepted, -1
	case m.Epoch < x.epoch:
		return metadata.CodeFenced, -1
	case m.Epoch > x.epoch:
		if m.First != 0 {
			return metadata.CodeNotYet, -1
		}
		return metadata.CodeAccepted, -1
	}
	for _, e := range x.last {
		if e.meta.First == m.First && e.meta.Last == m.Last {
			return metadata.CodeDuplicate, e.base
		}
	}
	next := x.last[len(x.last)-1].meta.Last.Next(1)
	switch {
	case m.First == next:
		return metadata.CodeAccepted, -1
	case ahead(m.First, next):
		return metadata.CodeNotYet, -1
	}
	return metadata.CodeOutOfOrder, -1
}

// accept commits a batch as another agent would.
func (s *fakeStore) accept(b Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.batch(s.part(b.Partition.Block, b.Partition.Slot), b.Meta, b.Data); r.Code != metadata.CodeAccepted {
		s.t.Errorf("another agent's batch got code %d", r.Code)
	}
}

func (s *fakeStore) log(p metadata.Partition) []entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.part(p.Block, p.Slot).log)
}

func (s *fakeStore) committed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}

// set changes the store under its lock.
func (s *fakeStore) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

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

// keys lists all objects.
func (f *fakeBucket) keys(t *testing.T) (keys []string) {
	t.Helper()
	err := f.List(t.Context(), "", "", func(i objstore.Info) error {
		keys = append(keys, i.Key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (f *fakeBucket) read(t *testing.T, key string) []byte {
	t.Helper()
	data, err := objstore.ReadAll(t.Context(), f.Memory, key, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
