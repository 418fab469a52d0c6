package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

var _ metadata.Compaction = (*Driver)(nil)

// AcquireLease implements metadata.LeaseDriver.
func (d *Driver) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (metadata.Lease, bool, error) {
	l := metadata.Lease{Name: name, Holder: holder}
	ok := true
	err := d.write(ctx, func(s *session) error {
		now := d.millis()
		l.Expires = now.Add(ttl)
		err := s.row(`INSERT INTO leases (name, holder, token, expires) VALUES (?, ?, 1, ?) ON CONFLICT (name) DO UPDATE SET
			holder = excluded.holder, token = token + 1, expires = excluded.expires WHERE expires <= ? RETURNING token`,
			name, holder, int64(l.Expires), int64(now)).Scan(&l.Token)
		if errors.Is(err, sql.ErrNoRows) {
			ok = false
			return nil
		}
		return failure(err)
	}, nil)
	if err != nil || !ok {
		return metadata.Lease{}, false, err
	}
	return l, true, nil
}

// RenewLease implements metadata.LeaseDriver.
func (d *Driver) RenewLease(ctx context.Context, l metadata.Lease, ttl time.Duration) (metadata.Lease, error) {
	err := d.write(ctx, func(s *session) error {
		now := d.millis()
		n, err := s.exec("UPDATE leases SET expires = ? WHERE name = ? AND token = ? AND expires > ?",
			int64(now.Add(ttl)), l.Name, l.Token, int64(now))
		if err == nil && n == 0 {
			err = fmt.Errorf("%w: lease %s", metadata.ErrFenced, l.Name)
		}
		l.Expires = now.Add(ttl)
		return err
	}, nil)
	return l, err
}

// ReleaseLease implements metadata.LeaseDriver. The row stays, so that the token goes on rising.
func (d *Driver) ReleaseLease(ctx context.Context, l metadata.Lease) error {
	_, err := d.change(ctx, "UPDATE leases SET expires = 0 WHERE name = ? AND token = ?", l.Name, l.Token)
	return err
}

// change runs one statement in a transaction of its own and gives how many rows it changed.
func (d *Driver) change(ctx context.Context, query string, args ...any) (int, error) {
	var n int64
	err := d.write(ctx, func(s *session) (err error) {
		n, err = s.exec(query, args...)
		return err
	}, nil)
	return int(n), err
}

// Backlog implements metadata.Compaction.
func (d *Driver) Backlog(ctx context.Context, after metadata.BlockID, limit int) ([]metadata.BacklogRow, error) {
	var found []metadata.BacklogRow
	err := d.read(ctx, func(s *session) error {
		err := s.each("SELECT "+blockColumns+" FROM blocks WHERE block > ? ORDER BY block LIMIT ?", []any{int64(after), limit},
			func(rows *sql.Rows) error {
				var b metadata.BacklogRow
				err := scanBlock(rows, &b.Row)
				found = append(found, b)
				return err
			})
		for i := range found {
			if err == nil {
				err = s.backlog(&found[i])
			}
		}
		return err
	})
	for i := range found {
		found[i].Now = d.millis()
	}
	return found, err
}

// one reads one row, or leaves what it scans to alone.
func (s *session) one(query string, args []any, to ...any) error {
	err := s.row(query, args...).Scan(to...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return failure(err)
}

func (s *session) backlog(b *metadata.BacklogRow) error {
	low, high := place(b.Row.ID, 0), place(b.Row.ID, maxSeq)
	var last, first, checkpoint int64
	var photo []byte
	err := errors.Join(
		s.one("SELECT place, time, photo FROM level0 WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1", []any{low, high},
			&last, &b.LastTime, &photo),
		s.one("SELECT place FROM level0 WHERE place BETWEEN ? AND ? ORDER BY place LIMIT 1", []any{low, high}, &first),
		s.one("SELECT time FROM level0 WHERE place > ? AND place <= ? ORDER BY place LIMIT 1",
			[]any{place(b.Row.ID, b.Row.MergedSeq), high}, &b.Oldest),
		s.one("SELECT place FROM checkpoints WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1", []any{low, high}, &checkpoint),
		s.one("SELECT released, merged_bytes FROM compaction WHERE block = ?", []any{int64(b.Row.ID)}, &b.Released, &b.MergedBytes),
	)
	b.Last, b.First, b.Checkpoint = seqOf(last), seqOf(first), seqOf(checkpoint)
	b.Photo = metadata.EmptyPhoto()
	if err == nil && photo != nil {
		if b.Corrupt = b.Photo.Decode(photo); b.Corrupt != nil {
			b.Corrupt, b.Photo = fmt.Errorf("row (%d, %d): %w", b.Row.ID, b.Last, b.Corrupt), metadata.EmptyPhoto()
		}
	}
	return err
}

// PlacesOf implements metadata.Compaction.
func (d *Driver) PlacesOf(ctx context.Context, blocks []metadata.BlockID) ([]metadata.PartitionRow, error) {
	var found []metadata.PartitionRow
	err := d.read(ctx, func(s *session) error {
		for _, id := range blocks {
			err := s.each("SELECT topic, idx, slot, created FROM partitions WHERE block = ? ORDER BY slot", []any{int64(id)},
				func(rows *sql.Rows) error {
					p := metadata.PartitionRow{Partition: metadata.Partition{Block: id}}
					var topic []byte
					if err := rows.Scan(&topic, &p.Index, &p.Slot, &p.Created); err != nil {
						return err
					}
					if copy(p.Topic[:], topic) != len(p.Topic) {
						return fmt.Errorf("%w: topic id of %d bytes", metadata.ErrCorrupt, len(topic))
					}
					found = append(found, p)
					return nil
				})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// LoadRows implements metadata.Compaction.
func (d *Driver) LoadRows(ctx context.Context, block metadata.BlockID, above metadata.Seq, limit int) ([]*metadata.Row, error) {
	var found []*metadata.Row
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT "+rowColumns+" FROM level0 WHERE place > ? AND place <= ? ORDER BY place LIMIT ?",
			[]any{place(block, above), place(block, maxSeq), limit}, func(rows *sql.Rows) error {
				r, err := scanRow(rows)
				found = append(found, r)
				return err
			})
	})
	return found, err
}

const runColumns = `block, slot, base, last, object, position, length, max_ts, running_max_ts, bytes, level, raw, object_size`

func scanRunTo(to *[]metadata.RunRow) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var r metadata.RunRow
		err := rows.Scan(&r.Block, &r.Slot, &r.Base, &r.Last, &r.Object, &r.Position, &r.Length, &r.MaxTS, &r.RunningMaxTS,
			&r.Bytes, &r.Level, &r.Raw, &r.ObjectSize)
		*to = append(*to, r)
		return err
	}
}

// LoadRuns implements metadata.Compaction.
func (d *Driver) LoadRuns(ctx context.Context, block metadata.BlockID, slot metadata.Slot, base metadata.Offset, limit int) ([]metadata.RunRow, error) {
	var found []metadata.RunRow
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT "+runColumns+" FROM runs WHERE block = ? AND (slot, base) >= (?, ?) ORDER BY slot, base LIMIT ?",
			[]any{int64(block), int64(slot), int64(base), limit}, scanRunTo(&found))
	})
	return found, err
}

// TailRuns implements metadata.Compaction.
func (d *Driver) TailRuns(ctx context.Context, block metadata.BlockID, perSlot int) ([]metadata.RunRow, error) {
	var found []metadata.RunRow
	err := d.read(ctx, func(s *session) error {
		for slot := range metadata.SlotsPerBlock {
			from := len(found)
			err := s.each("SELECT "+runColumns+" FROM runs WHERE block = ? AND slot = ? ORDER BY base DESC LIMIT ?",
				[]any{int64(block), slot, perSlot}, scanRunTo(&found))
			if err != nil {
				return err
			}
			slices.Reverse(found[from:])
		}
		return nil
	})
	return found, err
}

// RegisterObjects implements metadata.Compaction.
func (d *Driver) RegisterObjects(ctx context.Context, objects []metadata.ObjectRow) error {
	return d.write(ctx, func(s *session) error {
		for i := range objects {
			_, err := s.exec("INSERT INTO objects (key, size, refs, state, changed) VALUES (?, ?, 0, 0, ?)",
				string(objects[i].Key), objects[i].Size, int64(d.millis()))
			if err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// Swap implements metadata.Compaction.
func (d *Driver) Swap(ctx context.Context, x metadata.SwapSave) error {
	return d.write(ctx, func(s *session) error { return s.swap(&x, d.millis()) }, nil)
}

func (s *session) swap(x *metadata.SwapSave, now metadata.Millis) error {
	if err := s.expect("lease", 1, "UPDATE leases SET expires = expires WHERE name = ? AND token = ? AND expires > ?",
		x.Lease.Name, x.Lease.Token, int64(now)); err != nil {
		return err
	}
	if x.To > x.From {
		err := s.expect("merged seq", 1, "UPDATE blocks SET merged_seq = ?, version = version + 1 WHERE block = ? AND merged_seq = ?",
			int64(x.To), int64(x.Block), int64(x.From))
		if err != nil {
			return err
		}
		_, err = s.exec(`INSERT INTO compaction (block, released, merged_bytes) VALUES (?, 0, ?)
			ON CONFLICT (block) DO UPDATE SET merged_bytes = excluded.merged_bytes`, int64(x.Block), x.MergedBytes)
		if err != nil {
			return err
		}
	}
	for i := range x.Remove {
		r := &x.Remove[i]
		err := s.expect("runs", 1, "DELETE FROM runs WHERE block = ? AND slot = ? AND base = ? AND object = ?",
			int64(x.Block), int64(r.Slot), int64(r.Base), string(r.Object))
		if err != nil {
			return err
		}
	}
	add, remove := x.Refs()
	for key, n := range add {
		changed, err := s.exec("UPDATE objects SET refs = refs + ?, state = 1, changed = ? WHERE key = ? AND state IN (0, 1)",
			n, int64(now), string(key))
		if err != nil {
			return err
		}
		if changed == 0 {
			return fmt.Errorf("%w: %s", metadata.ErrCondemned, key)
		}
	}
	for i := range x.Add {
		r := &x.Add[i]
		_, err := s.exec("INSERT INTO runs ("+runColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			int64(r.Block), int64(r.Slot), int64(r.Base), int64(r.Last), string(r.Object), r.Position, r.Length, int64(r.MaxTS),
			int64(r.RunningMaxTS), r.Bytes, r.Level, r.Raw, r.ObjectSize)
		if err != nil {
			return err
		}
	}
	if err := s.unref(remove, now); err != nil {
		return err
	}
	if x.Cleaned != nil {
		return s.saveCleaned(x.Cleaned, now)
	}
	return nil
}

// expect runs a statement that must change so many rows, or else what was planned is not so any more.
func (s *session) expect(what string, rows int64, query string, args ...any) error {
	n, err := s.exec(query, args...)
	if err == nil && n != rows {
		err = fmt.Errorf("%w: %s", metadata.ErrFenced, what)
	}
	return err
}

// unref takes references back from objects. What nothing refers to is garbage.
func (s *session) unref(keys map[metadata.ObjectKey]int, now metadata.Millis) error {
	for key, n := range keys {
		_, err := s.exec(`UPDATE objects SET refs = max(refs - ?, 0),
			state = CASE WHEN refs <= ? AND state <> 3 THEN 2 ELSE state END,
			changed = ? WHERE key = ? AND refs > 0`, n, n, int64(now), string(key))
		if err != nil {
			return err
		}
	}
	return nil
}

// ReleaseRows implements metadata.Compaction.
func (d *Driver) ReleaseRows(ctx context.Context, block metadata.BlockID, limit int) (int, error) {
	n := 0
	var freed int64
	err := d.write(ctx, func(s *session) (err error) {
		n, freed, err = s.release(block, limit, d.millis())
		return err
	}, func() { d.inlineChanged(-freed) })
	return n, err
}

func (s *session) release(block metadata.BlockID, limit int, now metadata.Millis) (n int, freed int64, err error) {
	var merged, released int64
	err = errors.Join(
		s.one("SELECT merged_seq FROM blocks WHERE block = ?", []any{int64(block)}, &merged),
		s.one("SELECT released FROM compaction WHERE block = ?", []any{int64(block)}, &released),
	)
	if err != nil {
		return 0, 0, err
	}
	objects := map[metadata.ObjectKey]int{}
	var flushes []metadata.FlushID
	err = s.each("SELECT place, flush, object FROM level0 WHERE place > ? AND place <= ? ORDER BY place LIMIT ?",
		[]any{place(block, metadata.Seq(released)), place(block, metadata.Seq(merged)), limit}, func(rows *sql.Rows) error {
			var at int64
			var flush []byte
			var object string
			if err := rows.Scan(&at, &flush, &object); err != nil {
				return err
			}
			n++
			released = int64(seqOf(at))
			if object != "" {
				objects[metadata.ObjectKey(object)]++
				return nil
			}
			var id metadata.FlushID
			copy(id[:], flush)
			flushes = append(flushes, id)
			return nil
		})
	if err != nil {
		return 0, 0, err
	}
	if n > 0 {
		_, err := s.exec(`INSERT INTO compaction (block, released, merged_bytes) VALUES (?, ?, 0)
			ON CONFLICT (block) DO UPDATE SET released = excluded.released`, int64(block), released)
		if err != nil {
			return 0, 0, err
		}
		if err := s.unref(objects, now); err != nil {
			return 0, 0, err
		}
		if _, freed, err = s.dropPayloads(flushes); err != nil {
			return 0, 0, err
		}
	}
	_, err = s.exec(`DELETE FROM level0 WHERE place >= ? AND place <= ?
		AND place < (SELECT max(place) FROM level0 WHERE place BETWEEN ? AND ?)`,
		place(block, 0), place(block, metadata.Seq(released)), place(block, 0), place(block, maxSeq))
	return n, freed, err
}

// dropPayloads deletes those inline payloads that no unreleased row refers to.
func (s *session) dropPayloads(flushes []metadata.FlushID) (n int, freed int64, err error) {
	for _, id := range flushes {
		var size int64 = -1
		err := s.one("DELETE FROM inline WHERE flush = ? AND NOT EXISTS ("+unreleasedSQL+") RETURNING size", []any{id[:]}, &size)
		if err != nil {
			return 0, 0, err
		}
		if size >= 0 {
			n++
			freed += size
		}
	}
	return n, freed, nil
}

// Cleaned implements metadata.Compaction.
func (d *Driver) Cleaned(ctx context.Context, block metadata.BlockID) ([]metadata.CleanedRow, error) {
	var found []metadata.CleanedRow
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT slot, up_to, bytes, at, horizon FROM cleaned WHERE block = ? ORDER BY slot", []any{int64(block)},
			func(rows *sql.Rows) error {
				c := metadata.CleanedRow{Block: block}
				err := rows.Scan(&c.Slot, &c.UpTo, &c.Bytes, &c.At, &c.Horizon)
				found = append(found, c)
				return err
			})
	})
	return found, err
}

// SaveCleaned implements metadata.Compaction.
func (d *Driver) SaveCleaned(ctx context.Context, row metadata.CleanedRow) error {
	return d.write(ctx, func(s *session) error { return s.saveCleaned(&row, d.millis()) }, nil)
}

func (s *session) saveCleaned(c *metadata.CleanedRow, now metadata.Millis) error {
	_, err := s.exec(`INSERT INTO cleaned (block, slot, up_to, bytes, at, horizon) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (block, slot) DO UPDATE SET up_to = excluded.up_to, bytes = excluded.bytes, at = excluded.at, horizon = excluded.horizon`,
		int64(c.Block), int64(c.Slot), int64(c.UpTo), c.Bytes, int64(now), int64(c.Horizon))
	return err
}
