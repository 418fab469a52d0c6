package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
)

// open gives a driver on a database of the test's own.
func open(t testing.TB, opts postgres.Options) (*postgres.Driver, string) {
	t.Helper()
	url := testenv.PostgresDatabase(t)
	return openAt(t, url, opts), url
}

func openAt(t testing.TB, url string, opts postgres.Options) *postgres.Driver {
	t.Helper()
	d, err := postgres.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// newStore gives a Store and the partitions of a new topic in it.
func newStore(t testing.TB, d metadata.Driver, topic string, partitions int32) (*metadata.Store, []metadata.Partition) {
	t.Helper()
	s := metadata.NewStore(metadata.Options{Driver: d})
	made, errs, err := s.CreateTopics(t.Context(), []metadata.NewTopic{{Name: topic, Partitions: partitions}}, false)
	if err != nil || errs[0] != nil {
		t.Fatalf("create topic: %v, %v", err, errs)
	}
	return s, made[0].Partitions
}

// flushOf makes a flush of one batch of n records for each partition; producer and first sequence are the same for all.
func flushOf(t testing.TB, s *metadata.Store, parts []metadata.Partition, producer metadata.ProducerID, first metadata.Sequence, n int32) *metadata.Flush {
	t.Helper()
	id, err := metadata.NewFlushID()
	if err != nil {
		t.Fatal(err)
	}
	now, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &metadata.Flush{ID: id, Seen: now, Object: metadata.ObjectKey(fmt.Sprintf("test/%s", id)), ObjectSize: int64(len(parts)) * 100}
	version := catalogueVersion(t, s)
	for i, p := range parts {
		b := metadata.Batch{Length: 100, Records: n, MaxTimestamp: now, Producer: producer, Epoch: 0, First: first, Last: first.Next(n - 1), Validated: version}
		if producer == metadata.NoProducer {
			b.Epoch, b.First, b.Last = -1, -1, -1
		}
		f.Extents = append(f.Extents, metadata.Extent{
			Block: p.Block, Slot: p.Slot, Position: int64(i) * 100, Length: 100, RawLength: 100, CRC: uint32(i), Created: p.Created,
			Batches: []metadata.Batch{b},
		})
	}
	return f
}

func catalogueVersion(t testing.TB, s *metadata.Store) metadata.CatalogueVersion {
	t.Helper()
	c, err := s.Catalogue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c.Version
}

func commit(t testing.TB, s *metadata.Store, flushes ...*metadata.Flush) []metadata.FlushResult {
	t.Helper()
	results, err := s.Commit(t.Context(), flushes)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return results
}

func TestCommitAndLocate(t *testing.T) {
	d, url := open(t, postgres.Options{})
	s, parts := newStore(t, d, "orders", 70)
	ids, err := s.AllocateProducerIDs(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		touched := parts
		if i%10 != 0 {
			touched = parts[:1] // the last partitions are touched by every tenth row only
		}
		f := flushOf(t, s, touched, metadata.NoProducer, 0, 2)
		if i%10 == 0 {
			f = flushOf(t, s, touched, ids.First, metadata.Sequence(i/10*2), 2)
		}
		for j, b := range commit(t, s, f)[0].Batches {
			if b.Code != metadata.CodeAccepted {
				t.Fatalf("row %d batch %d: %+v", i, j, b)
			}
		}
	}
	cold := metadata.NewStore(metadata.Options{Driver: d})
	for offset := metadata.Offset(0); offset < 10; offset++ {
		got, err := d.Locate(t.Context(), []metadata.LocateQuery{
			{Block: parts[69].Block, Slot: parts[69].Slot, Offset: offset, MaxRows: 3, MaxBytes: 1 << 20},
			{Block: parts[0].Block, Slot: parts[0].Slot, Offset: offset, MaxRows: 2, MaxBytes: 1},
			{Block: 999, Slot: 1, Offset: offset, MaxRows: 2, MaxBytes: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := min(3, 5-int(offset/2))
		if len(got[0].Rows) != want || got[0].Rows[0].Photo.Next[parts[69].Slot] != offset/2*2+2 {
			t.Fatalf("offset %d: %d rows, want %d", offset, len(got[0].Rows), want)
		}
		if len(got[1].Rows) != 1 || got[1].Rows[0].Seq != metadata.Seq(offset/2+1) {
			t.Fatalf("offset %d: %+v", offset, got[1].Rows)
		}
		if !got[2].Missing || got[0].Missing {
			t.Fatalf("missing: %+v", got)
		}
	}
	view, err := cold.View(t.Context(), parts[0].Block)
	if err != nil || view.HighWatermark(parts[0].Slot) != 100 {
		t.Fatalf("cold view: %v %+v", err, view)
	}
	conn := connect(t, url)
	var records, batches int64
	if err := conn.QueryRow(t.Context(), "SELECT sum(records), sum(batches) FROM skein_flushes").Scan(&records, &batches); err != nil {
		t.Fatal(err)
	}
	if want := int64(2 * (5*70 + 45)); records != want || batches*2 != want {
		t.Fatalf("views: %d records in %d batches, want %d", records, batches, want)
	}
}

func median(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// signalLogger gives a token when a line with that message is logged.
func signalLogger(message string, signal chan<- struct{}) *slog.Logger {
	return slog.New(&signalHandler{Handler: slog.DiscardHandler, message: message, signal: signal})
}

type signalHandler struct {
	slog.Handler
	message string
	signal  chan<- struct{}
}

func (h *signalHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *signalHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		select {
		case h.signal <- struct{}{}:
		default:
		}
	}
	return nil
}
