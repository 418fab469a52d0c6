package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
)

// BenchmarkEndTxn measures the end of a transaction by KIP-890 over partitions of one topic, and what a produce that joins
// them costs: p50 and p99 in milliseconds.
func BenchmarkEndTxn(b *testing.B) {
	for name, open := range map[string]func() *metadata.Store{
		"sqlite":   func() *metadata.Store { return newTestStore(b) },
		"postgres": func() *metadata.Store { return newPostgresStore(b, testenv.PostgresDatabase(b)) },
	} {
		for _, n := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/partitions=%d", name, n), func(b *testing.B) { benchmarkEndTxn(b, open(), n) })
		}
	}
}

func benchmarkEndTxn(b *testing.B, store *metadata.Store, partitions int) {
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
	for range max(b.N, 200) { // enough for a p99
		began := time.Now()
		joinAll(b, store, topics[0], id)
		joins = append(joins, time.Since(began))
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
