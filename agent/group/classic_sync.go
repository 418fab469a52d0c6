package group

import (
	"github.com/skeinio/skein/metadata"
)

// SyncRequest is a SyncGroup request.
type SyncRequest struct {
	Member       metadata.MemberID
	Instance     string
	Generation   int32
	ProtocolType string // "" where the client does not say (before version 5)
	Protocol     string
	Assignments  map[metadata.MemberID][]byte // the leader's
}

// SyncReply answers a sync. Wait: the leader's assignment is not there yet.
type SyncReply struct {
	Code         Code
	ProtocolType string
	Protocol     string
	Assignment   []byte
	Wait         bool
}

// Sync applies a SyncGroup to a classic group.
func (g *Group) Sync(e Event, r SyncRequest) SyncReply {
	if g.Kind == metadata.GroupConsumer {
		return g.syncConsumer(e, r)
	}
	m, code := g.current(r.Member, r.Instance)
	switch {
	case code != None:
		return SyncReply{Code: code}
	case r.Generation != g.Generation:
		return SyncReply{Code: IllegalGeneration}
	case r.ProtocolType != "" && r.ProtocolType != g.ProtocolType, r.Protocol != "" && r.Protocol != g.Protocol:
		return SyncReply{Code: InconsistentProtocol}
	}
	switch g.State {
	case Preparing:
		return SyncReply{Code: RebalanceInProgress}
	case Completing:
		m.hear(e)
		m.Synced = true
		if m.ID != g.Leader {
			return SyncReply{Wait: true}
		}
		for id, x := range g.Members {
			x.Assignment = r.Assignments[id]
		}
		g.set(Stable, e.Now)
	case Stable:
		m.hear(e)
		m.Synced = true
	default:
		return SyncReply{Code: UnknownMemberID}
	}
	g.syncsLeft()
	return g.assigned(m)
}

// syncsLeft clears the deadline when all have synced.
func (g *Group) syncsLeft() {
	for _, m := range g.Members {
		if !m.Synced {
			return
		}
	}
	g.SyncDeadline = 0
}

func (g *Group) assigned(m *Member) SyncReply {
	return SyncReply{ProtocolType: g.ProtocolType, Protocol: g.Protocol, Assignment: m.Assignment}
}

// AnswerSync gives a waiting sync its answer; ok is false when there is none yet.
func (g *Group) AnswerSync(r SyncRequest) (reply SyncReply, ok bool) {
	m, code := g.current(r.Member, r.Instance)
	switch {
	case code != None:
		return SyncReply{Code: code}, true
	case g.Kind != metadata.GroupClassic, r.Generation != g.Generation, g.State == Preparing:
		return SyncReply{Code: RebalanceInProgress}, true
	case g.State == Stable:
		return g.assigned(m), true
	}
	return SyncReply{}, false
}

// Heartbeat answers a Heartbeat; it changes nothing. heard says whether it renews the session.
func (g *Group) Heartbeat(id metadata.MemberID, instance string, generation int32) (code Code, heard bool) {
	m, code := g.current(id, instance)
	switch {
	case code != None:
		return code, false
	case g.Kind == metadata.GroupConsumer:
		return g.heartbeatConsumer(m, generation)
	case generation != g.Generation:
		return IllegalGeneration, false
	case g.State == Preparing:
		return RebalanceInProgress, true
	}
	return None, true
}

// Leaver names a member that leaves: by its id, by its instance, or both.
type Leaver struct {
	Member   metadata.MemberID
	Instance string
}

// Leave takes members out of a group and gives each one's code.
func (g *Group) Leave(e Event, leavers []Leaver) []Code {
	codes := make([]Code, len(leavers))
	for i, l := range leavers {
		codes[i] = g.leave(e, l)
	}
	return codes
}

func (g *Group) leave(e Event, l Leaver) Code {
	if l.Instance != "" && l.Member == "" {
		m := g.byInstance(l.Instance)
		if m == nil {
			return UnknownMemberID
		}
		l.Member = m.ID
	}
	if _, pending := g.Pending[l.Member]; pending && l.Instance == "" {
		g.dropPending(e, l.Member)
		return None
	}
	m, code := g.current(l.Member, l.Instance)
	if code != None {
		return code
	}
	if g.Kind == metadata.GroupConsumer {
		g.removeConsumer(e, m)
		return None
	}
	g.remove(e, m.ID)
	return None
}

// dropPending forgets an id that was handed out and not used.
func (g *Group) dropPending(e Event, id metadata.MemberID) {
	delete(g.Pending, id)
	g.tryComplete(e)
}

// Tick lets time pass: it applies everything whose time has come.
func (g *Group) Tick(e Event) {
	for id, at := range g.Pending {
		if at <= e.Now {
			g.dropPending(e, id)
		}
	}
	for _, id := range g.IDs() {
		m := g.Members[id]
		if m == nil || g.sessionless(m) || g.expiry(m, e) > e.Now {
			continue
		}
		if g.Kind == metadata.GroupConsumer {
			g.removeConsumer(e, m)
			continue
		}
		g.remove(e, id)
	}
	if g.Kind == metadata.GroupConsumer {
		g.tickConsumer(e)
	}
	if g.Kind != metadata.GroupClassic {
		return
	}
	if g.SyncDeadline != 0 && g.SyncDeadline <= e.Now {
		g.dropUnsynced(e)
	}
	if g.JoinDeadline != 0 && g.JoinDeadline <= e.Now {
		g.endJoin(e)
	}
}

// dropUnsynced removes who joined and never asked for its assignment.
func (g *Group) dropUnsynced(e Event) {
	g.SyncDeadline = 0
	if g.State != Completing && g.State != Stable {
		return
	}
	var late []metadata.MemberID
	for id, m := range g.Members {
		if !m.Synced {
			late = append(late, id)
		}
	}
	for _, id := range late {
		g.drop(id)
	}
	if len(g.Members) == 0 {
		g.rebalances++
		g.Generation++
		g.empty(e)
		return
	}
	if len(late) > 0 {
		g.prepare(e)
		g.tryComplete(e)
	}
}

// endJoin ends a rebalance whose time is over, or extends the initial delay when somebody joined during it.
func (g *Group) endJoin(e Event) {
	if g.State != Preparing {
		g.JoinDeadline = 0
		return
	}
	if g.Initial && g.NewMember && g.Remaining > 0 {
		delay := min(e.Settings.InitialDelay, g.Remaining)
		g.NewMember = false
		g.Remaining = max(g.Remaining-delay, 0)
		g.JoinDeadline = e.Now.Add(delay)
		return
	}
	g.Initial = false
	g.complete(e)
}
