package postgres_test

import (
	"testing"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata/metadatatest"
	"github.com/skeinio/skein/metadata/postgres"
)

func TestGroups(t *testing.T) {
	metadatatest.RunGroups(t, func(t *testing.T) metadatatest.Database {
		db := &database{url: testenv.PostgresDatabase(t)}
		if err := postgres.Migrate(t.Context(), db.url, postgres.Options{}); err != nil {
			t.Fatal(err)
		}
		return db
	})
}
