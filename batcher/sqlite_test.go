package batcher

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/objstore"
)

// faultyDriver makes commits fail before, at and after COMMIT.
type faultyDriver struct {
	metadata.Driver
	chaos *chaos
}

func (d *faultyDriver) Commit(
	ctx context.Context, load metadata.CommitLoad, decide func(*metadata.CommitLoaded) (*metadata.CommitSave, error),
) error {
	out, delay := d.chaos.next()
	if delay > 0 && !sleep(ctx, delay) {
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, ctx.Err())
	}
	switch out {
	case fail:
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, errInjected)
	case loseAll:
		return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, errInjected)
	}
	if err := d.Driver.Commit(ctx, load, decide); err != nil || out == succeed {
		return err
	}
	return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, errInjected)
}

// stored is a real metadata store on SQLite with a topic, and what reads its logs back.
type stored struct {
	t      *testing.T
	store  *metadata.Store
	bucket *fakeBucket
	topic  *metadata.Topic
	ids    metadata.ProducerID // the first of the ids handed out
}

func openStored(t *testing.T, wrap func(metadata.Driver) metadata.Driver, partitions int32) *stored {
	t.Helper()
	ctx := context.Background()
	driver, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	s := &stored{t: t, bucket: newFakeBucket(), store: metadata.NewStore(metadata.Options{Driver: wrap(driver)})}
	made, errs, err := s.store.CreateTopics(ctx, []metadata.NewTopic{{Name: "events", Partitions: partitions}}, false)
	if err != nil || errs[0] != nil {
		t.Fatal(err, errs)
	}
	s.topic = made[0]
	r, err := s.store.AllocateProducerIDs(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	s.ids = r.First
	running, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.store.Run(running); err != nil {
			t.Errorf("store: %v", err)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

// log reads a partition's records back through Locate, the bucket and the inline payloads.
func (s *stored) log(p metadata.Partition) []entry {
	s.t.Helper()
	ctx := context.Background()
	if err := s.store.Refresh(ctx, p.Block); err != nil {
		s.t.Fatal(err)
	}
	view, err := s.store.View(ctx, p.Block)
	if err != nil {
		s.t.Fatal(err)
	}
	var log []entry
	for next := metadata.Offset(0); next < view.HighWatermark(p.Slot); {
		found, err := s.store.Locate(ctx, []metadata.LocateQuery{{
			Block: p.Block, Slot: p.Slot, Offset: next, MaxBytes: 64 << 20, MaxRows: 1000,
		}})
		if err != nil || len(found[0]) == 0 {
			s.t.Fatalf("offset %d of %v is nowhere: %v", next, p, err)
		}
		for i := range found[0] {
			l := &found[0][i]
			if l.Base != next {
				s.t.Fatalf("an extent of %v starts at %d, want %d", p, l.Base, next)
			}
			log = append(log, s.read(l)...)
			next = l.End
		}
	}
	return log
}

func (s *stored) read(l *metadata.Located) (log []entry) {
	s.t.Helper()
	ctx := context.Background()
	data := make([]byte, l.Length)
	if l.Object == "" {
		parts, err := s.store.LoadInline(ctx, []metadata.InlinePart{{Flush: l.Flush, Position: l.Position, Length: l.Length}})
		if err != nil || parts[0] == nil {
			s.t.Fatalf("inline payload of flush %s: %v", l.Flush, err)
		}
		data = parts[0]
	} else if err := objstore.ReadRange(ctx, s.bucket.Memory, string(l.Object), l.Position, len(data), data); err != nil {
		s.t.Fatal(err)
	}
	raw, err := segment.DecodeExtent(data, segment.Codec(l.Codec), l.RawLength, l.CRC)
	if err != nil {
		s.t.Fatal(err)
	}
	base := l.Base
	for i := range l.Batches {
		b := &l.Batches[i]
		if b.Flags&metadata.FlagAccepted != 0 {
			log = append(log, entry{base: base, data: raw[:b.Length], meta: *b})
			base += metadata.Offset(b.Records)
		}
		raw = raw[b.Length:]
	}
	return log
}

// TestRandomFaultsOnSQLite is TestRandomFaults with the real rules, store and database.
func TestRandomFaultsOnSQLite(t *testing.T) {
	for seed := range uint64((*seeds + 3) / 4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runStored(t, seed) })
		})
	}
}

func runStored(t *testing.T, seed uint64) {
	const producers, partitions, total, conns = 3, 3, 40, 2
	rng := rand.New(rand.NewPCG(seed, 3))
	db := newChaos(seed+2000, fail, loseReply, loseAll)
	s := openStored(t, func(d metadata.Driver) metadata.Driver { return &faultyDriver{Driver: d, chaos: db} }, partitions)
	w := &world{t: t, clock: &ticks{}, bucket: newChaos(seed+3000, fail, loseReply), db: db, log: s.log}
	s.bucket.fault = func(int, string) (outcome, time.Duration) { return w.bucket.next() }
	c := DefaultConfig()
	c.Compression = segment.CompressionNone
	randomConfig(rng)(&c)
	b, err := New(Options{Config: c, Bucket: s.bucket, Store: s.store, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Batcher: b, t: t, ended: make(chan struct{})}
	w.agents = []*rig{r}
	go func() {
		defer close(r.ended)
		if err := b.Run(context.Background()); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	var wg sync.WaitGroup
	for p := range producers {
		for i := range partitions {
			rng := rand.New(rand.NewPCG(seed, uint64(10+p*partitions+i)))
			wg.Go(func() {
				w.idempotentClient(rng, s.ids+metadata.ProducerID(p), s.topic.Partitions[i], total, p == 0)
			})
		}
	}
	plain := make([][]attempt, conns*partitions)
	for k := range plain {
		rng := rand.New(rand.NewPCG(seed, uint64(100+k)))
		wg.Go(func() { plain[k] = w.plainClient(rng, uint64(1+k/partitions), s.topic.Partitions[k%partitions], total) })
	}
	wg.Wait()
	w.heal()
	for p := range producers {
		for i := range partitions {
			w.checkIdempotent(s.ids+metadata.ProducerID(p), s.topic.Partitions[i], total)
		}
	}
	for k, attempts := range plain {
		w.checkPlain(s.topic.Partitions[k%partitions], attempts)
	}
}
