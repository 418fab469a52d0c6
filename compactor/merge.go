package compactor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// mergeLevel is the level of what a merge of level 0 writes.
const mergeLevel = 1

// MergeAll merges what is due, until nothing is.
func (c *Compactor) MergeAll(ctx context.Context) error {
	inline, err := c.db.InlineResident(ctx)
	if err != nil {
		return err
	}
	c.metrics.inline.Set(float64(inline))
	if c.cfg.InlineResidentBytes <= 0 || inline <= c.cfg.InlineResidentBytes/2 {
		return c.mergeWhile(ctx, c.cfg.wantsMerge)
	}
	// Before they are so many that flushes become PUTs: all that is there now, however young.
	young := true
	return c.mergeWhile(ctx, func(b *metadata.BacklogRow) bool {
		return young && b.Unmerged() > 0 || c.cfg.wantsMerge(b)
	}, func() { young = false })
}

// MergeEverything merges all rows of all blocks, however young. For tests, and for draining a cluster.
func (c *Compactor) MergeEverything(ctx context.Context) error {
	return c.mergeWhile(ctx, func(b *metadata.BacklogRow) bool { return b.Unmerged() > 0 })
}

// mergeWhile merges blocks that are wanted until none of them moves on; it calls again after each round.
func (c *Compactor) mergeWhile(ctx context.Context, want func(*metadata.BacklogRow) bool, again ...func()) error {
	for {
		var due []metadata.BacklogRow
		var all backlog
		var now metadata.Millis
		err := c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
			for i := range page {
				all.add(&page[i])
				if want(&page[i]) {
					due = append(due, page[i])
				}
			}
			if len(page) > 0 {
				now = page[0].Now
				c.metrics.backlog(&all, now)
			}
			return nil
		})
		if err != nil {
			return err
		}
		c.pressed.Store(c.cfg.late(&all, now))
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
		for _, fn := range again {
			fn()
		}
	}
}

// merging is one block of a merge.
type merging struct {
	row    metadata.BlockRow
	places map[metadata.Slot]metadata.PartitionRow
	rows   int   // level0 rows that it takes
	bytes  int64 // sum of the slots' cumulative bytes after the last of them
	to     metadata.Seq
	inputs []*input // by slot, then seq
	runs   []*metadata.RunRow
	keep   []metadata.ObjectKey
}

// input is a level-0 extent to be merged.
type input struct {
	blob
	seq     metadata.Seq
	touched *metadata.Touched
	base    metadata.Offset
	next    metadata.Offset // after it
	maxTS   metadata.Millis // running, after it
	total   int64           // cumulative raw bytes of the partition, after it
}

// newInput is the i-th extent of a row. It does not hold the row, whose photograph is large.
func newInput(r *metadata.Row, i int) *input {
	t := &r.Touched[i]
	return &input{
		seq: r.Seq, touched: t, base: r.Base(i), next: r.Photo.Next[t.Slot], maxTS: r.Photo.MaxTS[t.Slot], total: r.Photo.Bytes[t.Slot],
		blob: blob{
			object: r.Object, flush: r.Flush, position: t.Position, length: int64(t.Length), raw: int64(t.RawLength),
			codec: segment.Codec(t.Codec), crc: t.CRC,
		},
	}
}

// memory is about what an input takes once it is read, and before: its description.
func (in *input) memory() int64 {
	return in.raw + inputBytes + int64(len(in.touched.Batches))*batchBytes
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
	list, failed, err := c.gather(h, blocks)
	if err != nil || len(list) == 0 {
		return 0, errors.Join(err, failed)
	}
	if err := c.crash(PointPlanned); err != nil {
		return 0, err
	}
	for _, p := range portions(list) {
		if err := c.mergePortion(h.ctx, p); err != nil {
			return 0, err
		}
	}
	moved, err := c.swapAll(h, list)
	return moved, errors.Join(err, failed)
}

// piece is some of a block's inputs.
type piece struct {
	*merging
	inputs []*input
}

// portions cuts a merge into what is read and written at once: one object each. It is one portion unless a single flush is
// larger than a job.
func portions(list []*merging) [][]piece {
	var all [][]piece
	var now []piece
	var size int64
	for _, m := range list {
		from := 0
		for i, in := range m.inputs {
			if n := in.memory(); size > 0 && size+n > jobBytes {
				all = append(all, append(now, piece{m, m.inputs[from:i]}))
				now, size, from = nil, 0, i
			}
			size += in.memory()
		}
		now = append(now, piece{m, m.inputs[from:]})
	}
	return append(all, now)
}

// mergePortion reads a portion and writes its runs into one object.
func (c *Compactor) mergePortion(ctx context.Context, list []piece) error {
	var blobs []*blob
	var size int64
	for _, p := range list {
		for _, in := range p.inputs {
			blobs = append(blobs, &in.blob)
			size += in.memory()
		}
	}
	done, err := c.memory.take(ctx, jobCopies*size)
	if err != nil {
		return err
	}
	defer done()
	if err := c.read(ctx, jobMerge, blobs); err != nil {
		return err
	}
	if err := c.crash(PointRead); err != nil {
		return err
	}
	out, err := newOutput(mergeLevel)
	if err != nil {
		return err
	}
	for _, p := range list {
		if err := c.layOut(p, out); err != nil {
			return err
		}
	}
	if len(out.runs) > 0 {
		if err := c.put(ctx, jobMerge, out); err != nil {
			return err
		}
	}
	for _, b := range blobs {
		b.data = nil
	}
	c.metrics.moved.WithLabelValues(jobMerge, "in").Add(float64(out.rawSize))
	return nil
}

func (c *Compactor) swapAll(h *held, list []*merging) (moved int, failed error) {
	for _, m := range list {
		lease, _ := h.get(metadata.BlockLease(m.row.ID))
		s := metadata.SwapSave{
			Lease: lease, Block: m.row.ID, From: m.row.MergedSeq, To: m.to, MergedBytes: m.bytes, Keep: m.keep,
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
		c.metrics.removed.WithLabelValues("merged_rows").Add(float64(m.rows))
	}
	if failed == nil {
		failed = c.crash(PointSwapped)
	}
	return moved, failed
}

// layOut writes a block's runs: one for each partition, more where something damaged stands between.
func (c *Compactor) layOut(p piece, out *output) error {
	m := p.merging
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
	for _, in := range p.inputs {
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
		Block: m.row.ID, Slot: slot, RunningMaxTS: last.maxTS, Bytes: last.total,
	}
}

// leave keeps a damaged extent where it is, as a run of level 0: what of it can be read some day is not lost, and the rest
// of the block goes on.
func (c *Compactor) leave(m *merging, in *input, err error) {
	run := m.runOf(in)
	slot := run.Slot
	run.Base, run.Last = in.base, in.next-1
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
