package postgres

import (
	"bytes"
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

// deltas collects what is new of blocks.
type deltas struct {
	list []metadata.BlockDelta
	at   map[metadata.BlockID]int
	now  metadata.Millis
}

// block takes a block's row: id, version, log_start, deleted, config_epoch, merged_seq, used, shared.
func (b *deltas) block(c *column) error {
	row := metadata.BlockRow{ID: metadata.BlockID(c.int8()), Version: c.int8()}
	err := decodeLogStarts(c.raw(), &row.LogStart)
	row.Deleted = uint64(c.int8())
	row.ConfigEpoch = metadata.CatalogueVersion(c.int8())
	row.MergedSeq = metadata.Seq(c.int8())
	row.Used, row.Shared = int(c.int2()), c.bool()
	if c.err != nil {
		return c.err
	}
	if err != nil {
		return fmt.Errorf("block %d: %w", row.ID, err)
	}
	if _, known := b.at[row.ID]; !known { // a commit has it from under the lock
		b.at[row.ID] = len(b.list)
		b.list = append(b.list, metadata.BlockDelta{Row: row})
	}
	return nil
}

// row takes a level0 row.
func (b *deltas) row(block metadata.BlockID, c *column) error {
	row, err := scanRow(block, c)
	if err != nil {
		return err
	}
	if i, ok := b.at[block]; ok {
		b.list[i].Rows = append(b.list[i].Rows, row)
	}
	return nil
}

// loadedColumns is the number of columns of stLoad that only a block's row has.
const loadedColumns = 7

// loaded takes a row of stLoad.
func (b *deltas) loaded(c *column) error {
	switch c.int2() {
	case 0:
		if err := b.block(c); err != nil {
			return err
		}
		b.now = metadata.Millis(c.int8())
		return nil
	case 1:
		block := metadata.BlockID(c.int8())
		c.next += loadedColumns
		seq := metadata.Seq(c.int8())
		c.next += 3
		state := c.raw()
		if i, ok := b.at[block]; ok && c.err == nil {
			b.list[i].Checkpoint = &metadata.Checkpoint{Seq: seq, State: bytes.Clone(state)}
		}
		return c.err
	default:
		block := metadata.BlockID(c.int8())
		c.next += loadedColumns
		return b.row(block, c)
	}
}

// LoadBlocks implements metadata.Driver.
func (d *Driver) LoadBlocks(ctx context.Context, known []metadata.BlockSeq) (*metadata.BlocksLoaded, error) {
	p := d.params()
	defer d.done(p)
	blockParams(p, known)
	var b deltas
	err := d.read(ctx, stLoad, p, func() func(*column) error {
		b = deltas{at: make(map[metadata.BlockID]int, len(known))}
		return b.loaded
	})
	if err != nil {
		return nil, fmt.Errorf("load blocks: %w", err)
	}
	if len(b.list) == 0 { // none of them exists, so no row told the time
		now, err := d.Now(ctx)
		if err != nil {
			return nil, err
		}
		b.now = now
	}
	return &metadata.BlocksLoaded{Now: b.now, Blocks: b.list}, nil
}

// LoadInline implements metadata.Driver.
func (d *Driver) LoadInline(ctx context.Context, parts []metadata.InlinePart) ([][]byte, error) {
	payloads := make([][]byte, len(parts))
	if len(parts) == 0 {
		return payloads, nil
	}
	ids := make([][16]byte, len(parts))
	from, length := make([]int32, len(parts)), make([]int32, len(parts))
	for i, p := range parts {
		ids[i], from[i], length[i] = p.Flush, int32(p.Position+1), int32(p.Length)
	}
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, loadInlineSQL, ids, from, length)
		if err != nil {
			return err
		}
		var i int64
		var payload []byte
		_, err = pgx.ForEachRow(rows, []any{&i, &payload}, func() error {
			p := parts[i-1]
			if int64(len(payload)) != p.Length {
				return fmt.Errorf("%w: inline payload %s has %d bytes at %d, not %d", metadata.ErrCorrupt,
					p.Flush, len(payload), p.Position, p.Length)
			}
			payloads[i-1], payload = payload, nil
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load inline payloads: %w", err)
	}
	return payloads, nil
}
