package compactor

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// Bounds of the compactor's work. Those of its memory are in memory.go.
const (
	// jobBlocks is how many blocks one merge handles together: a level-0 object touches many blocks, and is read once.
	jobBlocks = 16
	// jobRows bounds the level0 rows of one block in a merge.
	jobRows = 4096
	// gatherRows is how many of them are loaded at a time: a row holds a photograph of all slots.
	gatherRows = 256
	// runBytes is what a run grows to, in raw bytes: below half of it it is merged again.
	runBytes = 64 << 20
	// fanIn is how many neighbouring runs of a size tier, or smaller, make it worth merging them.
	fanIn = 8
	// tierBase and tierFactor: tier t holds runs of up to tierBase * tierFactor^t raw bytes.
	tierBase   = 16 << 10
	tierFactor = 8
	// tailRuns is how many of a partition's newest runs are looked at for merging again.
	tailRuns = 64
	// readGap: extents of one object this close together are one GET; maxRead bounds what one GET reads.
	readGap = 256 << 10
	maxRead = 8 << 20
	// readers is how many GETs of a job run at a time.
	readers = 8
	// inlineParts and inlineBytes bound one read of inline payloads.
	inlineParts = 256
	inlineBytes = 8 << 20
	// backlogPage is how many blocks one read of the backlog gives.
	backlogPage = 256
	// releaseRows, dropRuns, condemnLimit, deleteLimit bound one step of cleaning up.
	releaseRows  = 1000
	dropRuns     = 1000
	condemnLimit = 1000
	deleteLimit  = objstore.DeleteBatchKeys
	// retentionParts is how many partitions one statement of retention asks about.
	retentionParts = 4096
	// putTries bounds how often a PUT is tried.
	putTries = 4
	// keyMapEntries bounds the keys that key compaction holds, but for those of one batch more: about 64 bytes each. What
	// does not fit takes another pass.
	keyMapEntries = 1 << 20
)

// Defaults.
const (
	DefaultInterval  = 10 * time.Second
	DefaultGCGrace   = time.Hour
	DefaultLeaseTTL  = 30 * time.Second
	DefaultMergeRows = 256
	// DefaultMergeBytes of unmerged raw bytes are merged however young.
	DefaultMergeBytes = 32 << 20
	// DefaultOrphanInterval is how often the whole bucket is listed.
	DefaultOrphanInterval = 6 * time.Hour
	// mergeAgeIntervals, retentionIntervals: in units of Interval, how old the oldest unmerged row gets, and how often
	// retention is looked at.
	mergeAgeIntervals  = 3
	lateAges           = 10
	retentionIntervals = 6
)

// Config of a Compactor. Zero values take the defaults.
type Config struct {
	Interval       time.Duration // how often it looks for work
	MergeAge       time.Duration // a block's rows are merged when the oldest is older
	MergeRows      int64         // or when there are so many
	MergeBytes     int64         // or so many raw bytes
	MaxUnmerged    int64         // rows of a block over which producers are slowed
	GCGrace        time.Duration // how long garbage stays
	OrphanInterval time.Duration
	LeaseTTL       time.Duration
	// BytesPerSecond bounds what is read and written; 0: no limit. While merging is far behind it does not count: a block
	// has more than half of MaxUnmerged, or a row is lateAges times older than MergeAge.
	BytesPerSecond int64
	// InlineResidentBytes is the bound of inline payloads in the database; over half of it everything is merged however
	// young, since only that makes room. 0: no such bound.
	InlineResidentBytes int64
	// LargestExtent is how large a flush's part for one partition may be, in bytes: MemoryBound is kept up to there.
	LargestExtent int64
	KeyMapEntries int
}

func (c Config) withDefaults() Config {
	set := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&c.Interval, DefaultInterval)
	set(&c.MergeAge, mergeAgeIntervals*c.Interval)
	set(&c.GCGrace, DefaultGCGrace)
	set(&c.OrphanInterval, DefaultOrphanInterval)
	set(&c.LeaseTTL, DefaultLeaseTTL)
	if c.MergeRows <= 0 {
		c.MergeRows = DefaultMergeRows
	}
	if c.MergeBytes <= 0 {
		c.MergeBytes = DefaultMergeBytes
	}
	if c.MaxUnmerged <= 0 {
		c.MaxUnmerged = metadata.DefaultMaxUnmerged
	}
	if c.KeyMapEntries <= 0 {
		c.KeyMapEntries = keyMapEntries
	}
	return c
}

// Options of a Compactor.
type Options struct {
	Config     Config
	Holder     string // names this process in leases
	Driver     metadata.Compaction
	Store      Store
	Bucket     objstore.Bucket
	Logger     *slog.Logger          // nil: discard
	Registerer prometheus.Registerer // nil: a registry of its own
	// Crash, in tests, is asked at every step; an error ends the work there as a crash of the process would.
	Crash func(Point) error
}

// Point is a step of the work at which a test may let it end.
type Point string

// Points, in the order of a merge's and a collection's steps.
const (
	PointPlanned    Point = "planned"
	PointRead       Point = "read"
	PointRegistered Point = "registered"
	PointPut        Point = "put"
	PointSwapped    Point = "swapped"
	PointReleased   Point = "released"
	PointCondemned  Point = "condemned"
	PointGeneration Point = "generation"
	PointMarker     Point = "marker"
	PointDeleted    Point = "deleted"
)

// Points are all points.
func Points() []Point {
	return []Point{PointPlanned, PointRead, PointRegistered, PointPut, PointSwapped, PointReleased, PointCondemned,
		PointGeneration, PointMarker, PointDeleted}
}

// ErrOptions: a Compactor lacks something it needs.
var ErrOptions = errors.New("compactor: missing option")

func (o *Options) validate() error {
	switch {
	case o.Driver == nil:
		return fmt.Errorf("%w: Driver", ErrOptions)
	case o.Store == nil:
		return fmt.Errorf("%w: Store", ErrOptions)
	case o.Bucket == nil:
		return fmt.Errorf("%w: Bucket", ErrOptions)
	case o.Holder == "":
		return fmt.Errorf("%w: Holder", ErrOptions)
	}
	return nil
}
