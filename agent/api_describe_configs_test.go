package agent

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata/topicconf"
)

func describeRequest(typ kmsg.ConfigResourceType, name string, keys ...string) *kmsg.DescribeConfigsRequest {
	req := kmsg.NewPtrDescribeConfigsRequest()
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.ConfigNames = typ, name, keys
	req.Resources = append(req.Resources, r)
	return req
}

// shown writes a config with its synonyms.
func shown(c kmsg.DescribeConfigsResponseResourceConfig) string {
	value := func(v *string) string {
		if v == nil {
			return "<null>"
		}
		return strconv.Quote(*v)
	}
	s := fmt.Sprintf("%s=%s %v", c.Name, value(c.Value), c.Source)
	if c.ReadOnly {
		s += " read-only"
	}
	for _, y := range c.ConfigSynonyms {
		s += fmt.Sprintf(" [%s=%s %v]", y.Name, value(y.Value), y.Source)
	}
	return s
}

func TestDescribeConfigsOfATopic(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, map[string]string{"retention.ms": " +5 ", "cleanup.policy": "compact, delete", "flush.ms": "7"})
	conn := ts.dial()
	for _, v := range versions(1, 4) {
		for _, more := range []bool{false, true} {
			req := describeRequest(kmsg.ConfigResourceTypeTopic, "t")
			req.IncludeSynonyms, req.IncludeDocumentation = more, more
			r := ask[*kmsg.DescribeConfigsResponse](conn, req, v).Resources[0]
			if r.ErrorCode != 0 || r.ResourceType != kmsg.ConfigResourceTypeTopic || r.ResourceName != "t" {
				t.Fatalf("version %d: %+v", v, r)
			}
			got := map[string]kmsg.DescribeConfigsResponseResourceConfig{}
			var names []string
			for _, c := range r.Configs {
				got[c.Name] = c
				names = append(names, c.Name)
				if v >= 3 && (c.Documentation != nil) != more {
					t.Errorf("version %d: documentation of %s: %v", v, c.Name, c.Documentation)
				}
			}
			if want := slices.Sorted(maps.Keys(topicconf.All())); !slices.Equal(names, want) {
				t.Fatalf("version %d: configs %q", v, names)
			}
			want := map[string]string{
				"retention.ms":   `retention.ms="5" DYNAMIC_TOPIC_CONFIG`,
				"cleanup.policy": `cleanup.policy="compact,delete" DYNAMIC_TOPIC_CONFIG`,
				"flush.ms":       `flush.ms="7" DYNAMIC_TOPIC_CONFIG`,
				"segment.ms":     `segment.ms="604800000" DEFAULT_CONFIG`,
				"preallocate":    `preallocate="false" DEFAULT_CONFIG`,
			}
			if more {
				want["retention.ms"] += ` [retention.ms="5" DYNAMIC_TOPIC_CONFIG]`
				want["cleanup.policy"] += ` [cleanup.policy="compact,delete" DYNAMIC_TOPIC_CONFIG] [log.cleanup.policy="delete" DEFAULT_CONFIG]`
				want["flush.ms"] += ` [flush.ms="7" DYNAMIC_TOPIC_CONFIG]`
				want["preallocate"] += ` [log.preallocate="false" DEFAULT_CONFIG]`
			}
			for name, want := range want {
				if s := shown(got[name]); s != want {
					t.Errorf("version %d:\n got  %s\n want %s", v, s, want)
				}
			}
			if typ := got["cleanup.policy"].ConfigType; v >= 3 && typ != kmsg.ConfigTypeList {
				t.Errorf("version %d: type of cleanup.policy is %v", v, typ)
			}
		}
	}
}

// TestDescribeConfigsNeverNull: Streams and MirrorMaker fail on a topic config without a value.
func TestDescribeConfigsNeverNull(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	r := ask[*kmsg.DescribeConfigsResponse](ts.dial(), describeRequest(kmsg.ConfigResourceTypeTopic, "t"), 4).Resources[0]
	for _, c := range r.Configs {
		if c.Value == nil || *c.Value != topicconf.All()[c.Name].Default || c.ConfigType == kmsg.ConfigTypeUnknown {
			t.Errorf("%s of type %v", shown(c), c.ConfigType)
		}
	}
}

func TestDescribeConfigsKeys(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	conn := ts.dial()
	names := func(req *kmsg.DescribeConfigsRequest) []string {
		var all []string
		for _, c := range ask[*kmsg.DescribeConfigsResponse](conn, req, 4).Resources[0].Configs {
			all = append(all, c.Name)
		}
		return all
	}
	if got := names(describeRequest(kmsg.ConfigResourceTypeTopic, "t", "segment.ms", "nope", "retention.ms")); !slices.Equal(got, []string{"retention.ms", "segment.ms"}) {
		t.Errorf("asked for two: %q", got)
	}
	req := describeRequest(kmsg.ConfigResourceTypeTopic, "t")
	req.Resources[0].ConfigNames = []string{}
	if got := names(req); len(got) != len(topicconf.Defs()) {
		t.Errorf("asked for an empty list: %d configs", len(got))
	}
	if got := names(describeRequest(kmsg.ConfigResourceTypeBroker, "7", "num.partitions")); !slices.Equal(got, []string{"num.partitions"}) {
		t.Errorf("asked for one of a broker: %q", got)
	}
}

func TestDescribeConfigsOfABroker(t *testing.T) {
	ts := newTestServer(t, withConfig(func(c *Config) {
		c.DefaultPartitions, c.Rack, c.AdvertisedHost, c.AdvertisedPort = 12, "z1", "kafka.example", 19092
	}))
	req := describeRequest(kmsg.ConfigResourceTypeBroker, "7")
	req.IncludeSynonyms, req.IncludeDocumentation = true, true
	r := ask[*kmsg.DescribeConfigsResponse](ts.dial(), req, 4).Resources[0]
	got := map[string]string{}
	var names []string
	for _, c := range r.Configs {
		got[c.Name] = shown(c)
		names = append(names, c.Name)
		_, dynamic := findGroupConfig(c.Name)
		if c.ReadOnly == dynamic || *c.Documentation == "" || c.ConfigType == kmsg.ConfigTypeUnknown {
			t.Errorf("%s of type %v", shown(c), c.ConfigType)
		}
	}
	if r.ErrorCode != 0 || !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("error %d, names %q", r.ErrorCode, names)
	}
	const d, s = "DEFAULT_CONFIG", "STATIC_BROKER_CONFIG"
	for name, want := range map[string]string{
		"num.partitions":             `"12" ` + s + ` read-only [num.partitions="12" ` + s + `] [num.partitions="1" ` + d + `]`,
		"broker.id":                  `"7" ` + s + ` read-only [broker.id="7" ` + s + `] [broker.id="-1" ` + d + `]`,
		"node.id":                    `"7" ` + s + ` read-only [node.id="7" ` + s + `]`,
		"broker.rack":                `"z1" ` + s + ` read-only [broker.rack="z1" ` + s + `]`,
		"advertised.listeners":       `"PLAINTEXT://kafka.example:19092" ` + s + ` read-only [advertised.listeners="PLAINTEXT://kafka.example:19092" ` + s + `]`,
		"listeners":                  `"PLAINTEXT://` + ts.addr + `" ` + s + ` read-only [listeners="PLAINTEXT://` + ts.addr + `" ` + s + `]`,
		"default.replication.factor": `"1" ` + d + ` read-only [default.replication.factor="1" ` + d + `]`,
		"auto.create.topics.enable":  `"true" ` + d + ` read-only [auto.create.topics.enable="true" ` + d + `]`,
		"delete.topic.enable":        `"true" ` + d + ` read-only [delete.topic.enable="true" ` + d + `]`,
		"message.max.bytes":          `"1048588" ` + d + ` read-only [message.max.bytes="1048588" ` + d + `]`,
		"log.cleanup.policy":         `"delete" ` + d + ` read-only [log.cleanup.policy="delete" ` + d + `]`,
		"log.retention.ms":           `<null> ` + d + ` read-only`,
		"log.retention.hours":        `"168" ` + d + ` read-only [log.retention.hours="168" ` + d + `]`,
		"offsets.retention.minutes":  `"10080" ` + d + ` read-only [offsets.retention.minutes="10080" ` + d + `]`,
	} {
		if got[name] != name+"="+want {
			t.Errorf("\n got  %s\n want %s=%s", got[name], name, want)
		}
	}
	for _, name := range []string{"inter.broker.protocol.version", "log.retention.bytes", "log.retention.minutes", "log.dirs"} {
		if got[name] == "" {
			t.Errorf("no %s", name)
		}
	}
	for _, def := range topicconf.Defs() {
		if def.Broker != "" && got[def.Broker] == "" {
			t.Errorf("no %s, the default of %s", def.Broker, def.Name)
		}
	}
}

func TestDescribeConfigsRefusals(t *testing.T) {
	ts := newTestServer(t)
	conn := ts.dial()
	for _, c := range []struct {
		typ  kmsg.ConfigResourceType
		name string
		want outcome
	}{
		{2, "nope", outcome{3, "This server does not host this topic-partition."}},
		{2, "", outcome{17, "Topic name is invalid: the empty string is not allowed"}},
		{2, "bad name", outcome{17, "Topic name is invalid: 'bad name' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"}},
		{4, "8", outcome{42, "Unexpected broker id, expected 7 or empty string, but received 8"}},
		{4, "7x", outcome{42, "Broker id must be an integer, but it is: 7x"}},
		{4, "", outcome{}},
		{8, "7", outcome{42, "Skein has no loggers to configure over the Kafka protocol."}},
		{16, "s", outcome{42, "Skein does not collect client metrics (KIP-714)."}},
		{32, "g", outcome{42, "This version of Skein has no group configs."}},
		{3, "x", outcome{42, "Unknown resource type 3"}},
	} {
		for _, v := range versions(1, 4) {
			r := ask[*kmsg.DescribeConfigsResponse](conn, describeRequest(c.typ, c.name), v).Resources[0]
			if got := outcomeOf(r.ErrorCode, r.ErrorMessage); got != c.want || len(r.Configs) > 0 || r.ResourceName != c.name {
				t.Errorf("version %d, %v %q: %+v", v, c.typ, c.name, r)
			}
		}
	}
}
