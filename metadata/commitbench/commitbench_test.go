package commitbench_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/commitbench"
	"github.com/skeinio/skein/metadata/sqlite"
)

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	open := func(ctx context.Context) (metadata.Driver, error) { return sqlite.Open(ctx, path, sqlite.Options{}) }
	opts := commitbench.Options{Partitions: 70, Producers: 3, Duration: 200 * time.Millisecond, Rate: 50}
	r, err := commitbench.Run(t.Context(), open, opts)
	if err != nil {
		t.Fatal(err)
	}
	if r.Commits < 1 || r.Commits > 12 || r.P50Millis <= 0 || r.P99Millis < r.P50Millis {
		t.Errorf("%+v", r)
	}
	if got := r.PartitionCommitsPerSecond / r.CommitsPerSecond; got < 69.9 || got > 70.1 {
		t.Errorf("%g partitions in a commit: %+v", got, r)
	}
	d, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	left, err := d.LoadTopics(t.Context(), -1)
	if err != nil || len(left.Topics) != 0 {
		t.Errorf("topics left: %+v, %v", left, err)
	}
	opts.Partitions = metadata.MaxPartitionsPerTopic + 1
	if _, err := commitbench.Run(t.Context(), open, opts); err == nil {
		t.Error("too many partitions were accepted")
	}
}

// slow is a database whose commits take their time.
type slow struct {
	metadata.Driver
	pause time.Duration
}

func (d slow) Commit(ctx context.Context, load metadata.CommitLoad, decide func(*metadata.CommitLoaded) (*metadata.CommitSave, error)) error {
	<-time.After(d.pause)
	return d.Driver.Commit(ctx, load, decide)
}

// TestRunWithSlowCommits: where a commit takes longer than the run, one is measured all the same.
func TestRunWithSlowCommits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	const duration = 50 * time.Millisecond
	open := func(ctx context.Context) (metadata.Driver, error) {
		d, err := sqlite.Open(ctx, path, sqlite.Options{})
		return slow{d, 2 * duration}, err
	}
	r, err := commitbench.Run(t.Context(), open, commitbench.Options{Duration: duration})
	if err != nil {
		t.Fatal(err)
	}
	if r.Commits != 1 || r.P50Millis <= 0 || r.CommitsPerSecond <= 0 {
		t.Errorf("%+v", r)
	}
}

// TestRunUnderASnapshot: it is open while the second part is measured, and closed in the end.
func TestRunUnderASnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	open := func(ctx context.Context) (metadata.Driver, error) { return sqlite.Open(ctx, path, sqlite.Options{}) }
	opened, closed := 0, 0
	r, err := commitbench.Run(t.Context(), open, commitbench.Options{
		Duration: 100 * time.Millisecond,
		Snapshot: func(context.Context) (func() error, error) {
			opened++
			return func() error { closed++; return nil }, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if opened != 1 || closed != 1 || r.P50Millis <= 0 || r.P50MillisBefore <= 0 || r.P50MillisEnd <= 0 {
		t.Errorf("opened %d times, closed %d times, %+v", opened, closed, r)
	}
}
