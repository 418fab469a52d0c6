package group

import (
	"cmp"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

// JoinRequest is a JoinGroup request.
type JoinRequest struct {
	Member       metadata.MemberID // "" for a new one
	NewMember    metadata.MemberID // the id that a new one gets
	Instance     string
	ClientID     string
	ClientHost   string
	RequireKnown bool // a dynamic member must come back with its id (KIP-394)
	SkipAssign   bool // the client knows SkipAssignment (KIP-814)
	Session      time.Duration
	Rebalance    time.Duration
	ProtocolType string
	Protocols    []Protocol
}

// JoinedMember is a member in the leader's JoinGroup response.
type JoinedMember struct {
	Member   metadata.MemberID
	Instance string
	Metadata []byte
}

// JoinReply answers a join. Wait: there is no answer yet; AnswerJoin has it when the generation is above After.
type JoinReply struct {
	Code         Code
	Member       metadata.MemberID
	Generation   int32
	ProtocolType string
	Protocol     string
	Leader       metadata.MemberID
	Members      []JoinedMember // for the leader
	SkipAssign   bool
	Wait         bool
	After        int32
}

func joinError(code Code, id metadata.MemberID) JoinReply {
	return JoinReply{Code: code, Member: id, Generation: -1}
}

// Join applies a JoinGroup to a classic group.
func (g *Group) Join(e Event, r JoinRequest) JoinReply {
	if r.Session < e.Settings.MinSession || r.Session > e.Settings.MaxSession {
		return joinError(InvalidSessionTimeout, r.Member)
	}
	if !g.Exists() && len(g.Members) == 0 && len(g.Pending) == 0 && r.Member != "" {
		return joinError(UnknownMemberID, r.Member)
	}
	if g.Kind == metadata.GroupConsumer && len(g.Members) > 0 {
		return g.joinConsumer(e, r)
	}
	g.toEmptyClassic()
	if !g.hasRoom(e, r.Member) {
		return joinError(GroupMaxSizeReached, r.Member)
	}
	if !g.supports(r.ProtocolType, r.Protocols) {
		return joinError(InconsistentProtocol, r.Member)
	}
	if r.Member == "" {
		return g.joinNew(e, r)
	}
	return g.joinKnown(e, r)
}

// toEmptyClassic makes a classic group of one that has no members: a new one, one that holds offsets only, or a consumer
// group that everybody has left. Its generations go on.
func (g *Group) toEmptyClassic() {
	if g.Kind == metadata.GroupConsumer {
		g.Generation, g.Consumer = g.Consumer.Epoch, nil
	}
	if g.Kind != metadata.GroupClassic {
		g.Kind, g.State = metadata.GroupClassic, Empty
	}
}

// hasRoom says whether a member may join.
func (g *Group) hasRoom(e Event, id metadata.MemberID) bool {
	member := g.Members[id]
	switch g.State {
	case Preparing:
		joined := 0
		for _, m := range g.Members {
			if m.Joined {
				joined++
			}
		}
		return member != nil && member.Joined || joined < e.Settings.MaxSize
	case Completing, Stable:
		return member != nil || len(g.Members) < e.Settings.MaxSize
	}
	return true
}

// supports says whether a member with these protocols fits in.
func (g *Group) supports(typ string, protocols []Protocol) bool {
	if len(g.Members) == 0 {
		return typ != "" && len(protocols) > 0
	}
	return typ == g.ProtocolType && slices.ContainsFunc(protocols, func(p Protocol) bool {
		for _, m := range g.Members {
			if !m.supports(p.Name) {
				return false
			}
		}
		return true
	})
}

func (m *Member) supports(name string) bool {
	return slices.ContainsFunc(m.Protocols, func(p Protocol) bool { return p.Name == name })
}

// MetadataOf gives what the member sends for a protocol.
func (m *Member) MetadataOf(protocol string) []byte {
	for _, p := range m.Protocols {
		if p.Name == protocol {
			return p.Metadata
		}
	}
	return nil
}

func sameProtocols(a, b []Protocol) bool {
	return slices.EqualFunc(a, b, func(x, y Protocol) bool { return x.Name == y.Name && slices.Equal(x.Metadata, y.Metadata) })
}

// maxPending bounds the ids that are handed out and not yet used: they are part of the group's row.
const maxPending = 10_000

// joinNew is a join without a member id.
func (g *Group) joinNew(e Event, r JoinRequest) JoinReply {
	if r.Instance != "" {
		if old := g.byInstance(r.Instance); old != nil {
			return g.replaceStatic(e, old, r)
		}
		return g.add(e, r.NewMember, r)
	}
	if r.RequireKnown {
		if len(g.Pending) >= maxPending {
			return joinError(GroupMaxSizeReached, r.Member)
		}
		g.Pending[r.NewMember] = e.Now.Add(r.Session)
		return joinError(MemberIDRequired, r.NewMember)
	}
	return g.add(e, r.NewMember, r)
}

// joinKnown is a join with a member id.
func (g *Group) joinKnown(e Event, r JoinRequest) JoinReply {
	if _, pending := g.Pending[r.Member]; pending && r.Instance == "" {
		return g.add(e, r.Member, r)
	}
	m, code := g.current(r.Member, r.Instance)
	if code != None {
		return joinError(code, r.Member)
	}
	m.hear(e)
	switch g.State {
	case Preparing:
		return g.rejoin(e, m, r)
	case Completing:
		if sameProtocols(m.Protocols, r.Protocols) {
			return g.joined(m)
		}
		return g.rejoin(e, m, r)
	case Stable:
		// The leader rejoins when it wants another assignment: the topics have changed.
		if m.ID != g.Leader && sameProtocols(m.Protocols, r.Protocols) {
			return g.joined(m)
		}
		return g.rejoin(e, m, r)
	}
	return joinError(UnknownMemberID, r.Member)
}

// current gives a member, by the rules of static members: the id must be that of the instance.
func (g *Group) current(id metadata.MemberID, instance string) (*Member, Code) {
	if instance != "" {
		switch m := g.byInstance(instance); {
		case m == nil:
			return nil, UnknownMemberID
		case m.ID != id:
			return nil, FencedInstanceID
		default:
			return m, None
		}
	}
	if m := g.Members[id]; m != nil {
		return m, None
	}
	return nil, UnknownMemberID
}

// take copies what a join says of a member.
func (m *Member) take(e Event, r JoinRequest) {
	m.ClientID, m.ClientHost = r.ClientID, r.ClientHost
	m.Session, m.Rebalance, m.Protocols = r.Session, r.Rebalance, r.Protocols
	m.hear(e)
}

// add adds a member and begins a rebalance.
func (g *Group) add(e Event, id metadata.MemberID, r JoinRequest) JoinReply {
	delete(g.Pending, id)
	m := &Member{ID: id, Instance: r.Instance, Joined: true}
	m.take(e, r)
	if len(g.Members) == 0 {
		g.ProtocolType = r.ProtocolType
	}
	if len(g.Members) == 0 || g.Leader == "" {
		g.Leader = id
	}
	g.Members[id] = m
	if g.State == Preparing && g.Initial {
		g.NewMember = true
	}
	return g.wait(e, m)
}

// rejoin updates a member and begins a rebalance.
func (g *Group) rejoin(e Event, m *Member, r JoinRequest) JoinReply {
	m.take(e, r)
	return g.wait(e, m)
}

// wait begins a rebalance, if none is under way, in which m has joined already.
func (g *Group) wait(e Event, m *Member) JoinReply {
	after := g.prepare(e)
	m.Joined = true
	g.tryComplete(e)
	return JoinReply{Wait: true, Member: m.ID, After: after}
}

// prepare begins a rebalance unless one is under way, and gives the generation that it ends.
func (g *Group) prepare(e Event) int32 {
	if g.State == Preparing {
		return g.Generation
	}
	g.rebalances++
	for _, m := range g.Members {
		m.Joined, m.Synced = false, false
		if g.State == Completing {
			m.Assignment = nil
		}
	}
	g.SyncDeadline = 0
	if g.State == Empty {
		delay := e.Settings.InitialDelay
		g.Initial, g.NewMember = true, false
		g.Remaining = max(g.longestRebalance()-delay, 0)
		g.JoinDeadline = e.Now.Add(delay)
	} else {
		g.Initial = false
		g.JoinDeadline = e.Now.Add(g.longestRebalance())
	}
	g.set(Preparing, e.Now)
	return g.Generation
}

func (g *Group) longestRebalance() time.Duration {
	var d time.Duration
	for _, m := range g.Members {
		d = max(d, m.Rebalance)
	}
	return d
}

// tryComplete ends the rebalance when everybody has joined. The initial delay is waited for in any case.
func (g *Group) tryComplete(e Event) {
	if g.State != Preparing || g.Initial || len(g.Pending) > 0 {
		return
	}
	for _, m := range g.Members {
		if !m.Joined {
			return
		}
	}
	g.complete(e)
}

// complete ends the rebalance: dynamic members that have not joined are dropped, static ones stay as they are.
func (g *Group) complete(e Event) {
	anyJoined := false
	for id, m := range g.Members {
		anyJoined = anyJoined || m.Joined
		if !m.Joined && !m.Static() {
			g.drop(id)
		}
	}
	if len(g.Members) > 0 && !anyJoined {
		// Only static members are left and none has come back: wait on, until their sessions end.
		g.JoinDeadline = e.Now.Add(g.longestRebalance())
		return
	}
	g.JoinDeadline, g.Initial, g.NewMember, g.Remaining = 0, false, false, 0
	g.Generation++
	if len(g.Members) == 0 {
		g.empty(e)
		return
	}
	if l := g.Members[g.Leader]; l == nil || !l.Joined {
		for _, id := range g.IDs() {
			if g.Members[id].Joined {
				g.Leader = id
				break
			}
		}
	}
	g.Protocol = g.choose()
	for _, m := range g.Members {
		m.Joined, m.Synced, m.Assignment = false, false, nil
	}
	g.set(Completing, e.Now)
	g.SyncDeadline = e.Now.Add(g.longestRebalance())
}

// empty is a classic group without members.
func (g *Group) empty(e Event) {
	g.Protocol, g.Leader, g.SyncDeadline, g.JoinDeadline, g.Initial = "", "", 0, 0, false
	g.set(Empty, e.Now)
}

// choose gives the protocol that all support and most prefer: every member votes for the first it has of these.
func (g *Group) choose() string {
	votes := map[string]int{}
	members := g.Sorted()
	all := func(name string) bool {
		return !slices.ContainsFunc(members, func(m *Member) bool { return !m.supports(name) })
	}
	var order []string
	for _, m := range members {
		for _, p := range m.Protocols {
			if all(p.Name) {
				if votes[p.Name]++; votes[p.Name] == 1 {
					order = append(order, p.Name)
				}
				break
			}
		}
	}
	if len(order) == 0 {
		return ""
	}
	return slices.MaxFunc(order, func(a, b string) int { return cmp.Compare(votes[a], votes[b]) })
}

// drop takes a member out.
func (g *Group) drop(id metadata.MemberID) {
	delete(g.Members, id)
	if g.Leader != id {
		return
	}
	g.Leader = ""
	if ids := g.IDs(); len(ids) > 0 {
		g.Leader = ids[0]
	}
}

// remove takes a member out and lets the others rebalance.
func (g *Group) remove(e Event, id metadata.MemberID) {
	g.drop(id)
	switch g.State {
	case Completing, Stable:
		if len(g.Members) == 0 {
			// Kafka goes through a rebalance that nobody joins; what is left of it is the next generation.
			g.rebalances++
			g.Generation++
			g.empty(e)
			return
		}
		g.prepare(e)
		g.tryComplete(e)
	case Preparing:
		if g.Initial && len(g.Members) == 0 && len(g.Pending) == 0 {
			g.Generation++
			g.empty(e)
			return
		}
		g.tryComplete(e)
	}
}

// joined gives a member the generation as it is.
func (g *Group) joined(m *Member) JoinReply {
	r := JoinReply{
		Member: m.ID, Generation: g.Generation, ProtocolType: g.ProtocolType, Protocol: g.Protocol, Leader: g.Leader,
	}
	if m.ID == g.Leader {
		r.Members = g.joinedMembers()
	}
	return r
}

func (g *Group) joinedMembers() []JoinedMember {
	list := make([]JoinedMember, 0, len(g.Members))
	for _, m := range g.Sorted() {
		list = append(list, JoinedMember{Member: m.ID, Instance: m.Instance, Metadata: m.MetadataOf(g.Protocol)})
	}
	return list
}

// AnswerJoin gives a waiting join its answer; ok is false when there is none yet.
func (g *Group) AnswerJoin(id metadata.MemberID, instance string, after int32) (reply JoinReply, ok bool) {
	if g.Kind == metadata.GroupConsumer {
		return joinError(RebalanceInProgress, id), true
	}
	m := g.Members[id]
	if m == nil {
		if instance != "" && g.byInstance(instance) != nil {
			return joinError(FencedInstanceID, id), true
		}
		return joinError(UnknownMemberID, id), true
	}
	if g.Generation <= after {
		return JoinReply{}, false
	}
	return g.joined(m), true
}

// replaceStatic lets a static member that lost its id (a restart) take the place of its former self.
func (g *Group) replaceStatic(e Event, old *Member, r JoinRequest) JoinReply {
	formerLeader := g.Leader
	m := *old
	delete(g.Members, old.ID)
	m.ID = r.NewMember
	g.Members[m.ID] = &m
	if g.Leader == old.ID {
		g.Leader = m.ID
	}
	m.take(e, r)
	switch g.State {
	case Stable:
		if g.choose() != g.Protocol {
			return g.wait(e, &m)
		}
		reply := g.joined(&m)
		if r.SkipAssign {
			reply.SkipAssign = m.ID == g.Leader
			return reply
		}
		// An older client that finds itself the leader would assign anew: it is told that somebody else leads.
		reply.Members, reply.Leader = nil, formerLeader
		return reply
	case Empty:
		return g.wait(e, &m)
	}
	return g.wait(e, &m)
}
