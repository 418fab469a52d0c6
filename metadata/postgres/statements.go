package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// statement is the name of a statement that every connection of the commit and read pools has prepared.
type statement string

const (
	stBegin       statement = "skein_begin"
	stCommit      statement = "skein_commit"
	stInline      statement = "skein_inline"
	stLock        statement = "skein_lock"
	stRows        statement = "skein_rows"
	stLoad        statement = "skein_load"
	stReceipts    statement = "skein_receipts"
	stAddRows     statement = "skein_add_rows"
	stAddReceipts statement = "skein_add_receipts"
	stAddObjects  statement = "skein_add_objects"
	stKeepObjects statement = "skein_keep_objects"
	stDropInline  statement = "skein_drop_inline"
	stLocate      statement = "skein_locate"
)

// Every lookup that follows an array of keys is a LATERAL subquery with ORDER BY or LIMIT: the planner cannot flatten
// it, so it stays one index probe for a key, however the tables' statistics look when the plan is made.
var statements = map[statement]string{
	// READ COMMITTED, so that what is read after the locks sees what the locks waited for.
	stBegin:  `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`,
	stCommit: `COMMIT`,

	stInline: `
INSERT INTO inline (flush, size, payload)
SELECT * FROM unnest($1::uuid[], $2::int4[], $3::bytea[])
ON CONFLICT (flush) DO NOTHING
RETURNING flush`,

	// A row that had to be waited for is given as it is then.
	stLock: `
SELECT id, version, log_start, deleted, config_epoch, merged_seq, used, shared
FROM blocks WHERE id = ANY ($1::int8[]) ORDER BY id FOR UPDATE`,

	// The photograph of the newest row is enough: the fold makes those before it, and this one shows that it did so right.
	stRows: `
SELECT k.block, r.seq, r.time, r.flush, r.object, r.touched, r.photo
FROM unnest($1::int8[], $2::int8[]) AS k (block, seq)
CROSS JOIN LATERAL (
	SELECT l.seq, l.time, l.flush, l.object, l.touched,
		CASE WHEN NOT EXISTS (SELECT FROM level0 n WHERE n.block = l.block AND n.seq = l.seq + 1) THEN l.photo END AS photo
	FROM level0 l WHERE l.block = k.block AND l.seq > k.seq ORDER BY l.seq) r`,

	// kind 0: the block's row; 1: the checkpoint that a cold block starts from; 2: level0 rows above.
	stLoad: `
WITH k AS MATERIALIZED (
	SELECT b.*, c.seq AS checkpoint, CASE WHEN u.seq >= 0 THEN u.seq ELSE coalesce(c.seq, 0) END AS known
	FROM unnest($1::int8[], $2::int8[]) AS u (block, seq)
	CROSS JOIN LATERAL (SELECT * FROM blocks WHERE id = u.block LIMIT 1) b
	LEFT JOIN LATERAL (
		SELECT p.seq FROM checkpoints p WHERE p.block = u.block AND u.seq < 0 ORDER BY p.seq DESC LIMIT 1) c ON true
)
SELECT 0::int2 AS kind, id AS block, version, log_start, deleted, config_epoch, merged_seq, used, shared,
	skein_now() AS seq_or_now, NULL::int8 AS time, NULL::uuid AS flush, NULL::text AS object, NULL::bytea AS touched, NULL::bytea AS photo
FROM k
UNION ALL
SELECT 1::int2, k.id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, k.checkpoint, NULL, NULL, NULL, c.state, NULL
FROM k CROSS JOIN LATERAL (SELECT p.state FROM checkpoints p WHERE p.block = k.id AND p.seq = k.checkpoint LIMIT 1) c
UNION ALL
SELECT 2::int2, k.id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, r.seq, r.time, r.flush, r.object, r.touched, r.photo
FROM k CROSS JOIN LATERAL (
	SELECT l.seq, l.time, l.flush, l.object, l.touched, l.photo
	FROM level0 l WHERE l.block = k.id AND l.seq > k.known ORDER BY l.seq) r`,

	// The clock is read after the locks were taken. The position in the log shows when a database went back in time.
	stReceipts: `
SELECT c.now, c.lsn, r.flush, r.data
FROM (SELECT skein_now() AS now, (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8 AS lsn OFFSET 0) c
LEFT JOIN receipts r ON r.flush = ANY ($1::uuid[])`,

	stAddRows: `
INSERT INTO level0 (block, seq, time, flush, object, touched, photo)
SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::uuid[], $5::text[], $6::bytea[], $7::bytea[])`,

	stAddReceipts: `
INSERT INTO receipts (time, flush, data)
SELECT $1::int8, u.* FROM unnest($2::uuid[], $3::bytea[]) u`,

	stAddObjects: `
INSERT INTO objects AS o (time, key, size, refs, state)
SELECT $1::int8, u.* FROM unnest($2::text[], $3::int8[], $4::int4[], $5::int4[]) u
ON CONFLICT (key) DO UPDATE SET refs = o.refs + excluded.refs, size = excluded.size, time = excluded.time,
	state = CASE WHEN o.state = 3 THEN skein_condemned(o.key) ELSE excluded.state END`,

	stKeepObjects: `
INSERT INTO objects (time, key, size, refs, state)
SELECT $1::int8, u.* FROM unnest($2::text[], $3::int8[], $4::int4[], $5::int4[]) u
ON CONFLICT (key) DO NOTHING`,

	stDropInline: `DELETE FROM inline WHERE flush = ANY ($1::uuid[])`,

	stLocate: locateSQL,
}

// prepare prepares all statements in one round trip.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	pipe := conn.PgConn().StartPipeline(ctx)
	order := make([]statement, 0, len(statements)+len(txnStatements))
	for _, all := range []map[statement]string{statements, txnStatements} {
		for name, sql := range all {
			pipe.SendPrepare(string(name), sql, nil)
			order = append(order, name)
		}
	}
	err := pipe.Sync()
	for _, name := range order {
		if err != nil {
			break
		}
		if _, err = pipe.GetResults(); err != nil {
			err = fmt.Errorf("prepare %s: %w", name, err)
		}
	}
	if closeErr := pipe.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("prepare statements: %w", closeErr)
	}
	return err
}
