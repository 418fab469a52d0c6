package agent

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
)

// TestTxnEndWakesReaders: a fetch that waits at the last stable offset is woken by the transaction's end, at the agent that
// ends it and at another, whether it is committed or aborted.
func TestTxnEndWakesReaders(t *testing.T) {
	url := testenv.PostgresDatabase(t)
	ending := newStoreServer(t, newPostgresStore(t, url))
	other := newStoreServer(t, newPostgresStore(t, url))
	ending.createTopic("t", 1, nil)
	if _, err := other.store.RefreshCatalogue(t.Context()); err != nil {
		t.Fatal(err)
	}
	writer := ending.client(kgo.TransactionalID("id"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	offset := int64(0)
	for _, commit := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		if err := writer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := writer.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		type answer struct {
			who  string
			resp *kmsg.FetchResponse
		}
		answers := make(chan answer, 2)
		for who, ts := range map[string]*testServer{"the agent that ends it": ending, "another agent": other} {
			c := ts.dial()
			req := fetchReq("t", offset)
			req.IsolationLevel, req.MaxWaitMillis = readCommitted, 600_000
			before := testutil.ToFloat64(ts.reader.waiting)
			go func() { answers <- answer{who, ask[*kmsg.FetchResponse](c, req, 12)} }()
			waitFor(t, "the fetch to wait", func() bool { return testutil.ToFloat64(ts.reader.waiting) > before })
		}
		if err := writer.EndTransaction(ctx, commit); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			select {
			case a := <-answers:
				p := &a.resp.Topics[0].Partitions[0]
				if p.LastStableOffset != offset+2 || len(p.RecordBatches) == 0 || (len(p.AbortedTransactions) > 0) == bool(commit) {
					t.Errorf("%s, commit %v: last stable offset %d, %d bytes, aborted %v", a.who, commit, p.LastStableOffset,
						len(p.RecordBatches), p.AbortedTransactions)
				}
			case <-ctx.Done():
				t.Fatal("a fetch was not woken")
			}
		}
		offset += 2
	}
}

// TestTxnLogStartAboveOpen: records are deleted beyond the beginning of an open transaction. The last stable offset is never
// below the log start, which a reader at the end would be sent away from.
func TestTxnLogStartAboveOpen(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		ts.createTopic("t", 1, nil)
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		writer := ts.client(kgo.TransactionalID("id"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := writer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := writer.ProduceSync(ctx, &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		adm := kadm.NewClient(ts.client())
		before := kadm.Offsets{}
		before.Add(kadm.Offset{Topic: "t", Partition: 0, At: 2, LeaderEpoch: -1})
		if _, err := adm.DeleteRecords(ctx, before); err != nil {
			t.Fatal(err)
		}
		stable, err := adm.ListCommittedOffsets(ctx, "t")
		if err != nil {
			t.Fatal(err)
		}
		if o, _ := stable.Lookup("t", 0); o.Offset != 2 {
			t.Errorf("last stable offset %d below the log start 2", o.Offset)
		}
		if err := writer.EndTransaction(ctx, kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		reader := ts.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		for _, records := range consume(t, reader, 1) {
			for _, r := range records {
				if r.Offset != 2 {
					t.Errorf("read offset %d", r.Offset)
				}
			}
		}
	})
}

// TestTxnEpochOverflow: when the epochs of a producer id are used up, the producer goes on under another one, by both
// protocols: with KIP-890 from the end of a transaction on, with the original one from the next instance on.
func TestTxnEpochOverflow(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		ts.createTopic("t", 3, nil)
		want := map[string]bool{}
		for name, versions := range txnClients {
			id := metadata.TransactionalID("id-" + name)
			first, err := ts.store.AllocateProducerIDs(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			err = ts.store.ChangeTxn(t.Context(), id, func(now metadata.Millis, row *metadata.Txn) (*metadata.TxnChange, error) {
				c, _, err := txn.Init{Timeout: testTimeout, Supplied: txn.NoIdentity, Fresh: first.First}.Decide(now, row)
				c.Row.Epoch = 32763
				return c, err
			})
			if err != nil {
				t.Fatal(err)
			}
			var ids []metadata.ProducerID
			for life := range 2 { // epochs 32764 and, with the original protocol, 32765
				c := ts.client(kgo.TransactionalID(string(id)), kgo.MaxVersions(versions), kgo.RecordPartitioner(kgo.ManualPartitioner()))
				for i := range 4 {
					values := []string{name + string(rune('a'+life)) + string(rune('0'+i)), name + string(rune('A'+life)) + string(rune('0'+i))}
					commit := kgo.TransactionEndTry(i%2 == 0)
					produceTxn(t, c, commit, values...)
					for _, v := range values {
						if commit {
							want[v] = true
						}
					}
					ids = append(ids, producerOf(t, ts, id))
				}
				c.Close()
			}
			if versions == txnClients["original"] {
				for range 3 {
					c := ts.client(kgo.TransactionalID(string(id)), kgo.MaxVersions(versions), kgo.RecordPartitioner(kgo.ManualPartitioner()))
					produceTxn(t, c, kgo.TryAbort, "nothing")
					ids = append(ids, producerOf(t, ts, id))
					c.Close()
				}
			}
			if ids[0] != first.First || ids[len(ids)-1] == first.First {
				t.Errorf("%s: producer ids %v, the first is %d", name, ids, first.First)
			}
		}
		c := ts.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		got := map[string]bool{}
		for _, records := range consume(t, c, len(want)) {
			for _, r := range records {
				if v := string(r.Value); !want[v] || got[v] {
					t.Errorf("%s came, wanted %v, came before %v", v, want[v], got[v])
				}
				got[string(r.Value)] = true
			}
		}
	})
}

func producerOf(t *testing.T, ts *testServer, id metadata.TransactionalID) metadata.ProducerID {
	t.Helper()
	_, rows, err := ts.store.LoadTxns(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return rows[0].Producer
}
