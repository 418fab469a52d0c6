package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

const (
	stTxnShare  statement = "skein_txn_share"
	stTxnUpdate statement = "skein_txn_update"
	stTxnByID   statement = "skein_txn_by_id"
	stTxnTopics statement = "skein_txn_topics"
	stTxnOpen   statement = "skein_txn_open"
	stTxnSave   statement = "skein_txn_save"
	stTxnAdd    statement = "skein_txn_add"
	stTxnEnd    statement = "skein_txn_end"
	stAborted   statement = "skein_aborted"
)

const txnColumns = `id, version, coalesce(producer, -1), epoch, last_producer, last_epoch, state, protocol, timeout, started, updated`

// txnStatements are the prepared statements of commits that have to do with transactions.
var txnStatements = map[statement]string{
	// By producer: commits lock several.
	stTxnShare:  `SELECT ` + txnColumns + ` FROM transactions WHERE producer = ANY ($1::int8[]) ORDER BY producer FOR SHARE`,
	stTxnUpdate: `SELECT ` + txnColumns + ` FROM transactions WHERE producer = ANY ($1::int8[]) ORDER BY producer FOR UPDATE`,
	stTxnByID:   `SELECT ` + txnColumns + ` FROM transactions WHERE id = $1::text FOR UPDATE`,

	// The topics of the offsets that are about to be committed, before the blocks: that is the order of locks.
	stTxnTopics: `
SELECT id FROM topics WHERE id IN (
	SELECT o.topic FROM transactions x JOIN txn_offsets o ON o.producer = x.producer WHERE x.id = $1::text)
ORDER BY id FOR KEY SHARE`,

	stTxnOpen: `
SELECT k.producer, k.block, k.slot FROM unnest($1::int8[], $2::int8[], $3::int4[]) AS k (producer, block, slot)
CROSS JOIN LATERAL (
	SELECT 1 FROM txn_open o WHERE o.producer = k.producer AND o.block = k.block AND o.slot = k.slot LIMIT 1) o`,

	stTxnSave: `
UPDATE transactions t SET version = u.version, producer = u.producer, epoch = u.epoch, last_producer = u.last_producer,
	last_epoch = u.last_epoch, state = u.state, protocol = u.protocol, timeout = u.timeout, started = u.started,
	updated = u.updated, due = nullif(u.due, 0)
FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int4[], $5::int8[], $6::int4[], $7::int4[], $8::int4[], $9::int8[],
	$10::int8[], $11::int8[], $12::int8[])
	AS u (id, version, producer, epoch, last_producer, last_epoch, state, protocol, timeout, started, updated, due)
WHERE t.id = u.id`,

	stTxnAdd: `
INSERT INTO txn_open (producer, block, slot) SELECT * FROM unnest($1::int8[], $2::int8[], $3::int4[])
ON CONFLICT DO NOTHING`,

	stTxnEnd: `SELECT skein_end_txn($1::int8, $2::int8 <> 0, $3::int8)`,

	stAborted: `
INSERT INTO aborted (block, slot, marker, first, producer, lso)
SELECT * FROM unnest($1::int8[], $2::int4[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])`,
}

// sendTxns sends what locks and loads transactions.
func (c *commit) sendTxns() {
	load := c.load.Txns
	if load.ID != "" {
		c.params.string(string(load.ID))
		c.send(stTxnByID)
		c.params.string(string(load.ID))
		c.send(stTxnTopics)
		return
	}
	producers := make([]metadata.ProducerID, 0, len(load.Parts))
	for _, p := range load.Parts {
		if n := len(producers); n == 0 || producers[n-1] != p.Producer {
			producers = append(producers, p.Producer)
		}
	}
	int8Array(c.params, producers, func(p *metadata.ProducerID) int64 { return int64(*p) })
	c.send(txnLock(load))
	partParams(c.params, load.Parts)
	c.send(stTxnOpen)
}

func txnLock(load *metadata.TxnLoad) statement {
	if load.Exclusive {
		return stTxnUpdate
	}
	return stTxnShare
}

func partParams(p *params, parts []metadata.TxnPart) {
	int8Array(p, parts, func(x *metadata.TxnPart) int64 { return int64(x.Producer) })
	int8Array(p, parts, func(x *metadata.TxnPart) int64 { return int64(x.Block) })
	int4Array(p, parts, func(x *metadata.TxnPart) int32 { return int32(x.Slot) })
}

// receiveTxns reads the answers to sendTxns.
func (c *commit) receiveTxns(loaded *metadata.CommitLoaded) error {
	load := c.load.Txns
	row := func(col *column) error {
		t := metadata.TxnRow{
			ID: metadata.TransactionalID(col.raw()), Version: col.int8(), Producer: metadata.ProducerID(col.int8()),
			Epoch: metadata.ProducerEpoch(col.int4()), LastProducer: metadata.ProducerID(col.int8()),
			LastEpoch: metadata.ProducerEpoch(col.int4()), State: metadata.TxnState(col.int4()),
			Protocol: metadata.TxnProtocol(col.int4()), Timeout: millisDuration(col.int8()), Started: metadata.Millis(col.int8()),
			Updated: metadata.Millis(col.int8()),
		}
		loaded.Txns = append(loaded.Txns, t)
		return col.err
	}
	if load.ID != "" {
		if _, err := c.receive(stTxnByID, row); err != nil {
			return err
		}
		_, err := c.receive(stTxnTopics, nil)
		return err
	}
	if _, err := c.receive(txnLock(load), row); err != nil {
		return err
	}
	_, err := c.receive(stTxnOpen, func(col *column) error {
		loaded.TxnOpen = append(loaded.TxnOpen, metadata.TxnPart{
			Producer:    metadata.ProducerID(col.int8()),
			PartitionID: metadata.PartitionID{Block: metadata.BlockID(col.int8()), Slot: metadata.Slot(col.int4())},
		})
		return col.err
	})
	return err
}

// sendTxnSave sends what a commit decided about transactions.
func (c *commit) sendTxnSave(save *metadata.CommitSave, now metadata.Millis, send func(statement)) {
	if len(save.Txns) > 0 {
		txnParams(c.params, save.Txns)
		send(stTxnSave)
	}
	if len(save.TxnAdd) > 0 {
		partParams(c.params, save.TxnAdd)
		send(stTxnAdd)
	}
	if end := save.TxnEnd; end != nil {
		commits := int64(0)
		if end.Commit {
			commits = 1
		}
		c.params.scalar(int64(end.Producer))
		c.params.scalar(commits)
		c.params.scalar(int64(now))
		send(stTxnEnd)
	}
	if list := save.Aborted; len(list) > 0 {
		int8Array(c.params, list, func(a *metadata.AbortedTxn) int64 { return int64(a.Partition.Block) })
		int4Array(c.params, list, func(a *metadata.AbortedTxn) int32 { return int32(a.Partition.Slot) })
		int8Array(c.params, list, func(a *metadata.AbortedTxn) int64 { return int64(a.Marker) })
		int8Array(c.params, list, func(a *metadata.AbortedTxn) int64 { return int64(a.First) })
		int8Array(c.params, list, func(a *metadata.AbortedTxn) int64 { return int64(a.Producer) })
		int8Array(c.params, list, func(a *metadata.AbortedTxn) int64 { return int64(a.LSO) })
		send(stAborted)
	}
}

func txnParams(p *params, list []metadata.TxnRow) {
	textArray(p, list, func(t *metadata.TxnRow) string { return string(t.ID) })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return t.Version })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return int64(t.Producer) })
	int4Array(p, list, func(t *metadata.TxnRow) int32 { return int32(t.Epoch) })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return int64(t.LastProducer) })
	int4Array(p, list, func(t *metadata.TxnRow) int32 { return int32(t.LastEpoch) })
	int4Array(p, list, func(t *metadata.TxnRow) int32 { return int32(t.State) })
	int4Array(p, list, func(t *metadata.TxnRow) int32 { return int32(t.Protocol) })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return t.Timeout.Milliseconds() })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return int64(t.Started) })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return int64(t.Updated) })
	int8Array(p, list, func(t *metadata.TxnRow) int64 { return int64(t.Due()) })
}

func scanTxn(row pgx.Row, t *metadata.TxnRow) error {
	var epoch, lastEpoch, state, protocol int32
	var timeout int64
	err := row.Scan((*string)(&t.ID), &t.Version, (*int64)(&t.Producer), &epoch, (*int64)(&t.LastProducer), &lastEpoch, &state,
		&protocol, &timeout, (*int64)(&t.Started), (*int64)(&t.Updated))
	t.Epoch, t.LastEpoch = metadata.ProducerEpoch(epoch), metadata.ProducerEpoch(lastEpoch)
	t.State, t.Protocol, t.Timeout = metadata.TxnState(state), metadata.TxnProtocol(protocol), millisDuration(timeout)
	return err
}

// loadTxnsSQL gives a row for each id and each of its partitions.
const loadTxnsSQL = `
SELECT skein_now(), u.i, t.id, t.version, t.producer, t.epoch, t.last_producer, t.last_epoch, t.state, t.protocol, t.timeout,
	t.started, t.updated, o.block, o.slot
FROM unnest($1::text[]) WITH ORDINALITY AS u (id, i)
LEFT JOIN LATERAL (SELECT * FROM transactions x WHERE x.id = u.id LIMIT 1) t ON true
LEFT JOIN LATERAL (SELECT p.block, p.slot FROM txn_open p WHERE p.producer = t.producer ORDER BY p.block, p.slot) o ON true
ORDER BY u.i, o.block, o.slot`

func noTxn(id metadata.TransactionalID) metadata.TxnRow {
	return metadata.TxnRow{
		ID: id, Producer: metadata.NoProducer, Epoch: metadata.NoEpoch, LastProducer: metadata.NoProducer, LastEpoch: metadata.NoEpoch,
	}
}

// LoadTxns implements metadata.Driver.
func (d *Driver) LoadTxns(ctx context.Context, ids []metadata.TransactionalID) (now metadata.Millis, txns []metadata.Txn, err error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		txns = make([]metadata.Txn, len(ids))
		rows, err := conn.Query(ctx, loadTxnsSQL, names)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scanLoadedTxn(rows, ids, &now, txns); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		return 0, nil, fmt.Errorf("load transactional ids: %w", err)
	}
	return now, txns, nil
}

func scanLoadedTxn(rows pgx.Rows, ids []metadata.TransactionalID, now *metadata.Millis, txns []metadata.Txn) error {
	var i int64
	var id *string
	var version, producer, lastProducer, timeout, started, updated, block *int64
	var epoch, lastEpoch, state, protocol *int32
	var slot *int16
	err := rows.Scan((*int64)(now), &i, &id, &version, &producer, &epoch, &lastProducer, &lastEpoch, &state, &protocol, &timeout,
		&started, &updated, &block, &slot)
	if err != nil {
		return err
	}
	t := &txns[i-1]
	if id == nil || producer == nil {
		t.TxnRow = noTxn(ids[i-1])
		return nil
	}
	t.TxnRow = metadata.TxnRow{
		ID: metadata.TransactionalID(*id), Version: *version, Producer: metadata.ProducerID(*producer),
		Epoch: metadata.ProducerEpoch(*epoch), LastProducer: metadata.ProducerID(*lastProducer),
		LastEpoch: metadata.ProducerEpoch(*lastEpoch), State: metadata.TxnState(*state), Protocol: metadata.TxnProtocol(*protocol),
		Timeout: millisDuration(*timeout), Started: metadata.Millis(*started), Updated: metadata.Millis(*updated),
	}
	if block != nil {
		t.Open = append(t.Open, metadata.PartitionID{Block: metadata.BlockID(*block), Slot: metadata.Slot(*slot)})
	}
	return nil
}

// TxnsOf implements metadata.Driver.
func (d *Driver) TxnsOf(ctx context.Context, producers []metadata.ProducerID) (ids []metadata.TransactionalID, err error) {
	list := make([]int64, len(producers))
	for i, p := range producers {
		list[i] = int64(p)
	}
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, "SELECT id FROM transactions WHERE producer = ANY ($1::int8[]) ORDER BY id", list)
		ids, err = scanAll(rows, err, func(rows pgx.Rows, id *metadata.TransactionalID) error { return rows.Scan((*string)(id)) })
		return err
	})
	return ids, err
}

// ChangeTxn implements metadata.Driver. A row that is made to be locked goes again with a transaction that saves nothing.
func (d *Driver) ChangeTxn(
	ctx context.Context, id metadata.TransactionalID, fn func(metadata.Millis, *metadata.Txn) (*metadata.TxnSave, error),
) error {
	return d.transact(ctx, func(tx pgx.Tx) error {
		now, t, err := lockTxn(ctx, tx, id)
		if err != nil {
			return err
		}
		save, err := fn(now, t)
		switch {
		case err != nil:
			return &decideError{err}
		case save == nil:
			return errNothing
		}
		return saveTxn(ctx, tx, save, now)
	})
}

func lockTxn(ctx context.Context, tx pgx.Tx, id metadata.TransactionalID) (metadata.Millis, *metadata.Txn, error) {
	b := &pgx.Batch{}
	b.Queue(`INSERT INTO transactions (id, version, epoch, last_producer, last_epoch, state, protocol, timeout, started, updated)
		VALUES ($1, 0, -1, -1, -1, 0, 1, 0, 0, 0) ON CONFLICT (id) DO NOTHING`, string(id))
	b.Queue("SELECT "+txnColumns+" FROM transactions WHERE id = $1 FOR UPDATE", string(id))
	b.Queue(txnStatements[stTxnTopics], string(id))
	b.Queue(`SELECT o.block, o.slot FROM txn_open o JOIN transactions t ON t.producer = o.producer WHERE t.id = $1
		ORDER BY o.block, o.slot`, string(id))
	b.Queue("SELECT skein_now()")
	r := tx.SendBatch(ctx, b)
	defer r.Close()
	t := &metadata.Txn{}
	if _, err := r.Exec(); err != nil {
		return 0, nil, fmt.Errorf("make a transactional id: %w", err)
	}
	if err := scanTxn(r.QueryRow(), &t.TxnRow); err != nil {
		if errors.Is(err, pgx.ErrNoRows) { // expired between the two statements
			err = fmt.Errorf("%w: transactional id went while it was waited for", metadata.ErrUnavailable)
		}
		return 0, nil, fmt.Errorf("lock transactional id %q: %w", id, err)
	}
	if _, err := r.Exec(); err != nil {
		return 0, nil, fmt.Errorf("lock topics: %w", err)
	}
	q, err := r.Query()
	t.Open, err = scanAll(q, err, func(rows pgx.Rows, p *metadata.PartitionID) error {
		var slot int16
		err := rows.Scan((*int64)(&p.Block), &slot)
		p.Slot = metadata.Slot(slot)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("load partitions of a transaction: %w", err)
	}
	var now int64
	if err := r.QueryRow().Scan(&now); err != nil {
		return 0, nil, fmt.Errorf("read the database's clock: %w", err)
	}
	return metadata.Millis(now), t, r.Close()
}

func saveTxn(ctx context.Context, tx pgx.Tx, save *metadata.TxnSave, now metadata.Millis) error {
	t := &save.Row
	if c := save.Offsets; c != nil {
		if _, err := checkCommit(ctx, tx, c); err != nil {
			return err
		}
	}
	b := &pgx.Batch{}
	b.Queue(`UPDATE transactions SET version = $2, producer = nullif($3::int8, -1), epoch = $4, last_producer = $5, last_epoch = $6,
		state = $7, protocol = $8, timeout = $9, started = $10, updated = $11, due = nullif($12::int8, 0) WHERE id = $1`,
		string(t.ID), t.Version, int64(t.Producer), int32(t.Epoch), int64(t.LastProducer), int32(t.LastEpoch), int32(t.State),
		int32(t.Protocol), t.Timeout.Milliseconds(), int64(t.Started), int64(t.Updated), int64(t.Due()))
	if len(save.Add) > 0 {
		blocks, slots := make([]int64, len(save.Add)), make([]int32, len(save.Add))
		for i, p := range save.Add {
			blocks[i], slots[i] = int64(p.Block), int32(p.Slot)
		}
		b.Queue(`INSERT INTO txn_open (producer, block, slot) SELECT $1::int8, u.* FROM unnest($2::int8[], $3::int4[]) u
			ON CONFLICT DO NOTHING`, int64(t.Producer), blocks, slots)
	}
	if save.Offsets != nil && len(save.Offsets.Offsets) > 0 {
		queuePending(b, t.Producer, save.Offsets)
	}
	if save.End != nil {
		b.Queue("SELECT skein_end_txn($1, $2, $3)", int64(save.End.Producer), save.End.Commit, int64(now))
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("save transactional id %q: %w", t.ID, err)
	}
	return nil
}

// queuePending adds offsets to a transaction.
func queuePending(b *pgx.Batch, producer metadata.ProducerID, c *metadata.OffsetCommit) {
	list := lastOffsets(c.Offsets)
	n := len(list)
	topics, parts, offs := make([][16]byte, n), make([]int32, n), make([]int64, n)
	epochs, meta := make([]int32, n), make([][]byte, n)
	for i := range list {
		o := &list[i]
		topics[i], parts[i], offs[i], epochs[i], meta[i] = o.Topic, o.Partition, int64(o.Offset), o.LeaderEpoch, notNil(o.Metadata)
	}
	b.Queue(`INSERT INTO txn_offsets (producer, grp, topic, part, offs, leader_epoch, metadata)
		SELECT $1::int8, $2::text, u.* FROM unnest($3::uuid[], $4::int4[], $5::int8[], $6::int4[], $7::bytea[]) u
		ON CONFLICT (producer, grp, topic, part) DO UPDATE SET offs = excluded.offs, leader_epoch = excluded.leader_epoch,
			metadata = excluded.metadata`, int64(producer), string(c.Group), topics, parts, offs, epochs, meta)
}

// ListTxns implements metadata.Driver.
func (d *Driver) ListTxns(ctx context.Context, after metadata.TransactionalID, limit int) (
	now metadata.Millis, list []metadata.TxnRow, err error,
) {
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, "SELECT "+txnColumns+" FROM transactions WHERE id > $1 ORDER BY id LIMIT $2", string(after), limit)
		if list, err = scanAll(rows, err, func(rows pgx.Rows, t *metadata.TxnRow) error { return scanTxn(rows, t) }); err != nil {
			return err
		}
		return conn.QueryRow(ctx, "SELECT skein_now()").Scan((*int64)(&now))
	})
	return now, list, err
}

// DueTxns implements metadata.Driver.
func (d *Driver) DueTxns(ctx context.Context, limit int) (ids []metadata.TransactionalID, err error) {
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, "SELECT id FROM transactions WHERE due <= (SELECT skein_now()) ORDER BY due LIMIT $1", limit)
		ids, err = scanAll(rows, err, func(rows pgx.Rows, id *metadata.TransactionalID) error { return rows.Scan((*string)(id)) })
		return err
	})
	return ids, err
}

// ExpireTxns implements metadata.Driver.
func (d *Driver) ExpireTxns(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	var n int64
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, `DELETE FROM transactions WHERE id = ANY (ARRAY(
			SELECT id FROM transactions WHERE due IS NULL AND updated < (SELECT skein_now()) - $1::int8
			ORDER BY updated LIMIT $2 FOR UPDATE SKIP LOCKED))`, olderThan.Milliseconds(), limit)
		n = tag.RowsAffected()
		return err
	})
	return int(n), err
}

// pendingSQL gives the partitions of groups that have an offset in an ongoing transaction.
const pendingSQL = `
SELECT u.i, o.topic, o.part FROM unnest($1::text[], $2::int4[]) AS u (grp, i)
CROSS JOIN LATERAL (
	SELECT DISTINCT p.topic, p.part FROM txn_offsets p WHERE p.grp = u.grp ORDER BY p.topic, p.part LIMIT 1000000) o`

// PendingOffsets implements metadata.Driver.
func (d *Driver) PendingOffsets(ctx context.Context, queries []metadata.OffsetQuery) (
	pending [][]metadata.TopicPartition, err error,
) {
	groups, at := make([]string, len(queries)), make([]int32, len(queries))
	for i, q := range queries {
		groups[i], at[i] = string(q.Group), int32(i)
	}
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		pending = make([][]metadata.TopicPartition, len(queries))
		rows, err := conn.Query(ctx, pendingSQL, groups, at)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var i int32
			var p metadata.TopicPartition
			if err := rows.Scan(&i, (*[16]byte)(&p.Topic), &p.Partition); err != nil {
				return err
			}
			if q := &queries[i]; q.All || slices.Contains(q.Partitions, p) {
				pending[i] = append(pending[i], p)
			}
		}
		return rows.Err()
	})
	return pending, err
}

// abortedSQL stops, for each range, at the first marker behind which nothing that began before the range's end was open.
const abortedSQL = `
SELECT u.i, a.marker, a.first, a.producer, a.lso
FROM unnest($1::int8[], $2::int4[], $3::int8[], $4::int8[]) WITH ORDINALITY AS u (block, slot, low, high, i)
CROSS JOIN LATERAL (
	SELECT x.* FROM aborted x WHERE x.block = u.block AND x.slot = u.slot AND x.marker >= u.low AND x.marker <= coalesce((
		SELECT s.marker FROM aborted s WHERE s.block = u.block AND s.slot = u.slot AND s.marker >= u.low AND s.lso >= u.high
		ORDER BY s.marker LIMIT 1), 9223372036854775807) ORDER BY x.marker) a
WHERE a.first < u.high ORDER BY u.i, a.marker`

// Aborted implements metadata.Driver.
func (d *Driver) Aborted(ctx context.Context, queries []metadata.AbortedQuery) (found [][]metadata.AbortedTxn, err error) {
	n := len(queries)
	blocks, slots, low, high := make([]int64, n), make([]int32, n), make([]int64, n), make([]int64, n)
	for i, q := range queries {
		blocks[i], slots[i] = int64(q.Partition.Block), int32(q.Partition.Slot)
		low[i], high[i] = int64(q.From), int64(q.To)
	}
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		found = make([][]metadata.AbortedTxn, n)
		rows, err := conn.Query(ctx, abortedSQL, blocks, slots, low, high)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var i int64
			var a metadata.AbortedTxn
			err := rows.Scan(&i, (*int64)(&a.Marker), (*int64)(&a.First), (*int64)(&a.Producer), (*int64)(&a.LSO))
			if err != nil {
				return err
			}
			a.Partition = queries[i-1].Partition
			found[i-1] = append(found[i-1], a)
		}
		return rows.Err()
	})
	return found, err
}

// pruneSQL finds the next partitions that have aborted transactions by a loose index scan, and removes of each what lies
// below its log start. A join by key may be planned as a walk through the whole table; rows are never updated, and none of
// this statement's view goes before it ends, so that their places name them.
const pruneSQL = `
WITH RECURSIVE parts AS (
	(SELECT block, slot, 1 AS n FROM aborted WHERE (block, slot) > ($1::int8, $2::int2) ORDER BY block, slot LIMIT 1)
	UNION ALL
	SELECT a.block, a.slot, p.n + 1 FROM parts p CROSS JOIN LATERAL (
		SELECT x.block, x.slot FROM aborted x WHERE (x.block, x.slot) > (p.block, p.slot) ORDER BY x.block, x.slot LIMIT 1) a
	WHERE p.n < $3
), below AS (
	SELECT p.block, p.slot, CASE WHEN b.id IS NULL OR (b.deleted >> p.slot) & 1 = 1 THEN 9223372036854775807
		ELSE skein_log_start(b.log_start, p.slot) END AS start
	FROM parts p LEFT JOIN blocks b ON b.id = p.block
), gone AS (
	DELETE FROM aborted WHERE ctid = ANY (ARRAY(
		SELECT x.place FROM below d CROSS JOIN LATERAL (
			SELECT y.ctid AS place FROM aborted y WHERE y.block = d.block AND y.slot = d.slot AND y.marker < d.start
			ORDER BY y.marker LIMIT $4) x)) RETURNING 1
)
SELECT l.block, l.slot, l.n, (SELECT count(*) FROM gone)
FROM (SELECT block, slot, n FROM parts ORDER BY block DESC, slot DESC LIMIT 1) l`

// PruneAborted implements metadata.Driver.
func (d *Driver) PruneAborted(ctx context.Context, after metadata.PartitionID, partitions, rows int) (
	next metadata.PartitionID, removed int, err error,
) {
	var block, n, gone int64
	var slot int16
	err = d.row(ctx, pruneSQL, []any{int64(after.Block), int16(after.Slot), int64(partitions), int64(rows)}, &block, &slot, &n, &gone)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return metadata.PartitionID{}, 0, nil
	case err != nil:
		return metadata.PartitionID{}, 0, fmt.Errorf("prune aborted transactions: %w", err)
	case n < int64(partitions):
		return metadata.PartitionID{}, int(gone), nil
	}
	return metadata.PartitionID{Block: metadata.BlockID(block), Slot: metadata.Slot(slot)}, int(gone), nil
}
