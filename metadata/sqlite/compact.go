package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

var _ metadata.Compaction = (*Driver)(nil)

// AcquireLease implements metadata.Compaction.
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

// RenewLease implements metadata.Compaction.
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

// ReleaseLease implements metadata.Compaction. The row stays, so that the token goes on rising.
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
		err = b.Photo.Decode(photo)
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
			changed = CASE WHEN refs <= ? THEN ? ELSE changed END WHERE key = ? AND refs > 0`, n, n, n, int64(now), string(key))
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
		err := s.one(`DELETE FROM inline WHERE flush = ? AND NOT EXISTS (
			SELECT 1 FROM level0 l LEFT JOIN compaction c ON c.block = l.place >> 40
			WHERE l.flush = inline.flush AND l.object = '' AND (l.place & 1099511627775) > coalesce(c.released, 0))
			RETURNING size`, []any{id[:]}, &size)
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

// Condemn implements metadata.Compaction.
func (d *Driver) Condemn(ctx context.Context, abandoned time.Duration, limit int) (int, error) {
	now := d.millis()
	garbage, err := d.change(ctx, `UPDATE objects SET state = 3, changed = ? WHERE key IN (
		SELECT key FROM objects WHERE state = 2 ORDER BY changed LIMIT ?) AND refs = 0`, int64(now), limit)
	if err != nil {
		return 0, err
	}
	registered, err := d.change(ctx, `UPDATE objects SET state = 3, changed = ? WHERE key IN (
		SELECT key FROM objects WHERE state = 0 AND changed < ? ORDER BY changed LIMIT ?) AND refs = 0`,
		int64(now), int64(now.Add(-abandoned)), limit)
	return garbage + registered, err
}

// CondemnUnknown implements metadata.Compaction.
func (d *Driver) CondemnUnknown(ctx context.Context, objects []metadata.ObjectRow) ([]metadata.ObjectKey, error) {
	var unknown []metadata.ObjectKey
	err := d.write(ctx, func(s *session) error {
		unknown = nil
		for i := range objects {
			n, err := s.exec("INSERT INTO objects (key, size, refs, state, changed) VALUES (?, ?, 0, 3, ?) ON CONFLICT DO NOTHING",
				string(objects[i].Key), objects[i].Size, int64(d.millis()))
			if err != nil {
				return err
			}
			if n > 0 {
				unknown = append(unknown, objects[i].Key)
			}
		}
		return nil
	}, nil)
	return unknown, err
}

// Condemned implements metadata.Compaction.
func (d *Driver) Condemned(ctx context.Context, grace time.Duration, limit int) ([]metadata.ObjectRow, error) {
	var found []metadata.ObjectRow
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT key, size FROM objects WHERE state = 3 AND refs >= 0 AND changed < ? ORDER BY changed LIMIT ?",
			[]any{int64(d.millis().Add(-grace)), limit}, func(rows *sql.Rows) error {
				o := metadata.ObjectRow{State: metadata.ObjectCondemned}
				err := rows.Scan(&o.Key, &o.Size)
				found = append(found, o)
				return err
			})
	})
	return found, err
}

// forKeys runs a statement for a JSON list of keys, its first parameter.
func (d *Driver) forKeys(ctx context.Context, query string, keys []metadata.ObjectKey, more ...any) (int, error) {
	list, err := json.Marshal(keys)
	if err != nil {
		return 0, err
	}
	return d.change(ctx, query, append([]any{string(list)}, more...)...)
}

// ObjectsDeleted implements metadata.Compaction.
func (d *Driver) ObjectsDeleted(ctx context.Context, keys []metadata.ObjectKey) error {
	_, err := d.forKeys(ctx, "UPDATE objects SET refs = -1, changed = ?2 WHERE key IN (SELECT value FROM json_each(?1)) AND state = 3",
		keys, int64(d.millis()))
	return err
}

// OldCondemned implements metadata.Compaction.
func (d *Driver) OldCondemned(ctx context.Context, kept time.Duration, limit int) ([]metadata.ObjectKey, error) {
	var found []metadata.ObjectKey
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT key FROM objects WHERE state = 3 AND refs < 0 AND changed < ? ORDER BY changed LIMIT ?",
			[]any{int64(d.millis().Add(-kept)), limit}, func(rows *sql.Rows) error {
				var key string
				err := rows.Scan(&key)
				found = append(found, metadata.ObjectKey(key))
				return err
			})
	})
	return found, err
}

// ForgetObjects implements metadata.Compaction.
func (d *Driver) ForgetObjects(ctx context.Context, keys []metadata.ObjectKey) (int, error) {
	return d.forKeys(ctx, "DELETE FROM objects WHERE key IN (SELECT value FROM json_each(?)) AND state = 3 AND refs < 0", keys)
}

// GCState implements metadata.Compaction. A copied or restored file shows in its generation, which the bucket's marker is
// ahead of; its incarnation is the cluster id.
func (d *Driver) GCState(ctx context.Context) (g metadata.GCState, err error) {
	err = d.read(ctx, func(s *session) error { return s.gc(&g) })
	return g, err
}

func (s *session) gc(g *metadata.GCState) error {
	return failure(s.row("SELECT generation, halted, system, timeline, (SELECT cluster_id FROM cluster) FROM gc").
		Scan(&g.Generation, &g.Halted, &g.System, &g.Timeline, &g.NowSystem))
}

// NextGC implements metadata.Compaction.
func (d *Driver) NextGC(ctx context.Context) (g metadata.GCState, err error) {
	err = d.write(ctx, func(s *session) error {
		if _, err := s.exec("UPDATE gc SET generation = generation + 1, system = (SELECT cluster_id FROM cluster), timeline = 0"); err != nil {
			return err
		}
		return s.gc(&g)
	}, nil)
	return g, err
}

// SetGC implements metadata.Compaction.
func (d *Driver) SetGC(ctx context.Context, g metadata.GCState) error {
	_, err := d.change(ctx, "UPDATE gc SET generation = max(generation, ?), halted = ?, system = ?, timeline = ?",
		g.Generation, g.Halted, g.System, g.Timeline)
	return err
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

// ListObjects implements metadata.Compaction.
func (d *Driver) ListObjects(ctx context.Context, after metadata.ObjectKey, limit int) ([]metadata.ObjectListing, error) {
	var found []metadata.ObjectListing
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT key, size, refs, state, changed FROM objects WHERE key > ? ORDER BY key LIMIT ?",
			[]any{string(after), limit}, func(rows *sql.Rows) error {
				var o metadata.ObjectListing
				err := rows.Scan(&o.Key, &o.Size, &o.Refs, &o.State, &o.Changed)
				o.Gone, o.Refs = o.Refs < 0, max(o.Refs, 0)
				found = append(found, o)
				return err
			})
	})
	return found, err
}

// ListInline implements metadata.Compaction.
func (d *Driver) ListInline(ctx context.Context, after metadata.FlushID, limit int) ([]metadata.InlineListing, error) {
	var found []metadata.InlineListing
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT flush, size FROM inline WHERE flush > ? ORDER BY flush LIMIT ?", []any{after[:], limit},
			func(rows *sql.Rows) error {
				var x metadata.InlineListing
				var id []byte
				err := rows.Scan(&id, &x.Size)
				copy(x.Flush[:], id)
				found = append(found, x)
				return err
			})
	})
	return found, err
}

// SetObject implements metadata.Compaction.
func (d *Driver) SetObject(ctx context.Context, was, now metadata.ObjectRow) (bool, error) {
	n, err := d.change(ctx, "UPDATE objects SET refs = ?, state = ?, changed = ? WHERE key = ? AND refs = ? AND state = ?",
		now.Refs, int(now.State), int64(d.millis()), string(was.Key), was.Refs, int(was.State))
	return n > 0, err
}

// DropInlinePayloads implements metadata.Compaction.
func (d *Driver) DropInlinePayloads(ctx context.Context, flushes []metadata.FlushID) (int, error) {
	n := 0
	var freed int64
	err := d.write(ctx, func(s *session) (err error) {
		n, freed, err = s.dropPayloads(flushes)
		return err
	}, func() { d.inlineChanged(-freed) })
	return n, err
}

// ExpireProducerIDs implements metadata.Compaction.
func (d *Driver) ExpireProducerIDs(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	return d.change(ctx, "DELETE FROM producer_ids WHERE first IN (SELECT first FROM producer_ids ORDER BY first LIMIT ?) AND time < ?",
		limit, int64(d.millis().Add(-olderThan)))
}
