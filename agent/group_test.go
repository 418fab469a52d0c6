package agent

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
)

// quickGroups are settings that let tests of groups end soon.
func quickGroups() group.Settings {
	g := group.Defaults()
	g.InitialDelay, g.MinSession = 100*time.Millisecond, 100*time.Millisecond
	g.ConsumerHeartbeat = 200 * time.Millisecond
	return g
}

// newAgents starts servers of one cluster: each has a Store of its own on one database. SQLite's driver tells nobody of
// changes, so that everything an agent hears of another is what it polls for.
func newAgents(t *testing.T, n int) []*testServer {
	t.Helper()
	driver, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
			t.Errorf("close database: %v", err)
		}
	})
	agents := make([]*testServer, n)
	for i := range agents {
		agents[i] = newGroupServer(t, runStore(t, driver))
	}
	return agents
}

// newPostgresAgents is newAgents on Postgres, whose agents wake each other.
func newPostgresAgents(t *testing.T, n int) []*testServer {
	t.Helper()
	url := testenv.PostgresDatabase(t)
	agents := make([]*testServer, n)
	for i := range agents {
		agents[i] = newGroupServer(t, newPostgresStore(t, url))
	}
	return agents
}

// newGroupServer is a server that reads and writes and whose groups move fast.
func newGroupServer(t *testing.T, store *metadata.Store) *testServer {
	t.Helper()
	ts := newTestServer(t, func(c *Config, d *Deps) {
		c.Groups = quickGroups()
		d.Store, d.Producer, d.Logger = store, directProducer{store: store}, nil
	}, withExtents(t))
	ts.store = store
	return ts
}

// joinRequest is a JoinGroup.
func joinRequest(id, member string) *kmsg.JoinGroupRequest {
	q := kmsg.NewPtrJoinGroupRequest()
	q.Group, q.MemberID, q.ProtocolType, q.SessionTimeoutMillis, q.RebalanceTimeoutMillis = id, member, "any", 20_000, 5_000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "p", []byte("of "+member)
	q.Protocols = append(q.Protocols, p)
	return q
}

func syncRequest(id, member string, generation int32, assignments map[string]string) *kmsg.SyncGroupRequest {
	q := kmsg.NewPtrSyncGroupRequest()
	q.Group, q.MemberID, q.Generation = id, member, generation
	for m, a := range assignments {
		x := kmsg.NewSyncGroupRequestGroupAssignment()
		x.MemberID, x.MemberAssignment = m, []byte(a)
		q.GroupAssignment = append(q.GroupAssignment, x)
	}
	return q
}

func heartbeatRequest(id, member string, generation int32) *kmsg.HeartbeatRequest {
	q := kmsg.NewPtrHeartbeatRequest()
	q.Group, q.MemberID, q.Generation = id, member, generation
	return q
}

// wantGroupCode checks a response's code.
func wantGroupCode(t *testing.T, what string, got, want int16) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %s, want %s", what, codeName(got), codeName(want))
	}
}

// TestMembersOfOneGroupAtTwoAgents: joins and syncs that wait at one agent are answered when another moved the group, and a
// member goes on at whichever agent it likes.
func TestMembersOfOneGroupAtTwoAgents(t *testing.T) {
	agents := newAgents(t, 2)
	const leader = 0
	conns := []*rawConn{agents[leader].dial(), agents[1-leader].dial()}
	join := func(c *rawConn, member string) *kmsg.JoinGroupResponse {
		q := joinRequest("g", member)
		q.RebalanceTimeoutMillis = 20_000
		return ask[*kmsg.JoinGroupResponse](c, q, 5)
	}
	var members [2]string
	for i, c := range conns {
		first := join(c, "")
		wantGroupCode(t, "first join", first.ErrorCode, int16(group.MemberIDRequired))
		members[i] = first.MemberID
	}
	// One joins alone. It joins again when the other, whose join waits for that, has begun a rebalance.
	l := join(conns[leader], members[leader])
	wantGroupCode(t, "join", l.ErrorCode, codeNone)
	wantGroupCode(t, "sync", ask[*kmsg.SyncGroupResponse](conns[leader], syncRequest("g", l.MemberID, l.Generation, nil), 3).ErrorCode, codeNone)
	waiting := make(chan *kmsg.JoinGroupResponse, 1)
	go func() { waiting <- join(conns[1-leader], members[1-leader]) }()
	waitFor(t, "the rebalance", func() bool {
		r := ask[*kmsg.HeartbeatResponse](conns[leader], heartbeatRequest("g", l.MemberID, l.Generation), 4)
		return r.ErrorCode == int16(group.RebalanceInProgress)
	})
	l = join(conns[leader], members[leader])
	f := <-waiting
	if l.Generation != f.Generation || l.LeaderID != f.LeaderID || len(l.Members) != 2 || len(f.Members) != 0 || l.ErrorCode != 0 || f.ErrorCode != 0 {
		t.Fatalf("leader %+v\nfollower %+v", l, f)
	}
	follower := make(chan *kmsg.SyncGroupResponse, 1)
	go func() {
		follower <- ask[*kmsg.SyncGroupResponse](conns[1-leader], syncRequest("g", f.MemberID, f.Generation, nil), 3)
	}()
	s := ask[*kmsg.SyncGroupResponse](conns[leader], syncRequest("g", l.MemberID, l.Generation, map[string]string{l.MemberID: "L", f.MemberID: "F"}), 3)
	if r := <-follower; s.ErrorCode != 0 || string(s.MemberAssignment) != "L" || r.ErrorCode != 0 || string(r.MemberAssignment) != "F" {
		t.Fatalf("synced: %+v and %+v", s, r)
	}
	// Each heartbeats at the other's agent.
	for i, m := range []*kmsg.JoinGroupResponse{l, f} {
		c := conns[1-leader]
		if i == 1 {
			c = conns[leader]
		}
		wantGroupCode(t, "heartbeat elsewhere", ask[*kmsg.HeartbeatResponse](c, heartbeatRequest("g", m.MemberID, m.Generation), 4).ErrorCode, 0)
	}
	// One leaves at the agent that never had it; the other hears of it with a heartbeat.
	q := kmsg.NewPtrLeaveGroupRequest()
	q.Group = "g"
	x := kmsg.NewLeaveGroupRequestMember()
	x.MemberID = f.MemberID
	q.Members = append(q.Members, x)
	if r := ask[*kmsg.LeaveGroupResponse](conns[leader], q, 5); r.ErrorCode != 0 || r.Members[0].ErrorCode != 0 {
		t.Fatalf("leave: %+v", r)
	}
	wantGroupCode(t, "heartbeat", ask[*kmsg.HeartbeatResponse](conns[leader], heartbeatRequest("g", l.MemberID, l.Generation), 4).ErrorCode, int16(group.RebalanceInProgress))
	d := kmsg.NewPtrDescribeGroupsRequest()
	d.Groups = []string{"g", "none"}
	r := ask[*kmsg.DescribeGroupsResponse](conns[0], d, 5)
	if r.Groups[0].State != "PreparingRebalance" || len(r.Groups[0].Members) != 1 || r.Groups[1].State != "Dead" || r.Groups[1].ErrorCode != 0 {
		t.Fatalf("described: %+v", r)
	}
	wantGroupCode(t, "unknown group, version 6", ask[*kmsg.DescribeGroupsResponse](conns[0], d, 6).Groups[1].ErrorCode, int16(group.GroupIDNotFound))
}

// TestBadGroupRequests: the right code, and nothing wedged.
func TestBadGroupRequests(t *testing.T) {
	ts := newAgents(t, 1)[0]
	ts.createTopic("t", 1, nil)
	c := ts.dial()
	long := strings.Repeat("g", 32_000)
	for name, id := range map[string]string{"empty": "", "32 KB": long, "NUL": "a\x00b", "not UTF-8": "a\xffb"} {
		wantGroupCode(t, "join "+name, ask[*kmsg.JoinGroupResponse](c, joinRequest(id, ""), 5).ErrorCode, codeInvalidGroupID)
		wantGroupCode(t, "sync "+name, ask[*kmsg.SyncGroupResponse](c, syncRequest(id, "m", 1, nil), 3).ErrorCode, codeInvalidGroupID)
		wantGroupCode(t, "heartbeat "+name, ask[*kmsg.HeartbeatResponse](c, heartbeatRequest(id, "m", 1), 4).ErrorCode, codeInvalidGroupID)
	}
	huge := heartbeatRequest(strings.Repeat("g", 64<<10), "m", 1) // flexible versions carry such strings
	wantGroupCode(t, "64 KiB", ask[*kmsg.HeartbeatResponse](c, huge, 4).ErrorCode, codeInvalidGroupID)
	wantGroupCode(t, "unknown member", ask[*kmsg.HeartbeatResponse](c, heartbeatRequest("g", "m", 1), 4).ErrorCode, codeUnknownMemberID)
	wantGroupCode(t, "long member", ask[*kmsg.JoinGroupResponse](c, joinRequest("g", long), 5).ErrorCode, codeUnknownMemberID)
	q := joinRequest("g", "")
	q.SessionTimeoutMillis = 1
	wantGroupCode(t, "session", ask[*kmsg.JoinGroupResponse](c, q, 5).ErrorCode, int16(group.InvalidSessionTimeout))
	q = joinRequest("g", "")
	q.Protocols = nil
	wantGroupCode(t, "no protocol", ask[*kmsg.JoinGroupResponse](c, q, 5).ErrorCode, int16(group.InconsistentProtocol))

	commit := func(meta string) *kmsg.OffsetCommitRequest {
		o := kmsg.NewPtrOffsetCommitRequest()
		o.Group, o.Generation = "g", -1
		x := kmsg.NewOffsetCommitRequestTopic()
		x.Topic = "t"
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Offset, p.Metadata = 3, &meta
		x.Partitions = append(x.Partitions, p)
		o.Topics = append(o.Topics, x)
		return o
	}
	code := func(r *kmsg.OffsetCommitResponse) int16 { return r.Topics[0].Partitions[0].ErrorCode }
	wantGroupCode(t, "metadata of 4,097 bytes", code(ask[*kmsg.OffsetCommitResponse](c, commit(strings.Repeat("x", 4097)), 8)), codeOffsetMetadataTooLarge)
	wantGroupCode(t, "metadata of 4,096 bytes", code(ask[*kmsg.OffsetCommitResponse](c, commit("\x00\xff"+strings.Repeat("x", 4094)), 8)), codeNone)
	o := commit("")
	o.Generation, o.MemberID = 7, "m"
	wantGroupCode(t, "commit of nobody", code(ask[*kmsg.OffsetCommitResponse](c, o, 8)), codeUnknownMemberID)
	o = commit("")
	o.Topics[0].Topic = "none"
	wantGroupCode(t, "commit of no topic", code(ask[*kmsg.OffsetCommitResponse](c, o, 8)), codeUnknownTopicOrPartition)
	o = commit("")
	o.Topics[0].TopicID = [16]byte{1}
	wantGroupCode(t, "commit of no topic id", code(ask[*kmsg.OffsetCommitResponse](c, o, 10)), codeUnknownTopicID)

	blob := joinRequest("g2", "")
	blob.Protocols[0].Metadata = bytes.Repeat([]byte("x"), 10<<20)
	big := ts.dial()
	blob.SetVersion(5)
	big.limit()
	if _, err := big.Write(frameOf(blob, 1)); err == nil {
		big.wantClosed()
	}
	// Nothing is wedged.
	wantGroupCode(t, "after all that", ask[*kmsg.JoinGroupResponse](c, joinRequest("g2", ""), 3).ErrorCode, codeNone)
}

// TestVanishedMember: who joins and vanishes holds nobody up for longer than its timeouts.
func TestVanishedMember(t *testing.T) {
	ts := newAgents(t, 1)[0]
	gone := ts.dial()
	q := joinRequest("g", "")
	q.RebalanceTimeoutMillis, q.SessionTimeoutMillis = 1_000, 1_500
	q.SetVersion(3)
	gone.send(q, 1)
	stay := ts.dial()
	q = joinRequest("g", "")
	q.RebalanceTimeoutMillis, q.SessionTimeoutMillis = 10_000, 20_000
	r := ask[*kmsg.JoinGroupResponse](stay, q, 3)
	gone.Close()
	for range 20 {
		wantGroupCode(t, "join", r.ErrorCode, codeNone)
		assignments := map[string]string{}
		for _, m := range r.Members {
			assignments[m.MemberID] = "x"
		}
		s := ask[*kmsg.SyncGroupResponse](stay, syncRequest("g", r.MemberID, r.Generation, assignments), 3)
		if s.ErrorCode == codeNone && len(assignments) == 1 {
			return
		}
		// Wait for the rebalance that the vanished member's removal begins.
		for ask[*kmsg.HeartbeatResponse](stay, heartbeatRequest("g", r.MemberID, r.Generation), 3).ErrorCode == codeNone {
			if t.Context().Err() != nil {
				t.Fatal("no rebalance")
			}
			<-time.After(20 * time.Millisecond)
		}
		q.MemberID = r.MemberID
		r = ask[*kmsg.JoinGroupResponse](stay, q, 3)
	}
	t.Fatal("the vanished member is still there")
}

// TestHeartbeatsComeFromMemory: a thousand heartbeats cost the database next to nothing, and members stay.
func TestHeartbeatsComeFromMemory(t *testing.T) {
	ts := newAgents(t, 1)[0]
	c := ts.dial()
	r := ask[*kmsg.JoinGroupResponse](c, joinRequest("g", ""), 3)
	ask[*kmsg.SyncGroupResponse](c, syncRequest("g", r.MemberID, r.Generation, map[string]string{r.MemberID: "x"}), 3)
	before := testutil.ToFloat64(ts.groups.metrics.changes)
	for range 1000 {
		wantGroupCode(t, "heartbeat", ask[*kmsg.HeartbeatResponse](c, heartbeatRequest("g", r.MemberID, r.Generation), 4).ErrorCode, codeNone)
	}
	if n := testutil.ToFloat64(ts.groups.metrics.changes) - before; n > 0 {
		t.Errorf("%v transactions for a thousand heartbeats", n)
	}
	if n := testutil.ToFloat64(ts.groups.metrics.heartbeats.WithLabelValues(fromMemory)); n < 900 {
		t.Errorf("%v heartbeats of a thousand are counted as answered from memory", n)
	}
}

// TestConsumersOfBothProtocols lets three franz-go members, at two agents, read everything exactly once.
func TestConsumersOfBothProtocols(t *testing.T) {
	for kind, start := range map[string]func(*testing.T, int) []*testServer{"sqlite": newAgents, "postgres": newPostgresAgents} {
		for name, ctx := range map[string]context.Context{
			"classic": context.Background(),
			//lint:ignore SA1029 the key is franz-go's
			"consumer": context.WithValue(context.Background(), "opt_in_kafka_next_gen_balancer_beta", true),
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				consumeOnce(t, ctx, start(t, 2), map[string]metadata.GroupKind{"classic": metadata.GroupClassic, "consumer": metadata.GroupConsumer}[name])
			})
		}
	}
}

func consumeOnce(t *testing.T, ctx context.Context, agents []*testServer, kind metadata.GroupKind) {
	t.Helper()
	const partitions, records = 6, 300
	agents[0].createTopic("t", partitions, nil)
	producer := agents[0].client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range records {
		res := producer.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: int32(i % partitions), Value: fmt.Appendf(nil, "%d", i)})
		if err := res.FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	got := make(chan string, 10*records)
	var wg sync.WaitGroup
	for i := range 3 {
		a := agents[i%2]
		client := a.client(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.WithContext(ctx), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.HeartbeatInterval(100*time.Millisecond))
		wg.Go(func() {
			defer client.AllowRebalance() // Close waits for it
			for {
				f := client.PollFetches(ctx)
				if ctx.Err() != nil {
					return
				}
				f.EachRecord(func(r *kgo.Record) { got <- string(r.Value) })
				if err := client.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				client.AllowRebalance()
			}
		})
	}
	seen := map[string]int{}
	for len(seen) < records {
		select {
		case v := <-got:
			seen[v]++
		case <-ctx.Done():
			t.Fatalf("%d of %d records were read", len(seen), records)
		}
	}
	for v, n := range seen {
		if n > 1 {
			t.Errorf("record %s was read %d times", v, n)
		}
	}
	rows, err := agents[1].store.ListGroups(t.Context(), "", 2)
	if err != nil || len(rows) != 1 || rows[0].Kind != kind {
		t.Errorf("groups %+v, %v; want kind %d", rows, err, kind)
	}
	cancel()
	wg.Wait()
}

// TestGroupLag shows lag per partition and group.
func TestGroupLag(t *testing.T) {
	ts := newAgents(t, 1)[0]
	topic := ts.createTopic("t", 2, nil)
	producer := ts.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range 10 {
		if err := producer.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: int32(i % 2), Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	offset := func(partition int32, at metadata.Offset) metadata.GroupOffset {
		return metadata.GroupOffset{TopicPartition: metadata.TopicPartition{Topic: topic.ID, Partition: partition}, Offset: at}
	}
	err := ts.store.CommitOffsets(t.Context(), metadata.OffsetCommit{
		Group: "g", Offsets: []metadata.GroupOffset{offset(0, 1), offset(1, 5)},
		Check: func(metadata.Millis, *metadata.GroupRow, []metadata.MemberRow) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `# HELP skein_group_lag Records between a group's committed offset and the high watermark.
# TYPE skein_group_lag gauge
skein_group_lag{group="g",partition="0",topic="t"} 4
skein_group_lag{group="g",partition="1",topic="t"} 0
# HELP skein_group_lag_sum skein_group_lag of all partitions of a group.
# TYPE skein_group_lag_sum gauge
skein_group_lag_sum{group="g"} 4
`
	if err := testutil.GatherAndCompare(ts.metrics, strings.NewReader(want), "skein_group_lag", "skein_group_lag_sum"); err != nil {
		t.Error(err)
	}
}

// countingStore counts the statements that heartbeats cost.
type countingStore struct {
	*metadata.Store
	loads, writes, sweeps, changes atomic.Int64
}

func (s *countingStore) LoadGroups(ctx context.Context, ids ...metadata.GroupID) (metadata.Millis, []metadata.GroupRows, error) {
	s.loads.Add(1)
	return s.Store.LoadGroups(ctx, ids...)
}

func (s *countingStore) WriteBack(ctx context.Context, w metadata.WriteBack) (*metadata.WrittenBack, error) {
	s.writes.Add(1)
	return s.Store.WriteBack(ctx, w)
}

func (s *countingStore) SweepGroups(ctx context.Context, limit int) ([]metadata.GroupID, error) {
	s.sweeps.Add(1)
	return s.Store.SweepGroups(ctx, limit)
}

func (s *countingStore) ChangeGroup(ctx context.Context, id metadata.GroupID,
	fn func(metadata.Millis, *metadata.GroupRows) (*metadata.GroupSave, error),
) (int64, error) {
	s.changes.Add(1)
	return s.Store.ChangeGroup(ctx, id, fn)
}

// TestThousandMembers lets a thousand members of fifty groups heartbeat at three agents, and counts statements.
func TestThousandMembers(t *testing.T) {
	const groups, each, seconds, session = 50, 20, 6, 45 * time.Second
	url := testenv.PostgresDatabase(t)
	stores := make([]*countingStore, 3)
	agents := make([]*testServer, len(stores))
	for i := range stores {
		stores[i] = &countingStore{Store: newPostgresStore(t, url)}
		agents[i] = newTestServer(t, func(c *Config, d *Deps) {
			c.Groups = quickGroups()
			d.Store, d.Producer, d.Logger = stores[i], directProducer{store: stores[i].Store}, nil
		})
	}
	type one struct {
		id, member string
		generation int32
	}
	var members []one
	for g := range groups {
		id := fmt.Sprint("g", g)
		_, err := stores[0].Store.ChangeGroup(t.Context(), metadata.GroupID(id), func(now metadata.Millis, rows *metadata.GroupRows) (*metadata.GroupSave, error) {
			x, err := group.Decode(rows)
			if err != nil {
				return nil, err
			}
			x.Kind, x.State, x.Generation, x.ProtocolType, x.Protocol = metadata.GroupClassic, group.Stable, 1, "any", "p"
			for m := range each {
				k := metadata.MemberID(fmt.Sprint("m", m))
				x.Leader = k
				x.Members[k] = &group.Member{ID: k, Session: session, Heard: now, Synced: true}
			}
			return x.Save(group.Event{Now: now, Settings: quickGroups()}, rows), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for m := range each {
			members = append(members, one{id, fmt.Sprint("m", m), 1})
		}
	}
	// All of them heartbeat every second, half of the time at another agent.
	var beats atomic.Int64
	var wg sync.WaitGroup
	run := func(rounds int) {
		for w := range 30 {
			conns := []*rawConn{agents[w%3].dial(), agents[(w+1)%3].dial()}
			wg.Go(func() {
				tick := time.NewTicker(time.Second)
				defer tick.Stop()
				for round := range rounds {
					for i := w; i < len(members); i += 30 {
						m := members[i]
						r := ask[*kmsg.HeartbeatResponse](conns[round%2], heartbeatRequest(m.id, m.member, m.generation), 4)
						if r.ErrorCode != codeNone {
							t.Errorf("heartbeat of %s in %s: %s", m.member, m.id, codeName(r.ErrorCode))
						}
						beats.Add(1)
					}
					<-tick.C
				}
			})
		}
		wg.Wait()
	}
	run(2) // so that every agent knows every group
	count := func() (n int64) {
		for _, s := range stores {
			n += s.loads.Load() + s.writes.Load() + s.sweeps.Load() + s.changes.Load()
		}
		return n
	}
	before, beaten, start := count(), beats.Load(), time.Now()
	run(seconds)
	took := time.Since(start).Seconds()
	perSecond := float64(count()-before) / took
	t.Logf("%.0f heartbeats a second of %d members at %d agents: %.1f statements a second", float64(beats.Load()-beaten)/took, len(members), len(agents), perSecond)
	// Each agent writes back and sweeps once a second.
	if perSecond > 10 {
		t.Errorf("%.1f statements a second", perSecond)
	}
}
