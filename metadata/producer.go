package metadata

// keptBatches is how many of a producer's last batches a retry is recognised by: Kafka's five, the most a client may
// have in flight.
const keptBatches = 5

type producerKey struct {
	slot Slot
	id   ProducerID
}

// producer is what a block knows of one producer in one slot.
type producer struct {
	epoch ProducerEpoch
	n     uint8 // how many of batches are set, newest last
	at    Millis
	last  [keptBatches]committed
}

// committed is a batch that got offsets.
type committed struct {
	first, last Sequence
	base        Offset
}

// note remembers an accepted batch.
func (p *producer) note(b *Batch, base Offset, at Millis) {
	if b.Epoch != p.epoch {
		p.epoch, p.n = b.Epoch, 0
	}
	p.at = at
	if b.Flags&FlagControl != 0 {
		return // control batches have no sequence; they only move the epoch
	}
	if p.n == keptBatches {
		copy(p.last[:], p.last[1:])
		p.n--
	}
	p.last[p.n] = committed{first: b.First, last: b.Last, base: base}
	p.n++
}

// check applies Kafka's rules for idempotent producers (kafka-protocol.md section 5; KIP-98) to a batch of a producer
// with known state. A sequence ahead of the known one is CodeNotYet here: the earlier batch may be on its way through
// another agent.
func (p *producer) check(b *Batch) (Code, Offset) {
	switch {
	case b.Epoch < p.epoch:
		return CodeFenced, -1
	case b.Epoch > p.epoch:
		if b.First != 0 {
			return CodeNotYet, -1
		}
		return CodeAccepted, -1
	case p.n == 0: // a control batch moved the epoch: the first batch of it starts at 0
		if b.First != 0 {
			return CodeNotYet, -1
		}
		return CodeAccepted, -1
	}
	for i := range p.n {
		if c := &p.last[i]; c.first == b.First && c.last == b.Last {
			return CodeDuplicate, c.base
		}
	}
	next := p.last[p.n-1].last.Next(1)
	if b.First == next {
		return CodeAccepted, -1
	}
	if ahead(b.First, next) {
		return CodeNotYet, -1
	}
	return CodeOutOfOrder, -1
}

// ahead says whether sequence s is after t, by the shorter way around the wrap.
func ahead(s, t Sequence) bool {
	d := (int64(s) - int64(t)) & int64(MaxSequence)
	return d != 0 && d <= int64(MaxSequence)/2
}
