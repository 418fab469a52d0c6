package compactor

import (
	"context"
	"errors"
	"fmt"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// maxLevel is what levels stop at: they say how often a record was rewritten, roughly.
const maxLevel = 9

// Remerge merges short runs of blocks that were merged since, into longer ones. After a start it looks at every block once.
func (c *Compactor) Remerge(ctx context.Context) error {
	c.mu.Lock()
	first := !c.looked
	c.looked = true
	due := c.touched
	c.touched = map[metadata.BlockID]bool{}
	c.mu.Unlock()
	if first {
		err := c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
			for i := range page {
				due[page[i].Row.ID] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	var failed error
	for id := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := c.remergeBlock(ctx, id); err != nil {
			failed = errors.Join(failed, err)
			c.mu.Lock()
			c.touched[id] = true
			c.mu.Unlock()
		}
	}
	return failed
}

// remergeBlock rewrites runs of one block until none of its partitions has crumbs.
func (c *Compactor) remergeBlock(ctx context.Context, id metadata.BlockID) error {
	for {
		h, err := c.hold(ctx, metadata.BlockLease(id))
		if err != nil || h == nil {
			return err
		}
		more, err := c.remergeOnce(h, id)
		h.release(ctx)
		if err != nil && !errors.Is(err, errNothingRewritten) {
			return fmt.Errorf("merge runs of block %d: %w", id, err)
		}
		if !more || err != nil {
			return nil
		}
	}
}

// remergeOnce is one job: crumbs of many partitions of the block into one object.
func (c *Compactor) remergeOnce(h *held, id metadata.BlockID) (bool, error) {
	runs, err := c.db.TailRuns(h.ctx, id, tailRuns)
	if err != nil {
		return false, err
	}
	catalogue, err := c.store.RefreshCatalogue(h.ctx)
	if err != nil {
		return false, err
	}
	places, err := c.placesOf(h.ctx, []metadata.BlockID{id})
	if err != nil {
		return false, err
	}
	budget := int64(jobBytes)
	var list []crumbs
	for _, of := range bySlot(runs) {
		topic := catalogue.ByID(places[id][of[0].Slot].Topic)
		if topic == nil {
			continue // deleted: its runs go as they are
		}
		if x, ok := planRemerge(of, boundsFor(c.configs.Values(topic.Configs)), budget); ok {
			list = append(list, x)
			budget -= x.raw
		}
	}
	if len(list) == 0 {
		return false, nil
	}
	return true, c.rewrite(h, jobRemerge, id, places[id], list, nil)
}

// filter changes the batches of a group of runs before they are written again. It may return none but the last, which
// holds the last offset.
type filter func(runs []metadata.RunRow, batches []batch) ([]batch, error)

// rewrite reads groups of runs, writes each as one run into one object, and swaps.
func (c *Compactor) rewrite(h *held, job string, id metadata.BlockID, places map[metadata.Slot]metadata.PartitionRow, list []crumbs, f filter) error {
	if err := c.crash(PointPlanned); err != nil {
		return err
	}
	var raw int64
	for _, x := range list {
		raw += x.raw
	}
	done, err := c.memory.take(h.ctx, jobCopies*raw)
	if err != nil {
		return err
	}
	defer done()
	s := metadata.SwapSave{Block: id}
	s.Lease, _ = h.get(metadata.BlockLease(id))
	level := int16(0)
	for _, x := range list {
		for i := range x.runs {
			level = max(level, x.runs[i].Level)
		}
	}
	out, err := newOutput(min(level+1, maxLevel))
	if err != nil {
		return err
	}
	var made []*metadata.RunRow
	indexes := map[metadata.ObjectKey]*segment.Index{}
	for _, x := range list {
		place, ok := places[x.runs[0].Slot]
		if !ok {
			continue // deleted: its runs go as they are
		}
		batches, err := c.readRuns(h.ctx, job, indexes, x.runs)
		if errors.Is(err, errDamaged) {
			if err := c.leaveRuns(h.ctx, job, place, x.runs, &s); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if f != nil {
			if batches, err = f(x.runs, batches); err != nil {
				return err
			}
		}
		first, last := &x.runs[0], &x.runs[len(x.runs)-1]
		run := &metadata.RunRow{
			Block: id, Slot: first.Slot, Base: first.Base, Last: last.Last, RunningMaxTS: last.RunningMaxTS, Bytes: last.Bytes,
		}
		if err := out.add(place, run, batches); err != nil {
			return err
		}
		made = append(made, run)
		s.Remove = append(s.Remove, x.runs...)
	}
	if err := c.crash(PointRead); err != nil {
		return err
	}
	if len(made) > 0 {
		if err := c.put(h.ctx, job, out); err != nil {
			return err
		}
	}
	if len(s.Remove) == 0 {
		return errNothingRewritten
	}
	for _, r := range made {
		s.Add = append(s.Add, *r)
	}
	if err := c.db.Swap(h.ctx, s); err != nil {
		return err
	}
	return c.crash(PointSwapped)
}

// leaveRuns marks those of the runs that cannot be read as level 0: nobody tries to rewrite them again, and they stay where
// they are. Their neighbours are merged the next time.
func (c *Compactor) leaveRuns(ctx context.Context, job string, place metadata.PartitionRow, runs []metadata.RunRow, s *metadata.SwapSave) error {
	for i := range runs {
		_, err := c.readRuns(ctx, job, map[metadata.ObjectKey]*segment.Index{}, runs[i:i+1])
		if err == nil {
			continue
		}
		if !errors.Is(err, errDamaged) {
			return err
		}
		c.metrics.damaged.Inc()
		c.log.Error("run cannot be read and is left where it is", "topic_id", place.Topic, "partition", place.Index,
			"first_offset", int64(runs[i].Base), "last_offset", int64(runs[i].Last), "error", err)
		left := runs[i]
		left.Level = 0
		s.Remove, s.Add = append(s.Remove, runs[i]), append(s.Add, left)
	}
	return nil
}

// errNothingRewritten: all that was to be rewritten is deleted by now.
var errNothingRewritten = errors.New("none of the runs has to be rewritten")

// readRuns gives the batches of neighbouring runs.
func (c *Compactor) readRuns(ctx context.Context, job string, indexes map[metadata.ObjectKey]*segment.Index, runs []metadata.RunRow) ([]batch, error) {
	var blobs []*blob
	for i := range runs {
		r := &runs[i]
		x, err := c.index(ctx, indexes, r.Object, r.ObjectSize)
		if err != nil {
			return nil, err
		}
		parts, err := blobsOf(x, r)
		if err != nil {
			return nil, err
		}
		blobs = append(blobs, parts...)
	}
	inOrder := append([]*blob(nil), blobs...)
	if err := c.read(ctx, job, blobs); err != nil {
		return nil, err
	}
	var batches []batch
	for _, b := range inOrder {
		if b.err != nil {
			return nil, b.err
		}
		more, err := parse(b.data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name(), err)
		}
		batches = append(batches, more...)
	}
	if len(batches) == 0 {
		return nil, fmt.Errorf("%w: no batches in offsets %d to %d", errDamaged, runs[0].Base, runs[len(runs)-1].Last)
	}
	return batches, nil
}

// index reads an object's index, once for a job.
func (c *Compactor) index(ctx context.Context, indexes map[metadata.ObjectKey]*segment.Index, key metadata.ObjectKey, size int64) (*segment.Index, error) {
	if x := indexes[key]; x != nil {
		return x, nil
	}
	held := int64(0)
	for _, x := range indexes {
		held += indexCopies * (x.Size - x.FooterPosition)
	}
	if held > indexesBytes {
		clear(indexes)
	}
	x, err := openIndex(ctx, c.bucket, key, size)
	if err != nil {
		return nil, err
	}
	indexes[key] = x
	return x, nil
}

// openIndex reads an object's index. What cannot be is errDamaged.
func openIndex(ctx context.Context, bucket objstore.Bucket, key metadata.ObjectKey, size int64) (*segment.Index, error) {
	x, err := segment.OpenIndex(segment.ReadAtFunc(func(p []byte, off int64) (int, error) {
		if err := objstore.ReadRange(ctx, bucket, string(key), off, len(p), p); err != nil {
			return 0, err
		}
		return len(p), nil
	}), size)
	switch {
	case err == nil:
		return x, nil
	case isGone(err), errors.Is(err, segment.ErrCorrupt), errors.Is(err, segment.ErrNotSegment), errors.Is(err, segment.ErrVersion):
		return nil, fmt.Errorf("%w: index of object %q: %w", errDamaged, key, err)
	}
	return nil, fmt.Errorf("index of object %q: %w", key, err)
}

// blobsOf gives the chunks of a run, or the whole of a short one.
func blobsOf(x *segment.Index, r *metadata.RunRow) ([]*blob, error) {
	for i := range x.Extents {
		e := &x.Extents[i]
		if e.Position != r.Position {
			continue
		}
		if e.StoredLength != r.Length || e.LastOffset > int64(r.Last) || e.BaseOffset < int64(r.Base) {
			break
		}
		if len(e.Chunks) == 0 {
			return []*blob{{object: r.Object, position: e.Position, length: e.StoredLength, raw: e.RawLength, codec: e.Codec, crc: e.CRC}}, nil
		}
		list := make([]*blob, len(e.Chunks))
		for j := range e.Chunks {
			k := &e.Chunks[j]
			list[j] = &blob{object: r.Object, position: k.Position, length: k.StoredLength, raw: k.RawLength, codec: k.Codec, crc: k.CRC}
		}
		return list, nil
	}
	return nil, fmt.Errorf("%w: object %q has no run of offsets %d to %d at %d", errDamaged, r.Object, r.Base, r.Last, r.Position)
}
