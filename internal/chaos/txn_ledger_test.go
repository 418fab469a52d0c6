package main

import "testing"

// TestTxnLedgerCompare: each thing that can be wrong is counted, and nothing else.
func TestTxnLedgerCompare(t *testing.T) {
	good := func() map[string]int { return map[string]int{"a/0": 1, "a/1": 1, "c/0": 1} }
	for name, c := range map[string]struct {
		change func(seen map[string]int)
		want   txnResult
	}{
		"all is well":                    {func(map[string]int) {}, txnResult{Records: 3}},
		"unknown, and there":             {func(m map[string]int) { m["u/0"], m["u/1"] = 1, 1 }, txnResult{Records: 5, UnknownCommitted: 1}},
		"unknown, and torn":              {func(m map[string]int) { m["u/0"] = 1 }, txnResult{Records: 4, UnknownCommitted: 1, Torn: 1}},
		"committed, and torn":            {func(m map[string]int) { delete(m, "a/0") }, txnResult{Records: 2, Lost: 1, Torn: 1}},
		"committed, and lost":            {func(m map[string]int) { delete(m, "c/0") }, txnResult{Records: 2, Lost: 1}},
		"doubled":                        {func(m map[string]int) { m["a/1"] = 3 }, txnResult{Records: 3, Doubled: 2}},
		"aborted, and read":              {func(m map[string]int) { m["b/0"] = 1 }, txnResult{Records: 4, Leaked: 1}},
		"of a transaction nobody wrote":  {func(m map[string]int) { m["x/0"] = 1 }, txnResult{Records: 4, Leaked: 1}},
		"committed, with one beyond end": {func(m map[string]int) { m["c/1"] = 1 }, txnResult{Records: 4, Torn: 1}},
	} {
		l := &txnLedger{fates: map[string]txnFate{
			"a": {fateCommitted, 2}, "b": {fateAborted, 0}, "c": {fateCommitted, 1}, "u": {fateUnknown, 2},
		}}
		seen := good()
		c.change(seen)
		got := l.compare(seen)
		c.want.Committed, c.want.Aborted, c.want.Unknown = 2, 1, 1
		if got.Topics, got.Faults = nil, nil; !equalTxn(got, &c.want) {
			t.Errorf("%s: %+v, want %+v", name, *got, c.want)
		}
		if clean := c.want.Lost+c.want.Doubled+c.want.Leaked+c.want.Torn == 0; got.clean() != clean {
			t.Errorf("%s: clean %v", name, got.clean())
		}
	}
}

func equalTxn(a, b *txnResult) bool {
	return a.Committed == b.Committed && a.Aborted == b.Aborted && a.Unknown == b.Unknown && a.UnknownCommitted == b.UnknownCommitted &&
		a.Records == b.Records && a.Lost == b.Lost && a.Doubled == b.Doubled && a.Leaked == b.Leaked && a.Torn == b.Torn
}

func TestTxnCompareEtl(t *testing.T) {
	in := map[string]int{"a": 1, "b": 1}
	for name, c := range map[string]struct {
		out              map[string]int
		missing, doubled int
	}{
		"exactly once":    {map[string]int{"a": 1, "b": 1}, 0, 0},
		"missing":         {map[string]int{"a": 1}, 1, 0},
		"twice":           {map[string]int{"a": 2, "b": 1}, 0, 1},
		"made of nothing": {map[string]int{"a": 1, "b": 1, "c": 1}, 0, 1},
	} {
		r := &txnResult{Committed: 1}
		r.compareEtl(in, c.out)
		if r.EtlMissing != c.missing || r.EtlDoubled != c.doubled || r.clean() != (c.missing+c.doubled == 0) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
