package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// stopTimeout is how long producers may take for what they have begun.
	stopTimeout = 3 * time.Minute
	// catchUp is how long consumers may take to read to the end.
	catchUp = time.Minute
	// recheckReplica is how often the franz-go consumer asks the leader where to fetch. By default it stays with a dead agent of
	// its zone for half an hour.
	recheckReplica = 5 * time.Second
	// maxLine bounds a line of an external client, in bytes.
	maxLine = 1 << 20
)

// load is the clients at work.
type load struct {
	o         *options
	topic     string
	l         *ledger
	stop      context.CancelFunc // of the producers
	end       context.CancelFunc // of everything
	producers sync.WaitGroup
	consumers sync.WaitGroup
	readers   []string

	mu     sync.Mutex
	failed []error
}

func createTopic(ctx context.Context, o *options, topic string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(o.bootstrap, ",")...))
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = kadm.NewClient(cl).CreateTopic(ctx, int32(o.partitions), 1, nil, topic)
	if err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	return nil
}

// startLoad starts the producers and one consumer of each kind.
func startLoad(ctx context.Context, o *options, topic string, l *ledger) (*load, error) {
	all, end := context.WithCancel(ctx)
	producing, stop := context.WithCancel(all)
	w := &load{o: o, topic: topic, l: l, stop: stop, end: end}
	for _, kind := range strings.Split(o.clients, ",") {
		var err error
		switch kind {
		case "franz":
			for n := range o.producers {
				if err = w.franzProducer(producing, fmt.Sprintf("franz-%d", n+1)); err != nil {
					break
				}
			}
			err = errors.Join(err, w.franzConsumer(all, "franz-consumer"))
		case "java", "python":
			err = errors.Join(w.external(producing, kind, "produce", kind+"-1"), w.external(all, kind, "consume", kind+"-consumer"))
		case "kcat":
			err = errors.Join(w.kcatProducer(producing, "kcat-1"), w.kcatConsumer(all, "kcat-consumer"))
		default:
			err = fmt.Errorf("unknown client %q", kind)
		}
		if err != nil {
			w.kill()
			return nil, err
		}
	}
	return w, nil
}

// stopProducers lets the producers finish what they have begun.
func (w *load) stopProducers() error {
	w.stop()
	done := make(chan struct{})
	go func() { w.producers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopTimeout):
		return fmt.Errorf("producers did not finish within %s", stopTimeout)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.failed...)
}

// awaitConsumers waits until every consumer has read to the end.
func (w *load) awaitConsumers(ctx context.Context, ends map[int32]int64) {
	deadline := time.Now().Add(catchUp)
	for _, name := range w.readers {
		for w.l.behind(name, ends) > 0 && time.Now().Before(deadline) && rest(ctx, recoveryPoll) == nil {
		}
	}
}

// kill ends all clients.
func (w *load) kill() {
	w.end()
	w.producers.Wait()
	w.consumers.Wait()
}

func (w *load) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = append(w.failed, err)
}

// values makes the records of one producer: "name partition number", padded. The number counts within the partition.
type values struct {
	name string
	o    *options
	n    int
}

func (v *values) next() (partition int32, value string) {
	partition = int32(v.n % v.o.partitions)
	value = fmt.Sprintf("%s %d %d ", v.name, partition, v.n/v.o.partitions)
	v.n++
	return partition, value + strings.Repeat("x", max(0, v.o.bytes-len(value)))
}

// pace calls produce at the rate until ctx ends.
func (w *load) pace(ctx context.Context, produce func() error) error {
	const tick = 10 * time.Millisecond
	t := time.NewTicker(tick)
	defer t.Stop()
	began, sent := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		for due := int(time.Since(began).Seconds() * float64(w.o.rate)); sent < due && ctx.Err() == nil; sent++ {
			if err := produce(); err != nil {
				return err
			}
		}
	}
}

func (w *load) franzProducer(ctx context.Context, name string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(w.o.bootstrap, ",")...), kgo.DefaultProduceTopic(w.topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ClientID("zone=zone-a,"+name), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	w.producers.Go(func() {
		defer cl.Close()
		v := values{name: name, o: w.o}
		_ = w.pace(ctx, func() error { // it ends with ctx only
			p, value := v.next()
			cl.Produce(context.WithoutCancel(ctx), &kgo.Record{Partition: p, Value: []byte(value)}, func(r *kgo.Record, err error) {
				if err != nil {
					w.l.fail(name, err.Error())
					return
				}
				w.l.ack(name, value, position{r.Partition, r.Offset})
			})
			return nil
		})
		if err := cl.Flush(context.WithoutCancel(ctx)); err != nil {
			w.fail(err)
		}
	})
	return nil
}

func (w *load) assignments() map[string]map[int32]kgo.Offset {
	m := map[int32]kgo.Offset{}
	for p := range int32(w.o.partitions) {
		m[p] = kgo.NewOffset().AtStart()
	}
	return map[string]map[int32]kgo.Offset{w.topic: m}
}

func (w *load) franzConsumer(ctx context.Context, name string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(w.o.bootstrap, ",")...), kgo.ConsumePartitions(w.assignments()),
		kgo.ClientID(name), kgo.Rack("zone-b"), kgo.RecheckPreferredReplicaInterval(recheckReplica))
	if err != nil {
		return err
	}
	w.readers = append(w.readers, name)
	w.consumers.Go(func() {
		defer cl.Close()
		for ctx.Err() == nil {
			cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { w.l.read(name, position{r.Partition, r.Offset}) })
		}
	})
	return nil
}

// external runs a client of testdata/chaos, which tells on stdout what it did: "A value" + TAB + partition + TAB + offset
// for an acknowledgement, "E error" for a record given up, "R" + partition + TAB + offset for a record read. SIGTERM lets a producer finish.
func (w *load) external(ctx context.Context, kind, role, name string) error {
	args := []string{role, w.o.bootstrap, w.topic, strconv.Itoa(w.o.partitions), name, strconv.Itoa(w.o.rate), strconv.Itoa(w.o.bytes)}
	cmd := exec.Command("testdata/chaos/java.sh", args...)
	if kind == "python" {
		cmd = exec.Command(w.o.python, append([]string{"testdata/chaos/load.py"}, args...)...)
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // it may have ended
	group := &w.producers
	if role == "consume" {
		group = &w.consumers
		w.readers = append(w.readers, name)
	}
	group.Go(func() {
		defer close(done)
		defer stop()
		w.lines(name, out)
		if err := cmd.Wait(); err != nil && role == "produce" {
			w.fail(fmt.Errorf("%s: %w", name, err))
		}
	})
	return nil
}

// lines reads what an external client tells.
func (w *load) lines(name string, out io.Reader) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		kind, rest, _ := strings.Cut(in.Text(), " ")
		f := strings.Split(rest, "\t")
		switch {
		case kind == "E":
			w.l.fail(name, rest)
		case kind == "A" && len(f) == 3:
			w.l.ack(name, f[0], parsePosition(f[1], f[2]))
		case kind == "R" && len(f) == 2:
			w.l.read(name, parsePosition(f[0], f[1]))
		default:
			w.fail(fmt.Errorf("%s says %q", name, in.Text()))
		}
	}
}

func parsePosition(partition, offset string) position {
	p, perr := strconv.ParseInt(partition, 10, 32)
	o, oerr := strconv.ParseInt(offset, 10, 64)
	if err := errors.Join(perr, oerr); err != nil {
		return position{-1, -2}
	}
	return position{int32(p), o}
}

// kcatProducer feeds kcat (often an old librdkafka), which ends with an error when a record was not delivered; -E lets it
// outlive that its only broker goes away. It writes to
// the last partition, and counts as acknowledged when it ends.
func (w *load) kcatProducer(ctx context.Context, name string) error {
	last := w.o.partitions - 1
	cmd := exec.Command("kcat", "-E", "-b", w.o.bootstrap, "-P", "-t", w.topic, "-p", strconv.Itoa(last), "-X", "enable.idempotence=true",
		"-X", "client.id="+name)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.producers.Go(func() {
		var sent []string
		err := w.pace(ctx, func() error {
			value := fmt.Sprintf("%s %d %d ", name, last, len(sent))
			value += strings.Repeat("x", max(0, w.o.bytes-len(value)))
			_, err := io.WriteString(stdin, value+"\n")
			sent = append(sent, value)
			return err
		})
		if err = errors.Join(err, stdin.Close(), cmd.Wait()); err != nil {
			w.fail(fmt.Errorf("%s: %w", name, err))
			return
		}
		for _, value := range slices.Clip(sent) {
			w.l.ack(name, value, position{int32(last), -1})
		}
	})
	return nil
}

// kcatConsumer reads with kcat.
func (w *load) kcatConsumer(ctx context.Context, name string) error {
	cmd := exec.CommandContext(ctx, "kcat", "-E", "-b", w.o.bootstrap, "-C", "-t", w.topic, "-o", "beginning", "-q", "-u",
		"-f", "R %p\t%o\n", "-X", "client.id="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.readers = append(w.readers, name)
	w.consumers.Go(func() {
		w.lines(name, out)
		_ = cmd.Wait() // it is killed
	})
	return nil
}
