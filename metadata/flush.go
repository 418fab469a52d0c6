package metadata

import "fmt"

// Codec says how an extent is stored.
type Codec uint8

// Codecs of extents. The numbers are part of the segment format and of level0 rows.
const (
	CodecStored Codec = 0 // as it is
	CodecZstd   Codec = 1
)

// Batch describes one record batch of an extent, as the commit needs it.
type Batch struct {
	Length       int32 // bytes in the raw (decoded) extent
	Records      int32 // last offset delta + 1, > 0
	MaxTimestamp Millis
	Producer     ProducerID // NoProducer where there is none
	Epoch        ProducerEpoch
	First, Last  Sequence // of the producer; -1 without one
	Flags        BatchFlags
	// Joins says that a transactional batch makes its partition part of the transaction (KIP-890); else it must be already.
	// It is not stored.
	Joins bool
	// Validated is the catalogue version whose configs the batch was validated against. The commit answers CodeStale
	// when the partition's configs have changed since.
	Validated CatalogueVersion
}

// BatchFlags are properties of a batch in an extent.
type BatchFlags uint8

// Flags of batches. The numbers are part of level0 rows.
const (
	FlagAccepted      BatchFlags = 1 << 0 // readers skip batches without it
	FlagTransactional BatchFlags = 1 << 1
	FlagControl       BatchFlags = 1 << 2
	FlagCommit        BatchFlags = 1 << 3 // of a control batch: commit, else abort
)

// Extent is consecutive record batches of one partition in one place.
type Extent struct {
	Block     BlockID
	Slot      Slot
	Position  int64  // first byte in the object, or in the inline payload
	Length    int32  // bytes stored
	RawLength int32  // bytes after decoding
	Codec     Codec  //
	CRC       uint32 // CRC32C of the stored bytes
	Created   Millis // when the partition was made (Partition.Created)
	Batches   []Batch
}

// Flush is what a batcher commits at once: extents of many partitions in one object or one inline payload.
type Flush struct {
	ID FlushID
	// Seen is the last database time (Store.Now) seen before the first attempt to commit this flush id. Resubmissions
	// carry the same one.
	Seen       Millis
	Object     ObjectKey // "" when inline
	ObjectSize int64     // bytes
	Inline     [][]byte  // the payload, when Object is ""; not changed or kept after Commit returns
	// Extents, at most one for a partition. Commit handles them in the order given.
	Extents []Extent
}

// check refuses what would break a block's log: extents out of order or twice, counts that do not move offsets on.
func (f *Flush) check() error {
	for i := range f.Extents {
		e := &f.Extents[i]
		if e.Slot >= SlotsPerBlock || e.Length < 0 || e.RawLength < 0 || e.Position < 0 {
			return fmt.Errorf("flush %s: extent %d is out of bounds", f.ID, i)
		}
		if i > 0 {
			if p := &f.Extents[i-1]; e.Block < p.Block || (e.Block == p.Block && e.Slot <= p.Slot) {
				return fmt.Errorf("flush %s: extent %d is not in order of block and slot", f.ID, i)
			}
		}
		for j := range e.Batches {
			if b := &e.Batches[j]; b.Records < 1 || b.Length < 0 || b.First < -1 || b.Last < -1 {
				return fmt.Errorf("flush %s: batch %d of extent %d is out of bounds", f.ID, j, i)
			}
		}
	}
	return nil
}

// Code is what the commit decided for one batch.
type Code uint8

// Codes. The numbers are part of receipts.
const (
	CodeAccepted Code = 0 // has offsets now
	// CodeDuplicate: was committed before; Base is the first offset it got then.
	CodeDuplicate Code = 1
	// CodeNotYet: sequence ahead of what is known; an earlier batch may be on its way. Nothing was committed. May be
	// submitted again under a new flush id when the partition moves.
	CodeNotYet Code = 2
	// CodeOutOfOrder: sequence behind what is known and not among the last five: Kafka's 45, now and for ever.
	CodeOutOfOrder Code = 3
	// CodeFenced: epoch below the producer's current one: Kafka's 47.
	CodeFenced Code = 4
	// CodeUnknownPartition: the partition is deleted.
	CodeUnknownPartition Code = 5
	// CodeStale: the topic's configs changed after the batch was validated; nothing was committed; validate again.
	CodeStale Code = 6
	// CodeInvalidTxnState: a transactional batch outside an ongoing transaction of its producer: Kafka's 48.
	CodeInvalidTxnState Code = 7
)

// BatchResult is the outcome of one batch of a flush.
type BatchResult struct {
	Code     Code
	Base     Offset // first offset of an accepted or duplicate batch, else -1
	LogStart Offset // of the partition at the commit
}

// FlushResult is the outcome of one flush.
type FlushResult struct {
	// Err is nil, or ErrFlushTooOld; then there are no results.
	Err error
	// Batches has a result for every batch, in the order of Flush.Extents and their Batches.
	Batches []BatchResult
	// Resubmitted: the results come from the receipt of an earlier attempt.
	Resubmitted bool
}

// BlockSeq is a place in a block's log.
type BlockSeq struct {
	Block BlockID
	Seq   Seq
}
