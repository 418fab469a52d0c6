package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/skeinio/skein/metadata"
)

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
		return s.each(`SELECT flush, size, EXISTS (`+unreleasedSQL+`) FROM inline WHERE flush > ? ORDER BY flush LIMIT ?`,
			[]any{after[:], limit}, func(rows *sql.Rows) error {
				var x metadata.InlineListing
				var id []byte
				err := rows.Scan(&id, &x.Size, &x.Named)
				copy(x.Flush[:], id)
				found = append(found, x)
				return err
			})
	})
	return found, err
}

// unreleasedSQL finds the rows that keep an inline payload.
const unreleasedSQL = `SELECT 1 FROM level0 l LEFT JOIN compaction c ON c.block = l.place >> 40
	WHERE l.flush = inline.flush AND l.object = '' AND (l.place & 1099511627775) > coalesce(c.released, 0)`

// CountReferences implements metadata.Compaction.
func (d *Driver) CountReferences(ctx context.Context, keys []metadata.ObjectKey) ([]metadata.ObjectCount, error) {
	list, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	var found []metadata.ObjectCount
	err = d.read(ctx, func(s *session) error {
		return s.each(`WITH u AS MATERIALIZED (SELECT key AS i, value AS key FROM json_each(?1)),
			named AS MATERIALIZED (
				SELECT l.object AS key, count(*) AS n FROM level0 l LEFT JOIN compaction c ON c.block = l.place >> 40
				WHERE l.object IN (SELECT key FROM u) AND (l.place & 1099511627775) > coalesce(c.released, 0) GROUP BY 1
				UNION ALL
				SELECT object, count(*) FROM runs WHERE object IN (SELECT key FROM u) GROUP BY 1)
			SELECT u.key, o.key IS NOT NULL, coalesce(o.size, 0), coalesce(o.refs, 0), coalesce(o.state, 0), coalesce(o.changed, 0),
				coalesce((SELECT sum(n) FROM named x WHERE x.key = u.key), 0)
			FROM u LEFT JOIN objects o ON o.key = u.key ORDER BY u.i`, []any{string(list)}, func(rows *sql.Rows) error {
			var o metadata.ObjectCount
			err := rows.Scan(&o.Key, &o.Known, &o.Size, &o.Refs, &o.State, &o.Changed, &o.Named)
			o.Gone, o.Refs = o.Refs < 0, max(o.Refs, 0)
			found = append(found, o)
			return err
		})
	})
	return found, err
}

// SetObject implements metadata.Compaction.
func (d *Driver) SetObject(ctx context.Context, was metadata.ObjectListing, refs int, state metadata.ObjectState) (bool, error) {
	n, err := d.change(ctx, "UPDATE objects SET refs = ?, state = ?, changed = ? WHERE key = ? AND refs = ? AND state = ? AND changed = ?",
		refs, int(state), int64(d.millis()), string(was.Key), was.Refs, int(was.State), int64(was.Changed))
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
