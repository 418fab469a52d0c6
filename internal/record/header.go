package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
)

const (
	// HeaderBytes is the size of a v2 batch header; the records follow it.
	HeaderBytes = 61
	// Magic is the only format version this package reads.
	Magic = 2

	// NoProducerID, NoProducerEpoch and NoSequence say that the batch is not
	// idempotent.
	NoProducerID    int64 = -1
	NoProducerEpoch int16 = -1
	NoSequence      int32 = -1
	// NoTimestamp is the timestamp of a record that has none.
	NoTimestamp int64 = -1

	// lengthOverhead is what the length field does not count: base offset and itself.
	lengthOverhead = 12
	// magicEnd is how many bytes must be there before the magic can be read.
	magicEnd = posMagic + 1

	posBaseOffset      = 0
	posLength          = 8
	posLeaderEpoch     = 12
	posMagic           = 16
	posCRC             = 17
	posAttributes      = 21
	posLastOffsetDelta = 23
	posBaseTimestamp   = 27
	posMaxTimestamp    = 35
	posProducerID      = 43
	posProducerEpoch   = 51
	posBaseSequence    = 53
	posRecordCount     = 57

	attrCodecMask     = 0x07
	attrLogAppendTime = 1 << 3
	attrTransactional = 1 << 4
	attrControl       = 1 << 5
	attrDeleteHorizon = 1 << 6
)

// castagnoli is the CRC-32C table; with it hash/crc32 uses the CPU's instruction.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is the header of one batch, as it stands in the bytes.
type Header struct {
	BaseOffset      int64
	Length          int32 // bytes after the length field
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32 // CRC-32C of everything from the attributes on
	Attributes      int16
	LastOffsetDelta int32
	BaseTimestamp   int64 // milliseconds
	MaxTimestamp    int64 // milliseconds
	ProducerID      int64 // -1: none
	ProducerEpoch   int16
	BaseSequence    int32 // -1: none
	RecordCount     int32
}

// Size is the size of the whole batch in bytes.
func (h Header) Size() int { return lengthOverhead + int(h.Length) }

// Codec is how the records are compressed. It may be one that does not exist.
func (h Header) Codec() Codec { return Codec(h.Attributes & attrCodecMask) }

// Transactional says whether the batch belongs to a transaction.
func (h Header) Transactional() bool { return h.Attributes&attrTransactional != 0 }

// Control says whether the batch holds a transaction marker.
func (h Header) Control() bool { return h.Attributes&attrControl != 0 }

// LogAppendTime says whether every record has MaxTimestamp as its timestamp.
func (h Header) LogAppendTime() bool { return h.Attributes&attrLogAppendTime != 0 }

// DeleteHorizon says whether BaseTimestamp is a delete horizon (KIP-534).
func (h Header) DeleteHorizon() bool { return h.Attributes&attrDeleteHorizon != 0 }

// HasProducerID says whether an idempotent producer sent the batch.
func (h Header) HasProducerID() bool { return h.ProducerID > NoProducerID }

// LastOffset is the offset of the last record.
func (h Header) LastOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) }

// LastSequence is the sequence of the last record, or NoSequence. After
// 2147483647 comes 0.
func (h Header) LastSequence() int32 {
	if h.BaseSequence < 0 {
		return NoSequence
	}
	return AddSequence(h.BaseSequence, h.LastOffsetDelta)
}

// AddSequence returns the sequence n records after seq. Both must be at least 0;
// after 2147483647 comes 0.
func AddSequence(seq, n int32) int32 {
	return int32((int64(seq) + int64(n)) & math.MaxInt32)
}

// Parse reads the header of the first batch in b. It does not allocate when it
// succeeds, looks at nothing behind the header, and makes sure that b holds
// the whole batch: ErrEmpty, ErrTruncated, ErrLength or ErrMagic otherwise. The
// CRC is not verified.
func Parse(b []byte) (Header, error) {
	if len(b) == 0 {
		return Header{}, ErrEmpty
	}
	if len(b) < magicEnd {
		return Header{}, fmt.Errorf("%w: %d bytes", ErrTruncated, len(b))
	}
	// Magic 0 and 1 put theirs at the same place; ask before believing the length,
	// whose minimum differs.
	if m := int8(b[posMagic]); m != Magic {
		return Header{}, fmt.Errorf("%w but %d", ErrMagic, m)
	}
	length := int32(binary.BigEndian.Uint32(b[posLength:]))
	if length < HeaderBytes-lengthOverhead {
		return Header{}, fmt.Errorf("%w: %d", ErrLength, length)
	}
	if int64(length)+lengthOverhead > int64(len(b)) {
		return Header{}, fmt.Errorf("%w: %d of %d bytes", ErrTruncated, len(b), int64(length)+lengthOverhead)
	}
	return readHeader(b), nil
}

// readHeader needs HeaderBytes bytes.
func readHeader(b []byte) Header {
	b = b[:HeaderBytes]
	be := binary.BigEndian
	return Header{
		BaseOffset:      int64(be.Uint64(b[posBaseOffset:])),
		Length:          int32(be.Uint32(b[posLength:])),
		LeaderEpoch:     int32(be.Uint32(b[posLeaderEpoch:])),
		Magic:           int8(b[posMagic]),
		CRC:             be.Uint32(b[posCRC:]),
		Attributes:      int16(be.Uint16(b[posAttributes:])),
		LastOffsetDelta: int32(be.Uint32(b[posLastOffsetDelta:])),
		BaseTimestamp:   int64(be.Uint64(b[posBaseTimestamp:])),
		MaxTimestamp:    int64(be.Uint64(b[posMaxTimestamp:])),
		ProducerID:      int64(be.Uint64(b[posProducerID:])),
		ProducerEpoch:   int16(be.Uint16(b[posProducerEpoch:])),
		BaseSequence:    int32(be.Uint32(b[posBaseSequence:])),
		RecordCount:     int32(be.Uint32(b[posRecordCount:])),
	}
}

// VerifyCRC checks the checksum of the first batch in b: ErrCRC when it does not
// match, or what Parse says.
func VerifyCRC(b []byte) error {
	h, err := Parse(b)
	if err != nil {
		return err
	}
	return h.verifyCRC(b)
}

func (h Header) verifyCRC(b []byte) error {
	if got := checksum(b[:h.Size()]); got != h.CRC {
		return fmt.Errorf("%w: computed %08x, header says %08x", ErrCRC, got, h.CRC)
	}
	return nil
}

// checksum computes the CRC of exactly one batch.
func checksum(batch []byte) uint32 { return crc32.Checksum(batch[posAttributes:], castagnoli) }

// Batch is one batch of several in a row.
type Batch struct {
	Header
	// Position is where the batch starts in the bytes iterated over.
	Position int
	// Bytes is the whole batch, header included; it shares memory with the input.
	Bytes []byte
}

// Batches iterates over the batches that stand back to back in b. An error is
// yielded once, as the last element, with its position. CRCs are not verified.
func Batches(b []byte) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		for pos := 0; pos < len(b); {
			h, err := Parse(b[pos:])
			if err != nil {
				yield(Batch{Position: pos}, fmt.Errorf("batch at %d: %w", pos, err))
				return
			}
			end := pos + h.Size()
			if !yield(Batch{Header: h, Position: pos, Bytes: b[pos:end:end]}, nil) {
				return
			}
			pos = end
		}
	}
}
