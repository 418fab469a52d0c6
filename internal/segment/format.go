package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/google/uuid"
)

const (
	// Version is the format version that this package writes and reads.
	Version = 1

	// HeaderBytes, FooterPrefixBytes, ExtentEntryBytes, ChunkEntryBytes and TrailerBytes are the
	// fixed sizes of the format's parts.
	HeaderBytes       = 16
	FooterPrefixBytes = 36
	ExtentEntryBytes  = 80
	ChunkEntryBytes   = 48
	TrailerBytes      = 20

	// MaxFooterBytes bounds the footer that is written or read.
	MaxFooterBytes = 16 << 20
	// MaxExtents is how many extents (without chunks) a segment can have.
	MaxExtents = (MaxFooterBytes - FooterPrefixBytes) / ExtentEntryBytes
	// MaxBlobBytes bounds what is decoded at once, stored and decoded alike: an
	// extent that is not chunked, or a chunk. One record batch has to fit.
	MaxBlobBytes = 256 << 20
	// MaxRunBytes bounds an extent that is chunked.
	MaxRunBytes = math.MaxUint32
	// ChunkBytes is the size of a chunk before compression that the writer of a run
	// should aim at.
	ChunkBytes = 1 << 20

	// UnknownOffset stands for offsets that were not known when the segment was written.
	UnknownOffset int64 = -1
	// minExtentBytes is the smallest extent: one batch header.
	minExtentBytes = 61
	minObjectBytes = HeaderBytes + FooterPrefixBytes + TrailerBytes
	// tailBytes is read first to find the footer: for most segments all of it.
	tailBytes = 64 << 10
)

// magic starts every segment and ends it. The control characters catch a transfer as text.
const magic = "SKEIN\r\n\x1a"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// What can be wrong with a segment. Match with errors.Is.
var (
	// ErrNotSegment: the object is not a segment at all, or was cut off.
	ErrNotSegment = errors.New("not a segment")
	// ErrVersion: a format version that this program does not know.
	ErrVersion = errors.New("unknown segment version")
	// ErrCorrupt: a checksum, a length or an order that cannot be.
	ErrCorrupt = errors.New("corrupt segment")
	// ErrTooLarge: more than the format or this package's bounds can hold.
	ErrTooLarge = errors.New("segment is too large")
)

// Codec says how an extent or a chunk is stored. The numbers are part of the format.
type Codec uint8

const (
	// CodecStored: the batches as they are.
	CodecStored Codec = 0
	// CodecZstd: all batches together as one zstd frame.
	CodecZstd Codec = 1
	// CodecChunked, of an extent only: chunks, each with a codec of its own.
	CodecChunked Codec = 2
)

// String names the codec.
func (c Codec) String() string {
	switch c {
	case CodecStored:
		return "stored"
	case CodecZstd:
		return "zstd"
	case CodecChunked:
		return "chunked"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// ID identifies a segment: the flush id at level 0.
type ID [16]byte

// TopicID is a Kafka topic id.
type TopicID [16]byte

// String is the id as a UUID.
func (id TopicID) String() string { return uuid.UUID(id).String() }

// String is the id as 32 hexadecimal digits.
func (id ID) String() string { return fmt.Sprintf("%x", id[:]) }

// Extent is one entry of the index: consecutive record batches of one partition.
type Extent struct {
	TopicID      TopicID
	Partition    int32
	Codec        Codec
	Position     int64  // of its first byte in the object
	StoredLength int64  // bytes in the object
	RawLength    int64  // bytes of its batches
	CRC          uint32 // CRC-32C of the stored bytes
	Batches      uint32
	Records      uint32 // sum of the batches' record counts
	BaseOffset   int64  // UnknownOffset at level 0
	LastOffset   int64  // UnknownOffset at level 0
	MaxTimestamp int64  // milliseconds; the largest of the batches' headers
	Chunks       []Chunk
}

// Chunk is a part of a run that is decoded on its own. It holds whole batches.
type Chunk struct {
	Codec        Codec // stored or zstd
	Position     int64 // of its first byte in the object
	StoredLength int64
	RawLength    int64
	CRC          uint32 // CRC-32C of the stored bytes
	BaseOffset   int64
	LastOffset   int64
	MaxTimestamp int64
}

// Index is what the footer says.
type Index struct {
	Version   uint16
	Level     uint16 // 0: one flush; above: runs written by the compactor
	ID        ID
	CreatedMs int64 // the writer's clock in milliseconds, for people only
	Size      int64 // of the whole object
	// FooterPosition is where the extents end.
	FooterPosition int64
	Extents        []Extent
}

// Find returns the extents of one partition, in order.
func (x *Index) Find(topic TopicID, partition int32) []Extent {
	var out []Extent
	for _, e := range x.Extents {
		if e.TopicID == topic && e.Partition == partition {
			out = append(out, e)
		}
	}
	return out
}
