package compactor

import (
	"context"
	"errors"
	"fmt"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// dataRuns is how many runs are loaded at a time to be read: the fewer, the less they are outdated when it is their turn.
const dataRuns = 64

// data reads what the block's rows name.
func (w *blockCheck) data(ctx context.Context) error {
	slot, base := metadata.Slot(0), metadata.Offset(0)
	indexes := map[metadata.ObjectKey]*segment.Index{}
	for more := true; more; {
		page, err := w.Driver.LoadRuns(ctx, w.b.Row.ID, slot, base, dataRuns)
		if err != nil {
			return err
		}
		more = len(page) == dataRuns
		for len(page) > 0 {
			n, size := 0, int64(0)
			for n < len(page) && (n == 0 || size+page[n].Raw <= jobBytes) {
				size += page[n].Raw
				n++
			}
			if err := w.readRuns(ctx, indexes, page[:n]); err != nil {
				return err
			}
			slot, base = page[n-1].Slot, page[n-1].Base+1
			page = page[n:]
		}
	}
	return w.readLevel0(ctx)
}

// readRuns reads runs, together where that is possible.
func (w *blockCheck) readRuns(ctx context.Context, indexes map[metadata.ObjectKey]*segment.Index, runs []metadata.RunRow) error {
	parts := make([][]*blob, len(runs))
	failed := make([]error, len(runs))
	var all []*blob
	for i := range runs {
		r := &runs[i]
		if w.deleted(r.Slot) || r.Last < w.b.Row.LogStart[r.Slot] || r.Object == "" || isLeft(r) {
			continue
		}
		x, err := w.c.index(ctx, indexes, r.Object, r.ObjectSize)
		if err == nil {
			parts[i], err = blobsOf(x, r)
		}
		if err != nil && !errors.Is(err, errDamaged) {
			return err
		}
		failed[i] = err
		all = append(all, parts[i]...)
	}
	if err := w.c.read(ctx, "fsck", all); err != nil {
		return err
	}
	for i := range runs {
		if err := w.runData(ctx, &runs[i], parts[i], failed[i]); err != nil {
			return err
		}
	}
	return nil
}

// runData checks the bytes of a run.
func (w *blockCheck) runData(ctx context.Context, r *metadata.RunRow, parts []*blob, failed error) error {
	if parts == nil && failed == nil {
		return nil // nobody may read it, or it was reported
	}
	var batches []batch
	for _, b := range parts {
		var more []batch
		if failed == nil {
			failed = b.err
		}
		if failed == nil {
			more, failed = parse(b.data)
		}
		batches = append(batches, more...)
	}
	p := Problem{Where: w.where(r.Slot), Bytes: r.Length}
	if failed != nil {
		p.Kind, p.Detail = kindOf(failed), fmt.Sprintf("run of offsets %d to %d: %v", r.Base, r.Last, failed)
	} else {
		w.rep.Extents++
		w.rep.Bytes += r.Length
		w.progress("bytes read", w.rep.Bytes)
		p.Kind, p.Detail = w.runContent(r, batches)
	}
	if p.Kind == "" {
		return nil
	}
	if still, err := w.still(ctx, r); err != nil || !still {
		w.rep.Moving++
		return err
	}
	w.problem(p)
	return nil
}

// runContent compares batches with a run's row; "" where they agree.
func (w *blockCheck) runContent(r *metadata.RunRow, batches []batch) (Kind, string) {
	next, last, raw := int64(r.Base), int64(-1), int64(0)
	maxTS := int64(metadata.NoTimestamp)
	for i := range batches {
		b := &batches[i]
		w.count(b)
		raw += int64(len(b.data))
		maxTS = max(maxTS, b.MaxTimestamp)
		if b.BaseOffset < next || b.LastOffset() > int64(r.Last) {
			return KindOffsets, fmt.Sprintf("batch of offsets %d to %d in the run %d to %d, after %d", b.BaseOffset, b.LastOffset(), r.Base, r.Last, next)
		}
		next, last = b.LastOffset()+1, b.LastOffset()
	}
	if last != int64(r.Last) || raw != r.Raw && r.Raw != 0 || maxTS > int64(r.MaxTS) {
		return KindCounters, fmt.Sprintf("run at %d ends at %d with %d bytes and timestamp %d, its row says %d, %d and %d", r.Base, last, raw, maxTS,
			r.Last, r.Raw, r.MaxTS)
	}
	return "", ""
}

// still says whether a run is what it was when it was loaded, and may be read.
func (w *blockCheck) still(ctx context.Context, r *metadata.RunRow) (bool, error) {
	now, err := w.Driver.LoadRuns(ctx, r.Block, r.Slot, r.Base, 1)
	if err != nil || len(now) == 0 || now[0] != *r {
		return false, err
	}
	return w.wanted(ctx, r.Slot, r.Last)
}

// wanted says whether an offset may be read, as things are now.
func (w *blockCheck) wanted(ctx context.Context, slot metadata.Slot, offset metadata.Offset) (bool, error) {
	page, err := w.Driver.Backlog(ctx, w.b.Row.ID-1, 1)
	if err != nil || len(page) == 0 || page[0].Row.ID != w.b.Row.ID {
		return false, err
	}
	return page[0].Row.Deleted&(1<<slot) == 0 && offset >= page[0].Row.LogStart[slot], nil
}

func (w *blockCheck) count(b *batch) {
	w.rep.Batches++
	w.rep.Records += int64(b.RecordCount)
}

// kindOf tells what is lost from what is damaged.
func kindOf(err error) Kind {
	if isGone(err) {
		return KindMissing
	}
	return KindCorrupt
}

// readLevel0 reads the extents of unmerged rows.
func (w *blockCheck) readLevel0(ctx context.Context) error {
	for after := w.b.Row.MergedSeq; after < w.b.Last; {
		rows, err := w.Driver.LoadRows(ctx, w.b.Row.ID, after, checkRows)
		if errors.Is(err, metadata.ErrCorrupt) {
			if rows, err = w.Driver.LoadRows(ctx, w.b.Row.ID, after, 1); errors.Is(err, metadata.ErrCorrupt) {
				after++ // reported
				continue
			}
		}
		if err != nil || len(rows) == 0 {
			return err
		}
		var inputs []*input
		for _, r := range rows {
			after = r.Seq
			for i := range r.Touched {
				if t := &r.Touched[i]; t.Records() > 0 && !w.deleted(t.Slot) && r.Photo.Next[t.Slot] > w.b.Row.LogStart[t.Slot] {
					inputs = append(inputs, newInput(r, i))
				}
			}
		}
		if err := w.extents(ctx, inputs); err != nil {
			return err
		}
	}
	return nil
}

func (w *blockCheck) extents(ctx context.Context, inputs []*input) error {
	for len(inputs) > 0 {
		n, size := 0, int64(0)
		var blobs []*blob
		for n < len(inputs) && (n == 0 || size+inputs[n].raw <= jobBytes) {
			size += inputs[n].raw
			blobs = append(blobs, &inputs[n].blob)
			n++
		}
		if err := w.c.read(ctx, "fsck", blobs); err != nil {
			return err
		}
		for _, in := range inputs[:n] {
			if err := w.extent(ctx, in); err != nil {
				return err
			}
			in.data = nil
		}
		inputs = inputs[n:]
	}
	return nil
}

func (w *blockCheck) extent(ctx context.Context, in *input) error {
	var batches []batch
	failed := in.err
	if failed == nil {
		batches, failed = cut(in.data, in.touched, in.base)
	}
	for i := range batches {
		w.count(&batches[i])
	}
	w.rep.Extents++
	w.rep.Bytes += in.length
	w.progress("bytes read", w.rep.Bytes)
	if failed == nil {
		return nil
	}
	// Merged and deleted meanwhile? Then it was read, and is in a run.
	page, err := w.Driver.Backlog(ctx, w.b.Row.ID-1, 1)
	if err != nil {
		return err
	}
	s := in.touched.Slot
	if len(page) == 0 || page[0].Row.ID != w.b.Row.ID || page[0].Row.MergedSeq >= in.seq || page[0].Row.Deleted&(1<<s) != 0 ||
		in.next <= page[0].Row.LogStart[s] {
		w.rep.Moving++
		return nil
	}
	w.problem(Problem{Kind: kindOf(failed), Where: w.where(s), Detail: fmt.Sprintf("row %d, offsets from %d: %v", in.seq, in.base, failed), Bytes: in.length})
	return nil
}
