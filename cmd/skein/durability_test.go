package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/internal/testenv"
)

// writer produces numbered records until it is stopped, and remembers which were acknowledged at which offset.
type writer struct {
	client *kgo.Client
	mu     sync.Mutex
	acked  map[string]int64
	failed error         // the last one
	enough chan struct{} // closed when wanted records were acknowledged
	wanted int
	cancel context.CancelFunc
	done   chan struct{}
}

// writerOutstanding bounds the records of a writer that are not answered.
const writerOutstanding = 1000

// writerBatchBytes makes many batches of them, so that some are always under way.
const writerBatchBytes = 2 << 10

func startWriter(t *testing.T, topic string, wanted int, addresses ...string) *writer {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addresses...), kgo.DefaultProduceTopic(topic), kgo.AllowAutoTopicCreation(),
		kgo.ProducerLinger(0), kgo.MaxBufferedRecords(writerOutstanding), kgo.ProducerBatchMaxBytes(writerBatchBytes))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &writer{
		client: client, acked: map[string]int64{}, enough: make(chan struct{}), wanted: wanted, cancel: cancel, done: make(chan struct{}),
	}
	go func() {
		defer close(w.done)
		for n := 0; ctx.Err() == nil; n++ {
			w.client.Produce(ctx, kgo.StringRecord(fmt.Sprintf("record-%d", n)), w.note)
		}
	}()
	t.Cleanup(w.stop)
	return w
}

func (w *writer) note(r *kgo.Record, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.failed = err
		return // never acknowledged: it may be there or not
	}
	if w.acked[string(r.Value)] = r.Offset; len(w.acked) == w.wanted {
		close(w.enough)
	}
}

// awaitEnough waits until as many as wanted were acknowledged.
func (w *writer) awaitEnough(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	enough := w.enough
	w.mu.Unlock()
	select {
	case <-enough:
	case <-time.After(commandTimeout):
		w.mu.Lock()
		defer w.mu.Unlock()
		t.Fatalf("%d records are acknowledged, want %d; last error: %v", len(w.acked), w.wanted, w.failed)
	}
}

// more raises what is wanted.
func (w *writer) more(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted, w.enough = len(w.acked)+n, make(chan struct{})
}

// stop ends the writer; nothing is acknowledged after it.
func (w *writer) stop() {
	w.cancel()
	<-w.done
	w.client.Close()
}

// check consumes the topic and compares: every acknowledged record is there once, at its offset, and no record twice.
func (w *writer) check(t *testing.T, s *server, topic string) {
	t.Helper()
	out := mustSkein(t, nil, s.flags("consume", topic, "--exit-at-end", "-f", `%s %o\n`)...)
	seen := map[string]int64{}
	for line := range strings.Lines(out) {
		var value string
		var offset int64
		if _, err := fmt.Sscan(line, &value, &offset); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if at, twice := seen[value]; twice {
			t.Errorf("%s is there twice, at %d and %d", value, at, offset)
		}
		seen[value] = offset
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.acked) < w.wanted {
		t.Errorf("%d records were acknowledged, want %d at least", len(w.acked), w.wanted)
	}
	lost := 0
	for value, offset := range w.acked {
		if at, ok := seen[value]; !ok || at != offset {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged records are not where they were acknowledged", lost, len(w.acked))
	}
	t.Logf("%d acknowledged, %d there", len(w.acked), len(seen))
}

// TestAcknowledgedSurvives ends the server in the middle of writing, in each way, and starts it again.
func TestAcknowledgedSurvives(t *testing.T) {
	for name, tt := range map[string]struct {
		signal os.Signal
		code   int
		args   []string
	}{
		"SIGKILL":            {syscall.SIGKILL, -1, nil},
		"SIGKILL, bucket":    {syscall.SIGKILL, -1, []string{"--inline-max-bytes=0"}},
		"SIGTERM":            {syscall.SIGTERM, exitOK, nil},
		"SIGTERM, bucket":    {syscall.SIGTERM, exitOK, []string{"--inline-max-bytes=0"}},
		"SIGTERM, no linger": {syscall.SIGTERM, exitOK, []string{"--linger=0"}},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			s := dev(t, data, tt.args...)
			w := startWriter(t, "load", 3000, s.kafka)
			w.awaitEnough(t)
			if code := s.end(t, tt.signal); code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			w.stop()
			w.check(t, dev(t, data), "load")
		})
	}
}

// TestWriterOutlivesAnAgent kills the agent that an idempotent producer writes to; it goes on at the other one, with
// nothing lost and nothing twice.
func TestWriterOutlivesAnAgent(t *testing.T) {
	for name, args := range map[string][]string{"inline": nil, "bucket": {"--inline-max-bytes=0", "--put-budget=0"}} {
		t.Run(name, func(t *testing.T) {
			database, store := testenv.PostgresDatabase(t), testenv.MinIO(t)
			bucket := store.S3URL(store.BucketName())
			first := agentOn(t, store.Env(), database, bucket, append(args, "--create-bucket")...)
			second := agentOn(t, store.Env(), database, bucket, args...)
			w := startWriter(t, "load", 1000, first.kafka)
			w.awaitEnough(t)
			if err := w.client.UpdateSeedBrokers(first.kafka, second.kafka); err != nil {
				t.Fatal(err)
			}
			w.more(3000)
			if code := first.end(t, syscall.SIGKILL); code != -1 {
				t.Errorf("SIGKILL: exit %d", code)
			}
			w.awaitEnough(t)
			w.stop()
			w.check(t, second, "load")
		})
	}
}
