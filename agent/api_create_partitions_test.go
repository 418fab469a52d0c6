package agent

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func growthRequest(name string, count int32, assignment ...[]int32) kmsg.CreatePartitionsRequestTopic {
	t := kmsg.NewCreatePartitionsRequestTopic()
	t.Topic, t.Count = name, count
	for _, ids := range assignment {
		t.Assignment = append(t.Assignment, kmsg.CreatePartitionsRequestTopicAssignment{Replicas: ids})
	}
	return t
}

func TestCreatePartitions(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 2, nil)
	const manual = "The manual partition assignment includes "
	one := []int32{7}
	conn := ts.dial()
	for _, v := range versions(0, 3) {
		for _, c := range []struct {
			topic kmsg.CreatePartitionsRequestTopic
			want  outcome
		}{
			{growthRequest("nope", 5), outcome{3, "This server does not host this topic-partition."}},
			{growthRequest("t", 2), outcome{37, "Topic already has 2 partition(s)."}},
			{growthRequest("t", 1), outcome{37, "The topic t currently has 2 partition(s); 1 would not be an increase."}},
			{growthRequest("t", -1), outcome{37, "The topic t currently has 2 partition(s); -1 would not be an increase."}},
			{growthRequest("t", 4, one), outcome{39, "Attempted to add 2 additional partition(s), but only 1 assignment(s) were specified."}},
			{growthRequest("t", 4, one, one, one), outcome{39, "Attempted to add 2 additional partition(s), but only 3 assignment(s) were specified."}},
			{growthRequest("t", 4, one, []int32{8}), outcome{39, manual + "broker 8, but no such broker is registered."}},
			{growthRequest("t", 4, one, []int32{7, 7}), outcome{39, manual + "the broker 7 more than once."}},
			{growthRequest("t", 4, []int32{}, one), outcome{39, manual + "an empty replica list."}},
			{growthRequest("t", 100_001), outcome{44, "Excessively large number of partitions per request."}},
		} {
			req := kmsg.NewPtrCreatePartitionsRequest()
			req.Topics = append(req.Topics, c.topic)
			x := ask[*kmsg.CreatePartitionsResponse](conn, req, v).Topics[0]
			if got := outcomeOf(x.ErrorCode, x.ErrorMessage); got != c.want || x.Topic != c.topic.Topic {
				t.Errorf("version %d, %+v:\n got  %+v\n want %+v", v, c.topic, got, c.want)
			}
		}
	}
	wantPartitions(t, ts, "t", 2)
	for _, v := range versions(0, 3) {
		have := 2 + 3*int32(v)
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.Topics, req.ValidateOnly = append(req.Topics, growthRequest("t", have+1)), true
		if x := ask[*kmsg.CreatePartitionsResponse](conn, req, v).Topics[0]; x.ErrorCode != 0 {
			t.Errorf("version %d, validate only: %d", v, x.ErrorCode)
		}
		wantPartitions(t, ts, "t", int(have))
		req.ValidateOnly = false
		if x := ask[*kmsg.CreatePartitionsResponse](conn, req, v).Topics[0]; x.ErrorCode != 0 || x.ErrorMessage != nil {
			t.Errorf("version %d: %d", v, x.ErrorCode)
		}
		req.Topics[0] = growthRequest("t", have+3, one, one)
		if x := ask[*kmsg.CreatePartitionsResponse](conn, req, v).Topics[0]; x.ErrorCode != 0 {
			t.Errorf("version %d, assigned: %d", v, x.ErrorCode)
		}
		wantPartitions(t, ts, "t", int(have+3))
	}
}

func wantPartitions(t *testing.T, ts *testServer, topic string, want int) {
	t.Helper()
	c, err := ts.store.RefreshCatalogue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(c.ByName(topic).Partitions); got != want {
		t.Errorf("%s has %d partitions, want %d", topic, got, want)
	}
}

func TestCreatePartitionsTwiceInOneRequest(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("dup", 1, nil)
	ts.createTopic("ok", 1, nil)
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.Topics = append(req.Topics, growthRequest("dup", 2), growthRequest("ok", 2), growthRequest("dup", 3))
	resp := ask[*kmsg.CreatePartitionsResponse](ts.dial(), req, 3)
	if len(resp.Topics) != 2 || resp.Topics[0].ErrorCode != codeInvalidRequest || resp.Topics[1].ErrorCode != codeNone {
		t.Errorf("results %+v", resp.Topics)
	}
	wantPartitions(t, ts, "dup", 1)
	wantPartitions(t, ts, "ok", 2)
}

// TestCreatePartitionsBoundsARequest: a small request cannot ask for more partitions than one topic may have.
func TestCreatePartitionsBoundsARequest(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("one", 1, nil)
	ts.createTopic("two", 1, nil)
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.ValidateOnly = true
	req.Topics = append(req.Topics, growthRequest("one", 60_000), growthRequest("two", 60_000))
	resp := ask[*kmsg.CreatePartitionsResponse](ts.dial(), req, 3)
	if resp.Topics[0].ErrorCode != codeNone || resp.Topics[1].ErrorCode != codePolicyViolation {
		t.Errorf("results %+v", resp.Topics)
	}
}
