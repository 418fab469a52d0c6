package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skeinio/skein/metadata"
)

// heartbeatTimeout bounds one heartbeat.
const heartbeatTimeout = 5 * time.Second

// AgentStore is what a Cluster needs of metadata.Store.
type AgentStore interface {
	RegisterAgent(ctx context.Context, a metadata.AgentRow) (metadata.NodeID, error)
	Heartbeat(ctx context.Context, a metadata.AgentRow) (metadata.Millis, []metadata.AgentRow, error)
	OnAgents(fn func())
	TellAgents()
}

var _ AgentStore = (*metadata.Store)(nil)

// Cluster is the agents of topology "direct" as this one sees them: it says that it is there, and knows who else is. It
// is safe for concurrent use.
type Cluster struct {
	store    AgentStore
	log      *slog.Logger
	me       metadata.AgentRow // Draining is in draining
	draining atomic.Bool
	wake     chan struct{}
	seen     contact
	current  atomic.Pointer[members]
}

// NewCluster makes the cluster of an agent that has not joined it. It starts nothing.
func NewCluster(store AgentStore, log *slog.Logger) *Cluster {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{store: store, log: log, wake: make(chan struct{}, 1)}
	store.OnAgents(func() { signal(c.wake) })
	return c
}

// Join registers this agent and learns of the others. me.Node is its node id, 0 to find one. It is called before Run and
// before the first request is served, but after the listeners are open: who cannot have the port must not take the node
// id from the process that does. It may be called again after an error, which wraps metadata.ErrNodeTaken when the node id is another's.
func (c *Cluster) Join(ctx context.Context, me metadata.AgentRow) (err error) {
	me.Run = metadata.NewAgentID()
	if me.Node, err = c.store.RegisterAgent(ctx, me); err != nil {
		return err
	}
	c.me = me
	return c.beat(ctx)
}

// Node is this agent's node id, once it has joined.
func (c *Cluster) Node() int32 { return int32(c.me.Node) }

// Run sends heartbeats until ctx ends. Its error is that another agent has taken the node id.
func (c *Cluster) Run(ctx context.Context) error {
	c.store.TellAgents()
	tick := time.NewTicker(metadata.HeartbeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.wake:
		}
		err := c.beat(ctx)
		if errors.Is(err, metadata.ErrReplaced) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			// The last view is kept: without the database nobody knows better.
			c.log.Warn("heartbeat failed", "error", err)
		}
	}
}

// Drain says that this agent is about to leave: the others take it out of what they tell clients.
func (c *Cluster) Drain(ctx context.Context) error {
	c.draining.Store(true)
	err := c.beat(ctx)
	c.store.TellAgents()
	return err
}

func (c *Cluster) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	me := c.me
	me.Draining = c.draining.Load()
	now, rows, err := c.store.Heartbeat(ctx, me)
	if err != nil {
		return err
	}
	old := c.members()
	next := c.seen.live(now, rows, old, me.Node)
	if old == nil || !old.same(next) {
		c.log.Info("agents", "nodes", next.nodes())
	}
	c.current.Store(next)
	return nil
}

func (c *Cluster) members() *members { return c.current.Load() }

// contact is since when the database has been in reach without a gap.
type contact struct{ since, last metadata.Millis }

// live says who is there: who was heard of within AgentLost and does not drain. After a gap of this agent's own contact
// nobody that it knew before is taken for dead before they had the time to be heard of again: it may have been the
// database that was away, for all. When nobody is left it is this agent, whatever it does.
func (x *contact) live(now metadata.Millis, rows []metadata.AgentRow, before *members, self metadata.NodeID) *members {
	if now.Sub(x.last) > metadata.AgentLost {
		x.since = now
	}
	x.last = now
	patient := now.Sub(x.since) < metadata.AgentLost
	var live []metadata.AgentRow
	var me *metadata.AgentRow
	known := map[metadata.NodeID]bool{}
	for i := range rows {
		r := &rows[i]
		known[r.Node] = true
		if r.Node == self {
			me = r
		}
		alive := now.Sub(r.Seen) < metadata.AgentLost || patient && before.has(r.Node)
		if alive && !r.Draining {
			live = append(live, *r)
		}
	}
	if patient && before != nil { // away for longer than rows go back
		for _, r := range before.agents {
			if !known[r.Node] {
				live = append(live, r)
			}
		}
	}
	if len(live) == 0 && me != nil {
		live = append(live, *me)
	}
	return newMembers(live)
}

// members are the agents that clients are told of, by node id. They are not changed.
type members struct {
	agents []metadata.AgentRow
	zones  [][]int // indices into agents, by zone
}

func newMembers(agents []metadata.AgentRow) *members {
	m := &members{agents: slices.Clone(agents)}
	slices.SortFunc(m.agents, func(a, b metadata.AgentRow) int { return int(a.Node - b.Node) })
	at := map[string]int{}
	for i, a := range m.agents {
		z, ok := at[a.Zone]
		if !ok {
			z = len(m.zones)
			at[a.Zone] = z
			m.zones = append(m.zones, nil)
		}
		m.zones[z] = append(m.zones[z], i)
	}
	return m
}

func (m *members) has(node metadata.NodeID) bool {
	return m != nil && slices.ContainsFunc(m.agents, func(a metadata.AgentRow) bool { return a.Node == node })
}

func (m *members) same(o *members) bool { return slices.Equal(m.nodes(), o.nodes()) }

func (m *members) nodes() []int32 {
	ids := make([]int32, len(m.agents))
	for i, a := range m.agents {
		ids[i] = int32(a.Node)
	}
	return ids
}

// replicas are a partition's: the choice of every zone, the leader first. The leader is that of the client's zone, where
// it says one that there is, else the best choice of all.
func (m *members) replicas(key uint64, zone string) []int32 {
	type choice struct {
		agent int
		score uint64
	}
	picks := make([]choice, 0, len(m.zones))
	for _, indices := range m.zones {
		best := choice{agent: -1}
		for _, i := range indices {
			if s := score(key, m.agents[i].Node); best.agent < 0 || s > best.score {
				best = choice{i, s}
			}
		}
		picks = append(picks, best)
	}
	slices.SortFunc(picks, func(a, b choice) int {
		az, bz := zone != "" && m.agents[a.agent].Zone == zone, zone != "" && m.agents[b.agent].Zone == zone
		switch {
		case az != bz && az, az == bz && a.score > b.score:
			return -1
		}
		return 1
	})
	ids := make([]int32, len(picks))
	for i, p := range picks {
		ids[i] = int32(m.agents[p.agent].Node)
	}
	return ids
}

// coordinator is the agent that clients are sent to for a group or transactional id.
func (m *members) coordinator(key uint64) *metadata.AgentRow {
	best := 0
	for i := range m.agents {
		if score(key, m.agents[i].Node) > score(key, m.agents[best].Node) {
			best = i
		}
	}
	return &m.agents[best]
}

// score ranks a node for a key (rendezvous hashing): when a node goes, only what it was best for moves.
func score(key uint64, node metadata.NodeID) uint64 {
	return mix(key ^ mix(uint64(uint32(node))+0x9e3779b97f4a7c15))
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashBytes is FNV-1a.
func hashBytes[T ~string | ~[]byte](b T) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(b) {
		h = (h ^ uint64(b[i])) * 0x100000001b3
	}
	return h
}

// partitionKey is what a partition's replicas are chosen by.
func partitionKey(topic metadata.TopicID, index int32) uint64 {
	return mix(hashBytes(topic[:]) + uint64(uint32(index)))
}

// coordinatorKey is what a group's or transactional id's coordinator is chosen by.
func coordinatorKey(id string) uint64 { return mix(hashBytes(id)) }

// addressOf is where clients of a listener reach an agent: its address of that name, else its first.
func addressOf(a *metadata.AgentRow, listener string) (metadata.AgentAddress, error) {
	for _, x := range a.Addresses {
		if x.Listener == listener {
			return x, nil
		}
	}
	if len(a.Addresses) == 0 {
		return metadata.AgentAddress{}, fmt.Errorf("node %d has no address", a.Node)
	}
	return a.Addresses[0], nil
}
