package group

import (
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// goldenGroups are groups in every field, and the bytes that version 1 of the encodings makes of them. They stay: databases
// hold such rows.
func goldenGroups() []struct {
	g             *Group
	group, member string
} {
	classic := New("g")
	classic.Kind, classic.State, classic.Since, classic.ProtocolType = metadata.GroupClassic, Preparing, 99, "connect"
	classic.Generation, classic.Protocol, classic.Leader = 7, "range", "m"
	classic.JoinDeadline, classic.Initial, classic.Remaining, classic.NewMember, classic.SyncDeadline = 1000, true, 5*time.Second, true, 2000
	classic.Pending["p"] = 3000
	classic.Members["m"] = &Member{
		ID: "m", Instance: "i", ClientID: "c", ClientHost: "/h", Session: time.Second, Rebalance: time.Minute, Heard: 5,
		HeardBy: metadata.AgentID{8}, Protocols: []Protocol{{"range", []byte{1, 2}}, {"sticky", []byte{}}}, Assignment: []byte{3},
		Joined: true, Synced: true,
	}
	consumer := New("g")
	consumer.Kind, consumer.State, consumer.Since, consumer.ProtocolType = metadata.GroupConsumer, Stable, 99, ConsumerProtocol
	consumer.Consumer = &Consumer{Epoch: 5, TargetEpoch: 4, Topics: map[string]Topic{"t": topic(1, 9)}}
	consumer.Members["m"] = &Member{
		ID: "m", ClientID: "c", Session: time.Second, Heard: 5, HeardBy: metadata.AgentID{8}, Assignment: []byte{},
		Consumer: &ConsumerMember{
			Epoch: 4, PrevEpoch: 3, State: MemberUnrevoked, Topics: []string{"t", "u"}, Regex: "a.*", Rack: "r", Assignor: "range",
			Assigned: parts(1, 0, 3), Revoking: parts(1, 200), Target: parts(1, 0, 1, 3), RevokeDeadline: 50, JoinDeadline: 60,
			Classic: true, Away: true,
		},
	}
	return []struct {
		g             *Group
		group, member string
	}{
		{classic, goldenClassicGroup, goldenClassicMember}, {consumer, goldenConsumerGroup, goldenConsumerMember},
	}
}

const (
	goldenClassicGroup   = "01010e0572616e6765016dd00f0180c8afa02501a01f010170f02e00"
	goldenClassicMember  = "010163022f6880e0ba84bf03020572616e676502010206737469636b79000103010100"
	goldenConsumerGroup  = "0103000000000000000000010a080101740100000000000000000000000000000012"
	goldenConsumerMember = "01016300000000000001080601020174017503612e2a01720572616e67650101000000000000000000000000000000020103010100000000000000000000000000000001c90101010000000000000000000000000000000301010264780101"
)

func TestGoldenBytes(t *testing.T) {
	for _, c := range goldenGroups() {
		if got := hex.EncodeToString(c.g.encode()); got != c.group {
			t.Errorf("group is %s, want %s", got, c.group)
		}
		if got := hex.EncodeToString(c.g.Members["m"].encode()); got != c.member {
			t.Errorf("member is %s, want %s", got, c.member)
		}
		group, err := hex.DecodeString(c.group)
		if err != nil {
			t.Fatal(err)
		}
		member, err := hex.DecodeString(c.member)
		if err != nil {
			t.Fatal(err)
		}
		m := c.g.Members["m"]
		rows := &metadata.GroupRows{
			Group:   metadata.GroupRow{ID: "g", Kind: c.g.Kind, Since: 99, ProtocolType: c.g.ProtocolType, Data: group},
			Members: []metadata.MemberRow{{ID: "m", Instance: m.Instance, Session: m.Session, Heard: m.Heard, HeardBy: m.HeardBy, Data: member}},
		}
		got, err := Decode(rows)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, c.g) {
			t.Errorf("decoded %+v, want %+v", got.Members["m"].Consumer, m.Consumer)
		}
		// Whatever is cut off is noticed.
		for i := range len(group) {
			if err := New("g").decode(group[:i]); !errors.Is(err, metadata.ErrCorrupt) {
				t.Errorf("%d bytes of a group: %v", i, err)
			}
		}
		for i := range len(member) {
			if err := new(Member).decode(member[:i]); !errors.Is(err, metadata.ErrCorrupt) {
				t.Errorf("%d bytes of a member: %v", i, err)
			}
		}
	}
}

// FuzzDecode: no bytes make decoding panic, or take memory beyond what they are.
func FuzzDecode(f *testing.F) {
	for _, c := range goldenGroups() {
		f.Add(c.g.encode())
		f.Add(c.g.Members["m"].encode())
		f.Add(subscription("topic", 1, 2))
		f.Add(AppendAssignment(nil, 1, map[string][]int32{"t": {1}}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if g := New("g"); g.decode(b) == nil && len(g.encode()) > 2*len(b)+16 {
			t.Errorf("group of %d bytes becomes %d", len(b), len(g.encode()))
		}
		_ = new(Member).decode(b)
		_, _ = ParseSubscription(b)
		_, _ = ParseAssignment(b)
	})
}
