package group

import (
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

func wantCode(t *testing.T, what string, got, want Code) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: code %d, want %d", what, got, want)
	}
}

func wantState(t *testing.T, g *Group, s State, generation int32, members int) {
	t.Helper()
	if g.State != s || g.Generation != generation || len(g.Members) != members {
		t.Fatalf("group is %v, generation %d, %d members; want %v, %d, %d", g.State, g.Generation, len(g.Members), s, generation, members)
	}
}

func TestInitialDelayIsExtendedByJoins(t *testing.T) {
	w := newWorld(t)
	a := w.join("a")
	w.pass(2 * time.Second)
	b := w.join("b") // during the delay: it is extended once more
	wantState(t, w.pass(time.Second), Preparing, 0, 2)
	if _, ok := w.answer(a); ok {
		t.Fatal("a is answered before the delay is over")
	}
	g := w.pass(3 * time.Second)
	wantState(t, g, Completing, 1, 2)
	ra, _ := w.answer(a)
	rb, _ := w.answer(b)
	if ra.Leader != "a" || len(ra.Members) != 2 || rb.Leader != "a" || len(rb.Members) != 0 || ra.Protocol != "range" {
		t.Fatalf("answers %+v and %+v", ra, rb)
	}
}

func TestInitialDelayEndsAtTheLongestRebalanceTimeout(t *testing.T) {
	w := newWorld(t)
	w.join("a", func(r *JoinRequest) { r.Rebalance = 7 * time.Second })
	for i := range 2 {
		w.join(string(rune('b'+i)), func(r *JoinRequest) { r.Rebalance = 7 * time.Second })
		wantState(t, w.pass(3*time.Second), Preparing, 0, 2+i)
	}
	w.join("d", func(r *JoinRequest) { r.Rebalance = 7 * time.Second })
	wantState(t, w.pass(time.Second), Completing, 1, 4) // 3 + 3 + 1
}

func TestSessionTimeoutBounds(t *testing.T) {
	for _, session := range []time.Duration{0, 5999 * time.Millisecond, 30*time.Minute + time.Millisecond} {
		w := newWorld(t)
		wantCode(t, session.String(), w.join("a", func(r *JoinRequest) { r.Session = session }).Code, InvalidSessionTimeout)
		if w.rows.Group.Version != 0 {
			t.Fatal("a refused join left a group")
		}
	}
}

func TestMemberIDRequired(t *testing.T) {
	w := newWorld(t)
	known := func(r *JoinRequest) { r.RequireKnown = true }
	r := w.join("a", known)
	wantCode(t, "first join", r.Code, MemberIDRequired)
	if r.Member != "a" {
		t.Fatalf("id %q", r.Member)
	}
	if g := w.load(); len(g.Members) != 0 || len(g.Pending) != 1 {
		t.Fatal("the id is not pending")
	}
	if r = w.join("a", known); !r.Wait {
		t.Fatalf("second join: %+v", r)
	}
	// Who never comes back is forgotten after its session timeout.
	w.join("b", known)
	w.pass(3*time.Second, "a")
	if g := w.pass(7*time.Second, "a"); len(g.Pending) != 0 {
		t.Fatal("b is still pending")
	}
}

func TestPendingMemberHoldsTheRebalance(t *testing.T) {
	w := newWorld(t)
	generation := w.stable("a")
	w.join("b", func(r *JoinRequest) { r.RequireKnown = true })
	wantState(t, w.load(), Stable, generation, 1) // an id alone moves nothing
	r := w.join("a", func(r *JoinRequest) { r.Protocols = []Protocol{{Name: "range", Metadata: []byte("other")}} })
	wantState(t, w.load(), Preparing, generation, 1)
	w.join("b", func(r *JoinRequest) { r.RequireKnown = true })
	wantState(t, w.load(), Completing, generation+1, 2)
	if _, ok := w.answer(r); !ok {
		t.Fatal("a is not answered")
	}
}

func TestUnknownMember(t *testing.T) {
	w := newWorld(t)
	wantCode(t, "unknown id, no group", w.join("x", func(r *JoinRequest) { r.Member = "x" }).Code, UnknownMemberID)
	g := w.stable("a")
	wantCode(t, "unknown id", w.join("x", func(r *JoinRequest) { r.Member = "x" }).Code, UnknownMemberID)
	wantCode(t, "sync", w.sync("x", g, nil).Code, UnknownMemberID)
	code, heard := w.load().Heartbeat("x", "", g)
	if wantCode(t, "heartbeat", code, UnknownMemberID); heard {
		t.Fatal("an unknown member was heard")
	}
	wantCode(t, "stale generation", w.sync("a", g-1, nil).Code, IllegalGeneration)
	code, _ = w.load().Heartbeat("a", "", g-1)
	wantCode(t, "stale heartbeat", code, IllegalGeneration)
}

func TestProtocols(t *testing.T) {
	protocols := func(names ...string) func(*JoinRequest) {
		return func(r *JoinRequest) {
			r.Protocols = nil
			for _, n := range names {
				r.Protocols = append(r.Protocols, Protocol{Name: n})
			}
		}
	}
	w := newWorld(t)
	wantCode(t, "none", w.join("a", protocols()).Code, InconsistentProtocol)
	w.join("a", protocols("x", "y"))
	w.join("b", protocols("z", "y", "x"))
	w.join("c", protocols("y", "x"))
	wantCode(t, "nothing in common", w.join("d", protocols("z")).Code, InconsistentProtocol)
	wantCode(t, "another type", w.join("d", protocols("y"), func(r *JoinRequest) { r.ProtocolType = "connect" }).Code, InconsistentProtocol)
	for w.load().State == Preparing {
		w.pass(3 * time.Second)
	}
	if g := w.load(); g.Protocol != "y" { // b votes for y: z is not common
		t.Fatalf("protocol %q", g.Protocol)
	}
}

func TestRebalanceDropsWhoDoesNotRejoin(t *testing.T) {
	w := newWorld(t)
	g := w.stable("a", "b")
	r := w.join("c")
	code, heard := w.load().Heartbeat("a", "", g)
	if wantCode(t, "heartbeat while preparing", code, RebalanceInProgress); !heard {
		t.Fatal("a heartbeat while preparing must renew the session")
	}
	w.join("a")
	w.pass(10*time.Second, "a", "b", "c")
	wantState(t, w.pass(9*time.Second, "a", "b", "c"), Preparing, g, 3)
	wantState(t, w.pass(time.Second, "a", "b", "c"), Completing, g+1, 2) // b heartbeats but never rejoins
	if _, ok := w.answer(r); !ok {
		t.Fatal("c is not answered")
	}
	code, _ = w.load().Heartbeat("b", "", g)
	wantCode(t, "heartbeat of b", code, UnknownMemberID)
}

func TestRejoinInStable(t *testing.T) {
	w := newWorld(t)
	g := w.stable("a", "b")
	r := w.join("b")
	if r.Wait || r.Code != None || r.Generation != g || len(r.Members) != 0 {
		t.Fatalf("unchanged follower: %+v", r)
	}
	if r = w.join("a"); !r.Wait {
		t.Fatalf("leader: %+v", r)
	}
	wantState(t, w.load(), Preparing, g, 2)
}

func TestSyncTimeout(t *testing.T) {
	w := newWorld(t)
	w.join("a")
	w.join("b")
	for w.load().State == Preparing {
		w.pass(3*time.Second, "a", "b")
	}
	w.sync("a", 1, map[metadata.MemberID][]byte{"a": []byte("x")})
	wantState(t, w.pass(10*time.Second, "a", "b"), Stable, 1, 2)
	wantState(t, w.pass(10*time.Second, "a", "b"), Preparing, 1, 1) // b never synced
}

func TestSessionExpires(t *testing.T) {
	w := newWorld(t)
	g := w.stable("a", "b")
	w.pass(9*time.Second, "a")
	wantState(t, w.load(), Stable, g, 2)
	wantState(t, w.pass(time.Second, "a"), Preparing, g, 1)
	w.join("a")
	wantState(t, w.load(), Completing, g+1, 1)
	g2 := w.pass(10 * time.Second)
	wantState(t, g2, Empty, g+2, 0)
}

// TestExpiryAndAgents: a member goes only when the agent that heard it wrote back past the deadline, or is dead for a whole
// session.
func TestExpiryAndAgents(t *testing.T) {
	other := metadata.AgentID{2}
	w := newWorld(t)
	g := w.stable("a")
	w.rows.Members[0].Heard, w.rows.Members[0].HeardBy = w.now, other
	start := w.now
	w.contacts[other] = metadata.Contact{Since: 1, Seen: w.now}

	// The other agent writes back, but not past the deadline.
	w.contacts[other] = metadata.Contact{Since: 1, Seen: w.now.Add(9999 * time.Millisecond)}
	wantState(t, w.pass(15*time.Second), Stable, g, 1)
	// It is dead now: a full session from its last write-back, and not just late.
	wantState(t, w.pass(4*time.Second), Stable, g, 1)
	w.now = start.Add(19_999 * time.Millisecond)
	wantState(t, w.pass(0), Stable, g, 1)
	wantState(t, w.pass(time.Millisecond), Empty, g+1, 0)
}

func TestOutageExpiresNobody(t *testing.T) {
	w := newWorld(t)
	other := metadata.AgentID{2}
	g := w.stable("a", "b")
	w.rows.Members[1].HeardBy = other
	w.contacts[other] = w.contacts[w.agent]
	// The database is away for an hour. This agent is the first to be back: its contact begins anew.
	w.now = w.now.Add(time.Hour)
	w.contacts[w.agent] = metadata.Contact{Since: w.now, Seen: w.now}
	wantState(t, w.change(func(e Event, g *Group) { g.Tick(e) }), Stable, g, 2)
	// The members get a whole session from there.
	wantState(t, w.pass(9*time.Second), Stable, g, 2)
	wantState(t, w.pass(time.Second, "a"), Preparing, g, 1) // b's agent never came back
}

func TestStaticMembers(t *testing.T) {
	instance := func(name string) func(*JoinRequest) {
		return func(r *JoinRequest) { r.Instance, r.Member = name, "" }
	}
	w := newWorld(t)
	w.join("a1", instance("a"))
	w.join("b1", instance("b"))
	for w.load().State == Preparing {
		w.pass(3*time.Second, "a1", "b1")
	}
	sync := func(member, inst string, generation int32) SyncReply {
		var out SyncReply
		w.change(func(e Event, g *Group) {
			out = g.Sync(e, SyncRequest{
				Member: metadata.MemberID(member), Instance: inst, Generation: generation,
				Assignments: map[metadata.MemberID][]byte{"a1": []byte("A"), "b1": []byte("B")},
			})
		})
		return out
	}
	wantCode(t, "leader's sync", sync("a1", "a", 1).Code, None)
	wantCode(t, "follower's sync", sync("b1", "b", 1).Code, None)

	// A follower that restarts gets the same assignment under a new id, without a rebalance.
	r := w.join("b2", instance("b"))
	if r.Wait || r.Code != None || r.Generation != 1 || r.Member != "b2" || r.Leader != "a1" {
		t.Fatalf("restarted follower: %+v", r)
	}
	if s := sync("b2", "b", 1); s.Code != None || string(s.Assignment) != "B" {
		t.Fatalf("its sync: %+v", s)
	}
	wantCode(t, "the old id's sync", sync("b1", "b", 1).Code, FencedInstanceID)
	code, _ := w.load().Heartbeat("b1", "b", 1)
	wantCode(t, "the old id's heartbeat", code, FencedInstanceID)

	// A leader that restarts: version 9 is told to skip the assignment, older ones that somebody else leads.
	r = w.join("a2", instance("a"), func(r *JoinRequest) { r.SkipAssign = true })
	if r.Wait || !r.SkipAssign || r.Leader != "a2" || len(r.Members) != 2 {
		t.Fatalf("restarted leader: %+v", r)
	}
	r = w.join("a3", instance("a"))
	if r.Wait || r.SkipAssign || r.Leader != "a2" || len(r.Members) != 0 {
		t.Fatalf("restarted leader of an older version: %+v", r)
	}
	wantState(t, w.load(), Stable, 1, 2)

	// A rebalance keeps static members that do not rejoin.
	w.join("c")
	w.change(func(e Event, g *Group) {
		g.Join(e, JoinRequest{Member: "a3", Instance: "a", Session: 10 * time.Second, Rebalance: 20 * time.Second,
			ProtocolType: ConsumerProtocol, Protocols: []Protocol{{Name: "range"}}})
	})
	w.pass(10*time.Second, "a3", "b2", "c")
	wantState(t, w.pass(10*time.Second, "a3", "b2", "c"), Completing, 2, 3)
	// They leave by their instance.
	var codes []Code
	w.change(func(e Event, g *Group) {
		codes = g.Leave(e, []Leaver{{Instance: "b"}, {Instance: "nobody"}, {Member: "x"}, {Member: "b1", Instance: "a"}})
	})
	if codes[0] != None || codes[1] != UnknownMemberID || codes[2] != UnknownMemberID || codes[3] != FencedInstanceID {
		t.Fatalf("codes %v", codes)
	}
}

func TestGroupMaxSize(t *testing.T) {
	w := newWorld(t)
	w.settings.MaxSize = 2
	w.join("a")
	w.join("b")
	wantCode(t, "third", w.join("c").Code, GroupMaxSizeReached)
	for w.load().State == Preparing {
		w.pass(3*time.Second, "a", "b")
	}
	wantCode(t, "third, completing", w.join("c").Code, GroupMaxSizeReached)
}

func TestCommitRules(t *testing.T) {
	w := newWorld(t)
	check := func(c Committer) Code {
		t.Helper()
		code, err := CheckCommit(&w.rows.Group, w.rows.Members, c)
		if err != nil {
			t.Fatal(err)
		}
		return code
	}
	alone := Committer{Generation: -1}
	wantCode(t, "no group, not a member", check(alone), None)
	wantCode(t, "no group, a member", check(Committer{Member: "a", Generation: 1}), GroupIDNotFound)
	g := w.stable("a", "b")
	wantCode(t, "not a member", check(alone), UnknownMemberID)
	wantCode(t, "unknown member", check(Committer{Member: "x", Generation: g}), UnknownMemberID)
	wantCode(t, "stale", check(Committer{Member: "a", Generation: g - 1}), IllegalGeneration)
	wantCode(t, "member", check(Committer{Member: "a", Generation: g}), None)
	wantCode(t, "unknown instance", check(Committer{Member: "a", Instance: "i", Generation: g}), UnknownMemberID)
	w.join("c")
	wantCode(t, "preparing", check(Committer{Member: "a", Generation: g}), None)
	w.join("a")
	w.join("b")
	wantState(t, w.load(), Completing, g+1, 3)
	wantCode(t, "completing", check(Committer{Member: "a", Generation: g + 1}), RebalanceInProgress)
	w.change(func(e Event, g *Group) { g.Leave(e, []Leaver{{Member: "a"}, {Member: "b"}, {Member: "c"}}) })
	wantCode(t, "empty again", check(alone), None)
}

func TestDuplicateJoinWhileWaiting(t *testing.T) {
	w := newWorld(t)
	g := w.stable("a", "b")
	first := w.join("a", func(r *JoinRequest) { r.Protocols[0].Metadata = []byte("new") })
	again := w.join("a", func(r *JoinRequest) { r.Protocols[0].Metadata = []byte("new") })
	w.join("b")
	wantState(t, w.load(), Completing, g+1, 2)
	for _, r := range []JoinReply{first, again} {
		if got, ok := w.answer(r); !ok || got.Generation != g+1 {
			t.Fatalf("answer %+v %v", got, ok)
		}
	}
}

func TestExpiredOffsets(t *testing.T) {
	day := 24 * time.Hour
	w := newWorld(t)
	w.topics["t"], w.topics["u"] = topic(1, 1), topic(2, 1)
	old := func(id byte, at metadata.Millis) metadata.GroupOffset {
		return metadata.GroupOffset{TopicPartition: metadata.TopicPartition{Topic: metadata.TopicID{id}}, Committed: at}
	}
	sub := func(r *JoinRequest) {
		r.Protocols[0].Metadata = []byte{0, 0, 0, 0, 0, 1, 0, 1, 't', 255, 255, 255, 255}
	}
	w.join("a", sub)
	w.pass(3*time.Second, "a")
	start := w.now
	offsets := []metadata.GroupOffset{old(1, start), old(2, start)}
	w.now = start.Add(7 * day)
	gone, whole := w.load().ExpiredOffsets(w.event(), offsets, w.topics.Name)
	if len(gone) != 1 || gone[0].Topic != (metadata.TopicID{2}) || whole {
		t.Fatalf("of a living group: %v %v", gone, whole)
	}
	w.change(func(e Event, g *Group) { g.Leave(e, []Leaver{{Member: "a"}}) })
	w.now += metadata.Millis(7*day/time.Millisecond) - 1
	if gone, _ = w.load().ExpiredOffsets(w.event(), offsets, w.topics.Name); len(gone) != 0 {
		t.Fatalf("of a group empty for less than the retention: %v", gone)
	}
	w.now++
	if gone, whole = w.load().ExpiredOffsets(w.event(), offsets, w.topics.Name); len(gone) != 2 || !whole {
		t.Fatalf("of an empty group: %v %v", gone, whole)
	}
	simple := New("s")
	simple.Version = 1
	if gone, _ = simple.ExpiredOffsets(w.event(), []metadata.GroupOffset{old(1, w.now.Add(-7*day)), old(2, w.now.Add(-6*day))}, w.topics.Name); len(gone) != 1 {
		t.Fatalf("of a group without members ever: %v", gone)
	}
}
