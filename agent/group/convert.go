package group

import (
	"slices"

	"github.com/skeinio/skein/metadata"
)

// A group of consumers is converted while it lives, as its members are upgraded one by one, or rolled back: the first
// member of KIP-848's protocol makes a consumer group of a classic one, whose classic members stay and are served by the
// rules below; when the last member of the new protocol leaves, a classic group remains.

// toConsumer makes a consumer group of a group that has no members, or only consumers; it says whether it could.
func (g *Group) toConsumer(e Event) bool {
	topics := map[metadata.MemberID]Subscription{}
	for id, m := range g.Members {
		s, err := ParseSubscription(m.MetadataOf(g.anyProtocol(m)))
		if err != nil || g.ProtocolType != ConsumerProtocol {
			return false
		}
		if _, err := ParseAssignment(m.Assignment); err != nil {
			return false
		}
		topics[id] = s
	}
	was, state := g.Kind, g.State
	g.Kind, g.ProtocolType = metadata.GroupConsumer, ConsumerProtocol
	g.Consumer = &Consumer{Epoch: g.Generation, TargetEpoch: g.Generation, Topics: map[string]Topic{}}
	if was == metadata.GroupClassic {
		for id, m := range g.Members {
			c := newConsumerMember()
			c.Classic, c.Topics, c.Epoch, c.PrevEpoch = true, topics[id].Topics, g.Generation, g.Generation
			c.Assigned = m.held(e, state, topics[id])
			c.Target = c.Assigned.clone()
			m.Consumer, m.Joined, m.Synced = c, false, false
			for name, t := range c.subscribed(e.Topics) {
				g.Consumer.Topics[name] = t
			}
		}
	}
	g.Protocol, g.Leader, g.JoinDeadline, g.SyncDeadline, g.Initial, g.NewMember, g.Remaining = "", "", 0, 0, false, false, 0
	clear(g.Pending)
	if len(g.Members) > 0 {
		g.set(Stable, e.Now)
	}
	return true
}

// anyProtocol gives the group's protocol, or before one was chosen the member's favourite.
func (g *Group) anyProtocol(m *Member) string {
	if g.Protocol != "" || len(m.Protocols) == 0 {
		return g.Protocol
	}
	return m.Protocols[0].Name
}

// held gives what a classic member works on, which nobody else may have before the member has given it up. One that has its
// assignment has that. One that has joined since then has what it said it owns: nothing under the eager protocol. One that
// has yet to join may have either.
func (m *Member) held(e Event, s State, sub Subscription) Assignment {
	owned, assigned := byNames(e.Topics, sub.Owned), toAssignment(e, m.Assignment)
	switch {
	case s == Stable && m.Synced:
		return assigned
	case s == Preparing && !m.Joined:
		return owned.or(assigned)
	}
	return owned
}

// toAssignment reads a classic assignment, which was parsed before.
func toAssignment(e Event, b []byte) Assignment {
	a := Assignment{}
	byName, err := ParseAssignment(b)
	if err != nil {
		return a
	}
	return byNames(e.Topics, byName)
}

func byNames(t Topics, names map[string][]int32) Assignment {
	a := Assignment{}
	for name, list := range names {
		if topic, ok := t.Topic(name); ok {
			for _, p := range list {
				a.Add(topic.ID, p)
			}
		}
	}
	return a
}

// allClassic says whether all members speak the classic protocol.
func (g *Group) allClassic() bool {
	for _, m := range g.Members {
		if !m.Consumer.Classic {
			return false
		}
	}
	return true
}

// toClassic makes a classic group of what is left when only classic members are, and lets them rebalance.
func (g *Group) toClassic(e Event) {
	g.Kind = metadata.GroupClassic
	g.Generation = g.Consumer.Epoch
	for _, m := range g.Members {
		m.Assignment = m.Consumer.serialize(e.Topics, m)
		m.Consumer = nil
	}
	g.Consumer = nil
	g.Leader = g.IDs()[0]
	g.Protocol = g.choose()
	g.State, g.Since = Stable, e.Now
	g.prepare(e)
	g.tryComplete(e)
}

// serialize writes a member's partitions as a classic leader would.
func (c *ConsumerMember) serialize(t Topics, m *Member) []byte {
	names := map[string][]int32{}
	for id, list := range c.Assigned {
		if name := t.Name(id); name != "" {
			names[name] = list
		}
	}
	version := int16(0)
	if len(m.Protocols) > 0 {
		if s, err := ParseSubscription(m.Protocols[0].Metadata); err == nil {
			version = s.Version
		}
	}
	return AppendAssignment(nil, version, names)
}

// joinConsumer is a JoinGroup of a classic member in a consumer group.
func (g *Group) joinConsumer(e Event, r JoinRequest) JoinReply {
	if r.ProtocolType != ConsumerProtocol || len(r.Protocols) == 0 || !g.commonWithClassic(r.Protocols) {
		return joinError(InconsistentProtocol, r.Member)
	}
	s, err := ParseSubscription(r.Protocols[0].Metadata)
	if err != nil {
		return joinError(InconsistentProtocol, r.Member)
	}
	m, code := g.classicMember(e, r)
	if code != None {
		id := r.Member
		if code == MemberIDRequired {
			id = r.NewMember
		}
		return joinError(code, id)
	}
	m.take(e, r)
	if g.allClassic() {
		// It took the place of the last member of the new protocol.
		g.toClassic(e)
		r.Member = m.ID
		return g.joinKnown(e, r)
	}
	c := m.Consumer
	if !slices.Equal(c.Topics, s.Topics) {
		c.Topics = s.Topics
		g.Consumer.bump()
	}
	g.refresh(e)
	g.reconcile(e, m, byNames(e.Topics, s.Owned))
	// It is given its assignment when it syncs.
	m.Synced, c.JoinDeadline = false, e.Now.Add(m.Rebalance)
	return JoinReply{Member: m.ID, Generation: c.Epoch, ProtocolType: ConsumerProtocol, Protocol: r.Protocols[0].Name}
}

// commonWithClassic says whether one of the protocols is spoken by all classic members.
func (g *Group) commonWithClassic(protocols []Protocol) bool {
	return slices.ContainsFunc(protocols, func(p Protocol) bool {
		for _, m := range g.Members {
			if m.Consumer.Classic && !m.supports(p.Name) {
				return false
			}
		}
		return true
	})
}

// classicMember finds or adds the member of a JoinGroup.
func (g *Group) classicMember(e Event, r JoinRequest) (*Member, Code) {
	if r.Member != "" {
		m, code := g.current(r.Member, r.Instance)
		if code == None && !m.Consumer.Classic {
			m.Consumer.Classic = true // the same member, rolled back in place
		}
		// An id that was handed out with MEMBER_ID_REQUIRED is kept nowhere: it is as good as new.
		if code == UnknownMemberID && r.Instance == "" && r.RequireKnown {
			return g.addClassic(e, r.Member, r)
		}
		return m, code
	}
	if r.Instance != "" {
		if old := g.byInstance(r.Instance); old != nil {
			m := *old
			c := *old.Consumer
			c.Classic, c.Away, c.Epoch, c.PrevEpoch, c.State = true, false, 0, 0, MemberStable
			c.Assigned, c.Revoking, c.RevokeDeadline = Assignment{}, Assignment{}, 0
			m.ID, m.Consumer = r.NewMember, &c
			delete(g.Members, old.ID)
			g.Members[m.ID] = &m
			return &m, None
		}
	} else if r.RequireKnown {
		return nil, MemberIDRequired
	}
	return g.addClassic(e, r.NewMember, r)
}

func (g *Group) addClassic(e Event, id metadata.MemberID, r JoinRequest) (*Member, Code) {
	if len(g.Members) >= e.Settings.MaxSize {
		return nil, GroupMaxSizeReached
	}
	m := &Member{ID: id, Instance: r.Instance, Consumer: newConsumerMember()}
	m.Consumer.Classic = true
	g.Members[id] = m
	g.Consumer.bump()
	g.set(Stable, e.Now)
	return m, None
}

// syncConsumer is a SyncGroup of a classic member in a consumer group.
func (g *Group) syncConsumer(e Event, r SyncRequest) SyncReply {
	m, code := g.current(r.Member, r.Instance)
	switch {
	case code != None:
		return SyncReply{Code: code}
	case !m.Consumer.Classic:
		return SyncReply{Code: UnknownMemberID}
	case r.Generation != m.Consumer.Epoch:
		return SyncReply{Code: IllegalGeneration}
	case r.ProtocolType != "" && r.ProtocolType != ConsumerProtocol, r.Protocol != "" && !m.supports(r.Protocol):
		return SyncReply{Code: InconsistentProtocol}
	}
	m.hear(e)
	c := m.Consumer
	if g.Consumer.Epoch > c.Epoch && c.State != MemberUnrevoked {
		g.wantJoin(e, m)
		return SyncReply{Code: RebalanceInProgress}
	}
	c.JoinDeadline, m.Synced = 0, true
	m.Assignment = c.serialize(e.Topics, m)
	return SyncReply{ProtocolType: ConsumerProtocol, Protocol: m.Protocols[0].Name, Assignment: m.Assignment}
}

// wantJoin gives a classic member until its rebalance timeout to rejoin.
func (g *Group) wantJoin(e Event, m *Member) {
	if m.Consumer.JoinDeadline == 0 {
		m.Consumer.JoinDeadline = e.Now.Add(m.Rebalance)
	}
}

// heartbeatConsumer answers a Heartbeat of a classic member in a consumer group: it is told to rejoin when there is
// anything new for it.
func (g *Group) heartbeatConsumer(m *Member, generation int32) (Code, bool) {
	c := m.Consumer
	switch {
	case !c.Classic:
		return UnknownMemberID, false
	case generation != c.Epoch:
		return IllegalGeneration, false
	case c.Epoch < g.Consumer.Epoch, c.State == MemberUnrevoked, c.State == MemberUnreleased && !g.waitsForOthers(m):
		return RebalanceInProgress, true
	}
	return None, true
}

// waitsForOthers says whether none of what a member still wants has been given up.
func (g *Group) waitsForOthers(m *Member) bool {
	free, _ := g.free(m, m.Consumer.Target.without(m.Consumer.Assigned))
	return len(free) == 0
}

// HeartbeatRejoin notes that a classic member in a consumer group was told to rejoin: it has until its rebalance timeout.
func (g *Group) HeartbeatRejoin(e Event, id metadata.MemberID) {
	if m := g.Members[id]; m != nil && m.Consumer != nil && m.Consumer.Classic {
		g.wantJoin(e, m)
	}
}

// NeedsRejoinNote says whether HeartbeatRejoin would change anything.
func (g *Group) NeedsRejoinNote(id metadata.MemberID) bool {
	m := g.Members[id]
	return m != nil && m.Consumer != nil && m.Consumer.Classic && m.Consumer.JoinDeadline == 0
}
