package compactor

import (
	"context"
	"fmt"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// smallChunk: below this a chunk goes on although what follows was compressed by its producer and what it holds was not,
// or the other way round.
const smallChunk = 64 << 10

// putBackoff is the pause after a PUT that failed, doubled each time.
const putBackoff = 100 * time.Millisecond

// output is one object that is being made: runs of many partitions.
type output struct {
	key     metadata.ObjectKey
	level   int16
	writer  *segment.Writer
	runs    []*metadata.RunRow // in it; position and length are set when they are added
	rawSize int64
}

func newOutput(level int16) (*output, error) {
	id, err := metadata.NewFlushID() // ordered in time, as flushes' are
	if err != nil {
		return nil, err
	}
	return &output{
		key:   metadata.ObjectKey(fmt.Sprintf("run/%02x/%s-%d", id[len(id)-1], id, level)),
		level: level,
		writer: segment.NewWriter(segment.Options{
			ID: segment.ID(id), Level: uint16(level), CreatedMs: time.Now().UnixMilli(), Compression: segment.CompressionBetter,
		}),
	}, nil
}

// add lays out a run. Its row gets what the object says of it.
func (o *output) add(place metadata.PartitionRow, run *metadata.RunRow, batches []batch) error {
	m := segment.ExtentMeta{
		TopicID: segment.TopicID(place.Topic), Partition: place.Index, Batches: uint32(len(batches)),
		BaseOffset: batches[0].BaseOffset, LastOffset: batches[len(batches)-1].LastOffset(),
		MaxTimestamp: batches[0].MaxTimestamp, Uncompressed: true,
	}
	var raw int64
	for i := range batches {
		b := &batches[i]
		m.Records += uint32(b.RecordCount)
		m.MaxTimestamp = max(m.MaxTimestamp, b.MaxTimestamp)
		m.Uncompressed = m.Uncompressed && b.Codec() == record.CodecNone
		raw += int64(len(b.data))
	}
	run.Object, run.Level, run.Raw = o.key, o.level, raw
	run.MaxTS = metadata.Millis(m.MaxTimestamp)
	chunks := chunked(batches)
	if len(chunks) == 1 {
		p, err := o.writer.Add(m, chunks[0].Parts)
		if err != nil {
			return fmt.Errorf("run of offsets %d to %d: %w", run.Base, run.Last, err)
		}
		run.Position, run.Length = p.Position, int64(p.StoredLength)
	} else {
		x, err := o.writer.AddRun(m, chunks)
		if err != nil {
			return fmt.Errorf("run of offsets %d to %d: %w", run.Base, run.Last, err)
		}
		run.Position, run.Length = x.Position, x.StoredLength
	}
	o.runs = append(o.runs, run)
	o.rawSize += raw
	return nil
}

// chunked cuts batches into chunks of about segment.ChunkBytes. What producers compressed and what they did not go into
// different chunks, since only the latter are compressed, unless they alternate in small pieces.
func chunked(batches []batch) []segment.ChunkInput {
	var chunks []segment.ChunkInput
	size := 0
	for i := range batches {
		b := &batches[i]
		plain := b.Codec() == record.CodecNone
		if n := len(chunks); n > 0 {
			c := &chunks[n-1]
			if size+len(b.data) <= segment.ChunkBytes && (c.Uncompressed == plain || size < smallChunk) {
				c.LastOffset = b.LastOffset()
				c.MaxTimestamp = max(c.MaxTimestamp, b.MaxTimestamp)
				c.Uncompressed = c.Uncompressed && plain
				c.Parts = append(c.Parts, b.data)
				size += len(b.data)
				continue
			}
		}
		chunks = append(chunks, segment.ChunkInput{
			BaseOffset: b.BaseOffset, LastOffset: b.LastOffset(), MaxTimestamp: b.MaxTimestamp, Uncompressed: plain, Parts: [][]byte{b.data},
		})
		size = len(b.data)
	}
	return chunks
}

// put registers the object's key, then puts it.
func (c *Compactor) put(ctx context.Context, job string, o *output) error {
	obj, err := o.writer.Finish()
	if err != nil {
		return fmt.Errorf("finish %s: %w", o.key, err)
	}
	for _, r := range o.runs {
		r.ObjectSize = obj.Size
	}
	if err := c.db.RegisterObjects(ctx, []metadata.ObjectRow{{Key: o.key, Size: obj.Size}}); err != nil {
		return fmt.Errorf("register %s: %w", o.key, err)
	}
	if err := c.crash(PointRegistered); err != nil {
		return err
	}
	if err := c.spend(ctx, obj.Size); err != nil {
		return err
	}
	wait := putBackoff
	for try := 1; ; try++ {
		err := c.bucket.Put(ctx, string(o.key), objstore.Payload(obj.Parts), objstore.PutOptions{})
		if err == nil {
			break
		}
		if !objstore.Retriable(err) || try == putTries {
			return fmt.Errorf("put %s: %w", o.key, err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait *= 2
	}
	c.metrics.moved.WithLabelValues(job, "written").Add(float64(obj.Size))
	c.metrics.objects.WithLabelValues("written").Inc()
	return c.crash(PointPut)
}
