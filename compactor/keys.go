package compactor

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"slices"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// keyHash stands for a key: two keys with the same one are taken for the same (Kafka takes MD5, of as many bits).
type keyHash [16]byte

func hashOf(key []byte) keyHash {
	sum := sha256.Sum256(key)
	return keyHash(sum[:16])
}

// txnRange is the offsets of a producer's aborted transaction: from its first batch to before its marker.
type txnRange struct{ first, marker int64 }

// abortedTxns is aborted transactions by producer, each one's in order. A producer has one transaction at a time.
type abortedTxns map[int64][]txnRange

// newAborted sorts what the database says of a range of offsets below the last stable one: there every transaction has
// ended, so data that is not in it counts.
func newAborted(found []metadata.AbortedTxn) abortedTxns {
	x := abortedTxns{}
	for i := range found {
		p := int64(found[i].Producer)
		x[p] = append(x[p], txnRange{first: int64(found[i].First), marker: int64(found[i].Marker)})
	}
	for _, of := range x {
		slices.SortFunc(of, func(a, b txnRange) int { return cmp.Compare(a.marker, b.marker) })
	}
	return x
}

// has says whether a batch is data of an aborted transaction.
func (x abortedTxns) has(b *batch) bool {
	if !b.Transactional() {
		return false
	}
	of := x[b.ProducerID]
	i, _ := slices.BinarySearchFunc(of, b.BaseOffset, func(t txnRange, at int64) int { return cmp.Compare(t.marker, at) })
	return i < len(of) && of[i].first <= b.BaseOffset
}

// keyMap is the newest offset of every key of the dirty part of a partition, as far as it fits.
type keyMap struct {
	newest map[keyHash]int64
	max    int // entries, but for those of one batch more
}

func newKeyMap(max int) *keyMap { return &keyMap{newest: map[keyHash]int64{}, max: max} }

// add takes in neighbouring batches from offset from on, of which aborted ones do not count. Where the map is full it stops
// before a batch, and gives that one's offset.
func (m *keyMap) add(batches []batch, from int64, aborted abortedTxns) (next int64, full bool, err error) {
	for i := range batches {
		b := &batches[i]
		if b.LastOffset() < from || b.RecordCount == 0 || b.Control() || aborted.has(b) {
			continue
		}
		if len(m.newest) >= m.max {
			return b.BaseOffset, true, nil
		}
		for r, err := range record.Records(b.data, record.DefaultMaxDecompressedBytes) {
			if err != nil {
				return 0, false, fmt.Errorf("%w: batch at offset %d: %w", errDamaged, b.BaseOffset, err)
			}
			offset := b.BaseOffset + int64(r.OffsetDelta)
			if r.Key != nil && offset >= from {
				m.newest[hashOf(r.Key)] = offset
			}
		}
	}
	return 0, false, nil
}

// sieve decides which records stay. It is used on all runs of a partition below a point, in order.
type sieve struct {
	keys      *keyMap
	upTo      int64 // the keys below are in the map; what lies from here on stays as it is
	now       int64 // ms, the database's clock
	retention int64 // delete.retention.ms
	// kept says of producers whether any of their present transaction's records stay: then its marker has to.
	kept map[int64]bool
	// horizon is the earliest time at which something that stays may go; 0: there is none.
	horizon int64
	dropped int // records and markers
}

func newSieve(keys *keyMap, upTo int64, now metadata.Millis, retention int64) *sieve {
	return &sieve{keys: keys, upTo: upTo, now: int64(now), retention: retention, kept: map[int64]bool{}}
}

// sift gives what stays of neighbouring batches, and whether that is anything else than before. The last batch stays in
// any case, if need be without records: it holds the last offset. aborted is what was aborted among them.
func (s *sieve) sift(batches []batch, aborted abortedTxns) (stay []batch, changed bool, err error) {
	for i := range batches {
		b, keep, err := s.batch(&batches[i], aborted)
		if err != nil {
			return nil, false, fmt.Errorf("batch at offset %d: %w", batches[i].BaseOffset, err)
		}
		if !keep && i == len(batches)-1 {
			if b = batches[i]; b.RecordCount > 0 {
				if b, err = rebuilt(b.Header, nil); err != nil {
					return nil, false, err
				}
			}
			keep = true
		}
		if keep {
			stay = append(stay, b)
		}
		changed = changed || !keep || &b.data[0] != &batches[i].data[0]
	}
	return stay, changed, nil
}

// batch decides about one batch.
func (s *sieve) batch(b *batch, aborted abortedTxns) (batch, bool, error) {
	switch {
	// A tombstone may only go in a pass that removes what it deletes.
	case b.LastOffset() >= s.upTo:
		return *b, true, nil
	case b.RecordCount == 0:
		return *b, false, nil
	case b.Control():
		return s.marker(b)
	case aborted.has(b):
		s.dropped += int(b.RecordCount)
		return *b, false, nil
	}
	var stay []record.Record
	tombstones := false
	gone := b.DeleteHorizon() && b.BaseTimestamp <= s.now
	for r, err := range record.Records(b.data, record.DefaultMaxDecompressedBytes) {
		if err != nil {
			return *b, false, fmt.Errorf("%w: %w", errDamaged, err)
		}
		newest, known := int64(0), false
		if r.Key != nil {
			newest, known = s.keys.newest[hashOf(r.Key)]
		}
		switch {
		case r.Key == nil, known && newest > b.BaseOffset+int64(r.OffsetDelta), r.Value == nil && gone:
			s.dropped++
			continue
		case r.Value == nil:
			tombstones = true
		}
		stay = append(stay, r)
	}
	if len(stay) == 0 {
		return *b, false, nil
	}
	if b.Transactional() {
		s.kept[b.ProducerID] = true
	}
	h := b.Header
	if tombstones {
		if !h.DeleteHorizon() {
			h.SetDeleteHorizon(add(s.now, s.retention))
		}
		s.mayGo(h.BaseTimestamp)
	}
	if len(stay) == int(b.RecordCount) && h.Attributes == b.Attributes {
		return *b, true, nil
	}
	made, err := rebuilt(h, stay)
	return made, err == nil, err
}

// marker decides about a control batch: it stays as long as records of its transaction do, and then for the retention of
// tombstones, so that readers that saw the records see how they ended.
func (s *sieve) marker(b *batch) (batch, bool, error) {
	needed := s.kept[b.ProducerID]
	delete(s.kept, b.ProducerID)
	if needed {
		return *b, true, nil
	}
	if b.DeleteHorizon() {
		if b.BaseTimestamp <= s.now {
			s.dropped++
			return *b, false, nil
		}
		s.mayGo(b.BaseTimestamp)
		return *b, true, nil
	}
	h := b.Header
	h.SetDeleteHorizon(add(s.now, s.retention))
	s.mayGo(h.BaseTimestamp)
	var records []record.Record
	for r, err := range record.Records(b.data, record.DefaultMaxDecompressedBytes) {
		if err != nil {
			return *b, false, fmt.Errorf("%w: %w", errDamaged, err)
		}
		records = append(records, r)
	}
	made, err := rebuilt(h, records)
	return made, err == nil, err
}

func (s *sieve) mayGo(at int64) {
	if s.horizon == 0 || at < s.horizon {
		s.horizon = at
	}
}

func rebuilt(h record.Header, records []record.Record) (batch, error) {
	data, err := record.Rebuild(h, record.DefaultLevel, records)
	if err != nil {
		return batch{}, err
	}
	h, err = record.Parse(data)
	return batch{Header: h, data: data}, err
}

// add saturates; b is not negative.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
