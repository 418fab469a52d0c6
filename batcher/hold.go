package batcher

import (
	"context"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

// hold keeps a batch that came before the one it follows, until its partition moves. It is in no flush from then on.
// b.mu is held.
func (b *Batcher) hold(it *item, now time.Time) {
	c := it.chain
	if it.flush != nil {
		it.flush = nil // the flush is done
	}
	if c.gap.since.IsZero() || c.gap.epoch != it.meta.Epoch {
		c.gap = gap{since: now, epoch: it.meta.Epoch}
	}
	b.touch(c, now)
	if it.holdUntil.IsZero() {
		it.holdUntil = now.Add(b.cfg.SequenceHold)
	}
	if !now.Before(it.holdUntil) || b.heldBytes+int64(len(it.data)) > b.cfg.SequenceHoldBytes || c.gapClosed(now) {
		b.giveUp(it, now)
		return
	}
	b.keepHeld(it)
}

// holdBehind holds a new batch whose chain has held ones that come before it. b.mu is held.
func (b *Batcher) holdBehind(it *item, now time.Time) {
	it.holdUntil = now.Add(b.cfg.SequenceHold)
	if b.heldBytes+int64(len(it.data)) > b.cfg.SequenceHoldBytes {
		b.failChain(it, ErrNotPersisted, now)
		return
	}
	b.keepHeld(it)
}

// keepHeld counts a batch as held.
func (b *Batcher) keepHeld(it *item) {
	c := it.chain
	if c.held == 0 {
		b.heldChains[c] = struct{}{}
		notify(b.heldChanged)
	}
	it.held = true
	c.held++
	b.heldBytes += int64(len(it.data))
}

// unhold counts a batch as not held, when it was.
func (b *Batcher) unhold(it *item) {
	if !it.held {
		return
	}
	c := it.chain
	it.held = false
	c.held--
	b.heldBytes -= int64(len(it.data))
	if c.held == 0 {
		delete(b.heldChains, c)
	}
}

// gapClosed says whether the gap is so old that the missing batch is not expected any more.
func (c *chain) gapClosed(now time.Time) bool {
	return !c.gap.since.IsZero() && now.Sub(c.gap.since) >= gapLimit
}

// giveUp ends the wait for the missing batch: with the retriable error while it may still come through another agent or a
// retry, with Kafka's 45 after that. b.mu is held.
func (b *Batcher) giveUp(it *item, now time.Time) {
	if !it.chain.gapClosed(now) {
		b.failChain(it, ErrNotPersisted, now)
		return
	}
	c := it.chain
	for next := it; it != nil; it = next {
		next = it.next
		if it.flush != nil {
			continue // it will be told by its commit
		}
		b.unhold(it)
		b.resolved(it, false)
		b.answer(it, failure(ErrOutOfOrder))
	}
	b.drop(c)
}

// retryHeld puts the held batches of a chain into the open flush, in their order. b.mu is held.
func (b *Batcher) retryHeld(c *chain, now time.Time) {
	c.retried = now
	for it := c.head; it != nil; it = it.next {
		if it.held {
			b.unhold(it)
			b.enqueue(it, now)
		}
	}
	notify(b.wake)
}

// expireHeld answers held batches whose time is up, and gives when the next one's is. b.mu is held.
func (b *Batcher) expireHeld(now time.Time) (next time.Time) {
	for c := range b.heldChains {
		next = earliest(next, b.expireChain(c, now))
	}
	return next
}

func (b *Batcher) expireChain(c *chain, now time.Time) (next time.Time) {
	for it := c.firstHeld(); it != nil; it = it.next {
		switch {
		case !it.held:
		case !it.req.deadline.After(now):
			b.failChain(it, ErrNotPersisted, now)
			return next // with all that came after it
		case !it.holdUntil.After(now):
			b.giveUp(it, now)
			return next
		default:
			next = earliest(next, earliest(it.req.deadline, it.holdUntil))
		}
	}
	return next
}

// watchHeld tries held batches again when their partitions move, until ctx ends.
func (b *Batcher) watchHeld(ctx context.Context) {
	var watch *metadata.Watch
	var blocks []metadata.BlockID
	var moved <-chan struct{}
	unwatch := func() {
		if watch != nil {
			watch.Close()
		}
		watch, moved = nil, nil
	}
	defer unwatch()
	poll := time.NewTimer(holdPoll)
	defer poll.Stop()
	for {
		var tick <-chan time.Time
		if len(blocks) > 0 {
			poll.Reset(holdPoll)
			tick = poll.C
		}
		select {
		case <-ctx.Done():
			return
		case <-b.heldChanged:
		case <-moved:
		case <-tick:
		}
		if now := b.heldBlocks(); !slices.Equal(now, blocks) {
			unwatch()
			blocks = now
			if len(blocks) > 0 {
				watch = b.store.Watch(blocks)
				moved = watch.C()
			}
		}
		b.retryMoved(ctx, blocks)
	}
}

// heldBlocks gives the blocks that batches are held for, by id.
func (b *Batcher) heldBlocks() []metadata.BlockID {
	b.mu.Lock()
	defer b.mu.Unlock()
	blocks := make([]metadata.BlockID, 0, len(b.heldChains))
	for c := range b.heldChains {
		blocks = append(blocks, c.key.block)
	}
	slices.Sort(blocks)
	return slices.Compact(blocks)
}

// retryMoved tries the held batches of partitions whose high watermark is not what it was when they were last tried, and
// those that have not been tried for holdPoll: a move between the commit that refused them and the first look at their
// partition would be missed otherwise.
func (b *Batcher) retryMoved(ctx context.Context, blocks []metadata.BlockID) {
	views := make(map[metadata.BlockID]*metadata.View, len(blocks))
	for _, id := range blocks {
		v, err := b.store.View(ctx, id)
		if err != nil {
			if ctx.Err() == nil {
				b.log.Warn("held batches wait without their partition's state", "block", id, "error", err)
			}
			continue
		}
		views[id] = v
	}
	now := time.Now()
	b.mu.Lock()
	defer b.unlock()
	for c := range b.heldChains {
		if c.retried.IsZero() {
			c.retried = now
		}
		again := now.Sub(c.retried) >= holdPoll
		if v := views[c.key.block]; v != nil {
			hw := v.HighWatermark(c.key.slot)
			again = again || (c.heldAt >= 0 && hw != c.heldAt)
			c.heldAt = hw
		}
		if again {
			b.retryHeld(c, now)
		}
	}
}
