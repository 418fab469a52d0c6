package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/metadata"
)

const (
	condemnSQL = `
WITH x AS (
	SELECT key FROM (
		(SELECT key FROM objects WHERE state = 2 ORDER BY time LIMIT $2)
		UNION ALL
		(SELECT key FROM objects WHERE state = 0 AND time < (SELECT skein_now()) - $1::int8 ORDER BY time LIMIT $2)) a
	ORDER BY key
), locked AS (
	SELECT o.key FROM objects o WHERE o.key IN (SELECT key FROM x) AND o.refs = 0 AND o.state IN (0, 2)
	ORDER BY o.key FOR UPDATE SKIP LOCKED)
UPDATE objects o SET state = 3, time = skein_now() FROM locked l WHERE o.key = l.key`

	condemnUnknownSQL = `
INSERT INTO objects (key, size, refs, state, time)
SELECT u.key, u.size, 0, 3, skein_now() FROM unnest($1::text[], $2::int8[]) AS u (key, size) ORDER BY u.key
ON CONFLICT (key) DO NOTHING RETURNING key`

	condemnedSQL = `
SELECT key, size FROM objects WHERE state = 3 AND refs >= 0 AND time < (SELECT skein_now()) - $1::int8 ORDER BY time LIMIT $2`

	objectsDeletedSQL = `UPDATE objects SET refs = -1, time = skein_now() WHERE key = ANY ($1::text[]) AND state = 3`

	oldCondemnedSQL = `
SELECT key FROM objects WHERE state = 3 AND refs < 0 AND time < (SELECT skein_now()) - $1::int8 ORDER BY time LIMIT $2`

	forgetObjectsSQL = `DELETE FROM objects WHERE key = ANY ($1::text[]) AND state = 3 AND refs < 0`

	gcColumns = `generation, halted, system, timeline,
	(SELECT system_identifier::text FROM pg_control_system()),
	('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::int8,
	(pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8`

	nextGCSQL = `
UPDATE gc SET generation = generation + 1, system = (SELECT system_identifier::text FROM pg_control_system()),
	timeline = ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::int8
RETURNING ` + gcColumns

	listInlineSQL = `
SELECT i.flush, i.size, EXISTS (SELECT FROM level0 l LEFT JOIN compaction c ON c.block = l.block
	WHERE l.flush = i.flush AND l.object IS NULL AND l.seq > coalesce(c.released, 0))
FROM (SELECT flush, size FROM inline WHERE flush > $1 ORDER BY flush LIMIT $2) i ORDER BY i.flush`

	countReferencesSQL = `
WITH named AS (
	SELECT l.object AS key, count(*) AS n FROM level0 l LEFT JOIN compaction c ON c.block = l.block
	WHERE l.object = ANY ($1::text[]) AND l.seq > coalesce(c.released, 0) GROUP BY 1
	UNION ALL
	SELECT r.object, count(*) FROM runs r WHERE r.object = ANY ($1::text[]) GROUP BY 1)
SELECT u.key, o.key IS NOT NULL, coalesce(o.size, 0), coalesce(o.refs, 0), coalesce(o.state, 0), coalesce(o.time, 0),
	coalesce((SELECT sum(x.n)::int FROM named x WHERE x.key = u.key), 0)
FROM unnest($1::text[]) WITH ORDINALITY AS u (key, i) LEFT JOIN objects o ON o.key = u.key ORDER BY u.i`

	expireProducersSQL = `
DELETE FROM producer_ids WHERE first = ANY (ARRAY(
	SELECT first FROM producer_ids ORDER BY first LIMIT $2::int8)) AND time < (SELECT skein_now()) - $1::int8`
)

func names(keys []metadata.ObjectKey) []string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = string(k)
	}
	return list
}

func scanKey(rows pgx.Rows, k *metadata.ObjectKey) error { return rows.Scan((*string)(k)) }

// Condemn implements metadata.Compaction.
func (d *Driver) Condemn(ctx context.Context, abandoned time.Duration, limit int) (int, error) {
	return d.execute(ctx, "condemn garbage", condemnSQL, abandoned.Milliseconds(), limit)
}

// CondemnUnknown implements metadata.Compaction.
func (d *Driver) CondemnUnknown(ctx context.Context, objects []metadata.ObjectRow) ([]metadata.ObjectKey, error) {
	keys, sizes := make([]string, len(objects)), make([]int64, len(objects))
	for i := range objects {
		keys[i], sizes[i] = string(objects[i].Key), objects[i].Size
	}
	return list(ctx, d, "condemn unknown objects", condemnUnknownSQL, scanKey, keys, sizes)
}

// Condemned implements metadata.Compaction.
func (d *Driver) Condemned(ctx context.Context, grace time.Duration, limit int) ([]metadata.ObjectRow, error) {
	return list(ctx, d, "read condemned keys", condemnedSQL, func(rows pgx.Rows, o *metadata.ObjectRow) error {
		o.State = metadata.ObjectCondemned
		return rows.Scan((*string)(&o.Key), &o.Size)
	}, grace.Milliseconds(), limit)
}

// ObjectsDeleted implements metadata.Compaction.
func (d *Driver) ObjectsDeleted(ctx context.Context, keys []metadata.ObjectKey) error {
	_, err := d.execute(ctx, "note deleted objects", objectsDeletedSQL, names(keys))
	return err
}

// OldCondemned implements metadata.Compaction.
func (d *Driver) OldCondemned(ctx context.Context, kept time.Duration, limit int) ([]metadata.ObjectKey, error) {
	return list(ctx, d, "read old condemned keys", oldCondemnedSQL, scanKey, kept.Milliseconds(), limit)
}

// ForgetObjects implements metadata.Compaction.
func (d *Driver) ForgetObjects(ctx context.Context, keys []metadata.ObjectKey) (int, error) {
	return d.execute(ctx, "forget condemned keys", forgetObjectsSQL, names(keys))
}

func (d *Driver) gc(ctx context.Context, sql string) (g metadata.GCState, err error) {
	err = d.row(ctx, sql, nil, &g.Generation, &g.Halted, &g.System, &g.Timeline, &g.NowSystem, &g.NowTimeline, &g.NowLSN)
	if err != nil {
		err = fmt.Errorf("state of garbage collection: %w", err)
	}
	return g, err
}

// GCState implements metadata.Compaction.
func (d *Driver) GCState(ctx context.Context) (metadata.GCState, error) {
	return d.gc(ctx, "SELECT "+gcColumns+" FROM gc")
}

// NextGC implements metadata.Compaction.
func (d *Driver) NextGC(ctx context.Context) (metadata.GCState, error) { return d.gc(ctx, nextGCSQL) }

// SetGC implements metadata.Compaction.
func (d *Driver) SetGC(ctx context.Context, g metadata.GCState) error {
	_, err := d.execute(ctx, "set the state of garbage collection",
		"UPDATE gc SET generation = greatest(generation, $1), halted = $2, system = $3, timeline = $4",
		g.Generation, g.Halted, g.System, g.Timeline)
	return err
}

// ListObjects implements metadata.Compaction.
func (d *Driver) ListObjects(ctx context.Context, after metadata.ObjectKey, limit int) ([]metadata.ObjectListing, error) {
	return list(ctx, d, "list objects", "SELECT key, size, refs, state, time FROM objects WHERE key > $1 ORDER BY key LIMIT $2",
		func(rows pgx.Rows, o *metadata.ObjectListing) error {
			var state int16
			err := rows.Scan((*string)(&o.Key), &o.Size, &o.Refs, &state, (*int64)(&o.Changed))
			o.State, o.Gone = metadata.ObjectState(state), o.Refs < 0
			o.Refs = max(o.Refs, 0)
			return err
		}, string(after), limit)
}

// ListInline implements metadata.Compaction.
func (d *Driver) ListInline(ctx context.Context, after metadata.FlushID, limit int) ([]metadata.InlineListing, error) {
	return list(ctx, d, "list inline payloads", listInlineSQL,
		func(rows pgx.Rows, x *metadata.InlineListing) error {
			return rows.Scan((*[16]byte)(&x.Flush), &x.Size, &x.Named)
		}, [16]byte(after), limit)
}

// CountReferences implements metadata.Compaction.
func (d *Driver) CountReferences(ctx context.Context, keys []metadata.ObjectKey) ([]metadata.ObjectCount, error) {
	return list(ctx, d, "count references", countReferencesSQL, func(rows pgx.Rows, o *metadata.ObjectCount) error {
		var state int16
		err := rows.Scan((*string)(&o.Key), &o.Known, &o.Size, &o.Refs, &state, (*int64)(&o.Changed), &o.Named)
		o.State, o.Gone = metadata.ObjectState(state), o.Refs < 0
		o.Refs = max(o.Refs, 0)
		return err
	}, names(keys))
}

// SetObject implements metadata.Compaction.
func (d *Driver) SetObject(ctx context.Context, was metadata.ObjectListing, refs int, state metadata.ObjectState) (bool, error) {
	n, err := d.execute(ctx, "correct object "+string(was.Key),
		"UPDATE objects SET refs = $5, state = $6, time = skein_now() WHERE key = $1 AND refs = $2 AND state = $3 AND time = $4",
		string(was.Key), was.Refs, int16(was.State), int64(was.Changed), refs, int16(state))
	return n > 0, err
}

// DropInlinePayloads implements metadata.Compaction.
func (d *Driver) DropInlinePayloads(ctx context.Context, flushes []metadata.FlushID) (int, error) {
	ids := make([][16]byte, len(flushes))
	for i, id := range flushes {
		ids[i] = id
	}
	return d.count(ctx, "drop inline payloads", "SELECT skein_drop_inline($1)", ids)
}

// ExpireProducerIDs implements metadata.Compaction.
func (d *Driver) ExpireProducerIDs(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	return d.execute(ctx, "expire producer ids", expireProducersSQL, olderThan.Milliseconds(), limit)
}
