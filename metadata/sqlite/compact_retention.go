package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// RetentionStarts implements metadata.Compaction.
func (d *Driver) RetentionStarts(ctx context.Context, queries []metadata.RetentionQuery) ([]metadata.Offset, error) {
	found := make([]metadata.Offset, len(queries))
	err := d.read(ctx, func(s *session) error {
		for i := range queries {
			start, err := s.retentionStart(&queries[i])
			if err != nil {
				return err
			}
			found[i] = -1
			if start > queries[i].LogStart {
				found[i] = start
			}
		}
		return nil
	})
	return found, err
}

func (s *session) retentionStart(q *metadata.RetentionQuery) (metadata.Offset, error) {
	from, last := q.LogStart, metadata.Offset(-1)
	err := errors.Join(
		s.one("SELECT base FROM runs WHERE block = ? AND slot = ? AND base <= ? ORDER BY base DESC LIMIT 1",
			[]any{int64(q.Block), int64(q.Slot), int64(q.LogStart)}, &from),
		s.one("SELECT last FROM runs WHERE block = ? AND slot = ? ORDER BY base DESC LIMIT 1",
			[]any{int64(q.Block), int64(q.Slot)}, &last),
	)
	start := q.LogStart
	if err != nil || last < 0 {
		return start, err
	}
	rule := func(condition string, limit int64) error {
		base := last + 1 // all runs go
		err := s.one("SELECT base FROM runs WHERE block = ? AND slot = ? AND base >= ? AND "+condition+" ORDER BY base LIMIT 1",
			[]any{int64(q.Block), int64(q.Slot), int64(from), limit}, &base)
		start = max(start, base)
		return err
	}
	if q.Cutoff >= 0 {
		if err := rule("(max_ts >= ? OR max_ts < 0)", int64(q.Cutoff)); err != nil {
			return 0, err
		}
	}
	if q.KeepBytes >= 0 {
		if err := rule("bytes > ?", q.KeepBytes); err != nil {
			return 0, err
		}
	}
	return start, nil
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

// DropRuns implements metadata.Compaction.
func (d *Driver) DropRuns(ctx context.Context, below []metadata.LogStart, limit int) (int, error) {
	n := 0
	err := d.write(ctx, func(s *session) error {
		n = 0
		for _, b := range below {
			if n == limit {
				return nil
			}
			objects := map[metadata.ObjectKey]int{}
			err := s.each(`DELETE FROM runs WHERE block = ? AND slot = ? AND base IN (
				SELECT base FROM runs WHERE block = ? AND slot = ? AND base < ? AND last < ? ORDER BY base LIMIT ?) RETURNING object`,
				[]any{int64(b.Block), int64(b.Slot), int64(b.Block), int64(b.Slot), int64(b.Offset), int64(b.Offset), limit - n},
				func(rows *sql.Rows) error {
					var key string
					err := rows.Scan(&key)
					n++
					if key != "" {
						objects[metadata.ObjectKey(key)]++
					}
					return err
				})
			if err == nil {
				err = s.unref(objects, d.millis())
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, nil)
	return n, err
}

// DropBlock implements metadata.Compaction.
func (d *Driver) DropBlock(ctx context.Context, block metadata.BlockID) (bool, error) {
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
