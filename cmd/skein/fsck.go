package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// errUnsound: fsck found something wrong that is not mended.
var errUnsound = errors.New("problems found")

// progressEvery is how often progress is shown on a terminal.
const progressEvery = 200 * time.Millisecond

func newFsck(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "fsck", Short: "Check the bucket and the database against each other", Args: exactArgs(),
		Long: "Reads every extent, checks checksums, offsets, counters and references, and lists what is missing and what nothing\n" +
			"names. With --repair it mends what can be mended without losing data, and releases garbage collection after a\n" +
			"failover or a restore. Exits 1 when something is wrong and not mended.",
	}
	var metadataURL, bucketURL, output string
	var repair, shallow bool
	f := cmd.Flags()
	f.StringVar(&metadataURL, "metadata", "", "database: postgres://… or sqlite:path")
	f.StringVar(&bucketURL, "bucket", "", "bucket: s3://…, minio://… or file:path")
	f.BoolVar(&repair, "repair", false, "mend what can be mended without losing data")
	f.BoolVar(&shallow, "shallow", false, "do not read extents: compare rows with each other and with the bucket's listing")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if metadataURL == "" || bucketURL == "" {
			return usagef("%s: --metadata and --bucket are needed", cmd.CommandPath())
		}
		if output != "table" && output != "json" {
			return usagef("--output %s: want table or json", output)
		}
		u, err := parseDatabaseURL(metadataURL)
		if err != nil {
			return usagef("--metadata: %w", err)
		}
		if _, err := objstore.ParseURL(bucketURL); err != nil {
			return usagef("--bucket: %w", err)
		}
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		report, err := fsck(ctx, p, u, bucketURL, compactor.CheckOptions{Repair: repair, Shallow: shallow})
		if err != nil {
			return stopCause(ctx, err)
		}
		if err := showReport(p, report, output); err != nil {
			return err
		}
		if report.Unrepaired > 0 {
			return fmt.Errorf("%w: %d, of which %d are not mended", errUnsound, report.ProblemCount, report.Unrepaired)
		}
		return nil
	}
	return cmd
}

func fsck(ctx context.Context, p *process, u databaseURL, bucketURL string, o compactor.CheckOptions) (_ *compactor.Report, err error) {
	log := newFsckLogger(p)
	driver, err := openDatabase(ctx, u, log)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", u, err)
	}
	defer func() { err = errors.Join(err, driver.Close()) }()
	db, ok := driver.(metadata.Compaction)
	if !ok {
		return nil, errNoCompaction
	}
	bucket, err := openBucket(ctx, bucketURL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	if err := bucket.Check(ctx); err != nil {
		return nil, err
	}
	o.Driver, o.Bucket = db, objstore.RetryReads(bucket, objstore.DefaultRetryPolicy())
	o.Store = metadata.NewStore(metadata.Options{Driver: driver, Logger: log})
	if p.stderrTTY {
		var last time.Time
		o.Progress = func(what string, done int64) {
			if now := time.Now(); now.Sub(last) >= progressEvery {
				last = now
				fmt.Fprintf(p.stderr, "\r%d %s\x1b[K", done, what)
			}
		}
		defer fmt.Fprint(p.stderr, "\r\x1b[K")
	}
	return compactor.Check(ctx, o)
}

func showReport(p *process, r *compactor.Report, output string) error {
	if output == "json" {
		e := json.NewEncoder(p.stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	if len(r.Problems) > 0 {
		fmt.Fprintln(w, "KIND\tWHERE\tBYTES\tWHAT\tREPAIRED")
		for _, x := range r.Problems {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", x.Kind, x.Where, x.Bytes, x.Detail, x.Repaired)
		}
	}
	fmt.Fprintf(w, "%d blocks, %d level-0 rows, %d runs, %d inline payloads, %d objects (%d in the bucket, %d waiting for deletion)\n",
		r.Blocks, r.Rows, r.Runs, r.Inline, r.Objects, r.InBucket, r.Waiting)
	fmt.Fprintf(w, "%d extents read: %s, %d batches, %d records\n", r.Extents, formatSize(r.Bytes), r.Batches, r.Records)
	if r.Uncommitted > 0 {
		fmt.Fprintf(w, "%d objects of %s that nothing names and that are to be found and deleted yet\n", r.Uncommitted, formatSize(r.UncommittedBytes))
	}
	if r.Moving > 0 {
		fmt.Fprintf(w, "%d things changed while they were looked at, and are left out\n", r.Moving)
	}
	fmt.Fprintf(w, "%d problems, %d not mended\n", r.ProblemCount, r.Unrepaired)
	return w.Flush()
}

// newFsckLogger logs warnings to stderr: the report is on stdout.
func newFsckLogger(p *process) *slog.Logger {
	return slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
