package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Commit commits flushes in one transaction and in order, and gives each its own results. When it returns an error
// nothing is known to be committed: after ErrUnknownOutcome submit the same flushes again (same ids and Seen), after
// ErrCondemned PUT again under a new key; after others nothing was committed.
//
// The extents of a flush must be ordered by block and slot, one for a partition. Commit owns the flushes' extents and
// batches from then on: it sets FlagAccepted in them, and views keep them.
func (s *Store) Commit(ctx context.Context, flushes []*Flush) ([]FlushResult, error) {
	c := &commit{store: s, flushes: flushes}
	return c.run(ctx)
}

func (c *commit) run(ctx context.Context) ([]FlushResult, error) {
	for _, f := range c.flushes {
		if err := f.check(); err != nil {
			return nil, err
		}
	}
	if err := c.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	if err := c.learnAges(ctx); err != nil {
		return nil, err
	}
	var err error
	for range maxLoadTries {
		err = c.store.driver.Commit(ctx, c.load(), c.decide)
		c.finish(err)
		c.exclusive = c.exclusive || errors.Is(err, errTxnExclusive)
		if !errors.Is(err, errFoldLost) && !errors.Is(err, errTxnExclusive) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("commit %d flushes in %d blocks: %w", len(c.flushes), len(c.blocks), err)
	}
	c.store.stall(ctx, c.blocks)
	return c.results, nil
}

// commit is one Commit under way.
type commit struct {
	store   *Store
	flushes []*Flush
	blocks  []*block             // by id; their tokens are held
	locked  []*block             // whose mu is held, from decide to the outcome
	from    map[BlockID]loadFrom // as the load was asked for
	ages    idRanges             // of the producers that the rules may ask about
	rows    []*Row
	inline  int64 // bytes
	results []FlushResult

	// Of transactions (txn_decide.go).
	exclusive bool     // lock them exclusively
	txns      *TxnLoad // as the load was asked for
	markers   bool     // the flush is of control batches
	onlyOpen  bool
	plan      *txnPlan // the end that the markers belong to
}

// acquire takes the blocks' tokens in id order: at most one commit is in flight per block and agent.
func (c *commit) acquire(ctx context.Context) error {
	ids := make([]BlockID, 0, len(c.flushes))
	for _, f := range c.flushes {
		for i := range f.Extents {
			if id := f.Extents[i].Block; len(ids) == 0 || ids[len(ids)-1] != id {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		b := c.store.block(id)
		select {
		case b.token <- struct{}{}:
			c.blocks = append(c.blocks, b)
		case <-ctx.Done():
			c.release()
			return fmt.Errorf("%w: waiting for the commit before: %w", ErrUnavailable, ctx.Err())
		}
	}
	return nil
}

func (c *commit) release() {
	for _, b := range c.blocks {
		<-b.token
	}
	c.blocks = nil
}

// learnAges looks up when the producers were handed out that the rules may ask about.
func (c *commit) learnAges(ctx context.Context) error {
	var unknown []ProducerID
	last := NoProducer
	for _, f := range c.flushes {
		for i := range f.Extents {
			for j := range f.Extents[i].Batches {
				b := &f.Extents[i].Batches[j]
				if b.Producer == NoProducer || b.Producer == last || b.First <= 0 || c.ages.contains(b.Producer) {
					continue
				}
				last = b.Producer
				if !c.store.ages.copyTo(&c.ages, b.Producer) {
					unknown = append(unknown, b.Producer)
				}
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	unknown = slices.Compact(unknown)
	ranges, err := c.store.driver.ProducerRangeOf(ctx, unknown)
	if err != nil {
		return fmt.Errorf("look up producer ids: %w", err)
	}
	for _, r := range ranges {
		c.ages.insert(r)
	}
	c.store.ages.learn(ranges, unknown)
	return nil
}

func (c *commit) load() CommitLoad {
	l := CommitLoad{Blocks: make([]BlockSeq, len(c.blocks)), Flushes: make([]FlushID, len(c.flushes))}
	c.txns = c.txnLoad()
	l.Txns = c.txns
	c.inline, c.from = 0, make(map[BlockID]loadFrom, len(c.blocks))
	for i, b := range c.blocks {
		f := b.loadFrom()
		l.Blocks[i], c.from[b.id] = BlockSeq{Block: b.id, Seq: f.seq}, f
	}
	for i, f := range c.flushes {
		l.Flushes[i] = f.ID
		if f.Object != "" {
			continue
		}
		p := InlinePayload{Flush: f.ID, Payload: f.Inline}
		for _, part := range f.Inline {
			p.Size += int64(len(part))
		}
		c.inline += p.Size
		l.Inline = append(l.Inline, p)
	}
	return l
}

// decide runs the rules under the locks. It is called at most once for a transaction; a driver that tries again calls
// it again, from the states as they are in the database.
func (c *commit) decide(loaded *CommitLoaded) (*CommitSave, error) {
	c.abandon()
	c.store.clock.saw(loaded.Now)
	if err := c.planned(loaded); err != nil {
		return nil, err
	}
	d := decision{
		now: loaded.Now, states: make(map[BlockID]*State, len(c.blocks)), ages: &c.ages, inlineNew: loaded.InlineNew,
		txns: newTxnRows(loaded, c.txns != nil && c.txns.Exclusive), markers: c.markers, onlyOpen: c.onlyOpen,
	}
	for _, b := range c.blocks {
		b.mu.Lock()
		c.locked = append(c.locked, b)
	}
	for i := range loaded.Blocks {
		delta := &loaded.Blocks[i]
		b := c.find(delta.Row.ID)
		if b == nil {
			return nil, fmt.Errorf("%w: block %d was not asked for", ErrCorrupt, delta.Row.ID)
		}
		if err := b.catchUp(delta, c.from[b.id]); err != nil {
			return nil, err
		}
		d.states[b.id] = b.state
	}
	results, err := d.decide(c.flushes, loaded.Receipts)
	if err != nil {
		return nil, err
	}
	if d.txns.joins {
		return nil, errTxnExclusive
	}
	d.saveTxns()
	c.end(&d.save, results)
	if d.stale {
		// Whoever validates again must not do it against the same catalogue, even if the wake-up was lost.
		c.store.catalogueMoved()
	}
	c.results, c.rows = results, d.save.Rows
	return &d.save, nil
}

func (c *commit) find(id BlockID) *block {
	i, ok := slices.BinarySearchFunc(c.blocks, id, func(b *block, id BlockID) int { return int(b.id - id) })
	if !ok {
		return nil
	}
	return c.blocks[i]
}

// abandon throws away what an attempt folded without committing it.
func (c *commit) abandon() {
	for _, b := range c.locked {
		c.store.forget(b)
		b.mu.Unlock()
	}
	c.locked, c.rows, c.results = nil, nil, nil
}

// finish publishes the outcome.
func (c *commit) finish(err error) {
	if err != nil {
		c.abandon()
		return
	}
	for _, r := range c.rows {
		c.find(r.Block).keep(r)
	}
	event := Event{Blocks: make([]BlockSeq, 0, len(c.locked))}
	for _, b := range c.locked {
		if b.state != nil {
			c.store.publish(b)
			b.caughtUp(c.from[b.id].marks)
			c.store.queueCheckpoint(b)
			event.Blocks = append(event.Blocks, BlockSeq{Block: b.id, Seq: b.state.Seq})
		}
		b.mu.Unlock()
	}
	c.locked = nil
	c.store.resident.Add(c.inline)
	c.store.pending.add(event)
	c.store.evict(nil)
}
