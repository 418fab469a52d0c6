package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/skeinio/skein/metadata"
)

const txnColumns = `id, version, coalesce(producer, -1), epoch, last_producer, last_epoch, state, protocol, timeout, started, updated`

func scanTxn(row scanner, t *metadata.TxnRow) error {
	var timeout int64
	err := row.Scan(&t.ID, &t.Version, &t.Producer, &t.Epoch, &t.LastProducer, &t.LastEpoch, &t.State, &t.Protocol, &timeout,
		&t.Started, &t.Updated)
	t.Timeout = time.Duration(timeout) * time.Millisecond
	return failure(err)
}

// txn loads a transactional id; one that is not there has Version 0.
func (s *session) txn(id metadata.TransactionalID) (t metadata.Txn, err error) {
	err = scanTxn(s.row("SELECT "+txnColumns+" FROM transactions WHERE id = ?", string(id)), &t.TxnRow)
	if errors.Is(err, sql.ErrNoRows) {
		t.TxnRow = metadata.TxnRow{
			ID: id, Producer: metadata.NoProducer, Epoch: metadata.NoEpoch, LastProducer: metadata.NoProducer, LastEpoch: metadata.NoEpoch,
		}
		return t, nil
	}
	if err != nil {
		return t, err
	}
	err = s.each("SELECT block, slot FROM txn_open WHERE producer = ? ORDER BY block, slot", []any{int64(t.Producer)},
		func(r *sql.Rows) error {
			var p metadata.PartitionID
			err := r.Scan(&p.Block, &p.Slot)
			t.Open = append(t.Open, p)
			return err
		})
	return t, err
}

func (s *session) saveTxn(t *metadata.TxnRow) error {
	_, err := s.exec(`INSERT INTO transactions (id, version, producer, epoch, last_producer, last_epoch, state, protocol, timeout,
		started, updated, due) VALUES (?, ?, nullif(?, -1), ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, 0))
		ON CONFLICT (id) DO UPDATE SET version = excluded.version, producer = excluded.producer, epoch = excluded.epoch,
		last_producer = excluded.last_producer, last_epoch = excluded.last_epoch, state = excluded.state,
		protocol = excluded.protocol, timeout = excluded.timeout, started = excluded.started, updated = excluded.updated,
		due = excluded.due`,
		string(t.ID), t.Version, int64(t.Producer), int64(t.Epoch), int64(t.LastProducer), int64(t.LastEpoch), int64(t.State),
		int64(t.Protocol), t.Timeout.Milliseconds(), int64(t.Started), int64(t.Updated), int64(t.Due()))
	return err
}

func (s *session) addOpen(producer metadata.ProducerID, p metadata.PartitionID) error {
	_, err := s.exec("INSERT INTO txn_open (producer, block, slot) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
		int64(producer), int64(p.Block), int64(p.Slot))
	return err
}

// loadTxns loads what a commit needs of transactions. The writing transaction is their lock.
func (s *session) loadTxns(load *metadata.TxnLoad, loaded *metadata.CommitLoaded) error {
	if load.ID != "" {
		t, err := s.txn(load.ID)
		if t.Version > 0 {
			loaded.Txns = append(loaded.Txns, t.TxnRow)
		}
		return err
	}
	last := metadata.NoProducer
	for _, p := range load.Parts {
		if p.Producer != last {
			last = p.Producer
			var t metadata.TxnRow
			err := scanTxn(s.row("SELECT "+txnColumns+" FROM transactions WHERE producer = ?", int64(p.Producer)), &t)
			switch {
			case errors.Is(err, sql.ErrNoRows):
			case err != nil:
				return err
			default:
				loaded.Txns = append(loaded.Txns, t)
			}
		}
		var open bool
		err := s.row("SELECT EXISTS (SELECT 1 FROM txn_open WHERE producer = ? AND block = ? AND slot = ?)",
			int64(p.Producer), int64(p.Block), int64(p.Slot)).Scan(&open)
		if err != nil {
			return failure(err)
		}
		if open {
			loaded.TxnOpen = append(loaded.TxnOpen, p)
		}
	}
	return nil
}

// saveTxns writes what a commit decided about transactions.
func (s *session) saveTxns(save *metadata.CommitSave, now metadata.Millis) error {
	for i := range save.Txns {
		if err := s.saveTxn(&save.Txns[i]); err != nil {
			return err
		}
	}
	for _, p := range save.TxnAdd {
		if err := s.addOpen(p.Producer, p.PartitionID); err != nil {
			return err
		}
	}
	if save.TxnEnd != nil {
		if err := s.endTxn(save.TxnEnd, now); err != nil {
			return err
		}
	}
	for _, a := range save.Aborted {
		_, err := s.exec("INSERT INTO aborted (block, slot, marker, first, producer, lso) VALUES (?, ?, ?, ?, ?, ?)",
			int64(a.Partition.Block), int64(a.Partition.Slot), int64(a.Marker), int64(a.First), int64(a.Producer), int64(a.LSO))
		if err != nil {
			return err
		}
	}
	return nil
}

// endTxn ends what a transaction has beside its log.
func (s *session) endTxn(end *metadata.TxnEnd, now metadata.Millis) error {
	p := int64(end.Producer)
	if _, err := s.exec("DELETE FROM txn_open WHERE producer = ?", p); err != nil {
		return err
	}
	if end.Commit {
		_, err := s.exec(`INSERT INTO groups (id, version, kind, state, protocol_type, data, since)
			SELECT grp, ?, 0, 'Empty', '', x'', ? FROM (SELECT DISTINCT grp FROM txn_offsets WHERE producer = ?) WHERE true
			ON CONFLICT (id) DO NOTHING`,
			int64(now), int64(now), p)
		if err != nil {
			return err
		}
		_, err = s.exec(`INSERT INTO group_offsets (grp, topic, part, offs, leader_epoch, metadata, committed, expires)
			SELECT o.grp, o.topic, o.part, o.offs, o.leader_epoch, o.metadata, ?, 0
			FROM txn_offsets o JOIN topics t ON t.id = o.topic WHERE o.producer = ?
			ON CONFLICT (grp, topic, part) DO UPDATE SET offs = excluded.offs, leader_epoch = excluded.leader_epoch,
			metadata = excluded.metadata, committed = excluded.committed, expires = excluded.expires`, int64(now), p)
		if err != nil {
			return err
		}
	}
	_, err := s.exec("DELETE FROM txn_offsets WHERE producer = ?", p)
	return err
}

// LoadTxns implements metadata.Driver.
func (d *Driver) LoadTxns(ctx context.Context, ids []metadata.TransactionalID) (metadata.Millis, []metadata.Txn, error) {
	txns := make([]metadata.Txn, len(ids))
	err := d.read(ctx, func(s *session) (err error) {
		for i, id := range ids {
			if txns[i], err = s.txn(id); err != nil {
				return err
			}
		}
		return nil
	})
	return d.millis(), txns, err
}

// TxnsOf implements metadata.Driver.
func (d *Driver) TxnsOf(ctx context.Context, producers []metadata.ProducerID) (ids []metadata.TransactionalID, err error) {
	err = d.read(ctx, func(s *session) error {
		for _, p := range producers {
			var id metadata.TransactionalID
			err := s.row("SELECT id FROM transactions WHERE producer = ?", int64(p)).Scan(&id)
			switch {
			case errors.Is(err, sql.ErrNoRows):
			case err != nil:
				return failure(err)
			default:
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// ChangeTxn implements metadata.Driver. The writing transaction is the lock.
func (d *Driver) ChangeTxn(
	ctx context.Context, id metadata.TransactionalID, fn func(metadata.Millis, *metadata.Txn) (*metadata.TxnSave, error),
) error {
	return d.transact(ctx, func(s *session) error {
		t, err := s.txn(id)
		if err != nil {
			return err
		}
		now := d.millis()
		save, err := fn(now, &t)
		switch {
		case err != nil:
			return err
		case save == nil:
			return errNothing
		}
		return s.saveChange(save, now)
	})
}

func (s *session) saveChange(save *metadata.TxnSave, now metadata.Millis) error {
	if c := save.Offsets; c != nil {
		if _, err := s.checkCommit(now, c); err != nil {
			return err
		}
		for i := range c.Offsets {
			o := &c.Offsets[i]
			_, err := s.exec(`INSERT INTO txn_offsets (producer, grp, topic, part, offs, leader_epoch, metadata)
				VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (producer, grp, topic, part) DO UPDATE SET offs = excluded.offs,
				leader_epoch = excluded.leader_epoch, metadata = excluded.metadata`,
				int64(save.Row.Producer), string(c.Group), o.Topic[:], o.Partition, int64(o.Offset), o.LeaderEpoch, notNil(o.Metadata))
			if err != nil {
				return err
			}
		}
	}
	if err := s.saveTxn(&save.Row); err != nil {
		return err
	}
	for _, p := range save.Add {
		if err := s.addOpen(save.Row.Producer, p); err != nil {
			return err
		}
	}
	if save.End != nil {
		return s.endTxn(save.End, now)
	}
	return nil
}

// ListTxns implements metadata.Driver.
func (d *Driver) ListTxns(ctx context.Context, after metadata.TransactionalID, limit int) (
	metadata.Millis, []metadata.TxnRow, error,
) {
	var list []metadata.TxnRow
	err := d.read(ctx, func(s *session) error {
		return s.each("SELECT "+txnColumns+" FROM transactions WHERE id > ? ORDER BY id LIMIT ?", []any{string(after), limit},
			func(r *sql.Rows) error {
				var t metadata.TxnRow
				err := scanTxn(r, &t)
				list = append(list, t)
				return err
			})
	})
	return d.millis(), list, err
}

// DueTxns implements metadata.Driver.
func (d *Driver) DueTxns(ctx context.Context, limit int) (ids []metadata.TransactionalID, err error) {
	err = d.read(ctx, func(s *session) error {
		return s.each("SELECT id FROM transactions WHERE due <= ? ORDER BY due LIMIT ?", []any{int64(d.millis()), limit},
			func(r *sql.Rows) error {
				var id metadata.TransactionalID
				err := r.Scan(&id)
				ids = append(ids, id)
				return err
			})
	})
	return ids, err
}

// ExpireTxns implements metadata.Driver.
func (d *Driver) ExpireTxns(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	var n int64
	err := d.write(ctx, func(s *session) (err error) {
		n, err = s.exec(`DELETE FROM transactions WHERE id IN (SELECT id FROM transactions WHERE due IS NULL AND updated < ?
			ORDER BY updated LIMIT ?)`, int64(d.millis().Add(-olderThan)), limit)
		return err
	}, nil)
	return int(n), err
}

// PendingOffsets implements metadata.Driver.
func (d *Driver) PendingOffsets(ctx context.Context, queries []metadata.OffsetQuery) ([][]metadata.TopicPartition, error) {
	pending := make([][]metadata.TopicPartition, len(queries))
	err := d.read(ctx, func(s *session) error {
		for i := range queries {
			q := &queries[i]
			wanted := map[metadata.TopicPartition]bool{}
			for _, p := range q.Partitions {
				wanted[p] = true
			}
			err := s.each("SELECT DISTINCT topic, part FROM txn_offsets WHERE grp = ? ORDER BY topic, part", []any{string(q.Group)},
				func(r *sql.Rows) error {
					var topic sql.RawBytes
					var p metadata.TopicPartition
					err := r.Scan(&topic, &p.Partition)
					copy(p.Topic[:], topic)
					if q.All || wanted[p] {
						pending[i] = append(pending[i], p)
					}
					return err
				})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return pending, err
}

const (
	abortedStop = `SELECT marker FROM aborted WHERE block = ?1 AND slot = ?2 AND marker >= ?3 AND lso >= ?4 ORDER BY marker LIMIT 1`
	// abortedSQL stops at the first marker behind which nothing that began before the end of the range was open.
	abortedSQL = `SELECT marker, first, producer, lso FROM aborted WHERE block = ?1 AND slot = ?2 AND marker >= ?3
		AND marker <= coalesce((` + abortedStop + `), 9223372036854775807) AND first < ?4 ORDER BY marker`
)

// Aborted implements metadata.Driver.
func (d *Driver) Aborted(ctx context.Context, queries []metadata.AbortedQuery) ([][]metadata.AbortedTxn, error) {
	found := make([][]metadata.AbortedTxn, len(queries))
	err := d.read(ctx, func(s *session) error {
		for i, q := range queries {
			err := s.each(abortedSQL, []any{int64(q.Partition.Block), int64(q.Partition.Slot), int64(q.From), int64(q.To)},
				func(r *sql.Rows) error {
					a := metadata.AbortedTxn{Partition: q.Partition}
					err := r.Scan(&a.Marker, &a.First, &a.Producer, &a.LSO)
					found[i] = append(found[i], a)
					return err
				})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// PruneAborted implements metadata.Driver.
func (d *Driver) PruneAborted(ctx context.Context, after metadata.PartitionID, partitions, rows int) (
	next metadata.PartitionID, removed int, err error,
) {
	err = d.write(ctx, func(s *session) error {
		removed = 0
		for next = after; partitions > 0; partitions-- {
			err := s.row("SELECT block, slot FROM aborted WHERE (block, slot) > (?, ?) ORDER BY block, slot LIMIT 1",
				int64(next.Block), int64(next.Slot)).Scan(&next.Block, &next.Slot)
			if errors.Is(err, sql.ErrNoRows) {
				next = metadata.PartitionID{}
				return nil
			}
			if err != nil {
				return failure(err)
			}
			n, err := s.pruneAborted(next, rows)
			if err != nil {
				return err
			}
			removed += n
		}
		return nil
	}, nil)
	return next, removed, err
}

func (s *session) pruneAborted(p metadata.PartitionID, rows int) (int, error) {
	var b metadata.BlockRow
	err := scanBlock(s.row("SELECT "+blockColumns+" FROM blocks WHERE block = ?", int64(p.Block)), &b)
	gone := errors.Is(err, sql.ErrNoRows)
	if err != nil && !gone {
		return 0, err
	}
	below := int64(1<<63 - 1)
	if !gone && b.Deleted&(1<<p.Slot) == 0 {
		below = int64(b.LogStart[p.Slot])
	}
	n, err := s.exec(`DELETE FROM aborted WHERE block = ?1 AND slot = ?2 AND marker IN (
		SELECT marker FROM aborted WHERE block = ?1 AND slot = ?2 AND marker < ?3 ORDER BY marker LIMIT ?4)`,
		int64(p.Block), int64(p.Slot), below, rows)
	return int(n), err
}
