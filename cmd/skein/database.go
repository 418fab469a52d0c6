package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/metadata/sqlite"
)

// openDatabase opens the metadata database and brings its schema up to date.
func openDatabase(ctx context.Context, u databaseURL, log *slog.Logger) (metadata.Driver, error) {
	switch u.kind {
	case databasePostgres:
		d, err := postgres.Open(ctx, u.raw, postgres.Options{Logger: log})
		if err != nil {
			return nil, err
		}
		return d, nil
	case databaseSQLite:
		d, err := sqlite.Open(ctx, u.path, sqlite.Options{Logger: log})
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	return nil, fmt.Errorf("no driver for %s", u)
}

// databaseTransient says whether an error of opening may go away by waiting.
func databaseTransient(err error) bool { return errors.Is(err, metadata.ErrUnavailable) }

func newMigrate(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Bring the database's schema up to date", Args: exactArgs()}
	addFlags(cmd, inMigrate)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := readSettings(cmd.Flags(), inMigrate)
		if err != nil {
			return err
		}
		if s.on("print-config") {
			return s.print(p.stdout)
		}
		if err := s.checkRequired(cmd.CommandPath()); err != nil {
			return err
		}
		u, err := parseDatabaseURL(s.str("metadata"))
		if err != nil {
			return usagef("--metadata: %w", err)
		}
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		return migrate(ctx, u, newLogger(p.stderr, s))
	}
	return cmd
}

// migrate opens the database, which migrates it, and closes it. It does not wait for one that is out of reach: who runs
// it by hand or in a job wants to know.
func migrate(ctx context.Context, u databaseURL, log *slog.Logger) error {
	d, err := openDatabase(ctx, u, log)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", u, stopCause(ctx, err))
	}
	if err := d.Close(); err != nil {
		return fmt.Errorf("migrate %s: %w", u, err)
	}
	log.Info("schema is up to date", "metadata", u.String())
	return nil
}
