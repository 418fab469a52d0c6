package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A latency record's value starts with the run's id and the nanoseconds from the run's start to when it was due.
const (
	latencyRunBytes    = 8
	latencyHeaderBytes = latencyRunBytes + 8
	// latencyTail is how long records may take to arrive after the last was acknowledged.
	latencyTail = 30 * time.Second
)

type benchLatencyFlags struct {
	topic       string
	partitions  int32
	rate        float64
	recordBytes int
	duration    time.Duration
	linger      time.Duration
	random      bool
	// Zones that the clients say they are in: with topology direct, which agent each talks to.
	producerZone, consumerZone string
}

// latencies are one side of `bench latency -o json`.
type latencies struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// latencyResult is `bench latency -o json`.
type latencyResult struct {
	Produce    latencies `json:"produce"`
	EndToEnd   latencies `json:"end_to_end"`
	Records    int64     `json:"records"`
	Received   int64     `json:"received"`
	Errors     int64     `json:"errors"`
	FirstError string    `json:"first_error,omitempty"`
}

func newBenchLatency(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "latency", Short: "Write at a fixed rate and read back: time to the acknowledgement, and to the reader", Args: exactArgs(),
	}
	var f benchLatencyFlags
	flags := cmd.Flags()
	flags.StringVar(&f.topic, "topic", "bench-latency", "topic, created when it is missing")
	flags.Int32Var(&f.partitions, "partitions", 1, "partitions of a topic that is created")
	flags.Float64Var(&f.rate, "rate", 100, "records per second")
	flags.IntVar(&f.recordBytes, "record-bytes", 1024, "size of a record's value")
	flags.DurationVar(&f.duration, "duration", 30*time.Second, "how long")
	flags.DurationVar(&f.linger, "linger", 0, "how long the producer waits for a batch to fill")
	flags.BoolVar(&f.random, "random", false, "values of random bytes, which do not compress")
	flags.StringVar(&f.producerZone, "producer-zone", "", "zone of the producer: with topology direct it writes to the agent there")
	flags.StringVar(&f.consumerZone, "consumer-zone", "", "zone of the consumer: with topology direct it reads from the agent there")
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		r, err := benchLatency(ctx, p, cmd, &f)
		if err != nil {
			return err
		}
		if *format == outputJSON {
			err = writeJSON(p.stdout, r)
		} else {
			err = writeTable(p.stdout, [][]string{
				{"", "P50 MS", "P99 MS", "MAX MS", "RECORDS"},
				{"produce", number(r.Produce.P50), number(r.Produce.P99), number(r.Produce.Max), strconv.FormatInt(r.Records, 10)},
				{"end to end", number(r.EndToEnd.P50), number(r.EndToEnd.P99), number(r.EndToEnd.Max), strconv.FormatInt(r.Received, 10)},
			})
		}
		switch {
		case err != nil:
			return err
		case r.Errors > 0:
			return fmt.Errorf("%d records failed, the first with: %s", r.Errors, r.FirstError)
		case r.Received < r.Records:
			return fmt.Errorf("%d of %d acknowledged records did not arrive within %v", r.Records-r.Received, r.Records, latencyTail)
		}
		return nil
	}
	return cmd
}

func (f *benchLatencyFlags) check() error {
	switch {
	case f.recordBytes < latencyHeaderBytes || f.recordBytes > maxProduceBatch/2:
		return usagef("--record-bytes %d: want %d to %d", f.recordBytes, latencyHeaderBytes, maxProduceBatch/2)
	case f.rate <= 0:
		return usagef("--rate %v: want more than 0", f.rate)
	case f.partitions < 1:
		return usagef("--partitions %d: want at least 1", f.partitions)
	case f.duration <= 0:
		return usagef("--duration %v: want more than 0", f.duration)
	}
	return nil
}

// latencyRun is the shared state of the writing and the reading side.
type latencyRun struct {
	flags    *benchLatencyFlags
	id       [latencyRunBytes]byte
	start    time.Time
	acks     histogram
	arrivals histogram
	acked    atomic.Int64
	received atomic.Int64
	failed   *firstError
}

func benchLatency(ctx context.Context, p *process, cmd *cobra.Command, f *benchLatencyFlags) (*latencyResult, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if err := ensureTopic(ctx, cmd, f.topic, f.partitions); err != nil {
		return nil, err
	}
	producer, err := connect(ctx, cmd, inZone(f.producerZone), kgo.DefaultProduceTopic(f.topic), kgo.ProducerLinger(f.linger),
		kgo.RecordDeliveryTimeout(benchDrainTimeout), kgo.AllowIdempotentProduceCancellation(), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(max(defaultBatchBytes, int32(f.recordBytes)+recordOverhead)), kgo.BrokerMaxWriteBytes(maxProduceRequest))
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	// The reader starts at offsets that are known before the first record is sent: none is missed.
	ends, err := listOffsets(ctx, f.topic, kadm.NewClient(producer).ListEndOffsets)
	if err != nil {
		return nil, err
	}
	from := map[int32]kgo.Offset{}
	for x, end := range ends {
		from[x] = kgo.NewOffset().At(end)
	}
	consumer, err := connect(ctx, cmd, inZone(f.consumerZone), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{f.topic: from}))
	if err != nil {
		return nil, err
	}
	defer consumer.Close()

	r := &latencyRun{flags: f, failed: newFirstError()}
	if _, err := rand.Read(r.id[:]); err != nil {
		return nil, fmt.Errorf("run id: %w", err)
	}
	r.start = time.Now()
	shown := showProgress(p, func() string {
		return fmt.Sprintf("%d acknowledged, %d received, p99 %.1f ms", r.acked.Load(), r.received.Load(), ms(r.arrivals.quantile(0.99)))
	})
	defer shown.end()
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	sent := make(chan struct{})
	readErr := make(chan error, 1)
	go func() { readErr <- r.read(reading, consumer, sent) }()
	err = r.write(ctx, producer)
	close(sent)
	tail := time.AfterFunc(latencyTail, stopReading)
	defer tail.Stop()
	if err != nil {
		stopReading()
	}
	if e := <-readErr; err == nil {
		err = e
	}
	stopReading()
	return r.result(), err
}

// inZone says to agents in which zone a client is ("": it does not say).
func inZone(zone string) kgo.Opt {
	if zone == "" {
		return kgo.ClientID(clientID)
	}
	return kgo.ClientID(clientID + ",zone=" + zone)
}

// write sends records at the rate and waits for their answers.
func (r *latencyRun) write(ctx context.Context, c *kgo.Client) error {
	sending, cancel := context.WithTimeout(ctx, r.flags.duration)
	defer cancel()
	values := payloads(r.flags.recordBytes, r.flags.random)
	for n := int64(0); ; n++ {
		due := pace(r.start, n, r.flags.rate)
		if !sleepUntil(sending, due) {
			break
		}
		value := append([]byte{}, values[int(n)%len(values)]...)
		copy(value, r.id[:])
		binary.BigEndian.PutUint64(value[latencyRunBytes:], uint64(due.Sub(r.start)))
		c.Produce(context.WithoutCancel(ctx), &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				r.failed.note(err)
				return
			}
			r.acks.add(time.Since(due))
			r.acked.Add(1)
		})
	}
	drain, cancelDrain := context.WithTimeout(context.WithoutCancel(ctx), benchDrainTimeout)
	defer cancelDrain()
	if err := c.Flush(drain); err != nil {
		return fmt.Errorf("%d records without an answer %v after the end: %w", c.BufferedProduceRecords(), benchDrainTimeout, err)
	}
	return nil
}

// latencyPoll is how often the reader looks whether everything has arrived when nothing does.
const latencyPoll = 100 * time.Millisecond

// read takes the run's records until all that were acknowledged have arrived or ctx ends.
func (r *latencyRun) read(ctx context.Context, c *kgo.Client, sent <-chan struct{}) error {
	for {
		if isClosed(sent) && (r.received.Load() >= r.acked.Load() || ctx.Err() != nil) {
			return nil
		}
		poll, cancel := context.WithTimeout(ctx, latencyPoll)
		fetches := c.PollFetches(poll)
		ended := poll.Err() != nil
		cancel()
		if ended && ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil && !ended {
			return fmt.Errorf("consume: %w", err)
		}
		now := time.Since(r.start)
		fetches.EachRecord(func(x *kgo.Record) {
			if len(x.Value) < latencyHeaderBytes || [latencyRunBytes]byte(x.Value) != r.id {
				return
			}
			due := time.Duration(binary.BigEndian.Uint64(x.Value[latencyRunBytes:]))
			r.arrivals.add(now - due)
			r.received.Add(1)
		})
	}
}

func (r *latencyRun) result() *latencyResult {
	failed, first := r.failed.get()
	out := &latencyResult{
		Produce: r.acks.summary(), EndToEnd: r.arrivals.summary(),
		Records: r.acked.Load(), Received: r.received.Load(), Errors: int64(failed),
	}
	if first != nil {
		out.FirstError = first.Error()
	}
	return out
}

func (h *histogram) summary() latencies {
	return latencies{P50: ms(h.quantile(0.50)), P99: ms(h.quantile(0.99)), Max: ms(h.largest())}
}
