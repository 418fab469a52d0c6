package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec is a batch's compression, numbered as in its attributes.
type Codec int8

// The codecs that Kafka has.
const (
	CodecNone Codec = iota
	CodecGzip
	CodecSnappy
	CodecLZ4
	CodecZstd
	codecs // how many there are
)

var codecNames = [codecs]string{"none", "gzip", "snappy", "lz4", "zstd"}

// Valid says whether the codec exists.
func (c Codec) Valid() bool { return c >= CodecNone && c < codecs }

// String is the codec's name as in compression.type, "none" included.
func (c Codec) String() string {
	if !c.Valid() {
		return fmt.Sprintf("codec(%d)", int8(c))
	}
	return codecNames[c]
}

// ParseCodec is the reverse of String; it also takes "uncompressed", which is
// what compression.type calls none.
func ParseCodec(name string) (Codec, error) {
	if name == "uncompressed" {
		return CodecNone, nil
	}
	for c, n := range codecNames {
		if n == name {
			return Codec(c), nil
		}
	}
	return 0, fmt.Errorf("%w: %q", ErrCodec, name)
}

const (
	// DefaultMaxDecompressedBytes bounds the decompressed records of one batch where
	// the caller names no bound. Producers bound their batches before compression at
	// a megabyte or so; what is larger than this is a decompression bomb.
	DefaultMaxDecompressedBytes = 64 << 20

	// DefaultLevel asks for a codec's default level, which is Kafka's.
	DefaultLevel = 0

	// maxZstdWindowBytes is the window that the reference decoder accepts by default.
	maxZstdWindowBytes = 128 << 20
	// maxZstdDecodeBytes is above every bound a caller may name.
	maxZstdDecodeBytes = 2 << 30
	// zstdGuess is the ratio first tried when a frame does not say its size, and the
	// growth when that was too little.
	zstdGuess = 4
	// zstdBlockBytes is the most that a zstd block decodes to.
	zstdBlockBytes = 128 << 10
	// minDecodeBytes is the least that is allocated for decompressed records.
	minDecodeBytes = 4 << 10

	maxGzipLevel = 9
	maxLZ4Level  = 9
	maxZstdLevel = 22
	// lz4KafkaDefault is Kafka's default level; it means the fast compressor.
	lz4KafkaDefault = 9
)

// The pools hold coders, never data that a caller can see. A zstd coder made with
// concurrency 1 and no stream starts no goroutine, so the collector may take it.
var (
	zstdDecoders sync.Pool // *zstd.Decoder
	gzipReaders  sync.Pool // *gzip.Reader
	lz4Readers   sync.Pool // *lz4.Reader
	zstdEncoders [zstd.SpeedBestCompression + 1]sync.Pool
	gzipWriters  [maxGzipLevel + 1]sync.Pool
	lz4Writers   sync.Pool // *lz4.Writer
)

// decompress returns the decompressed form of src in dst's memory if its capacity
// does, else in new memory. limit bounds the result in bytes; 0 or less means
// DefaultMaxDecompressedBytes. Memory is never allocated on the word of
// a length field alone beyond limit.
func decompress(c Codec, dst, src []byte, limit int) ([]byte, error) {
	if limit <= 0 {
		limit = DefaultMaxDecompressedBytes
	}
	var out []byte
	var err error
	switch c {
	case CodecNone:
		out = src
	case CodecGzip:
		out, err = ungzip(dst, src, limit)
	case CodecSnappy:
		out, err = unsnappy(dst, src, limit)
	case CodecLZ4:
		out, err = unlz4(dst, src, limit)
	case CodecZstd:
		out, err = unzstd(dst, src, limit)
	default:
		return nil, fmt.Errorf("%w: %d", ErrCodec, c)
	}
	switch {
	case errors.Is(err, ErrDecompressedSize):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrDecompress, c, err)
	case len(out) > limit:
		return nil, tooLarge(limit)
	}
	return out, nil
}

func tooLarge(limit int) error { return fmt.Errorf("%w: limit %d bytes", ErrDecompressedSize, limit) }

func ungzip(dst, src []byte, limit int) ([]byte, error) {
	in := bytes.NewReader(src)
	r, ok := gzipReaders.Get().(*gzip.Reader)
	if !ok {
		r = new(gzip.Reader)
	}
	defer func() {
		in.Reset(nil) // a pooled reader must not pin what it last read
		gzipReaders.Put(r)
	}()
	if err := r.Reset(in); err != nil {
		return nil, err
	}
	return readAll(dst, r, len(src), limit)
}

func unlz4(dst, src []byte, limit int) ([]byte, error) {
	r, ok := lz4Readers.Get().(*lz4.Reader)
	if !ok {
		r = lz4.NewReader(nil)
	}
	in := bytes.NewReader(src)
	defer func() {
		in.Reset(nil)
		lz4Readers.Put(r)
	}()
	r.Reset(in)
	return readAll(dst, r, len(src), limit)
}

// readAll reads r to its end into dst's capacity, growing it up to limit.
func readAll(dst []byte, r io.Reader, sizeHint, limit int) ([]byte, error) {
	out := dst[:0]
	if cap(out) == 0 {
		out = make([]byte, 0, min(max(2*sizeHint, minDecodeBytes), limit+1))
	}
	for {
		if len(out) > limit {
			return nil, tooLarge(limit)
		}
		if len(out) == cap(out) {
			out = append(make([]byte, 0, min(2*cap(out), limit+1)), out...)
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// unzstd decodes into a buffer whose capacity is the bound: exact when the frame
// says its size, otherwise a guess that grows. (The decoder's own bound is a
// property of the decoder, and would also refuse small data with a large window.)
func unzstd(dst, src []byte, limit int) ([]byte, error) {
	d, ok := zstdDecoders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxWindow(maxZstdWindowBytes), zstd.WithDecoderMaxMemory(maxZstdDecodeBytes))
		if err != nil {
			return nil, err
		}
	}
	defer zstdDecoders.Put(d)

	// A block that does not fit fails like a corrupt one. With room for one block more
	// than the limit, what fails for want of room is over the limit for sure.
	most := limit + zstdBlockBytes
	size := min(max(zstdGuess*len(src), minDecodeBytes), most)
	var h zstd.Header
	if err := h.Decode(src); err == nil && h.HasFCS {
		if h.FrameContentSize > uint64(limit) {
			return nil, tooLarge(limit)
		}
		size = int(h.FrameContentSize)
	}
	dst = dst[:0:min(cap(dst), most)]
	if cap(dst) < size {
		dst = make([]byte, 0, size)
	}
	for {
		out, err := d.DecodeAll(src, dst)
		switch {
		case err == nil:
			return out, nil // decompress compares its length with the limit
		case cap(dst)-len(out) >= zstdBlockBytes && !errors.Is(err, zstd.ErrDecoderSizeExceeded):
			return nil, err // there was room
		case cap(dst) >= most:
			return nil, tooLarge(limit)
		}
		dst = make([]byte, 0, min(max(zstdGuess*cap(dst), minDecodeBytes), most))
	}
}

// compress appends the compressed form of src to dst. level is Kafka's (KIP-390);
// DefaultLevel and what the codec does not have mean its default.
func compress(c Codec, level int, dst, src []byte) ([]byte, error) {
	switch c {
	case CodecNone:
		return append(dst, src...), nil
	case CodecGzip:
		return gzipTo(dst, src, level)
	case CodecSnappy:
		return snappyTo(dst, src), nil
	case CodecLZ4:
		return lz4To(dst, src, level)
	case CodecZstd:
		return zstdTo(dst, src, level)
	}
	return nil, fmt.Errorf("%w: %d", ErrCodec, c)
}

// appender is an io.Writer that appends.
type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

func gzipTo(dst, src []byte, level int) ([]byte, error) {
	pool := 0 // of the default level
	if level >= 1 && level <= maxGzipLevel {
		pool = level
	} else {
		level = gzip.DefaultCompression
	}
	out := &appender{b: dst}
	w, ok := gzipWriters[pool].Get().(*gzip.Writer)
	if ok {
		w.Reset(out)
	} else {
		var err error
		if w, err = gzip.NewWriterLevel(out, level); err != nil {
			return nil, err
		}
	}
	defer func() {
		out.b = nil
		gzipWriters[pool].Put(w)
	}()
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.b, nil
}

func lz4To(dst, src []byte, level int) ([]byte, error) {
	out := &appender{b: dst}
	w, ok := lz4Writers.Get().(*lz4.Writer)
	if ok {
		w.Reset(out)
	} else {
		w = lz4.NewWriter(out)
	}
	defer func() {
		out.b = nil
		lz4Writers.Put(w)
	}()
	// As Kafka writes it: 64 KiB blocks, no checksums (the batch has one).
	if err := w.Apply(lz4.ConcurrencyOption(1), lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false),
		lz4.CompressionLevelOption(lz4Level(level))); err != nil {
		return nil, err
	}
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.b, nil
}

// lz4Level maps Kafka's 1 to 17 to what the library has.
func lz4Level(level int) lz4.CompressionLevel {
	if level <= 0 || level == lz4KafkaDefault {
		return lz4.Fast
	}
	// The library numbers its levels 1<<9 (Level1) to 1<<17 (Level9).
	return lz4.Level1 << (min(level, maxLZ4Level) - 1)
}

func zstdTo(dst, src []byte, level int) ([]byte, error) {
	speed := zstd.SpeedDefault
	if level != DefaultLevel {
		speed = zstd.EncoderLevelFromZstd(min(level, maxZstdLevel))
	}
	e, ok := zstdEncoders[speed].Get().(*zstd.Encoder)
	if !ok {
		var err error
		e, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(speed),
			zstd.WithEncoderCRC(false), zstd.WithZeroFrames(true))
		if err != nil {
			return nil, err
		}
	}
	defer zstdEncoders[speed].Put(e)
	return e.EncodeAll(src, dst), nil
}
