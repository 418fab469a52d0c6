package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/metadata"
)

// Bounds of reading.
const (
	// maxFetchBytes bounds one Fetch response but for its first batch, whatever the client allows: Kafka's
	// fetch.max.bytes of a broker.
	maxFetchBytes = 55 << 20
	// fetchBytes and coldFetchBytes bound the extents that responses pin until they are written, of readers near the end
	// of the log and of readers far behind: a replay that takes its responses slowly leaves the others' memory alone.
	fetchBytes     = 256 << 20
	coldFetchBytes = 128 << 20
	// maxPinWait is how long a fetch waits for such memory; then it returns nothing, and the client asks again.
	maxPinWait = 5 * time.Second
	// locateParts is how many partitions are located at a time: a request whose bytes are used up by its first
	// partitions does not look for the others.
	locateParts = 64
	// locateRows bounds the extents located for one partition.
	locateRows = 64
	// readAheadBytes is how far ahead of a cold reader extents are prefetched: of all partitions located at a time. Half of it
	// is one of the cache's longest GETs.
	readAheadBytes = 16 << 20
	// coldRows: a reader more than so many flushes behind its block's newest one is cold. So many full segments are what
	// the cache holds by default.
	coldRows = 64
)

// Errors of reading one partition.
var (
	// errNoExtent: the partition's view has the offset, and the database names nothing that holds it.
	errNoExtent = errors.New("no extent holds an offset that was assigned")
	// errPinned: responses that are not written yet hold all the memory there is for them.
	errPinned = errors.New("no memory for the response")
)

// Reads is what reading needs of the metadata store.
type Reads interface {
	// Views gives the blocks' views, nil where there is no such block; Refresh makes them at least as new as the call.
	Views(ctx context.Context, ids []metadata.BlockID) ([]*metadata.View, error)
	Refresh(ctx context.Context, ids ...metadata.BlockID) error
	Watch(ids []metadata.BlockID) *metadata.Watch
	Locate(ctx context.Context, queries []metadata.LocateQuery) ([][]metadata.Located, error)
	LocateTime(ctx context.Context, queries []metadata.LocateTimeQuery) ([][]metadata.Located, error)
	Aborted(ctx context.Context, queries []metadata.AbortedQuery) ([][]metadata.AbortedTxn, error)
}

// Extents gives the decoded bytes of extents (*cache.Cache).
type Extents interface {
	Get(ctx context.Context, class cache.Class, extents []cache.Extent) []cache.Result
	Prefetch(ctx context.Context, streams ...[]cache.Extent)
}

var (
	_ Reads   = (*metadata.Store)(nil)
	_ Extents = (*cache.Cache)(nil)
)

// reader reads partitions: from their views to the batches that a response is made of.
type reader struct {
	store   Reads
	extents Extents
	runs    *runIndexes
	log     *slog.Logger
	pinned  [2]*budget             // by class
	errors  *prometheus.CounterVec // by reason
	waiting prometheus.Gauge
}

func newReader(store Reads, extents Extents, bucket cache.Source, log *slog.Logger, reg prometheus.Registerer) *reader {
	f := promauto.With(reg)
	return &reader{
		store: store, extents: extents, runs: newRunIndexes(bucket), log: log,
		pinned: [2]*budget{
			cache.Tail: newBudget("fetch_tail", fetchBytes, reg), cache.Cold: newBudget("fetch_cold", coldFetchBytes, reg),
		},
		errors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_read_errors_total", Help: "Partitions that could not be read, by reason.",
		}, []string{"reason"}),
		waiting: f.NewGauge(prometheus.GaugeOpts{Name: "skein_fetches_waiting", Help: "Fetches that wait for a commit."}),
	}
}

// partRead is one partition to be read, and what came of it.
type partRead struct {
	topic  string // for logs
	index  int32
	place  metadata.PartitionID
	offset metadata.Offset
	max    int // bytes, but for a request's first batch

	// code is Kafka's error; what follows it counts only when it is codeNone.
	code  int16
	view  *metadata.View
	limit metadata.Offset // no batch from here on: the high watermark, or the LSO
	cold  bool

	located []metadata.Located
	lost    error // why what follows the located is not there: an index could not be read
	picks   []pick
	bytes   int  // of the picks, then of the batches
	more    bool // there is more than was picked
	batches []servedBatch
	aborted []metadata.AbortedTxn // that may touch the batches, by first offset (read_committed)
}

// servedBatch is a batch to be sent: its header is patched with base when it is.
type servedBatch struct {
	data []byte // shared memory: never changed
	base metadata.Offset
}

func (p *partRead) highWatermark() metadata.Offset { return p.view.HighWatermark(p.place.Slot) }
func (p *partRead) lso() metadata.Offset           { return p.view.LSO(p.place.Slot) }
func (p *partRead) logStart() metadata.Offset      { return p.view.LogStart(p.place.Slot) }

// failed says whether the partition has an error.
func (p *partRead) failed() bool { return p.code != codeNone }

// locate finds the extents of partitions from their offsets on, enough for what each may return.
func (rd *reader) locate(ctx context.Context, parts []*partRead, maxBytes int) error {
	asked := make([]*partRead, 0, len(parts))
	for _, p := range parts {
		p.located, p.lost, p.picks, p.bytes, p.more, p.cold = nil, nil, nil, 0, false, false
		if !p.failed() && p.offset < p.limit {
			asked = append(asked, p)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	ahead := int64(readAheadBytes / len(asked))
	budget := func(p *partRead) int64 { return int64(min(p.max, maxBytes)) + ahead }
	gone, err := rd.locateOnce(ctx, asked, budget)
	if err == nil && len(gone) > 0 { // rewritten by the compactor between the two
		_, err = rd.locateOnce(ctx, gone, budget)
	}
	if err != nil {
		return err
	}
	for _, p := range asked {
		p.cold = len(p.located) > 0 && (p.located[0].Run || p.view.Seq-p.located[0].Seq > coldRows)
	}
	return nil
}

// locateOnce asks where partitions' records are. It gives those whose runs were gone when their index was read.
func (rd *reader) locateOnce(ctx context.Context, asked []*partRead, budget func(*partRead) int64) (gone []*partRead, err error) {
	queries := make([]metadata.LocateQuery, len(asked))
	for i, p := range asked {
		queries[i] = metadata.LocateQuery{
			Block: p.place.Block, Slot: p.place.Slot, Offset: p.offset,
			MaxBytes: budget(p), MaxRows: locateRows,
		}
	}
	answers, err := rd.store.Locate(ctx, queries)
	if err != nil {
		return nil, err
	}
	for i, p := range asked {
		p.located, p.lost = answers[i], nil
	}
	return rd.expandAll(ctx, asked, budget), nil
}

// plan chooses what each partition will return, in the request's order, and gives the sum of bytes. It reads nothing but
// metadata. Over maxBytes only a request's first batch may go.
func (rd *reader) plan(ctx context.Context, parts []*partRead, maxBytes int) (int, error) {
	total := 0
	for start := 0; start < len(parts); start += locateParts {
		wave := parts[start:min(start+locateParts, len(parts))]
		if err := rd.locate(ctx, wave, maxBytes-total); err != nil {
			return 0, err
		}
		for _, p := range wave {
			if !p.failed() && p.offset < p.limit {
				rd.choose(p, min(p.max, maxBytes-total), total == 0)
				total += p.bytes
			}
		}
		if total >= maxBytes {
			for _, p := range parts[start+len(wave):] {
				p.located, p.picks, p.bytes, p.more = nil, nil, 0, true
			}
			break
		}
	}
	return total, nil
}

// choose plans one partition that has something to return.
func (rd *reader) choose(p *partRead, maxBytes int, atLeastOne bool) {
	if len(p.located) == 0 && p.lost != nil {
		rd.fail(p, p.lost)
		return
	}
	if len(p.located) == 0 {
		rd.fail(p, fmt.Errorf("%w: offset %d, the log ends at %d", errNoExtent, p.offset, p.limit))
		return
	}
	var err error
	p.picks, err = pickBatches(p.located, p.offset, p.limit, maxBytes, atLeastOne)
	if err != nil && len(p.picks) == 0 {
		rd.fail(p, err)
		return
	}
	p.bytes = 0
	end := p.offset
	for i := range p.picks {
		p.bytes += p.picks[i].bytes
		end = p.picks[i].end
	}
	p.more = end < p.limit
}

// load reads what was planned and makes it batches. It holds the returned bytes of the budgets until release is called.
// Where an extent cannot be read the partition returns what comes before it, or an error. errPinned: the budgets had no
// room within maxPinWait.
func (rd *reader) load(ctx context.Context, parts []*partRead) (release func(), err error) {
	var byClass [2][]*partRead
	for _, p := range parts {
		if len(p.picks) > 0 && !p.failed() {
			class := classOf(p)
			byClass[class] = append(byClass[class], p)
		}
	}
	release, err = rd.pin(ctx, byClass)
	if err != nil {
		return nil, err
	}
	for class, ps := range byClass {
		if len(ps) > 0 {
			rd.loadClass(ctx, cache.Class(class), ps)
		}
	}
	if err := ctx.Err(); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// pin takes what the plan will pin of the budgets.
func (rd *reader) pin(ctx context.Context, byClass [2][]*partRead) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxPinWait, errPinned)
	defer cancel()
	var held [2]int64
	release = func() {
		for class, n := range held {
			if n > 0 {
				rd.pinned[class].release(n)
			}
		}
	}
	for class, ps := range byClass {
		n := pinnedBytes(ps)
		if n == 0 {
			continue
		}
		if err := rd.pinned[class].acquire(ctx, n); err != nil {
			release()
			return nil, context.Cause(ctx)
		}
		held[class] = n
	}
	return release, nil
}

func classOf(p *partRead) cache.Class {
	if p.cold {
		return cache.Cold
	}
	return cache.Tail
}

// pinnedBytes is what the extents of the plan take while a response refers to them.
func pinnedBytes(parts []*partRead) int64 {
	var n int64
	for _, p := range parts {
		for i := range p.picks {
			n += p.picks[i].extent.RawLength
		}
	}
	return n
}

// loadClass loads partitions of one class. What is gone is located once more: it may have been merged meanwhile. Only if
// it is still named, or what is named now is gone too, is it a loss.
func (rd *reader) loadClass(ctx context.Context, class cache.Class, parts []*partRead) {
	gone := rd.get(ctx, class, parts)
	if len(gone) == 0 || ctx.Err() != nil {
		return
	}
	if err := rd.relocate(ctx, gone); err != nil {
		rd.failAll(gone, err)
		return
	}
	for _, p := range rd.get(ctx, class, gone) {
		rd.fail(p, fmt.Errorf("%w, after it was located twice: %s", cache.ErrMissing, p.picks[0].name()))
	}
}

// relocate plans partitions anew after a refresh, within the bytes that they had.
func (rd *reader) relocate(ctx context.Context, parts []*partRead) error {
	if err := rd.store.Refresh(ctx, blocksOf(parts)...); err != nil {
		return err
	}
	for _, p := range parts {
		p.max = p.bytes
	}
	if err := rd.locate(ctx, parts, maxFetchBytes); err != nil {
		return err
	}
	for _, p := range parts {
		rd.choose(p, p.max, true)
	}
	return nil
}

// get loads the plan of partitions and gives those whose first extent is gone.
func (rd *reader) get(ctx context.Context, class cache.Class, parts []*partRead) (gone []*partRead) {
	var extents []cache.Extent
	for _, p := range parts {
		if p.failed() {
			continue
		}
		for i := range p.picks {
			extents = append(extents, extentOf(p.picks[i].extent))
		}
	}
	results := rd.extents.Get(ctx, class, extents)
	for _, p := range parts {
		if p.failed() {
			continue
		}
		mine := results[:len(p.picks)]
		results = results[len(p.picks):]
		err := p.serve(mine)
		switch {
		case len(p.batches) > 0 || err == nil || ctx.Err() != nil:
		case errors.Is(err, cache.ErrMissing):
			gone = append(gone, p)
		default:
			rd.fail(p, err)
		}
	}
	if class == cache.Cold && ctx.Err() == nil {
		rd.readAhead(ctx, parts)
	}
	return gone
}

// serve makes batches of what was loaded, up to the first extent that was not.
func (p *partRead) serve(results []cache.Result) error {
	n := 0
	for i := range p.picks {
		n += p.picks[i].batches
	}
	p.batches = make([]servedBatch, 0, n)
	var err error
	for i := 0; i < len(results) && err == nil; i++ {
		if err = results[i].Err; err == nil {
			p.batches, err = p.picks[i].appendBatches(p.batches, results[i].Data)
		}
	}
	if len(p.batches) == 0 {
		return err // bytes stay what was planned
	}
	p.bytes = 0
	for i := range p.batches {
		p.bytes += len(p.batches[i].data)
	}
	return err
}

// readAhead prefetches what cold readers will ask for next.
func (rd *reader) readAhead(ctx context.Context, parts []*partRead) {
	var streams [][]cache.Extent
	for _, p := range parts {
		if p.failed() || len(p.picks) >= len(p.located) {
			continue
		}
		ahead := make([]cache.Extent, 0, len(p.located)-len(p.picks))
		for i := len(p.picks); i < len(p.located); i++ {
			ahead = append(ahead, extentOf(&p.located[i]))
		}
		streams = append(streams, ahead)
	}
	if len(streams) > 0 {
		rd.extents.Prefetch(ctx, streams...)
	}
}

// extentOf names an extent for the cache.
func extentOf(l *metadata.Located) cache.Extent {
	e := cache.Extent{
		Key: cache.Key{Object: string(l.Object), Position: l.Position}, Length: l.Length, RawLength: l.RawLength,
		Codec: uint8(l.Codec), CRC: l.CRC,
	}
	if l.Object == "" {
		e.Inline = l.Flush
	}
	return e
}

// failAll gives partitions the same error, and says so once.
func (rd *reader) failAll(parts []*partRead, err error) {
	for i, p := range parts {
		if i == 0 {
			rd.fail(p, err)
			continue
		}
		p.fail(err)
	}
}

func (p *partRead) fail(err error) {
	p.code = readCode(err)
	p.batches, p.bytes, p.picks = nil, 0, nil
}

// fail gives a partition an error, and says so.
func (rd *reader) fail(p *partRead, err error) {
	p.fail(err)
	reason, level := "unavailable", slog.LevelWarn
	switch {
	case errors.Is(err, context.Canceled):
		return
	case errors.Is(err, cache.ErrCorrupt):
		reason, level = "corrupt", slog.LevelError
	case errors.Is(err, cache.ErrMissing), errors.Is(err, errNoExtent):
		reason, level = "missing", slog.LevelError
	}
	rd.errors.WithLabelValues(reason).Inc()
	rd.log.Log(context.Background(), level, "partition not read", "topic", p.topic, "partition", p.index,
		"offset", int64(p.offset), "reason", reason, "error", err)
}

// readCode gives Kafka's code for a failure to read: CORRUPT_MESSAGE, or else the one that makes every consumer try
// again. (Java's throws on codes that a Fetch of Kafka's does not have, such as a timeout.)
func readCode(err error) int16 {
	if err == nil {
		return codeNone
	}
	if errors.Is(err, cache.ErrCorrupt) {
		return codeCorruptMessage
	}
	return codeKafkaStorageError
}
