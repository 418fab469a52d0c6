package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/skeinio/skein/metadata/metadatatest"
	"github.com/skeinio/skein/metadata/sqlite"
)

func TestCompaction(t *testing.T) {
	metadatatest.RunCompaction(t, func(t *testing.T) metadatatest.Database {
		return &database{d: open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})}
	})
}
