package metadata

import (
	"iter"
	"math/bits"
	"slices"
)

// producerTable holds what a block knows of producers. It is keyed by producer first: the batches of a flush that belong to
// one producer mostly stand in neighbouring slots, and then one look-up in a map that no processor cache holds serves
// them all. (A map keyed by slot and producer took most of the time of folding other agents' rows.)
type producerTable struct {
	byID map[ProducerID]*producerSlots
	n    int // entries
	hot  *producerSlots
	id   ProducerID // of hot
}

// producerSlots is one producer's entries, by slot.
type producerSlots struct {
	slots   uint64     // bit s: it has an entry for slot s
	entries []producer // of the slots set, in their order
}

func newProducerTable() producerTable {
	return producerTable{byID: map[ProducerID]*producerSlots{}}
}

func (t *producerTable) of(id ProducerID) *producerSlots {
	if t.hot != nil && t.id == id {
		return t.hot
	}
	of := t.byID[id]
	if of != nil {
		t.hot, t.id = of, id
	}
	return of
}

// at is the index of slot s among the entries, or where it would be.
func (p *producerSlots) at(s Slot) int { return bits.OnesCount64(p.slots & (1<<s - 1)) }

// get gives an entry, or nil. It is valid until the next add or remove.
func (t *producerTable) get(k producerKey) *producer {
	of := t.of(k.id)
	if of == nil || of.slots&(1<<k.slot) == 0 {
		return nil
	}
	return &of.entries[of.at(k.slot)]
}

// set adds an entry, or replaces the one that is there, and gives it as get does.
func (t *producerTable) set(k producerKey, p producer) *producer {
	of := t.of(k.id)
	if of == nil {
		of = &producerSlots{}
		t.byID[k.id] = of
		t.hot, t.id = of, k.id
	}
	i := of.at(k.slot)
	if of.slots&(1<<k.slot) != 0 {
		of.entries[i] = p
		return &of.entries[i]
	}
	of.entries = slices.Insert(of.entries, i, p)
	of.slots |= 1 << k.slot
	t.n++
	return &of.entries[i]
}

// all gives the entries, producer by producer and by slot within each. The table must not change meanwhile.
func (t *producerTable) all() iter.Seq2[producerKey, *producer] {
	return func(yield func(producerKey, *producer) bool) {
		for id, of := range t.byID {
			i := 0
			for left := of.slots; left != 0; left &= left - 1 {
				if !yield(producerKey{slot: Slot(bits.TrailingZeros64(left)), id: id}, &of.entries[i]) {
					return
				}
				i++
			}
		}
	}
}

// remove lets go of the entries that gone says.
func (t *producerTable) remove(gone func(producerKey, *producer) bool) {
	for id, of := range t.byID {
		kept := of.entries[:0]
		slots, i := of.slots, 0
		for left := of.slots; left != 0; left &= left - 1 {
			s := Slot(bits.TrailingZeros64(left))
			if p := &of.entries[i]; gone(producerKey{slot: s, id: id}, p) {
				slots &^= 1 << s
				t.n--
			} else {
				kept = append(kept, *p)
			}
			i++
		}
		of.slots, of.entries = slots, kept
		if slots == 0 {
			delete(t.byID, id)
		}
	}
	t.hot = nil
}
