package batcher

import (
	"context"
	"time"

	"github.com/skeinio/skein/metadata"
)

// doubt has the database asked whether the batch that a mark waits for was committed after all: its producer may have
// taken it to another agent and come back. b.mu is held.
func (b *Batcher) doubt(c *chain, now time.Time) {
	if now.Sub(c.mark.doubted) < holdPoll || len(b.doubted) >= maxDoubts {
		return
	}
	c.mark.doubted = now
	b.doubted[c.key] = struct{}{}
	notify(b.doubts)
}

// watchDoubts drops the marks that other agents' commits have settled, until ctx ends.
func (b *Batcher) watchDoubts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.doubts:
			b.settleDoubts(ctx)
		}
	}
}

func (b *Batcher) settleDoubts(ctx context.Context) {
	of := b.takeDoubts()
	progress, err := b.store.Progress(ctx, of)
	if err != nil {
		return // whoever is refused next asks again
	}
	b.mu.Lock()
	defer b.unlock()
	for i := range of {
		c := b.chains[chainKey{producer: of[i].Producer, block: of[i].Partition.Block, slot: of[i].Partition.Slot}]
		if c == nil || !c.mark.settledBy(progress[i]) {
			continue
		}
		c.mark = mark{}
		b.untouch(c)
		b.drop(c)
	}
}

func (b *Batcher) takeDoubts() []metadata.PartitionProducer {
	b.mu.Lock()
	defer b.mu.Unlock()
	of := make([]metadata.PartitionProducer, 0, len(b.doubted))
	for k := range b.doubted {
		of = append(of, metadata.PartitionProducer{
			Partition: metadata.PartitionID{Block: k.block, Slot: k.slot}, Producer: k.producer,
		})
	}
	clear(b.doubted)
	return of
}

// settledBy says whether a producer that has come so far has committed the batch that the mark waits for, or given it up.
func (m *mark) settledBy(p metadata.Progress) bool {
	if !m.set || m.covered {
		return false
	}
	return p.Epoch > m.epoch || (p.Epoch == m.epoch && p.Last >= 0 && !ahead(m.first, p.Last))
}
