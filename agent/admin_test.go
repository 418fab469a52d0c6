package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/metadata/topicconf"
)

// The codes and texts that the tests of the admin APIs expect are those that Apache Kafka 4.2.0 gave to the same requests,
// but for what docs/PROTOCOL.md lists as a deviation.

func ptr[T any](v T) *T { return &v }

// outcome is a code and a text, to compare.
type outcome struct {
	code int16
	text string
}

func outcomeOf(code int16, text *string) outcome {
	if text == nil {
		return outcome{code: code}
	}
	return outcome{code, *text}
}

// versions gives lo to hi.
func versions(lo, hi int16) []int16 {
	var all []int16
	for v := lo; v <= hi; v++ {
		all = append(all, v)
	}
	return all
}

// produce writes n records of one byte each to partition 0, one batch each, through this server whoever leads.
func (ts *testServer) produce(topic string, n int) {
	ts.t.Helper()
	here := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, ts.Addr().String())
	}
	c := ts.client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.Dialer(here))
	for i := range n {
		if err := c.ProduceSync(ts.t.Context(), &kgo.Record{Value: []byte{byte(i)}, Key: []byte("k")}).FirstErr(); err != nil {
			ts.t.Fatal(err)
		}
	}
}

// failingAdmin is a store whose database is gone.
type failingAdmin struct {
	Store
	err error
}

func (f failingAdmin) RefreshCatalogue(context.Context) (*metadata.Catalogue, error) {
	return nil, f.err
}
func (f failingAdmin) CreateTopics(context.Context, []metadata.NewTopic, bool) ([]*metadata.Topic, []error, error) {
	return nil, nil, f.err
}
func (f failingAdmin) AlterConfigs(context.Context, []metadata.ConfigChange) ([]error, error) {
	return nil, f.err
}
func (f failingAdmin) ClusterID(context.Context) (string, error) { return "", f.err }

// TestAdminWithoutDatabase: every admin API answers with the retriable error where it has a field for one.
func TestAdminWithoutDatabase(t *testing.T) {
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		d.Store = failingAdmin{Store: d.Store, err: fmt.Errorf("no route: %w", metadata.ErrUnavailable)}
	})
	conn := ts.dial()
	want := codeRequestTimedOut
	check := func(api string, got int16) {
		t.Helper()
		if got != want {
			t.Errorf("%s: code %d, want %d", api, got, want)
		}
	}
	create := kmsg.NewPtrCreateTopicsRequest()
	create.Topics = append(create.Topics, newTopicRequest("a", 1, 1))
	check("CreateTopics", ask[*kmsg.CreateTopicsResponse](conn, create, 7).Topics[0].ErrorCode)
	del := kmsg.NewPtrDeleteTopicsRequest()
	del.Topics = append(del.Topics, deletionRequest(ptr("a"), metadata.TopicID{}))
	check("DeleteTopics", ask[*kmsg.DeleteTopicsResponse](conn, del, 6).Topics[0].ErrorCode)
	grow := kmsg.NewPtrCreatePartitionsRequest()
	grow.Topics = append(grow.Topics, growthRequest("a", 2))
	check("CreatePartitions", ask[*kmsg.CreatePartitionsResponse](conn, grow, 3).Topics[0].ErrorCode)
	trim := trimRequest("a", 1)
	check("DeleteRecords", ask[*kmsg.DeleteRecordsResponse](conn, trim, 2).Topics[0].Partitions[0].ErrorCode)
	describe := describeRequest(kmsg.ConfigResourceTypeTopic, "a")
	check("DescribeConfigs", ask[*kmsg.DescribeConfigsResponse](conn, describe, 4).Resources[0].ErrorCode)
	alter := alterRequest("a", "retention.ms", "1")
	check("AlterConfigs", ask[*kmsg.AlterConfigsResponse](conn, alter, 2).Resources[0].ErrorCode)
	alter.ValidateOnly = true
	check("AlterConfigs, validate only", ask[*kmsg.AlterConfigsResponse](conn, alter, 2).Resources[0].ErrorCode)
	check("ListConfigResources", ask[*kmsg.ListConfigResourcesResponse](conn, kmsg.NewPtrListConfigResourcesRequest(), 1).ErrorCode)
	check("DescribeCluster", ask[*kmsg.DescribeClusterResponse](conn, kmsg.NewPtrDescribeClusterRequest(), 2).ErrorCode)
	parts := kmsg.NewPtrDescribeTopicPartitionsRequest()
	parts.Topics = append(parts.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: "a"})
	check("DescribeTopicPartitions", ask[*kmsg.DescribeTopicPartitionsResponse](conn, parts, 0).Topics[0].ErrorCode)
	dirs := ask[*kmsg.DescribeLogDirsResponse](conn, kmsg.NewPtrDescribeLogDirsRequest(), 4)
	check("DescribeLogDirs", dirs.Dirs[0].ErrorCode)
	// A list of all topics has nowhere to say it: an empty one would be believed.
	parts.Topics = nil
	parts.SetVersion(0)
	conn.send(parts, 1)
	conn.wantClosed()
}

// TestAdminWithKadm goes through the life of a topic with a client library.
func TestAdminWithKadm(t *testing.T) {
	ts := newTestServer(t, withConfig(func(c *Config) { c.DefaultPartitions = 3 }))
	ctx := t.Context()
	adm := kadm.NewClient(ts.client())
	made, err := adm.CreateTopic(ctx, -1, -1, map[string]*string{"retention.ms": ptr("1000")}, "life")
	if err != nil || made.NumPartitions != 3 || made.ReplicationFactor != 1 || *made.Configs["retention.ms"].Value != "1000" {
		t.Fatalf("created %+v: %v", made, err)
	}
	if _, err := adm.CreateTopic(ctx, 1, 1, nil, "life"); !strings.Contains(fmt.Sprint(err), "TOPIC_ALREADY_EXISTS") {
		t.Errorf("created again: %v", err)
	}
	if _, err := adm.UpdatePartitions(ctx, 5, "life"); err != nil {
		t.Fatal(err)
	}
	details, err := adm.ListTopics(ctx, "life")
	if err != nil || len(details["life"].Partitions) != 5 || details["life"].ID != made.ID {
		t.Errorf("listed %+v: %v", details["life"], err)
	}
	altered, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "max.message.bytes", Value: ptr("2000")},
		{Op: kadm.DeleteConfig, Name: "retention.ms"},
		{Op: kadm.AppendConfig, Name: "cleanup.policy", Value: ptr("compact")},
	}, "life")
	if err = errors.Join(err, altered[0].Err); err != nil {
		t.Fatal(err)
	}
	configs, err := adm.DescribeTopicConfigs(ctx, "life")
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]string{}
	for _, c := range configs[0].Configs {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
			set[c.Key] = c.MaybeValue()
		}
	}
	if fmt.Sprint(set) != "map[cleanup.policy:delete,compact max.message.bytes:2000]" {
		t.Errorf("set: %v", set)
	}
	ts.produce("life", 4)
	trimmed, err := adm.DeleteRecords(ctx, kadm.OffsetsFromRecords(kgo.Record{Topic: "life", Offset: 2}))
	if err != nil {
		t.Fatal(err)
	}
	start, err := adm.ListStartOffsets(ctx, "life")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := start.Lookup("life", 0); o.Offset != 3 || o.Err != nil {
		t.Errorf("log start %+v after %+v", o, trimmed)
	}
	dirs, err := adm.DescribeAllLogDirs(ctx, nil)
	if err != nil || dirs[7]["/skein"].Err != nil || dirs[7]["/skein"].Size() == 0 {
		t.Errorf("log dirs %+v: %v", dirs, err)
	}
	gone, err := adm.DeleteTopic(ctx, "life")
	if err != nil || gone.ID != made.ID {
		t.Errorf("deleted %+v: %v", gone, err)
	}
	if left, err := adm.ListTopics(ctx); err != nil || len(left) != 0 {
		t.Errorf("left %v: %v", left, err)
	}
}

// twoAgents gives two servers on one database, each with its own caches. No wake-ups reach them: their stores are not run.
func twoAgents(t *testing.T) (one, other *testServer) {
	t.Helper()
	driver, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
			t.Errorf("close database: %v", err)
		}
	})
	agent := func() *testServer {
		store := metadata.NewStore(metadata.Options{Driver: driver})
		ts := newTestServer(t, func(_ *Config, d *Deps) { d.Store, d.Producer = store, directProducer{store: store} })
		ts.store = store
		return ts
	}
	return agent(), agent()
}

// TestAdminIsSeenByOtherAgents: what one agent changes, another shows at once, though it has a catalogue in memory.
func TestAdminIsSeenByOtherAgents(t *testing.T) {
	one, other := twoAgents(t)
	one.createTopic("seen", 1, nil)
	conn := other.dial()
	describe := describeRequest(kmsg.ConfigResourceTypeTopic, "seen", "retention.ms")
	if v := ask[*kmsg.DescribeConfigsResponse](conn, describe, 4).Resources[0].Configs[0].Value; *v != "604800000" {
		t.Fatalf("retention.ms is %s", *v)
	}
	alter := alterRequest("seen", "retention.ms", "5")
	if code := ask[*kmsg.AlterConfigsResponse](one.dial(), alter, 2).Resources[0].ErrorCode; code != 0 {
		t.Fatalf("alter: %d", code)
	}
	if v := ask[*kmsg.DescribeConfigsResponse](conn, describe, 4).Resources[0].Configs[0].Value; *v != "5" {
		t.Errorf("retention.ms is %s on the other agent", *v)
	}
	parts := kmsg.NewPtrDescribeTopicPartitionsRequest()
	parts.ResponsePartitionLimit = 10
	one.createTopic("new", 1, nil)
	names := func() []string {
		var all []string
		for _, x := range ask[*kmsg.DescribeTopicPartitionsResponse](conn, parts, 0).Topics {
			all = append(all, *x.Topic)
		}
		return all
	}
	if got := names(); !slices.Equal(got, []string{"new", "seen"}) {
		t.Errorf("topics on the other agent: %q", got)
	}
}

// countedStore counts what the database is asked for.
type countedStore struct {
	Store
	refreshes atomic.Int64
}

func (c *countedStore) RefreshCatalogue(ctx context.Context) (*metadata.Catalogue, error) {
	c.refreshes.Add(1)
	return c.Store.RefreshCatalogue(ctx)
}

// TestAdminBoundsARequest: what a small request can ask for is bounded, and one request reads the catalogue once.
func TestAdminBoundsARequest(t *testing.T) {
	var counted *countedStore
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		counted = &countedStore{Store: d.Store}
		d.Store = counted
	})
	ts.createTopic("t", 1, nil)
	conn := ts.dial()
	name := func(i int) string { return fmt.Sprintf("n%d", i) }
	create, del := kmsg.NewPtrCreateTopicsRequest(), kmsg.NewPtrDeleteTopicsRequest()
	create.ValidateOnly = true
	alter := kmsg.NewPtrIncrementalAlterConfigsRequest()
	for i := range maxTopicsPerRequest + 1 {
		create.Topics = append(create.Topics, newTopicRequest(name(i), 1, 1))
		del.Topics = append(del.Topics, deletionRequest(ptr(name(i)), metadata.TopicID{}))
		alter.Resources = append(alter.Resources, incrementalRequest(name(i)).Resources...)
	}
	for _, x := range ask[*kmsg.CreateTopicsResponse](conn, create, 7).Topics {
		if x.ErrorCode != codePolicyViolation {
			t.Fatalf("create %s: %d", x.Topic, x.ErrorCode)
		}
	}
	for _, x := range ask[*kmsg.DeleteTopicsResponse](conn, del, 6).Topics {
		if x.ErrorCode != codePolicyViolation {
			t.Fatalf("delete %s: %d", *x.Topic, x.ErrorCode)
		}
	}
	for _, x := range ask[*kmsg.IncrementalAlterConfigsResponse](conn, alter, 1).Resources {
		if x.ErrorCode != codePolicyViolation {
			t.Fatalf("alter %s: %d", x.ResourceName, x.ErrorCode)
		}
	}
	counted.refreshes.Store(0)
	describe := describeRequest(kmsg.ConfigResourceTypeTopic, "t")
	one := describe.Resources[0]
	for range maxDescribedConfigs / len(topicconf.Defs()) {
		describe.Resources = append(describe.Resources, one)
	}
	all := ask[*kmsg.DescribeConfigsResponse](conn, describe, 4).Resources
	described := 0
	for _, x := range all {
		described += len(x.Configs)
	}
	if described > maxDescribedConfigs || all[0].ErrorCode != 0 || all[len(all)-1].ErrorCode != codePolicyViolation {
		t.Errorf("%d configs of %d resources, the last with code %d", described, len(all), all[len(all)-1].ErrorCode)
	}
	if n := counted.refreshes.Load(); n != 1 {
		t.Errorf("the catalogue was read %d times", n)
	}
}
