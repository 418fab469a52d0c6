package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/open"
)

// segmentReadTimeout bounds one read of a segment.
const segmentReadTimeout = time.Minute

func newSegment(p *process) *cobra.Command {
	return parent("segment", "Look into the objects of a bucket", newSegmentDump(p), newSegmentVerify(p))
}

func newSegmentDump(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "dump BUCKET-URL KEY", Short: "Print a segment's index", Args: exactArgs("BUCKET-URL", "KEY")}
	format := addOutput(cmd)
	batches := cmd.Flags().Bool("batches", false, "also list the header of every batch, which reads the whole object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		return withSegment(ctx, args[0], args[1], func(r segment.ReadAtFunc, size int64) error {
			return segment.Dump(p.stdout, r, size, segment.DumpOptions{JSON: *format == outputJSON, Batches: *batches})
		})
	}
	return cmd
}

// verifyResult is `segment verify -o json`.
type verifyResult struct {
	Key         string   `json:"key"`
	Size        int64    `json:"size_bytes"`
	Extents     int      `json:"extents"`
	Chunks      int      `json:"chunks"`
	Batches     int64    `json:"batches"`
	Records     int64    `json:"records"`
	StoredBytes int64    `json:"stored_bytes"`
	RawBytes    int64    `json:"raw_bytes"`
	Problems    []string `json:"problems"`
	Count       int      `json:"problem_count"`
}

func newSegmentVerify(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify BUCKET-URL KEY", Short: "Read a whole segment and check everything in it", Args: exactArgs("BUCKET-URL", "KEY"),
	}
	format := addOutput(cmd)
	records := cmd.Flags().Bool("records", false, "also decompress every batch and check its records")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		return withSegment(ctx, args[0], args[1], func(r segment.ReadAtFunc, size int64) error {
			report, err := segment.Verify(r, size, segment.VerifyOptions{Records: *records})
			if err != nil && report.ProblemCount == 0 {
				return err
			}
			if printErr := printReport(p, *format, args[1], report); printErr != nil {
				return printErr
			}
			if report.ProblemCount > 0 {
				return fmt.Errorf("segment %s: %d problems, the first: %w", args[1], report.ProblemCount, report.Problems[0])
			}
			return nil
		})
	}
	return cmd
}

func printReport(p *process, format output, key string, r segment.Report) error {
	out := verifyResult{
		Key: key, Size: r.Size, Extents: r.Extents, Chunks: r.Chunks, Batches: r.Batches, Records: r.Records,
		StoredBytes: r.StoredBytes, RawBytes: r.RawBytes, Problems: []string{}, Count: r.ProblemCount,
	}
	for _, x := range r.Problems {
		out.Problems = append(out.Problems, x.Error())
	}
	if format == outputJSON {
		return writeJSON(p.stdout, out)
	}
	for _, x := range out.Problems {
		if _, err := fmt.Fprintln(p.stdout, x); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(p.stdout, "%s: %d bytes, %d extents, %d chunks, %d batches, %d records, %d problems\n",
		key, out.Size, out.Extents, out.Chunks, out.Batches, out.Records, out.Count)
	return err
}

// withSegment opens an object of a bucket for fn.
func withSegment(ctx context.Context, bucketURL, key string, fn func(r segment.ReadAtFunc, size int64) error) (err error) {
	bucket, err := openBucket(ctx, bucketURL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	info, err := bucket.Head(ctx, key)
	if err != nil {
		return stopCause(ctx, err)
	}
	read := func(dst []byte, off int64) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, segmentReadTimeout)
		defer cancel()
		if err := objstore.ReadRange(ctx, bucket, key, off, len(dst), dst); err != nil {
			return 0, err
		}
		return len(dst), nil
	}
	return stopCause(ctx, fn(read, info.Size))
}

// openBucket opens a bucket by URL; a URL that does not parse is wrong usage.
func openBucket(ctx context.Context, rawURL string) (objstore.Bucket, error) {
	if _, err := objstore.ParseURL(rawURL); err != nil {
		return nil, usagef("%w", err)
	}
	bucket, err := open.Open(ctx, rawURL, open.Options{})
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	return bucket, nil
}
