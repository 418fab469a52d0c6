package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/skeinio/skein/metadata/metadatatest"
	"github.com/skeinio/skein/metadata/sqlite"
)

func TestGroups(t *testing.T) {
	metadatatest.RunGroups(t, func(t *testing.T) metadatatest.Database {
		return &database{d: open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})}
	})
}
