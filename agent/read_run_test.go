package agent

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// merger makes a compactor on the world's database and bucket.
func (w *world) merger() *compactor.Compactor {
	w.t.Helper()
	c, err := compactor.New(compactor.Options{
		Holder: "test", Driver: w.driver.(*wired).Driver.(metadata.Compaction), Store: w.store, Bucket: w.bucket,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// answers is what clients get of two partitions: a fetch from every offset with large and small bounds, and offsets for
// timestamps.
func (w *world) answers(end [2]int64) (fetched []string, listed []string) {
	w.t.Helper()
	for i := range end {
		for o := range end[i] {
			req := fetchReq("t", 0, 0)
			p := req.Topics[0].Partitions[i]
			p.FetchOffset = o
			if o%3 == 0 {
				p.PartitionMaxBytes = 400
			}
			req.Topics[0].Partitions = []kmsg.FetchRequestTopicPartition{p}
			got := part(w.fetch(req), 0)
			if got.ErrorCode != 0 || len(got.RecordBatches) == 0 {
				w.t.Fatalf("partition %d, offset %d: error %d, %d bytes", i, o, got.ErrorCode, len(got.RecordBatches))
			}
			batches := offsetsOf(w.t, got)
			if o%3 != 0 {
				batches = batches[:1] // how many fit is not the same
			}
			fetched = append(fetched, fmt.Sprintf("%d@%d: %v", i, o, batches))
		}
		for at := int64(-3); at < 3000; at += 7 {
			req := kmsg.NewPtrListOffsetsRequest()
			req.Version = 7
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = "t"
			p := kmsg.NewListOffsetsRequestTopicPartition()
			p.Partition, p.Timestamp, p.CurrentLeaderEpoch = int32(i), at, -1
			t.Partitions = append(t.Partitions, p)
			req.Topics = append(req.Topics, t)
			rep, err := w.server.listOffsets(w.t.Context(), &request{key: 2, version: 7, msg: req})
			if err != nil {
				w.t.Fatal(err)
			}
			x := rep.msg.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
			listed = append(listed, fmt.Sprintf("%d at %d: %d %d %d", i, at, x.ErrorCode, x.Offset, x.Timestamp))
			if at == -3 {
				at = -7 // -2 and -1 are constant; on with 0
			}
		}
	}
	return fetched, listed
}

// TestReadRuns: what clients are told of merged data is what they were told before it was merged, from every offset and for
// every time.
func TestReadRuns(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	random := rand.New(rand.NewPCG(3, 3))
	var end [2]int64
	write := func(n int) {
		for range n {
			var chunks []chunk
			for i := range 2 {
				c := chunk{topic: topic, index: i}
				for range 1 + random.IntN(2) {
					times := make([]int64, 1+random.IntN(4))
					for j := range times {
						times[j] = end[i]*7 + random.Int64N(400)
					}
					c.batches = append(c.batches, timedBatch(t, random.IntN(300), times...))
					end[i] += int64(len(times))
				}
				chunks = append(chunks, c)
			}
			w.write(random.IntN(2) == 0, chunks...)
		}
	}
	write(80)
	c := w.merger()
	compare := func(what string) {
		t.Helper()
		fetched, listed := w.answers(end)
		if err := c.MergeEverything(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, a := range []*world{w, w.another()} {
			f, l := a.answers(end)
			for i := range f {
				if f[i] != fetched[i] {
					t.Fatalf("%s: fetched %s, before it was merged %s", what, f[i], fetched[i])
				}
			}
			if !reflect.DeepEqual(l, listed) {
				for i := range l {
					if l[i] != listed[i] {
						t.Fatalf("%s: %s, before it was merged %s", what, l[i], listed[i])
					}
				}
			}
		}
	}
	compare("all merged")
	write(40)
	compare("runs and rows")
	for range 9 {
		write(2)
		if err := c.MergeEverything(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fetched, listed := w.answers(end)
	gone := w.another()
	gone.answers(end) // knows the old runs' indexes
	if err := c.Remerge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, l := gone.answers(end); !reflect.DeepEqual(f, fetched) || !reflect.DeepEqual(l, listed) {
		t.Fatal("merged again: other answers than before")
	}
}

// TestReadRunsBounded: a fetch of a long run gives about what was asked for, in whole batches, and at least one.
func TestReadRunsBounded(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	for range 6 {
		w.write(false, chunk{topic: topic, batches: [][]byte{incompressible(t, 300<<10), incompressible(t, 300<<10)}})
	}
	if err := w.merger().MergeEverything(t.Context()); err != nil {
		t.Fatal(err)
	}
	gets := w.bucket.count()
	for _, tt := range []struct {
		max  int32
		want []string
	}{{1, []string{"5-5"}}, {400 << 10, []string{"5-5"}}, {700 << 10, []string{"5-5"}}, {4 << 20, []string{"5-5", "6-6", "7-7", "8-8", "9-9", "10-10", "11-11"}}} {
		req := fetchReq("t", 5)
		req.Topics[0].Partitions[0].PartitionMaxBytes = tt.max
		got := offsetsOf(t, part(w.fetch(req), 0))
		if len(got) == 0 || len(got) > len(tt.want) || !reflect.DeepEqual(got, tt.want[:len(got)]) {
			t.Errorf("%d bytes: %v, want %v", tt.max, got, tt.want)
		}
	}
	if n := w.bucket.count() - gets; n > 8 {
		t.Errorf("%d GETs", n)
	}
}

func incompressible(t testing.TB, n int) []byte {
	t.Helper()
	value := make([]byte, n)
	random := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range value {
		value[i] = byte(random.Uint32())
	}
	b, err := record.NewBuilder().Append(1, nil, value).Build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestReadDamagedRun: what cannot be read of a run is CORRUPT_MESSAGE; the rest of the partition goes on.
func TestReadDamagedRun(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	_, f := w.write(false, chunk{topic: topic, batches: [][]byte{timedBatch(t, 10, 1)}})
	w.write(false, chunk{topic: topic, batches: [][]byte{timedBatch(t, 10, 2)}})
	if err := w.bucket.Put(t.Context(), string(f.Object), objstore.Bytes(bytes.Repeat([]byte{1}, 500)), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.merger().MergeEverything(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := w.another()
	if got := part(a.fetch(fetchReq("t", 0)), 0); got.ErrorCode != codeCorruptMessage {
		t.Errorf("damaged: error %d", got.ErrorCode)
	}
	if got := part(a.fetch(fetchReq("t", 1)), 0); got.ErrorCode != 0 || len(offsetsOf(t, got)) != 1 {
		t.Errorf("behind it: error %d, %d bytes", got.ErrorCode, len(got.RecordBatches))
	}
}
