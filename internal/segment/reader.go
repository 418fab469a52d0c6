package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// ReadAtFunc makes an io.ReaderAt of a function, for instance of ranged reads of a
// bucket with a context.
type ReadAtFunc func(p []byte, off int64) (int, error)

// ReadAt calls f.
func (f ReadAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// OpenIndex reads the index of an object of size bytes: one read at its end, or
// two where the footer is longer than 64 KiB. Nothing is allocated for a length
// that has not been checked against size and MaxFooterBytes. ErrNotSegment,
// ErrVersion and ErrCorrupt say what the object is; errors of r are wrapped.
//
// The header at the object's start is not read; Verify does.
func OpenIndex(r io.ReaderAt, size int64) (*Index, error) {
	if size < minObjectBytes {
		return nil, fmt.Errorf("%w: %d bytes, the smallest has %d", ErrNotSegment, size, minObjectBytes)
	}
	tail, err := readAt(r, max(0, size-tailBytes), min(size, tailBytes))
	if err != nil {
		return nil, fmt.Errorf("read the end of a segment of %d bytes: %w", size, err)
	}
	n, crc, err := parseTrailer(tail[len(tail)-TrailerBytes:], size)
	if err != nil {
		return nil, err
	}
	footerPos := size - TrailerBytes - n
	var f []byte
	if have := int64(len(tail)) - TrailerBytes; n <= have {
		f = tail[have-n : have]
	} else if f, err = readAt(r, footerPos, n); err != nil {
		return nil, fmt.Errorf("read a footer of %d bytes: %w", n, err)
	}
	if got := crc32.Checksum(f, castagnoli); got != crc {
		return nil, fmt.Errorf("%w: footer has CRC %08x, trailer says %08x", ErrCorrupt, got, crc)
	}
	x := &Index{Version: Version, Size: size, FooterPosition: footerPos}
	if err := x.parse(f); err != nil {
		return nil, err
	}
	return x, nil
}

// readAt reads exactly n bytes.
func readAt(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, off)
	if int64(got) == n {
		return b, nil // io.EOF is allowed beside a full read
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("%d of %d bytes at %d: %w", got, n, off, err)
}

// parseTrailer returns length and CRC of the footer.
func parseTrailer(t []byte, size int64) (n int64, crc uint32, err error) {
	be := binary.BigEndian
	if string(t[12:]) != magic {
		return 0, 0, fmt.Errorf("%w: no magic at its end", ErrNotSegment)
	}
	if v := be.Uint16(t[8:]); v != Version {
		return 0, 0, fmt.Errorf("%w: %d, this program knows %d", ErrVersion, v, Version)
	}
	n = int64(be.Uint32(t))
	switch {
	case be.Uint16(t[10:]) != 0:
		return 0, 0, fmt.Errorf("%w: trailer is not zero where it must be", ErrCorrupt)
	case n < FooterPrefixBytes || n > MaxFooterBytes || n > size-HeaderBytes-TrailerBytes:
		return 0, 0, fmt.Errorf("%w: footer of %d bytes in an object of %d", ErrCorrupt, n, size)
	}
	return n, be.Uint32(t[4:]), nil
}

// checkHeader checks the first bytes of the object against the index.
func (x *Index) checkHeader(h []byte) error {
	be := binary.BigEndian
	if string(h[:8]) != magic {
		return fmt.Errorf("%w: no magic at its start", ErrNotSegment)
	}
	if v := be.Uint16(h[8:]); v != x.Version {
		return fmt.Errorf("%w: header says version %d, trailer %d", ErrCorrupt, v, x.Version)
	}
	if l := be.Uint16(h[10:]); l != x.Level {
		return fmt.Errorf("%w: header says level %d, footer %d", ErrCorrupt, l, x.Level)
	}
	if be.Uint32(h[12:]) != 0 {
		return fmt.Errorf("%w: header is not zero where it must be", ErrCorrupt)
	}
	return nil
}

// parse reads the footer, whose CRC has been verified. Its counts are checked
// against its length before anything is allocated for them.
func (x *Index) parse(f []byte) error {
	be := binary.BigEndian
	copy(x.ID[:], f)
	x.CreatedMs = int64(be.Uint64(f[16:]))
	x.Level = be.Uint16(f[24:])
	extents, chunks := int64(be.Uint32(f[28:])), int64(be.Uint32(f[32:]))
	if want := FooterPrefixBytes + extents*ExtentEntryBytes + chunks*ChunkEntryBytes; want != int64(len(f)) {
		return fmt.Errorf("%w: %d extents and %d chunks in a footer of %d bytes", ErrCorrupt, extents, chunks, len(f))
	}
	if be.Uint16(f[26:]) != 0 {
		return fmt.Errorf("%w: footer is not zero where it must be", ErrCorrupt)
	}
	entries := f[FooterPrefixBytes:]
	chunkEntries := entries[extents*ExtentEntryBytes:]
	pos := int64(HeaderBytes)
	x.Extents = make([]Extent, extents)
	for i := range x.Extents {
		e := &x.Extents[i]
		var err error
		if chunkEntries, err = e.parse(entries[i*ExtentEntryBytes:], chunkEntries); err == nil {
			err = e.check(x.Level, pos)
		}
		if err != nil {
			return fmt.Errorf("%w: extent %d: %w", ErrCorrupt, i, err)
		}
		pos += e.StoredLength
	}
	if len(chunkEntries) > 0 {
		return fmt.Errorf("%w: %d chunks belong to no extent", ErrCorrupt, len(chunkEntries)/ChunkEntryBytes)
	}
	if pos != x.FooterPosition {
		return fmt.Errorf("%w: extents end at %d, the footer starts at %d", ErrCorrupt, pos, x.FooterPosition)
	}
	return nil
}

// parse reads an extent's entry and takes its chunks from the front of chunks.
func (e *Extent) parse(b, chunks []byte) (rest []byte, err error) {
	be := binary.BigEndian
	copy(e.TopicID[:], b)
	e.Partition = int32(be.Uint32(b[16:]))
	e.Codec = Codec(b[20])
	if b[21]|b[22]|b[23] != 0 {
		return nil, fmt.Errorf("not zero where it must be")
	}
	e.Position = int64(be.Uint64(b[24:]))
	e.StoredLength = int64(be.Uint32(b[32:]))
	e.RawLength = int64(be.Uint32(b[36:]))
	e.CRC = be.Uint32(b[40:])
	e.Batches = be.Uint32(b[44:])
	e.Records = be.Uint32(b[48:])
	n := int64(be.Uint32(b[52:]))
	e.BaseOffset = int64(be.Uint64(b[56:]))
	e.LastOffset = int64(be.Uint64(b[64:]))
	e.MaxTimestamp = int64(be.Uint64(b[72:]))
	if n*ChunkEntryBytes > int64(len(chunks)) {
		return nil, fmt.Errorf("%d chunks, the footer has %d left", n, len(chunks)/ChunkEntryBytes)
	}
	if n == 0 {
		return chunks, nil
	}
	e.Chunks = make([]Chunk, n)
	for i := range e.Chunks {
		if err := e.Chunks[i].parse(chunks[i*ChunkEntryBytes:]); err != nil {
			return nil, fmt.Errorf("chunk %d: %w", i, err)
		}
	}
	return chunks[n*ChunkEntryBytes:], nil
}

func (c *Chunk) parse(b []byte) error {
	be := binary.BigEndian
	c.Position = int64(be.Uint64(b))
	c.StoredLength = int64(be.Uint32(b[8:]))
	c.RawLength = int64(be.Uint32(b[12:]))
	c.CRC = be.Uint32(b[16:])
	c.Codec = Codec(b[20])
	if b[21]|b[22]|b[23] != 0 {
		return fmt.Errorf("not zero where it must be")
	}
	c.BaseOffset = int64(be.Uint64(b[24:]))
	c.LastOffset = int64(be.Uint64(b[32:]))
	c.MaxTimestamp = int64(be.Uint64(b[40:]))
	return nil
}

// check says whether an extent that must start at pos can be. Writer and reader
// share it: nothing is written that could not be read.
func (e *Extent) check(level uint16, pos int64) error {
	switch {
	case e.Position != pos:
		return fmt.Errorf("starts at %d, expected %d", e.Position, pos)
	case e.Partition < 0:
		return fmt.Errorf("partition %d", e.Partition)
	case e.Batches == 0:
		return fmt.Errorf("no batches")
	case int64(e.Batches)*minExtentBytes > e.RawLength:
		return fmt.Errorf("%d batches in %d bytes", e.Batches, e.RawLength)
	case level == 0 && (e.BaseOffset != UnknownOffset || e.LastOffset != UnknownOffset):
		return fmt.Errorf("offsets %d to %d at level 0", e.BaseOffset, e.LastOffset)
	case level > 0 && (e.BaseOffset < 0 || e.LastOffset < e.BaseOffset):
		return fmt.Errorf("offsets %d to %d", e.BaseOffset, e.LastOffset)
	case (e.Codec == CodecChunked) != (len(e.Chunks) > 0):
		return fmt.Errorf("%s with %d chunks", e.Codec, len(e.Chunks))
	case e.Codec == CodecChunked && level == 0:
		return fmt.Errorf("chunks at level 0")
	case e.Codec == CodecChunked:
		return e.checkChunks()
	}
	return checkBlob(e.Codec, e.StoredLength, e.RawLength)
}

// checkBlob checks what is decoded at once.
func checkBlob(c Codec, stored, raw int64) error {
	switch {
	case c != CodecStored && c != CodecZstd:
		return fmt.Errorf("unknown %s", c)
	case stored <= 0 || stored > MaxBlobBytes || raw < minExtentBytes || raw > MaxBlobBytes:
		return fmt.Errorf("%d bytes stored, %d decoded", stored, raw)
	case c == CodecStored && stored != raw:
		return fmt.Errorf("%d bytes stored as they are, %d decoded", stored, raw)
	}
	return nil
}

// checkChunks makes sure that the chunks fill the extent in order.
func (e *Extent) checkChunks() error {
	pos, raw, next := e.Position, int64(0), e.BaseOffset
	for i := range e.Chunks {
		c := &e.Chunks[i]
		if err := checkBlob(c.Codec, c.StoredLength, c.RawLength); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if c.Position != pos {
			return fmt.Errorf("chunk %d: starts at %d, expected %d", i, c.Position, pos)
		}
		if c.BaseOffset < next || c.LastOffset < c.BaseOffset || c.LastOffset > e.LastOffset {
			return fmt.Errorf("chunk %d: offsets %d to %d", i, c.BaseOffset, c.LastOffset)
		}
		if c.MaxTimestamp > e.MaxTimestamp {
			return fmt.Errorf("chunk %d: timestamp %d is above the extent's", i, c.MaxTimestamp)
		}
		pos, raw, next = pos+c.StoredLength, raw+c.RawLength, c.LastOffset+1
	}
	switch {
	case pos-e.Position != e.StoredLength || raw != e.RawLength || e.StoredLength > MaxRunBytes || e.RawLength > MaxRunBytes:
		return fmt.Errorf("%d bytes stored, %d decoded, but its chunks have %d and %d",
			e.StoredLength, e.RawLength, pos-e.Position, raw)
	case e.Chunks[0].BaseOffset != e.BaseOffset || e.Chunks[len(e.Chunks)-1].LastOffset != e.LastOffset:
		return fmt.Errorf("offsets %d to %d are not its chunks'", e.BaseOffset, e.LastOffset)
	}
	return nil
}
