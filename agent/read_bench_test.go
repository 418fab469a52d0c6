package agent

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// BenchmarkFetch is the fetch path from the decoded request to the vector, everything cached: MB/s and allocations.
func BenchmarkFetch(b *testing.B) {
	for _, bb := range []struct {
		name                string
		batch, batches, num int // bytes of a batch, batches of a partition, partitions
	}{
		{"1 partition, 64 x 16 KiB", 16 << 10, 64, 1},
		{"1 partition, 1 x 1 MiB", 1<<20 - 1000, 1, 1},
		{"1 partition, 1000 x 200 B", 200, 1000, 1},
		{"100 partitions, 4 x 2 KiB", 2 << 10, 4, 100},
		{"1000 partitions, 1 x 200 B", 200, 1, 1000},
	} {
		b.Run(bb.name, func(b *testing.B) {
			w := newWorld(b)
			topic := w.topic("t", int32(bb.num))
			batch := timedBatch(b, bb.batch, 1)
			var chunks []chunk
			for i := range bb.num {
				c := chunk{topic: topic, index: i}
				for range bb.batches {
					c.batches = append(c.batches, batch)
				}
				chunks = append(chunks, c)
			}
			w.write(false, chunks...)
			req := fetchReq("t", make([]int64, bb.num)...)
			run := func(req *kmsg.FetchRequest) int {
				rep, err := w.server.fetch(b.Context(), &request{version: req.Version, msg: req})
				if err != nil {
					b.Fatal(err)
				}
				rep.release()
				return rep.size
			}
			b.SetBytes(int64(run(req)))
			b.ReportAllocs()
			for b.Loop() {
				run(req)
			}
		})
	}
}

// BenchmarkFetchNothing is a fetch of many partitions that has nothing to return and does not wait.
func BenchmarkFetchNothing(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n, " partitions"), func(b *testing.B) {
			w := newWorld(b)
			w.topic("t", int32(n))
			req := fetchReq("t", make([]int64, n)...)
			req.MinBytes = 0
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.server.fetch(b.Context(), &request{version: req.Version, msg: req}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReplay reads a partition of 256 MiB in segments of 1 MiB from its start, from a bucket in memory, with nothing
// cached: located in the database, read, checked and encoded.
func BenchmarkReplay(b *testing.B) {
	w := newWorld(b)
	topic := w.topic("t", 1)
	const segments, perSegment, size = 256, 16, 64 << 10
	batch := timedBatch(b, size, 1)
	var batches [][]byte
	for range perSegment {
		batches = append(batches, batch)
	}
	for range segments {
		w.write(false, chunk{topic, 0, batches})
	}
	b.SetBytes(int64(segments * perSegment * len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		agent := w.another()
		for offset := int64(0); offset < segments*perSegment; {
			req := fetchReq("t", offset)
			rep, err := agent.server.fetch(b.Context(), &request{version: req.Version, msg: req})
			if err != nil || rep.size < size {
				b.Fatal(err, rep.size)
			}
			offset += int64(rep.size) / int64(len(batch))
			rep.release()
		}
		agent.stop()
	}
}
