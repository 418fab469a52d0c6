package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

var _ metadata.Compaction = (*Driver)(nil)

// Statements of the compactor. What changes rows in several steps is a function of the schema: one round trip, and no
// transaction that is open while this process is not looking.
const (
	acquireLeaseSQL = `
INSERT INTO leases AS l (name, holder, token, expires) VALUES ($1, $2, 1, skein_now() + $3::int8)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = l.token + 1, expires = excluded.expires
WHERE l.expires <= skein_now()
RETURNING token, expires`

	renewLeaseSQL = `
UPDATE leases SET expires = skein_now() + $3::int8 WHERE name = $1 AND token = $2 AND expires > skein_now()
RETURNING expires`

	// The row stays, so that the token goes on rising.
	releaseLeaseSQL = `UPDATE leases SET expires = 0 WHERE name = $1 AND token = $2`

	backlogSQL = `
SELECT b.id, b.version, b.log_start, b.deleted, b.config_epoch, b.merged_seq, b.used, b.shared, skein_now(),
	coalesce(n.seq, 0), coalesce(n.time, 0), n.photo, coalesce(f.seq, 0), coalesce(u.time, 0), coalesce(p.seq, 0),
	coalesce(c.released, 0), coalesce(c.merged_bytes, 0)
FROM (SELECT * FROM blocks WHERE id > $1 ORDER BY id LIMIT $2) b
LEFT JOIN LATERAL (SELECT seq, time, photo FROM level0 l WHERE l.block = b.id ORDER BY l.seq DESC LIMIT 1) n ON true
LEFT JOIN LATERAL (SELECT time FROM level0 l WHERE l.block = b.id AND l.seq > b.merged_seq ORDER BY l.seq LIMIT 1) u ON true
LEFT JOIN LATERAL (SELECT seq FROM checkpoints k WHERE k.block = b.id ORDER BY k.seq DESC LIMIT 1) p ON true
LEFT JOIN LATERAL (SELECT released, merged_bytes FROM compaction x WHERE x.block = b.id LIMIT 1) c ON true
-- What is below the rows released last is gone.
LEFT JOIN LATERAL (SELECT seq FROM level0 l WHERE l.block = b.id AND l.seq >= coalesce(c.released, 0) ORDER BY l.seq LIMIT 1) f ON true
ORDER BY b.id`

	rowsAboveSQL = `
SELECT seq, time, flush, object, touched, photo FROM level0 WHERE block = $1 AND seq > $2 ORDER BY seq LIMIT $3`

	runColumns = `block, slot, base, last, object, position, length, max_ts, running_max_ts, bytes, level, raw, object_size`

	loadRunsSQL = `
SELECT ` + runColumns + ` FROM runs WHERE block = $1 AND (slot, base) >= ($2::int2, $3::int8) ORDER BY slot, base LIMIT $4`

	tailRunsSQL = `
SELECT r.* FROM generate_series(0, 63) AS s (slot)
CROSS JOIN LATERAL (
	SELECT ` + runColumns + ` FROM runs WHERE block = $1 AND slot = s.slot::int2 ORDER BY base DESC LIMIT $2) r
ORDER BY r.slot, r.base`
)

// AcquireLease implements metadata.LeaseDriver.
func (d *Driver) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (metadata.Lease, bool, error) {
	l := metadata.Lease{Name: name, Holder: holder}
	err := d.row(ctx, acquireLeaseSQL, []any{name, holder, ttl.Milliseconds()}, &l.Token, (*int64)(&l.Expires))
	if errors.Is(err, pgx.ErrNoRows) {
		return metadata.Lease{}, false, nil
	}
	if err != nil {
		return metadata.Lease{}, false, fmt.Errorf("acquire lease %s: %w", name, err)
	}
	return l, true, nil
}

// RenewLease implements metadata.LeaseDriver.
func (d *Driver) RenewLease(ctx context.Context, l metadata.Lease, ttl time.Duration) (metadata.Lease, error) {
	err := d.row(ctx, renewLeaseSQL, []any{l.Name, l.Token, ttl.Milliseconds()}, (*int64)(&l.Expires))
	if errors.Is(err, pgx.ErrNoRows) {
		return l, fmt.Errorf("%w: lease %s", metadata.ErrFenced, l.Name)
	}
	if err != nil {
		return l, fmt.Errorf("renew lease %s: %w", l.Name, err)
	}
	return l, nil
}

// ReleaseLease implements metadata.LeaseDriver.
func (d *Driver) ReleaseLease(ctx context.Context, l metadata.Lease) error {
	_, err := d.execute(ctx, "release lease "+l.Name, releaseLeaseSQL, l.Name, l.Token)
	return err
}

// execute runs a statement that does no harm when it is run twice; it gives the rows it changed.
func (d *Driver) execute(ctx context.Context, what, sql string, args ...any) (int, error) {
	var n int64
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, sql, args...)
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return int(n), nil
}

// count runs a function of the schema that gives a number.
func (d *Driver) count(ctx context.Context, what, sql string, args ...any) (int, error) {
	var n int
	if err := d.row(ctx, sql, args, &n); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return n, nil
}

// list runs a query and collects its rows.
func list[T any](ctx context.Context, d *Driver, what, sql string, scan func(pgx.Rows, *T) error, args ...any) ([]T, error) {
	var found []T
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, sql, args...)
		found, err = scanAll(rows, err, scan)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return found, nil
}

// Backlog implements metadata.Compaction.
func (d *Driver) Backlog(ctx context.Context, after metadata.BlockID, limit int) ([]metadata.BacklogRow, error) {
	return list(ctx, d, "read the backlog", backlogSQL, scanBacklog, int64(after), limit)
}

func scanBacklog(rows pgx.Rows, b *metadata.BacklogRow) error {
	var deleted int64
	var starts, photo []byte
	err := rows.Scan((*int64)(&b.Row.ID), &b.Row.Version, &starts, &deleted, (*int64)(&b.Row.ConfigEpoch),
		(*int64)(&b.Row.MergedSeq), &b.Row.Used, &b.Row.Shared, (*int64)(&b.Now), (*int64)(&b.Last), (*int64)(&b.LastTime), &photo,
		(*int64)(&b.First), (*int64)(&b.Oldest), (*int64)(&b.Checkpoint), (*int64)(&b.Released), &b.MergedBytes)
	if err != nil {
		return err
	}
	b.Row.Deleted = uint64(deleted)
	if b.Photo = metadata.EmptyPhoto(); photo != nil {
		if err := b.Photo.Decode(photo); err != nil {
			b.Corrupt, b.Photo = fmt.Errorf("row (%d, %d): %w", b.Row.ID, b.Last, err), metadata.EmptyPhoto()
		}
	}
	return decodeLogStarts(starts, &b.Row.LogStart)
}

func blockIDs(blocks []metadata.BlockID) []int64 {
	ids := make([]int64, len(blocks))
	for i, b := range blocks {
		ids[i] = int64(b)
	}
	return ids
}

// PlacesOf implements metadata.Compaction.
func (d *Driver) PlacesOf(ctx context.Context, blocks []metadata.BlockID) ([]metadata.PartitionRow, error) {
	return list(ctx, d, "load partitions of blocks", `SELECT topic, idx, block, slot, created FROM partitions
		WHERE block = ANY ($1::int8[]) ORDER BY block, slot`, scanPartition, blockIDs(blocks))
}

// LoadRows implements metadata.Compaction.
func (d *Driver) LoadRows(ctx context.Context, block metadata.BlockID, above metadata.Seq, limit int) ([]*metadata.Row, error) {
	return list(ctx, d, "load level0 rows", rowsAboveSQL, func(rows pgx.Rows, to **metadata.Row) error {
		r := &metadata.Row{Block: block}
		var object *string
		var touched, photo []byte
		err := rows.Scan((*int64)(&r.Seq), (*int64)(&r.Time), (*[16]byte)(&r.Flush), &object, &touched, &photo)
		if err != nil {
			return err
		}
		if object != nil {
			r.Object = metadata.ObjectKey(*object)
		}
		if r.Touched, err = metadata.DecodeTouched(touched); err == nil {
			err = r.Photo.Decode(photo)
		}
		if err != nil {
			return fmt.Errorf("row (%d, %d): %w", block, r.Seq, err)
		}
		*to = r
		return nil
	}, int64(block), int64(above), limit)
}

func scanRun(rows pgx.Rows, r *metadata.RunRow) error {
	var slot int16
	err := rows.Scan((*int64)(&r.Block), &slot, (*int64)(&r.Base), (*int64)(&r.Last), (*string)(&r.Object), &r.Position, &r.Length,
		(*int64)(&r.MaxTS), (*int64)(&r.RunningMaxTS), &r.Bytes, &r.Level, &r.Raw, &r.ObjectSize)
	r.Slot = metadata.Slot(slot)
	return err
}

// LoadRuns implements metadata.Compaction.
func (d *Driver) LoadRuns(ctx context.Context, block metadata.BlockID, slot metadata.Slot, base metadata.Offset, limit int) ([]metadata.RunRow, error) {
	return list(ctx, d, "load runs", loadRunsSQL, scanRun, int64(block), int16(slot), int64(base), limit)
}

// TailRuns implements metadata.Compaction.
func (d *Driver) TailRuns(ctx context.Context, block metadata.BlockID, perSlot int) ([]metadata.RunRow, error) {
	return list(ctx, d, "load the newest runs", tailRunsSQL, scanRun, int64(block), perSlot)
}

// RegisterObjects implements metadata.Compaction. It is not tried again: a key that is there fails it, its own too.
func (d *Driver) RegisterObjects(ctx context.Context, objects []metadata.ObjectRow) error {
	keys, sizes := make([]string, len(objects)), make([]int64, len(objects))
	for i := range objects {
		keys[i], sizes[i] = string(objects[i].Key), objects[i].Size
	}
	return d.once(ctx, "register objects", func(b *pgx.Batch) {
		b.Queue(`INSERT INTO objects (key, size, refs, state, time)
			SELECT u.key, u.size, 0, 0, skein_now() FROM unnest($1::text[], $2::int8[]) AS u (key, size) ORDER BY u.key`, keys, sizes)
	})
}

// once sends statements as one implicit transaction in one round trip. When its answer is lost the outcome is unknown.
func (d *Driver) once(ctx context.Context, what string, queue func(*pgx.Batch)) error {
	conn, err := acquire(ctx, d.reads)
	if err != nil {
		return err
	}
	defer conn.Release()
	b := &pgx.Batch{}
	queue(b)
	localOnly(conn.Conn().PgConn())
	err = conn.SendBatch(ctx, b).Close()
	switch {
	case err == nil && localOnly(conn.Conn().PgConn()):
		return fmt.Errorf("%s: %w: %w", what, metadata.ErrUnknownOutcome, errLocalOnly)
	case err == nil:
		return nil
	case refused(err):
		return fmt.Errorf("%s: %w", what, unavailable(err))
	}
	return fmt.Errorf("%s: %w: %w", what, metadata.ErrUnknownOutcome, err)
}

// Swap implements metadata.Compaction: one round trip, all or nothing.
func (d *Driver) Swap(ctx context.Context, s metadata.SwapSave) error {
	return d.once(ctx, fmt.Sprintf("swap of block %d", s.Block), func(b *pgx.Batch) { queueSwap(b, &s) })
}

func queueSwap(b *pgx.Batch, s *metadata.SwapSave) {
	add, remove := s.Refs()
	b.Queue(`SELECT skein_require((SELECT true FROM leases WHERE name = $1 AND token = $2 AND expires > skein_now() FOR UPDATE), 'lease')`,
		s.Lease.Name, s.Lease.Token)
	if s.To > s.From {
		b.Queue(`WITH u AS (UPDATE blocks SET merged_seq = $3, version = version + 1 WHERE id = $1 AND merged_seq = $2 RETURNING 1)
			SELECT skein_require(EXISTS (SELECT FROM u), 'merged seq')`, int64(s.Block), int64(s.From), int64(s.To))
	}
	b.Queue("SELECT skein_lock_compaction(ARRAY[$1::int8])", int64(s.Block))
	if s.To > s.From {
		b.Queue("UPDATE compaction SET merged_bytes = $2 WHERE block = $1", int64(s.Block), s.MergedBytes)
	}
	if n := len(s.Remove); n > 0 {
		slots, bases, objects := make([]int16, n), make([]int64, n), make([]string, n)
		for i := range s.Remove {
			slots[i], bases[i], objects[i] = int16(s.Remove[i].Slot), int64(s.Remove[i].Base), string(s.Remove[i].Object)
		}
		b.Queue(`WITH d AS (DELETE FROM runs r USING unnest($2::int2[], $3::int8[], $4::text[]) AS u (slot, base, object)
			WHERE r.block = $1 AND r.slot = u.slot AND r.base = u.base AND r.object = u.object RETURNING 1)
			SELECT skein_require((SELECT count(*) FROM d) = $5::int8, 'runs')`, int64(s.Block), slots, bases, objects, int64(n))
	}
	if len(add) > 0 {
		keys := slices.Sorted(maps.Keys(add))
		names, counts := make([]string, len(keys)), make([]int32, len(keys))
		for i, k := range keys {
			names[i], counts[i] = string(k), int32(add[k])
		}
		b.Queue("SELECT FROM objects WHERE key = ANY ($1::text[]) ORDER BY key FOR UPDATE", names)
		b.Queue(`WITH u AS (UPDATE objects o SET refs = o.refs + x.n, state = 1, time = skein_now()
				FROM unnest($1::text[], $2::int4[]) AS x (key, n) WHERE o.key = x.key AND o.state IN (0, 1) RETURNING 1)
			SELECT skein_condemned('named by a swap') WHERE (SELECT count(*) FROM u) <> $3::int8`, names, counts, int64(len(keys)))
	}
	queueRuns(b, s.Add)
	if len(remove) > 0 {
		var names []string
		for _, k := range slices.Sorted(maps.Keys(remove)) {
			for range remove[k] {
				names = append(names, string(k))
			}
		}
		b.Queue("SELECT skein_unref($1::text[])", names)
	}
	if s.Cleaned != nil {
		queueCleaned(b, s.Cleaned)
	}
}

func queueRuns(b *pgx.Batch, runs []metadata.RunRow) {
	for i := range runs {
		r := &runs[i]
		b.Queue("INSERT INTO runs ("+runColumns+") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
			int64(r.Block), int16(r.Slot), int64(r.Base), int64(r.Last), string(r.Object), r.Position, r.Length, int64(r.MaxTS),
			int64(r.RunningMaxTS), r.Bytes, r.Level, r.Raw, r.ObjectSize)
	}
}

func queueCleaned(b *pgx.Batch, c *metadata.CleanedRow) {
	b.Queue(`INSERT INTO cleaned (block, slot, up_to, bytes, at, horizon) VALUES ($1, $2, $3, $4, skein_now(), $5)
		ON CONFLICT (block, slot) DO UPDATE SET up_to = excluded.up_to, bytes = excluded.bytes, at = excluded.at, horizon = excluded.horizon`,
		int64(c.Block), int16(c.Slot), int64(c.UpTo), c.Bytes, int64(c.Horizon))
}

// ReleaseRows implements metadata.Compaction.
func (d *Driver) ReleaseRows(ctx context.Context, block metadata.BlockID, limit int) (int, error) {
	return d.count(ctx, fmt.Sprintf("release rows of block %d", block), "SELECT skein_release($1, $2)", int64(block), limit)
}

// Cleaned implements metadata.Compaction.
func (d *Driver) Cleaned(ctx context.Context, block metadata.BlockID) ([]metadata.CleanedRow, error) {
	return list(ctx, d, "read the progress of key compaction",
		"SELECT slot, up_to, bytes, at, horizon FROM cleaned WHERE block = $1 ORDER BY slot",
		func(rows pgx.Rows, c *metadata.CleanedRow) error {
			var slot int16
			err := rows.Scan(&slot, (*int64)(&c.UpTo), &c.Bytes, (*int64)(&c.At), (*int64)(&c.Horizon))
			c.Block, c.Slot = block, metadata.Slot(slot)
			return err
		}, int64(block))
}

// SaveCleaned implements metadata.Compaction.
func (d *Driver) SaveCleaned(ctx context.Context, row metadata.CleanedRow) error {
	return d.once(ctx, "note the progress of key compaction", func(b *pgx.Batch) { queueCleaned(b, &row) })
}
