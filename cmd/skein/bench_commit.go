package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/commitbench"
	"github.com/skeinio/skein/metadata/postgres"
)

func newBenchCommit(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "commit", Short: "Measure a metadata database: whole commits, without records or a bucket", Args: exactArgs(),
	}
	var o commitbench.Options
	flags := cmd.Flags()
	flags.IntVar(&o.Partitions, "partitions", 1, "partitions that every commit writes to")
	flags.IntVar(&o.Committers, "committers", 1, "committers, each like an agent, on the same partitions")
	flags.IntVar(&o.Producers, "producers", 1, "idempotent producers of each committer, among whom the partitions are divided")
	flags.IntVar(&o.Records, "records", 1, "records of each batch")
	flags.Float64Var(&o.Rate, "rate", 0, "commits per second of each committer; 0: as fast as they go")
	snapshot := flags.Bool("snapshot", false,
		"measure for a fifth of the duration, then with a snapshot of the database held open for all of it (Postgres)")
	flags.DurationVar(&o.Duration, "duration", commitbench.DefaultDuration, "how long")
	format := addOutput(cmd)
	addFlags(cmd, inDatabase)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := readSettings(cmd.Flags(), inDatabase)
		if err != nil {
			return err
		}
		if err := s.checkRequired(cmd.CommandPath()); err != nil {
			return err
		}
		u, err := parseDatabaseURL(s.str("metadata"))
		if err != nil {
			return usagef("--metadata: %w", err)
		}
		if *snapshot {
			if u.kind != databasePostgres {
				return usagef("%s: --snapshot needs a Postgres database", cmd.CommandPath())
			}
			o.Snapshot = func(ctx context.Context) (func() error, error) { return postgres.HoldSnapshot(ctx, u.raw) }
		}
		if o.Partitions < 1 || o.Committers < 1 || o.Producers < 1 || o.Records < 1 || o.Duration <= 0 || o.Rate < 0 {
			return usagef("%s: counts and the duration must be above 0", cmd.CommandPath())
		}
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		r, err := benchCommit(ctx, p, u, o)
		if err != nil {
			return stopCause(ctx, err)
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, r)
		}
		return writeTable(p.stdout, commitTable(r))
	}
	return cmd
}

// commitTable is r for people.
func commitTable(r commitbench.Result) [][]string {
	table := [][]string{
		{"PARTITION COMMITS/S", "COMMITS/S", "P50 MS", "P99 MS", "COMMITS"},
		{number(r.PartitionCommitsPerSecond), number(r.CommitsPerSecond), number(r.P50Millis), number(r.P99Millis), strconv.Itoa(r.Commits)},
	}
	if r.P50MillisBefore > 0 {
		table[0] = append(table[0], "P50 MS BEFORE THE SNAPSHOT", "P50 MS AT ITS END")
		table[1] = append(table[1], number(r.P50MillisBefore), number(r.P50MillisEnd))
	}
	return table
}

func benchCommit(ctx context.Context, p *process, u databaseURL, o commitbench.Options) (r commitbench.Result, err error) {
	log := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	start := time.Now()
	shown := showProgress(p, func() string {
		return fmt.Sprintf("%d committers on %d partitions, %v of %v", o.Committers, o.Partitions, time.Since(start).Round(time.Second), o.Duration)
	})
	defer shown.end()
	open := func(ctx context.Context) (metadata.Driver, error) { return openDatabase(ctx, u, log) }
	if u.kind == databaseSQLite {
		// One process has one driver of a SQLite file, so the committers share it.
		shared, openErr := openDatabase(ctx, u, log)
		if openErr != nil {
			return r, openErr
		}
		defer func() { err = errors.Join(err, shared.Close()) }()
		open = func(context.Context) (metadata.Driver, error) { return keepOpen{shared}, nil }
	}
	return commitbench.Run(ctx, open, o)
}

// keepOpen is a driver whose users do not close it.
type keepOpen struct{ metadata.Driver }

// Close leaves the driver open for its other users.
func (keepOpen) Close() error { return nil }
