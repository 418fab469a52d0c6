package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/skeinio/skein/internal/record"
)

// ErrInput: what was given to the writer cannot be part of a segment.
var ErrInput = errors.New("not fit for a segment")

// Options are the properties of a segment as a whole.
type Options struct {
	ID          ID
	Level       uint16
	CreatedMs   int64 // milliseconds, for people only
	Compression Compression
}

// ExtentMeta describes the batches of an extent. Describe fills all of it.
type ExtentMeta struct {
	TopicID      TopicID
	Partition    int32
	Batches      uint32
	Records      uint32 // sum of the batches' record counts
	BaseOffset   int64  // ignored at level 0
	LastOffset   int64  // ignored at level 0
	MaxTimestamp int64  // milliseconds
	// Uncompressed says that no batch was compressed by its producer.
	Uncompressed bool
}

// Describe makes the description of an extent from the headers of its batches.
// Every part must consist of whole batches. The offsets are those of the first and
// last batch, right only where base offsets have been set.
func Describe(topic TopicID, partition int32, parts [][]byte) (ExtentMeta, error) {
	m := ExtentMeta{TopicID: topic, Partition: partition, MaxTimestamp: math.MinInt64, Uncompressed: true}
	records := uint64(0)
	for i, p := range parts {
		for b, err := range record.Batches(p) {
			if err != nil {
				return ExtentMeta{}, fmt.Errorf("%w: part %d: %w", ErrInput, i, err)
			}
			if m.Batches == 0 {
				m.BaseOffset = b.BaseOffset
			}
			m.Batches++
			records += uint64(max(b.RecordCount, 0))
			m.LastOffset = b.LastOffset()
			m.MaxTimestamp = max(m.MaxTimestamp, b.MaxTimestamp)
			m.Uncompressed = m.Uncompressed && b.Codec() == record.CodecNone
		}
	}
	if m.Batches == 0 {
		return ExtentMeta{}, fmt.Errorf("%w: no batches", ErrInput)
	}
	if records > math.MaxUint32 {
		return ExtentMeta{}, fmt.Errorf("%w: %d records in an extent", ErrTooLarge, records)
	}
	m.Records = uint32(records)
	return m, nil
}

// Placed says where an extent is and how it is stored.
type Placed struct {
	Position     int64
	StoredLength int32
	RawLength    int32
	Codec        Codec
	CRC          uint32
}

// Object is a finished segment, to be uploaded as it stands.
type Object struct {
	// Parts are the object's bytes in order, sharing memory with what was added. After
	// Writer.Drain only the rest of them.
	Parts [][]byte
	Size  int64 // bytes of the whole object
	// Allocated is how many bytes of memory the writer added to the caller's: compressed
	// extents, header and footer.
	Allocated int64
}

// Writer lays out a segment as a vector of byte slices. It copies nothing that it
// does not compress; what it is given must not change until the object has been
// uploaded. It is not safe for concurrent use; Encode is, and may be used to
// compress extents in parallel before AddEncoded.
type Writer struct {
	opts      Options
	parts     [][]byte
	pos       int64
	allocated int64
	extents   []Extent
	chunks    int
	finished  bool
}

// NewWriter starts a segment.
func NewWriter(o Options) *Writer {
	h := encodeHeader(o.Level)
	return &Writer{opts: o, parts: [][]byte{h}, pos: int64(len(h)), allocated: int64(len(h))}
}

// Size is the size of the object if it were finished now.
func (w *Writer) Size() int64 {
	return w.pos + int64(footerBytes(len(w.extents), w.chunks)) + TrailerBytes
}

// Extents is how many extents have been added.
func (w *Writer) Extents() int { return len(w.extents) }

// Add places the batches in parts as one extent. On an error nothing was added.
func (w *Writer) Add(m ExtentMeta, parts [][]byte) (Placed, error) {
	e, err := Encode(parts, w.opts.Compression, m.Uncompressed)
	if err != nil {
		return Placed{}, err
	}
	return w.AddEncoded(m, e)
}

// AddEncoded is Add for what Encode made. On an error nothing was added.
func (w *Writer) AddEncoded(m ExtentMeta, e Encoded) (Placed, error) {
	x := w.extent(m)
	x.Codec, x.CRC, x.StoredLength, x.RawLength = e.Codec, e.CRC, e.StoredLength, e.RawLength
	if err := w.admit(x); err != nil {
		return Placed{}, err
	}
	w.extents = append(w.extents, x)
	w.place(e)
	return Placed{
		Position: x.Position, StoredLength: int32(x.StoredLength), RawLength: int32(x.RawLength), Codec: x.Codec, CRC: x.CRC,
	}, nil
}

// ChunkInput is one chunk of a run.
type ChunkInput struct {
	BaseOffset   int64
	LastOffset   int64
	MaxTimestamp int64 // milliseconds
	// Uncompressed says that no batch was compressed by its producer.
	Uncompressed bool
	Parts        [][]byte
}

// AddRun places a long extent in chunks, each of which is encoded on its own. The
// batches must have their base offsets set. On an error nothing was added.
func (w *Writer) AddRun(m ExtentMeta, chunks []ChunkInput) (Extent, error) {
	x := w.extent(m)
	x.Codec = CodecChunked
	encoded := make([]Encoded, len(chunks))
	pos := w.pos
	for i, c := range chunks {
		e, err := Encode(c.Parts, w.opts.Compression, c.Uncompressed)
		if err != nil {
			return Extent{}, fmt.Errorf("chunk %d: %w", i, err)
		}
		encoded[i] = e
		x.Chunks = append(x.Chunks, Chunk{
			Codec: e.Codec, Position: pos, StoredLength: e.StoredLength, RawLength: e.RawLength, CRC: e.CRC,
			BaseOffset: c.BaseOffset, LastOffset: c.LastOffset, MaxTimestamp: c.MaxTimestamp,
		})
		pos += e.StoredLength
		x.StoredLength += e.StoredLength
		x.RawLength += e.RawLength
		for _, p := range e.Parts {
			x.CRC = crc32.Update(x.CRC, castagnoli, p)
		}
	}
	if err := w.admit(x); err != nil {
		return Extent{}, err
	}
	w.extents = append(w.extents, x)
	w.chunks += len(x.Chunks)
	for _, e := range encoded {
		w.place(e)
	}
	return x, nil
}

// Drain returns the parts laid out so far and forgets them, so that a long segment
// can be uploaded while it is written. Their memory stays the object's.
func (w *Writer) Drain() [][]byte {
	out := w.parts
	w.parts = nil
	return out
}

// Finish writes footer and trailer and returns the object. The writer cannot be
// used afterwards.
func (w *Writer) Finish() (Object, error) {
	if w.finished {
		return Object{}, fmt.Errorf("%w: finished already", ErrInput)
	}
	w.finished = true
	x := Index{
		Version: Version, Level: w.opts.Level, ID: w.opts.ID, CreatedMs: w.opts.CreatedMs,
		FooterPosition: w.pos, Extents: w.extents,
	}
	f := encodeFooter(&x, w.chunks)
	w.parts = append(w.parts, f)
	w.pos += int64(len(f))
	w.allocated += int64(len(f))
	return Object{Parts: w.parts, Size: w.pos, Allocated: w.allocated}, nil
}

func (w *Writer) extent(m ExtentMeta) Extent {
	x := Extent{
		TopicID: m.TopicID, Partition: m.Partition, Position: w.pos, Batches: m.Batches, Records: m.Records,
		BaseOffset: m.BaseOffset, LastOffset: m.LastOffset, MaxTimestamp: m.MaxTimestamp,
	}
	if w.opts.Level == 0 {
		x.BaseOffset, x.LastOffset = UnknownOffset, UnknownOffset
	}
	return x
}

// admit refuses what the reader would refuse.
func (w *Writer) admit(x Extent) error {
	if w.finished {
		return fmt.Errorf("%w: finished already", ErrInput)
	}
	if footerBytes(len(w.extents)+1, w.chunks+len(x.Chunks)) > MaxFooterBytes {
		return fmt.Errorf("%w: %d extents, %d chunks", ErrTooLarge, len(w.extents)+1, w.chunks+len(x.Chunks))
	}
	if err := x.check(w.opts.Level, w.pos); err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	return nil
}

func (w *Writer) place(e Encoded) {
	w.parts = append(w.parts, e.Parts...)
	w.pos += e.StoredLength
	w.allocated += e.Allocated
}

func encodeHeader(level uint16) []byte {
	h := make([]byte, HeaderBytes)
	copy(h, magic)
	binary.BigEndian.PutUint16(h[8:], Version)
	binary.BigEndian.PutUint16(h[10:], level)
	return h // 4 bytes zero
}

func footerBytes(extents, chunks int) int {
	return FooterPrefixBytes + extents*ExtentEntryBytes + chunks*ChunkEntryBytes
}

// encodeFooter returns footer and trailer.
func encodeFooter(x *Index, chunks int) []byte {
	n := footerBytes(len(x.Extents), chunks)
	be := binary.BigEndian
	f := make([]byte, 0, n+TrailerBytes)
	f = append(f, x.ID[:]...)
	f = be.AppendUint64(f, uint64(x.CreatedMs))
	f = be.AppendUint16(f, x.Level)
	f = be.AppendUint16(f, 0)
	f = be.AppendUint32(f, uint32(len(x.Extents)))
	f = be.AppendUint32(f, uint32(chunks))
	for i := range x.Extents {
		f = appendExtent(f, &x.Extents[i])
	}
	for i := range x.Extents {
		for j := range x.Extents[i].Chunks {
			f = appendChunk(f, &x.Extents[i].Chunks[j])
		}
	}
	crc := crc32.Checksum(f, castagnoli)
	f = be.AppendUint32(f, uint32(n))
	f = be.AppendUint32(f, crc)
	f = be.AppendUint16(f, x.Version)
	f = be.AppendUint16(f, 0)
	return append(f, magic...)
}

func appendExtent(f []byte, e *Extent) []byte {
	be := binary.BigEndian
	f = append(f, e.TopicID[:]...)
	f = be.AppendUint32(f, uint32(e.Partition))
	f = append(f, byte(e.Codec), 0, 0, 0)
	f = be.AppendUint64(f, uint64(e.Position))
	f = be.AppendUint32(f, uint32(e.StoredLength))
	f = be.AppendUint32(f, uint32(e.RawLength))
	f = be.AppendUint32(f, e.CRC)
	f = be.AppendUint32(f, e.Batches)
	f = be.AppendUint32(f, e.Records)
	f = be.AppendUint32(f, uint32(len(e.Chunks)))
	f = be.AppendUint64(f, uint64(e.BaseOffset))
	f = be.AppendUint64(f, uint64(e.LastOffset))
	return be.AppendUint64(f, uint64(e.MaxTimestamp))
}

func appendChunk(f []byte, c *Chunk) []byte {
	be := binary.BigEndian
	f = be.AppendUint64(f, uint64(c.Position))
	f = be.AppendUint32(f, uint32(c.StoredLength))
	f = be.AppendUint32(f, uint32(c.RawLength))
	f = be.AppendUint32(f, c.CRC)
	f = append(f, byte(c.Codec), 0, 0, 0)
	f = be.AppendUint64(f, uint64(c.BaseOffset))
	f = be.AppendUint64(f, uint64(c.LastOffset))
	return be.AppendUint64(f, uint64(c.MaxTimestamp))
}
