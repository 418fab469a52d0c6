package main

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCheckerSeesEachFault: a check that counts nothing would call every run clean.
func TestCheckerSeesEachFault(t *testing.T) {
	record := func(offset int64, value string) *kgo.Record { return &kgo.Record{Offset: offset, Value: []byte(value)} }
	c := &checker{r: &result{}, seen: map[string]position{}, last: map[string]int64{}}
	for _, r := range []*kgo.Record{
		record(0, "a 0 0 x"), record(1, "a 0 2 x"), record(2, "a 0 1 x"), // 1 after 2
		record(3, "b 0 0 x"), record(4, "b 0 0 x"), // twice
		record(5, "b 0 1 x"), record(6, "b 7 2 x"), // meant for another partition
	} {
		c.record(r)
	}
	c.compare(map[string]position{
		"a 0 0 x": {0, 0}, "a 0 3 x": {0, 9}, // never found
		"b 0 1 x": {0, 4}, "a 0 1 x": {0, -1}, // found elsewhere; place not told
	})
	want := result{Acknowledged: 4, Found: 7, Lost: 1, Duplicated: 1, OutOfOrder: 2, Misplaced: 1}
	got := *c.r
	if got.Acknowledged != want.Acknowledged || got.Found != want.Found || got.Lost != want.Lost ||
		got.Duplicated != want.Duplicated || got.OutOfOrder != want.OutOfOrder || got.Misplaced != want.Misplaced {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if c.r.clean() {
		t.Error("it is called clean")
	}
}

func TestConsumerGapsAndRepeats(t *testing.T) {
	l := newLedger()
	for _, offset := range []int64{0, 1, 3, 3, 4} {
		l.read("c", position{0, offset})
	}
	if c := l.clients["c"]; c.Skipped != 1 || c.Repeated != 1 || c.Records != 5 {
		t.Errorf("skipped %d, repeated %d, records %d; want 1, 1, 5", c.Skipped, c.Repeated, c.Records)
	}
	if n := l.behind("c", map[int32]int64{0: 7, 1: 2}); n != 4 {
		t.Errorf("behind by %d, want 4", n)
	}
}
