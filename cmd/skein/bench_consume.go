package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// benchConsumeFlags are the flags that `skein bench consume` and `replay` share.
type benchConsumeFlags struct {
	topic      string
	consumers  int
	from       string
	fetchBytes int32
	partBytes  int32
}

// consumeResult is `bench consume -o json`, and a part of `bench replay -o json`.
type consumeResult struct {
	MiBPerSecond     float64 `json:"mib_per_second"`
	RecordsPerSecond float64 `json:"records_per_second"`
	Records          int64   `json:"records"`
	Bytes            int64   `json:"bytes"`
	Seconds          float64 `json:"seconds"`
	FirstRecord      float64 `json:"first_record_ms"`
}

func newBenchConsume(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "consume", Short: "Read a topic from a place to the end it has at the start", Args: exactArgs(),
	}
	var f benchConsumeFlags
	f.register(cmd)
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		r, err := benchConsume(ctx, p, cmd, &f)
		if err != nil {
			return err
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, r)
		}
		return writeTable(p.stdout, [][]string{consumeHeading, r.row()})
	}
	return cmd
}

var consumeHeading = []string{"MIB/S", "RECORDS/S", "RECORDS", "SECONDS", "FIRST RECORD MS"}

func (r *consumeResult) row() []string {
	return []string{
		number(r.MiBPerSecond), number(r.RecordsPerSecond), strconv.FormatInt(r.Records, 10), number(r.Seconds), number(r.FirstRecord),
	}
}

func (f *benchConsumeFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.topic, "topic", "bench", "topic")
	flags.IntVar(&f.consumers, "consumers", 1, "consumers that share the partitions")
	flags.StringVar(&f.from, "from", "earliest", "earliest, an offset, -N or a time, as in `skein consume`")
	flags.Int32Var(&f.fetchBytes, "fetch-bytes", 50<<20, "largest answer to a fetch")
	flags.Int32Var(&f.partBytes, "partition-bytes", 1<<20, "largest part of one partition in an answer")
}

func (r *consumeResult) setRates(seconds float64) {
	if seconds <= 0 {
		return
	}
	r.Seconds = round(seconds)
	r.MiBPerSecond = round(float64(r.Bytes) / mib / seconds)
	r.RecordsPerSecond = round(float64(r.Records) / seconds)
}

// benchReader is the shared state of a run's consumers.
type benchReader struct {
	start   time.Time
	records atomic.Int64
	bytes   atomic.Int64
	first   atomic.Int64 // nanoseconds after start; 0: none yet
}

func benchConsume(ctx context.Context, p *process, cmd *cobra.Command, f *benchConsumeFlags) (*consumeResult, error) {
	if f.consumers < 1 || f.consumers > maxBenchClients {
		return nil, usagef("--consumers %d: want 1 to %d", f.consumers, maxBenchClients)
	}
	start, err := parseStart(f.from)
	if err != nil {
		return nil, usagef("--from: %w", err)
	}
	first, err := connect(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer first.Close()
	plan, err := planRead(ctx, kadm.NewClient(first), f.topic, &consumeFlags{isolation: "uncommitted"}, start)
	if err != nil {
		return nil, err
	}
	if len(plan.left) == 0 {
		return nil, fmt.Errorf("%w: topic %q has no records from %s on", errNothing, f.topic, f.from)
	}
	shares := plan.split(f.consumers)
	clients := make([]*kgo.Client, 0, len(shares))
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	for range shares {
		c, err := connect(ctx, cmd, kgo.KeepControlRecords(), kgo.FetchMaxWait(probeAfter), kgo.FetchMaxBytes(f.fetchBytes), kgo.FetchMaxPartitionBytes(f.partBytes),
			kgo.BrokerMaxReadBytes(max(f.fetchBytes, f.partBytes)+maxProduceBatch))
		if err != nil {
			return nil, err
		}
		clients = append(clients, c)
	}
	b := &benchReader{start: time.Now()}
	shown := showProgress(p, func() string {
		return fmt.Sprintf("%d records, %.1f MiB/s", b.records.Load(), float64(b.bytes.Load())/mib/time.Since(b.start).Seconds())
	})
	defer shown.end()
	g, ctx := errgroup.WithContext(ctx)
	for i, share := range shares {
		clients[i].AddConsumePartitions(map[string]map[int32]kgo.Offset{f.topic: share.from})
		g.Go(func() error { return b.read(ctx, newEndReader(clients[i], f.topic, share.from, share.left)) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	r := &consumeResult{Records: b.records.Load(), Bytes: b.bytes.Load(), FirstRecord: ms(time.Duration(b.first.Load()))}
	r.setRates(time.Since(b.start).Seconds())
	return r, nil
}

// split gives each of at most n consumers its share of the partitions with something to read.
func (r *readPlan) split(n int) []*readPlan {
	partitions := make([]int32, 0, len(r.left))
	for x := range r.left {
		partitions = append(partitions, x)
	}
	slices.Sort(partitions)
	shares := make([]*readPlan, min(n, len(partitions)))
	for i := range shares {
		shares[i] = &readPlan{from: map[int32]kgo.Offset{}, left: map[int32]int64{}}
	}
	for i, x := range partitions {
		s := shares[i%len(shares)]
		s.from[x], s.left[x] = r.from[x], r.left[x]
	}
	return shares
}

// read is one consumer: it reads its partitions to their ends.
func (b *benchReader) read(ctx context.Context, e *endReader) error {
	left := e.left
	for len(left) > 0 {
		fetches, err := e.poll(ctx)
		if err != nil {
			return err
		}
		b.first.CompareAndSwap(0, int64(time.Since(b.start)))
		fetches.EachPartition(func(t kgo.FetchTopicPartition) {
			end, ok := left[t.Partition]
			if !ok || len(t.Records) == 0 {
				return
			}
			var n, size int64
			for _, r := range t.Records {
				if r.Offset < end {
					n++
					size += int64(len(r.Key) + len(r.Value))
				}
			}
			b.records.Add(n)
			b.bytes.Add(size)
			if t.Records[len(t.Records)-1].Offset >= end-1 {
				delete(left, t.Partition)
			}
		})
	}
	return nil
}
