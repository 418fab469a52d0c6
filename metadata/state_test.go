package metadata

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// rowAfter makes the row that follows s, of one slot.
func rowAfter(s *State, at Millis, slot Slot, batches ...Batch) *Row {
	r := &Row{Block: s.Row.ID, Seq: s.Seq + 1, Time: at, Photo: s.Photo}
	for i := range batches {
		batches[i].Flags |= FlagAccepted
		r.Photo.append(slot, &batches[i])
	}
	r.Touched = []Touched{{Slot: slot, Batches: batches}}
	return r
}

func apply(t *testing.T, s *State, r *Row) {
	t.Helper()
	if err := s.Apply(r); err != nil {
		t.Fatal(err)
	}
}

func TestApplyRefusesOtherRows(t *testing.T) {
	s := NewState(BlockRow{ID: 4})
	apply(t, s, rowAfter(s, 1, 0, Batch{Records: 1, Producer: 7}))
	for name, r := range map[string]*Row{
		"the same row again": {Block: 4, Seq: 1}, "a row too far": {Block: 4, Seq: 3}, "another block's row": {Block: 5, Seq: 2},
	} {
		if err := s.Apply(r); !errors.Is(err, ErrCorrupt) || s.Seq != 1 {
			t.Errorf("%s: %v, seq %d", name, err, s.Seq)
		}
	}
}

func TestApplySkipsWhatWasNotAccepted(t *testing.T) {
	s := NewState(BlockRow{ID: 1})
	r := rowAfter(s, 1, 3, Batch{Records: 2, Producer: 7}, Batch{Records: 5, Producer: 8}, Batch{Records: 3, Producer: 9})
	r.Touched[0].Batches[1].Flags = 0
	r.Photo.Next[3] -= 5
	apply(t, s, r)
	if s.Producers() != 2 || s.producers.get(producerKey{3, 9}).last[0].base != 2 || s.Photo.Next[3] != 5 {
		t.Fatalf("%+v", s.producers)
	}
}

// TestLSO: transactions open at their first batch and end at their control batch.
func TestLSO(t *testing.T) {
	s := NewState(BlockRow{ID: 1})
	txn := func(id ProducerID, n int32) Batch { return Batch{Records: n, Producer: id, Flags: FlagTransactional} }
	end := func(id ProducerID) Batch {
		return Batch{Records: 1, Producer: id, First: -1, Last: -1, Flags: FlagTransactional | FlagControl}
	}
	check := func(slot Slot, want Offset) {
		t.Helper()
		if got := s.LSO(slot); got != want {
			t.Fatalf("LSO of slot %d: %d, want %d", slot, got, want)
		}
		all := s.lsos()
		if all == nil {
			all = &s.Photo.Next
		}
		if all[slot] != want {
			t.Fatalf("LSO of slot %d among all: %d, want %d", slot, all[slot], want)
		}
	}
	apply(t, s, rowAfter(s, 1, 5, Batch{Records: 4, Producer: NoProducer}))
	check(5, 4)
	apply(t, s, rowAfter(s, 1, 5, txn(1, 2), txn(2, 2), txn(1, 2)))
	apply(t, s, rowAfter(s, 1, 6, txn(1, 9)))
	check(5, 4)
	check(6, 0)
	apply(t, s, rowAfter(s, 1, 5, end(1)))
	check(5, 6)
	check(6, 0)
	apply(t, s, rowAfter(s, 1, 5, end(2)))
	check(5, 12)
	apply(t, s, rowAfter(s, 1, 6, end(1)))
	check(6, 10)
}

// TestExpiryIsPartOfTheFold: a state that was folded all along, one from a checkpoint and one that was pruned are alike
// after a batch of a producer that was idle for a day.
func TestExpiryIsPartOfTheFold(t *testing.T) {
	day := Millis(ProducerExpiry.Milliseconds())
	for idle, kept := range map[Millis]bool{day: true, day + 1: false} {
		warm := NewState(BlockRow{ID: 1})
		apply(t, warm, rowAfter(warm, 1000, 0, Batch{Records: 1, Producer: 7, First: 0, Last: 0}))
		apply(t, warm, rowAfter(warm, 1000+idle, 1, Batch{Records: 1, Producer: 8}))
		cold, err := FromCheckpoint(warm.Row, warm.AppendCheckpoint(nil))
		if err != nil {
			t.Fatal(err)
		}
		pruned, err := FromCheckpoint(warm.Row, warm.AppendCheckpoint(nil))
		if err != nil {
			t.Fatal(err)
		}
		pruned.prune()
		row := rowAfter(warm, 1000+idle, 0, Batch{Records: 1, Producer: 7, First: 1, Last: 1})
		for name, s := range map[string]*State{"warm": warm, "cold": cold, "pruned": pruned} {
			if got := s.producer(producerKey{0, 7}, s.Time) != nil; got != kept {
				t.Errorf("%s, idle for %v: known %v, want %v", name, idle.Sub(0), got, kept)
			}
			apply(t, s, row)
			s.producers.hot, s.producers.id = nil, 0
		}
		if !reflect.DeepEqual(warm, cold) || !reflect.DeepEqual(warm, pruned) {
			t.Errorf("idle for %v: states differ:\n%+v\n%+v\n%+v", idle.Sub(0), warm, cold, pruned)
		}
		if n := warm.producers.get(producerKey{0, 7}).n; (n == 2) != kept {
			t.Errorf("idle for %v: %d batches are remembered", idle.Sub(0), n)
		}
	}
}

// TestCheckpointAtEveryRow: folding on from a checkpoint gives what folding all gives, wherever it was made.
func TestCheckpointAtEveryRow(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	s := NewState(BlockRow{ID: 1})
	var rows []*Row
	var checkpoints [][]byte
	at := Millis(1000)
	for range 200 {
		checkpoints = append(checkpoints, s.AppendCheckpoint(nil))
		at += Millis(random.Int64N(3 * time.Hour.Milliseconds()))
		slot := Slot(random.IntN(3))
		b := Batch{Records: 1 + random.Int32N(3), Producer: ProducerID(random.IntN(12)), Epoch: ProducerEpoch(len(rows) / 50)}
		b.First = Sequence(random.Int32N(100))
		b.Last = b.First.Next(b.Records - 1)
		if random.IntN(4) == 0 {
			b.Flags = FlagTransactional
		} else if random.IntN(8) == 0 {
			b.First, b.Last, b.Flags = -1, -1, FlagTransactional|FlagControl
		}
		r := rowAfter(s, at, slot, b)
		rows = append(rows, r)
		apply(t, s, r)
	}
	want := s.AppendCheckpoint(nil)
	for i, c := range checkpoints {
		cold, err := FromCheckpoint(s.Row, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows[i:] {
			apply(t, cold, r)
		}
		if got := cold.AppendCheckpoint(nil); !reflect.DeepEqual(got, want) {
			t.Fatalf("folded on from row %d: another state", i)
		}
	}
	if s.Size() <= stateSize {
		t.Error("a state with producers takes no room")
	}
}

// TestPhotographLeftOut: the fold makes the photographs that were not loaded, and refuses one that its row does not add up to.
func TestPhotographLeftOut(t *testing.T) {
	whole, folded := NewState(BlockRow{ID: 1}), NewState(BlockRow{ID: 1})
	for i := range 5 {
		r := rowAfter(whole, Millis(i), Slot(i%2), Batch{Records: 3, MaxTimestamp: Millis(90 - i), Length: 100, Producer: NoProducer})
		left := *r
		left.Photo, left.NoPhoto = Photo{}, i < 4
		if i == 4 {
			left.Photo = r.Photo
		}
		apply(t, whole, r)
		apply(t, folded, &left)
		if left.NoPhoto || left.Photo != r.Photo || folded.Photo != whole.Photo {
			t.Fatalf("row %d: %+v, want %+v", r.Seq, left.Photo, r.Photo)
		}
	}
	for name, harm := range map[string]func(*Photo){
		"offset": func(p *Photo) { p.Next[1]++ }, "timestamp": func(p *Photo) { p.MaxTS[0]++ }, "bytes": func(p *Photo) { p.Bytes[9]++ },
	} {
		s := NewState(BlockRow{ID: 1})
		r := rowAfter(s, 1, 0, Batch{Records: 3, Producer: NoProducer})
		harm(&r.Photo)
		if err := s.Apply(r); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a photograph with another %s: %v", name, err)
		}
	}
}

// TestProducerTable: against a plain map.
func TestProducerTable(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	table, model := newProducerTable(), map[producerKey]producer{}
	for i := range 20_000 {
		k := producerKey{slot: Slot(random.IntN(SlotsPerBlock)), id: ProducerID(random.IntN(40))}
		switch p, want := table.get(k), model[k]; {
		case p == nil && want.at != 0, p != nil && *p != want:
			t.Fatalf("step %d: %+v has %+v, want %+v", i, k, p, want)
		case random.IntN(3) > 0:
			model[k] = producer{at: Millis(i + 1)}
			table.set(k, model[k]).epoch = 4
			model[k] = producer{at: Millis(i + 1), epoch: 4}
		case random.IntN(50) == 0:
			before := Millis(i - random.IntN(2000))
			table.remove(func(_ producerKey, p *producer) bool { return p.at < before })
			for k, p := range model {
				if p.at < before {
					delete(model, k)
				}
			}
		}
		if table.n != len(model) {
			t.Fatalf("step %d: %d entries, want %d", i, table.n, len(model))
		}
	}
	n := 0
	for k, p := range table.all() {
		if n++; *p != model[k] {
			t.Errorf("%+v is %+v, want %+v", k, p, model[k])
		}
	}
	if n != len(model) || n == 0 {
		t.Errorf("all gives %d entries of %d", n, len(model))
	}
}
