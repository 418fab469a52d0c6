// Package metadatatest is the conformance suite of metadata drivers: the rules of package metadata over a real database,
// with several Stores on it, faults and bulk. Every driver's tests call Run.
package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// patience is how long a test waits for what should come at once, before it fails.
const patience = 20 * time.Second

// Database is one empty database of the kind under test.
type Database interface {
	// Driver gives a driver on the database, with its own connections where that kind of database allows it. The test's
	// cleanup closes it.
	Driver(t testing.TB) metadata.Driver
	Seeder
}

// Seeder writes and reads rows beside the driver: what other parts of Skein write, and a great many of them.
type Seeder interface {
	// Count gives how many rows a table has: level0, inline, receipts, checkpoints or objects.
	Count(t testing.TB, table string) int
	// Object reads a row of objects (but for Lenient); ok is false where there is none.
	Object(t testing.TB, key metadata.ObjectKey) (row metadata.ObjectRow, ok bool)
	// SetObject writes a row of objects, over the one that is there.
	SetObject(t testing.TB, row metadata.ObjectRow)
	// Merge does what the compactor does: inserts runs, moves the block's merged seq there and raises its version, and
	// deletes the level0 rows at or below it but for the newest of the block.
	Merge(t testing.TB, block metadata.BlockID, seq metadata.Seq, runs []metadata.RunRow)
	// FillRows inserts n rows, of whose photographs only the first photoBytes bytes are stored: a million whole ones take
	// 1.5 GB. It leaves the tables as ready for queries as they get (statistics).
	FillRows(t testing.TB, n int, row func(i int) (r *metadata.Row, photoBytes int))
	// FillRuns inserts n runs, likewise.
	FillRuns(t testing.TB, n int, run func(i int) metadata.RunRow)
	// FillAborted inserts n aborted transactions, likewise.
	FillAborted(t testing.TB, n int, aborted func(i int) metadata.AbortedTxn)
	// CheckPlans asserts that the driver's queries search by index, on the tables as they are: no statement of the hot
	// path or of readers scans level0, runs, receipts, checkpoints, inline, objects, producer_ids or the tables of
	// transactions.
	CheckPlans(t testing.TB)
}

// Run runs the suite; open makes an empty database.
func Run(t *testing.T, open func(t *testing.T) Database) {
	for _, test := range []struct {
		name string
		run  func(e *env)
	}{
		{"Offsets", testOffsets},
		{"RefusedFlush", testRefusedFlush},
		{"DecideFails", testDecideFails},
		{"Inline", testInline},
		{"InlineResident", testInlineResident},
		{"Sequences", testSequences},
		{"SequenceWrap", testSequenceWrap},
		{"Hold", testHold},
		{"DeletedPartition", testDeletedPartition},
		{"StaleConfigs", testStaleConfigs},
		{"Receipts", testReceipts},
		{"ReceiptsExpire", testReceiptsExpire},
		{"TooOld", testTooOld},
		{"Condemned", testCondemned},
		{"Objects", testObjects},
		{"Concurrent", testConcurrent},
		{"ConcurrentProducers", testConcurrentProducers},
		{"Faults", testFaults},
		{"Model", testModel},
		{"ColdStore", testColdStore},
		{"Checkpoints", testCheckpoints},
		{"UnknownBlock", testUnknownBlock},
		{"SmallCache", testSmallCache},
		{"Locate", testLocate},
		{"LocateTime", testLocateTime},
		{"LocateRuns", testLocateRuns},
		{"LocateTimeRuns", testLocateTimeRuns},
		{"MergedAway", testMergedAway},
		{"Catalogue", testCatalogue},
		{"CatalogueConcurrent", testCatalogueConcurrent},
		{"Tombstones", testTombstones},
		{"Collisions", testCollisions},
		{"DeleteRecords", testDeleteRecords},
		{"ProducerIDs", testProducerIDs},
		{"ClusterID", testClusterID},
		{"Watch", testWatch},
		{"Agents", testAgents},
		{"Refresh", testRefresh},
		{"TxnProduce", testTxnProduce},
		{"TxnOriginal", testTxnOriginal},
		{"TxnAborted", testTxnAborted},
		{"TxnOffsets", testTxnOffsets},
		{"TxnDue", testTxnDue},
		{"TxnFaults", testTxnFaults},
		{"TxnMarkers", testTxnMarkers},
		{"TxnRace", testTxnRace},
		{"TxnRandom", testTxnRandom},
		{"TxnBulk", testTxnBulk},
		{"Bulk", testBulk},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&env{T: t, db: open(t)})
		})
	}
}

// env is one test's database.
type env struct {
	*testing.T
	db Database
}

// must fails the test on any error.
func (e *env) must(errs ...error) {
	e.Helper()
	if err := errors.Join(errs...); err != nil {
		e.Fatal(err)
	}
}

// within gives a context that ends when the test has waited long enough.
func (e *env) within() context.Context {
	ctx, cancel := context.WithTimeout(e.Context(), patience)
	e.Cleanup(cancel)
	return ctx
}

// store makes a Store on a driver of its own.
func (e *env) store() *metadata.Store { return e.storeWith(metadata.Options{}) }

func (e *env) storeWith(opts metadata.Options) *metadata.Store {
	e.Helper()
	if opts.Driver == nil {
		opts.Driver = e.db.Driver(e.T)
	}
	return metadata.NewStore(opts)
}

// run runs a Store until the test ends.
func (e *env) run(s *metadata.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	e.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			e.Errorf("Store.Run: %v", err)
		}
	})
}

// topic makes a topic and gives it as the catalogue has it.
func (e *env) topic(s *metadata.Store, name string, partitions int32) *metadata.Topic {
	e.Helper()
	_, errs, err := s.CreateTopics(e.Context(), []metadata.NewTopic{{Name: name, Partitions: partitions}}, false)
	e.must(append(errs, err)...)
	c, err := s.RefreshCatalogue(e.Context())
	e.must(err)
	t := c.ByName(name)
	if t == nil || len(t.Partitions) != int(partitions) {
		e.Fatalf("topic %s after its creation: %+v", name, t)
	}
	return t
}

// version gives the catalogue's version now.
func (e *env) version(s *metadata.Store) metadata.CatalogueVersion {
	e.Helper()
	c, err := s.RefreshCatalogue(e.Context())
	e.must(err)
	return c.Version
}

// latest is a Validated that no config change makes stale.
const latest metadata.CatalogueVersion = 1 << 60

// plain is a batch without a producer.
func plain(records int32) metadata.Batch {
	return metadata.Batch{
		Length: 70 * records, Records: records, MaxTimestamp: metadata.NoTimestamp, Producer: metadata.NoProducer,
		Epoch: -1, First: -1, Last: -1, Validated: latest,
	}
}

// idempotent is a producer's batch.
func idempotent(id metadata.ProducerID, epoch metadata.ProducerEpoch, first metadata.Sequence, records int32) metadata.Batch {
	b := plain(records)
	b.Producer, b.Epoch, b.First, b.Last = id, epoch, first, first.Next(records-1)
	return b
}

// piece is one partition's part of a flush.
type piece struct {
	at      metadata.Partition
	batches []metadata.Batch
}

func of(at metadata.Partition, batches ...metadata.Batch) piece {
	return piece{at: at, batches: batches}
}

// flush makes an inline flush whose payload says whose it is.
func (e *env) flush(s *metadata.Store, pieces ...piece) *metadata.Flush {
	e.Helper()
	f := e.uploaded(s, "", pieces...)
	for i := range f.Extents {
		x := &f.Extents[i]
		f.Inline = append(f.Inline, payload(f.ID, x.Slot, int(x.Length)))
	}
	return f
}

// payload is what an inline flush of these tests holds for a slot.
func payload(id metadata.FlushID, slot metadata.Slot, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = id[i%len(id)] + byte(slot) + byte(i>>4)
	}
	return b
}

// uploaded makes a flush whose bytes are in an object.
func (e *env) uploaded(s *metadata.Store, key metadata.ObjectKey, pieces ...piece) *metadata.Flush {
	e.Helper()
	id, err := metadata.NewFlushID()
	e.must(err)
	seen, err := s.Now(e.Context())
	e.must(err)
	f := &metadata.Flush{ID: id, Seen: seen, Object: key}
	slices.SortFunc(pieces, func(a, b piece) int {
		if a.at.Block != b.at.Block {
			return int(a.at.Block - b.at.Block)
		}
		return int(a.at.Slot) - int(b.at.Slot)
	})
	var position int64
	for _, p := range pieces {
		x := metadata.Extent{
			Block: p.at.Block, Slot: p.at.Slot, Position: position, Created: p.at.Created,
			Batches: slices.Clone(p.batches),
		}
		for i := range p.batches {
			x.RawLength += p.batches[i].Length
		}
		x.Length = x.RawLength
		x.CRC = uint32(position) + uint32(id[15])
		position += int64(x.Length)
		f.Extents = append(f.Extents, x)
	}
	if key != "" {
		f.ObjectSize = position
	}
	return f
}

// copyOf is a flush as another attempt would carry it.
func copyOf(f *metadata.Flush) *metadata.Flush {
	c := *f
	c.Extents = slices.Clone(f.Extents)
	for i := range c.Extents {
		c.Extents[i].Batches = slices.Clone(f.Extents[i].Batches)
	}
	return &c
}

// commit commits one flush and gives its results.
func (e *env) commit(s *metadata.Store, f *metadata.Flush) []metadata.BatchResult {
	e.Helper()
	r := e.commitResult(s, f)
	e.must(r.Err)
	return r.Batches
}

func (e *env) commitResult(s *metadata.Store, f *metadata.Flush) metadata.FlushResult {
	e.Helper()
	r, err := s.Commit(e.Context(), []*metadata.Flush{f})
	e.must(err)
	if len(r) != 1 {
		e.Fatalf("%d results for one flush", len(r))
	}
	return r[0]
}

// one commits one batch of one partition.
func (e *env) one(s *metadata.Store, at metadata.Partition, b metadata.Batch) metadata.BatchResult {
	e.Helper()
	r := e.commit(s, e.flush(s, of(at, b)))
	if len(r) != 1 {
		e.Fatalf("%d results for one batch", len(r))
	}
	return r[0]
}

// expect checks a result's code, and its base where the code gives one.
func (e *env) expect(what string, got metadata.BatchResult, code metadata.Code, base metadata.Offset) {
	e.Helper()
	if got.Code != code || got.Base != base {
		e.Fatalf("%s: code %d, base %d; want code %d, base %d", what, got.Code, got.Base, code, base)
	}
}

// view gives a block's view as the database has it now.
func (e *env) view(s *metadata.Store, id metadata.BlockID) *metadata.View {
	e.Helper()
	e.must(s.Refresh(e.Context(), id))
	v, err := s.View(e.Context(), id)
	e.must(err)
	if v == nil {
		e.Fatalf("no view of block %d", id)
	}
	return v
}

// highWatermark gives a partition's high watermark as the database has it now.
func (e *env) highWatermark(s *metadata.Store, p metadata.Partition) metadata.Offset {
	e.Helper()
	return e.view(s, p.Block).HighWatermark(p.Slot)
}

// counts gives the numbers of rows that a commit may change.
func (e *env) counts() string {
	e.Helper()
	return fmt.Sprint(e.db.Count(e.T, "level0"), e.db.Count(e.T, "inline"), e.db.Count(e.T, "receipts"), e.db.Count(e.T, "objects"))
}
