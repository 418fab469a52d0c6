package batcher

import (
	"container/list"
	"time"

	"github.com/skeinio/skein/metadata"
)

// chainKey names a chain: batches of one producer, or without one of one connection, in one partition.
type chainKey struct {
	producer metadata.ProducerID // NoProducer: conn counts
	conn     uint64
	block    metadata.BlockID
	slot     metadata.Slot
}

// chain is the batches of a chainKey that have no result yet, in the order in which they must be committed, and what is
// remembered of those that failed.
type chain struct {
	key        chainKey
	head, tail *item
	// last is the flush that a batch of the chain was last put into, and validated that batch's Meta.Validated.
	last      *flush
	validated metadata.CatalogueVersion

	held     int             // of the items
	heldAt   metadata.Offset // the partition's high watermark when these were last tried; -1 = not known
	retried  time.Time       // when they were last tried
	mark     mark
	gap      gap
	aged     *list.Element // in Batcher.aged, while mark or gap are set
	touched  time.Time     // when mark or gap were last set or met
	sequence bool          // has a producer id
}

// mark is what a failed chain of a producer leaves: from its first failed sequence on, nothing of the epoch is let in
// until a batch that starts there is.
type mark struct {
	set   bool
	epoch metadata.ProducerEpoch
	first metadata.Sequence
	at    time.Time
	// doubted is when the database was last asked about it.
	doubted time.Time
	// covered: a batch that starts at first is on its way. Later ones may follow it: if it fails they fail with it.
	covered bool
}

// gap is since when batches have come ahead of a missing one.
type gap struct {
	since time.Time // zero: there is none
	epoch metadata.ProducerEpoch
}

// ahead says whether sequence s is after t, by the shorter way around the wrap.
func ahead(s, t metadata.Sequence) bool {
	d := (int64(s) - int64(t)) & int64(metadata.MaxSequence)
	return d != 0 && d <= int64(metadata.MaxSequence)/2
}

// precedes says whether a batch comes before another of its chain though it arrived later.
func (it *item) precedes(o *item) bool {
	return it.chain.sequence && it.meta.Epoch == o.meta.Epoch && ahead(o.meta.First, it.meta.First)
}

// link puts a batch into the chain: at the end, but before those of a producer that have later sequences.
func (c *chain) link(it *item) {
	at := c.tail
	for at != nil && it.precedes(at) {
		at = at.prev
	}
	it.prev = at
	if at == nil {
		it.next, c.head = c.head, it
	} else {
		it.next, at.next = at.next, it
	}
	if it.next == nil {
		c.tail = it
	} else {
		it.next.prev = it
	}
}

func (c *chain) unlink(it *item) {
	if it.prev == nil {
		c.head = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		c.tail = it.prev
	} else {
		it.next.prev = it.prev
	}
	it.prev, it.next = nil, nil
}

// firstHeld gives the first batch that is held.
func (c *chain) firstHeld() *item {
	for it := c.head; it != nil; it = it.next {
		if it.held {
			return it
		}
	}
	return nil
}

// chainOf gives the chain of a batch, a new one where there is none. b.mu is held.
func (b *Batcher) chainOf(conn uint64, it *item) *chain {
	k := chainKey{producer: it.meta.Producer, block: it.part.Block, slot: it.part.Slot}
	if k.producer == metadata.NoProducer {
		k.conn = conn
	}
	c := b.chains[k]
	if c == nil {
		if n := len(b.spareChains); n > 0 {
			c, b.spareChains = b.spareChains[n-1], b.spareChains[:n-1]
		} else {
			c = new(chain)
		}
		*c = chain{key: k, heldAt: -1, sequence: k.producer != metadata.NoProducer}
		b.chains[k] = c
	}
	return c
}

// maxSpareChains bounds the empty chains kept for reuse.
const maxSpareChains = 4096

// drop forgets a chain of which there is nothing left to know. b.mu is held.
func (b *Batcher) drop(c *chain) {
	if c.head != nil || c.aged != nil || (c.last != nil && !c.last.done()) || b.chains[c.key] != c {
		return
	}
	delete(b.chains, c.key)
	c.last = nil
	if len(b.spareChains) < maxSpareChains {
		b.spareChains = append(b.spareChains, c)
	}
}

// touch makes the chain the youngest of those that are remembered for mark or gap.
func (b *Batcher) touch(c *chain, now time.Time) {
	c.touched = now
	if c.aged != nil {
		b.aged.MoveToBack(c.aged)
		return
	}
	c.aged = b.aged.PushBack(c)
	if b.aged.Len() > maxMarks {
		b.forget(b.aged.Front().Value.(*chain))
	}
}

// forget clears mark and gap.
func (b *Batcher) forget(c *chain) {
	c.mark, c.gap = mark{}, gap{}
	b.untouch(c)
	b.drop(c)
}

// untouch ends the remembering when neither mark nor gap is set.
func (b *Batcher) untouch(c *chain) {
	if c.aged != nil && !c.mark.set && c.gap.since.IsZero() {
		b.aged.Remove(c.aged)
		c.aged = nil
	}
}

// sweepMarks forgets marks and gaps that nothing touched for their retention. It gives when to look again.
func (b *Batcher) sweepMarks(now time.Time) time.Time {
	const retention = max(markRetention, gapLimit)
	for e := b.aged.Front(); e != nil; e = b.aged.Front() {
		c := e.Value.(*chain)
		if until := c.touched.Add(retention); now.Before(until) {
			return until
		}
		b.forget(c)
	}
	return time.Time{}
}

// admit says whether the chain's mark lets a batch in, and keeps the mark up to date.
func (b *Batcher) admit(c *chain, it *item, now time.Time) bool {
	m := &c.mark
	if !m.set {
		return true
	}
	e := it.meta.Epoch
	if e > m.epoch || now.Sub(m.at) >= markRetention {
		*m = mark{}
		b.untouch(c)
		return true
	}
	switch {
	case e < m.epoch: // the commit will say that it is fenced
	case it.meta.First == m.first:
		m.covered = true
	case ahead(it.meta.First, m.first):
		return m.covered
	}
	return true
}

// failChain gives a batch a retriable error, and so all that come after it in its chain: a client that saw a later one
// acknowledged would take this one for delivered. A producer's chain gets a mark. b.mu is held.
func (b *Batcher) failChain(it *item, err error, now time.Time) {
	c := it.chain
	if c.sequence {
		b.setMark(c, it, now)
	}
	next := it.next
	b.unhold(it)
	b.answer(it, failure(err))
	for it = next; it != nil; it = next {
		next = it.next
		if it.flush != nil && it.flush.phase == phaseSettling {
			continue // its own result is known and about to be told
		}
		b.unhold(it)
		b.answer(it, failure(it.retriable()))
	}
	b.drop(c)
}

// retriable is the error that is true of a batch that has no result: whether it may have been committed.
func (it *item) retriable() error {
	if it.flush != nil && it.flush.attempted() {
		return ErrMaybePersisted
	}
	return ErrNotPersisted
}

func (b *Batcher) setMark(c *chain, it *item, now time.Time) {
	m := mark{set: true, epoch: it.meta.Epoch, first: it.meta.First, at: now}
	if old := c.mark; old.set && !old.covered && old.epoch == m.epoch && ahead(m.first, old.first) {
		m.first = old.first
	}
	c.mark = m
	b.touch(c, now)
}

// resolved notes that a batch has a result for good: committed, or refused for ever. b.mu is held.
func (b *Batcher) resolved(it *item, accepted bool) {
	c := it.chain
	if c.mark.set && c.mark.epoch == it.meta.Epoch && c.mark.first == it.meta.First {
		c.mark = mark{}
	}
	if accepted {
		c.gap = gap{}
	}
	b.untouch(c)
}
