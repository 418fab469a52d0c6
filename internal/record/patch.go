package record

import (
	"encoding/binary"
	"fmt"
)

// The setters below change the first batch of b in place. b must hold a batch
// that Parse accepts; a shorter slice panics, as an index out of range does.

// SetBaseOffset sets the base offset, which the CRC does not cover.
func SetBaseOffset(b []byte, offset int64) {
	binary.BigEndian.PutUint64(b[posBaseOffset:], uint64(offset))
}

// SetLeaderEpoch sets the partition leader epoch, which the CRC does not cover.
func SetLeaderEpoch(b []byte, epoch int32) {
	binary.BigEndian.PutUint32(b[posLeaderEpoch:], uint32(epoch))
}

// PatchedHeader copies the header of the first batch of b into dst with another
// base offset and leader epoch, and leaves b alone: Fetch writes dst and then
// b[HeaderBytes:], which may be shared memory.
func PatchedHeader(dst *[HeaderBytes]byte, b []byte, baseOffset int64, leaderEpoch int32) {
	copy(dst[:], b[:HeaderBytes])
	SetBaseOffset(dst[:], baseOffset)
	SetLeaderEpoch(dst[:], leaderEpoch)
}

// SetLogAppendTime gives the first batch of b the timestamp type LogAppendTime
// and ts (milliseconds) as the time of all its records, and computes its CRC
// again.
func SetLogAppendTime(b []byte, ts int64) error {
	return rewrite(b, func(h *Header) {
		h.Attributes |= attrLogAppendTime
		h.MaxTimestamp = ts
	})
}

// ClearLogAppendTime makes the timestamp type of the first batch of b CreateTime
// and computes its CRC again, if it was anything else. MaxTimestamp is left as
// the producer wrote it.
func ClearLogAppendTime(b []byte) error {
	return rewrite(b, func(h *Header) { h.Attributes &^= attrLogAppendTime })
}

// SetMaxTimestamp corrects the header's maximum timestamp (milliseconds) and
// computes the CRC again. Kafka does so when a producer's header disagrees with its
// records.
func SetMaxTimestamp(b []byte, ts int64) error {
	return rewrite(b, func(h *Header) { h.MaxTimestamp = ts })
}

// rewrite changes attributes and maximum timestamp of the first batch of b in
// place.
func rewrite(b []byte, change func(*Header)) error {
	h, err := Parse(b)
	if err != nil {
		return fmt.Errorf("rewrite batch: %w", err)
	}
	was := h
	change(&h)
	if h == was {
		return nil
	}
	binary.BigEndian.PutUint16(b[posAttributes:], uint16(h.Attributes))
	binary.BigEndian.PutUint64(b[posMaxTimestamp:], uint64(h.MaxTimestamp))
	seal(b[:h.Size()])
	return nil
}

// seal writes the CRC of exactly one batch.
func seal(batch []byte) { binary.BigEndian.PutUint32(batch[posCRC:], checksum(batch)) }
