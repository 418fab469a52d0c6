package sqlite

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/migrations"
)

const schemaTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version INTEGER PRIMARY KEY,
	name    TEXT    NOT NULL,
	applied INTEGER NOT NULL -- ms
) STRICT`

// migrate brings the schema up to date, all missing steps in one transaction.
func migrate(s *session, now metadata.Millis) error {
	steps, err := migrations.SQLite()
	if err != nil {
		return err
	}
	if _, err := s.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := s.migrate(steps, now); err != nil {
		return errors.Join(fmt.Errorf("migrate: %w", err), s.rollback())
	}
	_, err = s.exec("COMMIT")
	return err
}

func (s *session) migrate(steps []migrations.Migration, now metadata.Millis) error {
	if _, err := s.exec(schemaTable); err != nil {
		return err
	}
	var have int
	if err := s.row("SELECT coalesce(max(version), 0) FROM schema_migrations").Scan(&have); err != nil {
		return failure(err)
	}
	if have > len(steps) {
		return fmt.Errorf("%w: schema %d, this one knows %d", ErrSchemaTooNew, have, len(steps))
	}
	for _, step := range steps[have:] {
		if _, err := s.conn.ExecContext(context.Background(), step.SQL); err != nil {
			return fmt.Errorf("step %d (%s): %w", step.Version, step.Name, failure(err))
		}
		if _, err := s.exec("INSERT INTO schema_migrations VALUES (?, ?, ?)", step.Version, step.Name, int64(now)); err != nil {
			return err
		}
	}
	id, err := newClusterID()
	if err != nil {
		return err
	}
	_, err = s.exec(`INSERT INTO cluster (id, cluster_id, catalogue_version, tombstone_floor, next_block, next_producer)
		VALUES (1, ?, 0, 0, 1, 1) ON CONFLICT DO NOTHING`, id)
	return err
}

// newClusterID makes an id as Kafka's: 16 random bytes as 22 characters of base64url. Like Kafka's it never starts with
// '-', which command lines would take for an option.
func newClusterID() (string, error) {
	var b [16]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("new cluster id: %w", err)
		}
		if id := base64.RawURLEncoding.EncodeToString(b[:]); id[0] != '-' {
			return id, nil
		}
	}
}
