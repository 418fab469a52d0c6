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

// Commit implements metadata.Driver. The one writing transaction is the lock of all blocks.
func (d *Driver) Commit(
	ctx context.Context, load metadata.CommitLoad, decide func(*metadata.CommitLoaded) (*metadata.CommitSave, error),
) error {
	var inline int64
	err := d.write(ctx, func(s *session) error {
		inline = 0
		loaded := &metadata.CommitLoaded{InlineNew: make(map[metadata.FlushID]bool, len(load.Inline))}
		for i := range load.Inline {
			p := &load.Inline[i]
			n, err := s.exec("INSERT INTO inline (flush, size, payload) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
				p.Flush[:], p.Size, slices.Concat(p.Payload...))
			if err != nil {
				return err
			}
			if n > 0 {
				loaded.InlineNew[p.Flush] = true
				inline += p.Size
			}
		}
		if load.Txns != nil {
			if err := s.loadTxns(load.Txns, loaded); err != nil {
				return err
			}
		}
		var err error
		if loaded.Receipts, err = s.receipts(load.Flushes); err != nil {
			return err
		}
		if loaded.Blocks, err = s.deltas(load.Blocks); err != nil {
			return err
		}
		loaded.Now = d.millis()
		save, err := decide(loaded)
		if err != nil {
			return err
		}
		dropped, err := s.save(save, loaded.Now)
		inline -= dropped
		return err
	}, func() { d.inlineChanged(inline) })
	return err
}

func (s *session) receipts(flushes []metadata.FlushID) (map[metadata.FlushID][]byte, error) {
	found := make(map[metadata.FlushID][]byte)
	for _, id := range flushes {
		var data []byte
		err := s.row("SELECT data FROM receipts WHERE flush = ?", id[:]).Scan(&data)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, failure(err)
		default:
			found[id] = data
		}
	}
	return found, nil
}

// save writes what was decided; it gives the bytes of inline payloads that were dropped.
func (s *session) save(save *metadata.CommitSave, now metadata.Millis) (dropped int64, err error) {
	var buf []byte
	for _, r := range save.Rows {
		if buf, err = s.insertRow(r, buf); err != nil {
			return 0, err
		}
	}
	for i := range save.Receipts {
		r := &save.Receipts[i]
		if _, err := s.exec("INSERT INTO receipts (flush, time, data) VALUES (?, ?, ?)", r.Flush[:], int64(now), r.Data); err != nil {
			return 0, err
		}
	}
	for i := range save.Objects {
		if err := s.saveObject(&save.Objects[i], now); err != nil {
			return 0, err
		}
	}
	for _, id := range save.DropInline {
		var size int64
		if err := s.row("DELETE FROM inline WHERE flush = ? RETURNING size", id[:]).Scan(&size); err != nil {
			return 0, failure(err)
		}
		dropped += size
	}
	return dropped, s.saveTxns(save, now)
}

func (s *session) saveObject(o *metadata.ObjectRow, now metadata.Millis) error {
	const insert = "INSERT INTO objects (key, size, refs, state, changed) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO "
	args := []any{string(o.Key), o.Size, o.Refs, int(o.State), int64(now)}
	if o.Lenient {
		_, err := s.exec(insert+"NOTHING", args...)
		return err
	}
	n, err := s.exec(insert+`UPDATE SET size = excluded.size, refs = refs + excluded.refs, state = excluded.state,
		changed = excluded.changed WHERE state <> ?`, append(args, int(metadata.ObjectCondemned))...)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: %s", metadata.ErrCondemned, o.Key)
	}
	return nil
}

// LoadBlocks implements metadata.Driver.
func (d *Driver) LoadBlocks(ctx context.Context, known []metadata.BlockSeq) (*metadata.BlocksLoaded, error) {
	loaded := &metadata.BlocksLoaded{}
	err := d.read(ctx, func(s *session) (err error) {
		loaded.Blocks, err = s.deltas(known)
		return err
	})
	if err != nil {
		return nil, err
	}
	loaded.Now = d.millis()
	return loaded, nil
}

// deltas loads what is new of blocks, in the order asked for, in one transaction's view.
func (s *session) deltas(known []metadata.BlockSeq) ([]metadata.BlockDelta, error) {
	if len(known) == 0 {
		return nil, nil
	}
	ids := make([]int64, len(known))
	for i, k := range known {
		ids[i] = int64(k.Block)
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	deltas := make([]metadata.BlockDelta, 0, len(known))
	at := make(map[metadata.BlockID]int, len(known))
	// CROSS JOIN keeps the order of the loops, and with it the order of the answer.
	err = s.each(`SELECT `+blockColumns+` FROM json_each(?) AS j CROSS JOIN blocks ON blocks.block = j.value`,
		[]any{string(list)}, func(rows *sql.Rows) error {
			var b metadata.BlockRow
			if err := scanBlock(rows, &b); err != nil {
				return err
			}
			at[b.ID] = len(deltas)
			deltas = append(deltas, metadata.BlockDelta{Row: b})
			return nil
		})
	if err != nil {
		return nil, err
	}
	from := ids[:0]
	for _, k := range known {
		i, ok := at[k.Block]
		if !ok {
			continue
		}
		seq := k.Seq
		if seq == metadata.SeqCold {
			if deltas[i].Checkpoint, err = s.checkpoint(k.Block); err != nil {
				return nil, err
			}
			seq = 0
			if c := deltas[i].Checkpoint; c != nil {
				seq = c.Seq
			}
		}
		from = append(from, place(k.Block, seq))
	}
	if list, err = json.Marshal(from); err != nil {
		return nil, err
	}
	err = s.each(levelAbove, []any{string(list)}, func(rows *sql.Rows) error {
		r, err := scanRow(rows)
		if err != nil {
			return err
		}
		delta := &deltas[at[r.Block]]
		delta.Rows = append(delta.Rows, r)
		return nil
	})
	return deltas, err
}

// levelAbove gives the rows above places, each to the end of its block.
const levelAbove = `SELECT ` + rowColumns + ` FROM json_each(?) AS j CROSS JOIN level0
	ON level0.place > j.value AND level0.place <= (j.value | 1099511627775)`

// checkpoint gives a block's newest checkpoint, or nil.
func (s *session) checkpoint(id metadata.BlockID) (*metadata.Checkpoint, error) {
	var at int64
	c := &metadata.Checkpoint{}
	err := s.row("SELECT place, state FROM checkpoints WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1",
		place(id, 0), place(id, maxSeq)).Scan(&at, &c.State)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, failure(err)
	}
	c.Seq = seqOf(at)
	return c, nil
}

// SaveCheckpoint implements metadata.Driver.
func (d *Driver) SaveCheckpoint(ctx context.Context, block metadata.BlockID, seq metadata.Seq, state []byte) error {
	if err := checkPlace(block, seq); err != nil {
		return err
	}
	return d.write(ctx, func(s *session) error {
		var newest sql.NullInt64
		err := s.row("SELECT max(place) FROM checkpoints WHERE place BETWEEN ? AND ?", place(block, 0), place(block, maxSeq)).
			Scan(&newest)
		if err != nil {
			return failure(err)
		}
		if newest.Valid && newest.Int64 >= place(block, seq) {
			return nil
		}
		if _, err := s.exec("INSERT INTO checkpoints (place, state) VALUES (?, ?)", place(block, seq), state); err != nil {
			return err
		}
		if !newest.Valid {
			return nil
		}
		_, err = s.exec("DELETE FROM checkpoints WHERE place >= ? AND place < ?", place(block, 0), newest.Int64)
		return err
	}, nil)
}

// LoadInline implements metadata.Driver.
func (d *Driver) LoadInline(ctx context.Context, parts []metadata.InlinePart) ([][]byte, error) {
	found := make([][]byte, len(parts))
	err := d.read(ctx, func(s *session) error {
		for i, p := range parts {
			data := []byte{}
			err := s.row("SELECT substr(payload, ?, ?) FROM inline WHERE flush = ?", p.Position+1, p.Length, p.Flush[:]).Scan(&data)
			switch {
			case errors.Is(err, sql.ErrNoRows):
				continue
			case err != nil:
				return failure(err)
			case data == nil:
				data = []byte{}
			}
			found[i] = data
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// ExpireReceipts implements metadata.Driver.
func (d *Driver) ExpireReceipts(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	var n int64
	err := d.write(ctx, func(s *session) (err error) {
		n, err = s.exec("DELETE FROM receipts WHERE id IN (SELECT id FROM receipts ORDER BY id LIMIT ?) AND time < ?",
			limit, int64(d.millis().Add(-olderThan)))
		return err
	}, nil)
	return int(n), err
}
