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
)

func newTopic(p *process) *cobra.Command {
	return parent("topic", "Create, show, change and delete topics",
		newTopicCreate(p), newTopicList(p), newTopicDescribe(p), newTopicAlter(p), newTopicDelete(p))
}

func newTopicCreate(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "create NAME", Short: "Create a topic", Args: exactArgs("NAME")}
	partitions := cmd.Flags().Int32P("partitions", "p", -1, "partitions; -1: the server's default-partitions")
	configs := cmd.Flags().StringArrayP("config", "c", nil, "topic configuration key=value, may be repeated")
	ifMissing := cmd.Flags().Bool("if-not-exists", false, "no error when the topic exists")
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		pairs, err := keyValues("-c", *configs)
		if err != nil {
			return err
		}
		if *partitions == 0 || *partitions < -1 {
			return usagef("-p %d: want at least 1", *partitions)
		}
		settings := map[string]*string{}
		for _, kv := range pairs {
			settings[kv[0]] = &kv[1]
		}
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		r, err := admin.CreateTopic(ctx, *partitions, -1, settings, args[0])
		if *ifMissing && errors.Is(err, kerr.TopicAlreadyExists) {
			err = nil
		}
		if err != nil {
			return withMessage(fmt.Errorf("create topic %q: %w", args[0], err), r.ErrMessage)
		}
		return nil
	}
	return cmd
}

// withMessage adds the server's own words to its error code.
func withMessage(err error, message string) error {
	if message == "" || strings.Contains(err.Error(), message) {
		return err
	}
	return fmt.Errorf("%w (%s)", err, message)
}

// topicLine is a topic in `topic list -o json`.
type topicLine struct {
	Name              string `json:"name"`
	ID                string `json:"topic_id"`
	Partitions        int    `json:"partitions"`
	ReplicationFactor int    `json:"replication_factor"`
}

func newTopicList(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the topics", Args: exactArgs()}
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		details, err := admin.ListTopics(ctx)
		if err != nil {
			return fmt.Errorf("list topics: %w", err)
		}
		lines := []topicLine{}
		for _, t := range details.Sorted() {
			if t.Err != nil {
				return fmt.Errorf("list topics: %q: %w", t.Topic, t.Err)
			}
			lines = append(lines, topicLine{
				Name: t.Topic, ID: uuidText(t.ID), Partitions: len(t.Partitions), ReplicationFactor: t.Partitions.NumReplicas(),
			})
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, lines)
		}
		rows := [][]string{{"NAME", "PARTITIONS", "REPLICAS", "ID"}}
		for _, l := range lines {
			rows = append(rows, []string{l.Name, strconv.Itoa(l.Partitions), strconv.Itoa(l.ReplicationFactor), l.ID})
		}
		return writeTable(p.stdout, rows)
	}
	return cmd
}

// uuidText is a topic id as the rest of Skein writes it.
func uuidText(id kadm.TopicID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// topicDescription is a topic in `topic describe -o json`.
type topicDescription struct {
	Name       string                 `json:"name"`
	ID         string                 `json:"topic_id"`
	Partitions []partitionDescription `json:"partitions"`
	Configs    []configDescription    `json:"configs"`
}

type partitionDescription struct {
	Partition int32   `json:"partition"`
	Leader    int32   `json:"leader"`
	Epoch     int32   `json:"leader_epoch"`
	Replicas  []int32 `json:"replicas"`
	LogStart  int64   `json:"log_start_offset"`
	End       int64   `json:"high_watermark"`
}

type configDescription struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

func newTopicDescribe(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "describe [NAME]", Short: "Show partitions, offsets and configuration", Args: optionalArg("NAME")}
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		topics, err := describeTopics(ctx, admin, args)
		if err != nil {
			return err
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, topics)
		}
		for i := range topics {
			if err := topics[i].write(p); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// describeTopics gathers what is known of the named topics, or of all.
func describeTopics(ctx context.Context, admin *kadm.Client, names []string) ([]topicDescription, error) {
	details, err := admin.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	out := []topicDescription{}
	if len(details) == 0 {
		return out, nil
	}
	for _, t := range details.Sorted() {
		if t.Err != nil {
			return nil, fmt.Errorf("describe topic %q: %w", t.Topic, t.Err)
		}
		out = append(out, topicDescription{Name: t.Topic, ID: uuidText(t.ID), Configs: []configDescription{}})
	}
	starts, err := admin.ListStartOffsets(ctx, details.Names()...)
	if err != nil {
		return nil, fmt.Errorf("first offsets: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, details.Names()...)
	if err != nil {
		return nil, fmt.Errorf("end offsets: %w", err)
	}
	configs, err := admin.DescribeTopicConfigs(ctx, details.Names()...)
	if err != nil {
		return nil, fmt.Errorf("describe configurations: %w", err)
	}
	for i := range out {
		if err := out[i].fill(details[out[i].Name], starts, ends, configs); err != nil {
			return nil, fmt.Errorf("describe topic %q: %w", out[i].Name, err)
		}
	}
	return out, nil
}

func (t *topicDescription) fill(d kadm.TopicDetail, starts, ends kadm.ListedOffsets, configs kadm.ResourceConfigs) error {
	for _, x := range d.Partitions.Sorted() {
		start, _ := starts.Lookup(t.Name, x.Partition)
		end, _ := ends.Lookup(t.Name, x.Partition)
		if err := errors.Join(x.Err, start.Err, end.Err); err != nil {
			return fmt.Errorf("partition %d: %w", x.Partition, err)
		}
		t.Partitions = append(t.Partitions, partitionDescription{
			Partition: x.Partition, Leader: x.Leader, Epoch: x.LeaderEpoch, Replicas: x.Replicas,
			LogStart: start.Offset, End: end.Offset,
		})
	}
	c, err := configs.On(t.Name, nil)
	if err == nil {
		err = c.Err
	}
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	for _, c := range c.Configs {
		t.Configs = append(t.Configs, configDescription{Key: c.Key, Value: c.MaybeValue(), Source: c.Source.String()})
	}
	slices.SortFunc(t.Configs, func(a, b configDescription) int { return strings.Compare(a.Key, b.Key) })
	return nil
}

func (t *topicDescription) write(p *process) error {
	var set []string
	for _, c := range t.Configs {
		if c.Source == dynamicTopicConfig {
			set = append(set, c.Key+"="+c.Value)
		}
	}
	if len(set) == 0 {
		set = []string{"all default"}
	}
	if _, err := fmt.Fprintf(p.stdout, "%s  id %s  partitions %d  %s\n", t.Name, t.ID, len(t.Partitions), strings.Join(set, " ")); err != nil {
		return err
	}
	rows := [][]string{{"  PARTITION", "LEADER", "LOG START", "HIGH WATERMARK"}}
	for _, x := range t.Partitions {
		rows = append(rows, []string{
			fmt.Sprintf("  %d", x.Partition), strconv.Itoa(int(x.Leader)), strconv.FormatInt(x.LogStart, 10), strconv.FormatInt(x.End, 10),
		})
	}
	return writeTable(p.stdout, rows)
}

// dynamicTopicConfig is the source of what was set on the topic itself.
const dynamicTopicConfig = "DYNAMIC_TOPIC_CONFIG"

func newTopicAlter(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "alter NAME", Short: "Change a topic's configuration or add partitions", Args: exactArgs("NAME")}
	set := cmd.Flags().StringArrayP("config", "c", nil, "set a configuration key=value, may be repeated")
	unset := cmd.Flags().StringArrayP("delete", "d", nil, "put a configuration key back to its default, may be repeated")
	partitions := cmd.Flags().IntP("partitions", "p", 0, "grow to this many partitions")
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		pairs, err := keyValues("-c", *set)
		if err != nil {
			return err
		}
		if len(pairs)+len(*unset) == 0 && *partitions == 0 {
			return usagef("topic alter: nothing to change; give -c key=value, -d key or -p N")
		}
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		if err := alterTopic(ctx, admin, args[0], pairs, *unset); err != nil {
			return fmt.Errorf("alter topic %q: %w", args[0], err)
		}
		if *partitions == 0 {
			return nil
		}
		r, err := admin.UpdatePartitions(ctx, *partitions, args[0])
		if err == nil {
			var one kadm.CreatePartitionsResponse
			one, err = r.On(args[0], nil)
			err = withMessageIf(errors.Join(err, one.Err), one.ErrMessage)
		}
		if err != nil {
			return fmt.Errorf("grow topic %q to %d partitions: %w", args[0], *partitions, err)
		}
		return nil
	}
	return cmd
}

func withMessageIf(err error, message string) error {
	if err == nil {
		return nil
	}
	return withMessage(err, message)
}

func alterTopic(ctx context.Context, admin *kadm.Client, topic string, set [][2]string, unset []string) error {
	var changes []kadm.AlterConfig
	for _, kv := range set {
		changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: kv[0], Value: &kv[1]})
	}
	for _, k := range unset {
		changes = append(changes, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: k})
	}
	if len(changes) == 0 {
		return nil
	}
	r, err := admin.AlterTopicConfigs(ctx, changes, topic)
	if err != nil {
		return err
	}
	one, err := r.On(topic, nil)
	return withMessageIf(errors.Join(err, one.Err), one.ErrMessage)
}

func newTopicDelete(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "delete NAME", Short: "Delete a topic", Args: exactArgs("NAME")}
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		r, err := admin.DeleteTopic(ctx, args[0])
		if err != nil {
			return withMessage(fmt.Errorf("delete topic %q: %w", args[0], err), r.ErrMessage)
		}
		return nil
	}
	return cmd
}
