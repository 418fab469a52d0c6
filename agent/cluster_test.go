package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/metadata"
)

func agentRows(n int, zones ...string) []metadata.AgentRow {
	rows := make([]metadata.AgentRow, n)
	for i := range rows {
		rows[i] = metadata.AgentRow{
			Node: metadata.NodeID(i + 1), Zone: zones[i%len(zones)],
			Addresses: []metadata.AgentAddress{{Host: fmt.Sprintf("a%d", i+1), Port: 9092}, {Listener: "out", Host: "lb", Port: int32(1000 + i)}},
		}
	}
	return rows
}

// TestReplicasAreOnePerZone: each zone has one replica, the leader is the one in the client's zone, and the set does not
// depend on who asks.
func TestReplicasAreOnePerZone(t *testing.T) {
	m := newMembers(agentRows(6, "x", "y", "z"))
	zoneOf := func(id int32) string { return m.agents[id-1].Zone }
	leaders := map[int32]int{}
	for p := range int32(600) {
		key := partitionKey(metadata.TopicID{1}, p)
		all := m.replicas(key, "")
		leaders[all[0]]++
		zones := []string{zoneOf(all[0]), zoneOf(all[1]), zoneOf(all[2])}
		if slices.Sort(zones); len(all) != 3 || !slices.Equal(zones, []string{"x", "y", "z"}) {
			t.Fatalf("partition %d: replicas %v in zones %v", p, all, zones)
		}
		for _, zone := range []string{"x", "y", "z", "nowhere"} {
			got := m.replicas(key, zone)
			if zone != "nowhere" && zoneOf(got[0]) != zone || zone == "nowhere" && got[0] != all[0] {
				t.Fatalf("partition %d, client in %s: leader %d", p, zone, got[0])
			}
			a, b := slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(all))
			if !slices.Equal(a, b) {
				t.Fatalf("partition %d: replicas %v for a client in %s, %v for others", p, got, zone, all)
			}
		}
	}
	for id, n := range leaders {
		if n < 60 || n > 140 {
			t.Errorf("agent %d leads %d of 600 partitions", id, n)
		}
	}
}

// TestAgentThatGoesMovesOnlyWhatItLed: rendezvous hashing.
func TestAgentThatGoesMovesOnlyWhatItLed(t *testing.T) {
	rows := agentRows(5, "")
	before, after := newMembers(rows), newMembers(rows[1:])
	for p := range int32(500) {
		key := partitionKey(metadata.TopicID{2}, p)
		if a, b := before.replicas(key, "")[0], after.replicas(key, "")[0]; a != 1 && a != b {
			t.Errorf("partition %d moved from %d to %d, which agent 1 had nothing to do with", p, a, b)
		}
		id := coordinatorKey(fmt.Sprint("group-", p))
		if a, b := before.coordinator(id).Node, after.coordinator(id).Node; a != 1 && a != b {
			t.Errorf("group %d moved from %d to %d", p, a, b)
		}
	}
}

func TestLive(t *testing.T) {
	const lost = metadata.Millis(metadata.AgentLost / time.Millisecond)
	at := func(now metadata.Millis, ages ...metadata.Millis) []metadata.AgentRow {
		rows := agentRows(len(ages), "")
		for i := range rows {
			rows[i].Seen = now - ages[i]
		}
		return rows
	}
	const start = metadata.Millis(1_000_000)
	x := &contact{}
	m := x.live(start, at(start, 0, 10, lost), nil, 1)
	if !slices.Equal(m.nodes(), []int32{1, 2}) {
		t.Fatalf("at the start: %v, want the two that were heard of", m.nodes())
	}
	now := start + 2000
	rows := at(now, 0, 100, 100)
	rows[2].Draining = true
	if m = x.live(now, rows, m, 1); !slices.Equal(m.nodes(), []int32{1, 2}) {
		t.Errorf("draining: %v", m.nodes())
	}
	// Regular contact: who falls silent is gone after AgentLost.
	for now < start+lost+4000 {
		now += 2000
		m = x.live(now, at(now, 0, 100), m, 1)
	}
	if got := x.live(now, at(now, 0, lost), m, 1); !slices.Equal(got.nodes(), []int32{1}) {
		t.Errorf("silent for AgentLost: %v", got.nodes())
	}
	// The database was away for a minute: nobody could be heard of, so nobody is taken for dead at once, but soon.
	now += 60_000
	m = x.live(now, at(now, 0, 60_100), m, 1)
	if !slices.Equal(m.nodes(), []int32{1, 2}) {
		t.Errorf("right after an outage: %v", m.nodes())
	}
	if m = x.live(now+1000, at(now+1000, 0)[:1], m, 1); !slices.Equal(m.nodes(), []int32{1, 2}) {
		t.Errorf("right after an outage, the row is too old to be read: %v", m.nodes())
	}
	for end := now + lost; now < end; {
		now += 2000
		m = x.live(now, at(now, 0, 60_100), m, 1)
	}
	if !slices.Equal(m.nodes(), []int32{1}) {
		t.Errorf("long after an outage: %v", m.nodes())
	}
	alone := at(now, 0)
	alone[0].Draining = true
	if m = x.live(now, alone, m, 1); !slices.Equal(m.nodes(), []int32{1}) {
		t.Errorf("the last one, draining: %v", m.nodes())
	}
}

func TestClientZone(t *testing.T) {
	for id, want := range map[string]string{
		"": "", "rdkafka": "", "zone=a": "a", "shipper-7,zone=eu-1": "eu-1", "zone=a;x=y": "a", "timezone=utc": "", "x zone=b": "b", "zone=": "",
	} {
		if got := clientZone(id); got != want {
			t.Errorf("%q: zone %q, want %q", id, got, want)
		}
	}
}

// agentTable is an AgentStore on one table.
type agentTable struct {
	mu    *sync.Mutex
	rows  map[metadata.NodeID]metadata.AgentRow
	wakes *[]func()
}

func newAgentTable() agentTable {
	return agentTable{mu: &sync.Mutex{}, rows: map[metadata.NodeID]metadata.AgentRow{}, wakes: &[]func(){}}
}

func (x agentTable) RegisterAgent(_ context.Context, a metadata.AgentRow) (metadata.NodeID, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if a.Node == 0 {
		a.Node = metadata.NodeID(len(x.rows) + 1)
	}
	x.rows[a.Node] = a
	return a.Node, nil
}

func (x agentTable) Heartbeat(_ context.Context, a metadata.AgentRow) (metadata.Millis, []metadata.AgentRow, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.rows[a.Node].Run != a.Run {
		return 0, nil, metadata.ErrReplaced
	}
	now := metadata.Millis(time.Now().UnixMilli())
	a.Seen = now
	x.rows[a.Node] = a
	var all []metadata.AgentRow
	for _, r := range x.rows {
		if now.Sub(r.Seen) <= 2*metadata.AgentLost {
			all = append(all, r)
		}
	}
	return now, all, nil
}

func (x agentTable) OnAgents(fn func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	*x.wakes = append(*x.wakes, fn)
}

func (x agentTable) TellAgents() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, fn := range *x.wakes {
		fn()
	}
}

// TestClusterHeartbeats: an agent that comes or drains is seen at once, one that dies within ten seconds, and one whose
// node id was taken ends.
func TestClusterHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newAgentTable()
		var running sync.WaitGroup
		start := func(node metadata.NodeID) (*Cluster, context.CancelFunc, *error) {
			row := agentRows(1, "z")[0]
			row.Node = node
			c := NewCluster(table, nil)
			if err := c.Join(t.Context(), row); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := new(error)
			running.Go(func() { *ended = c.Run(ctx) })
			return c, cancel, ended
		}
		see := func(c *Cluster, want ...int32) {
			t.Helper()
			synctest.Wait()
			if got := c.members().nodes(); !slices.Equal(got, want) {
				t.Errorf("agent %d sees %v, want %v", c.Node(), got, want)
			}
		}
		one, end1, _ := start(0)
		two, end2, ended2 := start(0)
		three, end3, _ := start(0)
		see(one, 1, 2, 3)
		see(two, 1, 2, 3)
		time.Sleep(time.Minute)
		see(three, 1, 2, 3)
		if err := three.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		see(one, 1, 2)
		see(three, 1, 2)
		end1() // as if killed
		time.Sleep(10 * time.Second)
		see(two, 2)
		_, end4, _ := start(2)
		time.Sleep(metadata.HeartbeatInterval)
		synctest.Wait()
		if !errors.Is(*ended2, metadata.ErrReplaced) {
			t.Errorf("the agent whose node id was taken ended with %v", *ended2)
		}
		end2()
		end3()
		end4()
		running.Wait()
	})
}
