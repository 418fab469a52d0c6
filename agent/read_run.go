package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// A run is one row in the database and many chunks in its object, whose index says where they are. For readers a run is
// its chunks: each is located, cached and read as an extent of level 0 is, but that its batches, which the database does
// not list, show only when it was read.

const (
	// runIndexBytes bounds the indexes of objects that are kept.
	runIndexBytes = 32 << 20
	// indexTimeout bounds the reading of one.
	indexTimeout = 30 * time.Second
	// indexReads is how many indexes one request reads at a time.
	indexReads = 16
	// runExtentBytes and runChunkBytes are about what an entry of an index takes in memory.
	runExtentBytes = 160
	runChunkBytes  = 80
)

// runIndexes keeps what the indexes of objects say of their runs.
type runIndexes struct {
	bucket  cache.Source
	flights singleflight.Group

	mu    sync.Mutex
	bytes int64
	lru   *simplelru.LRU[metadata.ObjectKey, *runIndex]
}

// runIndex is the runs of one object, by position. It is never changed.
type runIndex struct {
	runs map[int64]*segment.Extent
	size int64
}

func newRunIndexes(bucket cache.Source) *runIndexes {
	x := &runIndexes{bucket: bucket}
	// Its only error is a size below 1.
	x.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ metadata.ObjectKey, i *runIndex) { x.bytes -= i.size })
	return x
}

// get gives an object's index; it is read once whatever the number of readers that ask for it.
func (x *runIndexes) get(ctx context.Context, key metadata.ObjectKey, size int64) (*runIndex, error) {
	x.mu.Lock()
	i, ok := x.lru.Get(key)
	x.mu.Unlock()
	if ok {
		return i, nil
	}
	c := x.flights.DoChan(string(key), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), indexTimeout)
		defer cancel()
		return x.read(ctx, key, size)
	})
	select {
	case r := <-c:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*runIndex), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (x *runIndexes) read(ctx context.Context, key metadata.ObjectKey, size int64) (*runIndex, error) {
	index, err := segment.OpenIndex(segment.ReadAtFunc(func(p []byte, off int64) (int, error) {
		r, err := x.bucket.Get(ctx, string(key), off, int64(len(p)))
		if err != nil {
			return 0, err
		}
		defer r.Close()
		return io.ReadFull(r, p)
	}), size)
	if err != nil {
		return nil, indexError(key, err)
	}
	i := &runIndex{runs: make(map[int64]*segment.Extent, len(index.Extents))}
	for j := range index.Extents {
		e := &index.Extents[j]
		i.runs[e.Position] = e
		i.size += runExtentBytes + runChunkBytes*int64(len(e.Chunks))
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.lru.Contains(key) {
		for x.bytes > 0 && x.bytes+i.size > runIndexBytes {
			x.lru.RemoveOldest()
		}
		x.bytes += i.size
		x.lru.Add(key, i)
	}
	return i, nil
}

// indexError sorts what went wrong with an index into what the cache says of extents.
func indexError(key metadata.ObjectKey, err error) error {
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		err = fmt.Errorf("%w: %w", cache.ErrMissing, err)
	case errors.Is(err, segment.ErrCorrupt), errors.Is(err, segment.ErrNotSegment), errors.Is(err, segment.ErrVersion),
		errors.Is(err, objstore.ErrRange), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: %w", cache.ErrCorrupt, err)
	}
	return fmt.Errorf("index of object %q: %w", key, err)
}

// expand puts chunks in the place of runs: those from offset from on, until there are maxRaw decoded bytes, at least one. An
// error comes with what is before it.
func (x *runIndexes) expand(ctx context.Context, located []metadata.Located, from metadata.Offset, maxRaw int64) ([]metadata.Located, error) {
	out := make([]metadata.Located, 0, len(located))
	var raw int64
	for i := range located {
		l := &located[i]
		if len(out) > 0 && raw >= maxRaw {
			break
		}
		if !l.Run {
			out = append(out, *l)
			raw += l.RawLength
			continue
		}
		chunks, err := x.chunks(ctx, l)
		if err != nil {
			return out, err
		}
		for j := range chunks {
			c := &chunks[j]
			if c.End <= from {
				continue
			}
			if len(out) > 0 && raw >= maxRaw {
				break
			}
			out = append(out, *c)
			raw += c.RawLength
		}
	}
	return out, nil
}

// chunks gives a run's chunks, or the whole of a short one.
func (x *runIndexes) chunks(ctx context.Context, l *metadata.Located) ([]metadata.Located, error) {
	if l.Object == "" {
		return nil, fmt.Errorf("%w: inline payload of offsets %d to %d, before it was merged", cache.ErrMissing, l.Base, l.End-1)
	}
	index, err := x.get(ctx, l.Object, l.ObjectSize)
	if err != nil {
		return nil, err
	}
	e := index.runs[l.Position]
	if e == nil || e.StoredLength != l.Length || e.BaseOffset < int64(l.Base) || e.LastOffset >= int64(l.End) {
		return nil, fmt.Errorf("%w: object %q has no readable run of offsets %d to %d at %d", cache.ErrCorrupt, l.Object, l.Base, l.End-1, l.Position)
	}
	if len(e.Chunks) == 0 {
		c := *l
		c.RawLength, c.Codec, c.CRC = e.RawLength, metadata.Codec(e.Codec), e.CRC
		return []metadata.Located{c}, nil
	}
	list := make([]metadata.Located, len(e.Chunks))
	base := l.Base
	for i := range e.Chunks {
		k := &e.Chunks[i]
		list[i] = metadata.Located{
			Object: l.Object, Position: k.Position, Length: k.StoredLength, RawLength: k.RawLength, Codec: metadata.Codec(k.Codec),
			CRC: k.CRC, Base: base, End: metadata.Offset(k.LastOffset) + 1, MaxTS: metadata.Millis(k.MaxTimestamp),
			Level: l.Level, Run: true, ObjectSize: l.ObjectSize,
		}
		base = list[i].End
	}
	list[len(list)-1].End = l.End
	return list, nil
}

// expandAll expands what was located for partitions. One that fails keeps its error. Those whose object is gone meanwhile
// are given back, to be located again.
func (rd *reader) expandAll(ctx context.Context, parts []*partRead, maxRaw func(*partRead) int64) (gone []*partRead) {
	var g errgroup.Group
	g.SetLimit(indexReads)
	for _, p := range parts {
		if len(p.located) == 0 || !p.located[0].Run {
			continue // after rows of level 0 come no runs
		}
		g.Go(func() error {
			p.located, p.lost = rd.runs.expand(ctx, p.located, p.offset, maxRaw(p))
			return nil
		})
	}
	_ = g.Wait() // they give none
	for _, p := range parts {
		if len(p.located) == 0 && errors.Is(p.lost, cache.ErrMissing) {
			gone = append(gone, p)
		}
	}
	return gone
}

// runPick is which batches of a chunk are wanted.
type runPick struct {
	offset, limit metadata.Offset
	maxBytes      int
	atLeastOne    bool
}

// pickChunk chooses a chunk. How much of it there is to send shows when it was read.
func pickChunk(l *metadata.Located, offset, limit metadata.Offset, maxBytes int, atLeastOne bool) (k pick, full bool) {
	if l.End <= offset {
		return pick{extent: l}, false
	}
	if maxBytes <= 0 && !atLeastOne {
		return pick{extent: l}, true
	}
	return pick{
		extent: l, base: max(l.Base, offset), end: min(l.End, limit), batches: 1,
		bytes: int(min(l.RawLength, int64(max(maxBytes, 1)))),
		run:   &runPick{offset: offset, limit: limit, maxBytes: maxBytes, atLeastOne: atLeastOne},
	}, l.RawLength >= int64(maxBytes)
}

// appendChunk cuts the wanted batches out of a decoded chunk.
func (k *pick) appendChunk(dst []servedBatch, data []byte) ([]servedBatch, error) {
	size := 0
	for b, err := range record.Batches(data) {
		if err != nil {
			return dst, fmt.Errorf("%w: %s: %w", cache.ErrCorrupt, k.name(), err)
		}
		if metadata.Offset(b.LastOffset()) < k.run.offset {
			continue
		}
		if metadata.Offset(b.BaseOffset) >= k.run.limit || size+len(b.Bytes) > k.run.maxBytes && !(k.run.atLeastOne && size == 0) {
			break
		}
		dst = append(dst, servedBatch{data: b.Bytes, base: metadata.Offset(b.BaseOffset)})
		size += len(b.Bytes)
	}
	return dst, nil
}
