package agent

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

func testBatch(t testing.TB, records, bytes int) []byte {
	t.Helper()
	b := record.NewBuilder()
	for range records {
		b.Append(1, nil, make([]byte, bytes))
	}
	data, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// encodeCase is a fetch with partitions of all kinds, and kmsg's response that says the same.
func encodeCase(t *testing.T, version int16, isolation int8) (*fetch, *kmsg.FetchResponse) {
	small, large := testBatch(t, 2, 100), testBatch(t, 3, shareBytes)
	view := &metadata.View{Seq: 1}
	for s := range view.Photo.Next {
		view.Photo.Next[s] = metadata.Offset(1000 + s)
		view.Row.LogStart[s] = metadata.Offset(s)
	}
	req := &kmsg.FetchRequest{Version: version, IsolationLevel: isolation}
	resp := kmsg.NewPtrFetchResponse()
	resp.Version = version
	f := &fetch{req: req}
	cases := [][]servedBatch{
		{}, {{small, 5}}, {{large, 1 << 40}}, {{small, 1}, {large, 2}, {small, 3}, {small, 4}, {large, 5}, {large, 6}}, nil,
	}
	for i := range 3 {
		name := fmt.Sprint("topic-", i)
		id := [16]byte{byte(i), 15: 1}
		in := kmsg.FetchRequestTopic{Topic: name, TopicID: id}
		out := kmsg.FetchResponseTopic{Topic: name, TopicID: id}
		for j := range i * len(cases) { // the first topic has no partitions
			batches := cases[j%len(cases)]
			x := kmsg.NewFetchResponseTopicPartition()
			x.Partition, x.HighWatermark, x.LastStableOffset, x.LogStartOffset = int32(j), -1, -1, -1
			x.RecordBatches = []byte{}
			result := fetchResult{index: int32(j)}
			if batches == nil {
				x.ErrorCode, result.code = codeUnknownTopicOrPartition, codeUnknownTopicOrPartition
			} else {
				slot := metadata.Slot(j)
				result.part = &partRead{view: view, place: metadata.PartitionID{Slot: slot}, batches: batches}
				x.HighWatermark, x.LastStableOffset = int64(view.HighWatermark(slot)), int64(view.LSO(slot))
				x.LogStartOffset = int64(view.LogStart(slot))
				if isolation == readCommitted {
					x.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
				}
				for _, b := range batches {
					c := bytes.Clone(b.data)
					record.SetBaseOffset(c, int64(b.base))
					record.SetLeaderEpoch(c, 0)
					x.RecordBatches = append(x.RecordBatches, c...)
				}
			}
			in.Partitions = append(in.Partitions, kmsg.FetchRequestTopicPartition{Partition: int32(j)})
			f.results = append(f.results, result)
			if result.part != nil {
				f.parts = append(f.parts, result.part)
			}
			out.Partitions = append(out.Partitions, x)
		}
		f.counts = append(f.counts, len(in.Partitions))
		req.Topics = append(req.Topics, in)
		resp.Topics = append(resp.Topics, out)
	}
	return f, resp
}

func TestFetchEncoding(t *testing.T) {
	for version := int16(4); version <= 18; version++ {
		for _, isolation := range []int8{0, readCommitted} {
			t.Run(fmt.Sprintf("v%d isolation %d", version, isolation), func(t *testing.T) {
				f, resp := encodeCase(t, version, isolation)
				before := bytes.Clone(f.parts[2].batches[0].data)
				parts, size := f.encode(nil)
				got, want := bytes.Join(parts, nil), resp.AppendTo(nil)
				if !bytes.Equal(got, want) {
					at := 0
					for at < min(len(got), len(want)) && got[at] == want[at] {
						at++
					}
					t.Fatalf("%d bytes, kmsg has %d; they differ at %d", len(got), len(want), at)
				}
				if size != len(got) {
					t.Errorf("size %d of %d bytes", size, len(got))
				}
				if !bytes.Equal(before, f.parts[2].batches[0].data) {
					t.Error("shared memory was changed")
				}
			})
		}
	}
}

// The first estimate is enough, so that there is one buffer; and large records are shared, small ones copied.
func TestFetchEncodingIsOneBuffer(t *testing.T) {
	f, _ := encodeCase(t, 18, 0)
	parts, _ := f.encode(nil)
	shared := 0
	for _, p := range f.parts {
		for _, b := range p.batches {
			if rest := b.data[record.HeaderBytes:]; len(rest) >= shareBytes {
				shared++
				found := false
				for _, part := range parts {
					found = found || &part[0] == &rest[0]
				}
				if !found {
					t.Error("a large batch was copied")
				}
			}
		}
	}
	if shared == 0 || len(parts) != 2*shared+1 {
		t.Errorf("%d parts for %d shared ones", len(parts), shared)
	}
}

// A vector whose estimate was too small is right all the same.
func TestVectorGrows(t *testing.T) {
	v := newVector(3, 0, nil)
	var want []byte
	for i := range 10_000 {
		v.int32(int32(i))
		v.int16(int16(i))
		want = append(want, byte(i>>24), byte(i>>16), byte(i>>8), byte(i), byte(i>>8), byte(i))
	}
	parts, size := v.done()
	if got := bytes.Join(parts, nil); !bytes.Equal(got, want) || size != len(want) {
		t.Errorf("%d bytes, size %d, want %d", len(got), size, len(want))
	}
}
