package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// Bounds of how groups are served.
const (
	// groupTimeout bounds one change or load of a group.
	groupTimeout = 10 * time.Second
	// confirmShare: heartbeats are answered from memory for a session timeout divided by this since the database last
	// confirmed the group.
	confirmShare = 3
	// writeBackShare: a member's last heartbeat is written back when what is written is older than a session timeout
	// divided by this.
	writeBackShare = 6
	// writeBackInterval is how often members heard of are written back, and how often groups that are due are looked for.
	writeBackInterval = time.Second
	// groupPoll is how soon a waiting member sees a change whose wake-up was lost.
	groupPoll = 250 * time.Millisecond
	// groupKept is how long a group that nobody asks for is kept in memory.
	groupKept = time.Minute
	// sweepLimit bounds the groups that one sweep looks at.
	sweepLimit = 100
	// agentsKept is how long the contacts of agents that are gone are kept: longer than any session.
	agentsKept = 24 * time.Hour
)

// errGroupDraining ends the waiting of members: they go on at another agent.
var errGroupDraining = errors.New("agent is draining")

// groups serves consumer groups. What it keeps of them is a cache of rows, and whom it heard of since it last told the
// database.
type groups struct {
	store   Store
	log     *slog.Logger
	agent   metadata.AgentID
	drained <-chan struct{}
	base    group.Settings
	now     atomic.Pointer[group.Settings]
	dynamic atomic.Pointer[map[string]string] // of now, over base
	metrics *groupMetrics
	reload  chan struct{} // one token: the dynamic configs may have changed

	mu      sync.Mutex
	entries map[metadata.GroupID]*groupEntry
	pause   time.Duration // between write-backs
}

// groupEntry is a group in memory. groups.mu guards it.
type groupEntry struct {
	id        metadata.GroupID
	snap      *group.Group // never changed; nil: not loaded
	confirmed time.Time    // when the database last said that snap is what it has
	seq       uint64       // counts what may have made snap stale
	snapSeq   uint64       // seq as of snap
	moved     chan struct{}
	loading   chan struct{} // closed when a load under way has ended
	ticking   bool
	waiting   map[metadata.MemberID]int
	heard     map[metadata.MemberID]*heardMember
	next      *groupBatch
	applying  bool
	used      time.Time
	checked   *group.Group // whose subscriptions were compared with this version of the catalogue
	catalogue metadata.CatalogueVersion
}

// heardMember is when a member was last heard of here.
type heardMember struct {
	at, written metadata.Millis
	session     time.Duration
}

// groupBatch is events of one group that are applied in one transaction.
type groupBatch struct {
	apply []func(e group.Event, g *group.Group)
	lead  chan struct{} // one token: its taker applies the batch
	done  chan struct{}
	err   error
}

type groupMetrics struct {
	rebalances prometheus.Counter
	expired    prometheus.Counter
	heartbeats *prometheus.CounterVec
	changes    prometheus.Counter
	events     prometheus.Counter
}

func newGroups(s *Server, reg prometheus.Registerer) *groups {
	g := &groups{
		store: s.store, log: s.log, agent: metadata.NewAgentID(), drained: s.drained, base: s.cfg.Groups,
		metrics: newGroupMetrics(reg), entries: map[metadata.GroupID]*groupEntry{}, pause: writeBackInterval,
		reload: make(chan struct{}, 1),
	}
	g.now.Store(&g.base)
	if g.store != nil {
		g.store.OnGroups(g.onMoved)
		reg.MustRegister(newLagCollector(g))
	}
	return g
}

// settings gives the group.* settings as they are now.
func (gs *groups) settings() group.Settings { return *gs.now.Load() }

// entry gives a group's entry. gs.mu is held.
func (gs *groups) entry(id metadata.GroupID) *groupEntry {
	x := gs.entries[id]
	if x == nil {
		x = &groupEntry{
			id: id, moved: make(chan struct{}), waiting: map[metadata.MemberID]int{}, heard: map[metadata.MemberID]*heardMember{},
		}
		gs.entries[id] = x
	}
	x.used = time.Now()
	return x
}

// wake tells who waits for the group to look again. gs.mu is held.
func (x *groupEntry) wake() {
	close(x.moved)
	x.moved = make(chan struct{})
}

// stale says that what is known of the group may be old. gs.mu is held.
func (x *groupEntry) stale() {
	x.seq++
	x.wake()
}

// onMoved hears that groups moved, here or at another agent.
func (gs *groups) onMoved(list []metadata.GroupVersion, all bool) {
	if all || slices.ContainsFunc(list, func(v metadata.GroupVersion) bool { return v.ID == metadata.SettingsMoved }) {
		select {
		case gs.reload <- struct{}{}:
		default:
		}
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if all {
		for _, x := range gs.entries {
			x.stale()
		}
		return
	}
	for _, v := range list {
		x := gs.entries[v.ID]
		if x == nil || v.Version != 0 && x.snap != nil && x.snap.Version >= v.Version {
			continue // what this agent did itself, mostly
		}
		x.stale()
	}
}

// learn takes a group as the database has it. seq is the entry's from before it was read. gs.mu is held.
func (x *groupEntry) learn(g *group.Group, seq uint64, at time.Time) {
	if x.snap != nil && g.Version != 0 && g.Version < x.snap.Version {
		return // an older answer that came late
	}
	changed := x.snap == nil || x.snap.Version != g.Version
	x.snap, x.snapSeq = g, seq
	if at.After(x.confirmed) {
		x.confirmed = at
	}
	for id, h := range x.heard {
		if m := g.Members[id]; m == nil {
			delete(x.heard, id)
		} else {
			h.session = m.Session
		}
	}
	if changed {
		x.wake()
	}
}

// fresh says whether what is known of a group may be relied on, for a member with that session timeout. gs.mu is held.
func (x *groupEntry) fresh(session time.Duration) bool {
	return x.snap != nil && x.snapSeq == x.seq && time.Since(x.confirmed) < session/confirmShare
}

// apply lets fn change a group, in one transaction with what others want of it meanwhile. fn may be called more than once,
// each time on the group as loaded anew; it must only set results.
func (gs *groups) apply(ctx context.Context, id metadata.GroupID, fn func(e group.Event, g *group.Group)) error {
	gs.mu.Lock()
	x := gs.entry(id)
	b := x.next
	if b == nil {
		b = &groupBatch{lead: make(chan struct{}, 1), done: make(chan struct{})}
		x.next = b
	}
	b.apply = append(b.apply, fn)
	if !x.applying {
		x.applying = true
		b.lead <- struct{}{}
	}
	gs.mu.Unlock()
	select {
	case <-b.lead:
		gs.run(ctx, x, b)
	case <-b.done:
	case <-ctx.Done():
		// The event stays in its batch. If nobody else is in it, nobody would take its token.
		select {
		case <-b.lead:
			gs.run(ctx, x, b)
		default:
			return ctx.Err()
		}
	}
	return b.err
}

// run applies a batch and hands over to the next one.
func (gs *groups) run(ctx context.Context, x *groupEntry, b *groupBatch) {
	gs.mu.Lock()
	if x.next == b {
		x.next = nil
	}
	seq := x.seq
	gs.mu.Unlock()
	defer func() {
		close(b.done)
		gs.mu.Lock()
		defer gs.mu.Unlock()
		if x.next == nil {
			x.applying = false
			return
		}
		x.next.lead <- struct{}{}
	}()
	b.err = fmt.Errorf("change group %q: %w", x.id, errPanic) // unless it gets to its end
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), groupTimeout)
	defer cancel()
	topics, err := gs.store.Catalogue(ctx)
	if err != nil {
		b.err = err
		return
	}
	at := time.Now()
	var after *group.Group
	version, err := gs.store.ChangeGroup(ctx, x.id, func(now metadata.Millis, rows *metadata.GroupRows) (*metadata.GroupSave, error) {
		g, err := group.Decode(rows)
		if err != nil {
			return nil, err
		}
		e := group.Event{Now: now, Agent: gs.agent, Settings: gs.settings(), Topics: groupTopics{topics}}
		for _, fn := range b.apply {
			fn(e, g)
		}
		after = g
		if g.Deleted() {
			return &metadata.GroupSave{Delete: true}, nil
		}
		return g.Save(e, rows), nil
	})
	gs.metrics.changes.Inc()
	gs.metrics.events.Add(float64(len(b.apply)))
	gs.mu.Lock()
	if b.err = err; err == nil {
		gs.metrics.rebalances.Add(float64(after.Rebalances()))
		after.Version = version
		if version == 0 {
			after = group.New(x.id)
		}
		x.learn(after, max(seq, x.snapSeq), at)
	} else {
		x.stale()
	}
	gs.mu.Unlock()
}

// snapshot gives a group as the database has had it at most session/confirmShare ago, and not before the last wake-up.
func (gs *groups) snapshot(ctx context.Context, id metadata.GroupID, session func(*group.Group) time.Duration) (*group.Group, error) {
	for {
		gs.mu.Lock()
		x := gs.entry(id)
		if x.snap != nil && x.fresh(session(x.snap)) {
			g := x.snap
			gs.mu.Unlock()
			return g, nil
		}
		if loading := x.loading; loading != nil {
			gs.mu.Unlock()
			select {
			case <-loading:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		x.loading = make(chan struct{})
		gs.mu.Unlock()
		g, err := gs.load(ctx, x)
		if err != nil || g != nil {
			return g, err
		}
	}
}

// Where a heartbeat's answer came from, in skein_group_heartbeats_total.
const (
	fromMemory   = "memory"
	fromDatabase = "database"
)

// heartbeatSnapshot is snapshot for a heartbeat, with where the group came from.
func (gs *groups) heartbeatSnapshot(ctx context.Context, id metadata.GroupID, session func(*group.Group) time.Duration) (*group.Group, string, error) {
	from := fromDatabase
	gs.mu.Lock()
	if x := gs.entry(id); x.snap != nil && x.fresh(session(x.snap)) {
		from = fromMemory
	}
	gs.mu.Unlock()
	g, err := gs.snapshot(ctx, id, session)
	return g, from, err
}

// load reads a group whose loading is set.
func (gs *groups) load(ctx context.Context, x *groupEntry) (*group.Group, error) {
	gs.mu.Lock()
	seq := x.seq
	gs.mu.Unlock()
	at := time.Now()
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), groupTimeout)
	defer cancel()
	_, rows, err := gs.store.LoadGroups(call, x.id)
	var g *group.Group
	if err == nil {
		g, err = group.Decode(&rows[0])
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	close(x.loading)
	x.loading = nil
	if err != nil {
		return nil, err
	}
	x.learn(g, seq, at)
	return g, nil
}

// always is a session for callers that only mind wake-ups.
func always(*group.Group) time.Duration { return time.Hour }

// wait calls answer with the group until it is answered, each time that the group has moved. The member counts as heard of
// meanwhile.
func (gs *groups) wait(ctx context.Context, id metadata.GroupID, member metadata.MemberID, answer func(*group.Group) bool) error {
	gs.mu.Lock()
	x := gs.entry(id)
	x.waiting[member]++
	gs.mu.Unlock()
	defer func() {
		gs.mu.Lock()
		defer gs.mu.Unlock()
		if x.waiting[member]--; x.waiting[member] == 0 {
			delete(x.waiting, member)
		}
	}()
	for {
		gs.mu.Lock()
		moved := x.moved
		gs.mu.Unlock()
		g, err := gs.snapshot(ctx, id, always)
		if err != nil {
			return err
		}
		if answer(g) {
			return nil
		}
		if err := gs.await(ctx, x, g, moved); err != nil {
			return err
		}
	}
}

// await waits until the group has moved or one of its times has come.
func (gs *groups) await(ctx context.Context, x *groupEntry, g *group.Group, moved chan struct{}) error {
	delay := writeBackInterval
	now, err := gs.store.Now(ctx)
	if err != nil {
		return err
	}
	timer := g.Timer()
	if timer != 0 {
		delay = min(delay, max(timer.Sub(now), 0))
	}
	if timer != 0 && delay == 0 {
		return gs.tickOnce(ctx, x, moved)
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-moved:
	case <-t.C:
	case <-gs.drained:
		return errGroupDraining
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// tickOnce lets time pass in a group, once for all who wait for that.
func (gs *groups) tickOnce(ctx context.Context, x *groupEntry, moved chan struct{}) error {
	gs.mu.Lock()
	first := !x.ticking
	x.ticking = true
	gs.mu.Unlock()
	if first {
		err := gs.tick(ctx, x.id)
		gs.mu.Lock()
		x.ticking = false
		gs.mu.Unlock()
		return err
	}
	select {
	case <-moved:
		return nil
	case <-time.After(groupPoll):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tick lets time pass in a group.
func (gs *groups) tick(ctx context.Context, id metadata.GroupID) error {
	before, after := 0, 0
	err := gs.apply(ctx, id, func(e group.Event, g *group.Group) {
		before = len(g.Members)
		g.Tick(e)
		after = len(g.Members)
	})
	if err == nil && before > after {
		gs.metrics.expired.Add(float64(before - after))
	}
	return err
}

// hear notes that a member was heard of.
func (gs *groups) hear(id metadata.GroupID, m *group.Member) {
	now, err := gs.store.Now(context.Background())
	if err != nil {
		return // nothing was ever read from the database: nothing was answered either
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	x := gs.entry(id)
	h := x.heard[m.ID]
	if h == nil {
		h = &heardMember{}
		x.heard[m.ID] = h
	}
	if m.HeardBy == gs.agent {
		h.written = max(h.written, m.Heard)
	}
	h.at, h.session = max(h.at, now), m.Session
}
