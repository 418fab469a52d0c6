package metadatatest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// actor is a transactional producer with rules that are as simple as can be.
type actor struct {
	e        *env
	id       metadata.TransactionalID
	producer metadata.ProducerID
	epoch    metadata.ProducerEpoch
	seq      map[metadata.PartitionID]metadata.Sequence
}

// markerBytes stand for a control batch.
var markerBytes = []byte("a marker, of some seventy bytes, which no driver ever looks into ........")

// newActor gives a transactional id a producer id.
func (e *env) newActor(s *metadata.Store, id metadata.TransactionalID) *actor {
	e.Helper()
	r, err := s.AllocateProducerIDs(e.Context(), 1)
	e.must(err)
	a := &actor{e: e, id: id, producer: r.First, seq: map[metadata.PartitionID]metadata.Sequence{}}
	e.must(s.ChangeTxn(e.Context(), id, func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
		row := t.TxnRow
		row.Producer, row.Epoch, row.State, row.Timeout, row.Updated = r.First, 0, metadata.TxnEmpty, time.Minute, now
		row.Protocol = metadata.TxnKIP890
		return &metadata.TxnChange{Row: row}, nil
	}))
	return a
}

// batch is the actor's next batch in a partition.
func (a *actor) batch(at metadata.Partition, records int32, joins bool) metadata.Batch {
	b := idempotent(a.producer, a.epoch, a.seq[place(at)], records)
	b.Flags, b.Joins = metadata.FlagTransactional, joins
	return b
}

func place(at metadata.Partition) metadata.PartitionID {
	return metadata.PartitionID{Block: at.Block, Slot: at.Slot}
}

// write commits batches that join the transaction.
func (a *actor) write(s *metadata.Store, at ...metadata.Partition) []metadata.BatchResult {
	a.e.Helper()
	var pieces []piece
	for _, p := range at {
		pieces = append(pieces, of(p, a.batch(p, 1, true)))
	}
	results := a.e.commit(s, a.e.flush(s, pieces...))
	for _, p := range at {
		a.seq[place(p)]++
	}
	return results
}

// errEnded is a rule's refusal.
var errEnded = errors.New("not ongoing, or another epoch")

// rule ends the transaction and moves the epoch, once.
func (a *actor) rule(commit bool) metadata.TxnRule {
	epoch := a.epoch
	return func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
		if t.State != metadata.TxnOngoing || t.Epoch != epoch {
			return nil, errEnded
		}
		row := t.TxnRow
		row.Epoch, row.State, row.Started, row.Updated = epoch+1, metadata.TxnCompleteAbort, 0, now
		c := &metadata.TxnChange{Row: row, End: metadata.TxnAborts, Producer: t.Producer, Epoch: epoch + 1, Marker: markerBytes}
		if commit {
			c.Row.State, c.End = metadata.TxnCompleteCommit, metadata.TxnCommits
		}
		return c, nil
	}
}

// end ends the transaction.
func (a *actor) end(s *metadata.Store, commit bool) {
	a.e.Helper()
	a.e.must(s.EndTxn(a.e.Context(), a.id, a.rule(commit)))
	a.next()
}

// next goes on with the next epoch.
func (a *actor) next() {
	a.epoch++
	clear(a.seq)
}

func (e *env) stable(s *metadata.Store, at metadata.Partition, lso, hw metadata.Offset) {
	e.Helper()
	v := e.view(s, at.Block)
	if v.LSO(at.Slot) != lso || v.HighWatermark(at.Slot) != hw {
		e.Fatalf("last stable offset %d, high watermark %d; want %d, %d", v.LSO(at.Slot), v.HighWatermark(at.Slot), lso, hw)
	}
}

func (e *env) aborted(s *metadata.Store, at metadata.Partition, from, to metadata.Offset) []metadata.AbortedTxn {
	e.Helper()
	found, err := s.Aborted(e.Context(), []metadata.AbortedQuery{{Partition: place(at), From: from, To: to}})
	e.must(err)
	return found[0]
}

// testTxnProduce: what a batch of a transaction may do, by both protocols.
func testTxnProduce(e *env) {
	s := e.store()
	p := e.topic(s, "t", 66).Partitions
	a := e.newActor(s, "a")
	e.expect("not in the transaction", e.one(s, p[0], a.batch(p[0], 1, false)), metadata.CodeInvalidTxnState, -1)
	b := a.batch(p[0], 1, true)
	b.Epoch = 1
	e.expect("an epoch that never was", e.one(s, p[0], b), metadata.CodeFenced, -1)
	b = a.batch(p[0], 1, true)
	b.Producer += 100
	e.expect("nobody's producer id", e.one(s, p[0], b), metadata.CodeInvalidTxnState, -1)
	b = a.batch(p[0], 1, true)
	b.First, b.Last = 3, 3
	e.expect("not the first of the transaction", e.one(s, p[0], b), metadata.CodeNotYet, -1)
	e.stable(s, p[0], 0, 0)

	e.one(s, p[0], plain(2))
	for i, r := range a.write(s, p[0], p[65]) {
		if r.Code != metadata.CodeAccepted {
			e.Fatalf("batch %d: %+v", i, r)
		}
	}
	e.one(s, p[0], plain(1))
	e.stable(s, p[0], 2, 4)
	e.expect("again", e.one(s, p[0], idempotentTxn(a, 0)), metadata.CodeDuplicate, 2)
	e.expect("not of the transaction", e.one(s, p[0], idempotent(a.producer, a.epoch, 1, 1)), metadata.CodeInvalidTxnState, -1)
	b = a.batch(p[0], 1, true)
	b.Flags |= metadata.FlagControl
	e.expect("a marker", e.one(s, p[0], b), metadata.CodeInvalidTxnState, -1)
	_, txns, err := s.LoadTxns(e.Context(), "a", "nobody")
	e.must(err)
	if t := txns[0]; t.State != metadata.TxnOngoing || len(t.Open) != 2 || t.Started == 0 || txns[1].Version != 0 {
		e.Fatalf("%+v", txns)
	}

	late := a.batch(p[0], 1, true)
	a.end(s, false)
	e.stable(s, p[0], 5, 5) // the marker has an offset
	e.stable(s, p[65], 2, 2)
	e.expect("late", e.one(s, p[0], late), metadata.CodeFenced, -1)
	want := metadata.AbortedTxn{Partition: place(p[0]), Marker: 4, First: 2, Producer: a.producer, LSO: 5}
	if got := e.aborted(s, p[0], 0, 5); len(got) != 1 || got[0] != want {
		e.Fatalf("aborted %+v, want %+v", got, want)
	}
	a.write(s, p[0])
	a.end(s, true)
	e.stable(s, p[0], 7, 7)
	if got := e.aborted(s, p[0], 0, 7); len(got) != 1 {
		e.Fatalf("aborted %+v", got)
	}
	if err := s.EndTxn(e.Context(), a.id, a.rule(true)); !errors.Is(err, errEnded) {
		e.Fatalf("nothing to end: %v", err)
	}
	other := e.store() // cold, from the rows
	e.stable(other, p[0], 7, 7)
	list, err := other.Producers(e.Context(), place(p[0]))
	e.must(err)
	if len(list) != 1 || list[0].Producer != a.producer || list[0].Epoch != 2 || list[0].TxnStart != -1 {
		e.Fatalf("producers %+v", list)
	}
}

func idempotentTxn(a *actor, first metadata.Sequence) metadata.Batch {
	b := idempotent(a.producer, a.epoch, first, 1)
	b.Flags, b.Joins = metadata.FlagTransactional, true
	return b
}

// testTxnOriginal: partitions that were added may be written to, from any sequence on.
func testTxnOriginal(e *env) {
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	a := e.newActor(s, "a")
	add := func(parts ...metadata.Partition) {
		e.must(s.ChangeTxn(e.Context(), a.id, func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
			row := t.TxnRow
			row.State, row.Started, row.Protocol = metadata.TxnOngoing, now, metadata.TxnOriginal
			c := &metadata.TxnChange{Row: row}
			for _, x := range parts {
				c.Add = append(c.Add, place(x))
			}
			return c, nil
		}))
	}
	keep := func(commit bool) metadata.TxnRule {
		return func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
			c, err := a.rule(commit)(now, t)
			if err == nil {
				c.Row.Epoch, c.Epoch = a.epoch, a.epoch
			}
			return c, err
		}
	}
	add(p[0])
	e.expect("added", e.one(s, p[0], a.batch(p[0], 2, false)), metadata.CodeAccepted, 0)
	a.seq[place(p[0])] = 2
	e.expect("not added", e.one(s, p[1], a.batch(p[1], 2, false)), metadata.CodeInvalidTxnState, -1)
	add(p[1]) // and nothing is written to it
	e.must(s.EndTxn(e.Context(), a.id, keep(true)))
	e.stable(s, p[0], 3, 3)
	e.stable(s, p[1], 1, 1)
	e.expect("after the end", e.one(s, p[0], a.batch(p[0], 1, false)), metadata.CodeInvalidTxnState, -1)
	add(p[0])
	e.expect("in the next, sequences go on", e.one(s, p[0], a.batch(p[0], 1, false)), metadata.CodeAccepted, 3)
	e.must(s.EndTxn(e.Context(), a.id, keep(false)))
	if got := e.aborted(s, p[0], 0, 5); len(got) != 1 || got[0].First != 3 || got[0].Marker != 4 {
		e.Fatalf("aborted %+v", got)
	}
	// A client that was upgraded in the middle of an epoch: the batch joins with a sequence that is not 0.
	a.seq[place(p[0])] = 3
	e.expect("joins in the middle", e.one(s, p[0], a.batch(p[0], 1, true)), metadata.CodeAccepted, 5)
	a.end(s, true)
	e.stable(s, p[0], 7, 7)
}

// testTxnAborted: the search for aborted transactions gives all that may touch a range, and stops behind them.
func testTxnAborted(e *env) {
	s := e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	long, short := e.newActor(s, "long"), e.newActor(s, "short")
	long.write(s, p) // 0
	for range 5 {    // 1, 3, …; their markers 2, 4, …
		short.write(s, p)
		short.end(s, false)
	}
	e.stable(s, p, 0, 11)
	long.end(s, false) // 11
	for range 3 {
		short.write(s, p) // 12, 14, 16
		short.end(s, false)
	}
	e.stable(s, p, 18, 18)
	for _, c := range []struct {
		from, to metadata.Offset
		want     []metadata.Offset // markers
	}{
		{0, 1, []metadata.Offset{11}},
		{0, 2, []metadata.Offset{2, 11}},
		{3, 4, []metadata.Offset{4, 11}},
		{5, 11, []metadata.Offset{6, 8, 10, 11}},
		{11, 12, []metadata.Offset{11}},
		{12, 14, []metadata.Offset{13}},
		{0, 18, []metadata.Offset{2, 4, 6, 8, 10, 11, 13, 15, 17}},
		{18, 20, nil},
	} {
		var got []metadata.Offset
		for _, a := range e.aborted(s, p, c.from, c.to) {
			got = append(got, a.Marker)
		}
		if !slices.Equal(got, c.want) {
			e.Errorf("from %d to %d: markers %v, want %v", c.from, c.to, got, c.want)
		}
	}
	_, err := s.DeleteRecords(e.Context(), []metadata.DeleteRecords{{Partition: place(p), Before: 9}})
	e.must(err)
	next, removed, err := e.db.Driver(e.T).PruneAborted(e.Context(), metadata.PartitionID{}, 10, 10)
	e.must(err)
	if removed != 4 || next != (metadata.PartitionID{}) {
		e.Fatalf("%d removed, next %v", removed, next)
	}
	if got := e.aborted(s, p, 0, 18); len(got) != 5 {
		e.Fatalf("%d aborted are left", len(got))
	}
}

// testTxnOffsets: offsets of a transaction are seen when it is committed, and never when it is aborted.
func testTxnOffsets(e *env) {
	s := e.store()
	topic := e.topic(s, "t", 2)
	a := e.newActor(s, "a")
	refusal := errors.New("refused")
	var check error
	send := func(offset metadata.Offset) error {
		return s.ChangeTxn(e.Context(), a.id, func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
			row := t.TxnRow
			if row.State != metadata.TxnOngoing {
				row.State, row.Started = metadata.TxnOngoing, now
			}
			return &metadata.TxnChange{Row: row, Offsets: &metadata.OffsetCommit{
				Group: "g", Check: func(metadata.Millis, *metadata.GroupRow, []metadata.MemberRow) error { return check },
				Offsets: []metadata.GroupOffset{{
					TopicPartition: metadata.TopicPartition{Topic: topic.ID, Partition: 1}, Offset: offset, LeaderEpoch: -1,
				}},
			}}, nil
		})
	}
	query := []metadata.OffsetQuery{{Group: "g", All: true}, {Group: "g", Partitions: []metadata.TopicPartition{{Topic: topic.ID}}}}
	expect := func(what string, offset metadata.Offset, pending int) {
		e.Helper()
		found, err := s.PendingOffsets(e.Context(), query)
		e.must(err)
		if len(found[0]) != pending || len(found[1]) != 0 {
			e.Fatalf("%s: pending %v", what, found)
		}
		offsets, err := s.LoadOffsets(e.Context(), query)
		e.must(err)
		got := metadata.Offset(-1)
		for _, o := range offsets[0] {
			got = o.Offset
		}
		if got != offset {
			e.Fatalf("%s: offset %d, want %d", what, got, offset)
		}
	}
	check = refusal
	if err := send(1); !errors.Is(err, refusal) {
		e.Fatalf("refused by the group: %v", err)
	}
	expect("refused", -1, 0)
	check = nil
	e.must(send(5), send(7))
	expect("pending", -1, 1)
	a.write(s, topic.Partitions[0])
	a.end(s, true) // with markers
	expect("committed", 7, 0)
	e.must(send(9))
	a.write(s, topic.Partitions[0])
	a.end(s, false)
	expect("aborted", 7, 0)
	e.must(send(11))
	a.end(s, true) // without any partition
	expect("committed alone", 11, 0)
	e.must(send(13))
	a.end(s, false)
	expect("aborted alone", 11, 0)
}

// testTxnDue: transactions that have timed out are found, and unused transactional ids go.
func testTxnDue(e *env) {
	s := e.store()
	d := e.db.Driver(e.T)
	p := e.topic(s, "t", 1).Partitions[0]
	for i, timeout := range []time.Duration{time.Hour, time.Millisecond} {
		a := e.newActor(s, metadata.TransactionalID(fmt.Sprint(i)))
		e.must(s.ChangeTxn(e.Context(), a.id, func(now metadata.Millis, t *metadata.Txn) (*metadata.TxnChange, error) {
			row := t.TxnRow
			row.Timeout = timeout
			return &metadata.TxnChange{Row: row}, nil
		}))
		a.write(s, p)
	}
	e.newActor(s, "unused")
	var due []metadata.TransactionalID
	for len(due) == 0 && e.within().Err() == nil {
		var err error
		due, err = s.DueTxns(e.Context(), 10)
		e.must(err)
	}
	if !slices.Equal(due, []metadata.TransactionalID{"1"}) {
		e.Fatalf("due: %v", due)
	}
	n := 0
	for n == 0 && e.within().Err() == nil {
		var err error
		n, err = d.ExpireTxns(e.Context(), time.Millisecond, 10)
		e.must(err)
	}
	_, rows, err := s.ListTxns(e.Context(), "", 10)
	e.must(err)
	if n != 1 || len(rows) != 2 || rows[0].ID != "0" || rows[1].ID != "1" {
		e.Fatalf("%d expired, left %+v", n, rows)
	}
	ids, err := s.TxnsOf(e.Context(), rows[1].Producer, 1<<40)
	e.must(err)
	if !slices.Equal(ids, []metadata.TransactionalID{"1"}) {
		e.Fatalf("of the producer: %v", ids)
	}
}

// testTxnFaults ends transactions with a fault at every point: in all partitions or in none.
func testTxnFaults(e *env) {
	for f := failBefore; int(f) < numberOfFaults; f++ {
		for _, commit := range []bool{false, true} {
			next := noFault
			d := &faulty{Driver: e.db.Driver(e.T), choose: func() fault {
				f := next
				next = noFault
				return f
			}}
			s := e.storeWith(metadata.Options{Driver: d})
			p := e.topic(s, fmt.Sprintf("t%d%v", f, commit), 66).Partitions
			a := e.newActor(s, metadata.TransactionalID(fmt.Sprint(f, commit)))
			a.write(s, p[0], p[1], p[65])
			next = f
			err := s.EndTxn(e.Context(), a.id, a.rule(commit))
			unknown := f == failLost || f == failUnknown
			if (err == nil) != unknown {
				e.Fatalf("fault %d: %v", f, err) // an unknown outcome is found out
			}
			hw := metadata.Offset(1)
			if unknown {
				hw = 2
			}
			for _, at := range []metadata.Partition{p[0], p[1], p[65]} {
				for _, store := range []*metadata.Store{s, e.store()} {
					lso := hw
					if !unknown {
						lso = 0
					}
					e.stable(store, at, lso, hw)
				}
			}
			if err != nil {
				a.end(s, commit)
			} else {
				a.next()
			}
			for _, at := range []metadata.Partition{p[0], p[1], p[65]} {
				e.stable(s, at, 2, 2)
				if got := e.aborted(s, at, 0, 2); (len(got) == 1) == commit {
					e.Fatalf("fault %d, commit %v: aborted %v", f, commit, got)
				}
			}
			a.write(s, p[0])
			a.end(s, true)
			e.stable(s, p[0], 4, 4)
		}
	}
}

// testTxnMarkers: what hangs because nobody knows it can be ended in its partition.
func testTxnMarkers(e *env) {
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	a := e.newActor(s, "a")
	a.write(s, p[0])
	parts := []metadata.PartitionID{place(p[0]), place(p[1])}
	r, err := s.WriteMarkers(e.Context(), a.producer, a.epoch, parts, false, markerBytes)
	e.must(err)
	if r[0].Code != metadata.CodeAccepted || r[0].Base != 1 || r[1].Code != metadata.CodeInvalidTxnState {
		e.Fatalf("%+v", r)
	}
	e.stable(s, p[0], 2, 2)
	if got := e.aborted(s, p[0], 0, 2); len(got) != 1 {
		e.Fatalf("aborted %+v", got)
	}
}

// testTxnRandom lets transactional producers write to several partitions through several Stores whose commits fail at
// random, end their transactions at random, and be ended by a sweeper. Then everything is read back: each transaction
// that was committed is there whole, of the others nothing is.
func testTxnRandom(e *env) {
	const stores, actors, partitions = 3, 6, 5
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	var all []*metadata.Store
	for i := range stores {
		random := rand.New(rand.NewPCG(11, uint64(i)))
		d := &faulty{Driver: e.db.Driver(e.T), choose: func() fault { return fault(max(0, random.IntN(12)-6)) }}
		s := e.storeWith(metadata.Options{Driver: d, CheckpointRows: 20})
		e.run(s)
		all = append(all, s)
	}
	calm := e.store()
	p := slices.Clone(e.topic(calm, "t", 66).Partitions[66-partitions:])
	p[0] = e.topic(calm, "u", 1).Partitions[0]
	books := make([]txnBook, actors)
	var wg sync.WaitGroup
	errs := make(chan error, actors)
	for i := range actors {
		a := e.newActor(calm, metadata.TransactionalID(fmt.Sprint("actor", i)))
		wg.Go(func() {
			random := rand.New(rand.NewPCG(12, uint64(i)))
			for range rounds {
				if err := a.transact(all, random, p, &books[i]); err != nil {
					errs <- fmt.Errorf("actor %d, epoch %d: %w", i, a.epoch, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		e.Error(err)
	}
	e.checkTxns(calm, p, books)
}

// testTxnRace lets several Stores end the same transaction both ways while its producer still writes: one of them does.
func testTxnRace(e *env) {
	const enders = 4
	rounds := 15
	if testing.Short() {
		rounds = 5
	}
	s := e.store()
	p := e.topic(s, "t", 66).Partitions
	stores := []*metadata.Store{s}
	for len(stores) < enders {
		stores = append(stores, e.store())
	}
	a := e.newActor(s, "a")
	want, wrote, commits := metadata.Offset(0), 0, 0
	for range rounds {
		a.write(s, p[0], p[65])
		var wg sync.WaitGroup
		results := make([]error, enders)
		for i, at := range stores {
			wg.Go(func() { results[i] = at.EndTxn(e.Context(), a.id, a.rule(i%2 == 0)) })
		}
		late := make(chan metadata.BatchResult, 1)
		b := a.batch(p[1], 1, true)
		go func() { late <- e.one(stores[enders-1], p[1], b) }()
		wg.Wait()
		won := 0
		for i, err := range results {
			switch {
			case err == nil:
				won++
				if i%2 == 0 {
					commits++
				}
			case !errors.Is(err, errEnded):
				e.Fatalf("ender %d: %v", i, err)
			}
		}
		if won != 1 {
			e.Fatalf("%d have ended the transaction", won)
		}
		switch r := <-late; r.Code {
		case metadata.CodeAccepted:
			wrote++
		case metadata.CodeFenced:
		default:
			e.Fatalf("the late batch: %+v", r)
		}
		a.next()
		want += 2
		e.stable(s, p[0], want, want)
		e.stable(s, p[65], want, want)
		e.stable(s, p[1], metadata.Offset(2*wrote), metadata.Offset(2*wrote))
	}
	if n := len(e.aborted(s, p[0], 0, want)); n != rounds-commits {
		e.Errorf("%d aborted, %d commits in %d rounds", n, commits, rounds)
	}
}
