package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func newGroup(p *process) *cobra.Command {
	return parent("group", "List, show, move and delete consumer groups",
		newGroupList(p), newGroupDescribe(p), newGroupReset(p), newGroupDelete(p))
}

// groupLine is a group in `group list -o json`.
type groupLine struct {
	Name         string `json:"name"`
	Type         string `json:"type"`
	State        string `json:"state"`
	ProtocolType string `json:"protocol_type"`
}

func newGroupList(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the groups", Args: exactArgs()}
	states := cmd.Flags().StringSlice("state", nil, "only groups in these states, such as Stable or Empty")
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := connect(cmd.Context(), cmd, kgo.RetryTimeout(adminTimeout))
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), adminTimeout)
		defer cancel()
		lines, err := listGroups(ctx, client, *states)
		if err != nil {
			return fmt.Errorf("list groups: %w", err)
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, lines)
		}
		rows := [][]string{{"NAME", "TYPE", "STATE", "PROTOCOL TYPE"}}
		for _, l := range lines {
			rows = append(rows, []string{l.Name, l.Type, l.State, dash(l.ProtocolType)})
		}
		return writeTable(p.stdout, rows)
	}
	return cmd
}

// listGroups asks every agent that shows as a broker: each lists the groups that it coordinates.
func listGroups(ctx context.Context, client *kgo.Client, states []string) ([]groupLine, error) {
	req := kmsg.NewPtrListGroupsRequest()
	req.StatesFilter = states
	lines := []groupLine{}
	for _, shard := range client.RequestSharded(ctx, req) {
		resp, ok := shard.Resp.(*kmsg.ListGroupsResponse)
		if shard.Err != nil || !ok {
			return nil, shard.Err
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			return nil, err
		}
		for _, g := range resp.Groups {
			lines = append(lines, groupLine{Name: g.Group, Type: g.GroupType, State: g.GroupState, ProtocolType: g.ProtocolType})
		}
	}
	slices.SortFunc(lines, func(a, b groupLine) int { return strings.Compare(a.Name, b.Name) })
	return slices.Compact(lines), nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newGroupDescribe(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "describe NAME", Short: "Show members, assignment, offsets and lag", Args: exactArgs("NAME")}
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		g, err := describeGroup(ctx, admin, args[0])
		if err != nil {
			return fmt.Errorf("describe group %q: %w", args[0], err)
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, g)
		}
		return g.write(p)
	}
	return cmd
}

// groupDescription is a group in `group describe -o json`.
type groupDescription struct {
	Name       string           `json:"name"`
	Type       string           `json:"type"`
	State      string           `json:"state"`
	Protocol   string           `json:"protocol"` // the assignor, of a consumer group
	Lag        int64            `json:"lag"`
	Members    []groupMember    `json:"members"`
	Partitions []groupPartition `json:"partitions"`
}

type groupMember struct {
	ID         string             `json:"member_id"`
	Instance   string             `json:"instance_id,omitempty"`
	ClientID   string             `json:"client_id"`
	Host       string             `json:"host"`
	Partitions map[string][]int32 `json:"partitions"`
}

type groupPartition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed_offset"` // -1: none
	LogStart  int64  `json:"log_start_offset"`
	End       int64  `json:"high_watermark"`
	Lag       int64  `json:"lag"`
	Member    string `json:"member_id,omitempty"`
}

// describeGroup gathers what is known of a group, of whichever protocol.
func describeGroup(ctx context.Context, admin *kadm.Client, name string) (*groupDescription, error) {
	g, err := describeMembers(ctx, admin, name)
	if err != nil {
		return nil, err
	}
	if err := g.addOffsets(ctx, admin); err != nil {
		return nil, err
	}
	return g, nil
}

// describeMembers asks for a consumer group, then for a classic one.
func describeMembers(ctx context.Context, admin *kadm.Client, name string) (*groupDescription, error) {
	g := &groupDescription{Name: name, Type: "consumer", Members: []groupMember{}, Partitions: []groupPartition{}}
	if consumers, err := admin.DescribeConsumerGroups(ctx, name); err == nil {
		if c := consumers[name]; c.Err == nil && c.Group == name {
			g.State, g.Protocol = c.State, c.AssignorName
			for _, m := range c.Members {
				x := groupMember{ID: m.MemberID, ClientID: m.ClientID, Host: m.ClientHost, Partitions: map[string][]int32{}}
				if m.InstanceID != nil {
					x.Instance = *m.InstanceID
				}
				for topic, parts := range m.Assignment {
					for part := range parts {
						x.Partitions[topic] = append(x.Partitions[topic], part)
					}
					slices.Sort(x.Partitions[topic])
				}
				g.Members = append(g.Members, x)
			}
			return g, nil
		}
	}
	all, err := admin.DescribeGroups(ctx, name)
	if err != nil {
		return nil, err
	}
	c := all[name]
	switch {
	case c.Err != nil:
		return nil, c.Err
	case c.State == "Dead":
		return nil, kerr.GroupIDNotFound
	}
	g.Type, g.State, g.Protocol = "classic", c.State, c.Protocol
	for _, m := range c.Members {
		x := groupMember{ID: m.MemberID, ClientID: m.ClientID, Host: m.ClientHost, Partitions: map[string][]int32{}}
		if m.InstanceID != nil {
			x.Instance = *m.InstanceID
		}
		if a, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range a.Topics {
				x.Partitions[t.Topic] = t.Partitions
			}
		}
		g.Members = append(g.Members, x)
	}
	return g, nil
}

// addOffsets adds the partitions that are assigned or were committed, with their lag.
func (g *groupDescription) addOffsets(ctx context.Context, admin *kadm.Client) error {
	committed, err := admin.FetchOffsets(ctx, g.Name)
	if err != nil {
		return fmt.Errorf("committed offsets: %w", err)
	}
	type key struct {
		topic     string
		partition int32
	}
	owner := map[key]string{}
	keys := map[key]bool{}
	for _, m := range g.Members {
		for topic, parts := range m.Partitions {
			for _, part := range parts {
				owner[key{topic, part}], keys[key{topic, part}] = m.ID, true
			}
		}
	}
	committed.Each(func(o kadm.OffsetResponse) { keys[key{o.Topic, o.Partition}] = true })
	if len(keys) == 0 {
		return nil
	}
	topics := map[string]bool{}
	for k := range keys {
		topics[k.topic] = true
	}
	names := make([]string, 0, len(topics))
	for t := range topics {
		names = append(names, t)
	}
	starts, ends, err := bounds(ctx, admin, names)
	if err != nil {
		return err
	}
	for k := range keys {
		x := groupPartition{Topic: k.topic, Partition: k.partition, Committed: -1, Member: owner[k]}
		if o, ok := committed.Lookup(k.topic, k.partition); ok {
			x.Committed = o.At
		}
		start, _ := starts.Lookup(k.topic, k.partition)
		end, _ := ends.Lookup(k.topic, k.partition)
		if err := errors.Join(start.Err, end.Err); err != nil {
			return fmt.Errorf("offsets of %s %d: %w", k.topic, k.partition, err)
		}
		x.LogStart, x.End = start.Offset, end.Offset
		x.Lag = max(x.End-max(x.Committed, x.LogStart), 0)
		g.Lag += x.Lag
		g.Partitions = append(g.Partitions, x)
	}
	slices.SortFunc(g.Partitions, func(a, b groupPartition) int {
		if c := strings.Compare(a.Topic, b.Topic); c != 0 {
			return c
		}
		return int(a.Partition - b.Partition)
	})
	return nil
}

// bounds gives the first and end offsets of topics.
func bounds(ctx context.Context, admin *kadm.Client, topics []string) (starts, ends kadm.ListedOffsets, err error) {
	if starts, err = admin.ListStartOffsets(ctx, topics...); err != nil {
		return nil, nil, fmt.Errorf("first offsets: %w", err)
	}
	if ends, err = admin.ListEndOffsets(ctx, topics...); err != nil {
		return nil, nil, fmt.Errorf("end offsets: %w", err)
	}
	return starts, ends, nil
}

func (g *groupDescription) write(p *process) error {
	_, err := fmt.Fprintf(p.stdout, "%s  %s  %s  assignor %s  members %d  lag %d\n", g.Name, g.Type, g.State, dash(g.Protocol), len(g.Members), g.Lag)
	if err != nil {
		return err
	}
	if len(g.Members) > 0 {
		rows := [][]string{{"  MEMBER", "INSTANCE", "CLIENT", "HOST", "PARTITIONS"}}
		for _, m := range g.Members {
			n := 0
			for _, parts := range m.Partitions {
				n += len(parts)
			}
			rows = append(rows, []string{"  " + m.ID, dash(m.Instance), dash(m.ClientID), m.Host, strconv.Itoa(n)})
		}
		if err := writeTable(p.stdout, rows); err != nil {
			return err
		}
	}
	if len(g.Partitions) == 0 {
		return nil
	}
	rows := [][]string{{"  TOPIC", "PARTITION", "COMMITTED", "HIGH WATERMARK", "LAG", "MEMBER"}}
	for _, x := range g.Partitions {
		at := "-"
		if x.Committed >= 0 {
			at = strconv.FormatInt(x.Committed, 10)
		}
		rows = append(rows, []string{
			"  " + x.Topic, strconv.Itoa(int(x.Partition)), at, strconv.FormatInt(x.End, 10), strconv.FormatInt(x.Lag, 10), dash(x.Member),
		})
	}
	return writeTable(p.stdout, rows)
}

func newGroupDelete(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "delete NAME", Short: "Delete a group without members, with its offsets", Args: exactArgs("NAME")}
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		r, err := admin.DeleteGroup(ctx, args[0])
		if err = errors.Join(err, r.Err); err != nil {
			return fmt.Errorf("delete group %q: %w", args[0], err)
		}
		return nil
	}
	return cmd
}
