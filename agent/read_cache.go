package agent

import (
	"context"
	"fmt"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// InlineStore reads payloads that are in the database.
type InlineStore interface {
	LoadInline(ctx context.Context, parts []metadata.InlinePart) ([][]byte, error)
}

// NewExtentCache makes a cache of segments' extents and inline payloads: Decode and Inline of the options are filled in.
func NewExtentCache(store InlineStore, o cache.Options) (*cache.Cache, error) {
	o.Decode = decodeExtent
	o.Inline = func(ctx context.Context, extents []cache.Extent) ([][]byte, error) {
		parts := make([]metadata.InlinePart, len(extents))
		for i := range extents {
			e := &extents[i]
			parts[i] = metadata.InlinePart{Flush: e.Inline, Position: e.Position, Length: e.Length}
		}
		loaded, err := store.LoadInline(ctx, parts)
		if err != nil {
			return nil, fmt.Errorf("load %d inline payloads: %w", len(parts), err)
		}
		return loaded, nil
	}
	return cache.New(o)
}

func decodeExtent(e *cache.Extent, stored []byte) ([]byte, error) {
	return segment.DecodeExtent(stored, segment.Codec(e.Codec), e.RawLength, e.CRC)
}

// CacheSink keeps in a cache what this agent wrote.
type CacheSink struct{ Cache *cache.Cache }

var _ batcher.Sink = CacheSink{}

// Stored implements batcher.Sink. It copies.
func (s CacheSink) Stored(x batcher.StoredExtent) {
	e := cache.Extent{
		Key:    cache.Key{Object: string(x.Object), Position: x.Position},
		Length: int64(x.RawLength), RawLength: int64(x.RawLength),
	}
	if x.Object == "" {
		e.Inline = x.Flush
	}
	s.Cache.Put(e, x.Raw)
}
