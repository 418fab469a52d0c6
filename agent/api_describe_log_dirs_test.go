package agent

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestDescribeLogDirs(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("a", 2, nil)
	b := ts.createTopic("b", 70, nil) // more than a block
	ts.produce("a", 3)
	conn := ts.dial()
	view, err := ts.store.View(t.Context(), mustTopic(t, ts, "a").Partitions[0].Block)
	if err != nil {
		t.Fatal(err)
	}
	size := view.Photo.Bytes[mustTopic(t, ts, "a").Partitions[0].Slot]
	if size < 3*61 {
		t.Fatalf("three batches are %d bytes", size)
	}
	for _, v := range versions(1, 4) {
		resp := ask[*kmsg.DescribeLogDirsResponse](conn, kmsg.NewPtrDescribeLogDirsRequest(), v)
		if len(resp.Dirs) != 1 || resp.ErrorCode != 0 {
			t.Fatalf("version %d: %+v", v, resp)
		}
		d := resp.Dirs[0]
		if d.Dir != "/skein" || d.ErrorCode != 0 || len(d.Topics) != 2 || len(d.Topics[1].Partitions) != len(b.Partitions) {
			t.Fatalf("version %d: %+v", v, d)
		}
		for i, p := range d.Topics[0].Partitions {
			want := []int64{size, 0}[i]
			if p.Partition != int32(i) || p.Size != want || p.OffsetLag != 0 || p.IsFuture {
				t.Errorf("version %d: partition %+v, want size %d", v, p, want)
			}
		}
		if v >= 4 && (d.TotalBytes != -1 || d.UsableBytes != -1) {
			t.Errorf("room: %d of %d", d.UsableBytes, d.TotalBytes)
		}
	}
	asked := func(topics ...kmsg.DescribeLogDirsRequestTopic) string {
		req := kmsg.NewPtrDescribeLogDirsRequest()
		req.Topics = append([]kmsg.DescribeLogDirsRequestTopic{}, topics...)
		s := ""
		for _, x := range ask[*kmsg.DescribeLogDirsResponse](conn, req, 2).Dirs[0].Topics {
			s += x.Topic
			for _, p := range x.Partitions {
				s += fmt.Sprintf(" %d", p.Partition)
			}
			s += ";"
		}
		return s
	}
	for _, c := range []struct{ got, want string }{
		{asked(), ""},
		{asked(kmsg.DescribeLogDirsRequestTopic{Topic: "a"}), ""},
		{asked(kmsg.DescribeLogDirsRequestTopic{Topic: "nope", Partitions: []int32{0}}), ""},
		{
			asked(
				kmsg.DescribeLogDirsRequestTopic{Topic: "b", Partitions: []int32{69, 70, -1, 0, 0}},
				kmsg.DescribeLogDirsRequestTopic{Topic: "a", Partitions: []int32{1}},
				kmsg.DescribeLogDirsRequestTopic{Topic: "b", Partitions: []int32{5}},
			),
			"b 0 5 69;a 1;",
		},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
