package compactor

import (
	"context"
	"errors"
	"fmt"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// Kind is a kind of problem.
type Kind string

// Kinds of problems. Warnings, which are no problems, are counted in the report only.
const (
	KindMissing   Kind = "missing"    // a row names an object or payload that is not there: records are lost
	KindCorrupt   Kind = "corrupt"    // bytes are not what they should be
	KindOffsets   Kind = "offsets"    // offsets are not dense
	KindCounters  Kind = "counters"   // photographs, checkpoints or seqs that do not agree
	KindRefs      Kind = "references" // an object's references are not what names it
	KindOrphan    Kind = "orphan"     // an object or payload that nothing names
	KindCondemned Kind = "condemned"  // an object that is named and may be deleted
	KindHalted    Kind = "halted"     // garbage collection is halted
)

// Problem is one thing that is wrong.
type Problem struct {
	Kind     Kind   `json:"kind"`
	Where    string `json:"where"`
	Detail   string `json:"detail"`
	Bytes    int64  `json:"bytes,omitempty"`
	Repaired string `json:"repaired,omitempty"` // what was done about it
}

// maxProblems bounds the problems that are listed; all are counted.
const maxProblems = 10_000

// orphansKept is after what age an object that nothing names should have been found by the slow listing, and deleted.
const orphansKept = DefaultOrphanInterval + 2*DefaultGCGrace

// Report is what fsck found.
type Report struct {
	Blocks   int   `json:"blocks"`
	Rows     int64 `json:"level0_rows"`
	Runs     int64 `json:"runs"`
	Extents  int64 `json:"extents_read"`
	Batches  int64 `json:"batches"`
	Records  int64 `json:"records"`
	Bytes    int64 `json:"bytes_read"`
	Objects  int64 `json:"objects"`
	InBucket int64 `json:"objects_in_bucket"`
	Waiting  int64 `json:"objects_waiting_for_deletion"`
	Inline   int64 `json:"inline_payloads"`
	// Moving is what changed while it was looked at, by agents: it is left out of the rest.
	Moving int64 `json:"changed_meanwhile"`

	// Uncommitted are objects that nothing names, as an agent leaves behind that dies between its PUT and its commit. They
	// are no problem before orphansKept have passed: until then the slow listing is to find them.
	Uncommitted      int64 `json:"uncommitted_objects"`
	UncommittedBytes int64 `json:"uncommitted_bytes"`

	ProblemCount int       `json:"problem_count"`
	Unrepaired   int       `json:"unrepaired"`
	Problems     []Problem `json:"problems"`
}

// CheckOptions of Check.
type CheckOptions struct {
	Driver metadata.Compaction
	Store  Store
	Bucket objstore.Bucket
	// Repair mends what can be mended without losing data.
	Repair bool
	// Shallow does not read extents: it compares rows with each other and with the bucket's listing.
	Shallow bool
	// Progress, where not nil, is told how far it is.
	Progress func(what string, done int64)
}

// checker is one run of fsck.
type checker struct {
	CheckOptions
	c       *Compactor // reads
	rep     *Report
	started metadata.Millis
	// bucketNow is the bucket's clock.
	bucketNow metadata.Millis
	spool     *spool
	lastTry   map[metadata.BlockID]int // of what a block names, in the spool: the one that counts
	lost      bool                     // something named is missing, or may be deleted
	repaired  int
}

// Check compares the bucket and the database. Its error says that it could not be done; what it found is in the report. It may
// run beside agents: what they change meanwhile is left out of what it says. In memory it has jobBytes of extents and one of
// spoolShards parts of what there is to know about objects; the rest of that is in temporary files.
func Check(ctx context.Context, o CheckOptions) (_ *Report, err error) {
	now, err := o.Driver.Now(ctx)
	if err != nil {
		return nil, err
	}
	k := &checker{
		CheckOptions: o, rep: &Report{Problems: []Problem{}}, started: now, lastTry: map[metadata.BlockID]int{},
		c: &Compactor{bucket: o.Bucket, store: o.Store, db: o.Driver, metrics: newMetrics(noRegistry{})},
	}
	if k.spool, err = newSpool(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.spool.close()) }()
	// The bucket before the rows of objects: what is live in a row that has not changed since was there all the time.
	for _, step := range []func(context.Context) error{k.list, k.blocks, k.objects, k.payloads, k.collection} {
		if err := step(ctx); err != nil {
			return k.rep, err
		}
	}
	k.rep.Unrepaired = k.rep.ProblemCount - k.repaired
	return k.rep, nil
}

func (k *checker) problem(p Problem) {
	k.rep.ProblemCount++
	if p.Repaired != "" {
		k.repaired++
	} else if p.Kind == KindMissing || p.Kind == KindCondemned {
		k.lost = true
	}
	if len(k.rep.Problems) < maxProblems {
		k.rep.Problems = append(k.rep.Problems, p)
	}
}

func (k *checker) progress(what string, n int64) {
	if k.Progress != nil {
		k.Progress(what, n)
	}
}

// list reads what segments the bucket has.
func (k *checker) list(ctx context.Context) error {
	for _, prefix := range prefixes {
		err := k.Bucket.List(ctx, prefix, "", func(i objstore.Info) error {
			k.rep.InBucket++
			k.progress("objects listed", k.rep.InBucket)
			return k.spool.add(&spooled{Key: metadata.ObjectKey(i.Key), Stored: &storedObject{
				Size: i.Size, Modified: metadata.Millis(i.LastModified.UnixMilli()),
			}})
		})
		if err != nil {
			return fmt.Errorf("list the bucket: %w", err)
		}
	}
	return nil
}

// blocks checks the blocks, each by itself: what its rows say, then what they name.
func (k *checker) blocks(ctx context.Context) error {
	return k.c.eachBlock(ctx, func(page []metadata.BacklogRow) error {
		for i := range page {
			k.rep.Blocks++
			if err := k.block(ctx, &page[i]); err != nil {
				return fmt.Errorf("block %d: %w", page[i].Row.ID, err)
			}
			k.progress("blocks checked", int64(k.rep.Blocks))
		}
		return nil
	})
}

// payloads compares inline payloads with what names them.
func (k *checker) payloads(ctx context.Context) error {
	after := metadata.FlushID{}
	for {
		page, err := k.Driver.ListInline(ctx, after, checkPage)
		if err != nil {
			return err
		}
		for _, x := range page {
			after = x.Flush
			k.rep.Inline++
			if x.Named {
				continue
			}
			p := Problem{Kind: KindOrphan, Where: "inline payload " + x.Flush.String(), Detail: "no row names it", Bytes: x.Size}
			if k.Repair {
				n, err := k.Driver.DropInlinePayloads(ctx, []metadata.FlushID{x.Flush})
				if err != nil {
					return err
				}
				if n == 0 {
					continue // it has gone meanwhile
				}
				p.Repaired = "deleted"
			}
			k.problem(p)
		}
		if len(page) < checkPage {
			return nil
		}
	}
}

// collection looks at whether garbage collection runs, and releases it.
func (k *checker) collection(ctx context.Context) error {
	g, err := k.Driver.GCState(ctx)
	if err != nil {
		return err
	}
	m, err := readMarker(ctx, k.Bucket)
	if err != nil {
		return err
	}
	why := g.Halted
	if why == "" {
		why = behind(&g, m)
	}
	if why == "" {
		return nil
	}
	p := Problem{Kind: KindHalted, Where: "garbage collection", Detail: why}
	switch {
	case !k.Repair:
	case k.lost:
		p.Detail += "; not released, since objects are missing"
	default:
		g.Halted, g.System, g.Timeline = "", g.NowSystem, g.NowTimeline
		if m != nil {
			g.Generation = max(g.Generation, m.Generation)
		}
		g.Generation++
		if err := k.Driver.SetGC(ctx, g); err != nil {
			return err
		}
		if err := writeMarker(ctx, k.Bucket, &g); err != nil {
			return err
		}
		p.Repaired = "released"
	}
	k.problem(p)
	return nil
}
