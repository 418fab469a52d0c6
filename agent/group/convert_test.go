package group

import (
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// cooperative lets a join be one of a cooperative consumer of topic t that has these partitions.
func cooperative(owned ...int32) func(*JoinRequest) {
	return func(r *JoinRequest) {
		r.Protocols = []Protocol{{Name: "cooperative-sticky", Metadata: subscription("t", owned...)}}
		r.Rebalance = time.Minute
	}
}

// A member that stayed away while its group was rolled back finds no group of its protocol, and changes nothing.
func TestLateHeartbeatConvertsNothing(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	w.join("a", cooperative())
	w.pass(3*time.Second, "a")
	saves := w.saves
	wantCode(t, "late heartbeat", w.beat(next("gone", 7)).Code, GroupIDNotFound)
	w.settings.MaxSize = 1
	wantCode(t, "one too many", w.beat(first("b", "t")).Code, GroupMaxSizeReached)
	if g := w.load(); g.Kind != metadata.GroupClassic || w.saves != saves {
		t.Fatalf("group of kind %d after %d saves", g.Kind, w.saves-saves)
	}
}

// While a classic group completes a rebalance its members still work on what they own: a member of the new protocol that
// converts the group then gets nothing of it before it was given up.
func TestConversionDuringRebalance(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	w.join("a", cooperative())
	w.pass(3*time.Second, "a")
	w.sync("a", 1, map[metadata.MemberID][]byte{"a": AppendAssignment(nil, 1, map[string][]int32{"t": {0, 1}})})
	w.join("b", cooperative())
	w.join("a", cooperative(0, 1))
	wantState(t, w.load(), Completing, 2, 2)
	w.ok("c joins", w.beat(first("c", "t")), 3, Assignment{})
	if a := w.load().Members["a"].Consumer.Assigned; !a.equal(parts(1, 0, 1)) {
		t.Fatalf("a has %v", a)
	}
}

// The last member of the new protocol is restarted as a classic one under its instance id: the group is classic again.
func TestStaticMemberIsRolledBack(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	i := "i"
	r := first("new", "t")
	r.Instance = &i
	w.ok("joins", w.beat(r), 1, parts(1, 0, 1))
	j := w.join("old", cooperative(), func(r *JoinRequest) { r.Instance = i })
	g := w.load()
	if j.Code != None || g.Kind != metadata.GroupClassic || len(g.Members) != 1 || g.Members["old"] == nil {
		t.Fatalf("%+v, group of kind %d with members %v", j, g.Kind, g.IDs())
	}
	if a, ok := w.load().AnswerJoin("old", i, j.After); !ok || a.Leader != "old" || a.Generation != 2 {
		t.Fatalf("answer: %+v %v", a, ok)
	}
}

func TestCommitRulesWithoutAMember(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 2)
	check := func(c Committer) Code {
		t.Helper()
		code, err := CheckCommit(&w.rows.Group, w.rows.Members, c)
		if err != nil {
			t.Fatal(err)
		}
		return code
	}
	w.beat(first("a", "t"))
	wantCode(t, "a transaction of no member", check(Committer{Generation: -1, Transactional: true}), None)
	wantCode(t, "nobody", check(Committer{Generation: -1}), UnknownMemberID)
	wantCode(t, "a transaction of another member", check(Committer{Member: "x", Generation: -1, Transactional: true}), UnknownMemberID)
	wantCode(t, "stale", check(Committer{Member: "a", Generation: 0}), StaleMemberEpoch)
	w.beat(next("a", EpochLeave))
	w.change(func(_ Event, g *Group) { g.toEmptyClassic() })
	wantCode(t, "an empty group, with a name", check(Committer{Member: "a", Generation: -1}), None)
}

func TestPendingMembersAreBounded(t *testing.T) {
	w := newWorld(t)
	known := func(r *JoinRequest) { r.RequireKnown = true }
	w.change(func(e Event, g *Group) {
		for n := range maxPending {
			r := JoinRequest{
				NewMember: metadata.MemberID(fmt.Sprint("m", n)), RequireKnown: true, Session: 10 * time.Second,
				ProtocolType: ConsumerProtocol, Protocols: []Protocol{{Name: "range"}},
			}
			if out := g.Join(e, r); out.Code != MemberIDRequired {
				t.Fatalf("member %d: %+v", n, out)
			}
		}
	})
	wantCode(t, "one too many", w.join("x", known).Code, GroupMaxSizeReached)
	w.pass(10 * time.Second)
	wantCode(t, "when their time is over", w.join("x", known).Code, MemberIDRequired)
}

// countedTopics counts how often all topics are gone through.
type countedTopics struct {
	topicSet
	passes *int
}

func (t countedTopics) All() iter.Seq2[string, Topic] {
	*t.passes++
	return t.topicSet.All()
}

// Members with the same regular expression match the topics once, not once each.
func TestRegexIsMatchedOncePerSubscription(t *testing.T) {
	w := newWorld(t)
	w.topics["t"] = topic(1, 200)
	re := "t.*"
	for n := range 100 {
		r := first(fmt.Sprint("m", n))
		r.Topics, r.Regex = nil, &re
		w.beat(r)
	}
	g, passes := w.load(), 0
	if g.Outdated(countedTopics{w.topics, &passes}) || passes != 1 {
		t.Fatalf("%d passes over the topics", passes)
	}
}
