package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/skeinio/skein/objstore"
)

// Bounds of the measure of the bucket alone.
const (
	// rawGetBytes is what one GET of it reads: as much as an agent's largest.
	rawGetBytes = 8 * mib
	// maxRawGets bounds --gets.
	maxRawGets = 256
)

// benchReplayFlags are the flags of `skein bench replay`.
type benchReplayFlags struct {
	benchConsumeFlags
	rounds  int
	readers int
	bucket  string
	prefix  string
	gets    int
}

// replayResult is `bench replay -o json`: every round, and the whole.
type replayResult struct {
	consumeResult
	Rounds []consumeResult `json:"rounds"`
	// Of the bucket alone, with --bucket: what plain GETs of its objects give, by round, and medians of the rounds.
	RawGets             []rawGetResult `json:"raw_gets,omitempty"`
	RawMiBPerSecond     float64        `json:"raw_get_mib_per_second,omitempty"`
	MedianMiBPerSecond  float64        `json:"median_mib_per_second"`
	ReplayToRawGetRatio float64        `json:"replay_to_raw_get,omitempty"`
}

// rawGetResult is one round of plain GETs.
type rawGetResult struct {
	MiBPerSecond float64 `json:"mib_per_second"`
	Bytes        int64   `json:"bytes"`
	Gets         int64   `json:"gets"`
	Seconds      float64 `json:"seconds"`
}

func newBenchReplay(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "replay", Short: "Read a topic's history again and again, with new connections each time", Args: exactArgs(),
		Long: `Read a topic's history again and again, with new connections each time.

With --bucket every round is followed by plain GETs of as many bytes of the bucket's objects, so that what the agents give
stands beside what the bucket gives at the same time.`,
	}
	var f benchReplayFlags
	f.register(cmd)
	flags := cmd.Flags()
	flags.IntVar(&f.rounds, "rounds", 1, "how many times")
	flags.IntVar(&f.readers, "readers", 1, "how many read the whole topic at the same time")
	flags.StringVar(&f.bucket, "bucket", "", "measure plain GETs of this bucket's objects too")
	flags.StringVar(&f.prefix, "prefix", "run/", "of the keys of these objects")
	flags.IntVar(&f.gets, "gets", 8, "plain GETs at a time, 8 MiB each")
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		r, err := benchReplay(ctx, p, cmd, &f)
		if err != nil {
			return err
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, r)
		}
		return writeTable(p.stdout, r.table())
	}
	return cmd
}

func (r *replayResult) table() [][]string {
	rows := [][]string{consumeHeading}
	for i := range r.Rounds {
		rows = append(rows, r.Rounds[i].row())
	}
	if len(r.RawGets) == 0 {
		return rows
	}
	rows[0] = append(slices.Clone(rows[0]), "RAW GET MIB/S")
	for i := range r.RawGets {
		rows[i+1] = append(rows[i+1], number(r.RawGets[i].MiBPerSecond))
	}
	return rows
}

func (f *benchReplayFlags) validate() error {
	switch {
	case f.rounds < 1:
		return usagef("--rounds %d: want at least 1", f.rounds)
	case f.readers < 1 || f.readers*f.consumers > maxBenchClients:
		return usagef("--readers %d with --consumers %d: want at least 1, and at most %d together", f.readers, f.consumers, maxBenchClients)
	case f.gets < 1 || f.gets > maxRawGets:
		return usagef("--gets %d: want 1 to %d", f.gets, maxRawGets)
	}
	return nil
}

func benchReplay(ctx context.Context, p *process, cmd *cobra.Command, f *benchReplayFlags) (*replayResult, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	var bucket objstore.Bucket
	var objects []objstore.Info
	if f.bucket != "" {
		var err error
		if bucket, err = openBucket(ctx, f.bucket); err != nil {
			return nil, err
		}
		defer bucket.Close()
		err = bucket.List(ctx, f.prefix, "", func(i objstore.Info) error {
			objects = append(objects, i)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list %s%s: %w", f.bucket, f.prefix, err)
		}
		if len(objects) == 0 {
			return nil, fmt.Errorf("%w: no objects with the prefix %q", errNothing, f.prefix)
		}
	}
	out := &replayResult{}
	var seconds float64
	for range f.rounds {
		r, err := replayRound(ctx, p, cmd, f)
		if err != nil {
			return nil, err
		}
		out.Rounds = append(out.Rounds, *r)
		out.Records += r.Records
		out.Bytes += r.Bytes
		out.FirstRecord = max(out.FirstRecord, r.FirstRecord)
		seconds += r.Seconds
		if bucket != nil {
			raw, err := rawGets(ctx, bucket, objects, r.Bytes, f.gets)
			if err != nil {
				return nil, err
			}
			out.RawGets = append(out.RawGets, *raw)
		}
	}
	out.setRates(seconds)
	out.medians()
	return out, nil
}

// replayRound lets all readers read everything at the same time.
func replayRound(ctx context.Context, p *process, cmd *cobra.Command, f *benchReplayFlags) (*consumeResult, error) {
	results := make([]*consumeResult, f.readers)
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i := range results {
		g.Go(func() (err error) {
			results[i], err = benchConsume(ctx, p, cmd, &f.benchConsumeFlags)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if f.readers == 1 {
		return results[0], nil
	}
	sum := &consumeResult{}
	for _, r := range results {
		sum.Records += r.Records
		sum.Bytes += r.Bytes
		sum.FirstRecord = max(sum.FirstRecord, r.FirstRecord)
	}
	sum.setRates(time.Since(start).Seconds())
	return sum, nil
}

func (r *replayResult) medians() {
	var replays, raws []float64
	for i := range r.Rounds {
		replays = append(replays, r.Rounds[i].MiBPerSecond)
	}
	r.MedianMiBPerSecond = median(replays)
	for i := range r.RawGets {
		raws = append(raws, r.RawGets[i].MiBPerSecond)
	}
	if r.RawMiBPerSecond = median(raws); r.RawMiBPerSecond > 0 {
		r.ReplayToRawGetRatio = round(r.MedianMiBPerSecond / r.RawMiBPerSecond)
	}
}

// median gives 0 for nothing.
func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	return round((sorted[(n-1)/2] + sorted[n/2]) / 2)
}

// rawGets reads objects, from the first on, up to so many bytes, and throws them away.
func rawGets(ctx context.Context, bucket objstore.Bucket, objects []objstore.Info, limit int64, gets int) (*rawGetResult, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(gets)
	var read, count atomic.Int64
	start := time.Now()
	planned := int64(0)
	for _, o := range objects {
		for at := int64(0); at < o.Size && planned < limit; at += rawGetBytes {
			n := min(rawGetBytes, o.Size-at)
			planned += n
			g.Go(func() error {
				r, err := bucket.Get(ctx, o.Key, at, n)
				if err != nil {
					return fmt.Errorf("get %s: %w", o.Key, err)
				}
				defer r.Close()
				got, err := io.Copy(io.Discard, r)
				read.Add(got)
				count.Add(1)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	seconds := time.Since(start).Seconds()
	return &rawGetResult{
		MiBPerSecond: round(float64(read.Load()) / mib / seconds), Bytes: read.Load(), Gets: count.Load(), Seconds: round(seconds),
	}, nil
}
