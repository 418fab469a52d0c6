package batcher

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/skeinio/skein/metadata"
)

// phase is how far a flush has come.
type phase uint8

const (
	phaseOpen       phase = iota // takes batches
	phaseQueued                  // is to be encoded and, unless inline, uploaded
	phaseUploading               // a goroutine encodes or uploads it, or waits to try again
	phaseReady                   // its bytes are where they belong: to be committed
	phaseCommitting              // a commit of it is in flight
	phaseSettling                // its results are known and being told
	phaseDone
)

// flush is what is committed at once: batches of many partitions. Its fields are guarded by Batcher.mu, but for those of
// the encoding, which belong to the goroutine that uploads or commits it while it is in that phase.
type flush struct {
	id     metadata.FlushID // made when it is first encoded, the same from then on
	kind   Kind
	reason Reason
	phase  phase

	items  []*item // in order of arrival
	bytes  int64
	oldest time.Time // when the first batch came
	live   int       // items without a result
	next   time.Time // the earliest deadline of these, or earlier

	// deps are flushes that must be done before this one is committed, or be committed with it, since they share a chain;
	// hard ones must be done.
	deps, hard []*flush

	dirty    bool               // an item was answered after extents were made
	reading  bool               // a goroutine reads the batches' bytes: none is released
	cancel   context.CancelFunc // of the PUT under way
	deferred []*item            // answered while reading, to be released

	encoding
	encoded bool
	keys    int // object keys used so far

	seen     metadata.Millis // database time before the first attempt to commit
	frozen   bool            // the outcome of an attempt is unknown: the same flush must be submitted again
	solo     bool            // an attempt in company failed: alone from now on
	attempts int             // failed commits
	retryAt  time.Time       // not before
	group    int64           // number of the commit that it is a part of
}

// encoding is a flush's batches in the order in which they are stored, and where.
type encoding struct {
	order   []*item // by block and slot; each partition's in order of arrival
	extents []extent
	blocks  []metadata.BlockID // that the extents touch, by id
	key     metadata.ObjectKey // "" = inline
	size    int64              // of object or inline payload, bytes
	payload [][]byte           // until it is uploaded, or committed when inline
}

// extent is the batches of one partition in a flush: order[from:to].
type extent struct {
	from, to  int
	position  int64
	length    int32 // stored
	rawLength int32
	codec     metadata.Codec
	crc       uint32
}

func (f *flush) done() bool { return f.phase == phaseDone }

// attempted says whether it is possible that the flush has been committed.
func (f *flush) attempted() bool { return f.frozen || f.phase == phaseCommitting }

// dependOn says that the flush must not be committed before another.
func (f *flush) dependOn(o *flush) {
	if n := len(f.deps); n > 0 && f.deps[n-1] == o || slices.Contains(f.deps, o) {
		return
	}
	f.deps = append(f.deps, o)
}

// letGo forgets an upload's bytes when some of them are of a batch that was answered.
func (f *flush) letGo() {
	if f.dirty && f.kind == KindPut {
		f.payload = nil
	}
}

// refresh recomputes the earliest deadline of what is not answered.
func (f *flush) refresh() {
	f.next = time.Time{}
	for _, it := range f.items {
		if !it.answered && it.flush == f {
			f.next = earliest(f.next, it.req.deadline)
		}
	}
}

// grouping sorts batches by partition.
type grouping struct {
	index map[metadata.Partition]int32
	parts []metadata.Partition
	count []int
	of    []int32 // each item's partition
	rank  []int32
}

// groupings are scratch memory; they hold no batch.
var groupings = sync.Pool{New: func() any { return &grouping{index: map[metadata.Partition]int32{}} }}

// arrange sets order, extents and blocks from the batches that have no result yet. Within a partition the order of arrival
// stays; it sorts partitions, not batches.
func (e *encoding) arrange(live []*item) {
	g := groupings.Get().(*grouping)
	defer g.put()
	for _, it := range live {
		i, ok := g.index[it.part]
		if !ok {
			i = int32(len(g.parts))
			g.index[it.part] = i
			g.parts, g.count = append(g.parts, it.part), append(g.count, 0)
			g.rank = append(g.rank, i)
		}
		g.count[i]++
		g.of = append(g.of, i)
	}
	slices.SortFunc(g.rank, func(a, b int32) int { return comparePlaces(&g.parts[a], &g.parts[b]) })
	e.order = make([]*item, len(live))
	e.extents = make([]extent, 0, len(g.rank))
	e.blocks = nil
	at := 0
	for _, i := range g.rank {
		e.extents = append(e.extents, extent{from: at, to: at + g.count[i]})
		at += g.count[i]
		g.count[i] = at - g.count[i] // from here on: where its next batch goes
		if id := g.parts[i].Block; len(e.blocks) == 0 || e.blocks[len(e.blocks)-1] != id {
			e.blocks = append(e.blocks, id)
		}
	}
	for j, it := range live {
		i := g.of[j]
		e.order[g.count[i]] = it
		g.count[i]++
	}
}

func (g *grouping) put() {
	clear(g.index)
	g.parts, g.count, g.of, g.rank = g.parts[:0], g.count[:0], g.of[:0], g.rank[:0]
	groupings.Put(g)
}

func comparePlaces(a, b *metadata.Partition) int {
	switch {
	case a.Block < b.Block:
		return -1
	case a.Block > b.Block:
		return 1
	}
	return int(a.Slot) - int(b.Slot)
}

// prune takes extents out whose batches are all answered. It says whether answered batches are left among the others: then
// the flush must be encoded anew.
func (e *encoding) prune() (mixed bool) {
	kept := e.extents[:0]
	for _, x := range e.extents {
		dead := 0
		for _, it := range e.order[x.from:x.to] {
			if it.answered {
				dead++
			}
		}
		if dead < x.to-x.from {
			kept = append(kept, x)
		}
		mixed = mixed || (dead > 0 && dead < x.to-x.from)
	}
	e.extents = kept
	e.blocks = e.blocks[:0]
	for _, x := range e.extents {
		if id := e.order[x.from].part.Block; len(e.blocks) == 0 || e.blocks[len(e.blocks)-1] != id {
			e.blocks = append(e.blocks, id)
		}
	}
	return mixed
}

// message builds what the metadata store commits.
func (f *flush) message() *metadata.Flush {
	m := &metadata.Flush{ID: f.id, Seen: f.seen, Object: f.key}
	if f.kind == KindInline {
		m.Inline = f.payload
	} else {
		m.ObjectSize = f.size
	}
	n := 0
	for i := range f.extents {
		n += f.extents[i].to - f.extents[i].from
	}
	batches := make([]metadata.Batch, 0, n)
	m.Extents = make([]metadata.Extent, len(f.extents))
	for i := range f.extents {
		x := &f.extents[i]
		from := len(batches)
		for _, it := range f.order[x.from:x.to] {
			batches = append(batches, it.meta)
		}
		part := &f.order[x.from].part
		m.Extents[i] = metadata.Extent{
			Block: part.Block, Slot: part.Slot, Created: part.Created, Position: x.position, Length: x.length,
			RawLength: x.rawLength, Codec: x.codec, CRC: x.crc, Batches: batches[from:len(batches):len(batches)],
		}
	}
	return m
}
