package agent

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

func deletionRequest(name *string, id metadata.TopicID) kmsg.DeleteTopicsRequestTopic {
	t := kmsg.NewDeleteTopicsRequestTopic()
	t.Topic, t.TopicID = name, id
	return t
}

func TestDeleteTopicsByName(t *testing.T) {
	ts := newTestServer(t)
	conn := ts.dial()
	for _, v := range versions(1, 6) {
		kept := ts.createTopic(fmt.Sprintf("kept%d", v), 1, nil)
		gone := ts.createTopic(fmt.Sprintf("gone%d", v), 1, nil)
		names := []string{gone.Name, "nope", kept.Name, kept.Name, "bad name"}
		req := kmsg.NewPtrDeleteTopicsRequest()
		for _, name := range names {
			req.TopicNames = append(req.TopicNames, name)
			req.Topics = append(req.Topics, deletionRequest(&name, metadata.TopicID{}))
		}
		resp := ask[*kmsg.DeleteTopicsResponse](conn, req, v)
		got := map[string]int16{}
		for _, x := range resp.Topics {
			got[*x.Topic] = x.ErrorCode
			if v >= 6 && *x.Topic == gone.Name && metadata.TopicID(x.TopicID) != gone.ID {
				t.Errorf("id %x, want %s", x.TopicID, gone.ID)
			}
			if v >= 5 && *x.Topic == kept.Name && outcomeOf(0, x.ErrorMessage).text != "Duplicate topic name." {
				t.Errorf("version %d: no reason", v)
			}
		}
		want := map[string]int16{gone.Name: 0, "nope": 3, kept.Name: 42, "bad name": 3}
		if fmt.Sprint(got) != fmt.Sprint(want) || len(resp.Topics) != len(want) {
			t.Errorf("version %d: %d results %v, want %v", v, len(resp.Topics), got, want)
		}
	}
	wantTopics(t, ts, "kept1", "kept2", "kept3", "kept4", "kept5", "kept6")
}

func TestDeleteTopicsByID(t *testing.T) {
	ts := newTestServer(t)
	conn := ts.dial()
	one, two := ts.createTopic("one", 1, nil), ts.createTopic("two", 1, nil)
	none, unknown := metadata.TopicID{}, metadata.TopicID{1}
	for _, c := range []struct {
		asked []kmsg.DeleteTopicsRequestTopic
		want  []outcome
	}{
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(nil, unknown)}, []outcome{{100, "This server does not host this topic ID."}}},
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(ptr("one"), one.ID)}, []outcome{{42, "You may not specify both topic name and topic id."}}},
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(nil, none)}, []outcome{{42, "Neither topic name nor id were specified."}}},
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(nil, one.ID), deletionRequest(nil, one.ID)}, []outcome{{42, "Duplicate topic id."}}},
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(ptr("nope"), none)}, []outcome{{3, "This server does not host this topic-partition."}}},
		{
			[]kmsg.DeleteTopicsRequestTopic{deletionRequest(ptr("one"), none), deletionRequest(nil, one.ID)},
			[]outcome{
				{42, "The provided topic name maps to an ID that was already supplied."},
				{42, "The provided topic name maps to an ID that was already supplied."},
			},
		},
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(nil, one.ID), deletionRequest(ptr("two"), none)}, []outcome{{}, {}}},
		{[]kmsg.DeleteTopicsRequestTopic{deletionRequest(nil, one.ID)}, []outcome{{100, "This server does not host this topic ID."}}},
	} {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.Topics = c.asked
		resp := ask[*kmsg.DeleteTopicsResponse](conn, req, 6)
		var got []outcome
		for _, x := range resp.Topics {
			got = append(got, outcomeOf(x.ErrorCode, x.ErrorMessage))
			if x.ErrorCode == 0 && (x.Topic == nil || (*x.Topic == "one") != (metadata.TopicID(x.TopicID) == one.ID)) {
				t.Errorf("deleted: %+v", x)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%+v:\n got  %+v\n want %+v", c.asked, got, c.want)
		}
	}
	wantTopics(t, ts)
	if again := ts.createTopic("two", 1, nil); again.ID == two.ID {
		t.Error("a topic of the same name has the id of the deleted one")
	}
}

// TestDeleteTopicsForgetsRecords: a topic of the same name begins empty.
func TestDeleteTopicsForgetsRecords(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("again", 1, nil)
	ts.produce("again", 3)
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Topics = append(req.Topics, deletionRequest(ptr("again"), metadata.TopicID{}))
	ask[*kmsg.DeleteTopicsResponse](ts.dial(), req, 6)
	ts.createTopic("again", 1, nil)
	c := ts.client(kgo.DefaultProduceTopic("again"))
	r, err := c.ProduceSync(t.Context(), kgo.StringRecord("x")).First()
	if err != nil || r.Offset != 0 {
		t.Errorf("first record of the new topic at %d: %v", r.Offset, err)
	}
}
