package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
)

func newBench(p *process) *cobra.Command {
	return parent("bench", "Measure agents and databases",
		newBenchProduce(p), newBenchConsume(p), newBenchReplay(p), newBenchLatency(p), newBenchCommit(p), newBenchGroups(p))
}

// Bounds of the benchmarks.
const (
	mib = 1 << 20
	// benchDrainTimeout is how long what was sent may take to be answered after the duration.
	benchDrainTimeout = 2 * time.Minute
	// payloadPool is how many bytes of payloads are made before a run; records take them in turn.
	payloadPool = 16 * mib
	// benchBuffer is what one producer buffers, in bytes: as much as the Java client by default.
	benchBuffer = 32 * mib
	// benchBuffered is what one producer buffers, in records.
	benchBuffered = 1 << 20
)

// ensureTopic creates the topic when it is missing. An existing one is taken as it is. It has a client of its own, as a
// client remembers for a while that there was no topic.
func ensureTopic(ctx context.Context, cmd *cobra.Command, topic string, partitions int32) error {
	admin, ctx, done, err := connectAdmin(ctx, cmd)
	if err != nil {
		return err
	}
	defer done()
	topics, err := admin.ListTopics(ctx, topic)
	if err != nil {
		return fmt.Errorf("look for topic %q: %w", topic, stopCause(ctx, err))
	}
	if topics.Has(topic) {
		return nil
	}
	r, err := admin.CreateTopic(ctx, partitions, -1, nil, topic)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return withMessage(fmt.Errorf("create topic %q: %w", topic, stopCause(ctx, err)), r.ErrMessage)
	}
	return nil
}

// payloads makes values of size bytes, at most payloadPool bytes in all and at least one: random bytes, or lines like a
// log's, which compress.
func payloads(size int, random bool) [][]byte {
	count := max(1, min(payloadPool/max(size, 1), 4096))
	source := rand.NewChaCha8([32]byte([]byte("skein bench: the same every time")))
	out := make([][]byte, count)
	for i := range out {
		value := make([]byte, 0, size)
		for len(value) < size {
			if random {
				value = value[:size]
				_, _ = source.Read(value) // it never fails
				break
			}
			value = fmt.Appendf(value, `{"time":"2026-01-01T00:00:%02dZ","level":"info","user":%d,"path":"/api/v1/items/%d","took_us":%d}`,
				i%60, source.Uint64()%100_000, source.Uint64()%1_000_000, source.Uint64()%10_000)
		}
		out[i] = value[:size]
	}
	return out
}

// progress prints a line on a terminal every second until it is stopped.
type progress struct {
	stop chan struct{}
	done chan struct{}
}

// showProgress starts it; on anything but a terminal it shows nothing.
func showProgress(p *process, line func() string) *progress {
	s := &progress{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		if !p.stderrTTY {
			<-s.stop
			return
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				fmt.Fprint(p.stderr, "\r\x1b[K")
				return
			case <-tick.C:
				fmt.Fprintf(p.stderr, "\r\x1b[K%s", line())
			}
		}
	}()
	return s
}

func (s *progress) end() {
	close(s.stop)
	<-s.done
}

// round keeps two decimals: more would be noise in the output.
func round(x float64) float64 { return float64(int64(x*100+0.5)) / 100 }

// ms gives d in milliseconds.
func ms(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

// pace gives the i-th record's due time at rate records per second.
func pace(start time.Time, i int64, rate float64) time.Time {
	return start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
}

// sleepUntil waits until t; false when ctx ended first.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// errNothing says that a run had nothing to measure.
var errNothing = errors.New("nothing to measure")
