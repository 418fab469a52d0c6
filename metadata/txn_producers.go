package metadata

import (
	"context"
	"fmt"
	"slices"
)

// ActiveProducer is what a partition knows of a producer.
type ActiveProducer struct {
	Producer ProducerID
	Epoch    ProducerEpoch
	Last     Sequence // of its last batch, -1: none of this epoch
	At       Millis   // when it last wrote
	TxnStart Offset   // of its open transaction, -1: none
}

// Producers gives a partition's producers by id, as the database has them now.
func (s *Store) Producers(ctx context.Context, id PartitionID) ([]ActiveProducer, error) {
	b := s.block(id.Block)
	for range maxLoadTries {
		if err := s.Refresh(ctx, id.Block); err != nil {
			return nil, err
		}
		if list, ok := b.producersOf(id.Slot); ok {
			return list, nil
		}
		if b.absent.Load() {
			return nil, ErrUnknownTopic
		}
	}
	return nil, fmt.Errorf("%w: block %d is evicted as fast as it is loaded", ErrUnavailable, id.Block)
}

// PartitionProducer names a producer in a partition.
type PartitionProducer struct {
	Partition PartitionID
	Producer  ProducerID
}

// Progress is how far a producer came in a partition.
type Progress struct {
	Epoch ProducerEpoch // -1: nothing is known of it
	Last  Sequence      // of its last batch, -1: none of this epoch
}

// Progress says how far producers came, one result for each, as the database has it now. What is evicted meanwhile counts
// as not known.
func (s *Store) Progress(ctx context.Context, of []PartitionProducer) ([]Progress, error) {
	blocks := make([]BlockID, len(of))
	for i := range of {
		blocks[i] = of[i].Partition.Block
	}
	slices.Sort(blocks)
	if err := s.Refresh(ctx, slices.Compact(blocks)...); err != nil {
		return nil, err
	}
	progress := make([]Progress, len(of))
	for i := range of {
		progress[i] = s.block(of[i].Partition.Block).progressOf(producerKey{of[i].Partition.Slot, of[i].Producer})
	}
	return progress, nil
}

func (b *block) progressOf(k producerKey) Progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != nil {
		if p := b.state.producers.get(k); p != nil {
			return Progress{Epoch: p.epoch, Last: p.lastSequence()}
		}
	}
	return Progress{Epoch: -1, Last: -1}
}

// lastSequence is that of the producer's last batch, -1 when there is none of its epoch.
func (p *producer) lastSequence() Sequence {
	if p.n == 0 {
		return -1
	}
	return p.last[p.n-1].last
}

// producersOf reads the fold; ok is false when there is none.
func (b *block) producersOf(slot Slot) (list []ActiveProducer, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == nil {
		return nil, false
	}
	for k, p := range b.state.producers.all() {
		if k.slot != slot || b.state.expired(k, p, b.state.Time) {
			continue
		}
		a := ActiveProducer{Producer: k.id, Epoch: p.epoch, Last: p.lastSequence(), At: p.at, TxnStart: -1}
		if first, open := b.state.open[k]; open {
			a.TxnStart = first
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(x, y ActiveProducer) int { return int(x.Producer - y.Producer) })
	return list, true
}
