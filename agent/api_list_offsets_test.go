package agent

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// list asks for the offsets of one topic's partitions at one timestamp each.
func (w *world) list(version int16, isolation int8, topic string, timestamps ...int64) []kmsg.ListOffsetsResponseTopicPartition {
	w.t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version, req.IsolationLevel = version, isolation
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	for i, ts := range timestamps {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = int32(i), ts
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return w.listReq(req).Topics[0].Partitions
}

func (w *world) listReq(req *kmsg.ListOffsetsRequest) *kmsg.ListOffsetsResponse {
	w.t.Helper()
	rep, err := w.server.listOffsets(w.t.Context(), &request{key: 2, version: req.Version, msg: req})
	if err != nil {
		w.t.Fatal(err)
	}
	resp := kmsg.NewPtrListOffsetsResponse() // over the wire
	resp.Version = req.Version
	if err := resp.ReadFrom(rep.msg.AppendTo(nil)); err != nil {
		w.t.Fatal(err)
	}
	return resp
}

func wantListed(t *testing.T, what string, p kmsg.ListOffsetsResponseTopicPartition, offset, timestamp int64) {
	t.Helper()
	if p.ErrorCode != 0 || p.Offset != offset || p.Timestamp != timestamp {
		t.Errorf("%s: %s, offset %d, timestamp %d, want %d and %d", what, codeName(p.ErrorCode), p.Offset, p.Timestamp, offset,
			timestamp)
	}
}

func (w *world) deleteRecords(topic *metadata.Topic, index int, before metadata.Offset) {
	w.t.Helper()
	place := topic.Partitions[index]
	res, err := w.store.DeleteRecords(w.t.Context(), []metadata.DeleteRecords{
		{Partition: metadata.PartitionID{Block: place.Block, Slot: place.Slot}, Before: before},
	})
	if err != nil || res[0].Err != nil {
		w.t.Fatal(err, res)
	}
}

func TestListOffsets(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 2)
	// Timestamps are not in order, within batches and between them.
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 100, 300, 200), timedBatch(t, 10, 50, 60)}})
	w.write(true, chunk{topic, 0, [][]byte{timedBatch(t, 10, 250, 400, 350)}})
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 400, 380)}})
	for version := int16(1); version <= 11; version++ {
		for _, tt := range []struct{ ts, offset, found int64 }{
			{-1, 10, -1}, {-2, 0, -1}, {0, 0, 100}, {100, 0, 100}, {101, 1, 300}, {300, 1, 300}, {301, 6, 400}, {400, 6, 400},
			{401, -1, -1}, {1 << 60, -1, -1},
		} {
			p := w.list(version, 0, "t", tt.ts, tt.ts)
			wantListed(t, fmt.Sprintf("v%d timestamp %d", version, tt.ts), p[0], tt.offset, tt.found)
			if want := int32(-1); version >= 4 {
				if tt.offset >= 0 {
					want = 0
				}
				if p[0].LeaderEpoch != want {
					t.Errorf("leader epoch %d with offset %d", p[0].LeaderEpoch, tt.offset)
				}
			}
			empty := int64(-1)
			if tt.ts == -1 || tt.ts == -2 {
				empty = 0
			}
			wantListed(t, "empty partition", p[1], empty, -1)
		}
	}
	for _, tt := range []struct {
		ts            int64
		since         int16
		offset, found int64
	}{{-3, 7, 6, 400}, {-4, 8, 0, -1}, {-5, 9, -1, -1}, {-6, 11, -1, -1}, {-7, 12, 0, 0}} {
		for version := int16(1); version <= 11; version++ {
			p := w.list(version, 0, "t", tt.ts)[0]
			if version < tt.since {
				if p.ErrorCode != codeUnsupportedVersion {
					t.Errorf("v%d timestamp %d: %s", version, tt.ts, codeName(p.ErrorCode))
				}
				continue
			}
			wantListed(t, fmt.Sprintf("v%d timestamp %d", version, tt.ts), p, tt.offset, tt.found)
		}
	}
}

// Records below the log's start are not found, though their timestamps are still in the running maximum.
func TestListOffsetsAfterDeleteRecords(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 10, 9000, 20)}}) // 0 to 2
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 30, 700)}})      // 3, 4
	for range 3 * firstTimeRows {
		w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 40)}}) // 5 to 16
	}
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 50, 600, 60)}}) // 17 to 19
	wantListed(t, "before", w.list(7, 0, "t", 100)[0], 1, 9000)
	wantListed(t, "before, max", w.list(7, 0, "t", -3)[0], 1, 9000)
	w.deleteRecords(topic, 0, 2)
	wantListed(t, "inside a batch", w.list(7, 0, "t", 10)[0], 2, 20)
	wantListed(t, "next extent", w.list(7, 0, "t", 100)[0], 4, 700)
	wantListed(t, "max of what is left", w.list(7, 0, "t", -3)[0], 4, 700)
	wantListed(t, "nothing left", w.list(7, 0, "t", 8000)[0], -1, -1)
	w.deleteRecords(topic, 0, 5)
	wantListed(t, "far", w.list(7, 0, "t", 100)[0], 18, 600)
	wantListed(t, "max", w.list(7, 0, "t", -3)[0], 18, 600)
	w.deleteRecords(topic, 0, 19)
	wantListed(t, "last record", w.list(7, 0, "t", -3)[0], 19, 60)
	w.deleteRecords(topic, 0, -1)
	for _, ts := range []int64{0, 100, -3} {
		wantListed(t, "empty log", w.list(7, 0, "t", ts)[0], -1, -1)
	}
	wantListed(t, "start", w.list(7, 0, "t", -2)[0], 20, -1)
	wantListed(t, "end", w.list(7, 0, "t", -1)[0], 20, -1)
}

// What another agent committed is in the answer at once.
func TestListOffsetsAsksTheDatabase(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	wantListed(t, "before", w.list(7, 0, "t", -1)[0], 0, -1)
	w.stop() // no wake-ups
	other := w.another()
	for i := range int64(3) {
		other.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 100+i)}})
		wantListed(t, "latest", w.list(7, 0, "t", -1)[0], i+1, -1)
		wantListed(t, "by time", w.list(7, 0, "t", 100+i)[0], i, 100+i)
	}
}

func TestListOffsetsErrors(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, 100)}})
	if p := w.list(7, 0, "nope", -1)[0]; p.ErrorCode != codeUnknownTopicOrPartition || p.Offset != -1 {
		t.Errorf("unknown topic: %s", codeName(p.ErrorCode))
	}
	if p := w.list(7, 0, "t", -1, -1); p[1].ErrorCode != codeUnknownTopicOrPartition || p[0].ErrorCode != 0 {
		t.Errorf("unknown partition: %s", codeName(p[1].ErrorCode))
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version = 4
	part := kmsg.NewListOffsetsRequestTopicPartition()
	part.Timestamp = -1
	late := part
	late.CurrentLeaderEpoch = 3
	req.Topics = []kmsg.ListOffsetsRequestTopic{
		{Topic: "t", Partitions: []kmsg.ListOffsetsRequestTopicPartition{part, part}},
		{Topic: "t", Partitions: []kmsg.ListOffsetsRequestTopicPartition{late}},
	}
	r := w.listReq(req)
	got := []int16{r.Topics[0].Partitions[0].ErrorCode, r.Topics[0].Partitions[1].ErrorCode, r.Topics[1].Partitions[0].ErrorCode}
	if want := []int16{0, codeInvalidRequest, codeUnknownLeaderEpoch}; !slices.Equal(got, want) {
		t.Errorf("codes %v, want %v", got, want)
	}
}

// A record deep inside a compressed batch is found, not its batch.
func TestListOffsetsCompressed(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	for _, codec := range []record.Codec{record.CodecGzip, record.CodecSnappy, record.CodecLZ4, record.CodecZstd} {
		b := record.NewBuilder().SetCodec(codec, record.DefaultLevel)
		base := int64(codec) * 1000
		for i := range int64(100) {
			b.Append(base+i, nil, []byte("value"))
		}
		data, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		r, _ := w.write(false, chunk{topic, 0, [][]byte{data}})
		wantListed(t, codec.String(), w.list(7, 0, "t", base+42)[0], int64(r.Batches[0].Base)+42, base+42)
	}
}

func TestOffsetForLeaderEpoch(t *testing.T) {
	w := newWorld(t)
	topic := w.topic("t", 1)
	w.write(false, chunk{topic, 0, [][]byte{timedBatch(t, 10, times(7)...)}})
	for version := int16(2); version <= 4; version++ {
		for _, tt := range []struct {
			topic          string
			current, asked int32
			code           int16
			epoch          int32
			end            int64
		}{
			{"t", -1, 0, 0, 0, 7}, {"t", 0, 0, 0, 0, 7}, {"t", -1, 1, 0, -1, -1}, {"t", -1, -1, 0, -1, -1},
			{"t", 1, 0, codeUnknownLeaderEpoch, -1, -1}, {"nope", -1, 0, codeUnknownTopicOrPartition, -1, -1},
		} {
			req := kmsg.NewPtrOffsetForLeaderEpochRequest()
			req.Version = version
			p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			p.CurrentLeaderEpoch, p.LeaderEpoch = tt.current, tt.asked
			req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{
				{Topic: tt.topic, Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{p}},
			}
			rep, err := w.server.offsetForLeaderEpoch(t.Context(), &request{version: version, msg: req})
			if err != nil {
				t.Fatal(err)
			}
			resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
			resp.Version = version
			if err := resp.ReadFrom(rep.msg.AppendTo(nil)); err != nil {
				t.Fatal(err)
			}
			x := resp.Topics[0].Partitions[0]
			if x.ErrorCode != tt.code || x.LeaderEpoch != tt.epoch || x.EndOffset != tt.end {
				t.Errorf("v%d %+v: %s, epoch %d, end %d", version, tt, codeName(x.ErrorCode), x.LeaderEpoch, x.EndOffset)
			}
		}
	}
}
