package group

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skeinio/skein/metadata"
)

// Topic is what a consumer group knows of a topic that it subscribes to.
type Topic struct {
	ID         metadata.TopicID
	Partitions int32
}

// Topics is the catalogue as an event sees it.
type Topics interface {
	Topic(name string) (Topic, bool)
	Name(id metadata.TopicID) string // "" for one that is not there
	All() iter.Seq2[string, Topic]
}

// Consumer is the state of a group of KIP-848's protocol.
type Consumer struct {
	Epoch       int32 // raised when members, subscriptions or topics change
	TargetEpoch int32 // the Epoch that the members' targets were made for
	Topics      map[string]Topic
}

// bump raises the epoch, once for all that changes before the next targets are made.
func (c *Consumer) bump() {
	if c.Epoch == c.TargetEpoch {
		c.Epoch++
	}
}

// MemberState is how far a member's reconciliation is.
type MemberState uint8

// States of members. The numbers are in the database.
const (
	MemberStable     MemberState = 0
	MemberUnrevoked  MemberState = 1 // it must give up partitions first
	MemberUnreleased MemberState = 2 // partitions of its target are still others'
)

// ConsumerMember is what KIP-848 adds to a member.
type ConsumerMember struct {
	Epoch     int32
	PrevEpoch int32
	State     MemberState
	Topics    []string // subscribed to by name, sorted
	Regex     string   // "" for none
	Rack      string
	Assignor  string // asked for, "" for none
	Assigned  Assignment
	Revoking  Assignment // owned, and to be given up
	Target    Assignment
	// RevokeDeadline is when the member is fenced if it has not given up Revoking; JoinDeadline when one that speaks the
	// classic protocol must have rejoined or synced. 0: none.
	RevokeDeadline metadata.Millis
	JoinDeadline   metadata.Millis
	Classic        bool // it speaks the classic protocol
	Away           bool // a static member that left for a while (epoch -2)
}

// Epochs with a meaning of their own in ConsumerGroupHeartbeat.
const (
	EpochJoin  int32 = 0
	EpochLeave int32 = -1
	EpochAway  int32 = -2 // a static member that means to come back
)

// HeartbeatRequest is a ConsumerGroupHeartbeat. Nil says that nothing has changed since the last one.
type HeartbeatRequest struct {
	Member     metadata.MemberID
	Instance   *string
	Epoch      int32
	Rack       *string
	Rebalance  time.Duration // below 0: unchanged
	Topics     []string
	Regex      *string
	Assignor   *string
	Owned      Assignment
	ClientID   string
	ClientHost string
}

// HeartbeatReply answers it. Assignment is nil when it has not changed.
type HeartbeatReply struct {
	Code       Code
	Message    string
	Member     metadata.MemberID
	Epoch      int32
	Assignment Assignment
}

func heartbeatError(code Code, format string, args ...any) HeartbeatReply {
	return HeartbeatReply{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Check says what of a request is wrong by itself.
func (r *HeartbeatRequest) Check() (Code, string) {
	switch {
	case r.Instance != nil && *r.Instance == "":
		return InvalidRequest, "InstanceId can't be empty."
	case r.Rack != nil && *r.Rack == "":
		return InvalidRequest, "RackId can't be empty."
	case r.Epoch < EpochAway:
		return InvalidRequest, fmt.Sprintf("MemberEpoch is %d, but must be greater than or equal to -2.", r.Epoch)
	case r.Epoch == EpochAway && r.Instance == nil:
		return InvalidRequest, "InstanceId can't be null."
	case r.Member == "":
		return InvalidRequest, "MemberId can't be empty."
	case r.Assignor != nil && *r.Assignor != AssignorUniform && *r.Assignor != AssignorRange:
		return UnsupportedAssignor, "ServerAssignor " + *r.Assignor + " is not supported. Supported assignors: uniform, range."
	}
	if r.Epoch == EpochJoin {
		switch {
		case r.Rebalance < 0:
			return InvalidRequest, "RebalanceTimeoutMs must be provided in first request."
		case r.Owned == nil || len(r.Owned) > 0:
			return InvalidRequest, "TopicPartitions must be empty when (re-)joining."
		case r.Topics == nil && r.Regex == nil:
			return InvalidRequest, "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining."
		}
	}
	if r.Regex != nil && *r.Regex != "" {
		if _, err := compile(*r.Regex); err != nil {
			return InvalidRegularExpression, "SubscribedTopicRegex `" + *r.Regex + "` is not a valid regular expression: " + err.Error() + "."
		}
	}
	return None, ""
}

// compile reads a regular expression that must match a whole name. Go's are RE2's.
func compile(expr string) (*regexp.Regexp, error) { return regexp.Compile("^(?:" + expr + ")$") }

// ConsumerHeartbeat applies a ConsumerGroupHeartbeat.
func (g *Group) ConsumerHeartbeat(e Event, r HeartbeatRequest) HeartbeatReply {
	if r.Epoch < EpochJoin {
		return g.consumerLeave(e, r)
	}
	if g.Kind != metadata.GroupConsumer {
		// Only who joins makes a consumer group of another one: a member that stayed away while the group was rolled back
		// does not.
		switch {
		case r.Epoch != EpochJoin:
			return heartbeatError(GroupIDNotFound, "Group %s is not a consumer group.", g.ID)
		case !g.hasRoomFor848(e, r):
			return groupFull(e)
		case !g.toConsumer(e):
			return heartbeatError(GroupIDNotFound, "Group %s is not a consumer group.", g.ID)
		}
	}
	m, reply := g.consumerMember(e, r)
	if m == nil {
		return reply
	}
	m.hear(e)
	if r.Epoch != EpochJoin && !g.epochFits(m, r.Epoch, r.Owned) {
		return heartbeatError(FencedMemberEpoch, "The consumer group member has epoch %d while the request has %d: it must abandon "+
			"all its partitions and rejoin.", m.Consumer.Epoch, r.Epoch)
	}
	if m.take848(e, r) {
		g.Consumer.bump()
	}
	before := m.Consumer.Assigned.clone()
	g.refresh(e)
	g.reconcile(e, m, r.Owned)
	reply = HeartbeatReply{Member: m.ID, Epoch: m.Consumer.Epoch}
	if r.Epoch == EpochJoin || r.Owned != nil && r.full() || !before.equal(m.Consumer.Assigned) {
		reply.Assignment = m.Consumer.Assigned.clone()
	}
	return reply
}

// hasRoomFor848 says whether the sender of a heartbeat may join: it is a member, or there is room for one more.
func (g *Group) hasRoomFor848(e Event, r HeartbeatRequest) bool {
	return g.Members[r.Member] != nil || g.byInstance(value(r.Instance)) != nil || len(g.Members) < e.Settings.MaxSize
}

func groupFull(e Event) HeartbeatReply {
	return heartbeatError(GroupMaxSizeReached, "The consumer group has reached its maximum capacity of %d members.", e.Settings.MaxSize)
}

// full says whether the request names everything, as it does when the client is not sure what the last answer was.
func (r *HeartbeatRequest) full() bool {
	return r.Rebalance >= 0 && (r.Topics != nil || r.Regex != nil) && r.Owned != nil
}

// consumerMember finds or adds the member of a heartbeat; nil with the reply that says why not.
func (g *Group) consumerMember(e Event, r HeartbeatRequest) (*Member, HeartbeatReply) {
	if r.Instance != nil {
		if old := g.byInstance(*r.Instance); old != nil {
			return g.staticMember(old, r)
		}
	}
	m := g.Members[r.Member]
	switch {
	case m == nil && r.Epoch != EpochJoin:
		return nil, heartbeatError(UnknownMemberID, "Member %s is not a member of group %s.", r.Member, g.ID)
	case m == nil && !g.hasRoomFor848(e, r):
		return nil, groupFull(e)
	case m == nil:
		m = &Member{ID: r.Member, Instance: value(r.Instance), Consumer: newConsumerMember()}
		g.Members[m.ID] = m
		g.Consumer.bump()
		g.set(Stable, e.Now)
	case m.Consumer.Classic:
		// The same member, upgraded in place.
		m.Consumer.Classic, m.Consumer.JoinDeadline, m.Protocols, m.Assignment = false, 0, nil, nil
	}
	return m, HeartbeatReply{}
}

func newConsumerMember() *ConsumerMember {
	return &ConsumerMember{Assigned: Assignment{}, Revoking: Assignment{}, Target: Assignment{}}
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// staticMember is the member of an instance that is there.
func (g *Group) staticMember(old *Member, r HeartbeatRequest) (*Member, HeartbeatReply) {
	switch {
	case old.ID == r.Member && !(old.Consumer.Away && r.Epoch != EpochJoin):
		return old, HeartbeatReply{}
	case r.Epoch != EpochJoin && old.ID == r.Member:
		return nil, heartbeatError(UnknownMemberID, "Member %s has left group %s.", r.Member, g.ID)
	case r.Epoch != EpochJoin:
		return nil, heartbeatError(FencedInstanceID, "Static member %s with instance id %s was fenced by member %s.", r.Member, old.Instance, old.ID)
	case !old.Consumer.Away && !old.Consumer.Classic:
		return nil, heartbeatError(UnreleasedInstanceID, "Static member %s with instance id %s cannot join the group because the instance "+
			"id is owned by member %s.", r.Member, old.Instance, old.ID)
	}
	// The instance comes back under a new id and takes over its target.
	m := *old
	c := *old.Consumer
	c.Epoch, c.PrevEpoch, c.State, c.Away, c.Classic = 0, 0, MemberStable, false, false
	c.Assigned, c.Revoking, c.RevokeDeadline, c.JoinDeadline = Assignment{}, Assignment{}, 0, 0
	m.ID, m.Consumer, m.Protocols, m.Assignment = r.Member, &c, nil, nil
	delete(g.Members, old.ID)
	g.Members[m.ID] = &m
	return &m, HeartbeatReply{}
}

// epochFits says whether a member may go on with the epoch it sent: its own, or the previous one when the answer that
// raised it was lost, which shows in what it owns.
func (g *Group) epochFits(m *Member, epoch int32, owned Assignment) bool {
	c := m.Consumer
	return epoch == c.Epoch || epoch < c.Epoch && epoch == c.PrevEpoch && owned != nil && owned.within(c.Assigned)
}

// take848 copies what a heartbeat says of a member; changed says whether its subscription did.
func (m *Member) take848(e Event, r HeartbeatRequest) (changed bool) {
	c := m.Consumer
	m.ClientID, m.ClientHost, m.Session = r.ClientID, r.ClientHost, e.Settings.ConsumerSession
	if r.Rebalance >= 0 {
		m.Rebalance = r.Rebalance
	}
	if r.Rack != nil {
		c.Rack = *r.Rack
	}
	if r.Topics != nil {
		topics := slices.Compact(slices.Sorted(slices.Values(r.Topics)))
		changed = !slices.Equal(topics, c.Topics)
		c.Topics = topics
	}
	if r.Regex != nil && *r.Regex != c.Regex {
		c.Regex, changed = *r.Regex, true
	}
	if r.Assignor != nil && *r.Assignor != c.Assignor {
		c.Assignor, changed = *r.Assignor, true
	}
	if r.Epoch == EpochJoin {
		// It starts with nothing: what it had before it lost touch it has given up.
		c.Epoch, c.PrevEpoch, c.State, c.Away = 0, 0, MemberStable, false
		c.Assigned, c.Revoking, c.RevokeDeadline = Assignment{}, Assignment{}, 0
	}
	return changed
}

// subscriptions gives the topics that each member subscribes to and that are there, and all of them together. Members that
// subscribe to the same share one map, so that a thousand of them with one regular expression match the catalogue once.
func (g *Group) subscriptions(t Topics) (by map[metadata.MemberID]map[string]Topic, all map[string]Topic) {
	by, all = make(map[metadata.MemberID]map[string]Topic, len(g.Members)), map[string]Topic{}
	known := map[string]map[string]Topic{}
	for id, m := range g.Members {
		key := strings.Join(append([]string{m.Consumer.Regex}, m.Consumer.Topics...), "\x00") // no name has a NUL
		topics := known[key]
		if topics == nil {
			topics = m.Consumer.subscribed(t)
			known[key] = topics
			maps.Copy(all, topics)
		}
		by[id] = topics
	}
	return by, all
}

// subscribed gives the topics that a member subscribes to and that are there.
func (c *ConsumerMember) subscribed(t Topics) map[string]Topic {
	out := map[string]Topic{}
	for _, name := range c.Topics {
		if topic, ok := t.Topic(name); ok {
			out[name] = topic
		}
	}
	if c.Regex == "" {
		return out
	}
	re, err := compile(c.Regex)
	if err != nil {
		return out // refused when it came
	}
	for name, topic := range t.All() {
		if re.MatchString(name) {
			out[name] = topic
		}
	}
	return out
}

// refresh brings topics, epoch and targets up to date.
func (g *Group) refresh(e Event) {
	c := g.Consumer
	subscriptions, topics := g.subscriptions(e.Topics)
	if !maps.Equal(topics, c.Topics) {
		c.Topics = topics
		c.bump()
	}
	if c.Epoch == c.TargetEpoch {
		return
	}
	g.rebalances++
	in := make([]assignee, 0, len(g.Members))
	for _, m := range g.Sorted() {
		in = append(in, assignee{id: m.ID, instance: m.Instance, topics: subscriptions[m.ID], now: m.Consumer.Target})
	}
	for id, target := range assign(g.Assignor(), in, topics) {
		g.Members[id].Consumer.Target = target
	}
	c.TargetEpoch = c.Epoch
}

// Outdated says whether the topics are others than the group's targets were made for.
func (g *Group) Outdated(t Topics) bool {
	_, topics := g.subscriptions(t)
	return !maps.Equal(topics, g.Consumer.Topics)
}

// Assignor gives the assignor that most members ask for.
func (g *Group) Assignor() string {
	votes := map[string]int{}
	for _, m := range g.Members {
		if m.Consumer.Assignor != "" {
			votes[m.Consumer.Assignor]++
		}
	}
	if votes[AssignorRange] > votes[AssignorUniform] {
		return AssignorRange
	}
	return AssignorUniform
}

// reconcile moves a member towards its target: first it gives up what is not its any more, then it gets what others have
// given up. owned is what the member says it has, nil when it does not say.
func (g *Group) reconcile(e Event, m *Member, owned Assignment) {
	c := m.Consumer
	switch c.State {
	case MemberStable:
		if c.Epoch >= g.Consumer.TargetEpoch {
			return
		}
	case MemberUnrevoked:
		if owned == nil || owned.meets(c.Revoking) {
			return // not yet given up
		}
	}
	keep := c.Assigned.and(c.Target)
	revoke := c.Assigned.without(c.Target)
	if len(revoke) > 0 && (owned == nil || owned.meets(revoke)) {
		c.RevokeDeadline = e.Now.Add(m.Rebalance)
		c.State, c.Assigned, c.Revoking = MemberUnrevoked, keep, revoke
		return
	}
	free, held := g.free(m, c.Target.without(keep))
	if c.Epoch != g.Consumer.TargetEpoch {
		c.PrevEpoch, c.Epoch = c.Epoch, g.Consumer.TargetEpoch
	}
	c.Assigned, c.Revoking, c.RevokeDeadline, c.State = keep.or(free), Assignment{}, 0, MemberStable
	if held {
		c.State = MemberUnreleased
	}
}

// free gives those of the wanted partitions that no other member has; held says that some are had.
func (g *Group) free(m *Member, wanted Assignment) (free Assignment, held bool) {
	if len(wanted) == 0 {
		return wanted, false
	}
	taken := Assignment{}
	for _, x := range g.Members {
		if x != m {
			taken = taken.or(x.Consumer.Assigned.and(wanted)).or(x.Consumer.Revoking.and(wanted))
		}
	}
	return wanted.without(taken), len(taken) > 0
}

// consumerLeave takes a member out: for good, or, a static one, for a while.
func (g *Group) consumerLeave(e Event, r HeartbeatRequest) HeartbeatReply {
	if g.Kind != metadata.GroupConsumer || !g.Exists() {
		return heartbeatError(GroupIDNotFound, "Group %s not found.", g.ID)
	}
	m := g.Members[r.Member]
	if r.Instance != nil {
		m = g.byInstance(*r.Instance)
	}
	switch {
	case m == nil:
		return heartbeatError(UnknownMemberID, "Member %s is not a member of group %s.", r.Member, g.ID)
	case m.ID != r.Member:
		return heartbeatError(FencedInstanceID, "Static member %s with instance id %s was fenced by member %s.", r.Member, m.Instance, m.ID)
	case r.Epoch == EpochAway:
		c := m.Consumer
		c.Away, c.Epoch, c.PrevEpoch, c.State = true, EpochAway, EpochAway, MemberStable
		c.Assigned, c.Revoking, c.RevokeDeadline = Assignment{}, Assignment{}, 0
		m.hear(e)
	default:
		g.removeConsumer(e, m)
	}
	return HeartbeatReply{Member: r.Member, Epoch: r.Epoch}
}

// removeConsumer takes a member out of a consumer group. The others hear of it with their next heartbeats.
func (g *Group) removeConsumer(e Event, m *Member) {
	delete(g.Members, m.ID)
	if len(g.Members) > 0 && !m.Consumer.Classic && g.allClassic() {
		// With the epoch as it is: it is the generation that the classic members know, and who is told that its generation
		// is wrong gives up its partitions as lost, without committing.
		g.toClassic(e)
		return
	}
	g.Consumer.bump()
	if len(g.Members) == 0 {
		g.set(Empty, e.Now)
		g.Consumer.TargetEpoch = g.Consumer.Epoch
		g.Consumer.Topics = map[string]Topic{}
	}
}

// tickConsumer fences members that did not give up their partitions, or rejoin, in time.
func (g *Group) tickConsumer(e Event) {
	for _, id := range g.IDs() {
		m := g.Members[id]
		if m == nil || m.Consumer == nil {
			continue // the group has become a classic one
		}
		c := m.Consumer
		if c.RevokeDeadline != 0 && c.RevokeDeadline <= e.Now || c.JoinDeadline != 0 && c.JoinDeadline <= e.Now {
			g.removeConsumer(e, m)
		}
	}
}

// Settled answers a heartbeat that changes nothing, from a snapshot; ok is false when it may change something.
func (g *Group) Settled(r HeartbeatRequest) (reply HeartbeatReply, ok bool) {
	if g.Kind != metadata.GroupConsumer || r.Epoch <= EpochJoin || g.Consumer.Epoch != g.Consumer.TargetEpoch {
		return reply, false
	}
	m := g.Members[r.Member]
	if m == nil || m.Consumer.Classic || r.Instance != nil && m.Instance != *r.Instance {
		return reply, false
	}
	c := m.Consumer
	switch {
	case c.Epoch != r.Epoch || c.Away || r.full():
		return reply, false
	case c.State == MemberUnreleased:
		if c.Epoch != g.Consumer.TargetEpoch {
			return reply, false
		}
		if free, _ := g.free(m, c.Target.without(c.Assigned)); len(free) > 0 {
			return reply, false
		}
	case c.State == MemberUnrevoked:
		if r.Owned != nil && !r.Owned.meets(c.Revoking) {
			return reply, false
		}
	case c.Epoch != g.Consumer.TargetEpoch:
		return reply, false
	}
	same := (r.Rebalance < 0 || r.Rebalance == m.Rebalance) && (r.Rack == nil || *r.Rack == c.Rack) &&
		(r.Regex == nil || *r.Regex == c.Regex) && (r.Assignor == nil || *r.Assignor == c.Assignor) &&
		(r.Topics == nil || slices.Equal(slices.Compact(slices.Sorted(slices.Values(r.Topics))), c.Topics))
	return HeartbeatReply{Member: m.ID, Epoch: c.Epoch}, same
}

// Assignment is partitions by topic, ascending; topics without any are left out.
type Assignment map[metadata.TopicID][]int32

func (a Assignment) topics() []metadata.TopicID {
	ids := make([]metadata.TopicID, 0, len(a))
	for id := range a {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y metadata.TopicID) int { return bytes.Compare(x[:], y[:]) })
	return ids
}

// Sorted gives the assignment by topic id.
func (a Assignment) Sorted() iter.Seq2[metadata.TopicID, []int32] {
	return func(yield func(metadata.TopicID, []int32) bool) {
		for _, id := range a.topics() {
			if !yield(id, a[id]) {
				return
			}
		}
	}
}

// Add puts a partition in, keeping the order.
func (a Assignment) Add(id metadata.TopicID, partition int32) {
	if i, found := slices.BinarySearch(a[id], partition); !found {
		a[id] = slices.Insert(a[id], i, partition)
	}
}

func (a Assignment) has(id metadata.TopicID, partition int32) bool {
	_, found := slices.BinarySearch(a[id], partition)
	return found
}

func (a Assignment) clone() Assignment {
	b := make(Assignment, len(a))
	for id, list := range a {
		b[id] = slices.Clone(list)
	}
	return b
}

func (a Assignment) equal(b Assignment) bool { return maps.EqualFunc(a, b, slices.Equal[[]int32]) }

func (a Assignment) filter(keep func(metadata.TopicID, int32) bool) Assignment {
	b := Assignment{}
	for id, list := range a {
		for _, p := range list {
			if keep(id, p) {
				b[id] = append(b[id], p)
			}
		}
	}
	return b
}

func (a Assignment) and(b Assignment) Assignment { return a.filter(b.has) }
func (a Assignment) within(b Assignment) bool    { return len(a.without(b)) == 0 }
func (a Assignment) meets(b Assignment) bool     { return len(a.and(b)) > 0 }
func (a Assignment) without(b Assignment) Assignment {
	return a.filter(func(id metadata.TopicID, p int32) bool { return !b.has(id, p) })
}

func (a Assignment) or(b Assignment) Assignment {
	c := a.clone()
	for id, list := range b {
		c[id] = append(c[id], list...)
		slices.Sort(c[id])
		c[id] = slices.Compact(c[id])
	}
	return c
}
