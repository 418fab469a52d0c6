package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

const (
	retentionSQL = `
SELECT u.i, t.base, y.base, e.last
FROM unnest($1::int8[], $2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[]) WITH ORDINALITY
	AS u (block, slot, start, cutoff, keep, below, i)
CROSS JOIN LATERAL (
	SELECT coalesce((SELECT r.base FROM runs r WHERE r.block = u.block AND r.slot = u.slot AND r.base <= u.start
		AND r.base >= u.below ORDER BY r.base DESC LIMIT 1), u.start) AS base OFFSET 0) h
LEFT JOIN LATERAL (SELECT r.base FROM runs r
	WHERE r.block = u.block AND r.slot = u.slot AND r.base >= h.base AND (r.max_ts >= u.cutoff OR r.max_ts < 0)
	ORDER BY r.base LIMIT 1) t ON u.cutoff >= 0
LEFT JOIN LATERAL (SELECT r.base FROM runs r
	WHERE r.block = u.block AND r.slot = u.slot AND r.base >= h.base AND r.bytes > u.keep
	ORDER BY r.base LIMIT 1) y ON u.keep >= 0
CROSS JOIN LATERAL (SELECT r.last FROM runs r WHERE r.block = u.block AND r.slot = u.slot AND r.base >= u.below
	ORDER BY r.base DESC LIMIT 1) e`
)

// RetentionStarts implements metadata.Compaction.
func (d *Driver) RetentionStarts(ctx context.Context, queries []metadata.RetentionQuery) ([]metadata.Offset, error) {
	n := len(queries)
	blocks, slots, starts := make([]int64, n), make([]int16, n), make([]int64, n)
	cutoffs, keep, from := make([]int64, n), make([]int64, n), make([]int64, n)
	for i, q := range queries {
		blocks[i], slots[i], starts[i], cutoffs[i], keep[i] = int64(q.Block), int16(q.Slot), int64(q.LogStart), int64(q.Cutoff), q.KeepBytes
		from[i] = int64(q.From)
	}
	found := make([]metadata.Offset, n)
	for i := range found {
		found[i] = -1
	}
	_, err := list(ctx, d, "find where logs start", retentionSQL, func(rows pgx.Rows, _ *struct{}) error {
		var i, last int64
		var byTime, byBytes *int64
		if err := rows.Scan(&i, &byTime, &byBytes, &last); err != nil {
			return err
		}
		q := &queries[i-1]
		start := q.LogStart
		for _, rule := range []struct {
			on   bool
			base *int64
		}{{q.Cutoff >= 0, byTime}, {q.KeepBytes >= 0, byBytes}} {
			switch {
			case !rule.on:
			case rule.base == nil:
				start = max(start, metadata.Offset(last+1)) // all runs go
			default:
				start = max(start, metadata.Offset(*rule.base))
			}
		}
		if start > q.LogStart {
			found[i-1] = start
		}
		return nil
	}, blocks, slots, starts, cutoffs, keep, from)
	return found, err
}

// MoveLogStarts implements metadata.Compaction.
func (d *Driver) MoveLogStarts(ctx context.Context, moves []metadata.LogStart) ([]metadata.BlockID, error) {
	byBlock := map[int64][]metadata.LogStart{}
	for _, m := range moves {
		byBlock[int64(m.Block)] = append(byBlock[int64(m.Block)], m)
	}
	ids := slices.Sorted(maps.Keys(byBlock))
	var changed []metadata.BlockID
	err := d.again(ctx, func(conn *pgxpool.Conn) error {
		changed = nil
		guard := d.guard(ctx, conn.Conn().PgConn().PID())
		defer guard.stop()
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `SELECT `+blockColumns+` FROM blocks WHERE id = ANY ($1::int8[]) ORDER BY id FOR UPDATE`, ids)
			blocks, err := scanAll(rows, err, scanBlock)
			if err != nil {
				return err
			}
			var save []metadata.BlockRow
			for _, b := range blocks {
				moved := false
				for _, m := range byBlock[int64(b.ID)] {
					if m.Offset > b.LogStart[m.Slot] {
						b.LogStart[m.Slot], moved = m.Offset, true
					}
				}
				if moved {
					b.Version++
					save, changed = append(save, b), append(changed, b.ID)
				}
			}
			return saveCatalogue(ctx, tx, &metadata.CatalogueSave{Blocks: save})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("move log starts: %w", err)
	}
	return changed, nil
}

// DropRuns implements metadata.Compaction.
func (d *Driver) DropRuns(ctx context.Context, below []metadata.RunsBelow, limit int) error {
	n := len(below)
	blocks, slots, from, offsets := make([]int64, n), make([]int32, n), make([]int64, n), make([]int64, n)
	for i, b := range below {
		blocks[i], slots[i], from[i], offsets[i] = int64(b.Block), int32(b.Slot), int64(b.From), int64(b.Below)
	}
	type dropped struct{ count, next int64 }
	found, err := list(ctx, d, "drop runs", "SELECT dropped, next_base FROM skein_drop_runs_from($1, $2, $3, $4, $5)",
		func(rows pgx.Rows, x *dropped) error { return rows.Scan(&x.count, &x.next) }, blocks, slots, from, offsets, limit)
	if err != nil {
		return err
	}
	for i, x := range found {
		below[i].Count, below[i].From = int(x.count), metadata.Offset(x.next)
	}
	return nil
}

// DropBlocks implements metadata.Compaction.
func (d *Driver) DropBlocks(ctx context.Context, blocks []metadata.BlockID) ([]metadata.BlockID, error) {
	return list(ctx, d, "drop blocks", "SELECT skein_drop_blocks($1)",
		func(rows pgx.Rows, id *metadata.BlockID) error { return rows.Scan((*int64)(id)) }, blockIDs(blocks))
}
