package agent

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// trimRequest asks to trim partitions 0, 1, … before the offsets.
func trimRequest(topic string, before ...int64) *kmsg.DeleteRecordsRequest {
	req := kmsg.NewPtrDeleteRecordsRequest()
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = topic
	for i, o := range before {
		t.Partitions = append(t.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: int32(i), Offset: o})
	}
	req.Topics = append(req.Topics, t)
	return req
}

func TestDeleteRecords(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 2, nil)
	ts.createTopic("both", 1, map[string]string{"cleanup.policy": "compact,delete"})
	ts.createTopic("kept", 1, map[string]string{"cleanup.policy": ""})
	ts.createTopic("compact", 1, map[string]string{"cleanup.policy": " compact "})
	ts.produce("t", 5)
	ts.produce("compact", 2)
	conn := ts.dial()
	type result struct {
		low  int64
		code int16
	}
	for _, c := range []struct {
		req  *kmsg.DeleteRecordsRequest
		want []result // in order, at every version
	}{
		{trimRequest("t", 2, 0, 0), []result{{2, 0}, {0, 0}, {-1, 3}}},
		{trimRequest("t", 1), []result{{2, 0}}}, // never back
		{trimRequest("t", 6), []result{{-1, 1}}},
		{trimRequest("t", -2), []result{{-1, 1}}},
		{trimRequest("nope", 0), []result{{-1, 3}}},
		{trimRequest("compact", -1), []result{{-1, 44}}},
		{trimRequest("both", -1), []result{{0, 0}}},
		{trimRequest("kept", -1), []result{{0, 0}}},
	} {
		for _, v := range versions(0, 2) {
			var got []result
			for _, p := range ask[*kmsg.DeleteRecordsResponse](conn, c.req, v).Topics[0].Partitions {
				got = append(got, result{p.LowWatermark, p.ErrorCode})
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("version %d, %+v: got %v, want %v", v, c.req.Topics[0], got, c.want)
			}
		}
	}
	if p := ask[*kmsg.DeleteRecordsResponse](conn, trimRequest("t", -1), 2).Topics[0].Partitions[0]; p.LowWatermark != 5 {
		t.Errorf("trimmed to the end: %+v", p)
	}
	// What was deleted is out of range for readers.
	fetch := kmsg.NewPtrFetchRequest()
	fetch.MaxBytes = 1 << 20
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic = "t"
	fp := kmsg.NewFetchRequestTopicPartition()
	fp.FetchOffset, fp.PartitionMaxBytes = 4, 1<<20
	ft.Partitions = append(ft.Partitions, fp)
	fetch.Topics = append(fetch.Topics, ft)
	x := ask[*kmsg.FetchResponse](conn, fetch, 11).Topics[0].Partitions[0]
	if x.ErrorCode != codeOffsetOutOfRange {
		t.Errorf("fetch below the log start: %d", x.ErrorCode)
	}
}
