package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// gather loads the rows of those blocks whose leases are held, as many as fit a job. failed is of blocks whose rows cannot be
// read.
func (c *Compactor) gather(h *held, blocks []metadata.BacklogRow) (list []*merging, failed, err error) {
	var held []metadata.BacklogRow
	for i := range blocks {
		if _, ok := h.get(metadata.BlockLease(blocks[i].Row.ID)); ok {
			held = append(held, blocks[i])
		}
	}
	// The one with the oldest rows first: what does not fit is never the same twice.
	slices.SortStableFunc(held, func(a, b metadata.BacklogRow) int { return cmp.Compare(a.Oldest, b.Oldest) })
	fits := allowance{share: jobBytes / int64(max(1, len(held)))}
	for i := range held {
		// The block as it is now: another compactor may have been at it until the lease was taken.
		id := held[i].Row.ID
		page, err := c.db.Backlog(h.ctx, id-1, 1)
		if err != nil {
			return nil, nil, err
		}
		if len(page) == 0 || page[0].Row.ID != id || page[0].Unmerged() == 0 {
			continue
		}
		fits.block = 0
		m, err := c.gatherBlock(h.ctx, &page[0], &fits)
		if errors.Is(err, metadata.ErrCorrupt) { // its neighbours go on
			failed = errors.Join(failed, fmt.Errorf("block %d: %w", id, err))
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("block %d: %w", id, err)
		}
		if m != nil {
			list = append(list, m)
		}
	}
	return list, failed, nil
}

// allowance is what a merge may take: jobBytes, of which each block has a share, so that objects that several blocks share
// are read once. A row that alone is more than a share is taken where the job has room for it, and one that is more than a
// job where it is all there is: it is then read and written in parts.
type allowance struct {
	share, block, all int64
}

// take says whether n bytes more may be taken from a block, of which rows rows were taken, and counts them.
func (x *allowance) take(n int64, rows int) bool {
	if x.block+n > x.share && (rows > 0 || x.all > 0 && x.all+n > jobBytes) {
		return false
	}
	x.block, x.all = x.block+n, x.all+n
	return true
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

// gatherBlock loads a block's rows above its merged seq, up to a checkpoint and as many as fit.
func (c *Compactor) gatherBlock(ctx context.Context, b *metadata.BacklogRow, fits *allowance) (*merging, error) {
	limit, err := c.checkpoint(ctx, b)
	if err != nil || limit <= b.Row.MergedSeq {
		return nil, err
	}
	m := &merging{row: b.Row, to: b.Row.MergedSeq}
	for more := true; more && m.rows < jobRows && m.to < limit; {
		page := int(min(gatherRows, int64(jobRows-m.rows), int64(limit-m.to)))
		rows, err := c.db.LoadRows(ctx, b.Row.ID, m.to, page)
		if err != nil {
			return nil, err
		}
		if err := c.locatePlaces(ctx, m, rows); err != nil {
			return nil, err
		}
		if more, err = m.takeRows(rows, fits); err != nil {
			return nil, err
		}
		more = more && len(rows) == page
	}
	if m.rows == 0 {
		return nil, nil
	}
	slices.SortStableFunc(m.inputs, func(a, b *input) int { return int(a.touched.Slot) - int(b.touched.Slot) })
	return m, nil
}

// takeRows takes rows until one does not fit; then it is false.
func (m *merging) takeRows(rows []*metadata.Row, fits *allowance) (bool, error) {
	for _, r := range rows {
		if r.Seq != m.to+1 {
			return false, fmt.Errorf("%w: row %d follows row %d", metadata.ErrCorrupt, r.Seq, m.to)
		}
		inputs, size := m.inputsOf(r)
		if !fits.take(size, m.rows) {
			return false, nil
		}
		m.rows, m.to, m.bytes = m.rows+1, r.Seq, r.Photo.TotalBytes()
		m.inputs = append(m.inputs, inputs...)
	}
	return true, nil
}

// locatePlaces loads the block's partitions. After the rows: whatever partition they touch is there by now, or is deleted.
func (c *Compactor) locatePlaces(ctx context.Context, m *merging, rows []*metadata.Row) error {
	if m.missing(rows) == 0 {
		return nil
	}
	places, err := c.placesOf(ctx, []metadata.BlockID{m.row.ID})
	if err != nil {
		return err
	}
	m.places = places[m.row.ID]
	missing := m.missing(rows)
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

// missing gives the slots that rows touch and that are neither deleted nor known as some partition's.
func (m *merging) missing(rows []*metadata.Row) uint64 {
	var slots uint64
	for _, r := range rows {
		for i := range r.Touched {
			if slot := r.Touched[i].Slot; m.row.Deleted&(1<<slot) == 0 && m.places[slot].Topic.IsZero() {
				slots |= 1 << slot
			}
		}
	}
	return slots
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
		in := newInput(r, i)
		list = append(list, in)
		size += in.memory()
	}
	return list, size
}
