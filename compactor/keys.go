package compactor

import (
	"crypto/sha256"
	"fmt"
	"math"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// keyHash stands for a key: two keys with the same one are taken for the same (Kafka takes MD5, of as many bits).
type keyHash [16]byte

func hashOf(key []byte) keyHash {
	sum := sha256.Sum256(key)
	return keyHash(sum[:16])
}

// keyed is an offset at which a key was written.
type keyed struct {
	key    keyHash
	offset int64
}

// txnRange is the offsets of a producer's aborted transaction: from its first batch to before its marker.
type txnRange struct {
	producer      int64
	first, marker int64
}

// keyMap is the newest offset of every key of the dirty part of a partition. Records of transactions count from their
// commit on; those that were aborted are remembered as ranges.
type keyMap struct {
	newest  map[keyHash]int64
	pending map[int64][]keyed // by producer: of transactions whose end was not met yet
	begun   map[int64]int64   // and where these begin
	held    int               // entries of pending
	aborted []txnRange
}

func newKeyMap() *keyMap {
	return &keyMap{newest: map[keyHash]int64{}, pending: map[int64][]keyed{}, begun: map[int64]int64{}}
}

func (m *keyMap) entries() int { return len(m.newest) + m.held }

// add takes in batches, in order, from offset from on.
func (m *keyMap) add(batches []batch, from int64) error {
	for i := range batches {
		b := &batches[i]
		if b.LastOffset() < from || b.RecordCount == 0 {
			continue
		}
		if b.Control() {
			if err := m.end(b); err != nil {
				return err
			}
			continue
		}
		if _, open := m.begun[b.ProducerID]; b.Transactional() && !open {
			m.begun[b.ProducerID] = b.BaseOffset
		}
		for r, err := range record.Records(b.data, record.DefaultMaxDecompressedBytes) {
			if err != nil {
				return fmt.Errorf("%w: batch at offset %d: %w", errDamaged, b.BaseOffset, err)
			}
			offset := b.BaseOffset + int64(r.OffsetDelta)
			if r.Key == nil || offset < from {
				continue
			}
			if b.Transactional() {
				m.pending[b.ProducerID] = append(m.pending[b.ProducerID], keyed{hashOf(r.Key), offset})
				m.held++
				continue
			}
			m.newest[hashOf(r.Key)] = offset
		}
	}
	return nil
}

// end is a marker: what its producer wrote counts, or is aborted.
func (m *keyMap) end(b *batch) error {
	mark, err := record.ParseControl(b.data)
	if err != nil {
		return fmt.Errorf("%w: marker at offset %d: %w", errDamaged, b.BaseOffset, err)
	}
	p := b.ProducerID
	first, open := m.begun[p]
	if mark.Kind == record.ControlCommit {
		for _, k := range m.pending[p] {
			m.newest[k.key] = max(m.newest[k.key], k.offset)
		}
	} else if open {
		m.aborted = append(m.aborted, txnRange{producer: p, first: first, marker: b.BaseOffset})
	}
	m.held -= len(m.pending[p])
	delete(m.pending, p)
	delete(m.begun, p)
	return nil
}

// open gives the first offset of the earliest transaction whose end was not met.
func (m *keyMap) open() (int64, bool) {
	first := int64(math.MaxInt64)
	for _, offset := range m.begun {
		first = min(first, offset)
	}
	return first, len(m.begun) > 0
}

// sieve decides which records stay. It is used on all runs of a partition below a point, in order.
type sieve struct {
	keys      *keyMap
	now       int64 // ms, the database's clock
	retention int64 // delete.retention.ms
	// kept says of producers whether any of their present transaction's records stay: then its marker has to.
	kept map[int64]bool
	// horizon is the earliest time at which something that stays may go; 0: there is none.
	horizon int64
	dropped int // records and markers
}

func newSieve(keys *keyMap, now metadata.Millis, retention int64) *sieve {
	return &sieve{keys: keys, now: int64(now), retention: retention, kept: map[int64]bool{}}
}

// sift gives what stays of neighbouring batches, and whether that is anything else than before. The last batch stays in
// any case, if need be without records: it holds the last offset.
func (s *sieve) sift(batches []batch) (stay []batch, changed bool, err error) {
	for i := range batches {
		b, keep, err := s.batch(&batches[i])
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
func (s *sieve) batch(b *batch) (batch, bool, error) {
	switch {
	case b.RecordCount == 0:
		return *b, false, nil
	case b.Control():
		return s.marker(b)
	case b.Transactional() && s.isAborted(b):
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

func (s *sieve) isAborted(b *batch) bool {
	for _, t := range s.keys.aborted {
		if t.producer == b.ProducerID && b.BaseOffset >= t.first && b.BaseOffset < t.marker {
			return true
		}
	}
	return false
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
