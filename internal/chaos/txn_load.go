package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
)

const (
	// txnTimeout is the writers' transaction timeout: what one leaves open is aborted that much later.
	txnTimeout = 15 * time.Second
	// txnPatience bounds one transaction of a writer, above any fault.
	txnPatience = 90 * time.Second
	// widePartitions are those of the second topic, more than one block of the database holds.
	widePartitions = 70
	maxTxnRecords  = 24
)

// txnLoad is transactional writers, and sessions that copy what they commit, exactly once.
type txnLoad struct {
	o      *options
	topics []string // narrow, wide
	copies string   // what the sessions write to
	l      *ledger
	txns   *txnLedger
	stop   context.CancelFunc // of the writers
	end    context.CancelFunc // of the sessions
	work   sync.WaitGroup
	etl    sync.WaitGroup
}

func (w *txnLoad) seeds() kgo.Opt { return kgo.SeedBrokers(strings.Split(w.o.bootstrap, ",")...) }

func (w *txnLoad) createTopics(ctx context.Context) error {
	cl, err := kgo.NewClient(w.seeds())
	if err != nil {
		return err
	}
	defer cl.Close()
	for topic, partitions := range map[string]int{
		w.topics[0]: w.o.partitions, w.topics[1]: widePartitions, w.copies: w.o.partitions,
	} {
		if _, err := kadm.NewClient(cl).CreateTopic(ctx, int32(partitions), 1, nil, topic); err != nil {
			return fmt.Errorf("create topic %s: %w", topic, err)
		}
	}
	return nil
}

// start starts the writers, every second one with the original protocol, and two sessions.
func (w *txnLoad) start(ctx context.Context) {
	var writing, copying context.Context
	copying, w.end = context.WithCancel(ctx)
	writing, w.stop = context.WithCancel(ctx)
	for n := range w.o.producers {
		w.work.Go(func() {
			x := txnWriter{load: w, name: fmt.Sprintf("writer-%d", n+1), original: n%2 == 1, random: rand.New(rand.NewPCG(w.o.seed, uint64(n)))}
			for x.life = 0; writing.Err() == nil; x.life++ {
				x.live(writing)
			}
		})
	}
	for n := range 2 {
		w.etl.Go(func() {
			for life := 0; copying.Err() == nil; life++ {
				if err := w.copy(copying, n); err != nil && copying.Err() == nil {
					fmt.Fprintf(os.Stderr, "chaos: session %d begins again: %v\n", n+1, err)
				}
			}
		})
	}
}

// txnWriter writes transactions to random partitions, aborts some, and comes to an end in random ways.
type txnWriter struct {
	load     *txnLoad
	name     string
	original bool // the protocol
	random   *rand.Rand
	life, n  int
}

func (x *txnWriter) client(id string) (*kgo.Client, error) {
	versions := kversion.Stable()
	if x.original {
		versions = kversion.V3_6_0()
	}
	return kgo.NewClient(x.load.seeds(), kgo.TransactionalID(id), kgo.TransactionTimeout(txnTimeout), kgo.MaxVersions(versions),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.ClientID("zone=zone-a,"+x.name))
}

// live is one client's life. Its transactional id is the same in every second life, so that most lives fence the one before
// and the others leave what was open to the sweeper.
func (x *txnWriter) live(ctx context.Context) {
	id := x.load.topics[0] + "-" + x.name
	if x.life%2 == 1 {
		id = fmt.Sprintf("%s-%d", id, x.life)
	}
	cl, err := x.client(id)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return
	}
	defer cl.Close()
	for ctx.Err() == nil {
		x.n++
		name := fmt.Sprintf("%s-%d", x.name, x.n)
		if !x.write(context.WithoutCancel(ctx), cl, id, name) {
			return
		}
	}
}

// write runs one transaction; false when the client is of no use any more.
func (x *txnWriter) write(ctx context.Context, cl *kgo.Client, id, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, txnPatience)
	defer cancel()
	w := x.load
	w.txns.note(name, fateAborted, 0)
	if err := cl.BeginTransaction(); err != nil {
		return false
	}
	size := 1 + x.random.IntN(maxTxnRecords)
	e := kgo.AbortingFirstErrPromise(cl)
	for i := range size {
		r := &kgo.Record{Topic: w.topics[0], Partition: int32(x.random.IntN(w.o.partitions)), Value: fmt.Appendf(nil, "%s/%d", name, i)}
		if i%2 == 1 {
			r.Topic, r.Partition = w.topics[1], int32(x.random.IntN(widePartitions))
		}
		cl.Produce(ctx, r, e.Promise())
	}
	if cl.Flush(ctx) != nil {
		return false
	}
	switch dice := x.random.IntN(100); {
	case dice < 3: // goes away
		return false
	case dice < 6: // another instance comes, and this one tries all the same
		if !x.fence(ctx, id) {
			return false
		}
		w.txns.note(name, fateUnknown, size)
		if cl.EndTransaction(ctx, kgo.TryCommit) == nil {
			w.txns.note(name, fateCommitted, size)
		}
		return false
	case dice < 33 || e.Err() != nil:
		return cl.EndTransaction(ctx, kgo.TryAbort) == nil
	}
	w.txns.note(name, fateUnknown, size)
	if cl.EndTransaction(ctx, kgo.TryCommit) != nil {
		return false
	}
	w.txns.note(name, fateCommitted, size)
	w.l.ack(x.name, name, position{})
	return true
}

// fence is another instance that begins, and commits nothing.
func (x *txnWriter) fence(ctx context.Context, id string) bool {
	cl, err := x.client(id)
	if err != nil {
		return false
	}
	defer cl.Close()
	_, _, err = cl.ProducerID(ctx)
	return err == nil
}

// copy is one life of a session: what is committed in the topics goes to the copies.
func (w *txnLoad) copy(ctx context.Context, n int) error {
	s, err := kgo.NewGroupTransactSession(w.seeds(), kgo.TransactionalID(fmt.Sprintf("%s-%d", w.copies, n)),
		kgo.TransactionTimeout(txnTimeout), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumerGroup(w.copies),
		kgo.ConsumeTopics(w.topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DefaultProduceTopic(w.copies), kgo.ClientID(fmt.Sprintf("zone=zone-b,session-%d", n)))
	if err != nil {
		return err
	}
	defer s.Close()
	random := rand.New(rand.NewPCG(w.o.seed, uint64(100+n)))
	for ctx.Err() == nil {
		fetches := s.PollRecords(ctx, 200)
		if ctx.Err() != nil {
			return nil
		}
		if err := s.Begin(); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		e := kgo.AbortingFirstErrPromise(s.Client())
		fetches.EachRecord(func(r *kgo.Record) {
			s.Produce(ctx, &kgo.Record{Key: r.Value, Value: r.Value}, e.Promise())
		})
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), txnPatience)
		_, err := s.End(end, kgo.TransactionEndTry(e.Err() == nil && random.IntN(5) > 0))
		cancel()
		if err != nil {
			return fmt.Errorf("end: %w", err)
		}
	}
	return nil
}
