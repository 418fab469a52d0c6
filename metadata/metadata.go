// Package metadata decides and remembers: which offsets record batches got, which producers may write, which topics
// exist. It holds the words (types), the rules (pure functions over rows) and the Store that runs the rules over a
// Driver. The drivers, metadata/postgres and metadata/sqlite, only load and save rows.
//
// It never touches the bucket, never sees a record's bytes (but for carrying inline payloads), and knows nothing of the
// Kafka protocol's messages.
//
// A block is a small append-only log shared by up to SlotsPerBlock partitions. Its history is its level0 rows
// (block, seq), seq dense from 1; its state is a pure fold over them (State.Apply). See docs/ARCHITECTURE.md.
package metadata

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// SlotsPerBlock is how many partitions share one block, the unit of locking and order.
const SlotsPerBlock = 64

// BlockID names a block; ids are positive and never used again.
type BlockID int64

// Slot is a partition's place in its block: 0 to SlotsPerBlock-1. A slot is never used again.
type Slot uint8

// Seq is a level0 row's number in its block: dense, the first is 1; 0 is "before the first".
type Seq int64

// SeqCold as a known seq says that nothing of the block is known: a load starts at the newest checkpoint.
const SeqCold Seq = -1

// Offset is a record's offset in its partition.
type Offset int64

// Millis is a time in milliseconds since the Unix epoch. Unless it says otherwise it is the database's clock.
type Millis int64

// Time gives m as a time.Time.
func (m Millis) Time() time.Time { return time.UnixMilli(int64(m)) }

// Add gives m moved by d.
func (m Millis) Add(d time.Duration) Millis { return m + Millis(d.Milliseconds()) }

// Sub gives the duration from o to m.
func (m Millis) Sub(o Millis) time.Duration { return time.Duration(m-o) * time.Millisecond }

// NoTimestamp is Kafka's -1: a batch or topic without a timestamp.
const NoTimestamp Millis = -1

// ProducerID is an idempotent or transactional producer's id; NoProducer where there is none.
type ProducerID int64

// ProducerEpoch fences older instances of the same ProducerID.
type ProducerEpoch int16

// NoProducer is the producer id of batches written without idempotence.
const NoProducer ProducerID = -1

// Sequence is a record's number within (producer, partition); after MaxSequence comes 0.
type Sequence int32

// MaxSequence is the last sequence before the wrap to 0.
const MaxSequence Sequence = 2147483647

// Next gives the sequence n places after s (n >= 0), across the wrap.
func (s Sequence) Next(n int32) Sequence {
	return Sequence((int64(s) + int64(n)) % (int64(MaxSequence) + 1))
}

// TopicID is a topic's identity: a new one for every creation.
type TopicID [16]byte

// NewTopicID makes a random (version 4) topic id.
func NewTopicID() TopicID { return TopicID(uuid.New()) }

func (id TopicID) String() string { return uuid.UUID(id).String() }

// IsZero says whether id is the all-zero "no topic" id.
func (id TopicID) IsZero() bool { return id == TopicID{} }

// FlushID names a flush across retries, hedges and regrouping. It is time-ordered for the locality of its index and is
// never used for age.
type FlushID [16]byte

// NewFlushID makes a time-ordered (UUID version 7) flush id.
func NewFlushID() (FlushID, error) {
	u, err := uuid.NewV7()
	if err != nil {
		return FlushID{}, fmt.Errorf("new flush id: %w", err)
	}
	return FlushID(u), nil
}

func (id FlushID) String() string { return hex.EncodeToString(id[:]) }

// ObjectKey is a segment's key in the bucket; empty where a flush is inline.
type ObjectKey string

// Errors that a Store or Driver returns. Match with errors.Is.
var (
	// ErrUnavailable: the database could not be reached or refused for now; nothing was committed.
	ErrUnavailable = errors.New("metadata database unavailable")
	// ErrUnknownOutcome: COMMIT was sent and its answer was lost. Submit the same flush ids again.
	ErrUnknownOutcome = errors.New("outcome of the commit is unknown")
	// ErrCondemned: an object key named by the commit is condemned; nothing was committed. PUT again under a new key,
	// same flush id.
	ErrCondemned = errors.New("object key is condemned")
	// ErrFlushTooOld: a flush was first submitted longer than MaxResubmit ago and has no receipt; it is refused.
	ErrFlushTooOld = errors.New("flush is too old to be committed")
	// ErrTopicExists: a topic of that name exists.
	ErrTopicExists = errors.New("topic already exists")
	// ErrTopicCollides: a topic exists whose name differs only by '.' and '_'.
	ErrTopicCollides = errors.New("topic name collides with an existing topic")
	// ErrUnknownTopic: no topic of that name or id.
	ErrUnknownTopic = errors.New("unknown topic")
	// ErrInvalidPartitions: a partition count that is not above the present one, or out of bounds.
	ErrInvalidPartitions = errors.New("invalid partition count")
	// ErrOffsetOutOfRange: DeleteRecords beyond the high watermark.
	ErrOffsetOutOfRange = errors.New("offset out of range")
	// ErrCorrupt: a row in the database does not decode.
	ErrCorrupt = errors.New("corrupt metadata row")
)

// Time bounds of the commit protocol (docs/ARCHITECTURE.md).
const (
	// MaxResubmit is how long after its first attempt a flush may still be committed.
	MaxResubmit = 5 * time.Minute
	// ReceiptRetention is how long a flush's receipt is kept: longer than any retry can last.
	ReceiptRetention = 15 * time.Minute
	// ProducerExpiry is how long an idle producer's state is kept.
	ProducerExpiry = 24 * time.Hour
)
