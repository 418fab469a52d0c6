package compactor

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// cleanRuns is how many runs of a partition are loaded at a time.
const cleanRuns = 1000

// seenClean is a partition's state when it was last looked at: without a change of it there is nothing to do.
type seenClean struct {
	merged  metadata.Seq
	configs metadata.CatalogueVersion
	again   metadata.Millis // look again then all the same; 0: no need
	oldest  metadata.Millis // timestamp of the oldest dirty records; -1: there are none
}

// Clean does key compaction for partitions whose cleanup.policy says compact.
func (c *Compactor) Clean(ctx context.Context) error {
	catalogue, err := c.store.RefreshCatalogue(ctx)
	if err != nil {
		return err
	}
	wanted := map[metadata.BlockID]map[metadata.Slot]*metadata.Topic{}
	for _, t := range catalogue.Topics() {
		if !c.configs.Values(t.Configs).Compact {
			continue
		}
		for _, p := range t.Partitions {
			if wanted[p.Block] == nil {
				wanted[p.Block] = map[metadata.Slot]*metadata.Topic{}
			}
			wanted[p.Block][p.Slot] = t
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	var failed error
	err = c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
		for i := range page {
			b := &page[i]
			for slot, t := range wanted[b.Row.ID] {
				if b.Row.MergedSeq == 0 || b.Row.Deleted&(1<<slot) != 0 || !c.worthCleaning(b, slot, t) {
					continue
				}
				if err := c.cleanPartition(ctx, b, slot, t); err != nil {
					failed = errors.Join(failed, fmt.Errorf("compact %q, block %d, slot %d: %w", t.Name, b.Row.ID, slot, err))
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
		return nil
	})
	return errors.Join(err, failed)
}

func (c *Compactor) worthCleaning(b *metadata.BacklogRow, slot metadata.Slot, t *metadata.Topic) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, ok := c.seen[metadata.PartitionID{Block: b.Row.ID, Slot: slot}]
	return !ok || seen.merged != b.Row.MergedSeq || seen.configs != t.Version || seen.again > 0 && b.Now >= seen.again
}

// cleanPartition compacts one partition as far as it may be, in as many passes as its keys need.
func (c *Compactor) cleanPartition(ctx context.Context, b *metadata.BacklogRow, slot metadata.Slot, t *metadata.Topic) error {
	h, err := c.hold(ctx, metadata.BlockLease(b.Row.ID))
	if err != nil || h == nil {
		return err
	}
	defer h.release(ctx)
	if err := c.store.Refresh(h.ctx, b.Row.ID); err != nil {
		return err
	}
	view, err := c.store.View(h.ctx, b.Row.ID)
	if err != nil || view == nil || view.Deleted(slot) {
		return err
	}
	id := metadata.PartitionID{Block: b.Row.ID, Slot: slot}
	x := &cleaning{
		compactor: c, held: h, block: b.Row.ID, slot: slot, values: c.configs.Values(t.Configs), now: b.Now,
		limit: min(view.LSO(slot), view.HighWatermark(slot)), logStart: view.LogStart(slot), done: metadata.CleanedRow{Block: b.Row.ID, Slot: slot},
	}
	x.oldest = -1
	c.mu.Lock()
	if seen, ok := c.seen[id]; ok {
		x.oldest = seen.oldest
	}
	c.mu.Unlock()
	if x.ratio, err = strconv.ParseFloat(c.configs.Get(t.Configs, "min.cleanable.dirty.ratio"), 64); err != nil {
		return fmt.Errorf("min.cleanable.dirty.ratio: %w", err)
	}
	rows, err := c.db.Cleaned(h.ctx, b.Row.ID)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.Slot == slot {
			x.done = r
		}
	}
	places, err := c.placesOf(h.ctx, []metadata.BlockID{b.Row.ID})
	if err != nil {
		return err
	}
	x.places = places[b.Row.ID]
	for more := true; more; {
		if more, err = x.pass(h.ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[id] = seenClean{merged: view.Row.MergedSeq, configs: t.Version, again: x.again, oldest: x.oldest}
	return nil
}

// cleaning is the compaction of one partition.
type cleaning struct {
	compactor *Compactor
	held      *held
	block     metadata.BlockID
	slot      metadata.Slot
	values    topicconf.Values
	ratio     float64
	now       metadata.Millis
	limit     metadata.Offset // nothing from here on: the LSO
	logStart  metadata.Offset
	done      metadata.CleanedRow
	places    map[metadata.Slot]metadata.PartitionRow
	again     metadata.Millis
	// oldest is the oldest timestamp that the first dirty run was seen to have since the last pass, -1: none. A run that
	// is merged with later ones has theirs, but what is in it has waited longer.
	oldest metadata.Millis
}

// cleanable gives the runs that may be compacted, from the log's start on.
func (x *cleaning) cleanable(ctx context.Context) ([]metadata.RunRow, error) {
	var list []metadata.RunRow
	base := metadata.Offset(0)
	for {
		page, err := x.compactor.db.LoadRuns(ctx, x.block, x.slot, base, cleanRuns)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			if r.Slot != x.slot || r.Last >= x.limit || !x.old(&r) {
				return list, nil
			}
			if r.Last >= x.logStart {
				list = append(list, r)
			}
			base = r.Base + 1
		}
		if len(page) < cleanRuns {
			return list, nil
		}
	}
}

// old says whether a run's records are past min.compaction.lag.ms; if not, when they will be.
func (x *cleaning) old(r *metadata.RunRow) bool {
	lag := int64(x.values.MinCompactionLag)
	if lag == 0 || r.MaxTS < 0 {
		return true
	}
	at := metadata.Millis(add(int64(r.MaxTS), lag))
	if at > x.now {
		x.lookAgain(at)
		return false
	}
	return true
}

func (x *cleaning) lookAgain(at metadata.Millis) {
	if x.again == 0 || at < x.again {
		x.again = at
	}
}

// due decides whether there is enough to do: dirty bytes, records that have waited for max.compaction.lag.ms, or a
// tombstone that may go.
func (x *cleaning) due(runs []metadata.RunRow) bool {
	var dirty, all int64
	for i := range runs {
		all += runs[i].Raw
		if runs[i].Last >= x.done.UpTo {
			if dirty == 0 && runs[i].MaxTS >= 0 && (x.oldest < 0 || runs[i].MaxTS < x.oldest) {
				x.oldest = runs[i].MaxTS
			}
			dirty += runs[i].Raw
		}
	}
	if h := x.done.Horizon; h > 0 {
		if h <= x.now {
			return true
		}
		x.lookAgain(h)
	}
	if dirty == 0 {
		return false
	}
	if float64(dirty) >= x.ratio*float64(all) {
		return true
	}
	at := metadata.Millis(add(int64(max(x.oldest, 0)), int64(x.values.MaxCompactionLag)))
	if at <= x.now {
		return true
	}
	x.lookAgain(at)
	return false
}

// pass compacts up to as many dirty keys as fit the map. more says that the next ones are due at once.
func (x *cleaning) pass(ctx context.Context) (more bool, err error) {
	runs, err := x.cleanable(ctx)
	if err != nil || len(runs) == 0 || !x.due(runs) {
		return false, err
	}
	from := max(x.done.UpTo, x.logStart)
	keys, n, upTo, err := x.collect(ctx, runs, int64(from))
	if err != nil {
		return false, err
	}
	s := newSieve(keys, upTo, x.now, int64(x.values.DeleteRetention))
	size, err := x.rewrite(ctx, runs[:n], s)
	if err != nil {
		return false, err
	}
	x.done.UpTo, x.done.Bytes, x.done.Horizon = max(from, metadata.Offset(upTo)), size, metadata.Millis(s.horizon)
	if s.horizon > 0 {
		x.lookAgain(x.done.Horizon)
	}
	x.compactor.metrics.removed.WithLabelValues("compacted_records").Add(float64(s.dropped))
	x.oldest = -1
	return x.done.UpTo <= runs[len(runs)-1].Last, x.compactor.db.SaveCleaned(ctx, x.done)
}

// collect reads the dirty runs into a map until it is full. It gives how many runs, of all, are then looked at, and up to
// which offset the map covers them.
func (x *cleaning) collect(ctx context.Context, runs []metadata.RunRow, from int64) (m *keyMap, n int, upTo int64, err error) {
	m = newKeyMap(x.compactor.cfg.KeyMapEntries)
	for i := range runs {
		r := &runs[i]
		n, upTo = i+1, int64(r.Last)+1
		if upTo <= from || r.Level == 0 {
			continue
		}
		aborted, err := x.aborted(ctx, runs[i:n])
		if err != nil {
			return nil, 0, 0, err
		}
		batches, err := x.compactor.readRuns(ctx, jobClean, map[metadata.ObjectKey]*segment.Index{}, runs[i:n])
		var next int64
		var full bool
		if err == nil {
			next, full, err = m.add(batches, from, aborted)
		}
		// What cannot be read takes nobody's place: older values of its keys stay.
		if err != nil && !errors.Is(err, errDamaged) {
			return nil, 0, 0, err
		}
		if full {
			return m, n, next, nil
		}
	}
	return m, n, upTo, nil
}

// aborted gives the aborted transactions that touch neighbouring runs, which lie below the last stable offset.
func (x *cleaning) aborted(ctx context.Context, runs []metadata.RunRow) (abortedTxns, error) {
	found, err := x.compactor.store.Aborted(ctx, []metadata.AbortedQuery{{
		Partition: metadata.PartitionID{Block: x.block, Slot: x.slot}, From: runs[0].Base, To: runs[len(runs)-1].Last + 1,
	}})
	if err != nil {
		return nil, err
	}
	return newAborted(found[0]), nil
}

// rewrite sifts runs, group by group, and gives the raw bytes that are left.
func (x *cleaning) rewrite(ctx context.Context, runs []metadata.RunRow, s *sieve) (int64, error) {
	var left int64
	for len(runs) > 0 {
		n, raw := 0, int64(0)
		for n < len(runs) && runs[n].Level > 0 && (n == 0 || raw+runs[n].Raw <= jobBytes) {
			raw += runs[n].Raw
			n++
		}
		if n == 0 { // damaged: it stays
			left += runs[0].Raw
			runs = runs[1:]
			continue
		}
		group := runs[:n]
		runs = runs[n:]
		aborted, err := x.aborted(ctx, group)
		if err != nil {
			return 0, err
		}
		err = x.compactor.rewrite(x.held, jobClean, x.block, x.places, []crumbs{{runs: group, raw: raw}},
			func(_ []metadata.RunRow, batches []batch) ([]batch, error) {
				stay, changed, err := s.sift(batches, aborted)
				if err == nil && !changed && n == 1 {
					err = errUnchanged
				}
				for i := range stay {
					left += int64(len(stay[i].data))
				}
				return stay, err
			})
		if err != nil && !errors.Is(err, errUnchanged) && !errors.Is(err, errNothingRewritten) {
			return 0, err
		}
	}
	return left, nil
}

// errUnchanged: a run holds nothing that has to go.
var errUnchanged = errors.New("nothing to be compacted")
