package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// newTopicRequest asks for a topic; configs are names and values.
func newTopicRequest(name string, partitions int32, replicas int16, configs ...string) kmsg.CreateTopicsRequestTopic {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, replicas
	for i := 0; i < len(configs); i += 2 {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = configs[i], &configs[i+1]
		t.Configs = append(t.Configs, c)
	}
	return t
}

// assigned gives each partition its replicas, in the order given.
func assigned(t kmsg.CreateTopicsRequestTopic, partitions []int32, replicas ...[]int32) kmsg.CreateTopicsRequestTopic {
	for i, p := range partitions {
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Partition, a.Replicas = p, replicas[i]
		t.ReplicaAssignment = append(t.ReplicaAssignment, a)
	}
	return t
}

func createAll(c *rawConn, version int16, validateOnly bool, topics ...kmsg.CreateTopicsRequestTopic) *kmsg.CreateTopicsResponse {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.ValidateOnly, req.Topics = 10000, validateOnly, topics
	return ask[*kmsg.CreateTopicsResponse](c, req, version)
}

func TestCreateTopicsVersions(t *testing.T) {
	ts := newTestServer(t)
	conn := ts.dial()
	for _, v := range versions(2, 7) {
		name := fmt.Sprintf("v%d", v)
		resp := createAll(conn, v, false, newTopicRequest(name, 2, 3, "retention.ms", " 5 ", "cleanup.policy", "compact"))
		x := resp.Topics[0]
		if x.Topic != name || x.ErrorCode != codeNone || x.ErrorMessage != nil {
			t.Fatalf("version %d: %+v", v, x)
		}
		c, err := ts.store.Catalogue(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		made := c.ByName(name)
		if made == nil || len(made.Partitions) != 2 || made.ReplicationFactor != 3 {
			t.Fatalf("version %d made %+v", v, made)
		}
		if v >= 7 && metadata.TopicID(x.TopicID) != made.ID {
			t.Errorf("topic id %x, want %s", x.TopicID, made.ID)
		}
		if v < createTopicsDescribes {
			continue
		}
		if x.NumPartitions != 2 || x.ReplicationFactor != 3 || len(x.Configs) != len(topicconf.Defs()) {
			t.Errorf("version %d describes %d partitions, %d replicas, %d configs", v, x.NumPartitions, x.ReplicationFactor, len(x.Configs))
		}
		for _, c := range x.Configs {
			want, source := topicconf.All()[c.Name].Default, int8(kmsg.ConfigSourceDefaultConfig)
			switch c.Name {
			case "retention.ms":
				want, source = "5", int8(kmsg.ConfigSourceDynamicTopicConfig)
			case "cleanup.policy":
				want, source = "compact", int8(kmsg.ConfigSourceDynamicTopicConfig)
			}
			if *c.Value != want || c.Source != source || c.ReadOnly || c.IsSensitive {
				t.Errorf("version %d: config %s is %q from %d", v, c.Name, *c.Value, c.Source)
			}
		}
	}
}

func TestCreateTopicsDefaults(t *testing.T) {
	ts := newTestServer(t, withConfig(func(c *Config) { c.DefaultPartitions = 4 }))
	x := createAll(ts.dial(), 7, false, newTopicRequest("defaults", -1, -1)).Topics[0]
	if x.ErrorCode != codeNone || x.NumPartitions != 4 || x.ReplicationFactor != 1 {
		t.Errorf("defaults: %+v", x)
	}
}

func TestCreateTopicsRefusals(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("a.b", 1, nil)
	one := []int32{7}
	const manual = "The manual partition assignment includes "
	null := newTopicRequest("null", 1, 1)
	null.Configs = append(null.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: "retention.ms"})
	long := strings.Repeat("x", 250)
	for _, c := range []struct {
		topic kmsg.CreateTopicsRequestTopic
		want  outcome
	}{
		{newTopicRequest("a.b", 1, 1), outcome{36, "Topic 'a.b' already exists."}},
		{newTopicRequest("a_b", 1, 1), outcome{17, "Topic 'a_b' collides with an existing topic whose name differs only in '.' and '_'."}},
		{newTopicRequest("", 1, 1), outcome{17, "Topic name is invalid: the empty string is not allowed"}},
		{newTopicRequest("..", 1, 1), outcome{17, "Topic name is invalid: '..' is not allowed"}},
		{newTopicRequest("bad name", 1, 1), outcome{17, "Topic name is invalid: 'bad name' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"}},
		{newTopicRequest(long, 1, 1), outcome{17, "Topic name is invalid: the length of '" + long + "' is longer than the max allowed length 249"}},
		{newTopicRequest("__cluster_metadata", 1, 1), outcome{42, "Creation of internal topic __cluster_metadata is prohibited."}},
		{newTopicRequest("x", 0, 1), outcome{37, "Number of partitions was set to an invalid non-positive value."}},
		{newTopicRequest("x", -2, 1), outcome{37, "Number of partitions was set to an invalid non-positive value."}},
		{newTopicRequest("x", 1, 0), outcome{38, "Replication factor must be larger than 0, or -1 to use the default value."}},
		{newTopicRequest("x", 0, -2), outcome{38, "Replication factor must be larger than 0, or -1 to use the default value."}},
		{newTopicRequest("x", 100_001, 1), outcome{44, "Excessively large number of partitions per request."}},
		{newTopicRequest("x", 1, 1, "foo", "1"), outcome{40, "Unknown topic config name: foo"}},
		{newTopicRequest("x", 1, 1, "retention.ms", "x"), outcome{40, "Invalid value x for configuration retention.ms: Not a number of type LONG"}},
		{null, outcome{40, "Null value not supported for topic configs: retention.ms"}},
		{assigned(newTopicRequest("x", 1, -1), []int32{0}, one), outcome{42, "A manual partition assignment was specified, but numPartitions was not set to -1."}},
		{assigned(newTopicRequest("x", -1, 1), []int32{0}, one), outcome{42, "A manual partition assignment was specified, but replication factor was not set to -1."}},
		{assigned(newTopicRequest("x", -1, -1), []int32{0}, []int32{8}), outcome{39, manual + "broker 8, but no such broker is registered."}},
		{assigned(newTopicRequest("x", -1, -1), []int32{0}, []int32{7, 7}), outcome{39, manual + "the broker 7 more than once."}},
		{assigned(newTopicRequest("x", -1, -1), []int32{0}, nil), outcome{39, manual + "an empty replica list."}},
		{assigned(newTopicRequest("x", -1, -1), []int32{1}, one), outcome{39, "partitions should be a consecutive 0-based integer sequence"}},
		{assigned(newTopicRequest("x", -1, -1), []int32{0, 0}, one, one), outcome{39, "Found multiple manual partition assignments for partition 0"}},
	} {
		for _, v := range []int16{4, 7} { // not flexible, flexible
			conn := ts.dial()
			// A good topic beside it is created, if only by way of trial.
			resp := createAll(conn, v, v == 4, newTopicRequest("good", 1, 1), c.topic)
			bad := resp.Topics[1]
			if got := outcomeOf(bad.ErrorCode, bad.ErrorMessage); got != c.want || bad.Topic != c.topic.Topic {
				t.Errorf("%q:\n got  %+v\n want %+v", c.topic.Topic, got, c.want)
			}
			if v == 7 && (bad.NumPartitions != -1 || bad.ReplicationFactor != -1 || bad.Configs == nil || len(bad.Configs) > 0 ||
				bad.TopicID != [16]byte{}) {
				t.Errorf("%q: refused, but described: %+v", c.topic.Topic, bad)
			}
			if good := resp.Topics[0]; good.ErrorCode != codeNone {
				t.Errorf("beside %q: %+v", c.topic.Topic, outcomeOf(good.ErrorCode, good.ErrorMessage))
			}
			if v == 7 {
				del := kmsg.NewPtrDeleteTopicsRequest()
				del.Topics = append(del.Topics, deletionRequest(ptr("good"), metadata.TopicID{}))
				ask[*kmsg.DeleteTopicsResponse](conn, del, 6)
			}
		}
	}
	wantTopics(t, ts, "a.b")
}

// wantTopics checks which topics there are.
func wantTopics(t *testing.T, ts *testServer, names ...string) {
	t.Helper()
	c, err := ts.store.RefreshCatalogue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range c.Topics() {
		got = append(got, x.Name)
	}
	if !slices.Equal(got, names) {
		t.Errorf("topics %q, want %q", got, names)
	}
}

func TestCreateTopicsTwiceInOneRequest(t *testing.T) {
	ts := newTestServer(t)
	resp := createAll(ts.dial(), 7, false, newTopicRequest("dup", 1, 1), newTopicRequest("ok", 1, 1), newTopicRequest("dup", 2, 1),
		newTopicRequest("c.d", 1, 1), newTopicRequest("c_d", 1, 1))
	got := map[string]int16{}
	for _, x := range resp.Topics {
		got[x.Topic] = x.ErrorCode
	}
	if want := "map[c.d:0 c_d:17 dup:42 ok:0]"; fmt.Sprint(got) != want || len(resp.Topics) != 4 {
		t.Errorf("%d results %v, want %s", len(resp.Topics), got, want)
	}
	wantTopics(t, ts, "c.d", "ok")
}

func TestCreateTopicsTooManyPartitions(t *testing.T) {
	ts := newTestServer(t)
	resp := createAll(ts.dial(), 7, false, newTopicRequest("one", 60_000, 1), newTopicRequest("two", 60_000, 1))
	for _, x := range resp.Topics {
		if x.ErrorCode != codePolicyViolation {
			t.Errorf("%s: %d", x.Topic, x.ErrorCode)
		}
	}
	wantTopics(t, ts)
}

func TestCreateTopicsValidateOnly(t *testing.T) {
	ts := newTestServer(t)
	x := createAll(ts.dial(), 7, true, newTopicRequest("trial", 2, 5, "retention.ms", "1")).Topics[0]
	if x.ErrorCode != codeNone || x.NumPartitions != 2 || x.ReplicationFactor != 5 || x.TopicID != [16]byte{} || len(x.Configs) == 0 {
		t.Errorf("validated: %+v", x)
	}
	wantTopics(t, ts)
}

func TestCreateTopicsAssigned(t *testing.T) {
	ts := newTestServer(t)
	x := createAll(ts.dial(), 7, false, assigned(newTopicRequest("m", -1, -1), []int32{1, 0}, []int32{7}, []int32{7})).Topics[0]
	if x.ErrorCode != codeNone || x.NumPartitions != 2 || x.ReplicationFactor != 1 {
		t.Errorf("assigned: %+v", x)
	}
}
