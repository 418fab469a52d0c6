package agent

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

const (
	// firstTimeRows and maxTimeRows: a search for a timestamp looks at so many extents at first, four times as many each
	// time it found nothing, up to the maximum.
	firstTimeRows = 4
	maxTimeRows   = 1024
	// maxTimeRounds bounds how often it goes on. Only where retention removed what had set the running maximum does it
	// take more than one or two.
	maxTimeRounds = 64
)

// errTimeSearch: the bound of a search was reached.
var errTimeSearch = errors.New("timestamp not found within the bound of the search")

// fresh views partitions as of now or later: the database is asked. A failure is every partition's.
func (rd *reader) fresh(ctx context.Context, parts []*partRead) error {
	if len(parts) == 0 {
		return nil
	}
	err := rd.store.Refresh(ctx, blocksOf(parts)...)
	if err == nil || errors.Is(err, metadata.ErrCorrupt) { // the view tells whose block it is
		err = rd.view(ctx, parts)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		rd.failAll(parts, err)
	}
	return nil
}

// timeSearch looks for the first record of a partition at or after a timestamp, or, for maxTimestamp, for the first of
// those with the largest one.
type timeSearch struct {
	part *partRead
	at   metadata.Millis // for max: the running maximum, which what set it may have left
	max  bool
	next metadata.Offset // not looked at yet

	rows int
	done bool
	// best is, for max, the extent with the largest timestamp of those passed.
	best *metadata.Located

	// found is the answer when done, before that, for max, the largest so far.
	found       bool
	foundOffset metadata.Offset
	foundTime   metadata.Millis
}

func newTimeSearch(p *partRead, timestamp int64) *timeSearch {
	q := &timeSearch{part: p, at: metadata.Millis(timestamp), next: p.logStart(), rows: firstTimeRows}
	if timestamp == maxTimestamp {
		q.max, q.at = true, p.view.Photo.MaxTS[p.place.Slot]
	}
	q.done = q.next >= p.limit || q.at > p.view.Photo.MaxTS[p.place.Slot]
	return q
}

// searchTimes runs searches together: one statement for all that go on, round by round. A search that fails leaves its
// error in its partition.
func (rd *reader) searchTimes(ctx context.Context, searches []*timeSearch) {
	for round := 0; ; round++ {
		var open []*timeSearch
		var queries []metadata.LocateTimeQuery
		for _, q := range searches {
			if q.done || q.part.failed() {
				continue
			}
			open = append(open, q)
			queries = append(queries, metadata.LocateTimeQuery{
				Block: q.part.place.Block, Slot: q.part.place.Slot, Timestamp: q.at, Offset: q.next, MaxRows: q.rows,
			})
		}
		if len(open) == 0 {
			return
		}
		answers, err := rd.store.LocateTime(ctx, queries)
		if round == maxTimeRounds {
			err = fmt.Errorf("%w: %d rounds", errTimeSearch, round)
		}
		for i, q := range open {
			e := err
			if e == nil {
				e = rd.advance(ctx, q, answers[i])
			}
			if e != nil {
				rd.fail(q.part, e)
			}
		}
	}
}

// advance looks at the extents that a round found.
func (rd *reader) advance(ctx context.Context, q *timeSearch, located []metadata.Located) error {
	located, err := rd.runs.expand(ctx, located, q.next, math.MaxInt64)
	if err != nil && len(located) == 0 {
		return err
	}
	for i := range located {
		l := &located[i]
		if l.Base >= q.part.limit {
			located = nil // the end
			break
		}
		if l.End <= q.next {
			continue
		}
		if at, worth := q.consider(l); worth {
			if err := rd.searchExtent(ctx, q, l, at); err != nil || q.done {
				return err
			}
		}
		q.next = l.End
	}
	q.rows = min(q.rows*4, maxTimeRows)
	if len(located) > 0 {
		return nil
	}
	q.done = true
	if q.best != nil && (!q.found || q.best.MaxTS > q.foundTime) {
		// What set the running maximum is gone: the largest of what is left.
		return rd.searchExtent(ctx, q, q.best, metadata.NoTimestamp)
	}
	return nil
}

// consider says whether to look into an extent, and for records from which time on.
func (q *timeSearch) consider(l *metadata.Located) (at metadata.Millis, worth bool) {
	if q.max && l.Base < q.part.logStart() {
		return metadata.NoTimestamp, true // what its maximum was may be below the log's start
	}
	if q.max && (q.best == nil || l.MaxTS > q.best.MaxTS) {
		q.best = l
	}
	return q.at, l.MaxTS >= q.at
}

// searchExtent looks into the batches that may hold a record from at on. It ends the search when one does.
func (rd *reader) searchExtent(ctx context.Context, q *timeSearch, l *metadata.Located, at metadata.Millis) error {
	choose := pickFrom
	if l.Run {
		choose = pickChunk
	} else if err := checkLocated(l); err != nil {
		return err
	}
	k, _ := choose(l, q.part.logStart(), q.part.limit, int(l.RawLength), false)
	if k.batches == 0 {
		return nil
	}
	r := rd.extents.Get(ctx, cache.Cold, []cache.Extent{extentOf(l)})[0]
	if r.Err != nil {
		return r.Err
	}
	batches, err := k.appendBatches(nil, r.Data)
	if err != nil {
		return err
	}
	for _, b := range batches {
		if err := q.searchBatch(b, at); err != nil {
			return fmt.Errorf("%w: %s: %w", cache.ErrCorrupt, k.name(), err)
		}
		if q.found && !q.max {
			break
		}
	}
	q.done = q.done || (q.found && q.foundTime >= q.at)
	return nil
}

// searchBatch looks at a batch's records: for the first from at on, or for the largest of those if it is larger than
// what was found.
func (q *timeSearch) searchBatch(b servedBatch, at metadata.Millis) error {
	h, err := record.Parse(b.data)
	if err != nil {
		return err
	}
	if metadata.Millis(h.MaxTimestamp) < at {
		return nil
	}
	from := int32(max(q.part.logStart()-b.base, 0))
	if !q.max {
		delta, ts, ok, err := record.FirstAtOrAfterFrom(b.data, int64(at), from)
		if err != nil {
			return err
		}
		if offset := b.base + metadata.Offset(delta); ok && offset < q.part.limit {
			q.found, q.foundOffset, q.foundTime = true, offset, metadata.Millis(ts)
		}
		return nil
	}
	for r, err := range record.Records(b.data, record.DefaultMaxDecompressedBytes) {
		if err != nil {
			return err
		}
		ts := metadata.Millis(r.Timestamp)
		if r.OffsetDelta >= from && ts >= at && (!q.found || ts > q.foundTime) {
			q.found, q.foundOffset, q.foundTime = true, b.base+metadata.Offset(r.OffsetDelta), ts
		}
	}
	return nil
}
