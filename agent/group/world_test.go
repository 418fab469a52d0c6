package group

import (
	"iter"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// topicSet is a catalogue of a test.
type topicSet map[string]Topic

func (t topicSet) Topic(name string) (Topic, bool) {
	x, ok := t[name]
	return x, ok
}

func (t topicSet) Name(id metadata.TopicID) string {
	for name, x := range t {
		if x.ID == id {
			return name
		}
	}
	return ""
}

func (t topicSet) All() iter.Seq2[string, Topic] { return maps.All(t) }

// topic makes a topic whose id is made of its number.
func topic(n byte, partitions int32) Topic {
	return Topic{ID: metadata.TopicID{n}, Partitions: partitions}
}

// world keeps a group as the database would: every event loads rows and saves what changed.
type world struct {
	t        *testing.T
	rows     metadata.GroupRows
	now      metadata.Millis
	agent    metadata.AgentID
	settings Settings
	topics   topicSet
	contacts map[metadata.AgentID]metadata.Contact
	saves    int
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: 1_000_000, agent: metadata.AgentID{1}, settings: Defaults(), topics: topicSet{}}
	w.rows.Group.ID = "g"
	w.contacts = map[metadata.AgentID]metadata.Contact{w.agent: {Since: 1, Seen: w.now}}
	return w
}

func (w *world) event() Event {
	return Event{Now: w.now, Agent: w.agent, Settings: w.settings, Topics: w.topics}
}

// load gives the group as it is kept.
func (w *world) load() *Group {
	w.t.Helper()
	w.rows.Contacts = w.contacts
	g, err := Decode(&w.rows)
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

// change applies an event and saves.
func (w *world) change(fn func(e Event, g *Group)) *Group {
	w.t.Helper()
	g := w.load()
	e := w.event()
	fn(e, g)
	save := g.Save(e, &w.rows)
	defer func() { // as the agent's next write-back
		for i := range w.rows.Members {
			row := &w.rows.Members[i]
			if m := g.Members[row.ID]; m != nil && m.Heard > row.Heard {
				row.Heard, row.HeardBy = m.Heard, m.HeardBy
			}
		}
	}()
	if save == nil {
		return w.load()
	}
	w.saves++
	version := w.rows.Group.Version
	if !save.Quiet {
		version = metadata.NextVersion(version, w.now)
		w.rows.Group = save.Group
		members := map[metadata.MemberID]metadata.MemberRow{}
		for _, m := range w.rows.Members {
			members[m.ID] = m
		}
		for _, id := range save.Drop {
			delete(members, id)
		}
		for _, m := range save.Save {
			members[m.ID] = m
		}
		w.rows.Members = nil
		for _, id := range slices.Sorted(maps.Keys(members)) {
			w.rows.Members = append(w.rows.Members, members[id])
		}
	}
	w.rows.Group.Version = version
	w.rows.Group.Due, w.rows.Group.Timer = save.Group.Due, save.Group.Timer
	return w.load()
}

// pass lets time pass, as the agent that hears all members would: it writes back, then lets the group look at the time.
func (w *world) pass(d time.Duration, heard ...metadata.MemberID) *Group {
	w.t.Helper()
	w.now = w.now.Add(d)
	for i := range w.rows.Members {
		if m := &w.rows.Members[i]; slices.Contains(heard, m.ID) {
			m.Heard, m.HeardBy = w.now, w.agent
		}
	}
	w.contacts[w.agent] = metadata.Contact{Since: w.contacts[w.agent].Since, Seen: w.now}
	return w.change(func(e Event, g *Group) { g.Tick(e) })
}

// join is a JoinGroup; a new member's id is name.
func (w *world) join(name string, change ...func(*JoinRequest)) JoinReply {
	w.t.Helper()
	r := JoinRequest{
		NewMember: metadata.MemberID(name), Session: 10 * time.Second, Rebalance: 20 * time.Second, ProtocolType: ConsumerProtocol,
		Protocols: []Protocol{{Name: "range", Metadata: []byte(name)}},
	}
	if g := w.load(); g.Members[metadata.MemberID(name)] != nil || g.Pending[metadata.MemberID(name)] != 0 {
		r.Member = metadata.MemberID(name)
	}
	for _, fn := range change {
		fn(&r)
	}
	var out JoinReply
	w.change(func(e Event, g *Group) { out = g.Join(e, r) })
	return out
}

// answer asks for a waiting join's answer.
func (w *world) answer(r JoinReply) (JoinReply, bool) {
	return w.load().AnswerJoin(r.Member, "", r.After)
}

// sync is a SyncGroup.
func (w *world) sync(member string, generation int32, assignments map[metadata.MemberID][]byte) SyncReply {
	w.t.Helper()
	var out SyncReply
	w.change(func(e Event, g *Group) {
		out = g.Sync(e, SyncRequest{Member: metadata.MemberID(member), Generation: generation, Assignments: assignments})
	})
	return out
}

// stable makes a stable group of these members; the first leads.
func (w *world) stable(names ...string) int32 {
	w.t.Helper()
	joins := map[string]JoinReply{}
	for _, name := range names {
		joins[name] = w.join(name)
	}
	w.pass(w.settings.InitialDelay)
	for w.load().State == Preparing {
		w.pass(w.settings.InitialDelay)
	}
	g := w.load()
	if g.State != Completing || len(g.Members) != len(names) {
		w.t.Fatalf("group is %v with %d members", g.State, len(g.Members))
	}
	assignments := map[metadata.MemberID][]byte{}
	for _, name := range names {
		assignments[metadata.MemberID(name)] = []byte("for " + name)
	}
	if r := w.sync(string(g.Leader), g.Generation, assignments); r.Code != None || r.Wait {
		w.t.Fatalf("leader's sync: %+v", r)
	}
	for _, name := range names {
		if r := w.sync(name, g.Generation, nil); r.Code != None || string(r.Assignment) != "for "+name {
			w.t.Fatalf("sync of %s: %+v", name, r)
		}
	}
	return g.Generation
}
