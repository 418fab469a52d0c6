package sqlite_test

import (
	"errors"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
)

func open(t testing.TB, path string, opts sqlite.Options) *sqlite.Driver {
	t.Helper()
	d, err := sqlite.Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "folder?", "skein.db")
	d := open(t, path, sqlite.Options{})
	id, err := d.ClusterID(t.Context())
	if err != nil || !regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{21}$`).MatchString(id) {
		t.Fatalf("cluster id %q, %v", id, err)
	}
	if _, err := sqlite.Open(t.Context(), path, sqlite.Options{}); !errors.Is(err, sqlite.ErrLocked) {
		t.Fatalf("second open: %v, want ErrLocked", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AllocateProducerIDs(t.Context(), 1); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("closed driver: %v, want ErrUnavailable", err)
	}
	again := open(t, path, sqlite.Options{})
	if id2, err := again.ClusterID(t.Context()); err != nil || id2 != id {
		t.Fatalf("cluster id %q after reopening (%v), was %q", id2, err, id)
	}
}

// BenchmarkCommit commits one inline batch of a Kibibyte, as a developer's produce does.
func BenchmarkCommit(b *testing.B) {
	store := metadata.NewStore(metadata.Options{Driver: open(b, filepath.Join(b.TempDir(), "skein.db"), sqlite.Options{})})
	_, errs, err := store.CreateTopics(b.Context(), []metadata.NewTopic{{Name: "t", Partitions: 1}}, false)
	if err = errors.Join(append(errs, err)...); err != nil {
		b.Fatal(err)
	}
	c, err := store.Catalogue(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	p := c.ByName("t").Partitions[0]
	now, err := store.Now(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	payload := [][]byte{make([]byte, 1<<10)}
	for b.Loop() {
		id, err := metadata.NewFlushID()
		if err != nil {
			b.Fatal(err)
		}
		f := &metadata.Flush{ID: id, Seen: now, Inline: payload, Extents: []metadata.Extent{{
			Block: p.Block, Slot: p.Slot, Length: 1 << 10, RawLength: 1 << 10,
			Batches: []metadata.Batch{{Length: 1 << 10, Records: 1, Producer: metadata.NoProducer, Validated: c.Version}},
		}}}
		if _, err := store.Commit(b.Context(), []*metadata.Flush{f}); err != nil {
			b.Fatal(err)
		}
	}
}
