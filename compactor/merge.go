package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// mergeLevel is the level of what a merge of level 0 writes.
const mergeLevel = 1

// MergeAll merges what is due, until nothing is.
func (c *Compactor) MergeAll(ctx context.Context) error {
	return c.mergeWhile(ctx, c.cfg.wantsMerge)
}

// MergeEverything merges all rows of all blocks, however young. For tests, and for draining a cluster.
func (c *Compactor) MergeEverything(ctx context.Context) error {
	return c.mergeWhile(ctx, func(b *metadata.BacklogRow) bool { return b.Unmerged() > 0 })
}

func (c *Compactor) mergeWhile(ctx context.Context, want func(*metadata.BacklogRow) bool) error {
	for {
		var due []metadata.BacklogRow
		var all backlog
		err := c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
			for i := range page {
				all.add(&page[i])
				if want(&page[i]) {
					due = append(due, page[i])
				}
			}
			if len(page) > 0 {
				c.metrics.backlog(&all, page[0].Now)
			}
			return nil
		})
		if err != nil {
			return err
		}
		c.pressed.Store(all.worst > c.cfg.MaxUnmerged/2)
		var failed error
		moved := false
		for _, blocks := range jobs(due) {
			n, err := c.mergeBlocks(ctx, blocks)
			moved = moved || n > 0
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed = errors.Join(failed, err) // the other blocks go on
		}
		if failed != nil || !moved {
			return failed
		}
	}
}

// merging is one block of a merge.
type merging struct {
	row    metadata.BlockRow
	places map[metadata.Slot]metadata.PartitionRow
	rows   []*metadata.Row
	to     metadata.Seq
	inputs []*input // by slot, then seq
	runs   []*metadata.RunRow
	keep   []metadata.ObjectKey
}

// input is a level-0 extent to be merged.
type input struct {
	blob
	row     *metadata.Row
	touched *metadata.Touched
	base    metadata.Offset
}

// mergeBlocks merges as much of blocks as fits a job, and gives how many of them moved on.
func (c *Compactor) mergeBlocks(ctx context.Context, blocks []metadata.BacklogRow) (int, error) {
	names := make([]string, len(blocks))
	for i := range blocks {
		names[i] = metadata.BlockLease(blocks[i].Row.ID)
	}
	h, err := c.hold(ctx, names...)
	if err != nil || h == nil {
		return 0, err
	}
	defer h.release(ctx)
	moved, err := c.mergeHeld(h, blocks)
	if err != nil {
		if cause := context.Cause(h.ctx); cause != nil && ctx.Err() == nil {
			err = errors.Join(err, cause)
		}
		return moved, fmt.Errorf("merge of %d blocks from block %d on: %w", len(blocks), blocks[0].Row.ID, err)
	}
	return moved, nil
}

func (c *Compactor) mergeHeld(h *held, blocks []metadata.BacklogRow) (int, error) {
	ctx := h.ctx
	list, err := c.gather(h, blocks)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	if err := c.crash(PointPlanned); err != nil {
		return 0, err
	}
	var blobs []*blob
	for _, m := range list {
		for _, in := range m.inputs {
			blobs = append(blobs, &in.blob)
		}
	}
	if err := c.read(ctx, jobMerge, blobs); err != nil {
		return 0, err
	}
	if err := c.crash(PointRead); err != nil {
		return 0, err
	}
	out, err := newOutput(mergeLevel)
	if err != nil {
		return 0, err
	}
	for _, m := range list {
		if err := c.layOut(m, out); err != nil {
			return 0, err
		}
	}
	if len(out.runs) > 0 {
		if err := c.put(ctx, jobMerge, out); err != nil {
			return 0, err
		}
	}
	c.metrics.moved.WithLabelValues(jobMerge, "in").Add(float64(out.rawSize))
	return c.swapAll(h, list)
}

func (c *Compactor) swapAll(h *held, list []*merging) (moved int, failed error) {
	for _, m := range list {
		lease, _ := h.get(metadata.BlockLease(m.row.ID))
		last := m.rows[len(m.rows)-1]
		s := metadata.SwapSave{
			Lease: lease, Block: m.row.ID, From: m.row.MergedSeq, To: m.to, MergedBytes: last.Photo.TotalBytes(), Keep: m.keep,
		}
		for _, r := range m.runs {
			s.Add = append(s.Add, *r)
		}
		if err := c.db.Swap(h.ctx, s); err != nil {
			// Another block's swap does not depend on it. Whether it was done shows when the backlog is read next.
			failed = errors.Join(failed, err)
			continue
		}
		moved++
		c.store.Changed(m.row.ID)
		c.mu.Lock()
		c.touched[m.row.ID] = true
		c.mu.Unlock()
		c.metrics.removed.WithLabelValues("merged_rows").Add(float64(len(m.rows)))
	}
	if failed == nil {
		failed = c.crash(PointSwapped)
	}
	return moved, failed
}

// gather loads the rows of those blocks whose leases are held, as many as fit a job.
func (c *Compactor) gather(h *held, blocks []metadata.BacklogRow) ([]*merging, error) {
	var ids []metadata.BlockID
	for i := range blocks {
		if _, ok := h.get(metadata.BlockLease(blocks[i].Row.ID)); ok {
			ids = append(ids, blocks[i].Row.ID)
		}
	}
	var list []*merging
	budget := int64(jobBytes) / int64(len(ids))
	for _, id := range ids {
		// The block as it is now: another compactor may have been at it until the lease was taken.
		page, err := c.db.Backlog(h.ctx, id-1, 1)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 || page[0].Row.ID != id || page[0].Unmerged() == 0 {
			continue
		}
		m, err := c.gatherBlock(h.ctx, &page[0], budget)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", id, err)
		}
		if m != nil {
			list = append(list, m)
		}
	}
	return list, nil
}

func (c *Compactor) placesOf(ctx context.Context, ids []metadata.BlockID) (map[metadata.BlockID]map[metadata.Slot]metadata.PartitionRow, error) {
	rows, err := c.db.PlacesOf(ctx, ids)
	if err != nil {
		return nil, err
	}
	places := map[metadata.BlockID]map[metadata.Slot]metadata.PartitionRow{}
	for _, p := range rows {
		if places[p.Block] == nil {
			places[p.Block] = map[metadata.Slot]metadata.PartitionRow{}
		}
		places[p.Block][p.Slot] = p
	}
	return places, nil
}

// gatherBlock loads a block's rows above its merged seq, up to a checkpoint and within the budget, at least one.
func (c *Compactor) gatherBlock(ctx context.Context, b *metadata.BacklogRow, budget int64) (*merging, error) {
	limit, err := c.checkpoint(ctx, b)
	if err != nil || limit <= b.Row.MergedSeq {
		return nil, err
	}
	rows, err := c.db.LoadRows(ctx, b.Row.ID, b.Row.MergedSeq, int(min(jobRows, int64(limit-b.Row.MergedSeq))))
	if err != nil {
		return nil, err
	}
	m := &merging{row: b.Row, to: b.Row.MergedSeq}
	if err := c.locatePlaces(ctx, m, rows); err != nil {
		return nil, err
	}
	var raw int64
	for _, r := range rows {
		if r.Seq != m.to+1 {
			return nil, fmt.Errorf("%w: row %d follows row %d", metadata.ErrCorrupt, r.Seq, m.to)
		}
		inputs, size := m.inputsOf(r)
		if len(m.rows) > 0 && raw+size > budget || r.Seq > limit {
			break
		}
		raw += size
		m.rows, m.to = append(m.rows, r), r.Seq
		m.inputs = append(m.inputs, inputs...)
	}
	if len(m.rows) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(m.inputs, func(a, b *input) int { return int(a.touched.Slot) - int(b.touched.Slot) })
	return m, nil
}

// locatePlaces loads the block's partitions. After the rows: whatever partition they touch is there by now, or is deleted.
func (c *Compactor) locatePlaces(ctx context.Context, m *merging, rows []*metadata.Row) error {
	places, err := c.placesOf(ctx, []metadata.BlockID{m.row.ID})
	if err != nil {
		return err
	}
	m.places = places[m.row.ID]
	var missing uint64
	for _, r := range rows {
		for i := range r.Touched {
			if slot := r.Touched[i].Slot; m.row.Deleted&(1<<slot) == 0 && m.places[slot].Topic.IsZero() {
				missing |= 1 << slot
			}
		}
	}
	if missing == 0 {
		return nil
	}
	page, err := c.db.Backlog(ctx, m.row.ID-1, 1) // deleted meanwhile
	if err != nil {
		return err
	}
	if len(page) == 0 || page[0].Row.ID != m.row.ID || page[0].Row.Deleted&missing != missing {
		return fmt.Errorf("%w: rows touch slots %b that are no partition's and not deleted", metadata.ErrCorrupt, missing)
	}
	m.row.Deleted = page[0].Row.Deleted
	return nil
}

// checkpoint gives a checkpoint's seq up to which rows may be merged, making one where the newest is far behind.
func (c *Compactor) checkpoint(ctx context.Context, b *metadata.BacklogRow) (metadata.Seq, error) {
	if b.Checkpoint >= b.Last || (b.Checkpoint > b.Row.MergedSeq && int64(b.Checkpoint-b.Row.MergedSeq) >= b.Unmerged()/2 && b.Unmerged() > jobRows) {
		return b.Checkpoint, nil
	}
	seq, err := c.store.Checkpoint(ctx, b.Row.ID)
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// inputsOf gives what of a row has to be merged: extents in which something was accepted, of partitions that are not
// deleted, and not below their log's start.
func (m *merging) inputsOf(r *metadata.Row) ([]*input, int64) {
	var list []*input
	var size int64
	for i := range r.Touched {
		t := &r.Touched[i]
		if t.Records() == 0 || r.Photo.Next[t.Slot] <= m.row.LogStart[t.Slot] {
			continue
		}
		if _, ok := m.places[t.Slot]; !ok || m.row.Deleted&(1<<t.Slot) != 0 {
			continue
		}
		in := &input{row: r, touched: t, base: r.Base(i)}
		in.blob = blob{
			object: r.Object, flush: r.Flush, position: t.Position, length: int64(t.Length), raw: int64(t.RawLength),
			codec: segment.Codec(t.Codec), crc: t.CRC,
		}
		list = append(list, in)
		size += in.raw
	}
	return list, size
}

// layOut writes a block's runs: one for each partition, more where something damaged stands between.
func (c *Compactor) layOut(m *merging, out *output) error {
	var batches []batch
	var last *input
	flush := func() error {
		if len(batches) == 0 {
			return nil
		}
		run := m.runOf(last)
		run.Base, run.Last = metadata.Offset(batches[0].BaseOffset), metadata.Offset(batches[len(batches)-1].LastOffset())
		if err := out.add(m.places[run.Slot], run, batches); err != nil {
			return err
		}
		m.runs, batches = append(m.runs, run), nil
		return nil
	}
	for _, in := range m.inputs {
		if last != nil && last.touched.Slot != in.touched.Slot {
			if err := flush(); err != nil {
				return err
			}
		}
		var more []batch
		err := in.err
		if err == nil {
			more, err = cut(in.data, in.touched, in.base)
		}
		if err != nil {
			if err := flush(); err != nil {
				return err
			}
			c.leave(m, in, err)
			last = nil
			continue
		}
		batches, last = append(batches, more...), in
	}
	return flush()
}

// runOf starts a run's row from the photograph at its last extent.
func (m *merging) runOf(last *input) *metadata.RunRow {
	slot := last.touched.Slot
	return &metadata.RunRow{
		Block: m.row.ID, Slot: slot, RunningMaxTS: last.row.Photo.MaxTS[slot], Bytes: last.row.Photo.Bytes[slot],
	}
}

// leave keeps a damaged extent where it is, as a run of level 0: what of it can be read some day is not lost, and the rest
// of the block goes on.
func (c *Compactor) leave(m *merging, in *input, err error) {
	run := m.runOf(in)
	slot := run.Slot
	run.Base, run.Last = in.base, in.row.Photo.Next[slot]-1
	run.Object, run.Position, run.Length, run.Raw = in.object, in.position, in.length, in.raw
	run.MaxTS = metadata.NoTimestamp
	for i := range in.touched.Batches {
		if b := &in.touched.Batches[i]; b.Flags&metadata.FlagAccepted != 0 {
			run.MaxTS = max(run.MaxTS, b.MaxTimestamp)
		}
	}
	m.runs = append(m.runs, run)
	if in.object != "" {
		m.keep = append(m.keep, in.object)
	}
	c.metrics.damaged.Inc()
	place := m.places[slot]
	c.log.Error("extent cannot be read and is left where it is", "topic_id", place.Topic, "partition", place.Index,
		"first_offset", int64(run.Base), "last_offset", int64(run.Last), "where", in.name(), "error", err)
}

func (m *metrics) backlog(b *backlog, now metadata.Millis) {
	m.rows.Set(float64(b.rows))
	m.bytes.Set(float64(b.bytes))
	m.worst.Set(float64(b.worst))
	age := time.Duration(0)
	if b.oldest > 0 {
		age = max(0, now.Sub(b.oldest))
	}
	m.age.Set(age.Seconds())
}
