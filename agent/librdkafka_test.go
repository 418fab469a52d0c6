package agent

import (
	"bufio"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/objstore"
)

// What the writers through failing PUTs do.
const (
	// writeInterval is how often each writes a record.
	writeInterval = 2 * time.Millisecond
	// writerTimeout is the timeout of their requests: short, so that waiters give up in the middle of an outage.
	writerTimeout = time.Second
	// outages is how many there are, and outageFailures how many failures each writer is told of in each.
	outages        = 3
	outageFailures = 2
	// between is how many records each writer gets acknowledged between two outages.
	between = 100
)

// testWriter is a client that writes numbered records to the one partition of a topic until it is stopped.
type testWriter interface {
	name() string
	acked() *tally
	// stop ends the writing and waits for all answers.
	stop(t *testing.T)
	// check compares what was answered with the log.
	check(t *testing.T, log []*kgo.Record)
}

// tally counts, and can be waited for.
type tally struct {
	mu     sync.Mutex
	n      int
	change chan struct{} // closed and replaced when n has grown
}

func newTally() *tally { return &tally{change: make(chan struct{})} }

func (a *tally) add() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	close(a.change)
	a.change = make(chan struct{})
}

func (a *tally) get() (n int, change <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n, a.change
}

// awaitMore waits until n more were counted.
func (a *tally) awaitMore(ctx context.Context, t *testing.T, what string, n int) {
	t.Helper()
	want, _ := a.get()
	want += n
	for {
		n, change := a.get()
		if n >= want {
			return
		}
		select {
		case <-change:
		case <-ctx.Done():
			t.Errorf("%s: %d, want %d", what, n, want)
			return
		}
	}
}

// awaitAll is awaitMore for several at once.
func awaitAll(ctx context.Context, t *testing.T, tallies map[string]*tally, n int) {
	t.Helper()
	var all sync.WaitGroup
	for what, a := range tallies {
		all.Go(func() { a.awaitMore(ctx, t, what, n) })
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// value is the n-th record of a writer.
func value(topic, writer string, n int) string { return fmt.Sprintf("%s/%s/%d", topic, writer, n) }

// numberOf is n of a value of that writer; false for another's.
func numberOf(topic, writer string, r *kgo.Record) (int, bool) {
	rest, ok := strings.CutPrefix(string(r.Value), topic+"/"+writer+"/")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(rest)
	return n, err == nil
}

// breakPuts makes all PUTs fail with that kind until mend is called; of about half of them the object is stored.
func breakPuts(faults *objstore.Faults, kind error) (mend func()) {
	half := func(key string) bool { return crc32.ChecksumIEEE([]byte(key))%2 == 0 }
	after := faults.Inject(objstore.Fault{Op: objstore.OpPut, Match: half, After: kind})
	before := faults.Inject(objstore.Fault{Op: objstore.OpPut, Before: kind})
	return func() { after(); before() }
}

// TestLibrdkafkaThroughFailingPuts: librdkafka and franz-go, idempotent and not, all of them new, write to one new partition
// while the bucket fails in bursts, from the very first PUT on; half of the PUTs that fail have stored the object. Every
// waiter is told the truth about its own batch, nothing acknowledged is lost, nothing idempotent is there twice, and nothing
// else more often than its client sent it.
func TestLibrdkafkaThroughFailingPuts(t *testing.T) {
	// With 512 bytes small flushes still are inline, and share chains with larger ones that are stuck.
	for name, inline := range map[string]int64{"bucket": 0, "inline": 512} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			throughFailingPuts(t, inline)
		})
	}
}

func throughFailingPuts(t *testing.T, inline int64) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*testTimeout)
	defer cancel()
	reg := prometheus.NewRegistry()
	var seen *witness
	ts, faults := newTunedServer(t, func(o *batcher.Options) {
		o.Config.InlineMaxBytes, o.Registerer = inline, reg
	}, func(_ *Config, d *Deps) {
		seen = newWitness(d.Producer)
		d.Producer = seen
	})
	mend := breakPuts(faults, objstore.ErrUnavailable)
	const topic = "new"
	writers := []testWriter{
		startKcat(t, ts.addr, topic, "kcat-idempotent", "enable.idempotence=true"),
		startKcat(t, ts.addr, topic, "kcat-plain", "enable.idempotence=false", "message.send.max.retries=1000000"),
		startFranz(ts, topic, "franz-idempotent"),
		startFranz(ts, topic, "franz-plain", kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck())),
	}
	failed, acked := map[string]*tally{}, map[string]*tally{}
	for _, w := range writers {
		failed["failures of "+w.name()], acked["acknowledged of "+w.name()] = seen.failures(w.name()), w.acked()
	}
	for i := range outages {
		awaitAll(ctx, t, failed, outageFailures)
		mend()
		awaitAll(ctx, t, acked, between)
		if i < outages-1 {
			mend = breakPuts(faults, []error{objstore.ErrAccess, objstore.ErrFull}[i])
		}
	}
	var all sync.WaitGroup
	for _, w := range writers {
		all.Go(func() { w.stop(t) })
	}
	all.Wait()
	log := readAll(t, ts, topic)
	seen.check(t, topic, log)
	for _, w := range writers {
		w.check(t, log)
	}
	if inline > 0 {
		wantKinds(t, reg)
	}
}

// readAll gives the records of a topic's one partition, whose offsets have no gap.
func readAll(t *testing.T, ts *testServer, topic string) []*kgo.Record {
	t.Helper()
	ends, err := kadm.NewClient(ts.client()).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	end, ok := ends.Lookup(topic, 0)
	if !ok || end.Err != nil || len(ends[topic]) != 1 {
		t.Fatalf("end offsets of %s: %+v", topic, ends)
	}
	reader := ts.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	log := consume(t, reader, int(end.Offset))[0]
	for i, r := range log {
		if r.Offset != int64(i) {
			t.Fatalf("record %d has offset %d", i, r.Offset)
		}
	}
	return log
}

// wantKinds wants flushes of both kinds.
func wantKinds(t *testing.T, reg *prometheus.Registry) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	flushes := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "skein_flushes_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "kind" {
					flushes[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	if flushes["inline"] == 0 || flushes["put"] == 0 {
		t.Errorf("flushes by kind: %v, want both", flushes)
	}
}

// franzWriter is a testWriter of franz-go.
type franzWriter struct {
	topic, writer string
	idempotent    bool
	client        *kgo.Client
	cancel        context.CancelFunc
	done          chan struct{}
	count         *tally

	mu      sync.Mutex
	sent    int
	offsets map[int]int64 // acknowledged, by number
	failed  []error
}

func startFranz(ts *testServer, topic, writer string, options ...kgo.Opt) *franzWriter {
	w := &franzWriter{
		topic: topic, writer: writer, idempotent: len(options) == 0, done: make(chan struct{}), count: newTally(),
		offsets: map[int]int64{},
	}
	w.client = ts.client(append([]kgo.Opt{
		kgo.DefaultProduceTopic(topic), kgo.AllowAutoTopicCreation(), kgo.ProducerLinger(0), kgo.ProduceRequestTimeout(writerTimeout),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		// It asks for metadata before it tries again.
		kgo.MetadataMinAge(50 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
	}, options...)...)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() {
		defer close(w.done)
		w.sent = paced(ctx, func(n int) error {
			w.client.Produce(context.Background(), kgo.StringRecord(value(topic, writer, n)), func(r *kgo.Record, err error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if err != nil {
					w.failed = append(w.failed, err)
					return
				}
				w.offsets[n] = r.Offset
				w.count.add()
			})
			return nil
		})
	}()
	ts.t.Cleanup(cancel)
	return w
}

// paced calls fn with 0, 1, 2 … at writeInterval until ctx ends or fn fails, and gives how many calls succeeded.
func paced(ctx context.Context, fn func(n int) error) int {
	tick := time.NewTicker(writeInterval)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return n
		case <-tick.C:
		}
		if fn(n) != nil {
			return n
		}
	}
}

func (w *franzWriter) name() string  { return w.writer }
func (w *franzWriter) acked() *tally { return w.count }

func (w *franzWriter) stop(t *testing.T) {
	w.cancel()
	<-w.done
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := w.client.Flush(ctx); err != nil {
		t.Errorf("%s: %v", w.writer, err)
	}
}

func (w *franzWriter) check(t *testing.T, log []*kgo.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failed) > 0 || len(w.offsets) != w.sent {
		t.Errorf("%s: %d of %d acknowledged, %d failed: %v", w.writer, len(w.offsets), w.sent, len(w.failed), w.failed)
	}
	for n, offset := range w.offsets {
		if offset < 0 || offset >= int64(len(log)) || string(log[offset].Value) != value(w.topic, w.writer, n) {
			t.Errorf("%s: record %d is not at offset %d", w.writer, n, offset)
		}
	}
	if w.idempotent {
		checkOnceInOrder(t, w.topic, w.writer, w.sent, log)
	}
}

// checkOnceInOrder wants all of a writer's records once and in order.
func checkOnceInOrder(t *testing.T, topic, writer string, sent int, log []*kgo.Record) {
	t.Helper()
	next := 0
	for _, r := range log {
		if n, ok := numberOf(topic, writer, r); ok {
			if n != next {
				t.Errorf("%s: record %d is at offset %d, want %d there", writer, n, r.Offset, next)
			}
			next = n + 1
		}
	}
	if next != sent {
		t.Errorf("%s: %d records are there, %d were sent", writer, next, sent)
	}
}

// kcatWriter is a testWriter of librdkafka, through kcat: it writes a line for each record and is told the offset of each.
type kcatWriter struct {
	topic, writer string
	idempotent    bool
	cmd           *exec.Cmd
	stdin         io.WriteCloser
	cancel        context.CancelFunc
	fed, read     chan struct{} // closed when all lines were fed, and when all that kcat says was read
	count         *tally
	sent          int

	mu      sync.Mutex
	offsets []int64
	said    []string // what else it said
}

// deliveredLine is what kcat says of each record.
var deliveredLine = regexp.MustCompile(`^% Message delivered to partition 0 \(offset (\d+)\)`)

func startKcat(t *testing.T, addr, topic, writer string, settings ...string) *kcatWriter {
	t.Helper()
	args := []string{"-P", "-b", addr, "-t", topic, "-p", "0", "-v", "-v", "-v"}
	settings = append([]string{
		"topic.request.timeout.ms=" + strconv.FormatInt(writerTimeout.Milliseconds(), 10), "retry.backoff.ms=50", "linger.ms=1",
		"message.timeout.ms=" + strconv.FormatInt((2*testTimeout).Milliseconds(), 10),
	}, settings...)
	for _, x := range settings {
		args = append(args, "-X", x)
	}
	w := &kcatWriter{
		topic: topic, writer: writer, idempotent: slices.Contains(settings, "enable.idempotence=true"),
		cmd: exec.Command(testenv.Kcat(t), args...), fed: make(chan struct{}), read: make(chan struct{}), count: newTally(),
	}
	var err error
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stderr, err := w.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // it may have ended
	})
	go w.listen(stderr)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	t.Cleanup(cancel)
	go func() {
		defer close(w.fed)
		w.sent = paced(ctx, func(n int) error {
			_, err := fmt.Fprintln(w.stdin, value(topic, writer, n))
			return err
		})
	}()
	return w
}

// listen reads what kcat says.
func (w *kcatWriter) listen(stderr io.Reader) {
	defer close(w.read)
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		m := deliveredLine.FindStringSubmatch(lines.Text())
		w.mu.Lock()
		if m == nil {
			w.said = append(w.said, lines.Text())
		} else if offset, err := strconv.ParseInt(m[1], 10, 64); err == nil {
			w.offsets = append(w.offsets, offset)
		}
		w.mu.Unlock()
		if m != nil {
			w.count.add()
		}
	}
}

func (w *kcatWriter) name() string  { return w.writer }
func (w *kcatWriter) acked() *tally { return w.count }

// stop lets kcat send the rest and end.
func (w *kcatWriter) stop(t *testing.T) {
	w.cancel()
	<-w.fed
	if err := w.stdin.Close(); err != nil {
		t.Errorf("%s: %v", w.writer, err)
	}
	<-w.read
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("%s: %v; it said:\n%s", w.writer, err, strings.Join(w.said, "\n"))
	}
}

func (w *kcatWriter) check(t *testing.T, log []*kgo.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.offsets) != w.sent {
		t.Errorf("%s: %d of %d delivered; it said:\n%s", w.writer, len(w.offsets), w.sent, strings.Join(w.said, "\n"))
	}
	told, values := map[int64]bool{}, map[int]bool{}
	for _, offset := range w.offsets {
		if told[offset] || offset < 0 || offset >= int64(len(log)) {
			t.Errorf("%s: told of offset %d twice, or it is beyond the end", w.writer, offset)
			continue
		}
		told[offset] = true
		n, ok := numberOf(w.topic, w.writer, log[offset])
		if !ok || values[n] {
			t.Errorf("%s: offset %d holds %s, which is another's or was delivered before", w.writer, offset, log[offset].Value)
		}
		values[n] = true
	}
	if w.idempotent {
		checkOnceInOrder(t, w.topic, w.writer, w.sent, log)
	}
}
