package segment

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Compression is the policy for extents that came uncompressed. What the producer
// compressed is always stored as it is.
type Compression uint8

const (
	// CompressionAuto compresses when a sample says that it pays.
	CompressionAuto Compression = iota
	// CompressionNone never compresses.
	CompressionNone
	// CompressionZstd compresses whatever gets smaller by it.
	CompressionZstd
	// CompressionBetter is CompressionAuto with more effort: for what is written once and read for years. It is not one
	// of the names that ParseCompression takes.
	CompressionBetter
)

var compressionNames = [...]string{"auto", "none", "zstd"}

// String is the name that ParseCompression takes.
func (c Compression) String() string {
	if int(c) >= len(compressionNames) {
		return fmt.Sprintf("compression(%d)", uint8(c))
	}
	return compressionNames[c]
}

// ParseCompression reads auto, none or zstd.
func ParseCompression(name string) (Compression, error) {
	for i, n := range compressionNames {
		if n == name {
			return Compression(i), nil
		}
	}
	return 0, fmt.Errorf("compression %q is not one of auto, none, zstd", name)
}

const (
	// minCompressBytes: below this, auto does not try: starting an encoder costs about 15 µs, more than so few bytes save.
	minCompressBytes = 4 << 10
	// sampleBytes is how much auto compresses to decide; smaller extents are compressed whole.
	sampleBytes = 64 << 10
	// samplePieces spreads the sample, since an extent's batches are several producers'.
	samplePieces = 4
	// minSavedFraction: compression pays when it saves at least one part in so many. Every later
	// read decodes again, and the bytes come back over the network once.
	minSavedFraction = 8
	// maxPooledBytes bounds the buffers kept for reuse.
	maxPooledBytes = 16 << 20
	// encoderWindowBytes bounds an encoder's memory.
	encoderWindowBytes = 4 << 20
)

// Encoded is an extent or a chunk ready to be stored.
type Encoded struct {
	Parts        [][]byte // the stored bytes: the caller's own slices when Codec is CodecStored
	StoredLength int64
	RawLength    int64
	Codec        Codec
	CRC          uint32
	// Allocated is how many bytes the encoding holds beside the caller's.
	Allocated int64
}

// Encode decides how to store the batches in parts and does it. uncompressed says
// that no producer compressed them (Describe finds out). parts is not copied when
// it is stored as it is and must not change as long as the result is in use.
// ErrTooLarge above MaxBlobBytes.
func Encode(parts [][]byte, mode Compression, uncompressed bool) (Encoded, error) {
	raw := int64(0)
	for _, p := range parts {
		raw += int64(len(p))
	}
	if raw > MaxBlobBytes {
		return Encoded{}, fmt.Errorf("%w: %d bytes at once, limit %d", ErrTooLarge, raw, MaxBlobBytes)
	}
	if uncompressed && worthTrying(parts, raw, mode) {
		out, err := compressParts(parts, raw, mode)
		if err != nil {
			return Encoded{}, err
		}
		if out != nil {
			return Encoded{
				Parts: [][]byte{out}, StoredLength: int64(len(out)), RawLength: raw, Codec: CodecZstd,
				CRC: crc32.Checksum(out, castagnoli), Allocated: int64(cap(out)),
			}, nil
		}
	}
	crc := uint32(0)
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli, p)
	}
	return Encoded{Parts: parts, StoredLength: raw, RawLength: raw, Codec: CodecStored, CRC: crc}, nil
}

// worthTrying decides by size and sample whether to compress it all.
func worthTrying(parts [][]byte, raw int64, mode Compression) bool {
	switch {
	case mode == CompressionNone || raw == 0:
		return false
	case mode == CompressionZstd:
		return true
	case raw < minCompressBytes:
		return false
	case raw <= sampleBytes:
		return true // as cheap as a sample
	}
	buf := getBuffer()
	defer putBuffer(buf)
	in := appendSample(buf.b[:0], parts, raw)
	buf.b = in
	out := getBuffer()
	defer putBuffer(out)
	var err error
	if out.b, err = encodeZstd(out.b[:0], in, CompressionAuto); err != nil {
		return false // compressParts would say why; storing is always right
	}
	return pays(int64(len(out.b)), int64(len(in)), mode)
}

// pays says whether stored instead of raw bytes are worth decoding them again.
func pays(stored, raw int64, mode Compression) bool {
	if mode == CompressionZstd {
		return stored < raw
	}
	return stored <= raw-raw/minSavedFraction
}

// appendSample appends samplePieces pieces, spread evenly over the raw bytes.
func appendSample(dst []byte, parts [][]byte, raw int64) []byte {
	const piece = sampleBytes / samplePieces
	stride := (raw - piece) / (samplePieces - 1)
	pos := int64(0) // of the current part
	next, end := int64(0), int64(piece)
	for _, p := range parts {
		for next < pos+int64(len(p)) {
			from, to := next-pos, min(end-pos, int64(len(p)))
			dst = append(dst, p[from:to]...)
			next = pos + to
			if next < end {
				break // the piece goes on in the next part
			}
			next = end - piece + stride
			end = next + piece
			if len(dst) >= sampleBytes {
				return dst
			}
		}
		pos += int64(len(p))
	}
	return dst
}

// compressParts returns one zstd frame of exact size, or nil where it does not pay.
func compressParts(parts [][]byte, raw int64, mode Compression) ([]byte, error) {
	var in []byte
	if len(parts) == 1 {
		in = parts[0]
	} else {
		joined := getBuffer()
		defer putBuffer(joined)
		if int64(cap(joined.b)) < raw {
			joined.b = make([]byte, 0, raw)
		}
		joined.b = joined.b[:0]
		for _, p := range parts {
			joined.b = append(joined.b, p...)
		}
		in = joined.b
	}
	out := getBuffer()
	defer putBuffer(out)
	var err error
	if out.b, err = encodeZstd(out.b[:0], in, mode); err != nil {
		return nil, err
	}
	if !pays(int64(len(out.b)), raw, mode) {
		return nil, nil
	}
	// What is kept until the upload ends should pin no more than it shows.
	return bytes.Clone(out.b), nil
}

// The pools hold coders and scratch memory, never data that a caller can see. A
// zstd coder of concurrency 1 without a stream starts no goroutine.
var (
	encoders sync.Pool // *zstd.Encoder
	better   sync.Pool // *zstd.Encoder, for CompressionBetter
	decoders sync.Pool // *zstd.Decoder
	buffers  sync.Pool // *buffer
)

type buffer struct{ b []byte }

func getBuffer() *buffer {
	if b, ok := buffers.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func putBuffer(b *buffer) {
	if cap(b.b) <= maxPooledBytes {
		buffers.Put(b)
	}
}

func encodeZstd(dst, src []byte, mode Compression) ([]byte, error) {
	pool, level := &encoders, zstd.SpeedFastest
	if mode == CompressionBetter {
		pool, level = &better, zstd.SpeedBetterCompression
	}
	e, ok := pool.Get().(*zstd.Encoder)
	if !ok {
		var err error
		// No checksum in the frame: the extent has one.
		e, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(level),
			zstd.WithWindowSize(encoderWindowBytes), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, fmt.Errorf("zstd encoder: %w", err)
		}
	}
	defer pool.Put(e)
	return e.EncodeAll(src, dst), nil
}

// DecodeExtent verifies the CRC-32C of the stored bytes of an extent or a chunk
// and returns its batches: stored itself when it is stored as it is, otherwise new
// memory of exactly rawLength bytes. Anything that does not match is ErrCorrupt.
// For an extent that is chunked, decode its chunks instead.
func DecodeExtent(stored []byte, codec Codec, rawLength int64, crc uint32) ([]byte, error) {
	if rawLength < 0 || rawLength > MaxBlobBytes {
		return nil, fmt.Errorf("%w: decoded length %d", ErrCorrupt, rawLength)
	}
	if got := crc32.Checksum(stored, castagnoli); got != crc {
		return nil, fmt.Errorf("%w: %d stored bytes have CRC %08x, expected %08x", ErrCorrupt, len(stored), got, crc)
	}
	switch codec {
	case CodecStored:
		if int64(len(stored)) != rawLength {
			return nil, fmt.Errorf("%w: %d bytes stored as they are, expected %d", ErrCorrupt, len(stored), rawLength)
		}
		return stored, nil
	case CodecZstd:
		return decodeZstd(stored, rawLength)
	}
	return nil, fmt.Errorf("%w: cannot decode %s at once", ErrCorrupt, codec)
}

func decodeZstd(stored []byte, rawLength int64) ([]byte, error) {
	// Most frames say their size; ask before allocating.
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return nil, fmt.Errorf("%w: zstd frame: %w", ErrCorrupt, err)
	}
	if h.HasFCS && h.FrameContentSize != uint64(rawLength) {
		return nil, fmt.Errorf("%w: zstd frame of %d bytes, expected %d", ErrCorrupt, h.FrameContentSize, rawLength)
	}
	d, ok := decoders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxMemory(MaxBlobBytes))
		if err != nil {
			return nil, fmt.Errorf("zstd decoder: %w", err)
		}
	}
	defer decoders.Put(d)
	out, err := d.DecodeAll(stored, make([]byte, 0, rawLength))
	if err != nil {
		return nil, fmt.Errorf("%w: zstd: %w", ErrCorrupt, err)
	}
	if int64(len(out)) != rawLength {
		return nil, fmt.Errorf("%w: %d bytes decoded, expected %d", ErrCorrupt, len(out), rawLength)
	}
	return out, nil
}
