package record

import "errors"

// The reasons a batch is refused. Each has its own sentinel so that the mapping
// to Kafka's error codes can stand in one place; the code that Kafka 4 answers is
// named beside each.
var (
	// ErrEmpty: no batch where one is needed. INVALID_RECORD (87).
	ErrEmpty = errors.New("no record batch")
	// ErrTruncated: the bytes end before the batch does. INVALID_RECORD (87),
	// since Kafka sees no whole batch then.
	ErrTruncated = errors.New("truncated record batch")
	// ErrLength: the length field is smaller than a batch header. CORRUPT_MESSAGE (2).
	ErrLength = errors.New("record batch length is impossible")
	// ErrMagic: magic 0 or 1, or one not yet invented. INVALID_RECORD (87).
	ErrMagic = errors.New("record batch magic is not 2")
	// ErrTrailing: bytes, or a second batch, after the first. INVALID_RECORD (87).
	ErrTrailing = errors.New("more than one record batch")
	// ErrBaseOffset: a producer's base offset is not 0. INVALID_RECORD (87).
	ErrBaseOffset = errors.New("record batch base offset is not 0")
	// ErrTooLarge: over max.message.bytes. MESSAGE_TOO_LARGE (10).
	ErrTooLarge = errors.New("record batch is too large")
	// ErrCRC: the checksum does not match. CORRUPT_MESSAGE (2).
	ErrCRC = errors.New("record batch checksum mismatch")
	// ErrCodec: compression bits 5 to 7. UNSUPPORTED_COMPRESSION_TYPE (76).
	ErrCodec = errors.New("unknown compression codec")
	// ErrZstdVersion: zstd in a Produce below version 7.
	// UNSUPPORTED_COMPRESSION_TYPE (76), KIP-110.
	ErrZstdVersion = errors.New("zstd needs Produce version 7")
	// ErrCount: the record count is not positive, or is not lastOffsetDelta + 1,
	// or is not what the batch really holds. INVALID_RECORD (87).
	ErrCount = errors.New("record count is wrong")
	// ErrControl: a client set the control bit. INVALID_RECORD (87).
	ErrControl = errors.New("clients may not write control records")
	// ErrSequence: a producer id without a sequence. INVALID_RECORD (87).
	ErrSequence = errors.New("producer id without a base sequence")
	// ErrProducerEpoch: a producer id without an epoch. INVALID_RECORD (87).
	ErrProducerEpoch = errors.New("producer id without an epoch")
	// ErrProducerID: a transactional batch without a producer id. INVALID_RECORD (87).
	ErrProducerID = errors.New("transactional batch without a producer id")
	// ErrTimestampType: the producer set the LogAppendTime bit for a topic
	// of that type. INVALID_TIMESTAMP (32).
	ErrTimestampType = errors.New("producer set the LogAppendTime bit")

	// ErrBadRecord: a record cannot be parsed, or its offset delta is not its index.
	// INVALID_RECORD (87).
	ErrBadRecord = errors.New("malformed record")
	// ErrDecompress: the compressed bytes cannot be decompressed. CORRUPT_MESSAGE (2).
	ErrDecompress = errors.New("cannot decompress records")
	// ErrDecompressedSize: the records are over the bound once decompressed.
	// MESSAGE_TOO_LARGE (10).
	ErrDecompressedSize = errors.New("decompressed records are too large")
	// ErrNullKey: a record without a key on a compacted topic. INVALID_RECORD (87).
	ErrNullKey = errors.New("record without a key on a compacted topic")
	// ErrTimestamp: a record's timestamp is out of the topic's bounds. INVALID_TIMESTAMP (32), KIP-937.
	ErrTimestamp = errors.New("record timestamp is out of bounds")
)
