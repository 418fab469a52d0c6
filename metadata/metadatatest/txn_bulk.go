package metadatatest

import (
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// testTxnBulk fills a partition with a million aborted transactions, beside one that was open for a hundred of them, and
// asserts that readers and housekeepers search by index and get what they must.
func testTxnBulk(e *env) {
	n := 1_000_000
	if testing.Short() {
		n = 50_000
	}
	const (
		long = 100 // transactions end while the long one is open
		mid  = 7   // of a thousandth of n, where it is
	)
	s := e.store()
	parts := e.topic(s, "t", 3).Partitions
	at, other := parts[1], parts[2]
	a, b := e.newActor(s, "a"), e.newActor(s, "b")
	// Transaction i has offsets 2i and, its marker, 2i + 1. The long one begins before transaction from, at its place.
	from := n / 1000 * mid
	e.db.FillAborted(e.T, n, func(i int) metadata.AbortedTxn {
		t := metadata.AbortedTxn{
			Partition: place(at), First: metadata.Offset(2 * i), Marker: metadata.Offset(2*i + 1), Producer: a.producer,
			LSO: metadata.Offset(2*i + 2),
		}
		switch first := metadata.Offset(2 * from); {
		case i == from+long: // its marker, in the place of a transaction's
			t.First, t.Producer = first, b.producer
		case i >= from && i < from+long:
			t.First++
			t.Marker++
			t.LSO = first
		}
		return t
	})
	for _, c := range []struct{ from, to, want int }{
		{0, 1, 1},
		{2 * (n - 1), 2 * n, 1},
		{n, n + 200, 100},
		{2 * from, 2*from + 1, 1}, // the long one only, which ends a hundred markers later
		{2*from + 10, 2*from + 20, 1 + 5 + 1},
		{2 * n, 3 * n, 0},
	} {
		if got := e.aborted(s, at, metadata.Offset(c.from), metadata.Offset(c.to)); len(got) != c.want {
			e.Errorf("from %d to %d: %d aborted transactions, want %d: %v", c.from, c.to, len(got), c.want, got)
		}
		if got := e.aborted(s, other, metadata.Offset(c.from), metadata.Offset(c.to)); len(got) != 0 {
			e.Errorf("from %d to %d: %d aborted transactions of another partition", c.from, c.to, len(got))
		}
	}
	const lookups = 1000
	began := time.Now()
	for i := range lookups { // of 50 transactions each, all over the partition
		low := metadata.Offset(i * (2*n/lookups - 1))
		if got := e.aborted(s, at, low, low+100); len(got) < 50 || len(got) > 52 {
			e.Fatalf("from %d: %d aborted transactions", low, len(got))
		}
	}
	e.Logf("%d lookups among %d aborted transactions in %v", lookups, n, time.Since(began))
	// What everybody else asks of transactions, so that its plans are looked at.
	a.write(s, at)
	e.one(s, other, plain(1))
	d := e.db.Driver(e.T)
	_, err := s.DueTxns(e.Context(), 10)
	e.must(err)
	_, err = s.TxnsOf(e.Context(), a.producer)
	e.must(err)
	_, _, err = s.ListTxns(e.Context(), "", 10)
	e.must(err)
	_, err = s.PendingOffsets(e.Context(), []metadata.OffsetQuery{{Group: "g", All: true}})
	e.must(err)
	_, err = d.ExpireTxns(e.Context(), time.Hour, 10)
	e.must(err)
	next, removed, err := d.PruneAborted(e.Context(), metadata.PartitionID{}, 10, 10)
	e.must(err)
	if removed != 0 || next != (metadata.PartitionID{}) {
		e.Errorf("%d removed, next %v", removed, next)
	}
	a.end(s, true)
	e.db.CheckPlans(e.T)
}
