package agent

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

func mustTopic(t *testing.T, ts *testServer, name string) *metadata.Topic {
	t.Helper()
	c, err := ts.store.RefreshCatalogue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.ByName(name) == nil {
		t.Fatalf("no topic %q", name)
	}
	return c.ByName(name)
}

// page writes a response as topic[first-last], topic!code, >cursor.
func page(resp *kmsg.DescribeTopicPartitionsResponse) string {
	s := ""
	for _, x := range resp.Topics {
		switch n := len(x.Partitions); {
		case x.ErrorCode != 0:
			s += fmt.Sprintf("%s!%d ", *x.Topic, x.ErrorCode)
		case n == 0:
			s += *x.Topic + "[] "
		default:
			s += fmt.Sprintf("%s[%d-%d] ", *x.Topic, x.Partitions[0].Partition, x.Partitions[n-1].Partition)
		}
	}
	if c := resp.NextCursor; c != nil {
		s += fmt.Sprintf(">%s:%d", c.Topic, c.Partition)
	}
	return s
}

func TestDescribeTopicPartitionsPages(t *testing.T) {
	ts := newTestServer(t)
	for name, partitions := range map[string]int32{"b": 2, "a": 3, "c": 1} {
		ts.createTopic(name, partitions, nil)
	}
	conn := ts.dial()
	for _, c := range []struct {
		limit  int32
		cursor string // topic:partition
		topics []string
		want   string
	}{
		{2000, "", nil, "a[0-2] b[0-1] c[0-0] "},
		{2000, "", []string{"c", "b", "b", "nope", "bad name"}, "b[0-1] bad name!17 c[0-0] nope!3 "},
		{3, "", nil, "a[0-2] >b:0"},
		{4, "", nil, "a[0-2] b[0-0] >b:1"},
		{4, "b:1", nil, "b[1-1] c[0-0] "},
		{0, "", []string{"a"}, "a[0-0] >a:1"},
		{-5, "a:1", []string{"a"}, "a[1-1] >a:2"},
		{5, "a:9", []string{"a", "c"}, "a[] c[0-0] "},
		{5, "bb:1", nil, "c[0-0] "},                      // a topic that was deleted meanwhile
		{5, "bb:1", []string{"bb", "c"}, "bb!3 c[0-0] "}, // the same, when it is asked for
		{5, "b:0", []string{"c"}, "c!42 "},
		{5, "c:-1", []string{"c"}, "c!42 "},
		{1, "", []string{"a", "nope"}, "a[0-0] >a:1"},
		{1, "", []string{"0", "a"}, "0!3 a[0-0] >a:1"},
	} {
		req := kmsg.NewPtrDescribeTopicPartitionsRequest()
		req.ResponsePartitionLimit = c.limit
		for _, name := range c.topics {
			req.Topics = append(req.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: name})
		}
		if c.cursor != "" {
			topic, partition, _ := strings.Cut(c.cursor, ":")
			n, err := strconv.ParseInt(partition, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			cursor := kmsg.NewDescribeTopicPartitionsRequestCursor()
			cursor.Topic, cursor.Partition = topic, int32(n)
			req.Cursor = &cursor
		}
		if got := page(ask[*kmsg.DescribeTopicPartitionsResponse](conn, req, 0)); got != c.want {
			t.Errorf("limit %d from %q of %q: got %q, want %q", c.limit, c.cursor, c.topics, got, c.want)
		}
	}
}

// TestDescribeTopicPartitionsBound: pages have at most 2000 partitions, whatever is asked for, and lead to everything.
func TestDescribeTopicPartitionsBound(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("big", 4500, nil)
	ts.createTopic("small", 1, nil)
	conn := ts.dial()
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	req.ResponsePartitionLimit = 1 << 30
	var got []string
	for {
		resp := ask[*kmsg.DescribeTopicPartitionsResponse](conn, req, 0)
		got = append(got, page(resp))
		if resp.NextCursor == nil {
			break
		}
		cursor := kmsg.NewDescribeTopicPartitionsRequestCursor()
		cursor.Topic, cursor.Partition = resp.NextCursor.Topic, resp.NextCursor.Partition
		req.Cursor = &cursor
	}
	if want := "[big[0-1999] >big:2000 big[2000-3999] >big:4000 big[4000-4499] small[0-0] ]"; fmt.Sprint(got) != want {
		t.Errorf("pages %v", got)
	}
}

func TestDescribeTopicPartitionsContent(t *testing.T) {
	ts := newTestServer(t)
	made := ts.createTopic("t", 1, nil)
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	req.ResponsePartitionLimit = 1
	x := ask[*kmsg.DescribeTopicPartitionsResponse](ts.dial(), req, 0).Topics[0]
	if metadata.TopicID(x.TopicID) != made.ID || x.IsInternal || x.AuthorizedOperations != 3576 {
		t.Errorf("topic %+v", x)
	}
	p := x.Partitions[0]
	if p.LeaderID != 7 || p.LeaderEpoch != 0 || fmt.Sprint(p.Replicas, p.ISR) != "[7] [7]" || p.EligibleLeaderReplicas == nil ||
		p.LastKnownELR == nil || len(p.OfflineReplicas) > 0 {
		t.Errorf("partition %+v", p)
	}
}
