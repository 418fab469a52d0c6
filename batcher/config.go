package batcher

import (
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/internal/segment"
)

// Config is what the user may tune. The names in comments are those of flags and configuration keys.
type Config struct {
	// Linger (linger) is how long the oldest record waits for company when budgets have no tokens.
	Linger time.Duration
	// SegmentBytes (segment-bytes) is how many raw bytes make a segment full.
	SegmentBytes int64
	// PutBudget (put-budget) is how many PUTs per second may be averaged before batches have to wait for Linger or a full
	// segment; 0 = no limit.
	PutBudget float64
	// CommitBudget (commit-budget) is the same for commits; 0 = no limit.
	CommitBudget float64
	// InlineMaxBytes (inline-max-bytes): smaller flushes go into the database; 0 = never.
	InlineMaxBytes int64
	// InlineBytesPerSecond (inline-bytes-per-second) bounds the average of inline bytes; 0 = no limit.
	InlineBytesPerSecond int64
	// InlineResidentBytes (inline-resident-bytes) bounds the inline bytes that are in the database, of the whole cluster.
	InlineResidentBytes int64
	// Uploads (uploads) is how many segments are encoded and uploaded at once.
	Uploads int
	// SequenceHold (sequence-hold) is how long a batch is held that arrived before the one it follows; 0 = not at all.
	SequenceHold time.Duration
	// SequenceHoldBytes bounds the bytes of held batches.
	SequenceHoldBytes int64
	// Hedge (hedge) begins an upload again, under a second key, that takes longer than most do.
	Hedge bool
	// Compression (compression) of what producers did not compress.
	Compression segment.Compression
}

// DefaultConfig gives the defaults.
func DefaultConfig() Config {
	return Config{
		Linger:               250 * time.Millisecond,
		SegmentBytes:         8 << 20,
		PutBudget:            8,
		CommitBudget:         50,
		InlineMaxBytes:       64 << 10,
		InlineBytesPerSecond: 1 << 20,
		InlineResidentBytes:  256 << 20,
		Uploads:              8,
		SequenceHold:         2 * time.Second,
		SequenceHoldBytes:    32 << 20,
		Hedge:                true,
		Compression:          segment.CompressionAuto,
	}
}

// Bounds of a Config.
const (
	maxLinger       = time.Minute
	minSegmentBytes = 1 << 10
	maxSegmentBytes = 128 << 20
	maxInlineBytes  = 1 << 20
	maxUploads      = 256
	maxSequenceHold = 30 * time.Second
)

// Validate tells all that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, name string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s is %v, must be %s", name, value, want))
		}
	}
	check(c.Linger >= 0 && c.Linger <= maxLinger, "linger", c.Linger, "0 to 1m")
	check(c.SegmentBytes >= minSegmentBytes && c.SegmentBytes <= maxSegmentBytes, "segment-bytes", c.SegmentBytes, "1KiB to 128MiB")
	check(c.PutBudget >= 0, "put-budget", c.PutBudget, "0 or more")
	check(c.CommitBudget >= 0, "commit-budget", c.CommitBudget, "0 or more")
	check(c.InlineMaxBytes >= 0 && c.InlineMaxBytes <= maxInlineBytes, "inline-max-bytes", c.InlineMaxBytes, "0 to 1MiB")
	check(c.InlineBytesPerSecond >= 0, "inline-bytes-per-second", c.InlineBytesPerSecond, "0 or more")
	check(c.InlineResidentBytes >= 0, "inline-resident-bytes", c.InlineResidentBytes, "0 or more")
	check(c.Uploads >= 1 && c.Uploads <= maxUploads, "uploads", c.Uploads, "1 to 256")
	check(c.SequenceHold >= 0 && c.SequenceHold <= maxSequenceHold, "sequence-hold", c.SequenceHold, "0 to 30s")
	check(c.SequenceHoldBytes >= 0, "sequence-hold bytes", c.SequenceHoldBytes, "0 or more")
	check(c.Compression <= segment.CompressionZstd, "compression", c.Compression, "auto, none or zstd")
	return errors.Join(errs...)
}

// Bounds that are not tunable.
const (
	// MinWait is the shortest time that a batch is given: a client with a tiny timeout would otherwise interrupt uploads
	// that it shares with others.
	MinWait = 500 * time.Millisecond
	// MaxWait is the longest: well below metadata.MaxResubmit, so that no waiter outlives what can be resubmitted.
	MaxWait = 2 * time.Minute

	// maxFlushBatches bounds a flush, and with it the work of one commit under its locks.
	maxFlushBatches = 32_768
	// maxGroupFlushes and maxGroupBatches bound what is committed in one transaction.
	maxGroupFlushes = 64
	maxGroupBatches = 65_536
	// maxCommits is how many commits, of disjoint blocks, are in flight at once.
	maxCommits = 4
	// maxQueued is how many flushes may wait for their commit before the open one is left to grow until it is full.
	maxQueued = 32
	// maxUnsettled is how many flushes may have an unknown outcome before no other is committed.
	maxUnsettled = 64

	// putTimeout, more for what slowestPut takes longer for, and commitTimeout bound one attempt.
	putTimeout    = 10 * time.Second
	slowestPut    = 1 << 20 // bytes per second
	commitTimeout = 10 * time.Second
	// Backoff of attempts, doubling from base to limit.
	putBackoffBase    = 50 * time.Millisecond
	putBackoffLimit   = 2 * time.Second
	commitBackoffBase = 20 * time.Millisecond
	commitBackoffLim  = time.Second

	// markRetention is how long a failed chain's mark holds back later sequences.
	markRetention = 2 * time.Minute
	// gapLimit is how long after its first sight a gap in a producer's sequences is answered with a retriable error.
	gapLimit = 2 * time.Minute
	// maxMarks bounds the chains that are remembered for their mark or gap alone; over it the oldest are forgotten. About
	// 300 bytes each.
	maxMarks = 1 << 16
	// maxDoubts bounds the marks that the database is asked about at a time.
	maxDoubts = 4096
	// holdPoll is how often held batches are tried again though nobody said that their partition moved, and
	// at most how often the database is asked about a mark.
	holdPoll = 500 * time.Millisecond
)
