package metadatatest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/skeinio/skein/metadata"
)

// modelBatch is a batch in the model's log.
type modelBatch struct {
	producer    metadata.ProducerID
	epoch       metadata.ProducerEpoch
	first, last metadata.Sequence
	base        metadata.Offset
}

// modelLog is a partition as Kafka keeps it, told the plain way: the whole log, searched from its end.
type modelLog struct {
	next    metadata.Offset
	batches []modelBatch
}

// append does what Kafka's broker does with a batch (ProducerAppendInfo), but that a gap is "not yet".
func (l *modelLog) append(b *metadata.Batch) (metadata.Code, metadata.Offset) {
	if b.Producer != metadata.NoProducer {
		if code, base := l.check(b); code != metadata.CodeAccepted {
			return code, base
		}
	}
	l.batches = append(l.batches, modelBatch{b.Producer, b.Epoch, b.First, b.Last, l.next})
	base := l.next
	l.next += metadata.Offset(b.Records)
	return metadata.CodeAccepted, base
}

func (l *modelLog) check(b *metadata.Batch) (metadata.Code, metadata.Offset) {
	var mine []modelBatch
	for _, x := range l.batches {
		if x.producer == b.Producer {
			mine = append(mine, x)
		}
	}
	if len(mine) == 0 {
		if b.First != 0 {
			return metadata.CodeNotYet, -1 // all of the model's producers are young
		}
		return metadata.CodeAccepted, -1
	}
	newest := mine[len(mine)-1]
	switch {
	case b.Epoch < newest.epoch:
		return metadata.CodeFenced, -1
	case b.Epoch > newest.epoch && b.First == 0:
		return metadata.CodeAccepted, -1
	case b.Epoch > newest.epoch:
		return metadata.CodeNotYet, -1
	}
	for i, x := range slices.Backward(mine) {
		if i < len(mine)-5 || x.epoch != b.Epoch {
			break
		}
		if x.first == b.First && x.last == b.Last {
			return metadata.CodeDuplicate, x.base
		}
	}
	// Far from the wrap, ahead and behind are what they look like.
	switch want := newest.last + 1; {
	case b.First == want:
		return metadata.CodeAccepted, -1
	case b.First > want:
		return metadata.CodeNotYet, -1
	}
	return metadata.CodeOutOfOrder, -1
}

// modelProducer is a client that retries, reorders and bumps its epoch.
type modelProducer struct {
	id    metadata.ProducerID
	epoch metadata.ProducerEpoch
	next  map[int]metadata.Sequence // by partition
	sent  map[int][]metadata.Batch
}

func (c *modelProducer) batch(random *rand.Rand, partition int) metadata.Batch {
	n := 1 + random.Int32N(4)
	next := c.next[partition]
	switch pick := random.IntN(20); {
	case pick < 5 && len(c.sent[partition]) > 0: // a retry, mostly of a recent batch
		sent := c.sent[partition]
		return sent[max(0, len(sent)-1-random.IntN(8))]
	case pick == 5: // overtakes its elder
		return idempotent(c.id, c.epoch, next+metadata.Sequence(1+random.Int32N(3)), n)
	case pick == 6 && c.epoch > 0:
		return idempotent(c.id, c.epoch-1, next, n)
	case pick == 7 && random.IntN(4) == 0:
		c.epoch++
		clear(c.next)
		next = 0
	}
	b := idempotent(c.id, c.epoch, next, n)
	c.next[partition] = next.Next(n)
	c.sent[partition] = append(c.sent[partition], b)
	return b
}

// model is the logs, and what the Stores under test said.
type model struct {
	*env
	random    *rand.Rand
	parts     []metadata.Partition
	logs      []modelLog
	producers []*modelProducer
	faulty    *faulty
	fault     fault
	stores    []*metadata.Store
	step      int
}

// testModel compares random producers' results, under faults, with the model's.
func testModel(e *env) {
	steps := 2500
	if testing.Short() {
		steps = 150
	}
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	m := &model{env: e, random: rand.New(rand.NewPCG(seed, 0)), logs: make([]modelLog, 5)}
	m.faulty = &faulty{Driver: e.db.Driver(e.T), choose: func() fault { return m.fault }}
	for range 2 {
		s := e.storeWith(metadata.Options{Driver: m.faulty, CheckpointRows: 10})
		e.run(s)
		m.stores = append(m.stores, s)
	}
	all := e.topic(m.stores[0], "t", 67).Partitions
	m.parts = append(all[:2:2], all[64:]...)
	ids, err := m.stores[0].AllocateProducerIDs(e.Context(), 8)
	e.must(err)
	for i := range metadata.ProducerID(8) {
		m.producers = append(m.producers, &modelProducer{
			id: ids.First + i, next: map[int]metadata.Sequence{}, sent: map[int][]metadata.Batch{},
		})
	}
	for m.step = range steps {
		if m.step%50 == 49 { // a new agent takes the place of an old one
			s := e.storeWith(metadata.Options{Driver: m.faulty, CheckpointRows: 10})
			e.run(s)
			m.stores[m.random.IntN(len(m.stores))] = s
		}
		m.commit()
	}
	for i, p := range m.parts {
		for _, s := range append(m.stores, e.store()) {
			if hw := e.highWatermark(s, p); hw != m.logs[i].next {
				e.Fatalf("partition %d: high watermark %d, the model's %d", i, hw, m.logs[i].next)
			}
		}
		m.checkLog(i)
	}
}

// commit makes one commit of some flushes, perhaps with a fault and then again.
func (m *model) commit() {
	var flushes []*metadata.Flush
	for range 1 + m.random.IntN(3) {
		var pieces []piece
		for _, i := range m.random.Perm(len(m.parts))[:1+m.random.IntN(3)] {
			x := of(m.parts[i])
			for range 1 + m.random.IntN(3) {
				if m.random.IntN(5) == 0 {
					x.batches = append(x.batches, plain(1+m.random.Int32N(3)))
				} else {
					x.batches = append(x.batches, m.producers[m.random.IntN(len(m.producers))].batch(m.random, i))
				}
			}
			pieces = append(pieces, x)
		}
		flushes = append(flushes, m.flush(m.stores[0], pieces...))
	}
	m.fault = noFault
	if m.random.IntN(4) == 0 {
		m.fault = fault(m.random.IntN(numberOfFaults))
	}
	resubmitted := false
	results, err := m.stores[m.random.IntN(len(m.stores))].Commit(m.Context(), flushes)
	if err != nil {
		resubmitted = m.fault >= commitsDoneFrom
		m.fault = noFault
		if !errors.Is(err, metadata.ErrUnavailable) && !errors.Is(err, metadata.ErrUnknownOutcome) {
			m.Fatalf("step %d: %v", m.step, err)
		}
		results, err = m.stores[m.random.IntN(len(m.stores))].Commit(m.Context(), flushes)
		m.must(err)
	}
	for i, f := range flushes {
		if results[i].Err != nil || results[i].Resubmitted != resubmitted {
			m.Fatalf("step %d, flush %d: %+v, want resubmitted %v", m.step, i, results[i], resubmitted)
		}
		m.compare(f, results[i].Batches)
	}
}

func (m *model) compare(f *metadata.Flush, results []metadata.BatchResult) {
	for i := range f.Extents {
		x := &f.Extents[i]
		part := slices.IndexFunc(m.parts, func(p metadata.Partition) bool { return p.Block == x.Block && p.Slot == x.Slot })
		for j := range x.Batches {
			code, base := m.logs[part].append(&x.Batches[j])
			m.expect(fmt.Sprintf("step %d, partition %d, batch %+v", m.step, part, x.Batches[j]), results[0], code, base)
			results = results[1:]
		}
	}
}

// checkLog reads a partition from its rows and compares it with the model's log, batch by batch.
func (m *model) checkLog(part int) {
	m.Helper()
	p, s, log := m.parts[part], m.store(), m.logs[part].batches
	for offset := metadata.Offset(0); offset < m.logs[part].next; {
		found, err := s.Locate(m.Context(), []metadata.LocateQuery{{
			Block: p.Block, Slot: p.Slot, Offset: offset, MaxRows: 7, MaxBytes: 1 << 20,
		}})
		m.must(err)
		if len(found[0]) == 0 {
			m.Fatalf("partition %d: nothing at offset %d", part, offset)
		}
		for _, x := range found[0] {
			base := x.Base
			for _, b := range x.Batches {
				if b.Flags&metadata.FlagAccepted == 0 {
					continue
				}
				if got := (modelBatch{b.Producer, b.Epoch, b.First, b.Last, base}); got != log[0] {
					m.Fatalf("partition %d: read %+v, the model has %+v", part, got, log[0])
				}
				log = log[1:]
				base += metadata.Offset(b.Records)
			}
			offset = x.End
		}
	}
	if len(log) != 0 {
		m.Fatalf("partition %d: %d batches of the model's log are not there", part, len(log))
	}
}
