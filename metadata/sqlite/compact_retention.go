package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// retentionSQL is one statement for all partitions: their place, log start, cutoff, bytes and lowest base come as JSON.
const retentionSQL = `
WITH q AS MATERIALIZED (
	SELECT key AS i, value ->> 0 AS block, value ->> 1 AS slot, value ->> 2 AS start, value ->> 3 AS cutoff, value ->> 4 AS keep,
		value ->> 5 AS below FROM json_each(?)
), h AS MATERIALIZED (
	SELECT q.*, coalesce((SELECT r.base FROM runs r WHERE r.block = q.block AND r.slot = q.slot AND r.base <= q.start
		AND r.base >= q.below ORDER BY r.base DESC LIMIT 1), q.start) AS base FROM q)
SELECT h.i,
	(SELECT r.base FROM runs r WHERE r.block = h.block AND r.slot = h.slot AND r.base >= h.base
		AND (r.max_ts >= h.cutoff OR r.max_ts < 0) ORDER BY r.base LIMIT 1),
	(SELECT r.base FROM runs r WHERE r.block = h.block AND r.slot = h.slot AND r.base >= h.base
		AND r.bytes > h.keep ORDER BY r.base LIMIT 1),
	(SELECT r.last FROM runs r WHERE r.block = h.block AND r.slot = h.slot AND r.base >= h.below ORDER BY r.base DESC LIMIT 1)
FROM h ORDER BY h.i`

// RetentionStarts implements metadata.Compaction.
func (d *Driver) RetentionStarts(ctx context.Context, queries []metadata.RetentionQuery) ([]metadata.Offset, error) {
	found := make([]metadata.Offset, len(queries))
	asked := make([][6]int64, len(queries))
	for i, q := range queries {
		found[i] = -1
		asked[i] = [6]int64{int64(q.Block), int64(q.Slot), int64(q.LogStart), int64(q.Cutoff), q.KeepBytes, int64(q.From)}
	}
	text, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	err = d.read(ctx, func(s *session) error {
		return s.each(retentionSQL, []any{string(text)}, func(rows *sql.Rows) error {
			var i int
			var byTime, byBytes, last sql.NullInt64
			if err := rows.Scan(&i, &byTime, &byBytes, &last); err != nil {
				return err
			}
			if start := retentionStart(&queries[i], byTime, byBytes, last); start > queries[i].LogStart {
				found[i] = start
			}
			return nil
		})
	})
	return found, err
}

// retentionStart is the log's start by the first run that stays by each rule; where there is none, all runs go.
func retentionStart(q *metadata.RetentionQuery, byTime, byBytes, last sql.NullInt64) metadata.Offset {
	start := q.LogStart
	if !last.Valid {
		return start
	}
	for _, rule := range []struct {
		on   bool
		base sql.NullInt64
	}{{q.Cutoff >= 0, byTime}, {q.KeepBytes >= 0, byBytes}} {
		switch {
		case !rule.on:
		case rule.base.Valid:
			start = max(start, metadata.Offset(rule.base.Int64))
		default:
			start = max(start, metadata.Offset(last.Int64+1))
		}
	}
	return start
}

// MoveLogStarts implements metadata.Compaction.
func (d *Driver) MoveLogStarts(ctx context.Context, moves []metadata.LogStart) ([]metadata.BlockID, error) {
	byBlock := map[metadata.BlockID][]metadata.LogStart{}
	for _, m := range moves {
		byBlock[m.Block] = append(byBlock[m.Block], m)
	}
	var changed []metadata.BlockID
	err := d.write(ctx, func(s *session) error {
		for id, list := range byBlock {
			var b metadata.BlockRow
			err := scanBlock(s.row("SELECT "+blockColumns+" FROM blocks WHERE block = ?", int64(id)), &b)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			moved := false
			for _, m := range list {
				if m.Offset > b.LogStart[m.Slot] {
					b.LogStart[m.Slot], moved = m.Offset, true
				}
			}
			if !moved {
				continue
			}
			b.Version++
			if err := s.saveBlock(&b); err != nil {
				return err
			}
			changed = append(changed, id)
		}
		return nil
	}, nil)
	slices.Sort(changed)
	return changed, err
}

// dropRunsSQL deletes the runs of all partitions at once.
const dropRunsSQL = `
DELETE FROM runs WHERE (block, slot, base) IN (
	SELECT r.block, r.slot, r.base FROM json_each(?1) q JOIN runs r
		ON r.block = q.value ->> 0 AND r.slot = q.value ->> 1 AND r.base >= q.value ->> 2 AND r.base < q.value ->> 3
	WHERE r.last < q.value ->> 3 LIMIT ?2)
RETURNING block, slot, last, object`

// DropRuns implements metadata.Compaction. A deleted row is gone here, so that From matters less than elsewhere.
func (d *Driver) DropRuns(ctx context.Context, below []metadata.RunsBelow, limit int) error {
	asked := make([][4]int64, len(below))
	for i, b := range below {
		asked[i] = [4]int64{int64(b.Block), int64(b.Slot), int64(b.From), int64(b.Below)}
	}
	text, err := json.Marshal(asked)
	if err != nil {
		return err
	}
	counts, lasts := map[metadata.PartitionID]int{}, map[metadata.PartitionID]metadata.Offset{}
	err = d.write(ctx, func(s *session) error {
		objects := map[metadata.ObjectKey]int{}
		err := s.each(dropRunsSQL, []any{string(text), limit}, func(rows *sql.Rows) error {
			var p metadata.PartitionID
			var last metadata.Offset
			var key string
			err := rows.Scan(&p.Block, &p.Slot, &last, &key)
			counts[p]++
			lasts[p] = max(lasts[p], last)
			if key != "" {
				objects[metadata.ObjectKey(key)]++
			}
			return err
		})
		if err != nil {
			return err
		}
		return s.unref(objects, d.millis())
	}, nil)
	if err != nil {
		return err
	}
	for i := range below {
		p := metadata.PartitionID{Block: below[i].Block, Slot: below[i].Slot}
		if n := counts[p]; n > 0 {
			below[i].Count, below[i].From = n, lasts[p]+1
		} else {
			below[i].Count = 0
		}
	}
	return nil
}

// DropBlocks implements metadata.Compaction.
func (d *Driver) DropBlocks(ctx context.Context, blocks []metadata.BlockID) ([]metadata.BlockID, error) {
	var gone []metadata.BlockID
	for _, id := range blocks {
		dropped, err := d.dropBlock(ctx, id)
		if err != nil {
			return gone, fmt.Errorf("drop block %d: %w", id, err)
		}
		if dropped {
			gone = append(gone, id)
		}
	}
	return gone, nil
}

func (d *Driver) dropBlock(ctx context.Context, block metadata.BlockID) (bool, error) {
	gone := false
	err := d.write(ctx, func(s *session) error {
		b := metadata.BacklogRow{}
		err := scanBlock(s.row("SELECT "+blockColumns+" FROM blocks WHERE block = ?", int64(block)), &b.Row)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err == nil {
			err = s.backlog(&b)
		}
		if err != nil {
			return err
		}
		all := ^uint64(0)
		if b.Row.Used < metadata.SlotsPerBlock {
			all = 1<<b.Row.Used - 1
		}
		runs := 0
		if err := s.one("SELECT 1 FROM runs WHERE block = ? LIMIT 1", []any{int64(block)}, &runs); err != nil {
			return err
		}
		if (b.Row.Shared && b.Row.Used < metadata.SlotsPerBlock) || b.Row.Used == 0 || b.Row.Deleted != all || b.Released < b.Last || runs > 0 {
			return nil
		}
		gone = true
		low, high := place(block, 0), place(block, maxSeq)
		var errs []error
		for _, x := range []struct {
			query string
			args  []any
		}{
			{"DELETE FROM level0 WHERE place BETWEEN ? AND ?", []any{low, high}},
			{"DELETE FROM checkpoints WHERE place BETWEEN ? AND ?", []any{low, high}},
			{"DELETE FROM cleaned WHERE block = ?", []any{int64(block)}},
			{"DELETE FROM compaction WHERE block = ?", []any{int64(block)}},
			{"DELETE FROM leases WHERE name = ?", []any{metadata.BlockLease(block)}},
			{"DELETE FROM blocks WHERE block = ?", []any{int64(block)}},
		} {
			_, err := s.exec(x.query, x.args...)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}, nil)
	return gone && err == nil, err
}
