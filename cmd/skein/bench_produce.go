package main

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// benchProduceFlags are the flags of `skein bench produce`.
type benchProduceFlags struct {
	topic       string
	partitions  int32
	recordBytes int
	producers   int
	duration    time.Duration
	rate        float64
	compression string
	random      bool
	acks        string
	linger      time.Duration
	batchBytes  int32
}

// produceResult is `bench produce -o json`.
type produceResult struct {
	MiBPerSecond     float64 `json:"mib_per_second"`
	RecordsPerSecond float64 `json:"records_per_second"`
	P50              float64 `json:"p50_ms"`
	P99              float64 `json:"p99_ms"`
	Max              float64 `json:"max_ms"`
	Records          int64   `json:"records"`
	Seconds          float64 `json:"seconds"`
	Errors           int64   `json:"errors"`
	FirstError       string  `json:"first_error,omitempty"`
}

func newBenchProduce(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "produce", Short: "Write records as fast as they are taken, or at a rate", Args: exactArgs()}
	var f benchProduceFlags
	flags := cmd.Flags()
	flags.StringVar(&f.topic, "topic", "bench", "topic, created when it is missing")
	flags.Int32Var(&f.partitions, "partitions", 1, "partitions of a topic that is created")
	flags.IntVar(&f.recordBytes, "record-bytes", 1024, "size of a record's value")
	flags.IntVar(&f.producers, "producers", 1, "producers, each with connections of its own")
	flags.DurationVar(&f.duration, "duration", 30*time.Second, "how long")
	flags.Float64Var(&f.rate, "rate", 0, "records per second of all producers together; 0: as fast as they are taken")
	flags.StringVar(&f.compression, "compression", "none", "by the producer: none, gzip, snappy, lz4 or zstd")
	flags.BoolVar(&f.random, "random", false, "values of random bytes, which do not compress")
	flags.StringVar(&f.acks, "acks", "all", "all, 1 or 0")
	flags.DurationVar(&f.linger, "linger", 5*time.Millisecond, "how long a producer waits for a batch to fill")
	flags.Int32Var(&f.batchBytes, "batch-bytes", defaultBatchBytes, "largest batch")
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		r, err := benchProduce(ctx, p, cmd, &f)
		if err != nil {
			return err
		}
		if *format == outputJSON {
			err = writeJSON(p.stdout, r)
		} else {
			err = writeTable(p.stdout, [][]string{
				{"MIB/S", "RECORDS/S", "P50 MS", "P99 MS", "MAX MS", "RECORDS", "ERRORS"},
				{number(r.MiBPerSecond), number(r.RecordsPerSecond), number(r.P50), number(r.P99), number(r.Max),
					strconv.FormatInt(r.Records, 10), strconv.FormatInt(r.Errors, 10)},
			})
		}
		if err == nil && r.Errors > 0 {
			err = fmt.Errorf("%d records failed, the first with: %s", r.Errors, r.FirstError)
		}
		return err
	}
	return cmd
}

func number(x float64) string { return strconv.FormatFloat(x, 'f', 2, 64) }

func (f *benchProduceFlags) check() error {
	switch {
	case f.recordBytes < 0 || f.recordBytes > maxProduceBatch/2:
		return usagef("--record-bytes %d: want 0 to %d", f.recordBytes, maxProduceBatch/2)
	case f.producers < 1 || f.producers > maxBenchClients:
		return usagef("--producers %d: want 1 to %d", f.producers, maxBenchClients)
	case f.partitions < 1:
		return usagef("--partitions %d: want at least 1", f.partitions)
	case f.duration <= 0:
		return usagef("--duration %v: want more than 0", f.duration)
	case f.rate < 0:
		return usagef("--rate %v: want at least 0", f.rate)
	}
	return nil
}

// maxBenchClients bounds producers and consumers of one run.
const maxBenchClients = 10_000

// benchProducer is the shared state of a run's producers.
type benchProducer struct {
	flags    *benchProduceFlags
	values   [][]byte
	latency  histogram
	acked    atomic.Int64
	failed   *firstError
	lastDone atomic.Int64 // nanoseconds after start
	start    time.Time
}

func benchProduce(ctx context.Context, p *process, cmd *cobra.Command, f *benchProduceFlags) (*produceResult, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	client := produceFlags{acks: f.acks, compression: f.compression, timeout: benchDrainTimeout, partition: -1,
		batchBytes: max(f.batchBytes, int32(f.recordBytes)+recordOverhead)}
	opts, err := client.options(f.topic)
	if err != nil {
		return nil, err
	}
	opts = append(opts, kgo.ProducerLinger(f.linger), kgo.MaxBufferedBytes(benchBuffer+f.recordBytes), kgo.MaxBufferedRecords(benchBuffered))
	if err := ensureTopic(ctx, cmd, f.topic, f.partitions); err != nil {
		return nil, err
	}
	clients := make([]*kgo.Client, 0, f.producers)
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	for range f.producers {
		c, err := connect(ctx, cmd, opts...)
		if err != nil {
			return nil, err
		}
		clients = append(clients, c)
	}
	b := &benchProducer{flags: f, values: payloads(f.recordBytes, f.random), failed: newFirstError(), start: time.Now()}
	shown := showProgress(p, func() string {
		n := b.acked.Load()
		return fmt.Sprintf("%d records, %.1f MiB/s", n, float64(n)*float64(f.recordBytes)/mib/time.Since(b.start).Seconds())
	})
	err = b.run(ctx, clients)
	shown.end()
	if err != nil {
		return nil, err
	}
	return b.result(), nil
}

// recordOverhead is more than a batch's and a record's headers take, in bytes.
const recordOverhead = 1 << 10

// run produces with every client for the duration and waits for what was sent.
func (b *benchProducer) run(ctx context.Context, clients []*kgo.Client) error {
	sending, cancel := context.WithDeadline(ctx, b.start.Add(b.flags.duration)) // from when on records are due
	defer cancel()
	var g errgroup.Group
	for i, c := range clients {
		g.Go(func() error {
			b.send(sending, c, i)
			// An interrupted run waits for its records too: the figures are of what was acknowledged.
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchDrainTimeout)
			defer cancel()
			if err := c.Flush(drain); err != nil {
				return fmt.Errorf("%d records without an answer %v after the end: %w", c.BufferedProduceRecords(), benchDrainTimeout, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// send is one producer: the i-th. With a rate, latency counts from when a record was due, so that a stall is not hidden by
// its holding up the records after it.
func (b *benchProducer) send(ctx context.Context, c *kgo.Client, i int) {
	rate := b.flags.rate / float64(b.flags.producers)
	for n := int64(0); ctx.Err() == nil; n++ {
		at := time.Now()
		if rate > 0 {
			at = pace(b.start, n, rate)
			if !sleepUntil(ctx, at) {
				return
			}
		}
		r := &kgo.Record{Value: b.values[(int(n)+i)%len(b.values)]}
		// The record's own life is not bound to the duration: what was begun is finished.
		c.Produce(context.WithoutCancel(ctx), r, func(_ *kgo.Record, err error) {
			if err != nil {
				b.failed.note(err)
				return
			}
			done := time.Now()
			b.latency.add(done.Sub(at))
			b.acked.Add(1)
			storeMax(&b.lastDone, int64(done.Sub(b.start)))
		})
	}
}

func storeMax(a *atomic.Int64, v int64) {
	for old := a.Load(); v > old && !a.CompareAndSwap(old, v); old = a.Load() {
	}
}

func (b *benchProducer) result() *produceResult {
	r := &produceResult{
		Records: b.acked.Load(), P50: ms(b.latency.quantile(0.50)), P99: ms(b.latency.quantile(0.99)), Max: ms(b.latency.largest()),
	}
	failed, first := b.failed.get()
	if r.Errors = int64(failed); first != nil {
		r.FirstError = first.Error()
	}
	if seconds := time.Duration(b.lastDone.Load()).Seconds(); seconds > 0 {
		r.Seconds = round(seconds)
		r.RecordsPerSecond = round(float64(r.Records) / seconds)
		r.MiBPerSecond = round(float64(r.Records) * float64(b.flags.recordBytes) / mib / seconds)
	}
	return r
}
