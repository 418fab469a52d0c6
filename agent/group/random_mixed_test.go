package group

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// modelMixed is a member of a group that is being converted: of the new protocol, or a classic one with the cooperative
// assignor, which keeps its partitions while it rejoins.
type modelMixed struct {
	model848
	classic    bool
	joining    *JoinReply
	generation int32 // 0: it has to join
	syncing    bool
	leads      []JoinedMember
}

// mixedRun is a group whose members are upgraded, rolled back, die and come in any order.
type mixedRun struct {
	*world
	r    *rand.Rand
	live map[string]*modelMixed
}

// TestRandomConversion lets members of both protocols come, go and die in one group, so that it is converted back and forth,
// and checks all the time that no two of them work on one partition, and in the end that every partition is worked on.
func TestRandomConversion(t *testing.T) {
	kinds := map[metadata.GroupKind]int{}
	for seed := range uint64(randomSeeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t)
			w.topics["t"] = topic(1, 7)
			c := &mixedRun{world: w, r: rand.New(rand.NewPCG(seed, 3)), live: map[string]*modelMixed{}}
			before := metadata.GroupSimple
			for step := range 400 {
				c.step(step)
				if kind := c.load().Kind; kind != before {
					kinds[kind]++
					before = kind
				}
			}
			c.settle()
		})
	}
	if kinds[metadata.GroupClassic] < randomSeeds || kinds[metadata.GroupConsumer] < randomSeeds {
		t.Fatalf("conversions: %v, too few to prove anything", kinds)
	}
}

func (c *mixedRun) step(step int) {
	c.pass(time.Duration(c.r.IntN(2000)) * time.Millisecond)
	switch x := c.r.IntN(40); {
	case x < 4 && len(c.live) < 5:
		c.add(fmt.Sprint("m", step), c.r.IntN(2) == 0)
	case x == 4 && len(c.live) > 1:
		delete(c.live, anyKey(c.r, c.live)) // kill -9
	case x == 5 && len(c.live) > 1:
		c.leave(anyKey(c.r, c.live))
	case x == 6 && len(c.live) > 0: // an upgrade, or a step back
		id := anyKey(c.r, c.live)
		classic := c.live[id].classic
		c.leave(id)
		c.add(fmt.Sprint("m", step), !classic)
	}
	for _, id := range sortedKeys(c.live) {
		m := c.live[id]
		if c.now.Sub(m.lastBeat) > 8*time.Second || c.r.IntN(3) == 0 {
			c.act(m)
		}
		c.check()
	}
}

func (c *mixedRun) add(id string, classic bool) {
	c.live[id] = &modelMixed{model848: model848{id: id, owned: Assignment{}, target: Assignment{}}, classic: classic}
}

func (c *mixedRun) leave(id string) {
	m := c.live[id]
	delete(c.live, id)
	if m.classic {
		c.change(func(e Event, g *Group) { g.Leave(e, []Leaver{{Member: metadata.MemberID(id)}}) })
		return
	}
	if m.joined {
		c.beat(next(id, EpochLeave))
	}
}

func (c *mixedRun) check() {
	c.t.Helper()
	live := make(map[string]*model848, len(c.live))
	for id, m := range c.live {
		live[id] = &m.model848
	}
	c.checkOverlap(live)
}

func (c *mixedRun) act(m *modelMixed) {
	c.t.Helper()
	if !m.classic {
		c.beatOne(m)
		return
	}
	m.lastBeat = c.now
	id := metadata.MemberID(m.id)
	switch {
	case m.joining != nil:
		c.hear(id)
		if out, ok := c.answer(*m.joining); ok {
			m.joining = nil
			c.joinedNow(m, out)
		}
	case m.generation == 0:
		out := c.join(m.id, func(r *JoinRequest) {
			r.Session, r.Rebalance = 20*time.Second, time.Minute
			r.Protocols = []Protocol{{Name: "cooperative-sticky", Metadata: subscription("t", m.owned[c.topics["t"].ID]...)}}
		})
		if out.Wait {
			m.joining = &out
			return
		}
		c.joinedNow(m, out)
	case m.syncing:
		c.syncOne(m)
	default:
		c.heartbeat(m)
	}
}

// beatOne is a heartbeat of a member of the new protocol.
func (c *mixedRun) beatOne(m *modelMixed) {
	c.t.Helper()
	q := next(m.id, m.epoch)
	switch {
	case !m.joined:
		q = first(m.id, "t")
	default:
		m.owned = m.target.clone()
		q.Owned = m.owned.clone()
	}
	m.lastBeat = c.now
	switch out := c.beat(q); out.Code {
	case None:
		m.joined, m.epoch = true, out.Epoch
		if out.Assignment != nil {
			m.target = out.Assignment.clone()
			m.owned = m.owned.and(m.target).or(m.target.without(m.owned))
		}
	case UnknownMemberID, FencedMemberEpoch, GroupIDNotFound:
		m.joined, m.epoch, m.owned, m.target = false, 0, Assignment{}, Assignment{}
	default:
		c.t.Fatalf("%s: %+v", m.id, out)
	}
}

// hear notes that a classic member was heard of, as the agent it talks to would write back.
func (c *mixedRun) hear(id metadata.MemberID) {
	for i := range c.rows.Members {
		if m := &c.rows.Members[i]; m.ID == id {
			m.Heard, m.HeardBy = c.now, c.agent
		}
	}
}

func (c *mixedRun) joinedNow(m *modelMixed, out JoinReply) {
	c.t.Helper()
	switch out.Code {
	case None:
		m.generation, m.syncing, m.leads = out.Generation, true, nil
		if string(out.Leader) == m.id {
			m.leads = out.Members
		}
	case UnknownMemberID:
		m.generation, m.owned = 0, Assignment{}
	case RebalanceInProgress:
		m.generation = 0
	default:
		c.t.Fatalf("join of %s: %+v", m.id, out)
	}
}

func (c *mixedRun) syncOne(m *modelMixed) {
	c.t.Helper()
	out := c.sync(m.id, m.generation, c.lead(m))
	switch {
	case out.Code == UnknownMemberID || out.Code == IllegalGeneration:
		m.generation, m.syncing, m.owned = 0, false, Assignment{}
		return
	case out.Code == RebalanceInProgress:
		m.generation, m.syncing = 0, false
		return
	case out.Code != None:
		c.t.Fatalf("sync of %s: %+v", m.id, out)
	case out.Wait:
		c.hear(metadata.MemberID(m.id))
		return
	}
	names, err := ParseAssignment(out.Assignment)
	if err != nil {
		c.t.Fatal(err)
	}
	has := byNames(c.topics, names)
	m.syncing = false
	if lost := m.owned.without(has); len(lost) > 0 {
		m.generation = 0 // it tells what it gave up by joining again
	}
	m.owned = has
}

func (c *mixedRun) heartbeat(m *modelMixed) {
	c.t.Helper()
	id := metadata.MemberID(m.id)
	g := c.load()
	code, heard := g.Heartbeat(id, "", m.generation)
	if heard {
		c.hear(id)
	}
	switch code {
	case None:
	case RebalanceInProgress:
		m.generation = 0
		if g.NeedsRejoinNote(id) {
			c.change(func(e Event, g *Group) { g.HeartbeatRejoin(e, id) })
		}
	case IllegalGeneration, UnknownMemberID:
		m.generation, m.owned = 0, Assignment{}
	default:
		c.t.Fatalf("heartbeat of %s: %d", m.id, code)
	}
}

// lead is the cooperative assignor: what somebody has and another is to get stays with nobody until it was given up.
func (c *mixedRun) lead(m *modelMixed) map[metadata.MemberID][]byte {
	c.t.Helper()
	if len(m.leads) == 0 {
		return nil
	}
	owner := map[int32]int{}
	for i, x := range m.leads {
		s, err := ParseSubscription(x.Metadata)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, p := range s.Owned["t"] {
			owner[p] = i
		}
	}
	lists := make([][]int32, len(m.leads))
	most := (int(c.topics["t"].Partitions) + len(lists) - 1) / len(lists)
	var free []int32
	for p := range c.topics["t"].Partitions {
		i, owned := owner[p]
		switch {
		case owned && len(lists[i]) < most:
			lists[i] = append(lists[i], p)
		case !owned:
			free = append(free, p)
		}
	}
	for _, p := range free {
		least := 0
		for i := range lists {
			if len(lists[i]) < len(lists[least]) {
				least = i
			}
		}
		lists[least] = append(lists[least], p)
	}
	out := map[metadata.MemberID][]byte{}
	for i, x := range m.leads {
		out[x.Member] = AppendAssignment(nil, 1, map[string][]int32{"t": lists[i]})
	}
	return out
}

// settle lets the living go on without trouble: every partition is worked on.
func (c *mixedRun) settle() {
	c.t.Helper()
	if len(c.live) == 0 {
		c.add("last", false)
	}
	for range 200 {
		c.pass(time.Second)
		for _, id := range sortedKeys(c.live) {
			c.act(c.live[id])
			c.check()
		}
	}
	n := 0
	for _, m := range c.live {
		n += m.owned.size()
	}
	g := c.load()
	if want := int(c.topics["t"].Partitions); n != want || g.Shown() != Stable || len(g.Members) != len(c.live) {
		c.t.Fatalf("%d of %d partitions are worked on; group of kind %d is %v with %d members of %d", n, want, g.Kind, g.Shown(), len(g.Members), len(c.live))
	}
}
