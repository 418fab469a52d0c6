package metadata

import (
	"context"
	"time"
)

// Driver loads and saves rows, in bulk, and decides nothing. Its implementations are metadata/postgres and
// metadata/sqlite; one conformance suite (metadata/metadatatest) runs on both. Errors wrap ErrUnavailable,
// ErrUnknownOutcome or ErrCondemned where these fit.
type Driver interface {
	// Commit runs one transaction: insert the inline payloads (before any lock; present ones stay), lock the blocks in
	// id order, then as a later statement load what is asked, call decide once, save what it returns, commit. When
	// decide fails nothing is saved and its error is returned.
	Commit(ctx context.Context, load CommitLoad, decide func(*CommitLoaded) (*CommitSave, error)) error

	// LoadBlocks gives, in one statement's view, each block's row and its level0 rows above the known seq; for SeqCold
	// the newest checkpoint and the rows above that. Deleted or unknown blocks are left out.
	LoadBlocks(ctx context.Context, known []BlockSeq) (*BlocksLoaded, error)

	// Locate finds, for each query, level0 rows that touch the slot and end above the offset, by binary search on the
	// photographs, all in one statement's view.
	Locate(ctx context.Context, queries []LocateQuery) ([]LocateAnswer, error)

	// LocateTime is Locate for "the first row whose running maximum timestamp reaches Timestamp and that ends above
	// Offset".
	LocateTime(ctx context.Context, queries []LocateTimeQuery) ([]LocateAnswer, error)

	// LoadInline reads parts of inline payloads; a missing payload gives a nil slice.
	LoadInline(ctx context.Context, parts []InlinePart) ([][]byte, error)

	// SaveCheckpoint keeps the state of a block as of seq and removes older checkpoints but the newest before it.
	// Saving one that is there already, or an older one than is there, changes nothing.
	SaveCheckpoint(ctx context.Context, block BlockID, seq Seq, state []byte) error

	// Catalogue runs one transaction under the catalogue's lock: load, decide, save.
	Catalogue(ctx context.Context, load CatalogueLoad, decide func(*CatalogueLoaded) (*CatalogueSave, error)) error

	// LoadTopics gives the topics changed and the ids deleted after since, and the version now. Full says that the
	// answer is everything (since was too old): forget what is not in it.
	LoadTopics(ctx context.Context, since CatalogueVersion) (*TopicsLoaded, error)

	// AllocateProducerIDs hands out count consecutive ids, and remembers when.
	AllocateProducerIDs(ctx context.Context, count int) (ProducerRange, error)

	// ProducerRangeOf gives the range that id was handed out in; ok is false where there is none.
	ProducerRangeOf(ctx context.Context, ids []ProducerID) ([]ProducerRange, error)

	// Now reads the database's clock.
	Now(ctx context.Context) (Millis, error)

	// InlineResident is the bytes of inline payloads in the database.
	InlineResident(ctx context.Context) (int64, error)

	// Housekeep removes, in bounded steps, receipts older than the cutoff. It gives how many rows went.
	ExpireReceipts(ctx context.Context, olderThan time.Duration, limit int) (int, error)

	// ClusterID gives the cluster's id, made at the first migration and constant.
	ClusterID(ctx context.Context) (string, error)

	// Notify tells all agents, best effort, what moved. Listen calls fn for what other agents (and this one) told, and
	// with Event.All after every (re)connect, until ctx ends.
	Notify(ctx context.Context, event Event) error
	Listen(ctx context.Context, fn func(Event)) error

	GroupDriver
	AgentDriver
	TxnDriver
	LeaseDriver

	Close() error
}

// Event is a wake-up.
type Event struct {
	All       bool       // anything may have moved
	Blocks    []BlockSeq // these logs reached these seqs
	Catalogue CatalogueVersion
	// Changed are blocks whose row (log start, deleted bits, merged seq) changed.
	Changed []BlockID
	// Groups are consumer groups that reached these versions; AllGroups: any may have moved.
	Groups    []GroupVersion
	AllGroups bool
	// Agents: an agent came, drains or left.
	Agents bool
}

// CommitLoad is what a commit reads under its locks.
type CommitLoad struct {
	Inline  []InlinePayload
	Blocks  []BlockSeq // by block; the seq the caller has folded, or SeqCold
	Flushes []FlushID  // whose receipts are wanted
	Txns    *TxnLoad   // nil: none; locked after the inline payloads were inserted and before the blocks
}

// InlinePayload is an inline row. Its bytes are a vector that the driver must not keep.
type InlinePayload struct {
	Flush   FlushID
	Payload [][]byte
	Size    int64
}

// BlockRow is a block's mutable row: changed by admin calls and the compactor only, each change raising Version.
type BlockRow struct {
	ID          BlockID
	Version     int64
	LogStart    [SlotsPerBlock]Offset
	Deleted     uint64           // bit s: slot s is deleted
	ConfigEpoch CatalogueVersion // of the last change of configs of any of its topics
	MergedSeq   Seq              // level0 rows at or below are merged: readers ignore them
	Used        int              // slots handed out
	Shared      bool             // small topics may take slots of it
}

// BlockDelta is what is new of one block.
type BlockDelta struct {
	Row        BlockRow
	Checkpoint *Checkpoint // when it was asked for cold and there is one
	Rows       []*Row      // by seq, dense after the known seq or the checkpoint
}

// Checkpoint is an encoded State as of Seq.
type Checkpoint struct {
	Seq   Seq
	State []byte
}

// CommitLoaded is what Commit loaded under the locks.
type CommitLoaded struct {
	Now      Millis // the database's clock, read after the locks were taken
	Blocks   []BlockDelta
	Receipts map[FlushID][]byte
	// InlineNew are the inline payloads that this transaction inserted, as against found.
	InlineNew map[FlushID]bool
	Txns      []TxnRow  // of TxnLoad; those that are not there are left out
	TxnOpen   []TxnPart // which of TxnLoad.Parts are part of their producer's transaction
}

// BlocksLoaded is LoadBlocks' answer.
type BlocksLoaded struct {
	Now    Millis
	Blocks []BlockDelta
}

// CommitSave is what a commit writes.
type CommitSave struct {
	Rows     []*Row
	Receipts []Receipt
	Objects  []ObjectRow
	// DropInline are payloads of this commit that no row names.
	DropInline []FlushID
	Txns       []TxnRow // rows that are there, by id
	TxnAdd     []TxnPart
	TxnEnd     *TxnEnd // after Txns and TxnAdd
	Aborted    []AbortedTxn
}

// Receipt is the encoded results of a flush.
type Receipt struct {
	Flush FlushID
	Data  []byte
}

// ObjectState is an object's state.
type ObjectState uint8

// States of objects. The numbers are in the database.
const (
	ObjectRegistered ObjectState = 0 // announced, not yet named by a row
	ObjectLive       ObjectState = 1
	ObjectGarbage    ObjectState = 2
	ObjectCondemned  ObjectState = 3
)

// ObjectRow is a row of objects.
type ObjectRow struct {
	Key   ObjectKey
	Size  int64
	Refs  int // level0 rows and runs that name it
	State ObjectState
	// Lenient: when the key is there already leave it, whatever its state (the object of a flush that was committed
	// before). Otherwise a condemned key fails the commit with ErrCondemned.
	Lenient bool
}

// LocateQuery asks where offset Offset of a partition is: in runs (one probe), or among the rows above the merged seq.
type LocateQuery struct {
	Block  BlockID
	Slot   Slot
	Offset Offset
	// MaxBytes bounds the raw bytes of the rows given beyond the first; MaxRows their number (at least 1).
	MaxBytes int64
	MaxRows  int
}

// LocateTimeQuery asks for the first extents that may hold a record with a timestamp of at least Timestamp.
type LocateTimeQuery struct {
	Block     BlockID
	Slot      Slot
	Timestamp Millis
	Offset    Offset // not below this one
	MaxRows   int
}

// LocateAnswer is rows that touch the slot, by seq. Only the queried slot's Touched is sure to be there. MergedSeq is the
// block's in the same view: an offset below what the rows start with is in the runs.
type LocateAnswer struct {
	Rows      []*Row
	Runs      []RunRow // what of the answer lies in merged data, by base offset; comes before Rows
	MergedSeq Seq
	Missing   bool // no such block
}

// RunRow is a long extent of one partition in an object of level 1 or higher, and its row.
type RunRow struct {
	Block        BlockID
	Slot         Slot
	Base, Last   Offset
	Object       ObjectKey
	Position     int64  // bytes
	Length       int64  // bytes
	MaxTS        Millis // its own
	RunningMaxTS Millis // of the partition up to its end
	Bytes        int64  // of the partition, cumulative, up to its end
	Level        int16  // 0: a level-0 extent that could not be read, left where it was
	Raw          int64  // bytes of its batches before compression
	ObjectSize   int64  // bytes of the whole object
}

// InlinePart is a range of an inline payload, in bytes.
type InlinePart struct {
	Flush    FlushID
	Position int64
	Length   int64
}

// ProducerRange is producer ids handed out together.
type ProducerRange struct {
	First ProducerID
	Count int
	At    Millis
}

// Contains says whether id is in r.
func (r ProducerRange) Contains(id ProducerID) bool {
	return id >= r.First && id < r.First+ProducerID(r.Count)
}

// TopicRow is a topic's row without its partitions.
type TopicRow struct {
	ID                TopicID
	Name              string
	Configs           map[string]string
	ReplicationFactor int16
	Version           CatalogueVersion
	Created           Millis
}

// PartitionRow places a partition.
type PartitionRow struct {
	Topic TopicID
	Index int32
	Partition
}

// CatalogueLoad is what a catalogue change reads under the catalogue's lock.
type CatalogueLoad struct {
	Names []string  // topics by name
	IDs   []TopicID // topics by id
	// Canonical are names with '.' folded to '_' (CanonicalName) whose topics are wanted.
	Canonical []string
	// Blocks are block rows wanted by id. LockBlocks also locks, in id order, and loads these and all blocks of the
	// loaded topics' partitions, and the known photographs.
	Blocks     []BlockID
	LockBlocks bool
	// Shared asks for one shared block with free slots, locked.
	Shared bool
}

// CatalogueLoaded is what a catalogue change decides on.
type CatalogueLoaded struct {
	Now        Millis
	Version    CatalogueVersion
	NextBlock  BlockID // ids from here on are free; CatalogueSave.Blocks may use them
	Topics     []TopicRow
	Partitions []PartitionRow // of those topics, by topic and index
	Blocks     []BlockRow
	Next       map[BlockID][SlotsPerBlock]Offset // next offsets of the locked blocks (newest photograph)
	SharedRow  *BlockRow
}

// CatalogueSave is what a catalogue change writes. A zero Version changes none.
type CatalogueSave struct {
	Version      CatalogueVersion
	Topics       []TopicRow // inserted or replaced by id
	Partitions   []PartitionRow
	DeleteTopics []TopicID  // with their partitions; leaves a tombstone at Version
	Blocks       []BlockRow // inserted or replaced by id; Version of the row already raised
	NextBlock    BlockID    // when new blocks were taken; else 0
}

// TopicsLoaded is what changed in the catalogue.
type TopicsLoaded struct {
	Version    CatalogueVersion
	Full       bool
	Topics     []TopicRow
	Partitions []PartitionRow // of those topics, all, by topic and index
	Deleted    []TopicID
}
