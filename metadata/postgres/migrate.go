package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/migrations"
)

const (
	// migrationLock is the advisory lock under which the schema changes: "skein" in ASCII.
	migrationLock = 0x736b65696e
	// retryConnect is the pause between attempts to reach a server.
	retryConnect = 500 * time.Millisecond
	// waitLogInterval is how often a wait for the server is logged.
	waitLogInterval = 5 * time.Second
)

// Migrate brings the schema of the database at url up to date. It is safe when several run at once.
func Migrate(ctx context.Context, url string, opts Options) error {
	opts.SkipMigrate = false
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	config, err := connConfig(url)
	if err != nil {
		return err
	}
	d := &Driver{opts: opts, log: opts.Logger}
	return d.prepareSchema(ctx, config)
}

// prepareSchema waits for the server, checks it, and migrates when the schema is older than this version's.
func (d *Driver) prepareSchema(ctx context.Context, config *pgx.ConnConfig) error {
	c := config.Copy()
	for _, name := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		c.RuntimeParams[name] = "0" // others may be migrating for as long as it takes; ctx bounds the wait
	}
	conn, err := d.connect(ctx, c)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	steps, err := migrations.Postgres()
	if err != nil {
		return err
	}
	have, err := schemaVersion(ctx, conn)
	if err != nil {
		return err
	}
	if have < len(steps) && !d.opts.SkipMigrate {
		if have, err = d.migrate(ctx, conn, steps); err != nil {
			return err
		}
	}
	return checkVersion(have, len(steps))
}

// checkVersion compares the database's schema with this version's: a schema serves the version that made it and the one
// before.
func checkVersion(have, want int) error {
	switch {
	case have < want:
		return fmt.Errorf("the database's schema is version %d, this Skein needs %d: run `skein migrate`", have, want)
	case have > want+1:
		return fmt.Errorf("the database's schema is version %d, this Skein knows up to %d and serves %d: use a newer Skein",
			have, want, want+1)
	}
	return nil
}

// connect makes one connection, waiting up to Options.Wait for a server that is not there or starting.
func (d *Driver) connect(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	deadline := time.Now().Add(d.opts.Wait)
	var logged time.Time
	for {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err == nil {
			var s server
			if s, err = readServer(ctx, conn); err == nil {
				err = s.refuse()
			}
			if err == nil {
				return conn, nil
			}
			conn.Close(context.WithoutCancel(ctx))
		}
		err = explain(err, config)
		if !mayPass(err) || ctx.Err() != nil || !time.Now().Before(deadline) {
			return nil, err
		}
		if time.Since(logged) >= waitLogInterval {
			d.log.Info("waiting for Postgres", "error", err)
			logged = time.Now()
		}
		if err := pause(ctx, retryConnect); err != nil {
			return nil, fmt.Errorf("waiting for Postgres: %w", err)
		}
	}
}

// pause waits for d or for ctx's end.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// schemaVersion gives the newest migration that was applied, 0 for an empty database.
func schemaVersion(ctx context.Context, conn *pgx.Conn) (int, error) {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('skein_migrations') IS NOT NULL").Scan(&exists); err != nil {
		return 0, fmt.Errorf("%w: read the schema's version: %w", metadata.ErrUnavailable, err)
	}
	if !exists {
		return 0, nil
	}
	var version int
	if err := conn.QueryRow(ctx, "SELECT coalesce(max(version), 0) FROM skein_migrations").Scan(&version); err != nil {
		return 0, fmt.Errorf("%w: read the schema's version: %w", metadata.ErrUnavailable, err)
	}
	return version, nil
}

// migrate applies what is missing, each step in a transaction, under a lock that the session holds.
func (d *Driver) migrate(ctx context.Context, conn *pgx.Conn, steps []migrations.Migration) (int, error) {
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return 0, fmt.Errorf("wait for the lock of migrations: %w", err)
	}
	have, err := schemaVersion(ctx, conn)
	if err != nil {
		return 0, err
	}
	for have < len(steps) {
		step := steps[have]
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if step.Version == 1 {
				if _, err := tx.Exec(ctx, createMigrations); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, step.SQL); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO skein_migrations (version, name) VALUES ($1, $2)", step.Version, step.Name)
			return err
		})
		if err != nil {
			return have, fmt.Errorf("migrate the schema to version %d (%s): %w", step.Version, step.Name, err)
		}
		have = step.Version
		d.log.Info("schema migrated", "version", have, "name", step.Name)
	}
	return have, nil
}

const createMigrations = `CREATE TABLE skein_migrations (
	version int PRIMARY KEY, name text NOT NULL, applied timestamptz NOT NULL DEFAULT clock_timestamp())`
