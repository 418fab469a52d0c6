package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors of the compactor's methods. Match with errors.Is.
var (
	// ErrFenced: a lease was lost, or what a swap is about has changed since it was planned. Nothing was saved: plan anew.
	ErrFenced = errors.New("fenced: the lease was lost or the log has changed")
)

// CondemnedKept is how long the row of a condemned key stays after its object was deleted, in database time: longer than
// any commit that names it can still be on its way (MaxResubmit), with room for an agent that was suspended.
const CondemnedKept = 24 * time.Hour

// Lease is the right to do some work, until Expires in database time or as long as it is renewed. Token rises with every
// holder, and a swap checks it.
type Lease struct {
	Name    string
	Holder  string
	Token   int64
	Expires Millis
}

// BlockLease is the name of the lease under which a block's runs are changed.
func BlockLease(id BlockID) string { return fmt.Sprintf("block/%d", id) }

// LeaseDriver hands out leases. It is part of Driver.
type LeaseDriver interface {
	// AcquireLease takes a lease that nobody holds or that has expired; ok is false when somebody holds it.
	AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (lease Lease, ok bool, err error)
	// RenewLease moves the expiry; ErrFenced when the lease is not held any more.
	RenewLease(ctx context.Context, lease Lease, ttl time.Duration) (Lease, error)
	// ReleaseLease ends a lease early. One that was lost already is left alone.
	ReleaseLease(ctx context.Context, lease Lease) error
}

// Compaction is what the compactor and fsck need of a database beside Driver. Methods that take a limit do at most so
// much at a time and are called again until they say that nothing is left.
type Compaction interface {
	Driver

	// Backlog gives blocks above after, by id, and what of them is not merged, in one statement's view.
	Backlog(ctx context.Context, after BlockID, limit int) ([]BacklogRow, error)
	// PlacesOf gives the partitions of blocks that are not deleted, by place.
	PlacesOf(ctx context.Context, blocks []BlockID) ([]PartitionRow, error)
	// LoadRows gives level0 rows of a block above a seq, by seq.
	LoadRows(ctx context.Context, block BlockID, above Seq, limit int) ([]*Row, error)
	// LoadRuns gives runs of a block from (slot, base) on, by slot and base.
	LoadRuns(ctx context.Context, block BlockID, slot Slot, base Offset, limit int) ([]RunRow, error)
	// TailRuns gives the newest runs of every slot of a block, up to perSlot each, by slot and base.
	TailRuns(ctx context.Context, block BlockID, perSlot int) ([]RunRow, error)

	// RegisterObjects announces keys before they are put. Present ones fail it.
	RegisterObjects(ctx context.Context, objects []ObjectRow) error
	// Swap makes a merge or a rewriting of runs real: all or nothing, in one short transaction. ErrFenced, ErrCondemned.
	Swap(ctx context.Context, swap SwapSave) error
	// ReleaseRows takes back the references of merged level0 rows of a block and deletes these rows, but for the block's
	// newest, and the inline payloads that nothing refers to any more. It gives how many rows gave up their references.
	ReleaseRows(ctx context.Context, block BlockID, limit int) (int, error)

	// RetentionStarts gives where each partition's log may start, or -1 where nothing has to go.
	RetentionStarts(ctx context.Context, queries []RetentionQuery) ([]Offset, error)
	// MoveLogStarts moves log starts forward; it gives the blocks that changed.
	MoveLogStarts(ctx context.Context, moves []LogStart) ([]BlockID, error)
	// DropRuns deletes runs that end below the given offsets, and takes back their references: up to limit in all. It
	// sets how many there were of each partition, and From to where the next call may begin.
	DropRuns(ctx context.Context, below []RunsBelow, limit int) error
	// DropBlocks deletes those of the blocks whose slots are all handed out, deleted, merged, released and without runs. It
	// gives these.
	DropBlocks(ctx context.Context, blocks []BlockID) ([]BlockID, error)

	// Condemn condemns objects that are garbage, and registered ones that nobody has named for longer than abandoned.
	Condemn(ctx context.Context, abandoned time.Duration, limit int) (int, error)
	// CondemnUnknown condemns those of the keys that have no row, and gives them.
	CondemnUnknown(ctx context.Context, objects []ObjectRow) ([]ObjectKey, error)
	// Condemned gives keys whose objects may be deleted: condemned for longer than grace and not deleted yet.
	Condemned(ctx context.Context, grace time.Duration, limit int) ([]ObjectRow, error)
	// ObjectsDeleted notes that objects are not in the bucket any more: their keys stay condemned.
	ObjectsDeleted(ctx context.Context, keys []ObjectKey) error
	// OldCondemned gives keys of objects that were deleted longer ago than kept; ForgetObjects removes their rows.
	OldCondemned(ctx context.Context, kept time.Duration, limit int) ([]ObjectKey, error)
	ForgetObjects(ctx context.Context, keys []ObjectKey) (int, error)

	// GCState reads the state of garbage collection with the database's present incarnation; NextGC counts the generation
	// up; SetGC overwrites it (halting, releasing).
	GCState(ctx context.Context) (GCState, error)
	NextGC(ctx context.Context) (GCState, error)
	SetGC(ctx context.Context, state GCState) error

	// Cleaned gives how far key compaction has come in a block's partitions; SaveCleaned notes it.
	Cleaned(ctx context.Context, block BlockID) ([]CleanedRow, error)
	SaveCleaned(ctx context.Context, row CleanedRow) error

	// ListObjects gives rows of objects above a key, by key; ListInline payloads above a flush id.
	ListObjects(ctx context.Context, after ObjectKey, limit int) ([]ObjectListing, error)
	ListInline(ctx context.Context, after FlushID, limit int) ([]InlineListing, error)
	// CountReferences gives the rows of objects and how many unreleased level0 rows and runs name them, in one statement's
	// view, in the order of keys. It reads all of level0 and runs: it is for few keys that look wrong, up to
	// MaxCountReferences.
	CountReferences(ctx context.Context, keys []ObjectKey) ([]ObjectCount, error)
	// SetObject writes an object's references and state when its row has not changed since it was read (fsck --repair). It
	// gives whether it did.
	SetObject(ctx context.Context, was ObjectListing, refs int, state ObjectState) (bool, error)
	// DropInlinePayloads removes payloads that no unreleased row refers to.
	DropInlinePayloads(ctx context.Context, flushes []FlushID) (int, error)

	// ExpireProducerIDs removes ranges of producer ids that were handed out longer ago.
	ExpireProducerIDs(ctx context.Context, olderThan time.Duration, limit int) (int, error)
}

// BacklogRow is a block and what of it is not merged.
type BacklogRow struct {
	Row         BlockRow
	Now         Millis
	Last        Seq    // newest row, 0: none
	LastTime    Millis // of it
	Photo       Photo  // of it; EmptyPhoto where there is none
	First       Seq    // oldest row that is there, 0: none
	Oldest      Millis // commit time of the first unmerged row; 0: none
	Checkpoint  Seq    // newest; 0: none
	Released    Seq    // rows up to here gave up their references
	MergedBytes int64  // sum of the slots' cumulative bytes at the merged seq
	// Corrupt says that the newest row's photograph cannot be read; Photo is empty then, and nothing can be planned.
	Corrupt error
}

// Unmerged is how many rows are not merged.
func (b *BacklogRow) Unmerged() int64 { return max(0, int64(b.Last-b.Row.MergedSeq)) }

// UnmergedBytes is the raw bytes of accepted batches that are not merged.
func (b *BacklogRow) UnmergedBytes() int64 {
	if b.Unmerged() == 0 {
		return 0
	}
	return max(0, b.Photo.TotalBytes()-b.MergedBytes)
}

// TotalBytes is the sum of all slots' cumulative bytes.
func (p *Photo) TotalBytes() int64 {
	var n int64
	for _, b := range p.Bytes {
		n += b
	}
	return n
}

// SwapSave is a swap. With To above From it is a merge: the block's merged seq moves from From to To. With To equal to
// From it rewrites runs: Remove are replaced by Add.
type SwapSave struct {
	Lease       Lease
	Block       BlockID
	From, To    Seq
	MergedBytes int64 // sum of the slots' cumulative bytes at To, for a merge
	Remove      []RunRow
	Add         []RunRow
	// Keep are keys of level-0 objects among Add's, left where they are because they cannot be read.
	Keep []ObjectKey
	// Cleaned, where not nil, is noted with it.
	Cleaned *CleanedRow
}

// Refs counts the references that the swap adds to registered or live objects, and those that it takes back.
func (s *SwapSave) Refs() (add, remove map[ObjectKey]int) {
	add, remove = map[ObjectKey]int{}, map[ObjectKey]int{}
	for i := range s.Add {
		if k := s.Add[i].Object; k != "" {
			add[k]++
		}
	}
	for i := range s.Remove {
		if k := s.Remove[i].Object; k != "" {
			remove[k]++
		}
	}
	return add, remove
}

// RetentionQuery asks where a partition's log may start.
type RetentionQuery struct {
	Block    BlockID
	Slot     Slot
	LogStart Offset
	// Cutoff: runs whose own maximum timestamp is below it go; NoTimestamp: none by time.
	Cutoff Millis
	// KeepBytes: runs go whose cumulative bytes do not exceed it; negative: none by size.
	KeepBytes int64
	// From: no run has a base below it, so nobody looks there.
	From Offset
}

// RunsBelow says which runs of a partition go.
type RunsBelow struct {
	Block BlockID
	Slot  Slot
	From  Offset // no run has a base below it
	Below Offset // those that end below it go
	Count int    // set by DropRuns
}

// LogStart is a partition's log start, wanted.
type LogStart struct {
	Block  BlockID
	Slot   Slot
	Offset Offset
}

// GCState is what guards the deletion of objects against a database that went back in time.
type GCState struct {
	Generation int64  // counts passes that delete
	Halted     string // why nothing is deleted; "" when it may be
	// The incarnation in which the last pass ran, as it was noted, and as it is now.
	System, NowSystem     string
	Timeline, NowTimeline int64
	NowLSN                int64
}

// Moved says whether the database is another incarnation than the one that was noted.
func (g *GCState) Moved() bool {
	return g.System != "" && (g.System != g.NowSystem || g.Timeline != g.NowTimeline)
}

// CleanedRow is how far key compaction has come in a partition.
type CleanedRow struct {
	Block   BlockID
	Slot    Slot
	UpTo    Offset // everything below was compacted
	Bytes   int64  // raw bytes of the runs below UpTo after it
	At      Millis // when, in database time
	Horizon Millis // a tombstone or marker may go then; 0: there is none
}

// ObjectListing is a row of objects for fsck.
type ObjectListing struct {
	ObjectRow
	Changed Millis // when its state or references last changed
	Gone    bool   // condemned, and its object was deleted
}

// ObjectCount is an object's row, if it has one, and how many rows name the object.
type ObjectCount struct {
	ObjectListing
	Known bool // it has a row
	Named int
}

// MaxCountReferences bounds the keys of one call of CountReferences.
const MaxCountReferences = 1000

// InlineListing is an inline payload.
type InlineListing struct {
	Flush FlushID
	Size  int64
	Named bool // an unreleased row refers to it
}

// Changed tells this Store and all agents that blocks' rows changed.
func (s *Store) Changed(ids ...BlockID) {
	if len(ids) == 0 {
		return
	}
	e := Event{Changed: ids}
	s.moved(e)
	s.events.add(e)
	s.pending.add(e)
}

// Checkpoint saves a checkpoint of the block's newest state and gives its seq: merging may go up to there.
func (s *Store) Checkpoint(ctx context.Context, id BlockID) (Seq, error) {
	for range maxLoadTries {
		if err := s.Refresh(ctx, id); err != nil {
			return 0, err
		}
		job, ok := s.checkpointOf(s.block(id))
		if !ok {
			continue // evicted, or there is no such block
		}
		if job.seq == 0 {
			return 0, nil
		}
		if err := s.driver.SaveCheckpoint(ctx, id, job.seq, job.state); err != nil {
			return 0, fmt.Errorf("checkpoint of block %d: %w", id, err)
		}
		return job.seq, nil
	}
	return 0, fmt.Errorf("%w: checkpoint of block %d: it is not there", ErrUnavailable, id)
}

func (s *Store) checkpointOf(b *block) (checkpointJob, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == nil {
		return checkpointJob{}, false
	}
	b.state.prune()
	b.checkpoint = max(b.checkpoint, b.state.Seq)
	return checkpointJob{block: b.id, seq: b.state.Seq, state: b.state.AppendCheckpoint(nil)}, true
}

// Bounds of the write stall.
const (
	// DefaultMaxUnmerged level0 rows of a block are where producers begin to be slowed.
	DefaultMaxUnmerged = 50_000
	// maxStall is how long a commit is held up at twice the bound and above; between the bound and that it grows evenly.
	maxStall = time.Second
)

// stall holds up whoever committed to a block whose level 0 has grown past the bound, so that merging keeps up: an LSM's
// write stall. What was committed is committed; the next flush of the block waits.
func (s *Store) stall(ctx context.Context, blocks []*block) {
	limit := s.opts.MaxUnmerged
	if limit <= 0 {
		return
	}
	var over int64
	for _, b := range blocks {
		if v := b.view.Load(); v != nil {
			over = max(over, int64(v.Seq-v.Row.MergedSeq)-limit)
		}
	}
	if over <= 0 {
		return
	}
	s.stalls.Add(1)
	wait := min(maxStall, time.Duration(over)*maxStall/time.Duration(limit))
	s.stalled.Add(int64(wait))
	// An ended context only cuts the wait short.
	_ = pause(ctx, wait)
}

// Unmerged is the unmerged rows of the block with most, of those that this Store knows: what producers are slowed by when
// it passes MaxUnmerged. It is as fresh as the views are; a block that is written to here is.
func (s *Store) Unmerged() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var worst int64
	for _, b := range s.blocks {
		if v := b.view.Load(); v != nil {
			worst = max(worst, int64(v.Seq-v.Row.MergedSeq))
		}
	}
	return worst
}

// Stalled is how long commits were held up, all together.
func (s *Store) Stalled() time.Duration { return time.Duration(s.stalled.Load()) }

// Stalls is how many commits were held up because their blocks had too many unmerged rows.
func (s *Store) Stalls() int64 { return s.stalls.Load() }
