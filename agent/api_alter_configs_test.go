package agent

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// alterRequest replaces what is set on a topic; configs are names and values.
func alterRequest(topic string, configs ...string) *kmsg.AlterConfigsRequest {
	req := kmsg.NewPtrAlterConfigsRequest()
	r := kmsg.NewAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	for i := 0; i < len(configs); i += 2 {
		r.Configs = append(r.Configs, kmsg.AlterConfigsRequestResourceConfig{Name: configs[i], Value: &configs[i+1]})
	}
	req.Resources = append(req.Resources, r)
	return req
}

// wantConfigs checks what is set on a topic.
func wantConfigs(t *testing.T, ts *testServer, topic, want string) {
	t.Helper()
	if got := fmt.Sprint(mustTopic(t, ts, topic).Configs); got != "map["+want+"]" {
		t.Errorf("set on %s: %s, want %s", topic, got, want)
	}
}

func TestAlterConfigsReplaces(t *testing.T) {
	ts := newTestServer(t)
	conn := ts.dial()
	for _, v := range versions(0, 2) {
		topic := fmt.Sprintf("t%d", v)
		ts.createTopic(topic, 1, map[string]string{"retention.ms": "1", "segment.ms": "1"})
		req := alterRequest(topic, "retention.ms", "2", "flush.ms", "3")
		req.ValidateOnly = true
		for _, want := range []string{"retention.ms:1 segment.ms:1", "flush.ms:3 retention.ms:2"} {
			r := ask[*kmsg.AlterConfigsResponse](conn, req, v).Resources[0]
			if r.ErrorCode != 0 || r.ErrorMessage != nil || r.ResourceName != topic {
				t.Errorf("version %d: %+v", v, r)
			}
			wantConfigs(t, ts, topic, want)
			req.ValidateOnly = false
		}
		if r := ask[*kmsg.AlterConfigsResponse](conn, alterRequest(topic), v).Resources[0]; r.ErrorCode != 0 {
			t.Errorf("version %d: %+v", v, r)
		}
		wantConfigs(t, ts, topic, "")
	}
}

func TestAlterConfigsRefusals(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, map[string]string{"retention.ms": "1"})
	null := alterRequest("t")
	null.Resources[0].Configs = append(null.Resources[0].Configs, kmsg.AlterConfigsRequestResourceConfig{Name: "retention.ms"})
	typed := func(typ kmsg.ConfigResourceType, name string) *kmsg.AlterConfigsRequest {
		req := alterRequest(name)
		req.Resources[0].ResourceType = typ
		return req
	}
	for _, c := range []struct {
		req  *kmsg.AlterConfigsRequest
		want outcome
	}{
		{alterRequest("nope", "retention.ms", "1"), outcome{3, "The topic 'nope' does not exist."}},
		{alterRequest("", "retention.ms", "1"), outcome{42, "Default topic resources are not allowed."}},
		{alterRequest("bad name"), outcome{17, "Topic name is invalid: 'bad name' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"}},
		{alterRequest("t", "foo", "1"), outcome{40, "Unknown topic config name: foo"}},
		{alterRequest("t", "retention.ms", "x"), outcome{40, "Invalid value x for configuration retention.ms: Not a number of type LONG"}},
		{alterRequest("t", "retention.ms", "2", "retention.ms", "3"), outcome{42, "Error due to duplicate config keys"}},
		{null, outcome{42, "Null value not supported for : retention.ms"}},
		{typed(4, ""), outcome{0, ""}},
		{typed(4, "7"), outcome{0, ""}},
		{typed(4, "8"), outcome{42, "Unexpected broker id, expected 7, but received 8"}},
		{typed(4, "y"), outcome{42, "Node id must be an integer, but it is: y"}},
		{typed(8, "7"), outcome{42, "Skein has no loggers to configure over the Kafka protocol."}},
		{typed(16, "s"), outcome{42, "Skein does not collect client metrics (KIP-714)."}},
		{typed(32, "g"), outcome{42, "This version of Skein has no group configs."}},
		{typed(3, "x"), outcome{42, "Unknown resource type 3"}},
	} {
		for _, validateOnly := range []bool{false, true} {
			c.req.ValidateOnly = validateOnly
			r := ask[*kmsg.AlterConfigsResponse](ts.dial(), c.req, 2).Resources[0]
			if got := outcomeOf(r.ErrorCode, r.ErrorMessage); got != c.want {
				t.Errorf("%+v, validate only %t:\n got  %+v\n want %+v", c.req.Resources[0], validateOnly, got, c.want)
			}
		}
	}
	wantConfigs(t, ts, "t", "retention.ms:1")
}

func TestAlterConfigsTwiceInOneRequest(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	ts.createTopic("u", 1, nil)
	req := alterRequest("t", "retention.ms", "1")
	req.Resources = append(req.Resources, alterRequest("u", "retention.ms", "2").Resources[0], req.Resources[0])
	got := ""
	for _, r := range ask[*kmsg.AlterConfigsResponse](ts.dial(), req, 2).Resources {
		got += fmt.Sprintf("%s %d;", r.ResourceName, r.ErrorCode)
	}
	if got != "t 42;u 0;t 42;" {
		t.Errorf("results %s", got)
	}
	wantConfigs(t, ts, "t", "")
	wantConfigs(t, ts, "u", "retention.ms:2")
}
