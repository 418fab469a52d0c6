package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// The scenario of consumer groups: groups × members read one topic while agents and Postgres are hurt. What counts is
// whether anybody rebalances, what a group misses, and how long until every member reads on.

const (
	groupScenario = "groups"
	groupSize     = 5 // members
	// shortOutage is how long Postgres is out of reach so that clients wait: less than a session. In longOutage sessions end
	// on the clients' side, and classic clients then join anew.
	shortOutage = 30 * time.Second
	longOutage  = time.Minute
	// groupStart bounds the time until every member has read something.
	groupStart = 2 * time.Minute
	// sessionOver is longer than a session: after it everybody has expired who will.
	sessionOver = 50 * time.Second
	groupPause  = 10 * time.Millisecond
)

// groupKinds are the protocols that groups speak in turn.
var groupKinds = []string{"cooperative-sticky", "range", "KIP-848"}

// groupLoad is the members at work.
type groupLoad struct {
	o      *options
	topic  string
	end    context.CancelFunc
	work   sync.WaitGroup
	groups []*chaosGroup
}

// chaosGroup is one group and what it has read.
type chaosGroup struct {
	name, kind string

	mu       sync.Mutex
	next     map[int32]int64
	repeated int
	skipped  int64
	members  []*chaosMember
}

// chaosMember is a member and how far it is. The group's mu guards it.
type chaosMember struct {
	cl       *kgo.Client
	produced time.Time // when the newest record that it read was made
	read     time.Time // when it read it
	moves    int       // partitions taken from it
}

func groupSteps() []step {
	freeze := func(d time.Duration) step {
		return step{name: "freeze Postgres for " + d.String(), do: each(syscall.SIGSTOP, "postgres"), hold: d, undo: each(syscall.SIGCONT, "postgres")}
	}
	return []step{
		{name: "nothing", do: func(context.Context) error { return nil }},
		{name: "kill -9 agent-1", do: signal9("agent-1"), undo: launch("agent-1")},
		{name: "drain agent-3", do: script("scripts/down.sh", "agent-3"), undo: launch("agent-3")},
		{name: "restart Postgres", do: script("scripts/down.sh", "postgres"), undo: launch("postgres")},
		freeze(shortOutage),
		freeze(longOutage),
	}
}

// runGroups runs the scenario and prints its report.
func runGroups(ctx context.Context, o *options) error {
	w, err := startGroups(ctx, o)
	if err != nil {
		return err
	}
	defer w.kill()
	producing, stop := context.WithCancel(ctx)
	defer stop()
	produced := make(chan error, 1)
	go func() { produced <- w.produce(producing) }()
	r := &groupReport{Groups: o.groups, Members: o.groups * groupSize}
	if err := w.awaitAll(ctx, time.Now(), groupStart); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := w.settleStart(ctx); err != nil {
		return err
	}
	for _, s := range groupSteps() {
		f, err := w.hurt(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if r.Faults = append(r.Faults, f); s.hold < longOutage {
			r.Rebalances += f.Rebalances
		}
	}
	stop()
	if err := <-produced; err != nil {
		return err
	}
	if err := w.count(ctx, r); err != nil {
		return err
	}
	return r.finish(o)
}

func startGroups(ctx context.Context, o *options) (*groupLoad, error) {
	topic := fmt.Sprintf("chaos-groups-%d", time.Now().Unix())
	o.partitions = 2 * groupSize
	if err := createTopic(ctx, o, topic); err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	w := &groupLoad{o: o, topic: topic, end: end}
	for n := range o.groups {
		g := &chaosGroup{name: fmt.Sprintf("%s-g%02d", topic, n+1), kind: groupKinds[n%len(groupKinds)], next: map[int32]int64{}}
		w.groups = append(w.groups, g)
		for i := range groupSize {
			if err := w.member(ctx, g, fmt.Sprintf("%s-m%d", g.name, i+1)); err != nil {
				w.kill()
				return nil, err
			}
		}
	}
	return w, nil
}

func (w *groupLoad) member(ctx context.Context, g *chaosGroup, name string) error {
	m := &chaosMember{}
	lost := func(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
		g.mu.Lock()
		defer g.mu.Unlock()
		m.moves += len(parts[w.topic])
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(w.o.bootstrap, ",")...), kgo.ClientID(name), kgo.ConsumerGroup(g.name),
		kgo.ConsumeTopics(w.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitInterval(time.Second),
		kgo.OnPartitionsRevoked(lost), kgo.OnPartitionsLost(lost),
	}
	switch g.kind {
	case "range":
		opts = append(opts, kgo.Balancers(kgo.RangeBalancer()))
	case "KIP-848":
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	}
	cl, err := kgo.NewClient(append(opts, kgo.WithContext(ctx))...)
	if err != nil {
		return err
	}
	m.cl = cl
	g.members = append(g.members, m)
	w.work.Go(func() {
		defer cl.Close()
		for ctx.Err() == nil {
			fetches := cl.PollFetches(ctx)
			g.take(m, fetches)
		}
	})
	return nil
}

// take notes what a member read.
func (g *chaosGroup) take(m *chaosMember, fetches kgo.Fetches) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	fetches.EachRecord(func(r *kgo.Record) {
		if r.Timestamp.After(m.produced) {
			m.produced, m.read = r.Timestamp, now
		}
		switch want := g.next[r.Partition]; {
		case r.Offset < want:
			g.repeated++
			return
		case r.Offset > want:
			g.skipped += r.Offset - want
		}
		g.next[r.Partition] = r.Offset + 1
	})
}

// produce writes to all partitions in turn at the rate until ctx ends, and waits for what it has begun.
func (w *groupLoad) produce(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(w.o.bootstrap, ",")...), kgo.DefaultProduceTopic(w.topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	defer cl.Close()
	var mu sync.Mutex
	var failed error
	n := 0
	pace := &load{o: w.o}
	_ = pace.pace(ctx, func() error { // it ends with ctx only
		p := int32(n % w.o.partitions)
		n++
		cl.Produce(context.WithoutCancel(ctx), &kgo.Record{Partition: p, Value: []byte(strings.Repeat("x", w.o.bytes))}, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = fmt.Errorf("produce: %w", err)
			}
		})
		return nil
	})
	if err := cl.Flush(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	return failed
}

// slowest gives the newest record of the member that is furthest behind.
func (w *groupLoad) slowest() (t time.Time, who string) {
	for _, g := range w.groups {
		g.mu.Lock()
		for i, m := range g.members {
			if who == "" || m.produced.Before(t) {
				t, who = m.produced, fmt.Sprintf("%s (%s) member %d", g.name, g.kind, i+1)
			}
		}
		g.mu.Unlock()
	}
	return t, who
}

// awaitAll waits until every member has read a record that was made after a time.
func (w *groupLoad) awaitAll(ctx context.Context, after time.Time, limit time.Duration) error {
	began := time.Now()
	for {
		t, who := w.slowest()
		if t.After(after) {
			return nil
		}
		if time.Since(began) > limit {
			return fmt.Errorf("%s has read nothing for %s", who, limit)
		}
		if err := rest(ctx, groupPause); err != nil {
			return err
		}
	}
}

// settleStart waits until no generation has changed for a while: the members of a group do not start at once.
func (w *groupLoad) settleStart(ctx context.Context) error {
	for before := int32(-1); before != w.generations(); {
		before = w.generations()
		if err := rest(ctx, w.o.settle); err != nil {
			return err
		}
	}
	return nil
}

// generations is the sum of all groups' generations, as their members know them: it rises by one with every rebalance.
func (w *groupLoad) generations() (sum int32) {
	for _, g := range w.groups {
		newest := int32(0)
		for _, m := range g.members {
			_, generation := m.cl.GroupMetadata()
			newest = max(newest, generation)
		}
		sum += newest
	}
	return sum
}

// moves is how many partitions were taken from members, so that others could have them or because they were lost.
func (w *groupLoad) moves() (sum int) {
	for _, g := range w.groups {
		g.mu.Lock()
		for _, m := range g.members {
			sum += m.moves
		}
		g.mu.Unlock()
	}
	return sum
}

// hurt runs a step.
func (w *groupLoad) hurt(ctx context.Context, s step) (groupFault, error) {
	f := groupFault{Name: s.name}
	generations, moves := w.generations(), w.moves()
	began := time.Now()
	fmt.Fprintf(os.Stderr, "chaos: %s\n", s.name)
	if err := s.do(ctx); err != nil {
		return f, err
	}
	over := began
	if s.hold > 0 || strings.Contains(s.name, "Postgres") {
		if err := rest(ctx, s.hold); err != nil {
			return f, err
		}
		if err := s.undo(ctx); err != nil {
			return f, err
		}
		over = time.Now()
	}
	if err := w.awaitAll(ctx, over, recoveryLimit); err != nil {
		return f, err
	}
	f.ProgressMS, f.SinceBeganMS = time.Since(over).Milliseconds(), time.Since(began).Milliseconds()
	// Whoever is to expire does so before the next step.
	if err := rest(ctx, sessionOver); err != nil {
		return f, err
	}
	if s.undo != nil && s.hold == 0 {
		if err := s.undo(ctx); err != nil {
			return f, err
		}
		if err := rest(ctx, w.o.settle); err != nil {
			return f, err
		}
	}
	f.Rebalances, f.Moved = w.generations()-generations, w.moves()-moves
	return f, nil
}

// count waits until every group has read to the end, and compares.
func (w *groupLoad) count(ctx context.Context, r *groupReport) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(w.o.bootstrap, ",")...))
	if err != nil {
		return err
	}
	defer cl.Close()
	ends, err := endOffsets(ctx, cl, w.topic)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(catchUp)
	for _, end := range ends {
		r.Records += end
	}
	for _, g := range w.groups {
		for g.behind(ends) > 0 && time.Now().Before(deadline) && rest(ctx, recoveryPoll) == nil {
		}
		r.Lost += g.behind(ends)
		g.mu.Lock()
		r.Lost += g.skipped
		r.Repeated += g.repeated
		g.mu.Unlock()
	}
	return nil
}

func (g *chaosGroup) behind(ends map[int32]int64) (n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, end := range ends {
		n += max(0, end-g.next[p])
	}
	return n
}

func (w *groupLoad) kill() {
	w.end()
	w.work.Wait()
}
