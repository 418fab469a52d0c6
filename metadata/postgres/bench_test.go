package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/commitbench"
	"github.com/skeinio/skein/metadata/postgres"
)

// BenchmarkCommit measures commits as `skein bench commit` does, and beside each the bare UPDATE of 1,000 rows and the
// WAL that a commit writes. Run it with -benchtime=1x: every case runs for benchDuration.
func BenchmarkCommit(b *testing.B) {
	for _, c := range []struct {
		name     string
		opts     commitbench.Options
		snapshot bool
	}{
		{"partitions=1", commitbench.Options{Partitions: 1}, false},
		{"partitions=100", commitbench.Options{Partitions: 100}, false},
		{"partitions=1000", commitbench.Options{Partitions: 1000}, false},
		{"partitions=10000", commitbench.Options{Partitions: 10000}, false},
		{"producers=100x10", commitbench.Options{Partitions: 1000, Producers: 100}, false},
		{"committers=8/producers=100x10", commitbench.Options{Partitions: 1000, Producers: 100, Committers: 8}, false},
		{"committers=2/partitions=10000", commitbench.Options{Partitions: 10000, Committers: 2}, false},
		{"snapshot/producers=100x10", commitbench.Options{Partitions: 1000, Producers: 100}, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				benchCommit(b, c.opts, c.snapshot)
			}
		})
	}
}

const benchDuration = 5 * time.Second

func benchCommit(b *testing.B, opts commitbench.Options, snapshot bool) {
	url := testenv.PostgresDatabase(b)
	opts.Duration = benchDuration
	open := func(ctx context.Context) (metadata.Driver, error) { return postgres.Open(ctx, url, postgres.Options{}) }
	if d, err := open(b.Context()); err != nil { // migrates
		b.Fatal(err)
	} else if err := d.Close(); err != nil {
		b.Fatal(err)
	}
	conn := connect(b, url)
	update := bareUpdate(b, conn)
	if snapshot {
		opts.Snapshot = func(ctx context.Context) (func() error, error) { return postgres.HoldSnapshot(ctx, url) }
	}
	var before, after int64
	lsn := "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"
	if err := conn.QueryRow(b.Context(), lsn).Scan(&before); err != nil {
		b.Fatal(err)
	}
	r, err := commitbench.Run(b.Context(), open, opts)
	if err != nil {
		b.Fatal(err)
	}
	if err := conn.QueryRow(b.Context(), lsn).Scan(&after); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r.P50Millis, "p50-ms")
	b.ReportMetric(r.P99Millis, "p99-ms")
	b.ReportMetric(r.CommitsPerSecond, "commits/s")
	b.ReportMetric(r.PartitionCommitsPerSecond, "partition-commits/s")
	b.ReportMetric(float64(after-before)/float64(r.Commits)/1.1/1024, "WAL-KiB/commit") // 1.1: the warm-up's are not counted
	b.ReportMetric(update, "update1000-p50-ms")
}

// bareUpdate gives the median time of updating 1,000 rows of one integer each, in milliseconds.
func bareUpdate(b *testing.B, conn *pgx.Conn) float64 {
	for _, sql := range []string{
		"CREATE TABLE bare (id int PRIMARY KEY, x int8 NOT NULL) WITH (fillfactor = 50)",
		"INSERT INTO bare SELECT i, 0 FROM generate_series(1, 1000) i", "VACUUM ANALYZE bare",
	} {
		if _, err := conn.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	var took []float64
	for range 101 {
		start := time.Now()
		tag, err := conn.Exec(b.Context(), "UPDATE bare SET x = x + 1")
		if err != nil || tag.RowsAffected() != 1000 {
			b.Fatal(fmt.Errorf("update: %s, %w", tag, err))
		}
		took = append(took, float64(time.Since(start).Microseconds())/1000)
	}
	return median(took)
}

// BenchmarkLocate finds random offsets in a million whole rows: 16 blocks of 62,500, 1,000 partitions, all of which every
// row touches in its block. The median of a query for one partition and for all.
func BenchmarkLocate(b *testing.B) {
	const blocks, rows = 16, 62_500
	d, url := open(b, postgres.Options{})
	_, parts := newStore(b, d, "t", 1000)
	conn := connect(b, url)
	touched := metadata.AppendTouched(nil, []metadata.Touched{{Batches: []metadata.Batch{{
		Length: 100, Records: 2, Producer: metadata.NoProducer, Epoch: -1, First: -1, Last: -1, Flags: metadata.FlagAccepted,
	}}, Length: 100, RawLength: 100}})
	for block := range blocks {
		if _, err := conn.Exec(b.Context(), `
INSERT INTO level0 SELECT $1, i, i, gen_random_uuid(), 'object-' || i, $2,
	decode(repeat(encode(int8send(2 * i) || int8send(10 * i) || int8send(100 * i), 'hex'), 64), 'hex')
FROM generate_series(1::int8, $3::int8) i`, block+1, touched, rows); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := conn.Exec(b.Context(), "VACUUM ANALYZE level0"); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("partitions=%d", n), func(b *testing.B) {
			var took []float64
			for b.Loop() {
				queries := make([]metadata.LocateQuery, n)
				for i := range queries {
					p := parts[rand.N(len(parts))]
					queries[i] = metadata.LocateQuery{
						Block: p.Block, Slot: p.Slot, Offset: metadata.Offset(rand.N(2 * rows)), MaxRows: 1, MaxBytes: 1 << 20,
					}
				}
				start := time.Now()
				answers, err := d.Locate(b.Context(), queries)
				took = append(took, float64(time.Since(start).Microseconds())/1000)
				if err != nil {
					b.Fatal(err)
				}
				for i, a := range answers {
					if len(a.Rows) != 1 || a.Rows[0].Seq != metadata.Seq(queries[i].Offset/2+1) {
						b.Fatalf("offset %d: %+v", queries[i].Offset, a)
					}
				}
			}
			b.ReportMetric(median(took), "p50-ms")
		})
	}
}
