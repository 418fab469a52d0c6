package metadatatest

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/metadata"
)

func testOffsets(e *env) {
	s := e.store()
	p := e.topic(s, "t", 70).Partitions
	before, err := s.Now(e.Context())
	e.must(err)
	ts := plain(2)
	ts.MaxTimestamp = 1000
	r := e.commit(s, e.flush(s, of(p[0], plain(3), ts), of(p[1], plain(1)), of(p[69], plain(5))))
	for i, want := range []metadata.Offset{0, 3, 0, 0} {
		e.expect(fmt.Sprint("first flush, batch ", i), r[i], metadata.CodeAccepted, want)
	}
	// Two flushes of one commit: the second goes on where the first ends.
	both, err := s.Commit(e.Context(), []*metadata.Flush{
		e.flush(s, of(p[0], plain(10))), e.flush(s, of(p[0], plain(1)), of(p[69], plain(1))),
	})
	e.must(err)
	e.expect("flush 1 of 2", both[0].Batches[0], metadata.CodeAccepted, 5)
	e.expect("flush 2 of 2", both[1].Batches[0], metadata.CodeAccepted, 15)
	e.expect("flush 2 of 2, second block", both[1].Batches[1], metadata.CodeAccepted, 5)
	for _, store := range []*metadata.Store{s, e.store()} {
		v := e.view(store, p[0].Block)
		if v.Seq != 3 || v.HighWatermark(p[0].Slot) != 16 || v.HighWatermark(p[1].Slot) != 1 || v.HighWatermark(p[2].Slot) != 0 {
			e.Fatalf("view at seq %d: %v", v.Seq, v.Photo.Next)
		}
		if v.Photo.MaxTS[p[0].Slot] != 1000 || v.Photo.MaxTS[p[1].Slot] != metadata.NoTimestamp {
			e.Fatalf("running maximum timestamps %v", v.Photo.MaxTS)
		}
		if v.Photo.Bytes[p[0].Slot] != 70*16 || v.LSO(p[0].Slot) != 16 || v.LogStart(p[0].Slot) != 0 {
			e.Fatalf("bytes %d, LSO %d, log start %d", v.Photo.Bytes[p[0].Slot], v.LSO(p[0].Slot), v.LogStart(p[0].Slot))
		}
		if hw := e.highWatermark(store, p[69]); hw != 6 {
			e.Fatalf("high watermark in the second block %d, want 6", hw)
		}
	}
	rows, err := s.Locate(e.Context(), []metadata.LocateQuery{{Block: p[1].Block, Slot: p[1].Slot, MaxRows: 1}})
	e.must(err)
	if len(rows[0]) != 1 || rows[0][0].Seq != 1 {
		e.Fatalf("located %+v", rows)
	}
	if after, err := s.Now(e.Context()); err != nil || after < before {
		e.Fatalf("database time went from %d to %d, %v", before, after, err)
	}
}

func testRefusedFlush(e *env) {
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	for name, spoil := range map[string]func(f *metadata.Flush){
		"slot order":  func(f *metadata.Flush) { f.Extents[0], f.Extents[1] = f.Extents[1], f.Extents[0] },
		"block order": func(f *metadata.Flush) { f.Extents[1].Block-- },
		"twice":       func(f *metadata.Flush) { f.Extents[1].Slot = f.Extents[0].Slot },
		"slot":        func(f *metadata.Flush) { f.Extents[1].Slot = metadata.SlotsPerBlock },
		"no records":  func(f *metadata.Flush) { f.Extents[0].Batches[0].Records = 0 },
		"sequence":    func(f *metadata.Flush) { f.Extents[0].Batches[0].First = -2 },
	} {
		f := e.flush(s, of(p[0], plain(1)), of(p[1], plain(1)))
		spoil(f)
		if _, err := s.Commit(e.Context(), []*metadata.Flush{f}); err == nil {
			e.Errorf("a flush with bad %s was committed", name)
		}
	}
	if got := e.counts(); got != "0 0 0 0" {
		e.Fatalf("rows after refused flushes: %s", got)
	}
}

func testDecideFails(e *env) {
	d := e.db.Driver(e.T)
	e.topic(metadata.NewStore(metadata.Options{Driver: d}), "t", 1)
	id, err := metadata.NewFlushID()
	e.must(err)
	refused := errors.New("refused")
	err = d.Commit(e.Context(), metadata.CommitLoad{
		Inline: []metadata.InlinePayload{{Flush: id, Payload: [][]byte{{1}}, Size: 1}}, Flushes: []metadata.FlushID{id},
		Blocks: []metadata.BlockSeq{{Block: 1, Seq: metadata.SeqCold}},
	}, func(l *metadata.CommitLoaded) (*metadata.CommitSave, error) {
		if !l.InlineNew[id] || len(l.Blocks) != 1 || len(l.Receipts) != 0 || l.Now == 0 {
			e.Errorf("loaded %+v", l)
		}
		return nil, refused
	})
	if !errors.Is(err, refused) {
		e.Fatalf("error of a commit whose decide failed: %v", err)
	}
	if got := e.counts(); got != "0 0 0 0" {
		e.Fatalf("rows after a commit whose decide failed: %s", got)
	}
}

func testInline(e *env) {
	s := e.store()
	p := e.topic(s, "t", 3).Partitions
	f := e.flush(s, of(p[0], plain(2)), of(p[1], plain(700)))
	e.commit(s, f)
	missing, err := metadata.NewFlushID()
	e.must(err)
	whole := bytes.Join(f.Inline, nil)
	parts := []metadata.InlinePart{
		{Flush: f.ID, Position: 0, Length: 140},
		{Flush: f.ID, Position: 140, Length: 49000},
		{Flush: missing, Position: 0, Length: 1},
		{Flush: f.ID, Position: 139, Length: 2},
		{Flush: f.ID, Position: 49139, Length: 1},
	}
	got, err := e.store().LoadInline(e.Context(), parts)
	e.must(err)
	for i, part := range parts {
		if part.Flush == missing {
			if got[i] != nil {
				e.Errorf("a payload that is not there gave %d bytes", len(got[i]))
			}
			continue
		}
		if want := whole[part.Position : part.Position+part.Length]; !bytes.Equal(got[i], want) {
			e.Errorf("part %d: %d bytes differ from the %d asked for", i, len(got[i]), part.Length)
		}
	}
}

func testInlineResident(e *env) {
	d := e.db.Driver(e.T)
	s := e.storeWith(metadata.Options{Driver: d})
	p := e.topic(s, "t", 1).Partitions[0]
	e.one(s, p, plain(10))
	check := func(want int64) {
		e.Helper()
		n, err := d.InlineResident(e.Context())
		e.must(err)
		if n != want {
			e.Fatalf("%d bytes of inline payloads, want %d", n, want)
		}
	}
	check(700)
	f := e.flush(s, of(p, plain(1)))
	e.commit(s, f)
	check(770)
	e.commit(s, copyOf(f)) // the payload is there already
	check(770)
	gone := metadata.Partition{Block: p.Block + 100, Slot: 1}
	e.expect("no such block", e.one(s, gone, plain(3)), metadata.CodeUnknownPartition, -1)
	check(770)
	e.commit(s, e.uploaded(s, "k", of(p, plain(1))))
	check(770)
}

func testSequences(e *env) {
	s := e.store()
	p := e.topic(s, "t", 2).Partitions
	ids, err := s.AllocateProducerIDs(e.Context(), 2)
	e.must(err)
	a, b := ids.First, ids.First+1
	at := p[0]
	step := func(what string, batch metadata.Batch, code metadata.Code, base metadata.Offset) {
		e.Helper()
		e.expect(what, e.one(s, at, batch), code, base)
	}
	for i := range metadata.Sequence(7) {
		step(fmt.Sprint("batch ", i), idempotent(a, 0, 2*i, 2), metadata.CodeAccepted, metadata.Offset(2*i))
	}
	for i := metadata.Sequence(2); i < 7; i++ {
		step(fmt.Sprint("retry of batch ", i), idempotent(a, 0, 2*i, 2), metadata.CodeDuplicate, metadata.Offset(2*i))
	}
	step("retry of the sixth last", idempotent(a, 0, 2, 2), metadata.CodeOutOfOrder, -1)
	step("half of a known batch", idempotent(a, 0, 12, 1), metadata.CodeOutOfOrder, -1)
	step("gap", idempotent(a, 0, 15, 1), metadata.CodeNotYet, -1)
	step("another producer", idempotent(b, 0, 0, 1), metadata.CodeAccepted, 14)
	step("after the gap's refusal", idempotent(a, 0, 14, 1), metadata.CodeAccepted, 15)
	step("new epoch not from 0", idempotent(a, 1, 15, 1), metadata.CodeNotYet, -1)
	step("new epoch", idempotent(a, 1, 0, 1), metadata.CodeAccepted, 16)
	step("old epoch", idempotent(a, 0, 15, 1), metadata.CodeFenced, -1)
	step("retry under the old epoch", idempotent(a, 0, 14, 1), metadata.CodeFenced, -1)
	step("history of the old epoch is gone", idempotent(a, 1, 14, 1), metadata.CodeNotYet, -1)
	step("retry under the new epoch", idempotent(a, 1, 0, 1), metadata.CodeDuplicate, 16)
	at = p[1]
	step("each partition has its own sequences", idempotent(a, 1, 0, 3), metadata.CodeAccepted, 0)

	// Within one flush and within one commit, batches see those before them; what is refused gets no offsets.
	r := e.commit(s, e.flush(s, of(p[1], idempotent(a, 1, 3, 1), idempotent(a, 1, 3, 1), idempotent(a, 1, 9, 1), plain(1))))
	e.expect("next", r[0], metadata.CodeAccepted, 3)
	e.expect("same again", r[1], metadata.CodeDuplicate, 3)
	e.expect("gap in a flush", r[2], metadata.CodeNotYet, -1)
	e.expect("after a refused batch", r[3], metadata.CodeAccepted, 4)
	two, err := s.Commit(e.Context(), []*metadata.Flush{
		e.flush(s, of(p[1], idempotent(a, 1, 4, 2))), e.flush(s, of(p[1], idempotent(a, 1, 4, 2))),
	})
	e.must(err)
	e.expect("first flush", two[0].Batches[0], metadata.CodeAccepted, 5)
	e.expect("second flush", two[1].Batches[0], metadata.CodeDuplicate, 5)

	// Another Store decides alike, from the rows.
	s, at = e.store(), p[1]
	step("retry at another agent", idempotent(a, 1, 4, 2), metadata.CodeDuplicate, 5)
	step("next at another agent", idempotent(a, 1, 6, 1), metadata.CodeAccepted, 7)
	for i, want := range []metadata.Offset{17, 8} {
		if hw := e.highWatermark(s, p[i]); hw != want {
			e.Errorf("high watermark of partition %d: %d, want %d", i, hw, want)
		}
	}
}

func testSequenceWrap(e *env) {
	s := e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	const unknown metadata.ProducerID = 1 << 40 // handed out by nobody: its first sequence may be any
	last := metadata.MaxSequence
	e.expect("near the end", e.one(s, p, idempotent(unknown, 0, last-4, 3)), metadata.CodeAccepted, 0)
	e.expect("across the end", e.one(s, p, idempotent(unknown, 0, last-1, 4)), metadata.CodeAccepted, 3)
	e.expect("retry across the end", e.one(s, p, idempotent(unknown, 0, last-1, 4)), metadata.CodeDuplicate, 3)
	e.expect("gap after the end", e.one(s, p, idempotent(unknown, 0, 3, 1)), metadata.CodeNotYet, -1)
	e.expect("behind, before the end", e.one(s, p, idempotent(unknown, 0, last-9, 1)), metadata.CodeOutOfOrder, -1)
	e.expect("after the end", e.one(s, p, idempotent(unknown, 0, 2, 1)), metadata.CodeAccepted, 7)
	b := idempotent(unknown+1, 0, last, 1)
	e.expect("the last sequence", e.one(s, p, b), metadata.CodeAccepted, 8)
	e.expect("0 comes after it", e.one(s, p, idempotent(unknown+1, 0, 0, 1)), metadata.CodeAccepted, 9)
}

func testHold(e *env) {
	s := e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	ids, err := s.AllocateProducerIDs(e.Context(), 3)
	e.must(err)
	other := e.store() // has not handed the ids out itself
	for _, store := range []*metadata.Store{s, other} {
		e.expect("new producer, not from 0", e.one(store, p, idempotent(ids.First, 0, 5, 1)), metadata.CodeNotYet, -1)
	}
	old := p
	old.Created = ids.At + 1 // the partition is younger than the id: its state may have been lost with another partition
	e.expect("older than the partition", e.one(other, old, idempotent(ids.First+1, 0, 5, 1)), metadata.CodeAccepted, 0)
	e.expect("handed out by nobody", e.one(s, p, idempotent(1<<41, 0, 5, 1)), metadata.CodeAccepted, 1)
	e.expect("from 0", e.one(other, p, idempotent(ids.First, 0, 0, 5)), metadata.CodeAccepted, 2)
	e.expect("what was held", e.one(s, p, idempotent(ids.First, 0, 5, 1)), metadata.CodeAccepted, 7)
}

func testDeletedPartition(e *env) {
	s, other := e.store(), e.store()
	p := e.topic(s, "gone", 2).Partitions
	q := e.topic(s, "stays", 1).Partitions[0]
	if q.Block != p[0].Block {
		e.Fatalf("small topics do not share a block: %v, %v", p, q)
	}
	e.one(other, p[0], plain(1))
	_, errs, err := s.DeleteTopics(e.Context(), []metadata.TopicRef{{Name: "gone"}})
	e.must(append(errs, err)...)
	for _, store := range []*metadata.Store{s, other} {
		r := e.commit(store, e.flush(store, of(p[0], plain(1)), of(p[1], plain(1)), of(q, plain(4))))
		e.expect("deleted", r[0], metadata.CodeUnknownPartition, -1)
		e.expect("deleted, never written", r[1], metadata.CodeUnknownPartition, -1)
		if r[2].Code != metadata.CodeAccepted {
			e.Fatalf("a neighbour in the block got code %d", r[2].Code)
		}
		v := e.view(store, p[0].Block)
		if !v.Deleted(p[0].Slot) || !v.Deleted(p[1].Slot) || v.Deleted(q.Slot) {
			e.Fatalf("deleted bits %b", v.Row.Deleted)
		}
	}
	before := e.counts()
	f := e.flush(s, of(p[0], plain(1)))
	e.expect("all refused", e.commit(s, f)[0], metadata.CodeUnknownPartition, -1)
	if e.db.Count(e.T, "inline") != 3 || e.db.Count(e.T, "level0") != 3 {
		e.Fatalf("a flush with nothing accepted left rows: %s, before %s", e.counts(), before)
	}
}

func testStaleConfigs(e *env) {
	s, other := e.store(), e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	q := e.topic(s, "u", 64).Partitions[0]
	validated := plain(1)
	validated.Validated = e.version(other)
	e.expect("valid", e.one(other, p, validated), metadata.CodeAccepted, 0)
	errs, err := s.AlterConfigs(e.Context(), []metadata.ConfigChange{{Topic: "t", Set: map[string]string{"a": "b"}}})
	e.must(append(errs, err)...)
	r := e.commit(other, e.flush(other, of(p, validated), of(q, validated)))
	e.expect("validated before the change", r[0], metadata.CodeStale, -1)
	e.expect("another block", r[1], metadata.CodeAccepted, 0)
	validated.Validated = e.version(other)
	e.expect("validated again", e.one(other, p, validated), metadata.CodeAccepted, 1)
}

func testReceipts(e *env) {
	s, other := e.store(), e.store()
	p := e.topic(s, "t", 66).Partitions
	f := e.flush(s,
		of(p[0], plain(2), idempotent(1<<40, 3, 0, 1)), of(p[1], idempotent(1<<40, 3, 0, 4)),
		of(p[65], plain(1), idempotent(1<<40, 3, 0, 2)))
	dup := e.flush(s, of(p[0], idempotent(1<<40, 3, 0, 1), idempotent(1<<40, 3, 9, 1), idempotent(1<<40, 2, 0, 1)))
	first, err := s.Commit(e.Context(), []*metadata.Flush{copyOf(f), copyOf(dup)})
	e.must(err)
	for range 3 {
		e.one(other, p[0], plain(9))
	}
	_, err = s.DeleteRecords(e.Context(), []metadata.DeleteRecords{{
		Partition: metadata.PartitionID{Block: p[0].Block, Slot: p[0].Slot}, Before: 7,
	}})
	e.must(err)
	before := e.counts()
	for i, store := range []*metadata.Store{s, other, e.store()} {
		again, err := store.Commit(e.Context(), []*metadata.Flush{copyOf(dup), copyOf(f)})
		e.must(err)
		for j, got := range []metadata.FlushResult{again[1], again[0]} {
			if !got.Resubmitted || got.Err != nil || len(got.Batches) != len(first[j].Batches) {
				e.Fatalf("store %d, flush %d resubmitted: %+v", i, j, got)
			}
			for k, b := range got.Batches {
				if want := first[j].Batches[k]; b.Code != want.Code || b.Base != want.Base {
					e.Errorf("store %d, flush %d, batch %d: %+v resubmitted, was %+v", i, j, k, b, want)
				}
			}
			if start := got.Batches[0].LogStart; start != 7 {
				e.Errorf("log start of a resubmitted flush %d, want the present one", start)
			}
		}
	}
	if after := e.counts(); after != before {
		e.Fatalf("rows before resubmissions %s, after %s", before, after)
	}
	if hw := e.highWatermark(e.store(), p[0]); hw != 30 {
		e.Fatalf("high watermark %d after resubmissions, want 30", hw)
	}
	// A receipt answers however old the flush is.
	old := copyOf(f)
	old.Seen -= 10 * 60 * 1000
	if r := e.commitResult(s, old); r.Err != nil || !r.Resubmitted {
		e.Fatalf("an old flush with a receipt: %+v", r)
	}
}

func testReceiptsExpire(e *env) {
	d := e.db.Driver(e.T)
	s := e.storeWith(metadata.Options{Driver: d})
	p := e.topic(s, "t", 1).Partitions[0]
	for range 7 {
		e.one(s, p, plain(1))
	}
	n, err := d.ExpireReceipts(e.Context(), time.Hour, 100)
	e.must(err)
	if n != 0 {
		e.Fatalf("%d young receipts expired", n)
	}
	for _, want := range []int{3, 3, 1, 0} { // -1 s: they all are older than a moment from now
		if n, err = d.ExpireReceipts(e.Context(), -time.Second, 3); err != nil || n != want {
			e.Fatalf("%d receipts expired, %v; want %d", n, err, want)
		}
	}
	if n := e.db.Count(e.T, "receipts"); n != 0 {
		e.Fatalf("%d receipts left", n)
	}
}

func testTooOld(e *env) {
	s := e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	e.one(s, p, plain(1))
	before := e.counts()
	old, fresh := e.flush(s, of(p, plain(1))), e.flush(s, of(p, plain(1)))
	old.Seen -= metadata.Millis((metadata.MaxResubmit + time.Second).Milliseconds())
	if r := e.commitResult(s, old); !errors.Is(r.Err, metadata.ErrFlushTooOld) || r.Batches != nil {
		e.Fatalf("a flush older than MaxResubmit: %+v", r)
	}
	if after := e.counts(); after != before {
		e.Fatalf("rows before a flush that is too old %s, after %s", before, after)
	}
	fresh.Seen -= metadata.Millis((metadata.MaxResubmit - 5*time.Second).Milliseconds())
	e.expect("just young enough", e.commit(s, fresh)[0], metadata.CodeAccepted, 1)
}

func testCondemned(e *env) {
	s := e.store()
	p := e.topic(s, "t", 1).Partitions[0]
	e.one(s, p, plain(1))
	e.db.SetObject(e.T, metadata.ObjectRow{Key: "condemned", Size: 1, State: metadata.ObjectCondemned})
	before := e.counts()
	f, good := e.uploaded(s, "condemned", of(p, plain(1))), e.flush(s, of(p, plain(1)))
	if _, err := s.Commit(e.Context(), []*metadata.Flush{good, f}); !errors.Is(err, metadata.ErrCondemned) {
		e.Fatalf("commit of a condemned key: %v", err)
	}
	if after := e.counts(); after != before {
		e.Fatalf("rows before a commit of a condemned key %s, after %s", before, after)
	}
	if v, err := s.View(e.Context(), p.Block); err != nil || v.HighWatermark(p.Slot) != 1 {
		e.Fatalf("high watermark after a refused commit: %+v, %v", v, err)
	}
	f.Object = "again"
	r, err := s.Commit(e.Context(), []*metadata.Flush{good, f})
	e.must(err)
	e.expect("good", r[0].Batches[0], metadata.CodeAccepted, 1)
	e.expect("same flush, new key", r[1].Batches[0], metadata.CodeAccepted, 2)
	if o, ok := e.db.Object(e.T, "again"); !ok || o.State != metadata.ObjectLive || o.Refs != 1 {
		e.Fatalf("object of the new key %+v, %v", o, ok)
	}
	// Resubmitted under the condemned key: the flush is committed already, the key stays condemned.
	f = copyOf(f)
	f.Object = "condemned"
	e.expect("resubmitted", e.commit(s, f)[0], metadata.CodeAccepted, 2)
	if o, _ := e.db.Object(e.T, "condemned"); o.State != metadata.ObjectCondemned {
		e.Fatalf("condemned object became %+v", o)
	}
}

func testObjects(e *env) {
	s := e.store()
	p := e.topic(s, "t", 65).Partitions
	object := func(key metadata.ObjectKey, state metadata.ObjectState, refs int, size int64) {
		e.Helper()
		o, ok := e.db.Object(e.T, key)
		if !ok || o.State != state || o.Refs != refs || o.Size != size {
			e.Fatalf("object %s: %+v, %v; want state %d, %d references, %d bytes", key, o, ok, state, refs, size)
		}
	}
	e.db.SetObject(e.T, metadata.ObjectRow{Key: "registered", Size: 1, State: metadata.ObjectRegistered})
	f := e.uploaded(s, "registered", of(p[0], plain(1)), of(p[64], plain(1)))
	e.commit(s, f)
	object("registered", metadata.ObjectLive, 2, 140)
	hedge := copyOf(f)
	hedge.Object = "hedge"
	e.commit(s, hedge)
	object("hedge", metadata.ObjectGarbage, 0, 140)
	object("registered", metadata.ObjectLive, 2, 140)
	e.commit(s, copyOf(f))
	object("registered", metadata.ObjectLive, 2, 140)
	// Nothing accepted: garbage, until a flush under another id names it.
	held := idempotent(1<<40, 0, 4, 1)
	e.one(s, p[0], idempotent(1<<40, 0, 0, 1))
	e.expect("gap", e.commit(s, e.uploaded(s, "held", of(p[0], held)))[0], metadata.CodeNotYet, -1)
	object("held", metadata.ObjectGarbage, 0, 70)
	e.one(s, p[0], idempotent(1<<40, 0, 1, 3))
	e.expect("no gap", e.commit(s, e.uploaded(s, "held", of(p[0], held)))[0], metadata.CodeAccepted, 5)
	object("held", metadata.ObjectLive, 1, 70)
}
