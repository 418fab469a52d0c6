package metadata

import "testing"

func TestSequenceNext(t *testing.T) {
	for _, c := range []struct {
		s    Sequence
		n    int32
		want Sequence
	}{{0, 0, 0}, {0, 5, 5}, {MaxSequence, 0, MaxSequence}, {MaxSequence, 1, 0}, {MaxSequence - 2, 5, 2}, {MaxSequence, 2147483647, MaxSequence - 1}} {
		if got := c.s.Next(c.n); got != c.want {
			t.Errorf("%d places after %d: %d, want %d", c.n, c.s, got, c.want)
		}
	}
}

// TestProducerCheck is kafka-protocol.md section 5, rules 1 to 3.
func TestProducerCheck(t *testing.T) {
	const m = MaxSequence
	five := []committed{{0, 1, 10}, {2, 2, 12}, {3, 7, 13}, {8, 8, 18}, {9, 10, 19}}
	wrapped := []committed{{m - 3, m - 2, 5}, {m - 1, 1, 7}, {2, 4, 10}}
	for _, c := range []struct {
		name        string
		last        []committed // of epoch 3
		epoch       ProducerEpoch
		first, seq2 Sequence
		code        Code
		base        Offset
	}{
		{"next", five, 3, 11, 12, CodeAccepted, -1},
		{"the newest again", five, 3, 9, 10, CodeDuplicate, 19},
		{"the oldest kept again", five, 3, 0, 1, CodeDuplicate, 10},
		{"same first, other last", five, 3, 3, 6, CodeOutOfOrder, -1},
		{"other first, same last", five, 3, 4, 7, CodeOutOfOrder, -1},
		{"two of them as one", five, 3, 8, 10, CodeOutOfOrder, -1},
		{"starts in the newest", five, 3, 10, 11, CodeOutOfOrder, -1},
		{"gap of one", five, 3, 12, 12, CodeNotYet, -1},
		{"far ahead", five, 3, 11 + m/2, 11 + m/2, CodeNotYet, -1},
		{"further ahead is behind", five, 3, 12 + m/2, 12 + m/2, CodeOutOfOrder, -1},
		{"older epoch, next sequence", five, 2, 11, 12, CodeFenced, -1},
		{"older epoch, known batch", five, 2, 9, 10, CodeFenced, -1},
		{"newer epoch from 0", five, 4, 0, 0, CodeAccepted, -1},
		{"newer epoch, next sequence", five, 4, 11, 12, CodeNotYet, -1},
		{"newer epoch, known batch", five, 4, 9, 10, CodeNotYet, -1},
		{"after the wrap", wrapped, 3, 5, 5, CodeAccepted, -1},
		{"across the wrap again", wrapped, 3, m - 1, 1, CodeDuplicate, 7},
		{"before the wrap again", wrapped, 3, m - 3, m - 2, CodeDuplicate, 5},
		{"gap after the wrap", wrapped, 3, 6, 6, CodeNotYet, -1},
		{"behind, before the wrap", wrapped, 3, m - 8, m - 7, CodeOutOfOrder, -1},
		{"next is 0", []committed{{m - 4, m, 0}}, 3, 0, 3, CodeAccepted, -1},
		{"next is the last", []committed{{m - 4, m - 1, 0}}, 3, m, m, CodeAccepted, -1},
		{"1 when 0 is next", []committed{{m - 4, m, 0}}, 3, 1, 1, CodeNotYet, -1},
		{"epoch moved by a control batch, from 0", nil, 3, 0, 4, CodeAccepted, -1},
		{"epoch moved by a control batch, not from 0", nil, 3, 4, 4, CodeNotYet, -1},
	} {
		p := &producer{epoch: 3, n: uint8(len(c.last))}
		copy(p.last[:], c.last)
		code, base := p.check(&Batch{Epoch: c.epoch, First: c.first, Last: c.seq2, Records: 1})
		if code != c.code || base != c.base {
			t.Errorf("%s: code %d, base %d; want %d, %d", c.name, code, base, c.code, c.base)
		}
	}
}

func TestProducerKeepsFive(t *testing.T) {
	p := &producer{epoch: 1}
	for i := range Sequence(7) {
		p.note(&Batch{Epoch: 1, First: i, Last: i}, Offset(i)*10, Millis(i))
	}
	if p.n != 5 || p.last[0] != (committed{2, 2, 20}) || p.last[4] != (committed{6, 6, 60}) || p.at != 6 {
		t.Fatalf("%+v", p)
	}
	p.note(&Batch{Epoch: 2, First: 0, Last: 3}, 70, 8)
	if p.n != 1 || p.epoch != 2 || p.last[0] != (committed{0, 3, 70}) {
		t.Fatalf("after a new epoch: %+v", p)
	}
	p.note(&Batch{Epoch: 3, First: -1, Last: -1, Flags: FlagControl}, 71, 9)
	if p.n != 0 || p.epoch != 3 || p.at != 9 {
		t.Fatalf("after a control batch of a new epoch: %+v", p)
	}
}
