package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skeinio/skein/metadata"
)

const (
	// checkPage is how many rows of any table fsck has in memory.
	checkPage = 1000
	// checkRows is how many level0 rows.
	checkRows = 256
	// blockTries bounds how often the rows of a block are looked at because agents change them meanwhile.
	blockTries = 6
)

// blockCheck is the check of one block: first of its rows, in a short time and as often as it takes, then of what they
// name, which may take hours.
type blockCheck struct {
	*checker
	b      *metadata.BacklogRow
	places map[metadata.Slot]metadata.PartitionRow
	try    int
	found  []Problem
	tails  [metadata.SlotsPerBlock]tail
	rows   int64
	runs   int64
}

// tail is where what was seen of a slot ends.
type tail struct {
	seen  bool
	next  metadata.Offset
	bytes int64
	maxTS metadata.Millis
}

// block checks one block. Rows that agents change meanwhile can look wrong: they are looked at again, and what does not
// look wrong in the same way twice is not.
func (k *checker) block(ctx context.Context, b *metadata.BacklogRow) error {
	var before []Problem
	for try := 1; ; try++ {
		w := &blockCheck{checker: k, b: b, try: try}
		if err := w.structure(ctx); err != nil {
			return err
		}
		page, err := k.Driver.Backlog(ctx, b.Row.ID-1, 1)
		if err != nil {
			return err
		}
		if len(page) == 0 || page[0].Row.ID != b.Row.ID {
			k.rep.Moving++
			return nil // dropped meanwhile; what it named does not count
		}
		same := page[0].Row.Version == b.Row.Version && page[0].Released == b.Released
		if len(w.found) == 0 && same || try == blockTries || try > 1 && slices.Equal(w.found, before) {
			if try == blockTries {
				k.rep.Moving++
				w.found = slices.DeleteFunc(w.found, func(p Problem) bool { return !slices.Contains(before, p) })
			}
			for _, p := range w.found {
				k.problem(p)
			}
			k.lastTry[b.Row.ID] = try
			k.rep.Rows, k.rep.Runs = k.rep.Rows+w.rows, k.rep.Runs+w.runs
			if k.Shallow {
				return nil
			}
			return w.data(ctx)
		}
		before, b = w.found, &page[0]
	}
}

func (w *blockCheck) wrong(kind Kind, slot metadata.Slot, bytes int64, format string, args ...any) {
	if len(w.found) < maxProblems {
		w.found = append(w.found, Problem{Kind: kind, Where: w.where(slot), Detail: fmt.Sprintf(format, args...), Bytes: bytes})
	}
}

func (w *blockCheck) where(slot metadata.Slot) string {
	if p, ok := w.places[slot]; ok {
		return fmt.Sprintf("topic id %s, partition %d (block %d, slot %d)", p.Topic, p.Index, w.b.Row.ID, slot)
	}
	return fmt.Sprintf("block %d, slot %d", w.b.Row.ID, slot)
}

func (w *blockCheck) deleted(slot metadata.Slot) bool { return w.b.Row.Deleted&(1<<slot) != 0 }

// names notes what names an object.
func (w *blockCheck) names(named map[metadata.ObjectKey]int) error {
	for key, n := range named {
		if err := w.spool.add(&spooled{Key: key, Block: w.b.Row.ID, Try: w.try, Named: n}); err != nil {
			return err
		}
	}
	return nil
}

// structure checks the block's rows, without what they name.
func (w *blockCheck) structure(ctx context.Context) error {
	places, err := w.c.placesOf(ctx, []metadata.BlockID{w.b.Row.ID})
	if err != nil {
		return err
	}
	w.places = places[w.b.Row.ID]
	for s := range w.tails {
		w.tails[s].maxTS = metadata.NoTimestamp
	}
	slot, base := metadata.Slot(0), metadata.Offset(0)
	for more := true; more; {
		page, err := w.Driver.LoadRuns(ctx, w.b.Row.ID, slot, base, checkPage)
		if err != nil {
			return err
		}
		named := map[metadata.ObjectKey]int{}
		for i := range page {
			r := &page[i]
			w.runs++
			if r.Object != "" {
				named[r.Object]++
			}
			w.run(r)
			slot, base = r.Slot, r.Base+1
		}
		if err := w.names(named); err != nil {
			return err
		}
		more = len(page) == checkPage
	}
	return w.level0(ctx)
}

// run checks a run's row against the one before it.
func (w *blockCheck) run(r *metadata.RunRow) {
	s := r.Slot
	t := &w.tails[s]
	if w.deleted(s) {
		return
	}
	start := w.b.Row.LogStart[s]
	switch {
	case r.Last < r.Base:
		w.wrong(KindOffsets, s, r.Length, "run of offsets %d to %d", r.Base, r.Last)
	case t.seen && (r.Base < t.next || r.Base > max(t.next, start)): // what was below the start when it was merged has no run
		w.wrong(KindOffsets, s, 0, "run starts at %d, the one before ends before %d, the log starts at %d", r.Base, t.next, start)
	case !t.seen && r.Base > start:
		w.wrong(KindOffsets, s, 0, "first run starts at %d, the log at %d", r.Base, start)
	case r.RunningMaxTS < t.maxTS || r.Bytes < t.bytes || r.MaxTS > r.RunningMaxTS:
		w.wrong(KindCounters, s, 0, "run at %d: running timestamp %d after %d, bytes %d after %d", r.Base, r.RunningMaxTS, t.maxTS, r.Bytes, t.bytes)
	}
	*t = tail{seen: true, next: r.Last + 1, maxTS: r.RunningMaxTS, bytes: r.Bytes}
	if r.Last < start {
		return
	}
	switch {
	case r.Object == "":
		w.wrong(KindMissing, s, r.Length, "inline payload of offsets %d to %d was lost before it was merged", r.Base, r.Last)
	case isLeft(r):
		w.wrong(KindCorrupt, s, r.Length, "extent of offsets %d to %d in %s could not be read when it was merged", r.Base, r.Last, r.Object)
	}
}

// isLeft says that a run is an extent of level 0 that could not be read when it was to be merged.
func isLeft(r *metadata.RunRow) bool {
	return r.Level == 0 && len(r.Object) > 4 && r.Object[:4] == "seg/"
}

// level0 checks the rows of level 0: all for what they name, those above the merged seq for what they say.
func (w *blockCheck) level0(ctx context.Context) error {
	after, prev := max(0, w.b.First-1), metadata.Seq(0)
	var photo *metadata.Photo
	for {
		rows, bad, err := w.loadRows(ctx, after)
		if err != nil {
			return err
		}
		named := map[metadata.ObjectKey]int{}
		for _, r := range rows {
			after = r.Seq
			if r.Seq > w.b.Last {
				break // committed since
			}
			w.rows++
			switch {
			case prev > 0 && r.Seq != prev+1:
				w.wrong(KindCounters, 0, 0, "row %d follows row %d", r.Seq, prev)
				photo = nil
			case prev == 0 && r.Seq > w.b.Row.MergedSeq+1:
				w.wrong(KindCounters, 0, 0, "first row is %d, merged up to %d", r.Seq, w.b.Row.MergedSeq)
			}
			if r.Seq > w.b.Released && r.Object != "" {
				named[r.Object]++
			}
			if r.Seq > w.b.Row.MergedSeq {
				w.row(r, photo)
			}
			prev, photo = r.Seq, &r.Photo
		}
		if err := w.names(named); err != nil {
			return err
		}
		switch {
		case bad:
			after, photo = after+1, nil
			prev = after
			for s := range w.tails {
				w.tails[s].seen = false // of what follows the row that cannot be read, nothing is known
			}
		case len(rows) < checkRows || after > w.b.Last:
			return nil
		}
	}
}

// loadRows loads rows above a seq. bad says that the one after those that it gives cannot be read.
func (w *blockCheck) loadRows(ctx context.Context, after metadata.Seq) (rows []*metadata.Row, bad bool, err error) {
	rows, err = w.Driver.LoadRows(ctx, w.b.Row.ID, after, checkRows)
	if !errors.Is(err, metadata.ErrCorrupt) {
		return rows, false, err
	}
	rows = nil
	for {
		one, err := w.Driver.LoadRows(ctx, w.b.Row.ID, after, 1)
		switch {
		case errors.Is(err, metadata.ErrCorrupt):
			p := Problem{Kind: KindCorrupt, Where: fmt.Sprintf("block %d, row %d", w.b.Row.ID, after+1), Detail: err.Error()}
			if len(w.found) < maxProblems {
				w.found = append(w.found, p)
			}
			return rows, true, nil
		case err != nil:
			return nil, false, err
		case len(one) == 0:
			return rows, false, nil // mended meanwhile
		}
		rows, after = append(rows, one[0]), one[0].Seq
	}
}

// row checks what an unmerged row says of its slots.
func (w *blockCheck) row(r *metadata.Row, before *metadata.Photo) {
	for i := range r.Touched {
		touched := &r.Touched[i]
		s := touched.Slot
		t := &w.tails[s]
		base := r.Base(i)
		if before != nil && before.Next[s] != base || t.seen && t.next != base {
			w.wrong(KindOffsets, s, 0, "row %d starts at %d, what is before it ends before %d", r.Seq, base, t.next)
		}
		*t = tail{seen: true, next: r.Photo.Next[s], maxTS: r.Photo.MaxTS[s], bytes: r.Photo.Bytes[s]}
		if before == nil {
			continue
		}
		bytes, maxTS := before.Bytes[s], before.MaxTS[s]
		for j := range touched.Batches {
			if b := &touched.Batches[j]; b.Flags&metadata.FlagAccepted != 0 {
				bytes += int64(b.Length)
				maxTS = max(maxTS, b.MaxTimestamp)
			}
		}
		if bytes != r.Photo.Bytes[s] || maxTS != r.Photo.MaxTS[s] {
			w.wrong(KindCounters, s, 0, "row %d: %d bytes and timestamp %d, its batches give %d and %d", r.Seq, r.Photo.Bytes[s],
				r.Photo.MaxTS[s], bytes, maxTS)
		}
	}
	if before == nil {
		return
	}
	for s := range before.Next {
		slot := metadata.Slot(s)
		if r.Find(slot) < 0 && (before.Next[s] != r.Photo.Next[s] || before.Bytes[s] != r.Photo.Bytes[s] || before.MaxTS[s] != r.Photo.MaxTS[s]) {
			w.wrong(KindCounters, slot, 0, "row %d moves a slot without touching it", r.Seq)
		}
	}
}
