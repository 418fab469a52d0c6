package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/skeinio/skein/metadata"
)

// slotWidth is what a photograph holds of one slot: next offset, running maximum timestamp, cumulative bytes.
const slotWidth = metadata.PhotoSize / metadata.SlotsPerBlock

// Locate implements metadata.Driver.
func (d *Driver) Locate(ctx context.Context, queries []metadata.LocateQuery) ([]metadata.LocateAnswer, error) {
	return d.locate(ctx, len(queries), func(i int) *search {
		q := &queries[i]
		return &search{
			block: q.Block, slot: q.Slot, offset: q.Offset, time: metadata.NoTimestamp,
			rows: q.MaxRows, bytes: q.MaxBytes, bounded: true,
		}
	})
}

// LocateTime implements metadata.Driver.
func (d *Driver) LocateTime(ctx context.Context, queries []metadata.LocateTimeQuery) ([]metadata.LocateAnswer, error) {
	return d.locate(ctx, len(queries), func(i int) *search {
		q := &queries[i]
		return &search{block: q.Block, slot: q.Slot, offset: q.Offset, time: q.Timestamp, rows: q.MaxRows}
	})
}

func (d *Driver) locate(ctx context.Context, n int, query func(int) *search) ([]metadata.LocateAnswer, error) {
	answers := make([]metadata.LocateAnswer, n)
	err := d.read(ctx, func(s *session) error {
		for i := range answers {
			q := query(i)
			q.session, q.rows = s, max(q.rows, 1)
			if err := q.run(); err != nil {
				return fmt.Errorf("block %d, slot %d: %w", q.block, q.slot, err)
			}
			answers[i] = q.answer
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answers, nil
}

// search answers one query: what ends above offset and has a running maximum timestamp of at least time. Both grow from
// row to row and from run to run, so the first that meets them is found by binary search, as every row is a photograph.
type search struct {
	session *session
	block   metadata.BlockID
	slot    metadata.Slot
	offset  metadata.Offset
	time    metadata.Millis
	rows    int   // bound of the rows and runs together
	bytes   int64 // bound of what follows the first, in bytes
	bounded bool  // by bytes

	answer metadata.LocateAnswer
	found  int
	size   int64
}

func (q *search) run() error {
	merged, newest, err := q.bounds()
	if err != nil || q.answer.Missing {
		return err
	}
	if merged > 0 {
		full, err := q.findRuns()
		if err != nil || full {
			return err
		}
	}
	return q.findRows(merged, newest)
}

// bounds gives the block's merged seq and its newest row's seq.
func (q *search) bounds() (merged, newest metadata.Seq, err error) {
	err = q.session.row("SELECT merged_seq FROM blocks WHERE block = ?", int64(q.block)).Scan(&merged)
	if errors.Is(err, sql.ErrNoRows) {
		q.answer.Missing = true
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, failure(err)
	}
	q.answer.MergedSeq = merged
	var at sql.NullInt64
	err = q.session.row("SELECT max(place) FROM level0 WHERE place BETWEEN ? AND ?", place(q.block, 0), place(q.block, maxSeq)).
		Scan(&at)
	return merged, seqOf(at.Int64), failure(err)
}

// take counts an extent against the bounds; it says whether there is room for it.
func (q *search) take(bytes int64) bool {
	if q.found == q.rows || (q.bounded && q.found > 0 && q.size+bytes > q.bytes) {
		return false
	}
	q.found++
	q.size += bytes
	return true
}

// findRuns finds the runs of the answer. It says whether the answer is full with them.
func (q *search) findRuns() (full bool, err error) {
	base, ok, err := q.firstRun()
	if err != nil || !ok {
		return false, err
	}
	err = q.session.each(runsFrom, []any{int64(q.block), int64(q.slot), int64(base), q.rows}, func(rows *sql.Rows) error {
		r := metadata.RunRow{Block: q.block, Slot: q.slot}
		err := rows.Scan(&r.Base, &r.Last, &r.Object, &r.Position, &r.Length, &r.MaxTS, &r.RunningMaxTS, &r.Bytes, &r.Level,
			&r.Raw, &r.ObjectSize)
		if err != nil || full {
			return err
		}
		if full = !q.take(r.Length); full {
			return nil
		}
		q.answer.Runs = append(q.answer.Runs, r)
		q.offset = r.Last + 1
		return nil
	})
	return full, err
}

const (
	runsFrom = `SELECT base, last, object, position, length, max_ts, running_max_ts, bytes, level, raw, object_size FROM runs
	WHERE block = ? AND slot = ? AND base >= ? ORDER BY base LIMIT ?`
	runBelow = `SELECT base, last FROM runs WHERE block = ? AND slot = ? AND base <= ? ORDER BY base DESC LIMIT 1`
	runAbove = `SELECT base FROM runs WHERE block = ? AND slot = ? AND base > ? ORDER BY base LIMIT 1`
	runSince = `SELECT base FROM runs WHERE block = ? AND slot = ? AND running_max_ts >= ?
	ORDER BY running_max_ts, base LIMIT 1`
)

// firstRun finds the base of the first run that ends above the offset and reaches the time.
func (q *search) firstRun() (base metadata.Offset, ok bool, err error) {
	var last metadata.Offset
	err = q.session.row(runBelow, int64(q.block), int64(q.slot), int64(q.offset)).Scan(&base, &last)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && last < q.offset) {
		err = q.session.row(runAbove, int64(q.block), int64(q.slot), int64(q.offset)).Scan(&base)
	}
	if err == nil && q.time != metadata.NoTimestamp {
		var since metadata.Offset
		err = q.session.row(runSince, int64(q.block), int64(q.slot), int64(q.time)).Scan(&since)
		base = max(base, since)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return base, err == nil, failure(err)
}

// findRows finds the level0 rows of the answer, above the merged seq.
func (q *search) findRows(merged, newest metadata.Seq) error {
	seq, err := q.first(merged+1, newest, false)
	for err == nil && seq <= newest {
		var r *metadata.Row
		if r, err = q.load(seq); err != nil {
			return err
		}
		if i := r.Find(q.slot); i >= 0 {
			if !q.take(int64(r.Touched[i].RawLength)) {
				return nil
			}
			r.Touched = r.Touched[i : i+1 : i+1]
			q.answer.Rows = append(q.answer.Rows, r)
		}
		// A row that does not touch the slot is the first one above merged data: go on after it all the same.
		if q.found == q.rows {
			return nil
		}
		q.offset = r.Photo.Next[q.slot] // the time stays reached
		seq, err = q.first(seq+1, newest, true)
	}
	return err
}

// first gives the first seq in [lo, hi] whose photograph meets the query, or hi+1. With near it is looked for from lo
// on in growing steps, as the next row of a busy partition is close by.
func (q *search) first(lo, hi metadata.Seq, near bool) (metadata.Seq, error) {
	end := hi + 1
	if near {
		for step := metadata.Seq(1); lo <= hi; step *= 2 {
			probe := min(lo+step-1, hi)
			ok, err := q.meets(probe)
			if err != nil {
				return 0, err
			}
			if ok {
				end = probe
				break
			}
			lo = probe + 1
		}
	}
	for lo < end {
		mid := lo + (end-lo)/2
		ok, err := q.meets(mid)
		if err != nil {
			return 0, err
		}
		if ok {
			end = mid
		} else {
			lo = mid + 1
		}
	}
	return lo, nil
}

// meets reads one slot of one photograph.
func (q *search) meets(seq metadata.Seq) (bool, error) {
	var b []byte
	err := q.session.row("SELECT substr(photo, ?, ?) FROM level0 WHERE place = ?",
		slotWidth*int(q.slot)+1, slotWidth, place(q.block, seq)).Scan(&b)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && len(b) != slotWidth) {
		return false, fmt.Errorf("%w: no photograph at seq %d", metadata.ErrCorrupt, seq)
	}
	if err != nil {
		return false, failure(err)
	}
	next := metadata.Offset(binary.BigEndian.Uint64(b))
	maxTS := metadata.Millis(binary.BigEndian.Uint64(b[8:]))
	return next > q.offset && maxTS >= q.time, nil
}

func (q *search) load(seq metadata.Seq) (*metadata.Row, error) {
	var r *metadata.Row
	err := q.session.each("SELECT "+rowColumns+" FROM level0 WHERE place = ?", []any{place(q.block, seq)},
		func(rows *sql.Rows) (err error) {
			r, err = scanRow(rows)
			return err
		})
	if err == nil && r == nil {
		err = fmt.Errorf("%w: no row at seq %d", metadata.ErrCorrupt, seq)
	}
	return r, err
}
