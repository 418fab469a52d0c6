package group

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

// Code is a Kafka error code.
type Code int16

// Kafka's error codes that groups answer, by the names of its documentation.
const (
	None                     Code = 0
	CoordinatorNotAvailable  Code = 15
	IllegalGeneration        Code = 22
	InconsistentProtocol     Code = 23
	InvalidGroupID           Code = 24
	UnknownMemberID          Code = 25
	InvalidSessionTimeout    Code = 26
	RebalanceInProgress      Code = 27
	InvalidRequest           Code = 42
	NonEmptyGroup            Code = 68
	GroupIDNotFound          Code = 69
	MemberIDRequired         Code = 79
	GroupMaxSizeReached      Code = 81
	FencedInstanceID         Code = 82
	GroupSubscribedToTopic   Code = 86
	FencedMemberEpoch        Code = 110
	UnreleasedInstanceID     Code = 111
	UnsupportedAssignor      Code = 112
	StaleMemberEpoch         Code = 113
	InvalidRegularExpression Code = 128
)

// State is a group's state.
type State uint8

// States of groups. The numbers are in the database. Of consumer groups only Empty, Assigning, Reconciling and Stable are
// seen, and only Empty is kept: the others follow from the members.
const (
	Empty State = iota
	Preparing
	Completing
	Stable
	Dead
	Assigning
	Reconciling
)

func (s State) String() string {
	switch s {
	case Empty:
		return "Empty"
	case Preparing:
		return "PreparingRebalance"
	case Completing:
		return "CompletingRebalance"
	case Stable:
		return "Stable"
	case Dead:
		return "Dead"
	case Assigning:
		return "Assigning"
	case Reconciling:
		return "Reconciling"
	}
	return "Unknown"
}

// ConsumerProtocol is the protocol type of consumers.
const ConsumerProtocol = "consumer"

// Settings are the group.* settings.
type Settings struct {
	InitialDelay      time.Duration // group.initial.rebalance.delay.ms
	MinSession        time.Duration // group.min.session.timeout.ms
	MaxSession        time.Duration // group.max.session.timeout.ms
	MaxSize           int           // members: group.max.size
	ConsumerHeartbeat time.Duration // group.consumer.heartbeat.interval.ms
	ConsumerSession   time.Duration // group.consumer.session.timeout.ms
	OffsetRetention   time.Duration // offsets.retention.minutes
	MaxOffsetMetadata int           // bytes: offset.metadata.max.bytes
}

// Validate says what is wrong with settings.
func (s Settings) Validate() error {
	switch {
	case s.InitialDelay < 0:
		return fmt.Errorf("group-initial-rebalance-delay %v is negative", s.InitialDelay)
	case s.MinSession <= 0 || s.MaxSession < s.MinSession:
		return fmt.Errorf("group session timeouts from %v to %v: want the least above 0 and not above the most", s.MinSession, s.MaxSession)
	case s.MaxSize < 1:
		return fmt.Errorf("group-max-size %d is below 1", s.MaxSize)
	case s.ConsumerHeartbeat <= 0 || s.ConsumerSession <= s.ConsumerHeartbeat:
		return fmt.Errorf("group-consumer-session-timeout %v is not above group-consumer-heartbeat-interval %v", s.ConsumerSession, s.ConsumerHeartbeat)
	case s.OffsetRetention <= 0 || s.MaxOffsetMetadata < 0:
		return fmt.Errorf("retention of offsets %v or their metadata's size %d is out of bounds", s.OffsetRetention, s.MaxOffsetMetadata)
	}
	return nil
}

// Defaults are Kafka's.
func Defaults() Settings {
	return Settings{
		InitialDelay: 3 * time.Second, MinSession: 6 * time.Second, MaxSession: 30 * time.Minute, MaxSize: 1<<31 - 1,
		ConsumerHeartbeat: 5 * time.Second, ConsumerSession: 45 * time.Second, OffsetRetention: 7 * 24 * time.Hour,
		MaxOffsetMetadata: 4096,
	}
}

// Event is what surrounds an event: when it happens by the database's clock, which agent hears it, and the settings.
type Event struct {
	Now      metadata.Millis
	Agent    metadata.AgentID
	Settings Settings
	Topics   Topics // nil where the group is a classic one for sure
}

// Protocol is one of the protocols that a classic member supports, by its preference.
type Protocol struct {
	Name     string
	Metadata []byte
}

// Member is a member of a group. The classic part is there when the member speaks the classic protocol.
type Member struct {
	ID         metadata.MemberID
	Instance   string // group.instance.id, "" for none: a dynamic member
	ClientID   string
	ClientHost string
	Session    time.Duration
	Rebalance  time.Duration // how long a rebalance waits for it
	Heard      metadata.Millis
	HeardBy    metadata.AgentID

	// Classic protocol.
	Protocols  []Protocol
	Assignment []byte
	Joined     bool // it has joined in the rebalance under way
	Synced     bool // it has asked for its assignment in this generation

	// KIP-848; nil in classic groups.
	Consumer *ConsumerMember
}

// Static says whether the member is a static one (KIP-345).
func (m *Member) Static() bool { return m.Instance != "" }

// Group is a group. It is changed by events only; once it is shared (a snapshot) it must not be changed.
type Group struct {
	ID      metadata.GroupID
	Version int64 // as loaded; 0: new
	Kind    metadata.GroupKind
	State   State
	Since   metadata.Millis // when it came into State

	// Classic groups.
	Generation   int32
	ProtocolType string
	Protocol     string // chosen, "" for none
	Leader       metadata.MemberID
	JoinDeadline metadata.Millis // Preparing: when the rebalance ends at the latest; 0: none
	Initial      bool            // Preparing from Empty: JoinDeadline is the end of the initial delay, which may be extended
	Remaining    time.Duration   // by so much
	NewMember    bool            // somebody joined since the last extension
	SyncDeadline metadata.Millis // who has not synced by then is removed; 0: all have
	Pending      map[metadata.MemberID]metadata.Millis

	Members  map[metadata.MemberID]*Member
	Contacts map[metadata.AgentID]metadata.Contact

	Consumer *Consumer // KIP-848; nil in classic groups

	rebalances int // begun by the events so far: for the metric
	deleted    bool
}

// New makes a group that is not there yet.
func New(id metadata.GroupID) *Group {
	return &Group{ID: id, Members: map[metadata.MemberID]*Member{}, Pending: map[metadata.MemberID]metadata.Millis{}}
}

// Rebalances is how many rebalances the events since the group was loaded began.
func (g *Group) Rebalances() int { return g.rebalances }

// MarkDeleted deletes the group, with its offsets, when it is saved.
func (g *Group) MarkDeleted() { g.deleted = true }

// Deleted says whether the group is to be deleted.
func (g *Group) Deleted() bool { return g.deleted }

// Exists says whether there is such a group.
func (g *Group) Exists() bool { return g.Version != 0 }

// IDs gives the members' ids in order.
func (g *Group) IDs() []metadata.MemberID { return slices.Sorted(maps.Keys(g.Members)) }

// Sorted gives the members by id.
func (g *Group) Sorted() []*Member {
	list := slices.Collect(maps.Values(g.Members))
	slices.SortFunc(list, func(a, b *Member) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// byInstance gives the member that has a group.instance.id, or nil.
func (g *Group) byInstance(instance string) *Member {
	if instance == "" {
		return nil
	}
	for _, m := range g.Members {
		if m.Instance == instance {
			return m
		}
	}
	return nil
}

// set moves the group into a state.
func (g *Group) set(s State, now metadata.Millis) {
	if g.State != s || g.Since == 0 {
		g.State, g.Since = s, now
	}
}

// hear notes that a member was heard of.
func (m *Member) hear(e Event) { m.Heard, m.HeardBy = e.Now, e.Agent }

// expiry gives when a member's session ends, for all that is known at now; it has ended when that is not after now.
//
// A member expires only when the agent that last heard it has written back past the deadline, or is dead and a full
// session has passed since. Time during which the database was out of reach does not count: neither for the agent that
// heard it, nor for the one that judges.
func (g *Group) expiry(m *Member, e Event) metadata.Millis {
	heard := g.Contacts[m.HeardBy]
	if heard.Seen != 0 && (e.Now.Sub(heard.Seen) <= metadata.ContactLost || m.HeardBy == e.Agent) {
		end := max(m.Heard, heard.Since).Add(m.Session)
		if end <= heard.Seen {
			return end
		}
		// Its next write-back tells.
		return max(end, e.Now+1)
	}
	return max(m.Heard, heard.Seen, g.Contacts[e.Agent].Since).Add(m.Session)
}

// Timer gives when the group's next deadline is, beside the ends of sessions; 0 for none.
func (g *Group) Timer() (timer metadata.Millis) {
	least := func(t metadata.Millis) {
		if t != 0 && (timer == 0 || t < timer) {
			timer = t
		}
	}
	least(g.JoinDeadline)
	least(g.SyncDeadline)
	for _, t := range g.Pending {
		least(t)
	}
	for _, m := range g.Members {
		if m.Consumer != nil {
			least(m.Consumer.RevokeDeadline)
			least(m.Consumer.JoinDeadline)
		}
	}
	return timer
}

// due gives when the group is to be looked at again, and what of that does not come from sessions; 0 for never.
func (g *Group) due(e Event) (due, timer metadata.Millis) {
	timer = g.Timer()
	due = timer
	for _, m := range g.Members {
		if g.sessionless(m) {
			continue
		}
		if t := max(g.expiry(m, e), e.Now+1); due == 0 || t < due {
			due = t
		}
	}
	return due, timer
}

// sessionless says whether a member has no session that could end.
func (g *Group) sessionless(m *Member) bool { return m.Session <= 0 }
