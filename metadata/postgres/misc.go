package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

// Statements of this file and load.go; the tests check their plans.
const (
	// The newest before this one stays: a reader may have begun from it.
	saveCheckpointSQL = `
WITH saved AS (
	INSERT INTO checkpoints (block, seq, state)
	SELECT $1, $2, $3
	WHERE NOT EXISTS (SELECT FROM checkpoints WHERE block = $1 AND seq >= $2)
	ON CONFLICT (block, seq) DO NOTHING
	RETURNING block
)
DELETE FROM checkpoints c USING saved s
WHERE c.block = s.block AND c.seq < (SELECT max(o.seq) FROM checkpoints o WHERE o.block = $1 AND o.seq < $2)`

	allocateSQL = `
WITH n AS (UPDATE catalogue SET next_producer = next_producer + $1::int8 RETURNING next_producer - $1::int8 AS first)
INSERT INTO producer_ids (first, count, time) SELECT n.first, $1::int8, skein_now() FROM n
RETURNING first, count, time`

	rangesSQL = `
SELECT DISTINCT r.first, r.count, r.time
FROM unnest($1::int8[]) AS u (id)
CROSS JOIN LATERAL (SELECT * FROM producer_ids p WHERE p.first <= u.id ORDER BY p.first DESC LIMIT 1) r
WHERE u.id < r.first + r.count ORDER BY r.first`

	residentSQL = `
SELECT CASE WHEN x.rows < $1 THEN x.size
	ELSE greatest(x.size, (x.size::float8 / x.rows * (SELECT reltuples FROM pg_class WHERE oid = 'inline'::regclass))::int8) END
FROM (SELECT count(*) AS rows, coalesce(sum(size), 0)::int8 AS size
	FROM (SELECT size FROM inline ORDER BY flush LIMIT $1::int8) i) x`

	// SKIP LOCKED: agents that keep house at once share the work instead of waiting for each other.
	expireSQL = `
DELETE FROM receipts WHERE flush = ANY (ARRAY(
	SELECT flush FROM receipts WHERE time < (SELECT skein_now()) - $1::int8 ORDER BY time LIMIT $2::int8 FOR UPDATE SKIP LOCKED))`

	loadInlineSQL = `
SELECT u.i, substr(p.payload, u.start, u.length)
FROM unnest($1::uuid[], $2::int4[], $3::int4[]) WITH ORDINALITY AS u (flush, start, length, i)
CROSS JOIN LATERAL (SELECT payload FROM inline l WHERE l.flush = u.flush LIMIT 1) p`
)

// row runs a statement that gives one row and scans it.
func (d *Driver) row(ctx context.Context, sql string, args []any, to ...any) error {
	return d.query(ctx, func(conn *pgxpool.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(to...) })
}

// SaveCheckpoint implements metadata.Driver.
func (d *Driver) SaveCheckpoint(ctx context.Context, block metadata.BlockID, seq metadata.Seq, state []byte) error {
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, saveCheckpointSQL, int64(block), int64(seq), state)
		return err
	})
	if err != nil {
		return fmt.Errorf("save checkpoint (%d, %d): %w", block, seq, err)
	}
	return nil
}

// AllocateProducerIDs implements metadata.Driver. When an answer is lost, its ids are nobody's.
func (d *Driver) AllocateProducerIDs(ctx context.Context, count int) (metadata.ProducerRange, error) {
	var r metadata.ProducerRange
	if count < 1 {
		return r, fmt.Errorf("allocate %d producer ids: want at least 1", count)
	}
	// On the commit pool, and again after a lock_timeout: the row is also the lock of catalogue changes.
	err := d.again(ctx, func(conn *pgxpool.Conn) error {
		guard := d.guard(ctx, conn.Conn().PgConn().PID())
		defer guard.stop()
		return conn.QueryRow(ctx, allocateSQL, int64(count)).Scan((*int64)(&r.First), &r.Count, (*int64)(&r.At))
	})
	if err != nil {
		return r, fmt.Errorf("allocate producer ids: %w", err)
	}
	return r, nil
}

// ProducerRangeOf implements metadata.Driver.
func (d *Driver) ProducerRangeOf(ctx context.Context, ids []metadata.ProducerID) ([]metadata.ProducerRange, error) {
	list := make([]int64, len(ids))
	for i, id := range ids {
		list[i] = int64(id)
	}
	var ranges []metadata.ProducerRange
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, rangesSQL, list)
		ranges, err = scanAll(rows, err, func(rows pgx.Rows, r *metadata.ProducerRange) error {
			return rows.Scan((*int64)(&r.First), &r.Count, (*int64)(&r.At))
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look up producer ids: %w", err)
	}
	return ranges, nil
}

// Now implements metadata.Driver.
func (d *Driver) Now(ctx context.Context) (metadata.Millis, error) {
	var now int64
	if err := d.row(ctx, "SELECT skein_now()", nil, &now); err != nil {
		return 0, fmt.Errorf("read the database's clock: %w", err)
	}
	return metadata.Millis(now), nil
}

// maxResidentRows bounds the index entries that InlineResident reads; of more payloads it gives an estimate.
const maxResidentRows = 100_000

// InlineResident implements metadata.Driver. Up to maxResidentRows payloads are counted in the index; beyond that their
// mean is multiplied by the planner's estimate of rows.
func (d *Driver) InlineResident(ctx context.Context) (int64, error) {
	var size int64
	if err := d.row(ctx, residentSQL, []any{int64(maxResidentRows)}, &size); err != nil {
		return 0, fmt.Errorf("read the size of inline payloads: %w", err)
	}
	return size, nil
}

// ExpireReceipts implements metadata.Driver.
func (d *Driver) ExpireReceipts(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	var n int64
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, expireSQL, olderThan.Milliseconds(), int64(limit))
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expire receipts: %w", err)
	}
	return int(n), nil
}

// ClusterID implements metadata.Driver.
func (d *Driver) ClusterID(ctx context.Context) (string, error) {
	var id string
	if err := d.row(ctx, "SELECT cluster_id FROM catalogue", nil, &id); err != nil {
		return "", fmt.Errorf("read the cluster id: %w", err)
	}
	return id, nil
}
