package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/internal/testenv"
)

// balancer is a TCP load balancer: each connection goes to the next agent that takes it.
type balancer struct {
	net.Listener
	agents []string
	next   atomic.Uint64
	wg     sync.WaitGroup
}

func newBalancer(t *testing.T, agents ...string) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{Listener: l, agents: agents}
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
	})
	return b
}

func (b *balancer) serve(client net.Conn) {
	defer client.Close()
	for range b.agents {
		agent, err := net.DialTimeout("tcp", b.agents[b.next.Add(1)%uint64(len(b.agents))], time.Second)
		if err != nil {
			continue
		}
		defer agent.Close()
		done := make(chan struct{}, 2)
		for _, way := range [][2]net.Conn{{client, agent}, {agent, client}} {
			go func() {
				_, _ = io.Copy(way[0], way[1])
				done <- struct{}{}
			}()
		}
		<-done
		return
	}
}

// groupLoad is groups of members that consume while a producer writes.
type groupLoad struct {
	t          *testing.T
	topic      string
	partitions int
	sent       atomic.Int64
	members    []*loadMember
	stop       context.CancelFunc
	wg         sync.WaitGroup
}

// loadMember is one consumer.
type loadMember struct {
	group    int
	client   *kgo.Client
	assigned atomic.Int64 // partitions
	moves    atomic.Int64 // times that its assignment changed or was begun anew
	progress atomic.Int64 // unix ms of the last record
	mu       sync.Mutex
	seen     map[string]int
}

const (
	loadSession = 10 * time.Second
	loadRecords = 100 // per second
)

func startGroupLoad(t *testing.T, bootstrap string, groups, members int) *groupLoad {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &groupLoad{t: t, topic: "t", partitions: 2 * members, stop: stop}
	t.Cleanup(l.end)
	for g := range groups {
		for range members {
			m := &loadMember{group: g, seen: map[string]int{}}
			client, err := kgo.NewClient(
				kgo.SeedBrokers(bootstrap), kgo.ConsumerGroup(fmt.Sprint("g", g)), kgo.ConsumeTopics(l.topic),
				kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(loadSession), kgo.HeartbeatInterval(time.Second),
				kgo.AutoCommitInterval(500*time.Millisecond),
				kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, p map[string][]int32) {
					m.moves.Add(1)
					m.assigned.Add(int64(len(p[l.topic])))
				}),
				kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, p map[string][]int32) {
					m.assigned.Add(-int64(len(p[l.topic])))
				}),
				kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, p map[string][]int32) {
					m.assigned.Add(-int64(len(p[l.topic])))
				}),
			)
			if err != nil {
				t.Fatal(err)
			}
			m.client = client
			l.members = append(l.members, m)
			l.wg.Go(func() {
				defer client.Close()
				for ctx.Err() == nil {
					client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
						m.progress.Store(time.Now().UnixMilli())
						m.mu.Lock()
						m.seen[string(r.Value)]++
						m.mu.Unlock()
					})
				}
			})
		}
	}
	l.produce(ctx, bootstrap)
	return l
}

func (l *groupLoad) produce(ctx context.Context, bootstrap string) {
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.DefaultProduceTopic(l.topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.UnknownTopicRetries(-1), kgo.RecordDeliveryTimeout(5*time.Minute))
	if err != nil {
		l.t.Fatal(err)
	}
	l.wg.Go(func() {
		defer client.Close()
		tick := time.NewTicker(time.Second / loadRecords)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			client.Produce(context.WithoutCancel(ctx), kgo.StringRecord(strconv.Itoa(i)), func(_ *kgo.Record, err error) {
				if err == nil {
					l.sent.Add(1)
				}
			})
		}
	})
}

func (l *groupLoad) end() {
	l.stop()
	l.wg.Wait()
}

// until waits for what must come, and says how long that took.
func (l *groupLoad) until(what string, limit time.Duration, ok func() bool) time.Duration {
	l.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			l.t.Fatalf("%s: not within %v", what, limit)
		}
		<-time.After(50 * time.Millisecond)
	}
	return time.Since(start)
}

// settled says whether every group's partitions are all assigned.
func (l *groupLoad) settled() bool {
	n := map[int]int64{}
	for _, m := range l.members {
		n[m.group] += m.assigned.Load()
		if m.assigned.Load() == 0 {
			return false
		}
	}
	for _, assigned := range n {
		if assigned != int64(l.partitions) {
			return false
		}
	}
	return true
}

// progressed says whether every member has read something since.
func (l *groupLoad) progressed(since time.Time) func() bool {
	return func() bool {
		for _, m := range l.members {
			if m.progress.Load() <= since.UnixMilli() {
				return false
			}
		}
		return true
	}
}

func (l *groupLoad) moves() (n int64) {
	for _, m := range l.members {
		n += m.moves.Load()
	}
	return n
}

// trial does something to the cluster and watches. mayRejoin: clients may give up by themselves and join again.
func (l *groupLoad) trial(what string, mayRejoin bool, do func()) {
	l.t.Helper()
	before := l.moves()
	do()
	took := l.until(what+": every member reads on", time.Minute, l.progressed(time.Now()))
	// A rebalance that is on its way shows within a session and a heartbeat.
	quiet := time.Now().Add(loadSession + 5*time.Second)
	l.until("a session", time.Minute, func() bool { return time.Now().After(quiet) })
	moved := l.moves() - before
	l.t.Logf("%s: every member reads on after %v; %d of %d members were moved", what, took.Round(10*time.Millisecond), moved, len(l.members))
	if moved > 0 && !mayRejoin {
		l.t.Errorf("%s: %d members were moved, want 0", what, moved)
	}
}

// check stops and compares what was acknowledged with what each group read.
func (l *groupLoad) check() {
	l.t.Helper()
	groups := map[int]map[string]int{}
	count := func() int {
		least := int(l.sent.Load())
		for _, m := range l.members {
			m.mu.Lock()
			if groups[m.group] == nil {
				groups[m.group] = map[string]int{}
			}
			for v, n := range m.seen {
				groups[m.group][v] += n
			}
			clear(m.seen)
			m.mu.Unlock()
		}
		for _, seen := range groups {
			least = min(least, len(seen))
		}
		return least
	}
	sent := int(l.sent.Load())
	l.until(fmt.Sprintf("all groups have read %d records", sent), time.Minute, func() bool { return count() >= sent })
	twice := 0
	for _, seen := range groups {
		for _, n := range seen {
			twice += n - 1
		}
	}
	l.t.Logf("%d records read by each of %d groups, %d read again", sent, len(groups), twice)
}

// loadSize is how many groups and members; SKEIN_TEST_GROUPS=20x5 makes it the size of the acceptance test.
func loadSize(t *testing.T) (groups, members int) {
	t.Helper()
	text := os.Getenv("SKEIN_TEST_GROUPS")
	if text == "" {
		return 4, 3
	}
	g, m, ok := strings.Cut(text, "x")
	groups, err := strconv.Atoi(g)
	members, err2 := strconv.Atoi(m)
	if !ok || err != nil || err2 != nil {
		t.Fatalf("SKEIN_TEST_GROUPS=%s: want GROUPSxMEMBERS", text)
	}
	return groups, members
}

// TestGroupsOutliveAgentsAndTheDatabase kills an agent, drains another, restarts the database and takes it away for longer
// than a session while groups consume: nobody is moved and nothing is lost.
func TestGroupsOutliveAgentsAndTheDatabase(t *testing.T) {
	pg := testenv.NewPostgres(t)
	database := pg.Database(t)
	bucket := "file://" + t.TempDir()
	var addresses []string
	for range 3 {
		addresses = append(addresses, testenv.FreeAddress(t))
	}
	lb := newBalancer(t, addresses...)
	var agents []*server
	for _, a := range addresses {
		s := start(t, nil, append(agentFlags(database, bucket, "--create-bucket", "--group-initial-rebalance-delay=1s"),
			"--listen", a, "--advertise", lb.Addr().String())...)
		s.ready(t)
		agents = append(agents, s)
	}
	groups, members := loadSize(t)
	mustSkein(t, nil, "topic", "create", "t", "-p", strconv.Itoa(2*members), "--bootstrap", lb.Addr().String())
	l := startGroupLoad(t, lb.Addr().String(), groups, members)
	took := l.until("all groups have all partitions", 2*time.Minute, l.settled)
	t.Logf("%d groups of %d members are settled after %v", groups, members, took.Round(time.Millisecond))
	l.until("first records", time.Minute, l.progressed(time.Now()))

	l.trial("an agent killed", false, func() {
		if code := agents[0].end(t, syscall.SIGKILL); code != -1 {
			t.Errorf("SIGKILL: exit %d", code)
		}
	})
	l.trial("an agent drained", false, func() {
		if err := agents[1].cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		agents[1].await(t, regexp.MustCompile(`msg=stopped`))
	})
	l.trial("the database restarted", false, func() {
		if err := errors.Join(pg.Stop(false), pg.Start()); err != nil {
			t.Fatal(err)
		}
	})
	// franz-go ends a classic session by itself when its heartbeats fail for that long; the server must expire nobody.
	l.trial("the database away for longer than a session", true, func() {
		if err := pg.Stop(true); err != nil {
			t.Fatal(err)
		}
		gone := time.Now().Add(loadSession + 5*time.Second)
		l.until("an outage", time.Minute, func() bool { return time.Now().After(gone) })
		if err := pg.Start(); err != nil {
			t.Fatal(err)
		}
	})
	_, metrics := agents[2].get(t, "/metrics")
	if !strings.Contains(metrics, "\nskein_group_members_expired_total 0\n") {
		t.Errorf("members were expired: %s", regexp.MustCompile(`skein_group_\S+ \d+`).FindAllString(metrics, -1))
	}
	t.Logf("%s", regexp.MustCompile(`(?m)^skein_group_\S+ \S+`).FindAllString(metrics, -1))
	l.check()
}
