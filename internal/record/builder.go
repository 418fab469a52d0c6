package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrBuild: what was put into a Builder cannot be one batch.
var ErrBuild = errors.New("cannot build record batch")

// Builder makes one batch. Make it with NewBuilder, set what is not the default,
// append records, Build. It is not safe for concurrent use.
type Builder struct {
	h       Header
	level   int
	records []byte
	deltas  bool // the base timestamp is known
	keepMax bool // SetLogAppendTime gave the maximum timestamp
}

// NewBuilder returns a builder of an uncompressed batch without producer id, with
// base offset 0 and leader epoch -1, as a producer sends it.
func NewBuilder() *Builder {
	b := &Builder{}
	b.Reset()
	return b
}

// Reset forgets records and settings but keeps memory.
func (b *Builder) Reset() {
	*b = Builder{
		records: b.records[:0],
		h: Header{
			LeaderEpoch: -1, Magic: Magic, LastOffsetDelta: -1,
			BaseTimestamp: NoTimestamp, MaxTimestamp: NoTimestamp,
			ProducerID: NoProducerID, ProducerEpoch: NoProducerEpoch, BaseSequence: NoSequence,
		},
	}
}

// SetCodec compresses the records; level as in Recompress.
func (b *Builder) SetCodec(c Codec, level int) *Builder {
	b.h.Attributes = b.h.Attributes&^attrCodecMask | int16(c)
	b.level = level
	return b
}

// SetProducer makes the batch idempotent.
func (b *Builder) SetProducer(id int64, epoch int16, baseSequence int32) *Builder {
	b.h.ProducerID, b.h.ProducerEpoch, b.h.BaseSequence = id, epoch, baseSequence
	return b
}

// SetTransactional makes the batch part of a transaction.
func (b *Builder) SetTransactional() *Builder {
	b.h.Attributes |= attrTransactional
	return b
}

// SetControl makes the batch a control batch; see ControlBatch.
func (b *Builder) SetControl() *Builder {
	b.h.Attributes |= attrControl
	return b
}

// SetLogAppendTime sets the timestamp type LogAppendTime with ts (milliseconds).
func (b *Builder) SetLogAppendTime(ts int64) *Builder {
	b.h.Attributes |= attrLogAppendTime
	b.h.MaxTimestamp, b.keepMax = ts, true
	return b
}

// SetBaseTimestamp sets the time (milliseconds) that timestamp deltas count from,
// before the first record, whose timestamp it is otherwise.
func (b *Builder) SetBaseTimestamp(ts int64) *Builder {
	b.h.BaseTimestamp, b.deltas = ts, true
	return b
}

// SetBaseOffset sets the offset that offset deltas count from.
func (b *Builder) SetBaseOffset(offset int64) *Builder {
	b.h.BaseOffset = offset
	return b
}

// SetLeaderEpoch sets the partition leader epoch.
func (b *Builder) SetLeaderEpoch(epoch int32) *Builder {
	b.h.LeaderEpoch = epoch
	return b
}

// SetLastOffsetDelta keeps the last offset where key compaction removed the records
// behind it; it never lowers it.
func (b *Builder) SetLastOffsetDelta(delta int32) *Builder {
	b.h.LastOffsetDelta = max(b.h.LastOffsetDelta, delta)
	return b
}

// Append adds a record at the next offset. ts is in milliseconds; a nil key or
// value is null.
func (b *Builder) Append(ts int64, key, value []byte, headers ...RecordHeader) *Builder {
	return b.Add(Record{OffsetDelta: b.h.LastOffsetDelta + 1, Timestamp: ts, Key: key, Value: value, Headers: headers})
}

// Add adds a record at its own offset delta, which must be above the last one's;
// TimestampDelta is ignored, Timestamp counts.
func (b *Builder) Add(r Record) *Builder {
	if !b.deltas {
		b.SetBaseTimestamp(r.Timestamp)
	}
	if !b.keepMax {
		b.h.MaxTimestamp = max(b.h.MaxTimestamp, r.Timestamp)
	}
	r.TimestampDelta = r.Timestamp - b.h.BaseTimestamp
	b.h.LastOffsetDelta = r.OffsetDelta
	b.h.RecordCount++
	b.records = appendRecord(b.records, r)
	return b
}

// Count is the number of records appended so far.
func (b *Builder) Count() int { return int(b.h.RecordCount) }

// Size is the size of the batch in bytes if it were not compressed.
func (b *Builder) Size() int { return HeaderBytes + len(b.records) }

// Build returns the batch in new memory. A batch without records is legal only
// with a last offset: key compaction leaves such.
func (b *Builder) Build() ([]byte, error) {
	if b.h.LastOffsetDelta < 0 {
		return nil, fmt.Errorf("%w: no records", ErrBuild)
	}
	return assemble(b.h, b.level, b.records)
}

// assemble compresses records and writes h before them, with length and CRC.
func assemble(h Header, level int, records []byte) ([]byte, error) {
	out := make([]byte, HeaderBytes, HeaderBytes+len(records))
	out, err := compress(h.Codec(), level, out, records)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBuild, err)
	}
	if len(out) > math.MaxInt32 {
		return nil, fmt.Errorf("%w: %d bytes", ErrBuild, len(out))
	}
	h.Length = int32(len(out) - lengthOverhead)
	be := binary.BigEndian
	be.PutUint64(out[posBaseOffset:], uint64(h.BaseOffset))
	be.PutUint32(out[posLength:], uint32(h.Length))
	be.PutUint32(out[posLeaderEpoch:], uint32(h.LeaderEpoch))
	out[posMagic] = byte(h.Magic)
	be.PutUint16(out[posAttributes:], uint16(h.Attributes))
	be.PutUint32(out[posLastOffsetDelta:], uint32(h.LastOffsetDelta))
	be.PutUint64(out[posBaseTimestamp:], uint64(h.BaseTimestamp))
	be.PutUint64(out[posMaxTimestamp:], uint64(h.MaxTimestamp))
	be.PutUint64(out[posProducerID:], uint64(h.ProducerID))
	be.PutUint16(out[posProducerEpoch:], uint16(h.ProducerEpoch))
	be.PutUint32(out[posBaseSequence:], uint32(h.BaseSequence))
	be.PutUint32(out[posRecordCount:], uint32(h.RecordCount))
	seal(out)
	return out, nil
}

// Recompress returns the first batch of b with its records compressed by another
// codec, for compression.type; b itself when it has that codec already. level
// is Kafka's for the codec (KIP-390), DefaultLevel for its default. The records are
// bounded by DefaultMaxDecompressedBytes; use CheckRecords first for
// another bound.
func Recompress(b []byte, codec Codec, level int) ([]byte, error) {
	h, err := Parse(b)
	if err != nil {
		return nil, err
	}
	if h.Codec() == codec {
		return b[:h.Size()], nil
	}
	if !codec.Valid() {
		return nil, fmt.Errorf("%w: %d", ErrCodec, codec)
	}
	h, p, err := payload(b, nil, DefaultMaxDecompressedBytes)
	if err != nil {
		return nil, err
	}
	h.Attributes = h.Attributes&^attrCodecMask | int16(codec)
	return assemble(h, level, p)
}

func appendRecord(dst []byte, r Record) []byte {
	size := 1 + varintBytes(r.TimestampDelta) + varintBytes(int64(r.OffsetDelta)) +
		bytesSize(r.Key) + bytesSize(r.Value) + varintBytes(int64(len(r.Headers)))
	for _, h := range r.Headers {
		size += varintBytes(int64(len(h.Key))) + len(h.Key) + bytesSize(h.Value)
	}
	dst = binary.AppendVarint(dst, int64(size))
	dst = append(dst, 0) // attributes
	dst = binary.AppendVarint(dst, r.TimestampDelta)
	dst = binary.AppendVarint(dst, int64(r.OffsetDelta))
	dst = appendBytes(dst, r.Key)
	dst = appendBytes(dst, r.Value)
	dst = binary.AppendVarint(dst, int64(len(r.Headers)))
	for _, h := range r.Headers {
		dst = binary.AppendVarint(dst, int64(len(h.Key)))
		dst = append(dst, h.Key...)
		dst = appendBytes(dst, h.Value)
	}
	return dst
}

func appendBytes(dst, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(v)))
	return append(dst, v...)
}

func bytesSize(v []byte) int {
	if v == nil {
		return varintBytes(-1)
	}
	return varintBytes(int64(len(v))) + len(v)
}

// varintBytes is the length of v as a zigzag varint.
func varintBytes(v int64) int {
	u := uint64(v<<1) ^ uint64(v>>63)
	n := 1
	for ; u >= 0x80; u >>= 7 {
		n++
	}
	return n
}
