package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/skeinio/skein/internal/record"
)

// MaxProblems bounds how many problems Verify names.
const MaxProblems = 100

// Problem is one thing that Verify found wrong.
type Problem struct {
	Extent   int   // index in the footer; -1: the object as a whole
	Position int64 // where in the object, as near as is known
	Err      error
}

// Error says what is wrong and where.
func (p Problem) Error() string {
	if p.Extent < 0 {
		return fmt.Sprintf("at %d: %v", p.Position, p.Err)
	}
	return fmt.Sprintf("extent %d at %d: %v", p.Extent, p.Position, p.Err)
}

// Unwrap returns Err.
func (p Problem) Unwrap() error { return p.Err }

// Report is what Verify read and found.
type Report struct {
	Size         int64
	Extents      int
	Chunks       int
	Batches      int64
	Records      int64
	StoredBytes  int64 // of all extents
	RawBytes     int64
	Problems     []Problem // the first MaxProblems
	ProblemCount int       // all of them
}

// VerifyOptions says how deep Verify looks.
type VerifyOptions struct {
	// Records also decompresses every batch and checks its records.
	Records bool
}

// Verify reads a whole segment and checks everything in it that can be checked:
// header, trailer, footer, the order and length of extents and chunks, their CRCs,
// every batch's CRC, and the counts, offsets and timestamps of the index against
// the batches. What is wrong with the data is in the report; the error joins it, and
// alone says when the index cannot be read at all. It holds one extent or chunk in
// memory at a time.
func Verify(r io.ReaderAt, size int64, o VerifyOptions) (Report, error) {
	rep := Report{Size: size}
	x, err := OpenIndex(r, size)
	if err != nil {
		return rep, err
	}
	rep.Extents = len(x.Extents)
	h, err := readAt(r, 0, HeaderBytes)
	if err != nil {
		return rep, fmt.Errorf("read header: %w", err)
	}
	if err := x.checkHeader(h); err != nil {
		rep.add(-1, 0, err)
	}
	for i := range x.Extents {
		v := verifier{rep: &rep, r: r, o: o, index: i, level: x.Level, maxTimestamp: math.MinInt64}
		if err := v.extent(&x.Extents[i]); err != nil {
			return rep, err
		}
	}
	return rep, rep.err()
}

func (rep *Report) add(extent int, pos int64, err error) {
	rep.ProblemCount++
	if len(rep.Problems) < MaxProblems {
		rep.Problems = append(rep.Problems, Problem{Extent: extent, Position: pos, Err: err})
	}
}

func (rep *Report) err() error {
	if rep.ProblemCount == 0 {
		return nil
	}
	errs := make([]error, 0, len(rep.Problems)+1)
	for _, p := range rep.Problems {
		errs = append(errs, p)
	}
	if more := rep.ProblemCount - len(rep.Problems); more > 0 {
		errs = append(errs, fmt.Errorf("%w: and %d more", ErrCorrupt, more))
	}
	return errors.Join(errs...)
}

// verifier checks one extent.
type verifier struct {
	rep   *Report
	r     io.ReaderAt
	o     VerifyOptions
	index int
	level uint16

	batches      int64
	records      int64
	maxTimestamp int64
	first, last  int64 // offsets seen in the extent or chunk, once batches > 0
	begun        bool  // first is set
	next         int64 // lowest offset the next batch may have
	broken       bool  // something could not be decoded: counts mean nothing
}

func (v *verifier) problem(pos int64, format string, args ...any) {
	v.rep.add(v.index, pos, fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...))
}

// extent returns errors of the reader only.
func (v *verifier) extent(e *Extent) error {
	v.rep.StoredBytes += e.StoredLength
	v.rep.RawBytes += e.RawLength
	if e.Codec == CodecChunked {
		first, crc := int64(UnknownOffset), uint32(0)
		for i := range e.Chunks {
			c := &e.Chunks[i]
			stored, err := readAt(v.r, c.Position, c.StoredLength)
			if err != nil {
				return fmt.Errorf("extent %d, chunk %d: %w", v.index, i, err)
			}
			crc = crc32.Update(crc, castagnoli, stored)
			v.chunk(c, stored)
			if i == 0 {
				first = v.first
			}
		}
		v.first = first
		if crc != e.CRC {
			v.problem(e.Position, "extent has CRC %08x, footer says %08x", crc, e.CRC)
		}
	} else {
		stored, err := readAt(v.r, e.Position, e.StoredLength)
		if err != nil {
			return fmt.Errorf("extent %d: %w", v.index, err)
		}
		v.blob(stored, e.Codec, e.Position, e.RawLength, e.CRC)
	}
	if !v.broken {
		v.compare(e)
	}
	v.rep.Batches += v.batches
	v.rep.Records += v.records
	return nil
}

// chunk checks a chunk and that the index has its offsets and timestamp right.
func (v *verifier) chunk(c *Chunk, stored []byte) {
	v.rep.Chunks++
	before, maxBefore := v.batches, v.maxTimestamp
	v.maxTimestamp = math.MinInt64
	v.begun = false
	if v.blob(stored, c.Codec, c.Position, c.RawLength, c.CRC) && v.batches > before {
		if v.first != c.BaseOffset || v.last != c.LastOffset {
			v.problem(c.Position, "chunk has offsets %d to %d, footer says %d to %d", v.first, v.last, c.BaseOffset, c.LastOffset)
		}
		if v.maxTimestamp != c.MaxTimestamp {
			v.problem(c.Position, "chunk has max timestamp %d, footer says %d", v.maxTimestamp, c.MaxTimestamp)
		}
	}
	v.maxTimestamp = max(v.maxTimestamp, maxBefore)
}

// blob decodes and checks the batches of what is decoded at once; false when that
// was not possible.
func (v *verifier) blob(stored []byte, codec Codec, pos, rawLength int64, crc uint32) bool {
	raw, err := DecodeExtent(stored, codec, rawLength, crc)
	if err != nil {
		v.rep.add(v.index, pos, err)
		v.broken = true
		return false
	}
	for b, err := range record.Batches(raw) {
		if err != nil {
			v.rep.add(v.index, pos, fmt.Errorf("%w: %w", ErrCorrupt, err))
			v.broken = true
			return false
		}
		v.batch(b, pos)
	}
	return true
}

func (v *verifier) batch(b record.Batch, pos int64) {
	v.batches++
	v.records += int64(b.RecordCount)
	v.maxTimestamp = max(v.maxTimestamp, b.MaxTimestamp)
	at := fmt.Sprintf("batch %d, byte %d of the decoded bytes", v.batches-1, b.Position)
	if err := record.VerifyCRC(b.Bytes); err != nil {
		v.problem(pos, "%s: %w", at, err)
		return
	}
	if b.LastOffsetDelta < 0 || b.RecordCount < 0 || int64(b.RecordCount) > int64(b.LastOffsetDelta)+1 {
		v.problem(pos, "%s: %d records up to offset delta %d", at, b.RecordCount, b.LastOffsetDelta)
	}
	if v.level > 0 {
		if b.BaseOffset < v.next {
			v.problem(pos, "%s: offset %d after %d", at, b.BaseOffset, v.next-1)
		}
		if !v.begun {
			v.first, v.begun = b.BaseOffset, true
		}
		v.last = b.LastOffset()
		v.next = v.last + 1
	}
	if !v.o.Records {
		return
	}
	for _, err := range record.Records(b.Bytes, MaxBlobBytes) {
		if err != nil {
			v.problem(pos, "%s: %w", at, err)
		}
	}
}

// compare checks the extent's entry against what its batches said.
func (v *verifier) compare(e *Extent) {
	if v.batches != int64(e.Batches) || v.records != int64(e.Records) {
		v.problem(e.Position, "%d batches with %d records, footer says %d and %d", v.batches, v.records, e.Batches, e.Records)
	}
	if v.maxTimestamp != e.MaxTimestamp {
		v.problem(e.Position, "max timestamp %d, footer says %d", v.maxTimestamp, e.MaxTimestamp)
	}
	if v.level > 0 && (v.first != e.BaseOffset || v.last != e.LastOffset) {
		v.problem(e.Position, "offsets %d to %d, footer says %d to %d", v.first, v.last, e.BaseOffset, e.LastOffset)
	}
}
