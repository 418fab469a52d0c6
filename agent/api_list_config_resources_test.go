package agent

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestListConfigResources(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("b", 1, nil)
	ts.createTopic("a", 1, nil)
	conn := ts.dial()
	for _, c := range []struct {
		version int16
		types   []int8
		code    int16
		want    string
	}{
		{0, nil, 0, ""},
		{1, nil, 0, "4:7 2:a 2:b "},
		{1, []int8{2}, 0, "2:a 2:b "},
		{1, []int8{4}, 0, "4:7 "},
		{1, []int8{8, 16, 32}, 0, ""},
		{1, []int8{0}, 35, ""},
		{1, []int8{2, 3}, 35, ""},
	} {
		req := kmsg.NewPtrListConfigResourcesRequest()
		req.ResourceTypes = c.types
		resp := ask[*kmsg.ListConfigResourcesResponse](conn, req, c.version)
		got := ""
		for _, r := range resp.ConfigResources {
			// Version 0 is older than types, and all it lists are client metrics subscriptions.
			got += fmt.Sprintf("%d:%s ", r.Type, r.Name)
		}
		if resp.ErrorCode != c.code || got != c.want {
			t.Errorf("version %d, types %v: code %d, %q", c.version, c.types, resp.ErrorCode, got)
		}
	}
}
