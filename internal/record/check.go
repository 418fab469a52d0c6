package record

import (
	"fmt"
	"sync"
)

const (
	// MaxRecordErrors bounds how many bad records of a batch are named.
	MaxRecordErrors = 100
	// maxPooledScratchBytes bounds the decompression buffers that are kept for reuse.
	maxPooledScratchBytes = 4 << 20
)

// RecordOptions says what CheckRecords looks for beyond well-formed records.
type RecordOptions struct {
	// MaxDecompressedBytes bounds the decompressed records; 0 means
	// DefaultMaxDecompressedBytes.
	MaxDecompressedBytes int
	// RequireKeys refuses null keys (cleanup.policy contains compact).
	RequireKeys bool
	// CheckTimestamps applies Now, BeforeMax and AfterMax, all in milliseconds, to
	// every record that has a timestamp: message.timestamp.before.max.ms and
	// message.timestamp.after.max.ms (KIP-937). Leave it off for
	// LogAppendTime topics.
	CheckTimestamps          bool
	Now, BeforeMax, AfterMax int64
}

// RecordError is one refused record, for RecordErrors of a Produce response
// (KIP-467).
type RecordError struct {
	Index   int32 // within the batch
	Message string
	Err     error // ErrNullKey, ErrTimestamp or ErrBadRecord
}

// RecordsReport is what CheckRecords found.
type RecordsReport struct {
	// MaxTimestamp is the largest timestamp among the records, in milliseconds,
	// which a producer's header may misstate (SetMaxTimestamp corrects it).
	MaxTimestamp int64
	// Errors are the first MaxRecordErrors refused records, ErrorCount all of them.
	Errors     []RecordError
	ErrorCount int
}

// scratch are buffers for records that are looked at and dropped.
var scratch sync.Pool // *[]byte

// CheckRecords looks at every record of the first batch in b, decompressing it
// first when need be: their number against the header (ErrCount), offset deltas
// 0, 1, 2 and so on, keys and timestamps as the options ask. The header must
// have passed CheckProduce. When single records are refused the report names them
// and the error is ErrTimestamp if any of them has a bad timestamp, as in Kafka,
// otherwise the first one's.
func CheckRecords(b []byte, o RecordOptions) (RecordsReport, error) {
	buf, _ := scratch.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer func() {
		if cap(*buf) <= maxPooledScratchBytes {
			scratch.Put(buf)
		}
	}()
	h, p, err := payload(b, (*buf)[:0], o.MaxDecompressedBytes)
	if err != nil {
		return RecordsReport{}, err
	}
	if h.Codec() != CodecNone {
		*buf = p[:0] // keep what grew
	}
	rep := RecordsReport{MaxTimestamp: NoTimestamp}
	for i := int32(0); i < h.RecordCount; i++ {
		if len(p) == 0 {
			return rep, fmt.Errorf("%w: header says %d records, there are %d", ErrCount, h.RecordCount, i)
		}
		r, rest, err := nextRecord(p)
		if err != nil {
			return rep, fmt.Errorf("record %d: %w", i, err)
		}
		p = rest
		ts := h.timestamp(r.timestampDelta)
		rep.MaxTimestamp = max(rep.MaxTimestamp, ts)
		o.check(&rep, r, i, ts)
	}
	if len(p) > 0 {
		return rep, fmt.Errorf("%w: %d bytes after the %d records of the header", ErrCount, len(p), h.RecordCount)
	}
	return rep, rep.err()
}

// check adds to rep what is wrong with one record.
func (o RecordOptions) check(rep *RecordsReport, r rawRecord, index int32, ts int64) {
	switch {
	case r.offsetDelta != index:
		rep.add(index, ErrBadRecord, fmt.Sprintf("Record has offset delta %d instead of %d.", r.offsetDelta, index))
	case o.RequireKeys && r.key == nil:
		rep.add(index, ErrNullKey, "Compacted topic cannot accept message without key.")
	case o.CheckTimestamps && ts != NoTimestamp && !o.inBounds(ts):
		rep.add(index, ErrTimestamp, fmt.Sprintf("Timestamp %d of message at index %d is out of range. "+
			"The timestamp should be within [%d, %d].", ts, index, subtract(o.Now, o.BeforeMax), add(o.Now, o.AfterMax)))
	}
}

// inBounds compares with saturated bounds: both maxima default to the largest int64.
func (o RecordOptions) inBounds(ts int64) bool {
	return ts >= subtract(o.Now, o.BeforeMax) && ts <= add(o.Now, o.AfterMax)
}

func (rep *RecordsReport) add(index int32, err error, message string) {
	rep.ErrorCount++
	if len(rep.Errors) < MaxRecordErrors {
		rep.Errors = append(rep.Errors, RecordError{Index: index, Message: message, Err: err})
	}
}

func (rep *RecordsReport) err() error {
	if rep.ErrorCount == 0 {
		return nil
	}
	first := rep.Errors[0]
	for _, e := range rep.Errors {
		if e.Err == ErrTimestamp {
			first = e
			break
		}
	}
	return fmt.Errorf("%w: %d records refused, among them %d: %s", first.Err, rep.ErrorCount, first.Index, first.Message)
}
