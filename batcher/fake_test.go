package batcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

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

func (s *fakeStore) Progress(_ context.Context, of []metadata.PartitionProducer) ([]metadata.Progress, error) {
	s = s.root()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, metadata.ErrUnavailable
	}
	progress := make([]metadata.Progress, len(of))
	for i := range of {
		progress[i] = metadata.Progress{Epoch: -1, Last: -1}
		p := s.parts[of[i].Partition]
		if p == nil {
			continue
		}
		if x := p.producers[of[i].Producer]; x != nil {
			progress[i] = metadata.Progress{Epoch: x.epoch, Last: x.last[len(x.last)-1].meta.Last}
		}
	}
	return progress, nil
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
