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
		a := ActiveProducer{Producer: k.id, Epoch: p.epoch, Last: -1, At: p.at, TxnStart: -1}
		if p.n > 0 {
			a.Last = p.last[p.n-1].last
		}
		if first, open := b.state.open[k]; open {
			a.TxnStart = first
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(x, y ActiveProducer) int { return int(x.Producer - y.Producer) })
	return list, true
}
