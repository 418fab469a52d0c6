package record

import (
	"fmt"
	"math"
)

// add and subtract saturate instead of wrapping; b must not be negative.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func subtract(a, b int64) int64 {
	if a < math.MinInt64+b {
		return math.MinInt64
	}
	return a - b
}

// FirstAtOrAfter finds the first record of the first batch in b whose timestamp is
// at least t (milliseconds) and returns its offset delta and timestamp; ok is
// false when there is none. It decompresses, bounded by DefaultMaxDecompressedBytes.
func FirstAtOrAfter(b []byte, t int64) (offsetDelta int32, ts int64, ok bool, err error) {
	return FirstAtOrAfterFrom(b, t, 0)
}

// FirstAtOrAfterFrom is FirstAtOrAfter for records from offset delta from on: a
// log start may lie inside a batch.
func FirstAtOrAfterFrom(b []byte, t int64, from int32) (offsetDelta int32, ts int64, ok bool, err error) {
	err = eachTimestamp(b, func(delta int32, at int64) bool {
		if delta < from || at < t {
			return true
		}
		offsetDelta, ts, ok = delta, at, true
		return false
	})
	if err != nil {
		return 0, 0, false, err
	}
	return offsetDelta, ts, ok, nil
}

// MaxTimestampRecord finds the first record of the first batch in b that has the
// largest timestamp. It looks at the records, not at the header's word for it. ok is
// false when the batch holds no records.
func MaxTimestampRecord(b []byte) (offsetDelta int32, ts int64, ok bool, err error) {
	err = eachTimestamp(b, func(delta int32, at int64) bool {
		if !ok || at > ts {
			offsetDelta, ts, ok = delta, at, true
		}
		return true
	})
	if err != nil {
		return 0, 0, false, err
	}
	return offsetDelta, ts, ok, nil
}

// eachTimestamp calls visit for each record of the first batch in b until it
// returns false.
func eachTimestamp(b []byte, visit func(offsetDelta int32, ts int64) bool) error {
	h, p, err := payload(b, nil, DefaultMaxDecompressedBytes)
	if err != nil {
		return err
	}
	for i := int32(0); i < h.RecordCount; i++ {
		r, rest, err := nextRecord(p)
		if err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		p = rest
		if !visit(r.offsetDelta, h.timestamp(r.timestampDelta)) {
			return nil
		}
	}
	return nil
}
