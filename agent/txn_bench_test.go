package agent

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
)

// BenchmarkEndTxn measures the end of a transaction by KIP-890 over partitions of one topic, and what a produce that joins
// them costs: p50 and p99 in milliseconds.
func BenchmarkEndTxn(b *testing.B) {
	for name, open := range map[string]func(testing.TB) *metadata.Store{
		"sqlite":   func(tb testing.TB) *metadata.Store { return newTestStore(tb) },
		"postgres": func(tb testing.TB) *metadata.Store { return newPostgresStore(tb, testenv.PostgresDatabase(tb)) },
	} {
		for _, n := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/partitions=%d", name, n), func(b *testing.B) { benchmarkEndTxn(b, open(b), n, nil) })
		}
	}
}

// BenchmarkTxnStatements counts the statements and round trips of a transaction on Postgres: of the commit by which
// partitions join it, and of its end.
func BenchmarkTxnStatements(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("partitions=%d", n), func(b *testing.B) {
			proxy, through := testenv.NewPostgresProxy(b, testenv.PostgresDatabase(b))
			c := &statementCount{notifies: map[string]bool{}}
			proxy.Rules(c.see, nil)
			benchmarkEndTxn(b, newPostgresStore(b, through), n, c)
		})
	}
}

// statementCount counts what goes to Postgres but for NOTIFY, which is no part of anything that is waited for.
type statementCount struct {
	mu                sync.Mutex
	notifies          map[string]bool // names of prepared statements
	statements, trips int
}

func (c *statementCount) see(m testenv.PostgresMessage) testenv.PostgresVerdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m.Kind {
	case 'P': // Parse
		if name, query, _ := bytes.Cut(m.Body, []byte{0}); bytes.Contains(query, []byte("pg_notify")) {
			c.notifies[string(name)] = true
			c.trips-- // the Sync behind it
		}
	case 'B':
		if c.notifies[m.Bound()] {
			c.trips--
		} else {
			c.statements++
		}
	case 'Q':
		c.statements++
		c.trips++
	case 'S', 'H': // Sync, Flush
		c.trips++
	}
	return testenv.PostgresVerdict{}
}

// take gives what was counted since it was last asked.
func (c *statementCount) take() (statements, trips int) {
	if c == nil {
		return 0, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	statements, trips = c.statements, c.trips
	c.statements, c.trips = 0, 0
	return statements, trips
}

func benchmarkEndTxn(b *testing.B, store *metadata.Store, partitions int, count *statementCount) {
	ctx := b.Context()
	topics, errs, err := store.CreateTopics(ctx, []metadata.NewTopic{{Name: "t", Partitions: int32(partitions)}}, false)
	if err != nil || errs[0] != nil {
		b.Fatal(err, errs)
	}
	s := &Server{store: store, ids: newProducerIDs(store)}
	var id txn.Identity
	err = s.changeTxn(ctx, "tx", store.ChangeTxn, func(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (c *metadata.TxnChange, err error) {
		c, id, err = txn.Init{Timeout: time.Minute, Supplied: txn.NoIdentity, Fresh: fresh}.Decide(now, t)
		return c, err
	})
	if err != nil {
		b.Fatal(err)
	}
	var ends, joins []time.Duration
	counts := map[string][]int{}
	note := func(what string) {
		statements, trips := count.take()
		counts[what+"-statements"] = append(counts[what+"-statements"], statements)
		counts[what+"-round-trips"] = append(counts[what+"-round-trips"], trips)
	}
	for range max(b.N, 200) { // enough for a p99
		count.take()
		began := time.Now()
		joinAll(b, store, topics[0], id)
		joins = append(joins, time.Since(began))
		note("join")
		end := txn.End{Producer: id, Commit: true, Protocol: metadata.TxnKIP890, Fresh: metadata.NoProducer}
		began = time.Now()
		err := s.changeTxn(ctx, "tx", store.EndTxn, func(now metadata.Millis, t *metadata.Txn, _ metadata.ProducerID) (c *metadata.TxnChange, err error) {
			c, id, err = end.Decide(now, t)
			return c, err
		})
		if err != nil {
			b.Fatal(err)
		}
		ends = append(ends, time.Since(began))
		note("end")
	}
	if count != nil {
		for name, list := range counts {
			slices.Sort(list)
			b.ReportMetric(float64(list[len(list)/2]), name) // the median: now and then a housekeeper runs beside it
		}
		b.ReportMetric(0, "ns/op")
		return
	}
	for name, list := range map[string][]time.Duration{"end": ends, "join": joins} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, name+"-p99-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// joinAll commits one flush with a batch in every partition.
func joinAll(b *testing.B, store *metadata.Store, topic *metadata.Topic, id txn.Identity) {
	b.Helper()
	flush, err := metadata.NewFlushID()
	if err != nil {
		b.Fatal(err)
	}
	now, err := store.Now(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	f := &metadata.Flush{ID: flush, Seen: now, Inline: [][]byte{make([]byte, 100)}}
	for _, p := range topic.Partitions {
		f.Extents = append(f.Extents, metadata.Extent{
			Block: p.Block, Slot: p.Slot, Length: 100, RawLength: 100, Created: p.Created,
			Batches: []metadata.Batch{{
				Length: 100, Records: 1, Producer: id.Producer, Epoch: id.Epoch, Validated: 1 << 60, Joins: true,
				Flags: metadata.FlagTransactional,
			}},
		})
	}
	results, err := store.Commit(b.Context(), []*metadata.Flush{f})
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range results[0].Batches {
		if r.Code != metadata.CodeAccepted {
			b.Fatalf("%+v", r)
		}
	}
}
