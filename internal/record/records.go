package record

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

const (
	// minRecordBytes is the smallest record: its length, attributes, timestamp delta, offset
	// delta, null key, null value and no headers, one byte each.
	minRecordBytes = 7
	// minRecordHeaderBytes is the smallest record header: empty key, null value.
	minRecordHeaderBytes = 2
)

// RecordHeader is one header of a record (KIP-82).
type RecordHeader struct {
	Key   string
	Value []byte // nil: null
}

// Record is one record of a batch. Key and Value share memory with the batch, or
// with the buffer it was decompressed into.
type Record struct {
	OffsetDelta    int32 // offset minus the batch's base offset
	TimestampDelta int64
	// Timestamp in milliseconds: the batch's MaxTimestamp when it is LogAppendTime,
	// otherwise BaseTimestamp + TimestampDelta.
	Timestamp int64
	Key       []byte // nil: null
	Value     []byte // nil: null
	Headers   []RecordHeader
}

// Records iterates over the records of the first batch in b, decompressing it
// first when need be; limit bounds the decompressed records in bytes (0:
// DefaultMaxDecompressedBytes). An error is yielded once, as the last element.
// The iteration ends after the header's record count; bytes left over, or
// fewer records than that, are an error. The CRC is not verified.
func Records(b []byte, limit int) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		h, p, err := payload(b, nil, limit)
		if err != nil {
			yield(Record{}, err)
			return
		}
		for i := int32(0); i < h.RecordCount; i++ {
			raw, rest, err := nextRecord(p)
			if err != nil {
				yield(Record{}, fmt.Errorf("record %d: %w", i, err))
				return
			}
			p = rest
			if !yield(raw.record(h), nil) {
				return
			}
		}
		if len(p) > 0 {
			yield(Record{}, fmt.Errorf("%w: %d bytes after %d records", ErrCount, len(p), h.RecordCount))
		}
	}
}

// payload returns the header of the first batch in b and its records as they are
// before compression, using dst's memory if that is large enough.
func payload(b, dst []byte, limit int) (Header, []byte, error) {
	h, err := Parse(b)
	if err != nil {
		return Header{}, nil, err
	}
	p, err := decompress(h.Codec(), dst, b[HeaderBytes:h.Size()], limit)
	if err != nil {
		return Header{}, nil, err
	}
	return h, p, nil
}

// rawRecord is a record whose headers have been checked but not made into values.
type rawRecord struct {
	offsetDelta    int32
	timestampDelta int64
	key, value     []byte
	headerCount    int
	headers        []byte
}

func (h Header) timestamp(delta int64) int64 {
	if h.LogAppendTime() {
		return h.MaxTimestamp
	}
	return h.BaseTimestamp + delta
}

func (r rawRecord) record(h Header) Record {
	rec := Record{
		OffsetDelta:    r.offsetDelta,
		TimestampDelta: r.timestampDelta,
		Timestamp:      h.timestamp(r.timestampDelta),
		Key:            r.key,
		Value:          r.value,
	}
	if r.headerCount == 0 {
		return rec
	}
	rec.Headers = make([]RecordHeader, r.headerCount)
	c := cursor{b: r.headers}
	for i := range rec.Headers {
		rec.Headers[i].Key = string(c.bytes())
		rec.Headers[i].Value = c.bytes()
	}
	return rec
}

// nextRecord parses the record at the start of p and returns what follows it. It
// does not allocate when it succeeds.
func nextRecord(p []byte) (r rawRecord, rest []byte, err error) {
	c := cursor{b: p}
	size := c.varint()
	if c.bad || size < minRecordBytes-1 || size > int64(len(c.b)) {
		return rawRecord{}, nil, fmt.Errorf("%w: length %d with %d bytes left", ErrBadRecord, size, len(c.b))
	}
	rest = c.b[size:]
	c.b = c.b[:size:size]
	c.skip(1) // attributes, unused
	r.timestampDelta = c.varint()
	r.offsetDelta = c.varint32()
	r.key = c.bytes()
	r.value = c.bytes()
	n := c.varint32()
	if c.bad || n < 0 || int64(n)*minRecordHeaderBytes > int64(len(c.b)) {
		return rawRecord{}, nil, fmt.Errorf("%w: fields do not fit its %d bytes", ErrBadRecord, size)
	}
	r.headerCount, r.headers = int(n), c.b
	for range n {
		if c.bytes() == nil {
			c.bad = true // a header key is never null
		}
		c.bytes()
	}
	if c.bad || len(c.b) > 0 {
		return rawRecord{}, nil, fmt.Errorf("%w: its %d bytes do not end with its last header", ErrBadRecord, size)
	}
	return r, rest, nil
}

// cursor reads the fields of a record; after the first that does not fit, bad
// stays set and reads give zeros.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) skip(n int) {
	if n > len(c.b) {
		c.bad, c.b = true, nil
		return
	}
	c.b = c.b[n:]
}

// varint reads a zigzag varint of up to 64 bits.
func (c *cursor) varint() int64 {
	// Most are one byte; this is the loop that checks every record.
	if len(c.b) > 0 && c.b[0] < 0x80 {
		u := c.b[0]
		c.b = c.b[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint32() int32 {
	v := c.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		c.bad = true
		return 0
	}
	return int32(v)
}

// bytes reads a length and as many bytes; nil for null (-1).
func (c *cursor) bytes() []byte {
	n := c.varint()
	if n == -1 {
		return nil
	}
	if c.bad || n < 0 || n > int64(len(c.b)) {
		c.bad = true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}
