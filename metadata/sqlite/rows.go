package sqlite

import (
	"database/sql"
	"encoding/binary"
	"fmt"

	"github.com/skeinio/skein/metadata"
)

// A place is (block, seq) in one integer.
const (
	seqBits  = 40
	maxSeq   = 1<<seqBits - 1
	maxBlock = 1<<(63-seqBits) - 1
)

func place(b metadata.BlockID, seq metadata.Seq) int64 { return int64(b)<<seqBits | int64(seq) }

func blockOf(place int64) metadata.BlockID { return metadata.BlockID(place >> seqBits) }

func seqOf(place int64) metadata.Seq { return metadata.Seq(place & maxSeq) }

// checkPlace refuses what a place cannot hold.
func checkPlace(b metadata.BlockID, seq metadata.Seq) error {
	if b < 1 || b > maxBlock || seq < 0 || seq > maxSeq {
		return fmt.Errorf("block %d, seq %d: out of bounds (%d, %d)", b, seq, maxBlock, int64(maxSeq))
	}
	return nil
}

const blockColumns = "block, version, deleted, config_epoch, merged_seq, used, shared, log_start"

// scanBlock reads blockColumns.
func scanBlock(row scanner, b *metadata.BlockRow) error {
	var deleted int64
	var starts []byte
	if err := row.Scan(&b.ID, &b.Version, &deleted, &b.ConfigEpoch, &b.MergedSeq, &b.Used, &b.Shared, &starts); err != nil {
		return failure(err)
	}
	b.Deleted = uint64(deleted)
	if len(starts) != 8*metadata.SlotsPerBlock {
		return fmt.Errorf("%w: log starts of block %d have %d bytes", metadata.ErrCorrupt, b.ID, len(starts))
	}
	for i := range b.LogStart {
		b.LogStart[i] = metadata.Offset(binary.BigEndian.Uint64(starts[8*i:]))
	}
	return nil
}

func (s *session) saveBlock(b *metadata.BlockRow) error {
	if err := checkPlace(b.ID, 0); err != nil {
		return err
	}
	starts := make([]byte, 0, 8*metadata.SlotsPerBlock)
	for _, o := range b.LogStart {
		starts = binary.BigEndian.AppendUint64(starts, uint64(o))
	}
	_, err := s.exec(`INSERT INTO blocks (`+blockColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (block) DO UPDATE SET version = excluded.version, deleted = excluded.deleted,
		config_epoch = excluded.config_epoch, merged_seq = excluded.merged_seq, used = excluded.used,
		shared = excluded.shared, log_start = excluded.log_start`,
		int64(b.ID), b.Version, int64(b.Deleted), int64(b.ConfigEpoch), int64(b.MergedSeq), b.Used, b.Shared, starts)
	return err
}

const rowColumns = "place, time, flush, object, photo, touched"

// scanRow reads rowColumns.
func scanRow(rows *sql.Rows) (*metadata.Row, error) {
	var at int64
	var flush, photo, touched sql.RawBytes
	r := &metadata.Row{}
	if err := rows.Scan(&at, &r.Time, &flush, &r.Object, &photo, &touched); err != nil {
		return nil, err
	}
	r.Block, r.Seq = blockOf(at), seqOf(at)
	if copy(r.Flush[:], flush) != len(r.Flush) {
		return nil, fmt.Errorf("%w: flush id of %d bytes", metadata.ErrCorrupt, len(flush))
	}
	err := r.Photo.Decode(photo)
	if err == nil {
		r.Touched, err = metadata.DecodeTouched(touched)
	}
	if err != nil {
		return nil, fmt.Errorf("row (%d, %d): %w", r.Block, r.Seq, err)
	}
	return r, nil
}

func (s *session) insertRow(r *metadata.Row, buf []byte) ([]byte, error) {
	if err := checkPlace(r.Block, r.Seq); err != nil {
		return buf, err
	}
	buf = r.Photo.AppendTo(buf[:0])
	buf = metadata.AppendTouched(buf, r.Touched)
	_, err := s.exec("INSERT INTO level0 ("+rowColumns+") VALUES (?, ?, ?, ?, ?, ?)",
		place(r.Block, r.Seq), int64(r.Time), r.Flush[:], string(r.Object),
		buf[:metadata.PhotoSize], buf[metadata.PhotoSize:])
	return buf, err
}
