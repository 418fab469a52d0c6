package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// errDamaged: bytes are not there, or are not what they should be. Reading them again will not help.
var errDamaged = errors.New("extent cannot be read")

// blob is bytes that are stored and decoded as one: a level-0 extent, or a chunk of a run.
type blob struct {
	object   metadata.ObjectKey
	flush    metadata.FlushID // of an inline payload, when object is ""
	position int64
	length   int64
	raw      int64
	codec    segment.Codec
	crc      uint32

	data []byte // decoded; this package's own memory
	err  error  // errDamaged
}

func (b *blob) name() string {
	if b.object == "" {
		return fmt.Sprintf("inline payload %s bytes [%d:+%d]", b.flush, b.position, b.length)
	}
	return fmt.Sprintf("object %q bytes [%d:+%d]", b.object, b.position, b.length)
}

func (b *blob) damaged(err error) { b.err = fmt.Errorf("%w: %s: %w", errDamaged, b.name(), err) }

// decode takes the stored bytes.
func (b *blob) decode(stored []byte) {
	data, err := segment.DecodeExtent(stored, b.codec, b.raw, b.crc)
	if err != nil {
		b.damaged(err)
		return
	}
	b.data, b.err = data, nil
}

// read reads and decodes blobs: those of one object that lie close together by one GET. Its error is one of the bucket or
// the database; a blob that is damaged has its own.
func (c *Compactor) read(ctx context.Context, job string, blobs []*blob) error {
	var inline, inObjects []*blob
	for _, b := range blobs {
		if b.object == "" {
			inline = append(inline, b)
		} else {
			inObjects = append(inObjects, b)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, span := range spans(inObjects) {
		g.Go(func() error { return c.readSpan(ctx, job, span) })
	}
	g.Go(func() error { return c.readInline(ctx, job, inline) })
	return g.Wait()
}

// spans groups blobs by what one GET reads, each in order of position.
func spans(blobs []*blob) [][]*blob {
	slices.SortStableFunc(blobs, func(a, b *blob) int {
		return cmp.Or(cmp.Compare(a.object, b.object), cmp.Compare(a.position, b.position))
	})
	var list [][]*blob
	start := 0
	for i := 1; i <= len(blobs); i++ {
		if i < len(blobs) {
			first, last, next := blobs[start], blobs[i-1], blobs[i]
			gap := next.position - (last.position + last.length)
			if next.object == first.object && gap >= 0 && gap <= readGap && next.position+next.length-first.position <= maxRead {
				continue
			}
		}
		if start < i {
			list = append(list, blobs[start:i])
		}
		start = i
	}
	return list
}

func (c *Compactor) readSpan(ctx context.Context, job string, span []*blob) error {
	err := c.getSpan(ctx, job, span)
	bad := slices.ContainsFunc(span, func(b *blob) bool { return b.err != nil })
	if err == nil && !bad {
		return nil
	}
	if err != nil && !isGone(err) {
		return err
	}
	// Each by itself once more: what was damaged on its way is read well now, and what is not there is told from the rest.
	for _, b := range span {
		if b.data != nil {
			continue
		}
		switch err := c.getSpan(ctx, job, []*blob{b}); {
		case err == nil:
		case isGone(err):
			b.damaged(err)
		default:
			return err
		}
	}
	return nil
}

// isGone says that an object, or a part of it, is not there.
func isGone(err error) bool {
	return errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrRange) || errors.Is(err, objstore.ErrShort)
}

func (c *Compactor) getSpan(ctx context.Context, job string, span []*blob) error {
	first, last := span[0], span[len(span)-1]
	pos, end := first.position, last.position+last.length
	if err := c.spend(ctx, end-pos); err != nil {
		return err
	}
	r, err := c.bucket.Get(ctx, string(first.object), pos, end-pos)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, b := range span {
		if _, err := io.CopyN(io.Discard, r, b.position-pos); err != nil {
			return shortRead(err, b)
		}
		stored := make([]byte, b.length)
		if _, err := io.ReadFull(r, stored); err != nil {
			return shortRead(err, b)
		}
		pos = b.position + b.length
		b.decode(stored)
		c.metrics.moved.WithLabelValues(job, "read").Add(float64(b.length))
	}
	return nil
}

// shortRead tells an object that ends too early from a failure of the bucket.
func shortRead(err error, b *blob) error {
	var oe *objstore.Error
	if !errors.As(err, &oe) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return fmt.Errorf("%w: %s", objstore.ErrShort, b.name())
	}
	return err
}

// readInline reads parts of inline payloads, some at a time.
func (c *Compactor) readInline(ctx context.Context, job string, blobs []*blob) error {
	for len(blobs) > 0 {
		n, size := 0, int64(0)
		for n < len(blobs) && n < inlineParts && (n == 0 || size+blobs[n].length <= inlineBytes) {
			size += blobs[n].length
			n++
		}
		part := blobs[:n]
		blobs = blobs[n:]
		err := c.getInline(ctx, part)
		if errors.Is(err, metadata.ErrCorrupt) { // of one of them
			for _, b := range part {
				if err = c.getInline(ctx, []*blob{b}); errors.Is(err, metadata.ErrCorrupt) {
					b.damaged(err)
					err = nil
				}
				if err != nil {
					return err
				}
			}
		}
		if err != nil {
			return err
		}
		c.metrics.moved.WithLabelValues(job, "inline").Add(float64(size))
	}
	return nil
}

func (c *Compactor) getInline(ctx context.Context, blobs []*blob) error {
	parts := make([]metadata.InlinePart, len(blobs))
	for i, b := range blobs {
		parts[i] = metadata.InlinePart{Flush: b.flush, Position: b.position, Length: b.length}
	}
	loaded, err := c.store.LoadInline(ctx, parts)
	if err != nil {
		return err
	}
	for i, b := range blobs {
		switch {
		case loaded[i] == nil:
			b.damaged(fmt.Errorf("%w: the payload", objstore.ErrNotFound))
		case int64(len(loaded[i])) != b.length:
			b.damaged(fmt.Errorf("%d bytes", len(loaded[i])))
		default:
			b.decode(loaded[i])
		}
	}
	return nil
}

// batch is a record batch with its base offset set.
type batch struct {
	record.Header
	data []byte
}

// cut gives the accepted batches of a level-0 extent, with their base offsets set from base on, in place. Anything that
// does not agree with the row is damage.
func cut(data []byte, t *metadata.Touched, base metadata.Offset) ([]batch, error) {
	list := make([]batch, 0, len(t.Batches))
	for i := range t.Batches {
		m := &t.Batches[i]
		if int64(m.Length) > int64(len(data)) {
			return nil, fmt.Errorf("%w: batch %d of %d bytes, %d are left", errDamaged, i, m.Length, len(data))
		}
		b := data[:m.Length:m.Length]
		data = data[m.Length:]
		if m.Flags&metadata.FlagAccepted == 0 {
			continue
		}
		h, err := record.Parse(b)
		if err == nil {
			err = record.VerifyCRC(b)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: batch %d: %w", errDamaged, i, err)
		}
		if h.Size() != len(b) || h.LastOffsetDelta+1 != m.Records {
			return nil, fmt.Errorf("%w: batch %d has %d bytes and %d offsets, the row says %d and %d", errDamaged, i,
				h.Size(), h.LastOffsetDelta+1, m.Length, m.Records)
		}
		h.BaseOffset, h.LeaderEpoch = int64(base), 0
		record.SetBaseOffset(b, h.BaseOffset)
		record.SetLeaderEpoch(b, h.LeaderEpoch)
		list = append(list, batch{Header: h, data: b})
		base += metadata.Offset(m.Records)
	}
	if len(data) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last batch", errDamaged, len(data))
	}
	return list, nil
}

// parse gives the batches of a run's chunk and checks them.
func parse(data []byte) ([]batch, error) {
	var list []batch
	for b, err := range record.Batches(data) {
		if err == nil {
			err = record.VerifyCRC(b.Bytes)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		list = append(list, batch{Header: b.Header, data: b.Bytes})
	}
	return list, nil
}
