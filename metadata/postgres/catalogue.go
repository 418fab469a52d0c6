package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

// Catalogue implements metadata.Driver. Locks: the catalogue's row, then blocks by id; topics change under the
// catalogue's lock only.
func (d *Driver) Catalogue(ctx context.Context, load metadata.CatalogueLoad, decide func(*metadata.CatalogueLoaded) (*metadata.CatalogueSave, error)) error {
	return d.again(ctx, func(conn *pgxpool.Conn) error {
		guard := d.guard(ctx, conn.Conn().PgConn().PID())
		defer guard.stop()
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
		if err != nil {
			return err
		}
		defer tx.Rollback(context.WithoutCancel(ctx)) // does nothing after a commit
		loaded, err := loadCatalogue(ctx, tx, &load)
		if err != nil {
			return err
		}
		save, err := decide(loaded)
		if err != nil {
			return &decideError{err}
		}
		if err := saveCatalogue(ctx, tx, save); err != nil {
			return err
		}
		localOnly(conn.Conn().PgConn())
		err = tx.Commit(ctx)
		switch {
		case err == nil && localOnly(conn.Conn().PgConn()):
			return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, errLocalOnly)
		case err == nil, refused(err):
			return err
		case errors.Is(err, pgx.ErrTxCommitRollback):
			return fmt.Errorf("%w: %w", metadata.ErrUnavailable, errNotCommitted)
		}
		return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, err)
	})
}

// scanAll collects a query's rows.
func scanAll[T any](rows pgx.Rows, err error, scan func(pgx.Rows, *T) error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (T, error) {
		var v T
		return v, scan(rows, &v)
	})
}

const (
	topicColumns = `id, name, configs, replication_factor, version, created`
	blockColumns = `id, version, log_start, deleted, config_epoch, merged_seq, used, shared`
)

func scanTopic(rows pgx.Rows, t *metadata.TopicRow) error {
	var configs []byte
	err := rows.Scan((*[16]byte)(&t.ID), &t.Name, &configs, &t.ReplicationFactor, (*int64)(&t.Version), (*int64)(&t.Created))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(configs, &t.Configs); err != nil {
		return fmt.Errorf("%w: configs of topic %q: %w", metadata.ErrCorrupt, t.Name, err)
	}
	return nil
}

func scanPartition(rows pgx.Rows, p *metadata.PartitionRow) error {
	var slot int16
	err := rows.Scan((*[16]byte)(&p.Topic), &p.Index, (*int64)(&p.Block), &slot, (*int64)(&p.Created))
	p.Slot = metadata.Slot(slot)
	return err
}

func scanBlock(rows pgx.Rows, b *metadata.BlockRow) error {
	var deleted int64
	var starts []byte
	err := rows.Scan((*int64)(&b.ID), &b.Version, &starts, &deleted, (*int64)(&b.ConfigEpoch), (*int64)(&b.MergedSeq), &b.Used, &b.Shared)
	if err != nil {
		return err
	}
	b.Deleted = uint64(deleted)
	return decodeLogStarts(starts, &b.LogStart)
}

func loadCatalogue(ctx context.Context, tx pgx.Tx, load *metadata.CatalogueLoad) (*metadata.CatalogueLoaded, error) {
	l := &metadata.CatalogueLoaded{Next: map[metadata.BlockID][metadata.SlotsPerBlock]metadata.Offset{}}
	err := tx.QueryRow(ctx, "SELECT version, next_block FROM catalogue FOR UPDATE").Scan((*int64)(&l.Version), (*int64)(&l.NextBlock))
	if err != nil {
		return nil, fmt.Errorf("lock the catalogue: %w", err)
	}
	ids := make([][16]byte, len(load.IDs))
	for i, id := range load.IDs {
		ids[i] = id
	}
	rows, err := tx.Query(ctx, `SELECT `+topicColumns+` FROM topics
		WHERE id = ANY (ARRAY(
			SELECT id FROM topics WHERE name = ANY ($1) UNION SELECT id FROM topics WHERE canonical = ANY ($2)
			UNION SELECT unnest($3::uuid[])))
		ORDER BY id`, strs(load.Names), strs(load.Canonical), ids)
	if l.Topics, err = scanAll(rows, err, scanTopic); err != nil {
		return nil, fmt.Errorf("load topics: %w", err)
	}
	if l.Partitions, err = partitionsOf(ctx, tx, l.Topics); err != nil {
		return nil, err
	}
	if err := loadCatalogueBlocks(ctx, tx, load, l); err != nil {
		return nil, err
	}
	if err := tx.QueryRow(ctx, "SELECT skein_now()").Scan((*int64)(&l.Now)); err != nil {
		return nil, fmt.Errorf("read the database's clock: %w", err)
	}
	return l, nil
}

// strs gives a list that is not nil: pgx makes NULL of nil.
func strs(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func partitionsOf(ctx context.Context, tx pgx.Tx, topics []metadata.TopicRow) ([]metadata.PartitionRow, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	ids := make([][16]byte, len(topics))
	for i := range topics {
		ids[i] = topics[i].ID
	}
	rows, err := tx.Query(ctx, `SELECT topic, idx, block, slot, created FROM partitions
		WHERE topic = ANY ($1::uuid[]) ORDER BY topic, idx`, ids)
	list, err := scanAll(rows, err, scanPartition)
	if err != nil {
		return nil, fmt.Errorf("load partitions: %w", err)
	}
	return list, nil
}

// loadCatalogueBlocks loads, and where it is asked for locks, block rows, then the next offsets of the locked ones.
func loadCatalogueBlocks(ctx context.Context, tx pgx.Tx, load *metadata.CatalogueLoad, l *metadata.CatalogueLoaded) error {
	ids := make([]int64, 0, len(load.Blocks))
	for _, id := range load.Blocks {
		ids = append(ids, int64(id))
	}
	lock := ""
	if load.LockBlocks {
		lock = " FOR UPDATE"
		for _, p := range l.Partitions {
			ids = append(ids, int64(p.Block))
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	var shared int64
	if load.Shared {
		// Which one it is cannot change while the catalogue is locked.
		err := tx.QueryRow(ctx, "SELECT coalesce((SELECT id FROM blocks WHERE shared AND used < 64 ORDER BY id LIMIT 1), 0)").Scan(&shared)
		if err != nil {
			return fmt.Errorf("find a shared block: %w", err)
		}
	}
	if shared != 0 && !load.LockBlocks {
		if err := loadShared(ctx, tx, shared, l); err != nil {
			return err
		}
	} else if shared != 0 && !slices.Contains(ids, shared) {
		ids = append(ids, shared)
		slices.Sort(ids)
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT `+blockColumns+` FROM blocks WHERE id = ANY ($1::int8[]) ORDER BY id`+lock, ids)
	if l.Blocks, err = scanAll(rows, err, scanBlock); err != nil {
		return fmt.Errorf("load blocks: %w", err)
	}
	if !load.LockBlocks {
		return nil
	}
	if i := slices.IndexFunc(l.Blocks, func(b metadata.BlockRow) bool { return shared != 0 && int64(b.ID) == shared }); i >= 0 {
		row := l.Blocks[i]
		l.SharedRow = &row
	}
	return loadNext(ctx, tx, ids, l)
}

func loadShared(ctx context.Context, tx pgx.Tx, id int64, l *metadata.CatalogueLoaded) error {
	rows, err := tx.Query(ctx, `SELECT `+blockColumns+` FROM blocks WHERE id = $1 FOR UPDATE`, id)
	blocks, err := scanAll(rows, err, scanBlock)
	if err != nil {
		return fmt.Errorf("lock shared block %d: %w", id, err)
	}
	if len(blocks) == 1 {
		l.SharedRow = &blocks[0]
	}
	return nil
}

// loadNext reads the newest photographs, after the locks.
func loadNext(ctx context.Context, tx pgx.Tx, ids []int64, l *metadata.CatalogueLoaded) error {
	rows, err := tx.Query(ctx, `
SELECT k.block, r.photo FROM unnest($1::int8[]) AS k (block)
CROSS JOIN LATERAL (SELECT photo FROM level0 l WHERE l.block = k.block ORDER BY l.seq DESC LIMIT 1) r`, ids)
	if err != nil {
		return fmt.Errorf("load photographs: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var raw []byte
		if err := rows.Scan(&id, &raw); err != nil {
			return fmt.Errorf("load photographs: %w", err)
		}
		var photo metadata.Photo
		if err := photo.Decode(raw); err != nil {
			return fmt.Errorf("block %d: %w", id, err)
		}
		l.Next[metadata.BlockID(id)] = photo.Next
	}
	return rows.Err()
}

// saveCatalogue writes what was decided, in one round trip.
func saveCatalogue(ctx context.Context, tx pgx.Tx, s *metadata.CatalogueSave) error {
	b := &pgx.Batch{}
	if s.Version != 0 {
		b.Queue("UPDATE catalogue SET version = $1", int64(s.Version))
	}
	if s.NextBlock != 0 {
		b.Queue("UPDATE catalogue SET next_block = $1", int64(s.NextBlock))
	}
	if len(s.DeleteTopics) > 0 {
		ids := make([][16]byte, len(s.DeleteTopics))
		for i, id := range s.DeleteTopics {
			ids[i] = id
		}
		b.Queue("DELETE FROM partitions WHERE topic = ANY ($1::uuid[])", ids)
		b.Queue("DELETE FROM topics WHERE id = ANY ($1::uuid[])", ids)
		b.Queue("INSERT INTO topic_tombstones (version, topic) SELECT $1, unnest($2::uuid[])", int64(s.Version), ids)
		b.Queue(pruneTombstones, int64(metadata.TombstonesKept))
		b.Queue("DELETE FROM group_offsets WHERE topic = ANY ($1::uuid[])", ids)
	}
	if err := queueTopics(b, s.Topics); err != nil {
		return err
	}
	queuePartitions(b, s.Partitions)
	queueBlocks(b, s.Blocks)
	if b.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("save the catalogue: %w", err)
	}
	return nil
}

// pruneTombstones removes all but the newest $1, whole versions at a time, and remembers up to where.
const pruneTombstones = `
WITH cut AS (SELECT version FROM topic_tombstones ORDER BY version DESC, topic DESC OFFSET $1::int8 LIMIT 1),
gone AS (DELETE FROM topic_tombstones t USING cut WHERE t.version <= cut.version)
UPDATE catalogue SET forgotten = cut.version FROM cut`

func queueTopics(b *pgx.Batch, topics []metadata.TopicRow) error {
	for _, t := range topics {
		configs := t.Configs
		if configs == nil {
			configs = map[string]string{}
		}
		data, err := json.Marshal(configs)
		if err != nil {
			return fmt.Errorf("configs of topic %q: %w", t.Name, err)
		}
		b.Queue(`
INSERT INTO topics (id, name, canonical, configs, replication_factor, version, created)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, $7)
ON CONFLICT (id) DO UPDATE SET configs = excluded.configs, replication_factor = excluded.replication_factor,
	version = excluded.version`,
			[16]byte(t.ID), t.Name, metadata.CanonicalName(t.Name), string(data), t.ReplicationFactor, int64(t.Version),
			int64(t.Created))
	}
	return nil
}

func queuePartitions(b *pgx.Batch, partitions []metadata.PartitionRow) {
	n := len(partitions)
	if n == 0 {
		return
	}
	topics, index, blocks := make([][16]byte, n), make([]int32, n), make([]int64, n)
	slots, created := make([]int16, n), make([]int64, n)
	for i, p := range partitions {
		topics[i], index[i], blocks[i], slots[i], created[i] = p.Topic, p.Index, int64(p.Block), int16(p.Slot), int64(p.Created)
	}
	b.Queue(`
INSERT INTO partitions (topic, idx, block, slot, created)
SELECT * FROM unnest($1::uuid[], $2::int4[], $3::int8[], $4::int2[], $5::int8[])`, topics, index, blocks, slots, created)
}

func queueBlocks(b *pgx.Batch, rows []metadata.BlockRow) {
	n := len(rows)
	if n == 0 {
		return
	}
	ids, versions, starts := make([]int64, n), make([]int64, n), make([][]byte, n)
	deleted, epochs, merged := make([]int64, n), make([]int64, n), make([]int64, n)
	used, shared := make([]int16, n), make([]bool, n)
	for i := range rows {
		r := &rows[i]
		ids[i], versions[i], starts[i] = int64(r.ID), r.Version, appendLogStarts([]byte{}, &r.LogStart)
		deleted[i], epochs[i], merged[i] = int64(r.Deleted), int64(r.ConfigEpoch), int64(r.MergedSeq)
		used[i], shared[i] = int16(r.Used), r.Shared
	}
	b.Queue(`
INSERT INTO blocks (id, version, log_start, deleted, config_epoch, merged_seq, used, shared)
SELECT * FROM unnest($1::int8[], $2::int8[], $3::bytea[], $4::int8[], $5::int8[], $6::int8[], $7::int2[], $8::bool[])
ON CONFLICT (id) DO UPDATE SET version = excluded.version, log_start = excluded.log_start, deleted = excluded.deleted,
	config_epoch = excluded.config_epoch, merged_seq = excluded.merged_seq, used = excluded.used, shared = excluded.shared`,
		ids, versions, starts, deleted, epochs, merged, used, shared)
}

// LoadTopics implements metadata.Driver.
func (d *Driver) LoadTopics(ctx context.Context, since metadata.CatalogueVersion) (*metadata.TopicsLoaded, error) {
	var l *metadata.TopicsLoaded
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		l = &metadata.TopicsLoaded{}
		// Asked once a second by every agent, and nearly always nothing has changed.
		if err := conn.QueryRow(ctx, "SELECT version FROM catalogue").Scan((*int64)(&l.Version)); err != nil || l.Version == since {
			return err
		}
		options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
		return pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) error { return loadTopics(ctx, tx, since, l) })
	})
	if err != nil {
		return nil, fmt.Errorf("load topics: %w", err)
	}
	return l, nil
}

func loadTopics(ctx context.Context, tx pgx.Tx, since metadata.CatalogueVersion, l *metadata.TopicsLoaded) error {
	var forgotten int64
	if err := tx.QueryRow(ctx, "SELECT version, forgotten FROM catalogue").Scan((*int64)(&l.Version), &forgotten); err != nil {
		return err
	}
	// A version ahead of the database's was seen in another incarnation of it.
	l.Full = since < 0 || int64(since) < forgotten || since > l.Version
	if l.Full {
		since = -1
	}
	rows, err := tx.Query(ctx, `SELECT `+topicColumns+` FROM topics WHERE version > $1 ORDER BY id`, int64(since))
	if l.Topics, err = scanAll(rows, err, scanTopic); err != nil {
		return err
	}
	if l.Partitions, err = partitionsOf(ctx, tx, l.Topics); err != nil {
		return err
	}
	if l.Full {
		return nil
	}
	rows, err = tx.Query(ctx, "SELECT topic FROM topic_tombstones WHERE version > $1", int64(since))
	l.Deleted, err = scanAll(rows, err, func(rows pgx.Rows, id *metadata.TopicID) error {
		return rows.Scan((*[16]byte)(id))
	})
	return err
}
