package agent

import (
	"net"
	"slices"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// direct puts the server into a cluster of six agents in three zones, as node 1 of zone x.
func direct(c *Config, d *Deps) {
	c.NodeID, c.Rack = 1, "x"
	d.Cluster = &Cluster{me: metadata.AgentRow{Node: 1}}
	d.Cluster.current.Store(newMembers(agentRows(6, "x", "y", "z")))
}

// askAs sends a request with a client.id.
func askAs[R kmsg.Response](c *rawConn, clientID string, req kmsg.Request, version int16) R {
	c.t.Helper()
	req.SetVersion(version)
	c.sendBytes(kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID)).AppendRequest(nil, req, 5))
	return c.receive(req, 5).(R)
}

func TestDirectMetadata(t *testing.T) {
	ts := newTestServer(t, direct)
	topic := ts.createTopic("t", 20, nil)
	conn := ts.dial()
	for _, v := range versions(0, 13) {
		resp := askAs[*kmsg.MetadataResponse](conn, "zone=y,me", kmsg.NewPtrMetadataRequest(), v)
		if len(resp.Brokers) != 6 || resp.Brokers[1].Host != "a2" || resp.Brokers[1].Port != 9092 || v > 0 && resp.ControllerID != 1 {
			t.Fatalf("version %d: brokers %+v, controller %d", v, resp.Brokers, resp.ControllerID)
		}
		if v > 0 && *resp.Brokers[1].Rack != "y" {
			t.Errorf("version %d: rack %v", v, resp.Brokers[1].Rack)
		}
		for _, p := range resp.Topics[0].Partitions {
			if p.Leader != 2 && p.Leader != 5 || len(p.Replicas) != 3 || p.Replicas[0] != p.Leader {
				t.Errorf("version %d: partition %d: leader %d of %v for a client in zone y", v, p.Partition, p.Leader, p.Replicas)
			}
		}
	}
	pages := askAs[*kmsg.DescribeTopicPartitionsResponse](conn, "me", &kmsg.DescribeTopicPartitionsRequest{ResponsePartitionLimit: 100}, 0)
	want := ts.members().replicas(partitionKey(topic.ID, 3), "")
	if got := pages.Topics[0].Partitions[3].Replicas; !slices.Equal(got, want) {
		t.Errorf("DescribeTopicPartitions: replicas %v, want %v", got, want)
	}
	cluster := askAs[*kmsg.DescribeClusterResponse](conn, "me", kmsg.NewPtrDescribeClusterRequest(), 0)
	if len(cluster.Brokers) != 6 || cluster.ControllerID != 1 {
		t.Errorf("DescribeCluster: %+v", cluster)
	}
}

// TestDirectCoordinators: the same for every agent, all of them take part, and each lists its own groups.
func TestDirectCoordinators(t *testing.T) {
	ts := newTestServer(t, direct)
	conn := ts.dial()
	req := kmsg.NewPtrFindCoordinatorRequest()
	for i := range 60 {
		req.CoordinatorKeys = append(req.CoordinatorKeys, "group-"+strconv.Itoa(i))
	}
	nodes := map[int32]int{}
	for _, c := range ask[*kmsg.FindCoordinatorResponse](conn, req, 6).Coordinators {
		nodes[c.NodeID]++
		if (c.NodeID == 1) != ts.coordinates(c.Key) {
			t.Errorf("group %s: coordinator %d, listed by agent 1: %v", c.Key, c.NodeID, ts.coordinates(c.Key))
		}
	}
	if len(nodes) != 6 {
		t.Errorf("coordinators %v", nodes)
	}
	single := kmsg.NewPtrFindCoordinatorRequest()
	single.CoordinatorKey = "group-7"
	resp := ask[*kmsg.FindCoordinatorResponse](conn, single, 2)
	if want := ts.members().coordinator(coordinatorKey("group-7")); resp.NodeID != int32(want.Node) || resp.Port != 9092 && resp.NodeID != 1 {
		t.Errorf("coordinator of group-7: %+v, want node %d", resp, want.Node)
	}
}

// TestFetchIsSentToTheZone (KIP-392): a consumer of another zone is told where to go, one of this zone, or of a zone
// without an agent, is served here.
func TestFetchIsSentToTheZone(t *testing.T) {
	ts := newTestServer(t, direct, withExtents(t))
	topic := ts.createTopic("t", 1, nil)
	ts.produce("t", 3)
	conn := ts.dial()
	for _, v := range versions(4, 18) {
		for _, rack := range []string{"", "x", "y", "nowhere"} {
			req := kmsg.NewPtrFetchRequest()
			req.MaxBytes, req.Rack, req.ReplicaID = 1<<20, rack, -1
			p := kmsg.NewFetchRequestTopicPartition()
			p.PartitionMaxBytes, p.CurrentLeaderEpoch = 1<<20, -1
			req.Topics = []kmsg.FetchRequestTopic{{Topic: "t", TopicID: topic.ID, Partitions: []kmsg.FetchRequestTopicPartition{p}}}
			got := ask[*kmsg.FetchResponse](conn, req, v).Topics[0].Partitions[0]
			moved := v >= fetchReplica && rack == "y"
			want := int32(noReplica)
			if moved {
				want = ts.members().replicas(partitionKey(topic.ID, 0), "y")[0]
			}
			if got.ErrorCode != 0 || got.PreferredReadReplica != want || (len(got.RecordBatches) == 0) != moved || got.HighWatermark != 3 {
				t.Errorf("version %d, rack %q: code %d, replica %d (want %d), %d bytes, high watermark %d", v, rack, got.ErrorCode,
					got.PreferredReadReplica, want, len(got.RecordBatches), got.HighWatermark)
			}
		}
	}
}

// TestListeners: clients of each listener are told its addresses.
func TestListeners(t *testing.T) {
	ts := newTestServer(t, direct, withConfig(func(c *Config) {
		c.Listeners = []Listener{{Name: "out", Listen: "127.0.0.1:0", AdvertisedHost: "lb", AdvertisedPort: 1000}}
	}))
	inside := ask[*kmsg.MetadataResponse](ts.dial(), kmsg.NewPtrMetadataRequest(), 1)
	ts.addr = ts.others[0].Addr().String()
	outside := ask[*kmsg.MetadataResponse](ts.dial(), kmsg.NewPtrMetadataRequest(), 1)
	own, _, err := net.SplitHostPort(ts.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if inside.Brokers[0].Host != own || inside.Brokers[2].Host != "a3" || inside.Brokers[2].Port != 9092 {
		t.Errorf("inside: %+v", inside.Brokers)
	}
	for i, b := range outside.Brokers {
		if b.Host != "lb" || b.Port != int32(1000+i) {
			t.Errorf("outside: %+v", b)
		}
	}
	ts.stop()
	if _, err := net.DialTimeout("tcp", ts.addr, testTimeout); err == nil {
		<-ts.ended
		ts.ended <- nil
		if _, err := net.DialTimeout("tcp", ts.addr, testTimeout); err == nil {
			t.Error("the further listener is open after the end")
		}
	}
}

// TestProxyProtocol: what is behind a load balancer is served, and what does not say so is closed.
func TestProxyProtocol(t *testing.T) {
	ts := newTestServer(t, withConfig(func(c *Config) { c.ProxyProtocol = true }))
	conn := ts.dial()
	conn.sendBytes(proxyHeader(proxyFor, proxyTCPv4, []byte{10, 1, 2, 3, 127, 0, 0, 1, 0x30, 0x39, 0x23, 0x84}))
	if resp := ask[*kmsg.MetadataResponse](conn, kmsg.NewPtrMetadataRequest(), 1); len(resp.Brokers) != 1 {
		t.Errorf("%+v", resp)
	}
	ts.mu.Lock()
	for c := range ts.open {
		if got := c.info.remote.String(); got != "10.1.2.3:12345" {
			t.Errorf("the connection is from %s", got)
		}
	}
	ts.mu.Unlock()
	bare := ts.dial()
	bare.send(kmsg.NewPtrMetadataRequest(), 1)
	if n, err := bare.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection without the header is answered with %d bytes", n)
	}
}
