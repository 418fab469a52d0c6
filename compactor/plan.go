package compactor

import (
	"cmp"
	"slices"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// backlog is what is not merged, of all blocks.
type backlog struct {
	rows, bytes int64
	oldest      metadata.Millis // commit time; 0: nothing
	worst       int64           // rows of the block with most
}

func (x *backlog) add(b *metadata.BacklogRow) {
	n := b.Unmerged()
	if n == 0 {
		return
	}
	x.rows += n
	x.bytes += b.UnmergedBytes()
	x.worst = max(x.worst, n)
	if x.oldest == 0 || b.Oldest < x.oldest {
		x.oldest = b.Oldest
	}
}

// wantsMerge decides whether a block is to be merged now.
func (c *Config) wantsMerge(b *metadata.BacklogRow) bool {
	n := b.Unmerged()
	return n > 0 && (n >= c.MergeRows || b.UnmergedBytes() >= c.MergeBytes || b.Now.Sub(b.Oldest) >= c.MergeAge)
}

// late says that merging is so far behind that it may take all there is of the bucket's bandwidth.
func (c *Config) late(b *backlog, now metadata.Millis) bool {
	return b.worst > c.MaxUnmerged/2 || b.oldest > 0 && now.Sub(b.oldest) > lateAges*c.MergeAge
}

// jobs groups blocks to be merged: those with the oldest rows first, neighbours together since they share objects.
func jobs(blocks []metadata.BacklogRow) [][]metadata.BacklogRow {
	blocks = slices.Clone(blocks)
	slices.SortFunc(blocks, func(a, b metadata.BacklogRow) int { return cmp.Compare(a.Row.ID, b.Row.ID) })
	list := slices.Collect(slices.Chunk(blocks, jobBlocks))
	oldest := func(job []metadata.BacklogRow) metadata.Millis {
		return slices.MinFunc(job, func(a, b metadata.BacklogRow) int { return cmp.Compare(a.Oldest, b.Oldest) }).Oldest
	}
	slices.SortStableFunc(list, func(a, b []metadata.BacklogRow) int { return cmp.Compare(oldest(a), oldest(b)) })
	return list
}

// tier is the size class of a run.
func tier(raw int64) int {
	t, limit := 0, int64(tierBase)
	for raw > limit {
		limit *= tierFactor
		t++
	}
	return t
}

// crumbs are neighbouring runs of one partition that are to become one.
type crumbs struct {
	runs []metadata.RunRow
	raw  int64
}

// bounds are what a run may grow to.
type bounds struct {
	raw  int64 // bytes
	span int64 // ms from its oldest part's newest record to its newest; 0: any
}

// boundsFor gives the bounds of a topic's runs: as long as may be, but so short that retention, which drops whole runs, is
// not late by more than an eighth of what it says.
func boundsFor(v topicconf.Values) bounds {
	b := bounds{raw: runBytes}
	if !v.Delete {
		return b
	}
	if v.RetentionBytes >= 0 {
		b.raw = min(b.raw, v.RetentionBytes/retentionSteps)
	}
	if v.RetentionMillis >= 0 {
		b.span = max(int64(v.RetentionMillis)/retentionSteps, 1)
	}
	return b
}

// retentionSteps is in how many parts, at least, retention sees what a partition holds.
const retentionSteps = 8

// planRemerge chooses, among the newest runs of one partition in order of base, neighbours to be merged: for the smallest
// tier of which fanIn runs stand together, with what is smaller between them. Every record is so rewritten about once for
// each tier. Runs of more than half of what they may be are long enough, and those that could not be read are left alone.
func planRemerge(runs []metadata.RunRow, b bounds, budget int64) (crumbs, bool) {
	limit := min(b.raw, budget)
	for t := 0; t <= tier(runBytes/2); t++ {
		for start := 0; start < len(runs); {
			end, alike := start, 0
			var raw int64
			for end < len(runs) && b.small(&runs[end], t) && raw+runs[end].Raw <= limit && b.near(&runs[start], &runs[end]) {
				raw += runs[end].Raw
				if tier(runs[end].Raw) == t {
					alike++
				}
				end++
			}
			// What ends because the run is as long as it may be is worth it with fewer.
			full := end < len(runs) && end-start > 1 && b.small(&runs[end], t) && raw >= b.raw/2
			if alike >= fanIn || full {
				return crumbs{runs: runs[start:end], raw: raw}, true
			}
			start = max(end, start+1)
		}
	}
	return crumbs{}, false
}

func (b *bounds) small(r *metadata.RunRow, t int) bool {
	return r.Level > 0 && r.Raw <= b.raw/2 && tier(r.Raw) <= t
}

func (b *bounds) near(first, last *metadata.RunRow) bool {
	return b.span == 0 || first.MaxTS < 0 || last.MaxTS < 0 || int64(last.MaxTS-first.MaxTS) <= b.span
}

// bySlot cuts runs, by slot and base, into those of each slot.
func bySlot(runs []metadata.RunRow) [][]metadata.RunRow {
	var list [][]metadata.RunRow
	for i := 0; i < len(runs); {
		j := i + 1
		for j < len(runs) && runs[j].Slot == runs[i].Slot {
			j++
		}
		list = append(list, runs[i:j])
		i = j
	}
	return list
}
