package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/open"
)

// txnAgent is an agent with all its parts, behind a proxy of its own that loses connections to the database at COMMIT.
type txnAgent struct {
	*testServer
	proxy *testenv.PostgresProxy
	stop  context.CancelFunc
}

// cutEvery: one of so many commits loses its connection before the server gets it, and one after it committed.
const cutEvery = 12

// startTxnAgent starts an agent on a database and a bucket. With inline 0 every flush is an object.
func startTxnAgent(t *testing.T, database string, bucket objstore.Bucket, inline int64) *txnAgent {
	t.Helper()
	proxy, through := testenv.NewPostgresProxy(t, database)
	driver, err := postgres.Open(t.Context(), through, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { driver.Close() }) // its connections may be cut
	a := &txnAgent{proxy: proxy}
	a.testServer, a.stop = startWhole(t, driver, bucket, inline, func(b *batcher.Batcher) Submitter { return b })
	return a
}

// hurt lets connections to the database be lost at COMMIT.
func (a *txnAgent) hurt() {
	lose := func(match func(testenv.PostgresMessage) bool) func(testenv.PostgresMessage) testenv.PostgresVerdict {
		return func(m testenv.PostgresMessage) testenv.PostgresVerdict {
			return testenv.PostgresVerdict{Cut: match(m) && rand.IntN(cutEvery) == 0}
		}
	}
	a.proxy.Rules(
		lose(func(m testenv.PostgresMessage) bool {
			return m.Bound() == "skein_commit" || m.Kind == 'Q' && strings.HasPrefix(string(m.Body), "commit")
		}),
		lose(func(m testenv.PostgresMessage) bool {
			return m.Kind == 'C' && strings.HasPrefix(string(m.Body), "COMMIT")
		}))
}

// kill ends an agent as kill -9 does, as far as others can see: what it had begun in the database goes no further, and its
// clients' connections end.
func (a *txnAgent) kill() {
	dead := func(testenv.PostgresMessage) testenv.PostgresVerdict { return testenv.PostgresVerdict{Cut: true} }
	a.proxy.Rules(dead, dead)
	a.proxy.CutAll()
	a.testServer.stop()
	a.stop()
}

// txnFate is what a writer knows of one of its transactions.
type txnFate int

const (
	mayBe txnFate = iota // its end was not answered, or its producer was fenced
	committed
	aborted
)

// txnLedger is what writers know.
type txnLedger struct {
	mu       sync.Mutex
	outcomes map[string]txnFate
	sizes    map[string]int // records, over all partitions
}

func (l *txnLedger) note(txn string, o txnFate, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outcomes[txn], l.sizes[txn] = o, size
}

// killInterval is between two kills, of which there are at most maxKills.
const (
	killInterval = 500 * time.Millisecond
	maxKills     = 8
)

// TestTxnRandom: transactional writers of both protocols at three agents on one Postgres and one MinIO; connections to the
// database are lost at COMMIT, before and after it; agents are killed and replaced. A read_committed reader sees every
// committed transaction whole and once, nothing of the aborted ones, and of those whose end is not known all or nothing.
func TestTxnRandom(t *testing.T) {
	const agents, writers, partitions = 3, 6, 70 // of more than one block
	lives, transactions := 4, 8
	if testing.Short() {
		lives = 2
	}
	database := testenv.PostgresDatabase(t)
	bucket := minioBucket(t)
	var mu sync.Mutex
	running := make([]*txnAgent, agents)
	start := func(i int) {
		inline := int64(64 << 10)
		if i == 0 {
			inline = 0
		}
		a := startTxnAgent(t, database, bucket, inline)
		a.hurt()
		mu.Lock()
		defer mu.Unlock()
		running[i] = a
	}
	for i := range running {
		start(i)
	}
	last := startTxnAgent(t, database, bucket, 0) // nothing happens to it
	last.createTopic("t", partitions, nil)
	ledger := &txnLedger{outcomes: map[string]txnFate{}, sizes: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), 4*testTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(21, uint64(w)))
			for life := range lives {
				mu.Lock()
				addr := running[random.IntN(agents)].addr
				mu.Unlock()
				writeTxns(ctx, t, addr, fmt.Sprintf("w%d-%d", w, life), w, transactions, partitions, random, ledger)
			}
		})
	}
	killer, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(killer)
		for i := range maxKills {
			select {
			case <-time.After(killInterval):
			case <-done:
				return
			}
			mu.Lock()
			victim := running[i%agents]
			mu.Unlock()
			victim.kill()
			start(i % agents)
		}
	}()
	wg.Wait()
	close(done)
	<-killer
	// What writers left open when they went away.
	for w := range writers {
		c := last.client(kgo.TransactionalID(fmt.Sprintf("writer-%d", w)), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		produceTxn(t, c, kgo.TryCommit, fmt.Sprintf("last-%d/0", w))
		ledger.note(fmt.Sprintf("last-%d", w), committed, 1)
	}
	verifyTxns(t, last.testServer, ledger)
}

// minioBucket makes a bucket of MinIO's.
func minioBucket(t *testing.T) objstore.Bucket {
	t.Helper()
	server := testenv.NewMinIO(t)
	bucket, err := open.Open(t.Context(), server.S3URL(server.BucketName()), open.Options{AccessKey: server.AccessKey, SecretKey: server.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bucket.Close(); err != nil {
			t.Errorf("close bucket: %v", err)
		}
	})
	if err := bucket.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	return objstore.RetryReads(bucket, objstore.DefaultRetryPolicy())
}

// writeTxns is one life of a writer.
func writeTxns(
	ctx context.Context, t *testing.T, addr, name string, writer, transactions, partitions int, random *rand.Rand, l *txnLedger,
) {
	versions := txnClients["original"]
	if writer%2 == 0 {
		versions = txnClients["KIP-890"]
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.TransactionalID(fmt.Sprintf("writer-%d", writer)), kgo.MaxVersions(versions),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.RetryTimeout(2*time.Second),
		kgo.ProduceRequestTimeout(2*time.Second), kgo.RecordDeliveryTimeout(2*time.Second))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	for n := range transactions {
		if !writeTxn(ctx, t, c, fmt.Sprintf("%s-%d", name, n), partitions, random, l) {
			return
		}
	}
}

// writeTxn runs one transaction; false when the client is of no use any more.
func writeTxn(ctx context.Context, t *testing.T, c *kgo.Client, txn string, partitions int, random *rand.Rand, l *txnLedger) bool {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	l.note(txn, aborted, 0) // as long as no commit was tried
	if err := c.BeginTransaction(); err != nil {
		return false
	}
	size := 1 + random.IntN(12)
	e := kgo.AbortingFirstErrPromise(c)
	for i := range size {
		c.Produce(ctx, &kgo.Record{Topic: "t", Partition: int32(random.IntN(partitions)), Value: fmt.Appendf(nil, "%s/%d", txn, i)}, e.Promise())
	}
	if err := c.Flush(ctx); err != nil {
		return false
	}
	if e.Err() != nil || random.IntN(3) == 0 {
		return c.EndTransaction(ctx, kgo.TryAbort) == nil
	}
	l.note(txn, mayBe, size)
	switch err := c.EndTransaction(ctx, kgo.TryCommit); {
	case err == nil:
		l.note(txn, committed, size)
		return true
	case errors.Is(err, kerr.OperationNotAttempted):
		l.note(txn, aborted, 0)
		return c.EndTransaction(ctx, kgo.TryAbort) == nil
	}
	return false
}

// verifyTxns reads all and compares it with what is known.
func verifyTxns(t *testing.T, ts *testServer, l *txnLedger) {
	t.Helper()
	got, seen := map[string]int{}, map[string]bool{}
	for _, r := range readToEnd(t, ts) {
		v := string(r.Value)
		if seen[v] {
			t.Errorf("%s came twice", v)
		}
		seen[v] = true
		txn, _, _ := strings.Cut(v, "/")
		got[txn]++
	}
	counts := map[txnFate]int{}
	for txn, o := range l.outcomes {
		counts[o]++
		switch n, size := got[txn], l.sizes[txn]; {
		case o == committed && n != size:
			t.Errorf("%s was committed with %d records, %d are there", txn, size, n)
		case o == aborted && n != 0:
			t.Errorf("%s was aborted, %d records are there", txn, n)
		case o == mayBe && n != 0 && n != size:
			t.Errorf("%s has %d of %d records", txn, n, size)
		}
	}
	t.Logf("committed %d, aborted %d, not known %d", counts[committed], counts[aborted], counts[mayBe])
	if counts[committed] < 10 {
		t.Errorf("only %d transactions were committed", counts[committed])
	}
}

// readToEnd reads a topic to its end as a read_committed reader.
func readToEnd(t *testing.T, ts *testServer) []*kgo.Record {
	t.Helper()
	c := ts.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics("t"), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxPartitionBytes(1500))
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	ends := map[int32]int64{}
	catalogue, err := ts.store.RefreshCatalogue(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range catalogue.ByName("t").Partitions {
		v, err := ts.store.View(ctx, p.Block)
		if err != nil {
			t.Fatal(err)
		}
		if v.LSO(p.Slot) != v.HighWatermark(p.Slot) {
			t.Errorf("partition %d: something is open at %d", i, v.LSO(p.Slot))
		}
		if end := int64(v.HighWatermark(p.Slot)); end > 0 {
			ends[int32(i)] = end
		}
	}
	var all []*kgo.Record
	for len(ends) > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d records, left %v: %v", len(all), ends, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset == ends[r.Partition]-1 { // the last one is a marker
				delete(ends, r.Partition)
			}
			if !r.Attrs.IsControl() {
				all = append(all, r)
			}
		})
	}
	return all
}
