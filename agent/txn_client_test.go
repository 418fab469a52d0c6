package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/objstore"
)

// runStore runs a store until the test ends.
func runStore(t testing.TB, driver metadata.Driver) *metadata.Store {
	t.Helper()
	store := metadata.NewStore(metadata.Options{Driver: driver})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	return store
}

// newPostgresStore runs a store on a database of its own, or on the one at url.
func newPostgresStore(t testing.TB, url string) *metadata.Store {
	t.Helper()
	driver, err := postgres.Open(t.Context(), url, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { driver.Close() })
	return runStore(t, driver)
}

// newStoreServer is a test server that reads and writes, on a store.
func newStoreServer(t *testing.T, store *metadata.Store) *testServer {
	t.Helper()
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		d.Store, d.Producer = store, directProducer{store: store}
		c, err := NewExtentCache(store, cache.Options{Bucket: objstore.NewMemory(), Registerer: d.Metrics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		d.Extents = c
		d.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	})
	ts.store = store
	return ts
}

// onBothDatabases runs a test on SQLite and on Postgres.
func onBothDatabases(t *testing.T, test func(t *testing.T, ts *testServer)) {
	t.Run("sqlite", func(t *testing.T) { test(t, newStoreServer(t, newTestStore(t))) })
	t.Run("postgres", func(t *testing.T) { test(t, newStoreServer(t, newPostgresStore(t, testenv.PostgresDatabase(t)))) })
}

// txnClients are a client with the original protocol and one with KIP-890.
var txnClients = map[string]*kversion.Versions{"original": kversion.V3_6_0(), "KIP-890": kversion.Stable()}

// produceTxn produces the values in one transaction and ends it.
func produceTxn(t *testing.T, c *kgo.Client, commit kgo.TransactionEndTry, values ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := c.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for i, v := range values {
		c.Produce(ctx, &kgo.Record{Topic: "t", Partition: int32(i % 3), Value: []byte(v)}, nil)
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.EndTransaction(ctx, commit); err != nil {
		t.Fatal(err)
	}
}

func TestTxnCommitsAndAborts(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		ts.createTopic("t", 3, nil)
		want := map[string]bool{}
		for name, versions := range txnClients {
			c := ts.client(kgo.TransactionalID("id-"+name), kgo.MaxVersions(versions), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			for i := range 10 {
				values := make([]string, 7)
				for j := range values {
					values[j] = fmt.Sprintf("%s-%d-%d", name, i, j)
					if i%3 != 1 {
						want[values[j]] = true
					}
				}
				produceTxn(t, c, i%3 != 1, values...)
			}
		}
		start := kgo.NewOffset().AtStart()
		consumer := ts.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(start))
		got := map[string]bool{}
		for _, records := range consume(t, consumer, len(want)) {
			for _, r := range records {
				if v := string(r.Value); !want[v] || got[v] {
					t.Errorf("%s came, wanted %v, came before %v", v, want[v], got[v])
				}
				got[string(r.Value)] = true
			}
		}
		// 20 transactions of 7 records: all of them, and a marker for each in each partition.
		adm := kadm.NewClient(consumer)
		ends, err := adm.ListEndOffsets(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
		if sum != 20*7+20*3 {
			t.Errorf("%d offsets", sum)
		}
		var all int
		for _, records := range consume(t, ts.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(start)), 20*7) {
			all += len(records)
		}
		if all != 20*7 {
			t.Errorf("%d uncommitted records", all)
		}
	})
}

func TestTxnOpenHoldsReaders(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		ts.createTopic("t", 3, nil)
		for name, versions := range txnClients {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			c := ts.client(kgo.TransactionalID("id-"+name), kgo.MaxVersions(versions), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			adm := kadm.NewClient(c)
			offsets := func() (stable, end int64) {
				t.Helper()
				s, err := adm.ListCommittedOffsets(ctx, "t")
				if err != nil {
					t.Fatal(err)
				}
				e, err := adm.ListEndOffsets(ctx, "t")
				if err != nil {
					t.Fatal(err)
				}
				so, _ := s.Lookup("t", 0)
				eo, _ := e.Lookup("t", 0)
				return so.Offset, eo.Offset
			}
			_, before := offsets()
			if err := c.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := c.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if stable, end := offsets(); stable != before || end != before+1 {
				t.Fatalf("%s: stable %d, end %d, want %d and one more", name, stable, end, before)
			}
			descr, err := adm.DescribeTransactions(ctx, "id-"+name)
			if err != nil {
				t.Fatal(err)
			}
			if d := descr["id-"+name]; d.State != "Ongoing" || len(d.Topics["t"]) != 1 || d.StartTimestamp <= 0 {
				t.Errorf("%s: %+v", name, d)
			}
			if err := c.EndTransaction(ctx, kgo.TryCommit); err != nil {
				t.Fatal(err)
			}
			if stable, end := offsets(); stable != before+2 || end != before+2 {
				t.Fatalf("%s: stable %d, end %d after the commit", name, stable, end)
			}
		}
		listed, err := kadm.NewClient(ts.client()).ListTransactions(t.Context(), nil, []string{"CompleteCommit"})
		if err != nil || len(listed) != 2 {
			t.Errorf("listed %v, %v", listed, err)
		}
	})
}

// TestTxnFencing: a second instance fences the first, whose open transaction is aborted.
func TestTxnFencing(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		ts.createTopic("t", 3, nil)
		for name, versions := range txnClients {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			instance := func() *kgo.Client {
				return ts.client(kgo.TransactionalID("id-"+name), kgo.MaxVersions(versions), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			}
			first, second := instance(), instance()
			if err := first.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := first.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("lost")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			produceTxn(t, second, kgo.TryCommit, "kept "+name)
			err := first.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("zombie")}).FirstErr()
			if !errors.Is(err, kerr.InvalidProducerEpoch) && !errors.Is(err, kerr.ProducerFenced) {
				t.Errorf("%s: the zombie produced: %v", name, err)
			}
			if err := first.EndTransaction(ctx, kgo.TryCommit); err == nil {
				t.Errorf("%s: the zombie committed", name)
			}
		}
		c := ts.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		for _, records := range consume(t, c, len(txnClients)) {
			for _, r := range records {
				if v := string(r.Value); v != "kept original" && v != "kept KIP-890" {
					t.Errorf("read %s", v)
				}
			}
		}
	})
}

// TestTxnTimeout: a transaction that timed out is aborted, and its producer fenced.
func TestTxnTimeout(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		ts.createTopic("t", 3, nil)
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		// As long as somebody else has the lease nothing is aborted.
		held, ok, err := ts.store.AcquireLease(ctx, txnSweepLease, "somebody else", time.Hour)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		c := ts.client(kgo.TransactionalID("id"), kgo.TransactionTimeout(time.Millisecond), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := c.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := c.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("late")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		for due := 0; due == 0; {
			list, err := ts.store.DueTxns(ctx, 1)
			if err != nil {
				t.Fatal(err)
			}
			due = len(list)
		}
		if n := ts.sweepTxns(ctx); n != 0 {
			t.Errorf("%d aborted without the lease", n)
		}
		if err := ts.store.ReleaseLease(ctx, held); err != nil {
			t.Fatal(err)
		}
		for { // the server's own sweep may be the one that aborts it
			ts.sweepTxns(ctx)
			_, txns, err := ts.store.LoadTxns(ctx, "id")
			if err != nil {
				t.Fatal(err)
			}
			if txns[0].State == metadata.TxnCompleteAbort && len(txns[0].Open) == 0 {
				break
			}
		}
		if err := c.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("later")}).FirstErr(); err == nil {
			t.Error("produced after the timeout")
		}
	})
}
