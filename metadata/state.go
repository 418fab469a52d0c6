package metadata

import (
	"fmt"
	"math"
	"sort"
)

// State is a block's state as of Seq: the fold of its rows. It is not safe for concurrent use.
type State struct {
	Seq   Seq
	Photo Photo
	Time  Millis // of the newest row; 0 before the first
	Row   BlockRow

	producers producerTable
	open      map[producerKey]Offset // open transactions: their first offset in the slot
}

// NewState is the state of a block before its first row.
func NewState(row BlockRow) *State {
	return &State{
		Row:       row,
		Photo:     EmptyPhoto(),
		producers: newProducerTable(),
		open:      map[producerKey]Offset{},
	}
}

// Apply moves the state on by the next row of the block, and fills in its photograph where it was left out. A row that is not
// the next is an error and changes nothing; one whose photograph is not what its batches make of the one before is
// an error after which the state is worth nothing.
func (s *State) Apply(r *Row) error {
	if r.Block != s.Row.ID || r.Seq != s.Seq+1 {
		return fmt.Errorf("%w: row (%d, %d) applied to block %d at %d", ErrCorrupt, r.Block, r.Seq, s.Row.ID, s.Seq)
	}
	for i := range r.Touched {
		t := &r.Touched[i]
		for j := range t.Batches {
			if b := &t.Batches[j]; b.Flags&FlagAccepted != 0 {
				s.note(t.Slot, b, s.Photo.Next[t.Slot], r.Time)
				s.Photo.append(t.Slot, b)
			}
		}
	}
	s.Seq, s.Time = r.Seq, r.Time
	if r.NoPhoto {
		r.Photo, r.NoPhoto = s.Photo, false
	} else if r.Photo != s.Photo {
		return fmt.Errorf("%w: row (%d, %d): its batches do not add up to its photograph", ErrCorrupt, r.Block, r.Seq)
	}
	return nil
}

// note folds one accepted batch into producers and open transactions.
func (s *State) note(slot Slot, b *Batch, base Offset, at Millis) {
	if b.Producer != NoProducer {
		k := producerKey{slot: slot, id: b.Producer}
		s.noteOf(k, s.producer(k, at), b, base, at)
	}
}

// noteOf is note for a batch of a producer of which p is known, or nil.
func (s *State) noteOf(k producerKey, p *producer, b *Batch, base Offset, at Millis) {
	if p == nil {
		p = s.producers.set(k, producer{epoch: b.Epoch})
	}
	p.note(b, base, at)
	if b.Flags&FlagTransactional == 0 {
		return
	}
	if b.Flags&FlagControl != 0 {
		delete(s.open, k)
	} else if _, open := s.open[k]; !open {
		s.open[k] = base
	}
}

// producer gives what is known of a producer at a time, or nil. What expired by then counts as unknown: a checkpoint may
// have left it out, and every agent must fold and decide alike.
func (s *State) producer(k producerKey, at Millis) *producer {
	p := s.producers.get(k)
	if p == nil || !s.expired(k, p, at) {
		return p
	}
	return nil
}

func (s *State) expired(k producerKey, p *producer, at Millis) bool {
	if at.Sub(p.at) <= ProducerExpiry {
		return false
	}
	_, open := s.open[k]
	return !open
}

// prune lets go of the producers that expired before the newest row. It changes no decision.
func (s *State) prune() {
	s.producers.remove(func(k producerKey, p *producer) bool { return s.expired(k, p, s.Time) })
}

// LSO gives the last stable offset of a slot: the first offset of its earliest open transaction, else the high
// watermark.
func (s *State) LSO(slot Slot) Offset {
	lso := s.Photo.Next[slot]
	for k, first := range s.open {
		if k.slot == slot && first < lso {
			lso = first
		}
	}
	return lso
}

// lsos gives the LSO of every slot, or nil when no transaction is open.
func (s *State) lsos() *[SlotsPerBlock]Offset {
	if len(s.open) == 0 {
		return nil
	}
	l := s.Photo.Next
	for k, first := range s.open {
		l[k.slot] = min(l[k.slot], first)
	}
	return &l
}

// Sizes of a State's parts in memory, for bounds: what the Go runtime takes for an entry, rounded up.
const (
	stateSize    = 4 << 10
	producerSize = 224
	openSize     = 48
)

// Size is about how many bytes of memory s takes.
func (s *State) Size() int64 {
	return stateSize + int64(s.producers.n)*producerSize + int64(len(s.open))*openSize
}

// Producers is how many (slot, producer) pairs s knows.
func (s *State) Producers() int { return s.producers.n }

const checkpointVersion = 1

// AppendCheckpoint appends s's checkpoint: the photo, producers and open transactions. Producers idle for longer than
// ProducerExpiry before the newest row are left out, unless a transaction of theirs is open.
func (s *State) AppendCheckpoint(b []byte) []byte {
	b = append(b, checkpointVersion)
	b = appendVarints(b, int64(s.Row.ID), int64(s.Seq), int64(s.Time))
	b = s.Photo.AppendTo(b)
	keys := make([]producerKey, 0, s.producers.n)
	for k, p := range s.producers.all() {
		if !s.expired(k, p, s.Time) {
			keys = append(keys, k)
		}
	}
	sortKeys(keys)
	b = appendVarints(b, int64(len(keys)))
	for _, k := range keys {
		p := s.producers.get(k)
		b = append(b, byte(k.slot), p.n)
		b = appendVarints(b, int64(k.id), int64(p.epoch), int64(s.Time-p.at))
		for i := range p.n {
			c := &p.last[i]
			b = appendVarints(b, int64(c.first), int64(c.last), int64(c.base))
		}
	}
	keys = keys[:0]
	for k := range s.open {
		keys = append(keys, k)
	}
	sortKeys(keys)
	b = appendVarints(b, int64(len(keys)))
	for _, k := range keys {
		b = append(b, byte(k.slot))
		b = appendVarints(b, int64(k.id), int64(s.open[k]))
	}
	return b
}

func sortKeys(keys []producerKey) {
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		return a.slot < b.slot || (a.slot == b.slot && a.id < b.id)
	})
}

// minProducerSize and minOpenSize are the least an encoded entry takes.
const (
	minProducerSize = 5
	minOpenSize     = 3
)

// FromCheckpoint gives the state that AppendCheckpoint wrote, with the block's row as it is now.
func FromCheckpoint(row BlockRow, data []byte) (*State, error) {
	d := decoder{b: data}
	if v := d.byte(); v != checkpointVersion {
		return nil, fmt.Errorf("%w: checkpoint of version %d", ErrCorrupt, v)
	}
	s := NewState(row)
	if id := BlockID(d.varint()); d.err == nil && id != row.ID {
		return nil, fmt.Errorf("%w: checkpoint of block %d for block %d", ErrCorrupt, id, row.ID)
	}
	s.Seq, s.Time = Seq(d.varint()), Millis(d.varint())
	if raw := d.bytes(PhotoSize); d.err == nil {
		if err := s.Photo.Decode(raw); err != nil {
			return nil, err
		}
	}
	for range d.entries(minProducerSize) {
		k := producerKey{slot: Slot(d.byte())}
		p := producer{n: d.byte()}
		k.id, p.epoch, p.at = ProducerID(d.varint()), ProducerEpoch(d.within(math.MinInt16, math.MaxInt16)), s.Time-Millis(d.varint())
		if p.n > keptBatches || k.slot >= SlotsPerBlock {
			d.fail()
			break
		}
		for i := range p.n {
			p.last[i] = committed{first: d.sequence(), last: d.sequence(), base: Offset(d.varint())}
		}
		s.producers.set(k, p)
	}
	for range d.entries(minOpenSize) {
		k := producerKey{slot: Slot(d.byte())}
		k.id = ProducerID(d.varint())
		if k.slot >= SlotsPerBlock {
			d.fail()
			break
		}
		s.open[k] = Offset(d.varint())
	}
	if d.err == nil && len(d.b) != 0 {
		d.fail()
	}
	if d.err != nil {
		return nil, fmt.Errorf("checkpoint of block %d: %w", row.ID, d.err)
	}
	return s, nil
}
