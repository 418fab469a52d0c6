package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// instantProducer answers at once and stores nothing.
type instantProducer struct{}

func (instantProducer) Submit(p batcher.Produce) {
	results := make([]batcher.Result, len(p.Batches))
	for i := range results {
		results[i].Base = metadata.Offset(i)
	}
	p.Done(results)
}

// quiet logs nothing.
func quiet(_ *Config, d *Deps) { d.Logger = nil }

// BenchmarkProduce measures the way from a socket to the batcher and back, with five requests under way.
func BenchmarkProduce(b *testing.B) {
	for _, c := range []struct{ partitions, bytes int }{{1, 1 << 10}, {1, 64 << 10}, {1, 1 << 20}, {100, 1 << 10}} {
		b.Run(fmt.Sprintf("partitions=%d/bytes=%d", c.partitions, c.bytes), func(b *testing.B) {
			benchmarkProduce(b, c.partitions, c.bytes)
		})
	}
}

func benchmarkProduce(b *testing.B, partitions, bytes int) {
	ts := newTestServer(b, withProducer(instantProducer{}), quiet)
	if _, _, err := ts.store.CreateTopics(b.Context(), []metadata.NewTopic{{Name: "t", Partitions: int32(partitions)}}, false); err != nil {
		b.Fatal(err)
	}
	batch, err := record.NewBuilder().Append(time.Now().UnixMilli(), nil, make([]byte, bytes)).Build()
	if err != nil {
		b.Fatal(err)
	}
	req := produceOf("t", 0, -1, batch)
	for i := 1; i < partitions; i++ {
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, produceOf("t", int32(i), -1, batch).Topics[0].Partitions...)
	}
	frame := frameOf(req, 1)
	c := ts.dial()
	const window = 5
	answered := make(chan error, 1)
	credits := make(chan struct{}, window)
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		head := make([]byte, 4)
		for range b.N {
			if _, err := io.ReadFull(c, head); err != nil {
				answered <- err
				return
			}
			size := int64(binary.BigEndian.Uint32(head))
			if _, err := io.CopyN(io.Discard, c, size); err != nil {
				answered <- err
				return
			}
			<-credits
		}
		answered <- nil
	}()
	for range b.N {
		credits <- struct{}{}
		if _, err := c.Write(frame); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-answered; err != nil {
		b.Fatal(err)
	}
}
