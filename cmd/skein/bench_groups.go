package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

const (
	// benchSession is the session timeout of the members of `bench groups`, and how long they wait for each other.
	benchSession = 45 * time.Second
	// benchTopics is how many topics the partitions of `bench groups --commit-partitions` are spread over.
	benchTopics = 10
	// benchCommits is how often they are committed.
	benchCommits = 20
)

type benchGroupsFlags struct {
	groups, members  int
	interval         time.Duration
	duration         time.Duration
	commitPartitions int
}

// groupsResult is `bench groups -o json`.
type groupsResult struct {
	Members    int     `json:"members"`
	JoinSec    float64 `json:"join_seconds"` // until every member had its assignment
	Heartbeats int64   `json:"heartbeats"`
	PerSecond  float64 `json:"heartbeats_per_second"`
	Errors     int64   `json:"errors"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	// Of commits of all partitions at once; 0 without --commit-partitions.
	CommitPartitions int     `json:"commit_partitions"`
	CommitP50        float64 `json:"commit_p50_ms"`
	CommitMax        float64 `json:"commit_max_ms"`
}

func newBenchGroups(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "groups", Short: "Let members of consumer groups heartbeat, and commit the offsets of many partitions at once", Args: exactArgs(),
	}
	var f benchGroupsFlags
	flags := cmd.Flags()
	flags.IntVar(&f.groups, "groups", 50, "groups")
	flags.IntVar(&f.members, "members", 1000, "members of all groups, each with connections of its own")
	flags.DurationVar(&f.interval, "interval", 3*time.Second, "between two heartbeats of a member")
	flags.DurationVar(&f.duration, "duration", 30*time.Second, "how long they heartbeat")
	flags.IntVar(&f.commitPartitions, "commit-partitions", 0, "partitions of one OffsetCommit, of topics bench-groups-N, which are created; 0: none")
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.groups < 1 || f.members < f.groups || f.interval <= 0 || f.commitPartitions < 0 {
			return usagef("bench groups: want --groups of at least 1, as many --members, an --interval above 0 and --commit-partitions of 0 or more")
		}
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		r, err := benchGroups(ctx, p, cmd, &f)
		if err != nil {
			return err
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, r)
		}
		return writeTable(p.stdout, [][]string{
			{"MEMBERS", "JOIN S", "HEARTBEATS/S", "P50 MS", "P99 MS", "ERRORS", "PARTITIONS", "COMMIT P50 MS", "COMMIT MAX MS"},
			{
				strconv.Itoa(r.Members), number(r.JoinSec), number(r.PerSecond), number(r.P50), number(r.P99), strconv.FormatInt(r.Errors, 10),
				strconv.Itoa(r.CommitPartitions), number(r.CommitP50), number(r.CommitMax),
			},
		})
	}
	return cmd
}

// groupsRun is one run's members and what they saw.
type groupsRun struct {
	f       *benchGroupsFlags
	members []*groupBencher
	beats   histogram
	count   atomic.Int64
	errors  atomic.Int64
}

// groupBencher is a member.
type groupBencher struct {
	c          *kgo.Client
	group      string
	id         string
	generation int32
}

func benchGroups(ctx context.Context, p *process, cmd *cobra.Command, f *benchGroupsFlags) (*groupsResult, error) {
	run := &groupsRun{f: f}
	defer run.close()
	name := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	for i := range f.members {
		c, err := connect(ctx, cmd)
		if err != nil {
			return nil, err
		}
		run.members = append(run.members, &groupBencher{c: c, group: fmt.Sprintf("%s-%d", name, i%f.groups)})
	}
	r := &groupsResult{Members: f.members}
	began := time.Now()
	if err := run.each(ctx, (*groupBencher).join); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	r.JoinSec = round(time.Since(began).Seconds())
	show := showProgress(p, func() string { return fmt.Sprintf("%d heartbeats, %d errors", run.count.Load(), run.errors.Load()) })
	began = time.Now()
	err := run.heartbeat(ctx)
	took := time.Since(began).Seconds()
	show.end()
	if err != nil {
		return nil, err
	}
	r.Heartbeats, r.Errors = run.count.Load(), run.errors.Load()
	r.PerSecond = round(float64(r.Heartbeats) / took)
	s := run.beats.summary()
	r.P50, r.P99 = s.P50, s.P99
	if f.commitPartitions > 0 {
		if err := run.commit(ctx, cmd, r, name); err != nil {
			return nil, err
		}
	}
	return r, run.each(ctx, (*groupBencher).leave)
}

func (run *groupsRun) close() {
	for _, m := range run.members {
		m.c.Close()
	}
}

// each lets all members do something at once.
func (run *groupsRun) each(ctx context.Context, do func(*groupBencher, context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range run.members {
		g.Go(func() error { return do(m, ctx) })
	}
	return g.Wait()
}

// join joins and syncs until the member is in a generation that lasts. What leaders assign is empty.
func (m *groupBencher) join(ctx context.Context) error {
	for {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.MemberID, req.ProtocolType = m.group, m.id, "bench"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(benchSession.Milliseconds()), int32(benchSession.Milliseconds())
		protocol := kmsg.NewJoinGroupRequestProtocol()
		protocol.Name = "bench"
		req.Protocols = append(req.Protocols, protocol)
		resp, err := req.RequestWith(ctx, m.c)
		if err != nil {
			return err
		}
		switch err := kerr.ErrorForCode(resp.ErrorCode); err {
		case nil:
		case kerr.MemberIDRequired:
			m.id = resp.MemberID
			continue
		case kerr.UnknownMemberID:
			m.id = ""
			continue
		case kerr.RebalanceInProgress:
			continue
		default:
			return err
		}
		m.id, m.generation = resp.MemberID, resp.Generation
		again, err := m.sync(ctx, resp)
		if err != nil || !again {
			return err
		}
	}
}

func (m *groupBencher) sync(ctx context.Context, join *kmsg.JoinGroupResponse) (again bool, err error) {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Group, req.MemberID, req.Generation = m.group, m.id, m.generation
	req.ProtocolType, req.Protocol = join.ProtocolType, join.Protocol
	for _, x := range join.Members {
		a := kmsg.NewSyncGroupRequestGroupAssignment()
		a.MemberID = x.MemberID
		req.GroupAssignment = append(req.GroupAssignment, a)
	}
	resp, err := req.RequestWith(ctx, m.c)
	if err != nil {
		return false, err
	}
	switch err := kerr.ErrorForCode(resp.ErrorCode); err {
	case nil:
		return false, nil
	case kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID:
		return true, nil
	default:
		return false, err
	}
}

func (m *groupBencher) leave(ctx context.Context) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.MemberID = m.group, m.id
	x := kmsg.NewLeaveGroupRequestMember()
	x.MemberID = m.id
	req.Members = append(req.Members, x)
	_, err := req.RequestWith(ctx, m.c)
	return err
}

// heartbeat lets all members heartbeat, spread over the interval.
func (run *groupsRun) heartbeat(ctx context.Context) error {
	end := time.Now().Add(run.f.duration)
	var wg sync.WaitGroup
	for i, m := range run.members {
		wg.Go(func() {
			at := time.Now().Add(run.f.interval * time.Duration(i) / time.Duration(len(run.members)))
			for ; at.Before(end) && sleepUntil(ctx, at); at = at.Add(run.f.interval) {
				req := kmsg.NewPtrHeartbeatRequest()
				req.Group, req.MemberID, req.Generation = m.group, m.id, m.generation
				sent := time.Now()
				resp, err := req.RequestWith(ctx, m.c)
				run.beats.add(time.Since(sent))
				run.count.Add(1)
				if err != nil || resp.ErrorCode != 0 {
					run.errors.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// commit commits the offsets of many partitions at once, of a group without members.
func (run *groupsRun) commit(ctx context.Context, cmd *cobra.Command, r *groupsResult, group string) error {
	each := max(run.f.commitPartitions/benchTopics, 1)
	offsets := kadm.Offsets{}
	for n := range (run.f.commitPartitions + each - 1) / each {
		topic := fmt.Sprintf("bench-groups-%d", n)
		if err := ensureTopic(ctx, cmd, topic, int32(each)); err != nil {
			return err
		}
		for part := range int32(each) {
			offsets.Add(kadm.Offset{Topic: topic, Partition: part, LeaderEpoch: -1})
			r.CommitPartitions++
		}
	}
	admin := kadm.NewClient(run.members[0].c)
	var times histogram
	for n := range benchCommits {
		offsets.Each(func(o kadm.Offset) {
			o.At = int64(n)
			offsets.Add(o)
		})
		sent := time.Now()
		done, err := admin.CommitOffsets(ctx, group, offsets)
		if err == nil {
			err = done.Error()
		}
		if err != nil {
			return fmt.Errorf("commit %d offsets: %w", r.CommitPartitions, err)
		}
		times.add(time.Since(sent))
	}
	s := times.summary()
	r.CommitP50, r.CommitMax = s.P50, s.Max
	return nil
}
