package compactor

import (
	"context"
	"errors"

	"github.com/skeinio/skein/metadata"
)

// Retention moves log starts by retention.ms and retention.bytes, deletes the runs that end below their log's start or
// belong to deleted partitions, and drops blocks of which nothing is left.
func (c *Compactor) Retention(ctx context.Context) error {
	return c.alone(ctx, jobRetention, func(ctx context.Context) error {
		catalogue, err := c.store.RefreshCatalogue(ctx)
		if err != nil {
			return err
		}
		wanted := c.retained(catalogue)
		return c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
			if err := c.expire(ctx, page, wanted); err != nil {
				return err
			}
			return c.drop(ctx, page)
		})
	})
}

// rule is what a topic's configs say of its old records.
type rule struct {
	millis int64 // -1: any age
	bytes  int64 // below 0: any size
}

// retained gives the rules of partitions that lose records by age or size.
func (c *Compactor) retained(catalogue *metadata.Catalogue) map[metadata.PartitionID]rule {
	rules := map[metadata.PartitionID]rule{}
	for _, t := range catalogue.Topics() {
		v := c.configs.Values(t.Configs)
		if r := (rule{millis: int64(v.RetentionMillis), bytes: v.RetentionBytes}); v.Delete && (r.millis >= 0 || r.bytes >= 0) {
			for _, p := range t.Partitions {
				rules[metadata.PartitionID{Block: p.Block, Slot: p.Slot}] = r
			}
		}
	}
	return rules
}

// expire moves the log starts of a page's partitions.
func (c *Compactor) expire(ctx context.Context, page []metadata.BacklogRow, rules map[metadata.PartitionID]rule) error {
	var queries []metadata.RetentionQuery
	for i := range page {
		b := &page[i]
		for slot := range metadata.Slot(b.Row.Used) {
			r, ok := rules[metadata.PartitionID{Block: b.Row.ID, Slot: slot}]
			if !ok || b.Row.Deleted&(1<<slot) != 0 || b.Row.MergedSeq == 0 || b.Corrupt != nil {
				continue
			}
			q := metadata.RetentionQuery{
				Block: b.Row.ID, Slot: slot, LogStart: b.Row.LogStart[slot], Cutoff: metadata.NoTimestamp, KeepBytes: -1,
				From: c.dropped[metadata.PartitionID{Block: b.Row.ID, Slot: slot}].from,
			}
			if r.millis >= 0 {
				q.Cutoff = max(b.Now-metadata.Millis(r.millis), 0)
			}
			if r.bytes >= 0 {
				q.KeepBytes = b.Photo.Bytes[slot] - r.bytes
			}
			queries = append(queries, q)
		}
	}
	for len(queries) > 0 {
		part := queries[:min(len(queries), retentionParts)]
		queries = queries[len(part):]
		starts, err := c.db.RetentionStarts(ctx, part)
		if err != nil {
			return err
		}
		var moves []metadata.LogStart
		for i, start := range starts {
			if start > part[i].LogStart {
				moves = append(moves, metadata.LogStart{Block: part[i].Block, Slot: part[i].Slot, Offset: start})
			}
		}
		if len(moves) == 0 {
			continue
		}
		changed, err := c.db.MoveLogStarts(ctx, moves)
		if err != nil {
			return err
		}
		c.store.Changed(changed...)
		c.metrics.removed.WithLabelValues("log_starts_moved").Add(float64(len(moves)))
	}
	return nil
}

// droppedTo is how far runs were dropped in a partition. Where neither the log's start nor what is merged has changed since,
// there is nothing to do.
type droppedTo struct {
	from, below metadata.Offset
	merged      metadata.Seq
}

// drop deletes the runs of a page's blocks that nobody may read any more, by the log starts as they are now.
func (c *Compactor) drop(ctx context.Context, page []metadata.BacklogRow) error {
	now, err := c.db.Backlog(ctx, page[0].Row.ID-1, len(page))
	if err != nil {
		return err
	}
	var below []metadata.RunsBelow
	var merged []metadata.Seq
	var empty []metadata.BlockID
	for i := range now {
		b := &now[i]
		if b.Corrupt != nil {
			continue
		}
		for slot := range metadata.Slot(b.Row.Used) {
			offset := b.Row.LogStart[slot]
			if b.Row.Deleted&(1<<slot) != 0 {
				offset = b.Photo.Next[slot]
			}
			done := c.dropped[metadata.PartitionID{Block: b.Row.ID, Slot: slot}]
			if offset > 0 && b.Row.MergedSeq > 0 && (done.below != offset || done.merged != b.Row.MergedSeq) {
				below = append(below, metadata.RunsBelow{Block: b.Row.ID, Slot: slot, From: done.from, Below: offset})
				merged = append(merged, b.Row.MergedSeq)
			}
		}
		if b.Row.Deleted != 0 && b.Unmerged() == 0 && b.Released >= b.Last {
			empty = append(empty, b.Row.ID)
		}
	}
	for len(below) > 0 {
		n := min(len(below), retentionParts)
		if err := c.dropRuns(ctx, below[:n], merged[:n]); err != nil {
			return err
		}
		below, merged = below[n:], merged[n:]
	}
	return c.dropBlocks(ctx, empty)
}

// dropRuns drops runs until there are none left, and notes how far that is.
func (c *Compactor) dropRuns(ctx context.Context, below []metadata.RunsBelow, merged []metadata.Seq) error {
	for n := dropRuns; n >= dropRuns; {
		if err := c.db.DropRuns(ctx, below, dropRuns); err != nil {
			return err
		}
		n = 0
		for i := range below {
			n += below[i].Count
		}
		c.metrics.removed.WithLabelValues("runs").Add(float64(n))
	}
	for i, b := range below {
		c.dropped[metadata.PartitionID{Block: b.Block, Slot: b.Slot}] = droppedTo{from: b.From, below: b.Below, merged: merged[i]}
	}
	return nil
}

func (c *Compactor) dropBlocks(ctx context.Context, empty []metadata.BlockID) error {
	if len(empty) == 0 {
		return nil
	}
	gone, err := c.db.DropBlocks(ctx, empty)
	if err != nil {
		return err
	}
	c.metrics.removed.WithLabelValues("blocks").Add(float64(len(gone)))
	c.store.Changed(gone...)
	for _, id := range gone {
		for slot := range metadata.Slot(metadata.SlotsPerBlock) {
			delete(c.dropped, metadata.PartitionID{Block: id, Slot: slot})
		}
	}
	return nil
}

// Release takes back the references of merged rows, and deletes these and the inline payloads they named.
func (c *Compactor) Release(ctx context.Context) error {
	return c.alone(ctx, jobRelease, func(ctx context.Context) error {
		var failed error
		err := c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
			for i := range page {
				b := &page[i]
				if b.Released >= b.Row.MergedSeq && (b.First >= b.Last || b.First > b.Row.MergedSeq) {
					continue
				}
				if err := c.releaseBlock(ctx, b.Row.ID); err != nil {
					failed = errors.Join(failed, err)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
			return nil
		})
		if err == nil && failed == nil {
			err = c.crash(PointReleased)
		}
		return errors.Join(err, failed)
	})
}

func (c *Compactor) releaseBlock(ctx context.Context, id metadata.BlockID) error {
	for n := releaseRows; n == releaseRows; {
		var err error
		if n, err = c.db.ReleaseRows(ctx, id, releaseRows); err != nil {
			return err
		}
		c.metrics.removed.WithLabelValues("level0").Add(float64(n))
	}
	return nil
}
