package group

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// randomSeeds is how many seeds each randomized test runs.
const randomSeeds = 60

// model848 is a member of a consumer group that behaves as clients do: it gives up what it is told to give up some time
// later, and repeats everything when it has missed an answer.
type model848 struct {
	id       string
	epoch    int32
	owned    Assignment // what it works on
	target   Assignment // what it was told last
	unsure   bool       // an answer was lost
	acked    bool       // the last heartbeat told what it owns
	joined   bool
	lastBeat metadata.Millis
}

// TestRandomConsumers lets members of the new protocol come, go, die, answer late and miss answers, and checks all the time
// that no two of them work on one partition, and in the end that every partition is worked on.
func TestRandomConsumers(t *testing.T) {
	for seed := range uint64(randomSeeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t)
			r := rand.New(rand.NewPCG(seed, 1))
			w.topics["t"], w.topics["u"] = topic(1, 5), topic(2, 4)
			live := map[string]*model848{}
			for step := range 400 {
				w.step848(r, live, step)
			}
			w.settle848(live)
		})
	}
}

func (w *world) step848(r *rand.Rand, live map[string]*model848, step int) {
	w.pass(time.Duration(r.IntN(3000)) * time.Millisecond)
	switch x := r.IntN(40); {
	case x < 2 && len(live) < 6:
		id := fmt.Sprint("m", step)
		live[id] = &model848{id: id, owned: Assignment{}, target: Assignment{}}
	case x == 2 && len(live) > 1:
		delete(live, anyKey(r, live)) // kill -9
	case x == 3 && len(live) > 1:
		id := anyKey(r, live)
		w.beat(next(id, EpochLeave))
		delete(live, id)
	case x == 4:
		w.topics["u"] = Topic{ID: w.topics["u"].ID, Partitions: w.topics["u"].Partitions + 1}
	}
	for _, id := range sortedKeys(live) {
		m := live[id]
		if w.now.Sub(m.lastBeat) > 15*time.Second || r.IntN(4) == 0 {
			w.beat848(r, m)
		}
	}
	w.checkOverlap(live)
}

// beat848 is one heartbeat of a model member; now and then its answer is lost or it is sent twice.
func (w *world) beat848(r *rand.Rand, m *model848) {
	w.t.Helper()
	topics := []string{"t", "u"}
	q := next(m.id, m.epoch)
	switch {
	case !m.joined:
		q = first(m.id, topics...)
	case m.unsure:
		q.Rebalance, q.Topics, q.Owned = time.Minute, topics, m.owned.clone()
	case r == nil || r.IntN(2) == 0 || !m.acked: // it gives up in its own time
		m.owned = m.target.clone()
		q.Owned, m.acked = m.owned.clone(), true
	}
	m.lastBeat = w.now
	out := w.beat(q)
	if r != nil && r.IntN(12) == 0 {
		w.beat(q) // the network sent it twice
	}
	if r != nil && r.IntN(10) == 0 {
		m.unsure = m.joined // the answer is lost; a join is simply tried again
		return
	}
	m.unsure = false
	switch out.Code {
	case None:
		m.joined, m.epoch = true, out.Epoch
		if out.Assignment != nil {
			m.target, m.acked = out.Assignment.clone(), false
			m.owned = m.owned.and(m.target).or(m.target.without(m.owned)) // new ones are worked on at once
			// What is to be given up goes with the next heartbeat that says so; here at once, the heartbeat later.
		}
	case UnknownMemberID, FencedMemberEpoch, GroupIDNotFound:
		m.joined, m.epoch, m.owned, m.target = false, 0, Assignment{}, Assignment{}
	default:
		w.t.Fatalf("%s: %+v", m.id, out)
	}
}

func (w *world) checkOverlap(live map[string]*model848) {
	w.t.Helper()
	by := map[metadata.TopicPartition]string{}
	for _, id := range sortedKeys(live) {
		for topic, list := range live[id].owned {
			for _, p := range list {
				k := metadata.TopicPartition{Topic: topic, Partition: p}
				if by[k] != "" {
					w.t.Fatalf("%s and %s both work on %v", by[k], id, k)
				}
				by[k] = id
			}
		}
	}
}

// settle848 lets time pass without further trouble: the dead expire, and everything must be assigned.
func (w *world) settle848(live map[string]*model848) {
	w.t.Helper()
	if len(live) == 0 {
		live["last"] = &model848{id: "last", owned: Assignment{}, target: Assignment{}}
	}
	for range 60 {
		w.pass(5 * time.Second)
		for _, id := range sortedKeys(live) {
			w.beat848(nil, live[id])
		}
		w.checkOverlap(live)
	}
	n, want := 0, int(w.topics["t"].Partitions+w.topics["u"].Partitions)
	for _, m := range live {
		n += m.owned.size()
	}
	if g := w.load(); n != want || g.Shown() != Stable || len(g.Members) != len(live) {
		w.t.Fatalf("%d of %d partitions are worked on; group is %v with %d members of %d", n, want, g.Shown(), len(g.Members), len(live))
	}
}

func anyKey[V any](r *rand.Rand, m map[string]V) string {
	keys := sortedKeys(m)
	return keys[r.IntN(len(keys))]
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// modelClassic is a member of a classic group.
type modelClassic struct {
	name       string
	joining    *JoinReply // waits for the end of the rebalance
	generation int32      // 0: not in the group
	syncing    bool
	leads      []JoinedMember
	assigned   string
	since      metadata.Millis // of what it waits for
	lastBeat   metadata.Millis
	stuck      bool // it heartbeats and never syncs, until it is thrown out
}

// TestRandomClassic lets members of the classic protocol come, go, die, join twice and be slow, and checks that within a
// generation nobody gets what is another's, that there is one leader, and that every wait ends.
func TestRandomClassic(t *testing.T) {
	for seed := range uint64(randomSeeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t)
			c := &classicRun{world: w, r: rand.New(rand.NewPCG(seed, 2)), live: map[string]*modelClassic{}, leaders: map[int32]string{}}
			for step := range 300 {
				c.step(step)
			}
			c.settle()
		})
	}
}

type classicRun struct {
	*world
	r       *rand.Rand
	live    map[string]*modelClassic
	leaders map[int32]string
}

func (c *classicRun) step(step int) {
	c.pass(time.Duration(c.r.IntN(1500)) * time.Millisecond)
	switch x := c.r.IntN(30); {
	case x < 2 && len(c.live) < 6:
		name := fmt.Sprint("m", step)
		c.live[name] = &modelClassic{name: name, lastBeat: c.now}
	case x == 2 && len(c.live) > 1:
		delete(c.live, anyKey(c.r, c.live))
	case x == 3 && len(c.live) > 1:
		name := anyKey(c.r, c.live)
		c.change(func(e Event, g *Group) { g.Leave(e, []Leaver{{Member: metadata.MemberID(name)}}) })
		delete(c.live, name)
	case x == 4 && len(c.live) > 1:
		c.live[anyKey(c.r, c.live)].stuck = true
	}
	for _, name := range sortedKeys(c.live) {
		if m := c.live[name]; c.r.IntN(3) == 0 || c.now.Sub(m.lastBeat) > 3*time.Second {
			c.act(m)
		}
	}
}

// act lets a member do what a client would do next.
func (c *classicRun) act(m *modelClassic) {
	c.t.Helper()
	m.lastBeat = c.now
	id := metadata.MemberID(m.name)
	switch {
	case m.joining != nil:
		c.hearWaiting(id)
		out, ok := c.answer(*m.joining)
		if !ok {
			c.patience(m)
			if c.r != nil && c.r.IntN(10) == 0 { // it tries again on another connection
				again := c.join(m.name)
				if again.Wait {
					m.joining = &again
				}
			}
			return
		}
		m.joining = nil
		c.joinedNow(m, out)
	case m.generation == 0:
		out := c.join(m.name)
		if m.since = c.now; out.Wait {
			m.joining = &out
			return
		}
		c.joinedNow(m, out)
	case m.syncing && !m.stuck:
		c.sync1(m)
	default:
		g := c.load()
		code, heard := g.Heartbeat(id, "", m.generation)
		if heard {
			c.hearWaiting(id)
		}
		switch code {
		case None:
		case RebalanceInProgress, IllegalGeneration, UnknownMemberID:
			m.generation, m.syncing = 0, false
			m.stuck = m.stuck && code != UnknownMemberID
		default:
			c.t.Fatalf("heartbeat of %s: %d", m.name, code)
		}
	}
}

// hearWaiting notes that a member was heard of, as the agent it talks to would write back.
func (c *classicRun) hearWaiting(id metadata.MemberID) {
	for i := range c.rows.Members {
		if m := &c.rows.Members[i]; m.ID == id {
			m.Heard, m.HeardBy = c.now, c.agent
		}
	}
}

// patience fails when a wait lasts longer than the rules allow: the initial delay up to the largest rebalance timeout, then
// a rebalance, then again one that began meanwhile.
func (c *classicRun) patience(m *modelClassic) {
	c.t.Helper()
	if c.now.Sub(m.since) > 61*time.Second {
		g := c.load()
		c.t.Fatalf("%s has waited since %d, now %d: group %v %d, deadline %d, pending %v", m.name, m.since, c.now, g.State, g.Generation, g.JoinDeadline, g.Pending)
	}
}

func (c *classicRun) joinedNow(m *modelClassic, out JoinReply) {
	c.t.Helper()
	switch out.Code {
	case None:
	case UnknownMemberID:
		m.generation = 0
		return
	default:
		c.t.Fatalf("join of %s: %+v", m.name, out)
	}
	m.generation, m.syncing, m.since, m.leads = out.Generation, true, c.now, nil
	if string(out.Leader) == m.name {
		m.leads = out.Members
	}
}

func (c *classicRun) sync1(m *modelClassic) {
	c.t.Helper()
	assignments := map[metadata.MemberID][]byte{}
	for _, x := range m.leads {
		assignments[x.Member] = fmt.Appendf(nil, "%d/%s", m.generation, x.Member)
	}
	out := c.sync(m.name, m.generation, assignments)
	switch {
	case out.Code == RebalanceInProgress, out.Code == IllegalGeneration, out.Code == UnknownMemberID:
		m.generation, m.syncing = 0, false
	case out.Code != None:
		c.t.Fatalf("sync of %s: %+v", m.name, out)
	case out.Wait:
		c.hearWaiting(metadata.MemberID(m.name))
		c.patience(m)
	default:
		// Who learns late that it leads, after the leader has gone and the next rebalance begun, is not let through.
		if l := c.leaders[m.generation]; m.leads != nil && l != "" && l != m.name {
			c.t.Fatalf("generation %d is led by %s and %s", m.generation, l, m.name)
		}
		if m.leads != nil {
			c.leaders[m.generation] = m.name
		}
		if want := fmt.Sprintf("%d/%s", m.generation, m.name); string(out.Assignment) != want {
			c.t.Fatalf("%s has %q in generation %d", m.name, out.Assignment, m.generation)
		}
		m.syncing, m.assigned = false, string(out.Assignment)
	}
}

// settle lets the living go on without trouble: all of them end in one stable generation.
func (c *classicRun) settle() {
	c.t.Helper()
	c.r = rand.New(rand.NewPCG(1, 1))
	if len(c.live) == 0 {
		c.live["last"] = &modelClassic{name: "last"}
	}
	for range 120 {
		c.pass(time.Second)
		for _, name := range sortedKeys(c.live) {
			c.act(c.live[name])
		}
	}
	g := c.load()
	if g.State != Stable || len(g.Members) != len(c.live) {
		c.t.Fatalf("group is %v with %d members of %d", g.State, len(g.Members), len(c.live))
	}
	for _, m := range c.live {
		if m.generation != g.Generation || m.syncing {
			c.t.Fatalf("%s is in generation %d of %d", m.name, m.generation, g.Generation)
		}
	}
}
