// Package batcher makes record batches durable: it winds the batches of many partitions into flushes, uploads them as
// segments (or hands them over inline), commits them in groups, and gives every batch its own result.
//
// It never reads records, never assigns an offset, and knows nothing of the Kafka protocol's messages.
//
// A batch goes through: its chain (chain.go; the order in which batches of one producer or connection may be committed),
// the open flush (policy.go says when it is cut), encoding and PUT (upload.go), a group commit (commit.go), its result.
// What arrives before the batch it follows waits in hold.go. Batcher.mu guards all of that; it is never held during
// encoding, a PUT, a commit or a call of Done, and no other lock is taken under it but those of metrics. One goroutine,
// Run's, decides (Batcher.step); uploads and commits report back to it.
package batcher

import (
	"context"
	"errors"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// Errors of a Result. Match with errors.Is.
var (
	// ErrNotPersisted: for certain nothing was committed; the client may retry (Kafka's 19, NOT_ENOUGH_REPLICAS).
	ErrNotPersisted = errors.New("not persisted")
	// ErrMaybePersisted: it is not known whether it was committed; the client may retry (Kafka's 20,
	// NOT_ENOUGH_REPLICAS_AFTER_APPEND).
	ErrMaybePersisted = errors.New("possibly persisted")
	// ErrOutOfOrder: Kafka's 45, OUT_OF_ORDER_SEQUENCE_NUMBER.
	ErrOutOfOrder = errors.New("out of order sequence number")
	// ErrFenced: Kafka's 47, INVALID_PRODUCER_EPOCH.
	ErrFenced = errors.New("producer epoch is fenced")
	// ErrUnknownPartition: the partition was deleted (Kafka's 3, or 100 by id).
	ErrUnknownPartition = errors.New("unknown partition")
	// ErrInvalidTxnState: Kafka's 48, INVALID_TXN_STATE.
	ErrInvalidTxnState = errors.New("invalid transaction state")
	// ErrInvalidBatch: a batch that was not validated as the contract says (a fault of the caller).
	ErrInvalidBatch = errors.New("batch is not fit to be stored")
)

// Batch is one validated record batch of one partition.
type Batch struct {
	Topic     metadata.TopicID
	Index     int32 // partition index in the topic
	Partition metadata.Partition
	// Data is the record batch as it is to be stored. It is not copied and must not change until Done.
	Data []byte
	// Uncompressed says that the producer did not compress it: the segment may.
	Uncompressed bool
	// Meta is what the commit needs; Length is len(Data).
	Meta metadata.Batch
}

// Produce is the batches of one Produce request: at most one for a partition.
type Produce struct {
	// Conn is the connection's id: with the partition it names the chain of batches that have no producer id.
	Conn uint64
	// Deadline is when the waiters must have an answer (the request's timeout). It is taken to be at least MinWait and at
	// most MaxWait after Submit.
	Deadline time.Time
	Batches  []Batch
	// Done is called exactly once, with a result for every batch, from any goroutine; it must not block. The batcher
	// holds no reference to Data after it.
	Done func([]Result)
}

// Result is the outcome of one batch.
type Result struct {
	Err      error           // nil: committed, now or (Duplicate) before
	Base     metadata.Offset // first offset, -1 on an error or when a duplicate's offset is not known
	LogStart metadata.Offset // -1 when not known
	// Duplicate says that the batch had been committed before.
	Duplicate bool
}

// Store is what the batcher needs of metadata.Store.
type Store interface {
	Commit(ctx context.Context, flushes []*metadata.Flush) ([]metadata.FlushResult, error)
	Now(ctx context.Context) (metadata.Millis, error)
	InlineResident() int64
	Watch(ids []metadata.BlockID) *metadata.Watch
	// View is asked about blocks that batches are held for, to see whether their partitions moved.
	View(ctx context.Context, id metadata.BlockID) (*metadata.View, error)
	// Progress is asked about producers that a failure's mark holds back.
	Progress(ctx context.Context, of []metadata.PartitionProducer) ([]metadata.Progress, error)
}

var _ Store = (*metadata.Store)(nil)

// Bucket is what the batcher needs of objstore.Bucket.
type Bucket interface {
	Put(ctx context.Context, key string, body objstore.Payload, opts objstore.PutOptions) error
}

var _ Bucket = (objstore.Bucket)(nil)

// Sink is told of every extent after its commit and before its waiters get their results, so that what an agent wrote
// stays in its cache. Raw must be copied to be kept.
type Sink interface {
	Stored(e StoredExtent)
}

// StoredExtent is a committed extent.
type StoredExtent struct {
	Object    metadata.ObjectKey // "" = inline payload of Flush
	Flush     metadata.FlushID
	Position  int64
	RawLength int32
	Raw       [][]byte
}
