package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// snapshotTimeout bounds the end of a held snapshot.
const snapshotTimeout = 5 * time.Second

// HoldSnapshot opens a REPEATABLE READ snapshot of the database at url, as a long report has one, and gives what closes it.
// While it is open no vacuum removes what died after it. It is for benchmarks.
func HoldSnapshot(ctx context.Context, url string) (release func() error, err error) {
	config, err := pgxpool.ParseConfig(url) // knows the pool_… parameters as well
	if err != nil {
		return nil, fmt.Errorf("postgres URL: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, unavailable(err)
	}
	release = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTimeout)
		defer cancel()
		_, err := conn.Exec(ctx, "COMMIT")
		if err != nil {
			err = fmt.Errorf("end the snapshot: %w", err) // it did not last
		}
		return errors.Join(err, conn.Close(ctx))
	}
	for _, sql := range []string{
		"SET idle_in_transaction_session_timeout = 0", "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM topics",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", sql, err), conn.Close(ctx))
		}
	}
	return release, nil
}
