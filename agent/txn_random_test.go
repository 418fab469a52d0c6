package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
)

// cutter is a proxy that cuts connections off in the middle of what they carry.
type cutter struct {
	l      net.Listener
	target string
	wg     sync.WaitGroup
	// every: one of so many packets from the client is passed on, and its connection then cut off before the answer.
	every atomic.Int64
}

func newCutter(t *testing.T, target string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{l: l, target: target}
	c.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.serve(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.wg.Wait()
	})
	return c
}

func (c *cutter) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer server.Close()
	c.wg.Go(func() {
		io.Copy(client, server)
		client.Close()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
		if every := c.every.Load(); every > 0 && rand.Int64N(every) == 0 {
			client.Close() // what was sent is done, or not: its answer is lost
			// The server works off what it got before it notices.
			return
		}
	}
}

// at gives the URL with the proxy's address.
func (c *cutter) at(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = c.l.Addr().String()
	return u.String()
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

// killInterval is how long an agent lives.
const killInterval = 300 * time.Millisecond

// TestTxnRandom: transactional writers of both protocols at three agents on one Postgres whose connections are cut off at
// random, also between COMMIT and its answer; agents go away in the middle and come back. A read_committed reader sees
// every committed transaction whole and once, nothing of the aborted ones, and of those whose end is not known all or
// nothing.
func TestTxnRandom(t *testing.T) {
	const agents, writers, partitions = 3, 6, 4
	lives, transactions := 5, 12
	if testing.Short() {
		lives = 3
	}
	direct := testenv.PostgresDatabase(t)
	host := strings.TrimPrefix(mustURL(t, direct).Host, "//")
	proxy := newCutter(t, host)
	var mu sync.Mutex
	servers := make([]*testServer, agents)
	stores := make([]*metadata.Store, agents)
	for i := range stores {
		stores[i] = newPostgresStore(t, proxy.at(t, direct))
	}
	start := func(i int) {
		s := newStoreServer(t, stores[i])
		mu.Lock()
		servers[i] = s
		mu.Unlock()
	}
	for i := range servers {
		start(i)
	}
	servers[0].createTopic("t", partitions, nil)
	proxy.every.Store(30)
	ledger := &txnLedger{outcomes: map[string]txnFate{}, sizes: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), 4*testTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(21, uint64(w)))
			for life := range lives {
				mu.Lock()
				addr := servers[random.IntN(agents)].addr
				mu.Unlock()
				writeTxns(ctx, t, addr, fmt.Sprintf("w%d-%d", w, life), w, transactions, partitions, random, ledger)
			}
		})
	}
	killer, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(killer)
		for i := 0; ; i = (i + 1) % agents {
			select {
			case <-time.After(killInterval):
			case <-done:
				return
			}
			mu.Lock()
			victim := servers[i]
			mu.Unlock()
			victim.stop()
			start(i)
		}
	}()
	wg.Wait()
	close(done)
	<-killer
	proxy.every.Store(0)
	// What writers left open when they went away.
	for w := range writers {
		c := servers[0].client(kgo.TransactionalID(fmt.Sprintf("writer-%d", w)), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		produceTxn(t, c, kgo.TryCommit, fmt.Sprintf("last-%d/0", w))
		ledger.note(fmt.Sprintf("last-%d", w), committed, 1)
	}
	verifyTxns(t, servers[agents-1], ledger)
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
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
