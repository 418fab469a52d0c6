package metadata

import (
	"testing"
	"time"
)

// TestHoldRule: with no state at all a sequence other than 0 is held while an earlier batch must still be on its way.
func TestHoldRule(t *testing.T) {
	const created = 1_000_000
	expiry := Millis(ProducerExpiry.Milliseconds())
	for name, c := range map[string]struct {
		handed Millis // 0: by nobody
		now    Millis
		first  Sequence
		want   Code
	}{
		"handed out after the partition was made": {created + 1, created + 2, 5, CodeNotYet},
		"in the same millisecond":                 {created, created + 2, 5, CodeNotYet},
		"before the partition was made":           {created - 1, created + 2, 5, CodeAccepted},
		"just within the expiry":                  {created, created + expiry - 1, 5, CodeNotYet},
		"as long ago as state is kept":            {created, created + expiry, 5, CodeAccepted},
		"by nobody":                               {0, created + 2, 5, CodeAccepted},
		"from 0":                                  {created + 1, created + 2, 0, CodeAccepted},
	} {
		ages := idRanges{}
		if c.handed != 0 {
			ages.insert(ProducerRange{First: 7, Count: 1, At: c.handed})
		}
		d := decision{now: c.now, ages: &ages, states: map[BlockID]*State{1: NewState(BlockRow{ID: 1})}}
		r := d.flush(&Flush{Extents: []Extent{{
			Block: 1, Created: created, Batches: []Batch{{Records: 1, Producer: 7, First: c.first, Last: c.first}},
		}}})
		if got := r.Batches[0].Code; got != c.want {
			t.Errorf("%s: code %d, want %d", name, got, c.want)
		}
	}
}

// TestTimeNeverGoesBack: a row's time is not less than that of the row before, whatever the database's clock does.
func TestTimeNeverGoesBack(t *testing.T) {
	s := NewState(BlockRow{ID: 1})
	s.Time = 5000
	d := decision{now: 1000, ages: &idRanges{}, states: map[BlockID]*State{1: s}}
	f := &Flush{Extents: []Extent{{Block: 1, Batches: []Batch{{Records: 1, Producer: NoProducer}}}}}
	d.flush(f)
	d.now = 9000
	d.flush(f)
	if a, b := d.save.Rows[0], d.save.Rows[1]; a.Time != 5000 || b.Time != 9000 || b.Seq != 2 {
		t.Fatalf("rows at %d and %d", a.Time, b.Time)
	}
}

// TestTransactionsAreRefused: without its transaction's row no transactional batch is taken.
func TestTransactionsAreRefused(t *testing.T) {
	s := NewState(BlockRow{ID: 1})
	d := decision{now: 1000, ages: &idRanges{}, states: map[BlockID]*State{1: s}}
	r := d.flush(&Flush{Extents: []Extent{{Block: 1, Batches: []Batch{
		{Records: 1, Producer: 7, Flags: FlagTransactional}, {Records: 1, Producer: 7, First: -1, Last: -1, Flags: FlagControl},
	}}}})
	for i := range r.Batches {
		if r.Batches[i].Code != CodeInvalidTxnState {
			t.Errorf("batch %d: code %d", i, r.Batches[i].Code)
		}
	}
	if len(d.save.Rows) != 0 || s.Photo.Next[0] != 0 || s.lsos() != nil {
		t.Fatalf("%+v", d.save.Rows)
	}
}

// TestFlushTooOld: the bound is on the time since the last database time seen before the first attempt.
func TestFlushTooOld(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		want error
	}{{MaxResubmit, nil}, {MaxResubmit + time.Millisecond, ErrFlushTooOld}} {
		d := decision{now: 10_000_000, ages: &idRanges{}, states: map[BlockID]*State{1: NewState(BlockRow{ID: 1})}}
		f := &Flush{Object: "o", Extents: []Extent{{Block: 1, Batches: []Batch{{Records: 1, Producer: NoProducer}}}}}
		f.Seen = d.now.Add(-c.age)
		r, err := d.decide([]*Flush{f}, nil)
		if err != nil || r[0].Err != c.want {
			t.Fatalf("%v old: %+v, %v", c.age, r, err)
		}
		if garbage := d.save.Objects[0].State == ObjectGarbage; garbage != (c.want != nil) {
			t.Errorf("%v old: its object is %+v", c.age, d.save.Objects[0])
		}
	}
}

// TestSecondAttemptDecidesAnew: what a failed attempt accepted may be a duplicate by the next one; its bytes must not
// count as records of the row then.
func TestSecondAttemptDecidesAnew(t *testing.T) {
	batch := func() Batch { return Batch{Records: 2, Producer: 7, First: 0, Last: 1} }
	f := &Flush{Extents: []Extent{{Block: 1, Batches: []Batch{batch(), {Records: 3, Producer: NoProducer}}}}}
	attempt := func(s *State) (*Row, []BatchResult) {
		d := decision{now: 1000, ages: &idRanges{}, states: map[BlockID]*State{1: s}}
		r := d.flush(f)
		return d.save.Rows[0], r.Batches
	}
	if row, _ := attempt(NewState(BlockRow{ID: 1})); row.Base(0) != 0 || row.Photo.Next[0] != 5 {
		t.Fatalf("first attempt: base %d, next %d", row.Base(0), row.Photo.Next[0])
	}
	s := NewState(BlockRow{ID: 1})
	apply(t, s, rowAfter(s, 1, 0, batch())) // meanwhile, through another agent
	row, results := attempt(s)
	if results[0].Code != CodeDuplicate || results[1].Base != 2 || row.Photo.Next[0] != 5 || row.Base(0) != 2 ||
		row.Touched[0].Records() != 3 {
		t.Fatalf("second attempt: %+v, base %d of %d records", results, row.Base(0), row.Touched[0].Records())
	}
}
