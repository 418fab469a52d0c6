package main

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/internal/testenv"
)

// directCluster is agents of topology direct on one database and folder bucket.
type directCluster struct{ database, bucket string }

var joinedLine = regexp.MustCompile(`msg="joined the cluster" node=(\d+)`)

// start runs an agent that advertises its own listener, at an address or at a free one, and gives its node id.
func (d *directCluster) start(t *testing.T, address, zone string, more ...string) (*server, int32) {
	t.Helper()
	if address == "" {
		address = testenv.FreeAddress(t)
	}
	s := start(t, nil, append(agentFlags(d.database, d.bucket, "--topology=direct", "--zone", zone, "--listen", address, "--advertise", address), more...)...)
	node, err := strconv.ParseInt(s.await(t, joinedLine)[1], 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	s.ready(t)
	return s, int32(node)
}

// adminAt is a client whose requests all go to one agent.
func adminAt(t *testing.T, address string) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(address), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// awaitNodes waits until an agent tells clients of these nodes.
func awaitNodes(t *testing.T, address string, want ...int32) kadm.BrokerDetails {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	admin := adminAt(t, address)
	for {
		brokers, err := admin.ListBrokers(ctx)
		if err != nil {
			t.Fatalf("brokers at %s, want %v: %v", address, want, err)
		}
		if ids := brokers.NodeIDs(); slices.Equal(ids, want) {
			return brokers
		}
	}
}

// TestDirectAgentsComeAndGo: node ids last over restarts and are not taken from who is alive; who dies or drains leaves what
// clients are told; listeners have their own addresses.
func TestDirectAgentsComeAndGo(t *testing.T) {
	d := &directCluster{testenv.PostgresDatabase(t), "file://" + t.TempDir()}
	one, id1 := d.start(t, "", "x")
	outside := testenv.FreeAddress(t)
	two, id2 := d.start(t, "", "y", "--listeners", "out="+outside, "--advertised-listeners", "out=out.example:4711")
	three, id3 := d.start(t, "", "x", "--node-id=7")
	if id1 != 1 || id2 != 2 || id3 != 7 {
		t.Fatalf("nodes are %d, %d and %d", id1, id2, id3)
	}
	for _, s := range []*server{one, two, three} {
		for _, b := range awaitNodes(t, s.kafka, 1, 2, 7) {
			if zone := map[int32]string{1: "x", 2: "y", 7: "x"}[b.NodeID]; b.Rack == nil || *b.Rack != zone {
				t.Errorf("node %d is in rack %v, want %s", b.NodeID, b.Rack, zone)
			}
		}
	}
	for _, b := range awaitNodes(t, outside, 1, 2, 7) {
		if at := net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))); b.NodeID == 2 && at != "out.example:4711" {
			t.Errorf("outside, node 2 is at %s", at)
		}
	}
	// The second process of an address gets neither the port nor the node id.
	if code, _, stderr := skein(t, nil, agentFlags(d.database, d.bucket, "--topology=direct", "--listen", one.kafka, "--advertise", one.kafka)...); code != exitFailed ||
		!strings.Contains(stderr, "address already in use") {
		t.Errorf("second process of an address: exit %d, %s", code, stderr)
	}
	// Nor does an agent elsewhere get the node id of one that is alive. It waits, as that one may be about to be found dead.
	rival := start(t, nil, agentFlags(d.database, d.bucket, "--topology=direct", "--node-id=7")...)
	rival.await(t, regexp.MustCompile(`node id belongs to another agent, which is alive: node 7 at `+regexp.QuoteMeta(three.kafka)))
	if code := three.end(t, syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit %d", code)
	}
	rival.await(t, joinedLine)
	rival.ready(t)
	if code := rival.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
	awaitNodes(t, one.kafka, 1, 2)
	// An agent that was killed leaves, and comes back under its node id.
	if code := two.end(t, syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit %d", code)
	}
	awaitNodes(t, one.kafka, 1)
	two, id2 = d.start(t, two.kafka, "y")
	if id2 != 2 {
		t.Errorf("after a restart node 2 is node %d", id2)
	}
	awaitNodes(t, one.kafka, 1, 2)
	for _, s := range []*server{one, two} {
		if code := s.end(t, syscall.SIGTERM); code != exitOK {
			t.Errorf("SIGTERM: exit %d", code)
		}
	}
}

// fetchHook notes which nodes gave records.
type fetchHook struct {
	mu      sync.Mutex
	records map[int32]int
}

func (h *fetchHook) OnFetchBatchRead(meta kgo.BrokerMetadata, _ string, _ int32, m kgo.FetchBatchMetrics) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[meta.NodeID] += m.NumRecords
}

// TestConsumersFetchInTheirZone: a franz-go consumer with a rack is sent to its zone's agents, and goes on elsewhere when the
// last of them is killed. That it does soon needs its option: else it asks the leader again only after half an hour, as long
// as the leader stays the same (docs/OPERATIONS.md, Clients).
func TestConsumersFetchInTheirZone(t *testing.T) {
	d := &directCluster{testenv.PostgresDatabase(t), "file://" + t.TempDir()}
	one, _ := d.start(t, "", "x")
	two, id2 := d.start(t, "", "y")
	awaitNodes(t, one.kafka, 1, 2)
	awaitNodes(t, two.kafka, 1, 2)
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	const partitions, recheck = 8, time.Second
	if _, err := adminAt(t, one.kafka).CreateTopic(ctx, partitions, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	hook := &fetchHook{records: map[int32]int{}}
	consumer, err := kgo.NewClient(kgo.SeedBrokers(one.kafka, two.kafka), kgo.Rack("y"), kgo.RecheckPreferredReplicaInterval(recheck),
		kgo.ConsumeTopics("t"), kgo.WithHooks(hook),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	producer, err := kgo.NewClient(kgo.SeedBrokers(one.kafka, two.kafka), kgo.ClientID("zone=x"), kgo.DefaultProduceTopic("t"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	n := 0
	exchange := func() {
		t.Helper()
		for p := range int32(partitions) {
			if err := producer.ProduceSync(ctx, &kgo.Record{Partition: p, Value: fmt.Append(nil, n)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		n++
		for got := 0; got < partitions; {
			fetches := consumer.PollFetches(ctx)
			if ctx.Err() != nil {
				t.Fatalf("round %d: %d of %d records", n, got, partitions)
			}
			got += fetches.NumRecords()
		}
	}
	exchange()
	// Every record came from zone y: where zone x leads, it said so without any.
	hook.mu.Lock()
	if hook.records[1] > 0 || hook.records[id2] < partitions {
		t.Errorf("records, by node: %v; want node %d only", hook.records, id2)
	}
	hook.mu.Unlock()
	if code := two.end(t, syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit %d", code)
	}
	exchange()
	hook.mu.Lock()
	defer hook.mu.Unlock()
	if hook.records[1] < partitions {
		t.Errorf("records, by node: %v; want node 1 too", hook.records)
	}
}
