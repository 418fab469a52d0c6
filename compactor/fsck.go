package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
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
	refs    map[metadata.ObjectKey]int
	flushes map[metadata.FlushID]int // inline, by rows that may be read or have not given up their reference
	sizes   map[metadata.ObjectKey]int64
	gone    map[metadata.ObjectKey]bool
	indexes map[metadata.ObjectKey]*segment.Index
}

// Check compares the bucket and the database. Its error says that it could not be done; what it found is in the report. It may
// run beside agents: what they change meanwhile is left out of what it says.
func Check(ctx context.Context, o CheckOptions) (*Report, error) {
	now, err := o.Driver.Now(ctx)
	if err != nil {
		return nil, err
	}
	k := &checker{
		CheckOptions: o, rep: &Report{Problems: []Problem{}}, started: now,
		c:    &Compactor{bucket: o.Bucket, store: o.Store, db: o.Driver, metrics: newMetrics(noRegistry{})},
		refs: map[metadata.ObjectKey]int{}, flushes: map[metadata.FlushID]int{}, gone: map[metadata.ObjectKey]bool{},
	}
	for _, step := range []func(context.Context) error{k.list, k.blocks, k.objects, k.payloads, k.collection} {
		if err := step(ctx); err != nil {
			return k.rep, err
		}
	}
	for i := range k.rep.Problems {
		if k.rep.Problems[i].Repaired == "" {
			k.rep.Unrepaired++
		}
	}
	k.rep.Unrepaired += k.rep.ProblemCount - len(k.rep.Problems)
	return k.rep, nil
}

func (k *checker) problem(p Problem) {
	k.rep.ProblemCount++
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
	k.sizes = map[metadata.ObjectKey]int64{}
	for _, prefix := range prefixes {
		err := k.Bucket.List(ctx, prefix, "", func(i objstore.Info) error {
			k.sizes[metadata.ObjectKey(i.Key)] = i.Size
			k.progress("objects listed", int64(len(k.sizes)))
			return nil
		})
		if err != nil {
			return fmt.Errorf("list the bucket: %w", err)
		}
	}
	k.rep.InBucket = int64(len(k.sizes))
	return nil
}

func (k *checker) blocks(ctx context.Context) error {
	return k.c.eachPage(ctx, k.Driver, func(page []metadata.BacklogRow) error {
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

// eachPage is eachBlock on a driver.
func (c *Compactor) eachPage(ctx context.Context, db metadata.Compaction, fn func([]metadata.BacklogRow) error) error {
	c.db = db
	return c.eachBlock(ctx, fn)
}

// block checks one block: its runs, then its rows above the merged seq. A merge that happens meanwhile makes it begin again.
func (k *checker) block(ctx context.Context, b *metadata.BacklogRow) error {
	const tries = 5
	for try := 1; ; try++ {
		w := &blockCheck{checker: k, b: b, places: map[metadata.Slot]metadata.PartitionRow{}}
		w.before, w.problems = k.save(), 0
		if err := w.run(ctx); err != nil {
			return err
		}
		page, err := k.Driver.Backlog(ctx, b.Row.ID-1, 1)
		if err != nil {
			return err
		}
		same := len(page) == 1 && page[0].Row.ID == b.Row.ID && page[0].Row.Version == b.Row.Version && page[0].Released == b.Released
		if same || try == tries && len(page) == 1 {
			w.finish()
			return nil
		}
		k.restore(w.before)
		if len(page) == 0 || page[0].Row.ID != b.Row.ID {
			return nil // dropped meanwhile
		}
		*b = page[0]
	}
}

// saved is what a check of one block adds to, so that it can begin again.
type saved struct {
	rep      Report
	problems int
}

func (k *checker) save() saved { return saved{rep: *k.rep, problems: len(k.rep.Problems)} }

func (k *checker) restore(s saved) {
	problems := k.rep.Problems[:s.problems]
	*k.rep = s.rep
	k.rep.Problems = problems
}

// blockCheck is the check of one block.
type blockCheck struct {
	*checker
	b        *metadata.BacklogRow
	places   map[metadata.Slot]metadata.PartitionRow
	before   saved
	problems int
	refs     map[metadata.ObjectKey]int
	flushes  map[metadata.FlushID]int
	next     [metadata.SlotsPerBlock]metadata.Offset // after what was seen of each slot
	seen     [metadata.SlotsPerBlock]bool
	bytes    [metadata.SlotsPerBlock]int64
	maxTS    [metadata.SlotsPerBlock]metadata.Millis
}

func (w *blockCheck) where(slot metadata.Slot) string {
	if p, ok := w.places[slot]; ok {
		return fmt.Sprintf("topic id %s, partition %d (block %d, slot %d)", p.Topic, p.Index, w.b.Row.ID, slot)
	}
	return fmt.Sprintf("block %d, slot %d", w.b.Row.ID, slot)
}

func (w *blockCheck) run(ctx context.Context) error {
	w.refs, w.flushes = map[metadata.ObjectKey]int{}, map[metadata.FlushID]int{}
	w.indexes = map[metadata.ObjectKey]*segment.Index{}
	places, err := w.c.placesOf(ctx, []metadata.BlockID{w.b.Row.ID})
	if err != nil {
		return err
	}
	w.places = places[w.b.Row.ID]
	for s := range w.maxTS {
		w.maxTS[s] = metadata.NoTimestamp
	}
	if err := w.runs(ctx); err != nil {
		return err
	}
	return w.rows(ctx)
}

// finish takes over what the block names.
func (w *blockCheck) finish() {
	for key, n := range w.refs {
		w.checker.refs[key] += n
	}
	for id, n := range w.flushes {
		w.checker.flushes[id] += n
	}
}

func (w *blockCheck) deleted(slot metadata.Slot) bool { return w.b.Row.Deleted&(1<<slot) != 0 }

func (w *blockCheck) runs(ctx context.Context) error {
	slot, base := metadata.Slot(0), metadata.Offset(0)
	for {
		page, err := w.Driver.LoadRuns(ctx, w.b.Row.ID, slot, base, cleanRuns)
		if err != nil {
			return err
		}
		for i := range page {
			if err := w.run1(ctx, &page[i]); err != nil {
				return err
			}
			slot, base = page[i].Slot, page[i].Base+1
		}
		if len(page) < cleanRuns {
			return nil
		}
	}
}

func (w *blockCheck) run1(ctx context.Context, r *metadata.RunRow) error {
	w.rep.Runs++
	if r.Object != "" {
		w.refs[r.Object]++
	}
	if w.deleted(r.Slot) {
		return nil
	}
	start := w.b.Row.LogStart[r.Slot]
	s := r.Slot
	switch {
	case r.Last < r.Base:
		w.problem(Problem{Kind: KindOffsets, Where: w.where(s), Detail: fmt.Sprintf("run of offsets %d to %d", r.Base, r.Last)})
	case w.seen[s] && r.Base != w.next[s]:
		w.problem(Problem{Kind: KindOffsets, Where: w.where(s), Detail: fmt.Sprintf("run starts at %d, the one before ends before %d", r.Base, w.next[s])})
	case !w.seen[s] && r.Base > start:
		w.problem(Problem{Kind: KindOffsets, Where: w.where(s), Detail: fmt.Sprintf("first run starts at %d, the log at %d", r.Base, start)})
	case r.RunningMaxTS < w.maxTS[s] || r.Bytes < w.bytes[s] || r.MaxTS > r.RunningMaxTS:
		w.problem(Problem{Kind: KindCounters, Where: w.where(s), Detail: fmt.Sprintf("run at %d: running timestamp %d after %d, bytes %d after %d",
			r.Base, r.RunningMaxTS, w.maxTS[s], r.Bytes, w.bytes[s])})
	}
	w.seen[s], w.next[s], w.maxTS[s], w.bytes[s] = true, r.Last+1, r.RunningMaxTS, r.Bytes
	if r.Last < start || w.Shallow {
		return nil
	}
	if r.Object == "" {
		w.problem(Problem{Kind: KindMissing, Where: w.where(s), Detail: fmt.Sprintf("inline payload of offsets %d to %d was lost before it was merged", r.Base, r.Last), Bytes: r.Length})
		return nil
	}
	if r.Level == 0 && len(r.Object) > 4 && r.Object[:4] == "seg/" {
		w.problem(Problem{Kind: KindCorrupt, Where: w.where(s), Bytes: r.Length,
			Detail: fmt.Sprintf("extent of offsets %d to %d in %s could not be read when it was merged", r.Base, r.Last, r.Object)})
		return nil
	}
	return w.readRun(ctx, r)
}

func (w *blockCheck) readRun(ctx context.Context, r *metadata.RunRow) error {
	if len(w.indexes) > 64 {
		clear(w.indexes)
	}
	batches, err := w.c.readRuns(ctx, "fsck", w.indexes, []metadata.RunRow{*r})
	if errors.Is(err, errDamaged) {
		w.problem(Problem{Kind: kindOf(err), Where: w.where(r.Slot), Detail: fmt.Sprintf("run of offsets %d to %d: %v", r.Base, r.Last, err), Bytes: r.Length})
		return nil
	}
	if err != nil {
		return err
	}
	w.rep.Extents++
	w.rep.Bytes += r.Length
	next, last, raw := int64(r.Base), int64(-1), int64(0)
	maxTS := int64(metadata.NoTimestamp)
	for i := range batches {
		b := &batches[i]
		w.count(b)
		raw += int64(len(b.data))
		maxTS = max(maxTS, b.MaxTimestamp)
		if b.BaseOffset < next || b.LastOffset() > int64(r.Last) {
			w.problem(Problem{Kind: KindOffsets, Where: w.where(r.Slot), Detail: fmt.Sprintf("batch of offsets %d to %d in the run %d to %d, after %d",
				b.BaseOffset, b.LastOffset(), r.Base, r.Last, next)})
		}
		next, last = b.LastOffset()+1, b.LastOffset()
	}
	if last != int64(r.Last) || raw != r.Raw && r.Raw != 0 || maxTS > int64(r.MaxTS) {
		w.problem(Problem{Kind: KindCounters, Where: w.where(r.Slot), Detail: fmt.Sprintf("run at %d ends at %d with %d bytes and timestamp %d, its row says %d, %d and %d",
			r.Base, last, raw, maxTS, r.Last, r.Raw, r.MaxTS)})
	}
	return nil
}

func (w *blockCheck) count(b *batch) {
	w.rep.Batches++
	w.rep.Records += int64(b.RecordCount)
}

// kindOf tells what is lost from what is damaged.
func kindOf(err error) Kind {
	if isGone(err) {
		return KindMissing
	}
	return KindCorrupt
}

// rows checks level 0: all rows for what they name, those above the merged seq for what they hold.
func (w *blockCheck) rows(ctx context.Context) error {
	const page = 256
	after := metadata.Seq(0)
	prev := metadata.Seq(0)
	var photo *metadata.Photo
	for {
		rows, err := w.Driver.LoadRows(ctx, w.b.Row.ID, after, page)
		if err != nil {
			return err
		}
		var inputs []*input
		for _, r := range rows {
			after = r.Seq
			if r.Seq > w.b.Last {
				break // committed since
			}
			w.rep.Rows++
			if prev > 0 && r.Seq != prev+1 {
				w.problem(Problem{Kind: KindCounters, Where: w.where(0), Detail: fmt.Sprintf("row %d follows row %d", r.Seq, prev)})
			}
			if r.Seq > w.b.Released {
				if r.Object != "" {
					w.refs[r.Object]++
				} else {
					w.flushes[r.Flush]++
				}
			}
			if r.Seq > w.b.Row.MergedSeq {
				if prev == 0 && r.Seq != w.b.Row.MergedSeq+1 {
					w.problem(Problem{Kind: KindCounters, Where: w.where(0), Detail: fmt.Sprintf("first row is %d, merged up to %d", r.Seq, w.b.Row.MergedSeq)})
				}
				inputs = append(inputs, w.row(r, photo)...)
			}
			prev, photo = r.Seq, &r.Photo
		}
		if err := w.extents(ctx, inputs); err != nil {
			return err
		}
		if len(rows) < page || after > w.b.Last {
			return nil
		}
	}
}

// row checks a row's counters and gives its extents.
func (w *blockCheck) row(r *metadata.Row, before *metadata.Photo) []*input {
	var list []*input
	for i := range r.Touched {
		t := &r.Touched[i]
		s := t.Slot
		base := r.Base(i)
		if before != nil && before.Next[s] != base || w.seen[s] && w.next[s] != base {
			w.problem(Problem{Kind: KindOffsets, Where: w.where(s), Detail: fmt.Sprintf("row %d starts at %d, what is before it ends before %d", r.Seq, base, w.next[s])})
		}
		w.seen[s], w.next[s] = true, r.Photo.Next[s]
		if t.Records() == 0 || w.deleted(s) || r.Photo.Next[s] <= w.b.Row.LogStart[s] || w.Shallow {
			continue
		}
		in := newInput(r, i)
		list = append(list, in)
	}
	if before != nil {
		for s := range before.Next {
			if r.Find(metadata.Slot(s)) < 0 && before.Next[s] != r.Photo.Next[s] {
				w.problem(Problem{Kind: KindCounters, Where: w.where(metadata.Slot(s)), Detail: fmt.Sprintf("row %d moves the next offset without touching it", r.Seq)})
			}
		}
	}
	return list
}

func (w *blockCheck) extents(ctx context.Context, inputs []*input) error {
	for len(inputs) > 0 {
		n, size := 0, int64(0)
		var blobs []*blob
		for n < len(inputs) && (n == 0 || size+inputs[n].raw <= jobBytes) {
			size += inputs[n].raw
			blobs = append(blobs, &inputs[n].blob)
			n++
		}
		if err := w.c.read(ctx, "fsck", blobs); err != nil {
			return err
		}
		for _, in := range inputs[:n] {
			err := in.err
			var batches []batch
			if err == nil {
				batches, err = cut(in.data, in.touched, in.base)
			}
			if err != nil {
				kind := kindOf(err)
				if in.object == "" && in.data == nil {
					kind = KindMissing
				}
				w.problem(Problem{Kind: kind, Where: w.where(in.touched.Slot), Detail: fmt.Sprintf("row %d, offsets from %d: %v", in.seq, in.base, err), Bytes: in.length})
			}
			for i := range batches {
				w.count(&batches[i])
				if err := record.VerifyCRC(batches[i].data); err != nil {
					w.problem(Problem{Kind: KindCorrupt, Where: w.where(in.touched.Slot), Detail: fmt.Sprintf("batch at %d: %v", batches[i].BaseOffset, err)})
				}
			}
			w.rep.Extents++
			w.rep.Bytes += in.length
			in.data = nil
		}
		inputs = inputs[n:]
	}
	return nil
}

// objects compares the rows of objects with what names them and with the bucket.
func (k *checker) objects(ctx context.Context) error {
	known := map[metadata.ObjectKey]bool{}
	after := metadata.ObjectKey("")
	for {
		page, err := k.Driver.ListObjects(ctx, after, cleanRuns)
		if err != nil {
			return err
		}
		for i := range page {
			o := &page[i]
			after = o.Key
			known[o.Key] = true
			k.rep.Objects++
			if err := k.object(ctx, o); err != nil {
				return err
			}
		}
		if len(page) < cleanRuns {
			break
		}
	}
	for key, n := range k.refs {
		if !known[key] {
			k.problem(Problem{Kind: KindRefs, Where: string(key), Detail: fmt.Sprintf("named %d times, and has no row", n)})
		}
	}
	return k.orphans(ctx, known)
}

func (k *checker) object(ctx context.Context, o *metadata.ObjectListing) error {
	size, there := k.sizes[o.Key]
	named := k.refs[o.Key]
	if o.Changed >= k.started-slack {
		return nil // somebody is at it
	}
	p := Problem{Where: string(o.Key), Bytes: o.Size}
	want := metadata.ObjectRow{Key: o.Key, Refs: named, State: o.State}
	switch {
	case named > 0 && o.State == metadata.ObjectCondemned:
		p.Kind, p.Detail = KindCondemned, fmt.Sprintf("condemned, and named %d times", named)
		want.State = metadata.ObjectLive
	case named > 0 && o.State != metadata.ObjectLive:
		p.Kind, p.Detail = KindRefs, fmt.Sprintf("state %d, and named %d times", o.State, named)
		want.State = metadata.ObjectLive
	case named != o.Refs:
		p.Kind, p.Detail = KindRefs, fmt.Sprintf("has %d references, is named %d times", o.Refs, named)
		if named == 0 {
			want.State = metadata.ObjectGarbage
		}
	case named == 0 && o.State == metadata.ObjectLive:
		p.Kind, p.Detail = KindRefs, "live, and nothing names it"
		want.State = metadata.ObjectGarbage
	}
	if p.Kind != "" {
		if k.Repair && !o.Gone {
			ok, err := k.Driver.SetObject(ctx, o.ObjectRow, want)
			if err != nil {
				return err
			}
			if ok {
				p.Repaired = fmt.Sprintf("references set to %d, state to %d", want.Refs, want.State)
			}
		}
		k.problem(p)
	}
	switch {
	case named > 0 && !there:
		k.problem(Problem{Kind: KindMissing, Where: string(o.Key), Detail: fmt.Sprintf("named %d times, and not in the bucket", named), Bytes: o.Size})
	case named > 0 && size != o.Size:
		k.problem(Problem{Kind: KindCorrupt, Where: string(o.Key), Detail: fmt.Sprintf("has %d bytes, its row says %d", size, o.Size), Bytes: o.Size})
	case named == 0 && there:
		k.rep.Waiting++
	}
	return nil
}

// slack is how long before fsck began a change of a row still counts as meanwhile, in milliseconds.
const slack = metadata.Millis(1000)

// orphans lists objects in the bucket that have no row at all. Young ones may be on their way to their commit.
func (k *checker) orphans(ctx context.Context, known map[metadata.ObjectKey]bool) error {
	var unknown []metadata.ObjectRow
	for key, size := range k.sizes {
		if !known[key] {
			unknown = append(unknown, metadata.ObjectRow{Key: key, Size: size})
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	now, err := bucketNow(ctx, k.Bucket)
	if err != nil {
		return err
	}
	slices.SortFunc(unknown, func(a, b metadata.ObjectRow) int { return slices.Compare([]byte(a.Key), []byte(b.Key)) })
	for _, o := range unknown {
		info, err := k.Bucket.Head(ctx, string(o.Key))
		if errors.Is(err, objstore.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if now.Sub(info.LastModified) < metadata.MaxResubmit {
			k.rep.Waiting++
			continue
		}
		p := Problem{Kind: KindOrphan, Where: string(o.Key), Detail: "no row names it", Bytes: o.Size}
		if k.Repair {
			// Condemned, not deleted: whoever may yet commit it is refused, and the compactor deletes it after the grace.
			if _, err := k.Driver.CondemnUnknown(ctx, []metadata.ObjectRow{o}); err != nil {
				return err
			}
			p.Repaired = "condemned: it is deleted after the grace"
		}
		k.problem(p)
	}
	return nil
}

// payloads compares inline payloads with what names them.
func (k *checker) payloads(ctx context.Context) error {
	after := metadata.FlushID{}
	for {
		page, err := k.Driver.ListInline(ctx, after, cleanRuns)
		if err != nil {
			return err
		}
		for _, x := range page {
			after = x.Flush
			k.rep.Inline++
			if k.flushes[x.Flush] > 0 {
				continue
			}
			p := Problem{Kind: KindOrphan, Where: "inline payload " + x.Flush.String(), Detail: "no row names it", Bytes: x.Size}
			if k.Repair {
				n, err := k.Driver.DropInlinePayloads(ctx, []metadata.FlushID{x.Flush})
				if err != nil {
					return err
				}
				if n == 0 {
					continue // a commit named it meanwhile
				}
				p.Repaired = "deleted"
			}
			k.problem(p)
		}
		if len(page) < cleanRuns {
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
	lost := slices.ContainsFunc(k.rep.Problems, func(p Problem) bool { return p.Kind == KindMissing || p.Kind == KindCondemned && p.Repaired == "" })
	switch {
	case !k.Repair:
	case lost:
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
