package group

import (
	"slices"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// beat sends a heartbeat of a member.
func (w *world) beat(r HeartbeatRequest) HeartbeatReply {
	w.t.Helper()
	if code, text := r.Check(); code != None {
		return HeartbeatReply{Code: code, Message: text}
	}
	var out HeartbeatReply
	w.change(func(e Event, g *Group) { out = g.ConsumerHeartbeat(e, r) })
	return out
}

// first is a member's first heartbeat.
func first(id string, topics ...string) HeartbeatRequest {
	return HeartbeatRequest{Member: metadata.MemberID(id), Rebalance: time.Minute, Topics: topics, Owned: Assignment{}}
}

// next is a heartbeat that says nothing new.
func next(id string, epoch int32) HeartbeatRequest {
	return HeartbeatRequest{Member: metadata.MemberID(id), Epoch: epoch, Rebalance: -1}
}

func parts(id byte, list ...int32) Assignment {
	if len(list) == 0 {
		return Assignment{}
	}
	return Assignment{metadata.TopicID{id}: list}
}

func (w *world) ok(what string, r HeartbeatReply, epoch int32, want Assignment) {
	w.t.Helper()
	if r.Code != None || r.Epoch != epoch || (want == nil) != (r.Assignment == nil) || !r.Assignment.equal(want) {
		w.t.Fatalf("%s: %+v, want epoch %d and %v", what, r, epoch, want)
	}
}

func TestHandover(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 4)
	w.ok("a joins", w.beat(first("a", "t")), 1, parts(1, 0, 1, 2, 3))
	w.ok("a goes on", w.beat(next("a", 1)), 1, nil)
	// b joins: nothing is free before a has given it up.
	w.ok("b joins", w.beat(first("b", "t")), 2, Assignment{})
	if s := w.load().Shown(); s != Reconciling {
		t.Fatalf("state %v", s)
	}
	r := w.beat(next("a", 1))
	if r.Code != None || r.Epoch != 1 || r.Assignment.size() != 2 {
		t.Fatalf("a is told to give up: %+v", r)
	}
	kept := r.Assignment
	w.ok("b waits", w.beat(next("b", 2)), 2, nil)
	w.ok("a has not given up yet", w.beat(next("a", 1)), 1, nil)
	q := next("a", 1)
	q.Owned = kept
	w.ok("a gave up", w.beat(q), 2, nil)
	r = w.beat(next("b", 2))
	if r.Epoch != 2 || r.Assignment.size() != 2 || r.Assignment.meets(kept) {
		t.Fatalf("b gets %v, a has %v", r.Assignment, kept)
	}
	if s := w.load().Shown(); s != Stable {
		t.Fatalf("state %v", s)
	}
	// a leaves: b gets all.
	q = next("a", EpochLeave)
	if r = w.beat(q); r.Code != None || r.Epoch != EpochLeave {
		t.Fatalf("leave: %+v", r)
	}
	w.ok("b gets all", w.beat(next("b", 2)), 3, parts(1, 0, 1, 2, 3))
}

func TestRevocationTimeout(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	w.beat(first("a", "t"))
	w.beat(first("b", "t"))
	w.beat(next("a", 1)) // told to give up one
	w.pass(time.Minute-time.Millisecond, "a", "b")
	if len(w.load().Members) != 2 {
		t.Fatal("fenced too early")
	}
	w.pass(time.Millisecond, "a", "b")
	wantCode(t, "a is fenced", w.beat(next("a", 1)).Code, UnknownMemberID)
	w.ok("b gets all", w.beat(next("b", 2)), 3, parts(1, 0, 1))
}

func TestEpochs(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	wantCode(t, "no group", w.beat(next("a", 5)).Code, GroupIDNotFound)
	w.beat(first("a", "t"))
	wantCode(t, "ahead", w.beat(next("a", 2)).Code, FencedMemberEpoch)
	wantCode(t, "unknown", w.beat(next("x", 1)).Code, UnknownMemberID)
	w.topics["t"] = topic(1, 3)
	w.ok("more partitions", w.beat(next("a", 1)), 2, parts(1, 0, 1, 2))
	// The answer was lost: the previous epoch will do as long as what it owns fits.
	wantCode(t, "previous, silent", w.beat(next("a", 1)).Code, FencedMemberEpoch)
	q := next("a", 1)
	q.Owned = parts(1, 0, 1)
	w.ok("previous", w.beat(q), 2, nil)
	q.Owned = parts(1, 7)
	wantCode(t, "previous, owns more", w.beat(q).Code, FencedMemberEpoch)
	check := func(epoch int32) Code {
		code, err := CheckCommit(&w.rows.Group, w.rows.Members, Committer{Member: "a", Generation: epoch})
		if err != nil {
			t.Fatal(err)
		}
		return code
	}
	wantCode(t, "commit", check(2), None)
	wantCode(t, "stale commit", check(1), StaleMemberEpoch)
}

func TestBadHeartbeats(t *testing.T) {
	empty, bad, odd := "", "(", "sticky"
	for name, c := range map[string]struct {
		change func(*HeartbeatRequest)
		want   Code
	}{
		"no rebalance timeout":  {func(r *HeartbeatRequest) { r.Rebalance = -1 }, InvalidRequest},
		"owns something":        {func(r *HeartbeatRequest) { r.Owned = parts(1, 1) }, InvalidRequest},
		"no owned":              {func(r *HeartbeatRequest) { r.Owned = nil }, InvalidRequest},
		"no subscription":       {func(r *HeartbeatRequest) { r.Topics = nil }, InvalidRequest},
		"no id":                 {func(r *HeartbeatRequest) { r.Member = "" }, InvalidRequest},
		"empty instance":        {func(r *HeartbeatRequest) { r.Instance = &empty }, InvalidRequest},
		"epoch -3":              {func(r *HeartbeatRequest) { r.Epoch = -3 }, InvalidRequest},
		"away without instance": {func(r *HeartbeatRequest) { r.Epoch = EpochAway }, InvalidRequest},
		"assignor":              {func(r *HeartbeatRequest) { r.Assignor = &odd }, UnsupportedAssignor},
		"regex":                 {func(r *HeartbeatRequest) { r.Regex = &bad }, InvalidRegularExpression},
	} {
		w := newWorld(t)
		r := first("a", "t")
		c.change(&r)
		wantCode(t, name, w.beat(r).Code, c.want)
		if w.rows.Group.Version != 0 {
			t.Errorf("%s left a group", name)
		}
	}
}

func TestRegex(t *testing.T) {
	w := newWorld(t)
	w.topics["logs.a"], w.topics["logs.b"], w.topics["other.logs.a"] = topic(1, 1), topic(2, 1), topic(3, 1)
	re := `logs\..*`
	r := first("a")
	r.Topics, r.Regex = nil, &re
	w.ok("joins", w.beat(r), 1, Assignment{metadata.TopicID{1}: {0}, metadata.TopicID{2}: {0}})
	w.topics["logs.c"] = topic(4, 1)
	if got := w.beat(next("a", 1)); got.Assignment.size() != 3 {
		t.Fatalf("a new topic: %+v", got)
	}
}

func TestStaticConsumer(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	i := "i"
	join := func(id string) HeartbeatRequest {
		r := first(id, "t")
		r.Instance = &i
		return r
	}
	w.ok("joins", w.beat(join("a1")), 1, parts(1, 0, 1))
	wantCode(t, "still held", w.beat(join("a2")).Code, UnreleasedInstanceID)
	away := next("a1", EpochAway)
	away.Instance = &i
	if r := w.beat(away); r.Code != None || r.Epoch != EpochAway {
		t.Fatalf("away: %+v", r)
	}
	w.ok("comes back", w.beat(join("a2")), 1, parts(1, 0, 1)) // the group did not move
	late := next("a1", 1)
	late.Instance = &i
	wantCode(t, "the old one", w.beat(late).Code, FencedInstanceID)
	// Away for longer than the session: gone.
	away.Member = "a2"
	w.beat(away)
	w.pass(45 * time.Second)
	if g := w.load(); len(g.Members) != 0 || g.Shown() != Empty {
		t.Fatalf("%d members, %v", len(g.Members), g.Shown())
	}
}

func TestSettled(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	w.beat(first("a", "t"))
	if r, ok := w.load().Settled(next("a", 1)); !ok || r.Epoch != 1 || r.Assignment != nil {
		t.Fatalf("%+v %v", r, ok)
	}
	again := next("a", 1)
	again.Owned = parts(1, 0, 1)
	if _, ok := w.load().Settled(again); !ok {
		t.Error("an acknowledgement of what is known anyway")
	}
	for name, r := range map[string]HeartbeatRequest{
		"another epoch": next("a", 0), "unknown": next("b", 1),
		"new topics": {Member: "a", Epoch: 1, Rebalance: -1, Topics: []string{"u"}},
	} {
		if _, ok := w.load().Settled(r); ok {
			t.Errorf("%s is settled", name)
		}
	}
	w.beat(first("b", "t"))
	for _, r := range []HeartbeatRequest{next("a", 1), next("b", 2)} {
		_, settled := w.load().Settled(r)
		if want := r.Member == "b"; settled != want { // b waits for a
			t.Errorf("%s: settled %v", r.Member, settled)
		}
	}
}

func TestAssignors(t *testing.T) {
	topics := map[string]Topic{"a": topic(1, 7), "b": topic(2, 5), "c": topic(3, 0)}
	all := func(id string, now Assignment) assignee {
		return assignee{id: metadata.MemberID(id), topics: topics, now: now}
	}
	members := []assignee{all("m1", nil), all("m2", nil), all("m3", nil)}
	uniform := assign(AssignorUniform, members, topics)
	for id, a := range uniform {
		if a.size() != 4 {
			t.Errorf("uniform: %s has %d of 12", id, a.size())
		}
	}
	ranged := assign(AssignorRange, members, topics)
	if want := []int32{0, 1, 2}; !slices.Equal(ranged["m1"][metadata.TopicID{1}], want) {
		t.Errorf("range: m1 has %v of a", ranged["m1"])
	}
	// A fourth member takes its share and nothing else moves.
	members = []assignee{all("m1", uniform["m1"]), all("m2", uniform["m2"]), all("m3", uniform["m3"]), all("m4", nil)}
	grown := assign(AssignorUniform, members, topics)
	for id, a := range grown {
		if a.size() != 3 || id != "m4" && !a.within(uniform[id]) {
			t.Errorf("after a join: %s has %v, had %v", id, a, uniform[id])
		}
	}
	// Different subscriptions: still every partition exactly once, as even as they allow.
	only := map[string]Topic{"b": topics["b"]}
	members = []assignee{{id: "m1", topics: only}, {id: "m2", topics: topics}, {id: "m3", topics: topics}}
	got := assign(AssignorUniform, members, topics)
	if n := []int{got["m1"].size(), got["m2"].size(), got["m3"].size()}; n[0] != 4 || n[1] != 4 || n[2] != 4 {
		t.Errorf("different subscriptions: %v", n)
	}
}

// subscription is a consumer's classic metadata, version 1.
func subscription(topic string, owned ...int32) []byte {
	b := []byte{0, 1, 0, 0, 0, 1, 0, byte(len(topic))}
	b = append(append(b, topic...), 255, 255, 255, 255)
	if len(owned) == 0 {
		return append(b, 0, 0, 0, 0)
	}
	b = append(b, 0, 0, 0, 1, 0, byte(len(topic)))
	b = append(append(b, topic...), 0, 0, 0, byte(len(owned)))
	for _, p := range owned {
		b = append(b, 0, 0, 0, byte(p))
	}
	return b
}

// TestRollingUpgrade takes a live classic group to the consumer protocol and back.
func TestRollingUpgrade(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 4)
	classic := func(owned ...int32) func(*JoinRequest) {
		return func(r *JoinRequest) {
			r.Protocols = []Protocol{{Name: "cooperative-sticky", Metadata: subscription("t", owned...)}}
			r.Rebalance = time.Minute
		}
	}
	w.join("a", classic())
	w.join("b", classic())
	for w.load().State == Preparing {
		w.pass(3*time.Second, "a", "b")
	}
	w.sync("a", 1, map[metadata.MemberID][]byte{
		"a": AppendAssignment(nil, 1, map[string][]int32{"t": {0, 1}}), "b": AppendAssignment(nil, 1, map[string][]int32{"t": {2, 3}}),
	})
	w.sync("b", 1, nil)

	// b is upgraded: it leaves and comes back with the new protocol.
	w.change(func(e Event, g *Group) { g.Leave(e, []Leaver{{Member: "b"}}) })
	w.join("a", classic(0, 1))
	w.sync("a", 2, map[metadata.MemberID][]byte{"a": AppendAssignment(nil, 1, map[string][]int32{"t": {0, 1, 2, 3}})})
	r := w.beat(first("b2", "t"))
	g := w.load()
	if r.Code != None || g.Kind != metadata.GroupConsumer || r.Epoch != 3 || r.Assignment.size() != 0 {
		t.Fatalf("b joins: %+v, kind %d", r, g.Kind)
	}
	code, heard := g.Heartbeat("a", "", 2)
	if wantCode(t, "a is told to rejoin", code, RebalanceInProgress); !heard || !g.NeedsRejoinNote("a") {
		t.Fatal("the rejoin is not noted")
	}
	w.change(func(e Event, g *Group) { g.HeartbeatRejoin(e, "a") })
	j := w.join("a", classic(0, 1, 2, 3))
	if j.Code != None || j.Wait || j.Generation != 2 {
		t.Fatalf("a rejoins with all: %+v", j)
	}
	s := w.sync("a", j.Generation, nil)
	has, err := ParseAssignment(s.Assignment)
	if err != nil || s.Code != None || len(has["t"]) != 2 {
		t.Fatalf("a is left with %v (%+v, %v)", has, s, err)
	}
	j = w.join("a", classic(has["t"]...)) // it gave up the others
	if j.Code != None || j.Generation != 3 {
		t.Fatalf("a rejoins with what is left: %+v", j)
	}
	if s = w.sync("a", 3, nil); s.Code != None {
		t.Fatalf("sync: %+v", s)
	}
	if r = w.beat(next("b2", 3)); r.Assignment.size() != 2 {
		t.Fatalf("b gets %+v", r)
	}
	if code, _ = w.load().Heartbeat("a", "", 3); code != None {
		t.Fatalf("heartbeat of a: %d", code)
	}
	if c, err := CheckCommit(&w.rows.Group, w.rows.Members, Committer{Member: "a", Generation: 3}); c != None || err != nil {
		t.Fatalf("commit of a: %d %v", c, err)
	}

	// Back: b leaves, and a classic group is left that rebalances.
	w.beat(next("b2", EpochLeave))
	g = w.load()
	if g.Kind != metadata.GroupClassic || g.State != Preparing || len(g.Members) != 1 {
		t.Fatalf("kind %d, %v, %d members", g.Kind, g.State, len(g.Members))
	}
	if code, _ = g.Heartbeat("a", "", 3); code != RebalanceInProgress {
		t.Fatalf("a is told %d: it would give up its partitions as lost", code)
	}
	j = w.join("a", classic(has["t"]...))
	if a, ok := w.answer(j); !ok || a.Leader != "a" || a.Generation <= 3 || len(a.Members) != 1 {
		t.Fatalf("a leads again: %+v %v", a, ok)
	}
}

func TestClassicMemberMustRejoin(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	w.join("a", func(r *JoinRequest) { r.Protocols = []Protocol{{Name: "range", Metadata: subscription("t")}} })
	w.pass(3*time.Second, "a")
	w.sync("a", 1, map[metadata.MemberID][]byte{"a": AppendAssignment(nil, 0, map[string][]int32{"t": {0, 1}})})
	w.beat(first("b", "t"))
	w.change(func(e Event, g *Group) { g.HeartbeatRejoin(e, "a") })
	w.pass(20*time.Second, "a", "b")
	if g := w.load(); g.Members["a"] != nil || len(g.Members) != 1 {
		t.Fatal("a never rejoined and is still there")
	}
	w.ok("b gets all", w.beat(next("b", 2)), 3, parts(1, 0, 1))
}

func TestOtherProtocolTypesAreNotConverted(t *testing.T) {
	w := newWorld(t)
	w.join("a", func(r *JoinRequest) { r.ProtocolType = "connect" })
	wantCode(t, "join", w.beat(first("b", "t")).Code, GroupIDNotFound)
}
