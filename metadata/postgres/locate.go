package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/skeinio/skein/metadata"
)

// locateSQL searches the photographs of level0 for all queries at once, in one statement and so one snapshot. Each state
// of s has probed one row. (lo, hi] holds the answer: what ends at lo is not above the target, what ends at hi is (top+1
// stands for "nothing is"). Until something above the target was met, the search after a found row gallops: step doubles,
// so that a neighbour that touches the slot costs one probe and one at distance n about 2 log n.
//
// Offsets are compared as their big-endian bytes, which order as they do.
const locateSQL = `
WITH RECURSIVE q AS MATERIALIZED (
	SELECT u.*, int8send(u.target) AS target_bytes, b.merged_seq AS merged, t.seq AS top
	FROM unnest($1::int4[], $2::int8[], $3::int4[], $4::int8[], $5::int8[], $6::int4[], $7::int8[])
		AS u (q, block, slot, target, ts, max_rows, max_bytes)
	CROSS JOIN LATERAL (SELECT merged_seq FROM blocks WHERE id = u.block LIMIT 1) b
	LEFT JOIN LATERAL (SELECT seq FROM level0 l WHERE l.block = u.block ORDER BY l.seq DESC LIMIT 1) t ON true
),
s (q, block, pos, ts, rows_left, max_bytes, top, target, first_bytes, lo, hi, hi_fields, step, probe, hit) AS (
	SELECT q, block, 24 * slot + 1, ts, max_rows, max_bytes, top, target_bytes, NULL::int8, merged, top + 1, NULL::bytea, 0::int8,
		(merged + top + 1) / 2, NULL::int8
	FROM q WHERE top > merged
	UNION ALL
	SELECT s.q, s.block, s.pos, s.ts, s.rows_left - d.found::int, s.max_bytes, s.top,
		CASE WHEN d.found THEN substr(m.hi_fields, 1, 8) ELSE s.target END,
		CASE WHEN d.found THEN coalesce(s.first_bytes, d.bytes) ELSE s.first_bytes END,
		CASE WHEN d.found THEN m.hi ELSE m.lo END,
		CASE WHEN d.found THEN s.top + 1 ELSE m.hi END,
		m.hi_fields,
		CASE WHEN d.found THEN 1 ELSE m.step END,
		CASE
			WHEN d.found THEN CASE WHEN s.rows_left > 1 AND m.hi < s.top AND d.bytes - coalesce(s.first_bytes, d.bytes) <= s.max_bytes THEN m.hi + 1 END
			WHEN m.lo = s.top THEN NULL
			WHEN m.step > 0 THEN least(m.lo + m.step, s.top)
			ELSE (m.lo + m.hi) / 2
		END,
		CASE WHEN d.found AND d.bytes - coalesce(s.first_bytes, d.bytes) <= s.max_bytes THEN m.hi END
	FROM s
	CROSS JOIN LATERAL (
		SELECT substr(l.photo, s.pos, 24) AS fields FROM level0 l WHERE l.block = s.block AND l.seq = s.probe LIMIT 1) l
	CROSS JOIN LATERAL (
		SELECT CASE WHEN c.above THEN s.lo ELSE s.probe END AS lo,
			CASE WHEN c.above THEN s.probe ELSE s.hi END AS hi,
			CASE WHEN c.above THEN l.fields ELSE s.hi_fields END AS hi_fields,
			CASE WHEN c.above THEN 0 ELSE s.step * 2 END AS step
		FROM (SELECT substr(l.fields, 1, 8) > s.target AND (s.ts IS NULL OR skein_int8(l.fields, 8) >= s.ts) AS above OFFSET 0) c
		OFFSET 0) m
	CROSS JOIN LATERAL (
		SELECT x.found, CASE WHEN x.found THEN skein_int8(m.hi_fields, 16) END AS bytes
		FROM (SELECT m.hi = m.lo + 1 AND m.hi <= s.top AS found OFFSET 0) x OFFSET 0) d
	WHERE s.probe IS NOT NULL
)
SELECT 0::int2 AS kind, ARRAY[q.q] AS queries, q.block, q.merged AS seq, NULL::int8 AS time, NULL::uuid AS flush, NULL::text AS object,
	NULL::bytea AS touched, NULL::bytea AS photo, NULL::int8[] AS run
FROM q
UNION ALL
SELECT 1::int2, ARRAY[q.q], q.block, NULL, NULL, NULL, r.object, NULL, NULL,
	ARRAY[r.base, r.last, r.position, r.length, r.max_ts, r.running_max_ts, r.bytes, r.level, r.raw, r.object_size]
FROM q CROSS JOIN LATERAL (
	SELECT r.* FROM runs r
	WHERE r.block = q.block AND r.slot = q.slot AND r.last >= q.target AND r.base >= greatest(
		coalesce((
			SELECT o.base FROM runs o WHERE o.block = q.block AND o.slot = q.slot AND o.base <= q.target
			ORDER BY o.base DESC LIMIT 1), q.target),
		CASE WHEN q.ts IS NOT NULL THEN coalesce((
			SELECT t.base FROM runs t WHERE t.block = q.block AND t.slot = q.slot AND t.running_max_ts >= q.ts
			ORDER BY t.running_max_ts, t.base LIMIT 1), 9223372036854775807) END)
	ORDER BY r.base LIMIT q.max_rows) r
WHERE q.merged > 0
UNION ALL
SELECT 2::int2, x.queries, x.block, r.seq, r.time, r.flush, r.object, r.touched, r.photo, NULL
FROM (SELECT array_agg(s.q) AS queries, s.block, s.hit FROM s WHERE s.hit IS NOT NULL GROUP BY s.block, s.hit) x
CROSS JOIN LATERAL (
	SELECT l.seq, l.time, l.flush, l.object, l.touched, l.photo
	FROM level0 l WHERE l.block = x.block AND l.seq = x.hit LIMIT 1) r`

// search is one query of locateSQL.
type search struct {
	block    metadata.BlockID
	slot     metadata.Slot
	target   metadata.Offset
	ts       metadata.Millis // when byTime
	byTime   bool
	maxRows  int
	maxBytes int64
}

// maxLocateRows bounds the rows of one query's answer.
const maxLocateRows = 4096

func rowLimit(n int) int { return min(max(n, 1), maxLocateRows) }

// Locate implements metadata.Driver.
func (d *Driver) Locate(ctx context.Context, queries []metadata.LocateQuery) ([]metadata.LocateAnswer, error) {
	list := make([]search, len(queries))
	for i, q := range queries {
		list[i] = search{block: q.Block, slot: q.Slot, target: max(q.Offset, 0), maxRows: rowLimit(q.MaxRows), maxBytes: q.MaxBytes}
	}
	return d.locate(ctx, list)
}

// LocateTime implements metadata.Driver.
func (d *Driver) LocateTime(ctx context.Context, queries []metadata.LocateTimeQuery) ([]metadata.LocateAnswer, error) {
	list := make([]search, len(queries))
	for i, q := range queries {
		list[i] = search{
			block: q.Block, slot: q.Slot, target: max(q.Offset, 0), ts: q.Timestamp, byTime: true,
			maxRows: rowLimit(q.MaxRows), maxBytes: math.MaxInt64,
		}
	}
	return d.locate(ctx, list)
}

func (d *Driver) locate(ctx context.Context, list []search) ([]metadata.LocateAnswer, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var answers []metadata.LocateAnswer
	p := d.params()
	defer d.done(p)
	locateParams(p, list)
	err := d.read(ctx, stLocate, p, func() func(*column) error {
		answers = make([]metadata.LocateAnswer, len(list))
		for i := range answers {
			answers[i].Missing = true
		}
		return func(c *column) error { return locateRow(c, list, answers) }
	})
	if err != nil {
		return nil, fmt.Errorf("locate: %w", err)
	}
	for i := range answers {
		bound(&answers[i], &list[i])
	}
	return answers, nil
}

func locateParams(p *params, list []search) {
	p.array(pgtype.Int4OID, len(list), false)
	for i := range list {
		p.int4(int32(i))
	}
	p.end()
	int8Array(p, list, func(s *search) int64 { return int64(s.block) })
	int4Array(p, list, func(s *search) int32 { return int32(s.slot) })
	int8Array(p, list, func(s *search) int64 { return int64(s.target) })
	p.array(pgtype.Int8OID, len(list), true)
	for i := range list {
		if list[i].byTime {
			p.int8(int64(list[i].ts))
		} else {
			p.null()
		}
	}
	p.end()
	int4Array(p, list, func(s *search) int32 { return int32(s.maxRows) })
	int8Array(p, list, func(s *search) int64 { return max(s.maxBytes, 0) })
}

// locateRow takes one row of the answer. A level0 row that several queries found comes once.
func locateRow(c *column, list []search, answers []metadata.LocateAnswer) error {
	kind := c.int2()
	queries := c.ints()
	if c.err != nil {
		return c.err
	}
	for _, q := range queries {
		if q < 0 || q >= int64(len(list)) {
			return fmt.Errorf("%w: query %d of %d", errWire, q, len(list))
		}
	}
	switch kind {
	case 0:
		c.int8()
		a := &answers[queries[0]]
		a.Missing, a.MergedSeq = false, metadata.Seq(c.int8())
	case 1:
		q := queries[0]
		run := metadata.RunRow{Block: list[q].block, Slot: list[q].slot}
		c.next += 4
		run.Object = metadata.ObjectKey(c.raw())
		c.next += 2
		n := c.ints()
		if len(n) != 10 {
			return fmt.Errorf("%w: run of %d fields", errWire, len(n))
		}
		run.Base, run.Last, run.Position, run.Length = metadata.Offset(n[0]), metadata.Offset(n[1]), n[2], n[3]
		run.MaxTS, run.RunningMaxTS, run.Bytes = metadata.Millis(n[4]), metadata.Millis(n[5]), n[6]
		run.Level, run.Raw, run.ObjectSize = int16(n[7]), n[8], n[9]
		answers[q].Runs = append(answers[q].Runs, run)
	default:
		row, err := scanRow(metadata.BlockID(c.int8()), c)
		if err != nil {
			return err
		}
		for _, q := range queries {
			answers[q].Rows = append(answers[q].Rows, row)
		}
	}
	return c.err
}

// bound sorts an answer and cuts it to the query's bounds: together consecutive, at least one.
func bound(a *metadata.LocateAnswer, q *search) {
	slices.SortFunc(a.Rows, func(x, y *metadata.Row) int { return int(x.Seq - y.Seq) })
	slices.SortFunc(a.Runs, func(x, y metadata.RunRow) int { return compareOffsets(x.Base, y.Base) })
	rows, size := 0, int64(0)
	fits := func(n int64) bool {
		if rows > 0 && (rows >= q.maxRows || size+n > q.maxBytes || size+n < 0) {
			return false
		}
		rows++
		size += n
		return true
	}
	for i := range a.Runs {
		if !fits(a.Runs[i].Length) {
			a.Runs, a.Rows = a.Runs[:i], nil
			return
		}
	}
	for i, r := range a.Rows {
		if t := r.Find(q.slot); t >= 0 && !fits(int64(r.Touched[t].RawLength)) {
			a.Rows = a.Rows[:i]
			return
		}
	}
}

func compareOffsets(a, b metadata.Offset) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// scanRow reads seq, time, flush, object, touched, photo; a photograph that is null was left out.
func scanRow(block metadata.BlockID, c *column) (*metadata.Row, error) {
	r := &metadata.Row{Block: block, Seq: metadata.Seq(c.int8()), Time: metadata.Millis(c.int8()), Flush: c.uuid()}
	r.Object = metadata.ObjectKey(c.raw())
	touched, photo := c.raw(), c.raw()
	if c.err != nil {
		return nil, c.err
	}
	var err error
	if r.Touched, err = metadata.DecodeTouched(touched); err == nil {
		if r.NoPhoto = photo == nil; !r.NoPhoto {
			err = r.Photo.Decode(photo)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("row (%d, %d): %w", r.Block, r.Seq, err)
	}
	return r, nil
}

// logStarts is the encoding of blocks.log_start.
func appendLogStarts(b []byte, starts *[metadata.SlotsPerBlock]metadata.Offset) []byte {
	n := len(starts)
	for n > 0 && starts[n-1] == 0 {
		n--
	}
	for _, o := range starts[:n] {
		b = binary.BigEndian.AppendUint64(b, uint64(o))
	}
	return b
}

func decodeLogStarts(b []byte, starts *[metadata.SlotsPerBlock]metadata.Offset) error {
	if len(b)%8 != 0 || len(b) > 8*len(starts) {
		return fmt.Errorf("%w: log starts of %d bytes", metadata.ErrCorrupt, len(b))
	}
	for i := range len(b) / 8 {
		starts[i] = metadata.Offset(binary.BigEndian.Uint64(b[8*i:]))
	}
	return nil
}
