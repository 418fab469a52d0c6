package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/skeinio/skein/metadata"
)

// SaveCheckpoint implements metadata.Driver.
func (d *Driver) SaveCheckpoint(ctx context.Context, block metadata.BlockID, seq metadata.Seq, state []byte) error {
	// The newest before this one stays: a reader may have begun from it.
	_, err := d.reads.Exec(ctx, `
WITH saved AS (
	INSERT INTO checkpoints (block, seq, state)
	SELECT $1, $2, $3
	WHERE NOT EXISTS (SELECT FROM checkpoints WHERE block = $1 AND seq >= $2)
	ON CONFLICT (block, seq) DO NOTHING
	RETURNING block
)
DELETE FROM checkpoints c USING saved s
WHERE c.block = s.block AND c.seq < (SELECT max(o.seq) FROM checkpoints o WHERE o.block = $1 AND o.seq < $2)`,
		int64(block), int64(seq), state)
	if err != nil {
		return fmt.Errorf("save checkpoint (%d, %d): %w", block, seq, unavailable(err))
	}
	return nil
}

// AllocateProducerIDs implements metadata.Driver.
func (d *Driver) AllocateProducerIDs(ctx context.Context, count int) (metadata.ProducerRange, error) {
	if count < 1 {
		return metadata.ProducerRange{}, fmt.Errorf("allocate %d producer ids: want at least 1", count)
	}
	var r metadata.ProducerRange
	err := d.commits.QueryRow(ctx, `
WITH n AS (UPDATE catalogue SET next_producer = next_producer + $1::int8 RETURNING next_producer - $1::int8 AS first)
INSERT INTO producer_ids (first, count, time) SELECT n.first, $1::int8, skein_now() FROM n
RETURNING first, count, time`, int64(count)).Scan((*int64)(&r.First), &r.Count, (*int64)(&r.At))
	if err != nil {
		return r, fmt.Errorf("allocate producer ids: %w", unavailable(err))
	}
	return r, nil
}

// ProducerRangeOf implements metadata.Driver.
func (d *Driver) ProducerRangeOf(ctx context.Context, ids []metadata.ProducerID) ([]metadata.ProducerRange, error) {
	list := make([]int64, len(ids))
	for i, id := range ids {
		list[i] = int64(id)
	}
	rows, err := d.reads.Query(ctx, `
SELECT DISTINCT r.first, r.count, r.time
FROM unnest($1::int8[]) AS u (id)
CROSS JOIN LATERAL (SELECT * FROM producer_ids p WHERE p.first <= u.id ORDER BY p.first DESC LIMIT 1) r
WHERE u.id < r.first + r.count ORDER BY r.first`, list)
	if err != nil {
		return nil, fmt.Errorf("look up producer ids: %w", unavailable(err))
	}
	defer rows.Close()
	var ranges []metadata.ProducerRange
	for rows.Next() {
		var r metadata.ProducerRange
		if err := rows.Scan((*int64)(&r.First), &r.Count, (*int64)(&r.At)); err != nil {
			return nil, fmt.Errorf("look up producer ids: %w", unavailable(err))
		}
		ranges = append(ranges, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look up producer ids: %w", unavailable(err))
	}
	return ranges, nil
}

// Now implements metadata.Driver.
func (d *Driver) Now(ctx context.Context) (metadata.Millis, error) {
	var now int64
	if err := d.reads.QueryRow(ctx, "SELECT skein_now()").Scan(&now); err != nil {
		return 0, fmt.Errorf("read the database's clock: %w", unavailable(err))
	}
	return metadata.Millis(now), nil
}

// maxResidentRows bounds the index entries that InlineResident reads; of more payloads it gives an estimate.
const maxResidentRows = 100_000

// InlineResident implements metadata.Driver. Up to maxResidentRows payloads are counted in the index; beyond that their
// mean is multiplied by the planner's estimate of rows.
func (d *Driver) InlineResident(ctx context.Context) (int64, error) {
	var size int64
	err := d.reads.QueryRow(ctx, `
SELECT CASE WHEN x.rows < $1 THEN x.size
	ELSE greatest(x.size, (x.size::float8 / x.rows * (SELECT reltuples FROM pg_class WHERE oid = 'inline'::regclass))::int8) END
FROM (SELECT count(*) AS rows, coalesce(sum(size), 0)::int8 AS size
	FROM (SELECT size FROM inline ORDER BY flush LIMIT $1::int8) i) x`, int64(maxResidentRows)).Scan(&size)
	if err != nil {
		return 0, fmt.Errorf("read the size of inline payloads: %w", unavailable(err))
	}
	return size, nil
}

// ExpireReceipts implements metadata.Driver.
func (d *Driver) ExpireReceipts(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	// SKIP LOCKED: agents that keep house at once share the work instead of waiting for each other.
	tag, err := d.reads.Exec(ctx, `
DELETE FROM receipts WHERE flush = ANY (ARRAY(
	SELECT flush FROM receipts WHERE time < (SELECT skein_now()) - $1::int8 ORDER BY time LIMIT $2::int8 FOR UPDATE SKIP LOCKED))`,
		olderThan.Milliseconds(), int64(limit))
	if err != nil {
		return 0, fmt.Errorf("expire receipts: %w", unavailable(err))
	}
	return int(tag.RowsAffected()), nil
}

// ClusterID implements metadata.Driver.
func (d *Driver) ClusterID(ctx context.Context) (string, error) {
	var id string
	if err := d.reads.QueryRow(ctx, "SELECT cluster_id FROM catalogue").Scan(&id); err != nil {
		return "", fmt.Errorf("read the cluster id: %w", unavailable(err))
	}
	return id, nil
}
