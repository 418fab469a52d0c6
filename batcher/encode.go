package batcher

import (
	"fmt"
	"time"

	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
)

// encode makes the flush's bytes: a segment that shares memory with the batches, or, inline, a small copy of them, since
// the database may still read it after a waiter has been answered. It runs outside of b.mu, while the flush is reading.
func (b *Batcher) encode(f *flush, live []*item) error {
	if f.id == (metadata.FlushID{}) {
		id, err := metadata.NewFlushID()
		if err != nil {
			return err
		}
		f.id = id
	}
	f.arrange(live)
	if f.kind == KindInline {
		return b.encodeInline(f)
	}
	return b.encodeSegment(f)
}

func (b *Batcher) encodeSegment(f *flush) error {
	w := segment.NewWriter(segment.Options{
		ID: segment.ID(f.id), CreatedMs: time.Now().UnixMilli(), Compression: b.cfg.Compression,
	})
	parts := make([][]byte, len(f.order))
	for i, it := range f.order {
		parts[i] = it.data
	}
	for i := range f.extents {
		x := &f.extents[i]
		p, err := w.Add(describe(f.order[x.from:x.to]), parts[x.from:x.to:x.to])
		if err != nil {
			return fmt.Errorf("encode partition %s/%d: %w", f.order[x.from].topic, f.order[x.from].index, err)
		}
		x.position, x.length, x.rawLength = p.Position, p.StoredLength, p.RawLength
		x.codec, x.crc = metadata.Codec(p.Codec), p.CRC
	}
	o, err := w.Finish()
	if err != nil {
		return fmt.Errorf("encode segment: %w", err)
	}
	f.keys++
	f.key = objectKey(f.id, f.keys)
	f.payload, f.size = o.Parts, o.Size
	return nil
}

// objectKey is where a flush's segment goes: a folder by random bits of the id, so that prefixes share the load, and
// a number, since a key is never used for other bytes than it was first put with.
func objectKey(id metadata.FlushID, n int) metadata.ObjectKey {
	return metadata.ObjectKey(fmt.Sprintf("seg/%02x/%s-%d", id[len(id)-1], id, n))
}

func (b *Batcher) encodeInline(f *flush) error {
	var payload []byte
	parts := make([][]byte, 0, len(f.order))
	for i := range f.extents {
		x := &f.extents[i]
		parts = parts[:0]
		raw := true
		for _, it := range f.order[x.from:x.to] {
			parts = append(parts, it.data)
			raw = raw && it.uncompressed
		}
		e, err := segment.Encode(parts, b.cfg.Compression, raw)
		if err != nil {
			return fmt.Errorf("encode partition %s/%d: %w", f.order[x.from].topic, f.order[x.from].index, err)
		}
		x.position, x.length, x.rawLength = int64(len(payload)), int32(e.StoredLength), int32(e.RawLength)
		x.codec, x.crc = metadata.Codec(e.Codec), e.CRC
		for _, p := range e.Parts {
			payload = append(payload, p...)
		}
	}
	f.key, f.payload, f.size = "", [][]byte{payload}, int64(len(payload))
	return nil
}

// describe makes an extent's entry in the segment's index from what is known of its batches.
func describe(items []*item) segment.ExtentMeta {
	first := items[0]
	m := segment.ExtentMeta{
		TopicID: segment.TopicID(first.topic), Partition: first.index, Batches: uint32(len(items)),
		MaxTimestamp: int64(first.meta.MaxTimestamp), Uncompressed: true,
	}
	for _, it := range items {
		m.Records += uint32(it.meta.Records)
		m.MaxTimestamp = max(m.MaxTimestamp, int64(it.meta.MaxTimestamp))
		m.Uncompressed = m.Uncompressed && it.uncompressed
	}
	return m
}
