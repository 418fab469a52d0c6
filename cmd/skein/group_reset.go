package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

// resetKind is where `group reset --to` moves to.
type resetKind int

const (
	toEarliest resetKind = iota
	toLatest
	toOffset
	toTime
	toShift
)

// resetTarget is --to as it was read.
type resetTarget struct {
	kind   resetKind
	number int64 // the offset, the shift, or milliseconds
}

// parseReset reads --to: earliest, latest, an offset, a shift (+N or -N, from what is committed) or a time (RFC 3339, or
// milliseconds since 1970 with a leading @).
func parseReset(text string) (resetTarget, error) {
	switch text {
	case "earliest":
		return resetTarget{kind: toEarliest}, nil
	case "latest":
		return resetTarget{kind: toLatest}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return resetTarget{kind: toTime, number: t.UnixMilli()}, nil
	}
	number, isMillis := strings.CutPrefix(text, "@")
	n, err := strconv.ParseInt(number, 10, 64)
	switch {
	case err != nil:
		return resetTarget{}, usagef("--to %q: want earliest, latest, an offset, +N or -N, an RFC 3339 time or @milliseconds", text)
	case isMillis:
		return resetTarget{kind: toTime, number: n}, nil
	case strings.HasPrefix(text, "+"), strings.HasPrefix(text, "-"):
		return resetTarget{kind: toShift, number: n}, nil
	}
	return resetTarget{kind: toOffset, number: n}, nil
}

// resetLine is a partition in `group reset -o json`.
type resetLine struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from"` // -1: nothing was committed
	To        int64  `json:"to"`
}

func newGroupReset(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "reset NAME", Short: "Move the committed offsets of a group without members", Args: exactArgs("NAME")}
	topics := cmd.Flags().StringSlice("topic", nil, "topic, or topic:partition,partition…; may be repeated (required)")
	to := cmd.Flags().String("to", "", "earliest, latest, an offset, +N or -N from what is committed, an RFC 3339 time or @milliseconds (required)")
	dry := cmd.Flags().Bool("dry-run", false, "show what would be committed and commit nothing")
	format := addOutput(cmd)
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(*topics) == 0 || *to == "" {
			return usagef("group reset: --topic and --to are required")
		}
		target, err := parseReset(*to)
		if err != nil {
			return err
		}
		wanted, err := parseTopicPartitions(*topics)
		if err != nil {
			return err
		}
		admin, ctx, done, err := connectAdmin(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		defer done()
		lines, err := planReset(ctx, admin, args[0], wanted, target)
		if err == nil && !*dry {
			err = commitReset(ctx, admin, args[0], lines)
		}
		if err != nil {
			return fmt.Errorf("reset group %q: %w", args[0], err)
		}
		if *format == outputJSON {
			return writeJSON(p.stdout, lines)
		}
		rows := [][]string{{"TOPIC", "PARTITION", "FROM", "TO"}}
		for _, l := range lines {
			from := "-"
			if l.From >= 0 {
				from = strconv.FormatInt(l.From, 10)
			}
			rows = append(rows, []string{l.Topic, strconv.Itoa(int(l.Partition)), from, strconv.FormatInt(l.To, 10)})
		}
		return writeTable(p.stdout, rows)
	}
	return cmd
}

// parseTopicPartitions reads --topic; no partitions mean all. A comma also separates the values of the flag, so that
// "t:0,1" arrives as "t:0" and "1".
func parseTopicPartitions(list []string) (map[string][]int32, error) {
	out := map[string][]int32{}
	last := ""
	for _, text := range list {
		name, parts, hasParts := strings.Cut(text, ":")
		if n, err := strconv.ParseInt(text, 10, 32); err == nil && last != "" {
			out[last] = append(out[last], int32(n))
			continue
		}
		if last = ""; !hasParts {
			out[name] = nil
			continue
		}
		n, err := strconv.ParseInt(parts, 10, 32)
		if err != nil || n < 0 {
			return nil, usagef("--topic %q: want topic or topic:partition", text)
		}
		out[name], last = append(out[name], int32(n)), name
	}
	return out, nil
}

// planReset works out the new offsets; they stay between the log's start and its end.
func planReset(ctx context.Context, admin *kadm.Client, name string, wanted map[string][]int32, target resetTarget) ([]resetLine, error) {
	var topics []string
	for t := range wanted {
		topics = append(topics, t)
	}
	slices.Sort(topics)
	starts, ends, err := bounds(ctx, admin, topics)
	if err != nil {
		return nil, err
	}
	at := ends
	if target.kind == toTime {
		if at, err = admin.ListOffsetsAfterMilli(ctx, target.number, topics...); err != nil {
			return nil, fmt.Errorf("offsets of that time: %w", err)
		}
	}
	committed, err := admin.FetchOffsets(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("committed offsets: %w", err)
	}
	lines := []resetLine{}
	for _, topic := range topics {
		parts := wanted[topic]
		if parts == nil {
			for part := range ends[topic] {
				parts = append(parts, part)
			}
			slices.Sort(parts)
		}
		if len(parts) == 0 {
			return nil, fmt.Errorf("topic %q: unknown", topic)
		}
		for _, part := range parts {
			start, ok1 := starts.Lookup(topic, part)
			end, ok2 := ends.Lookup(topic, part)
			moved, ok3 := at.Lookup(topic, part)
			if err := errors.Join(start.Err, end.Err, moved.Err); err != nil || !ok1 || !ok2 || !ok3 {
				return nil, fmt.Errorf("%s partition %d: unknown %w", topic, part, errors.Join(err))
			}
			l := resetLine{Topic: topic, Partition: part, From: -1}
			if o, ok := committed.Lookup(topic, part); ok {
				l.From = o.At
			}
			l.To = target.offset(l.From, start.Offset, end.Offset, moved.Offset)
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// offset gives where a partition goes.
func (t resetTarget) offset(from, start, end, at int64) int64 {
	to := end
	switch t.kind {
	case toEarliest:
		to = start
	case toLatest:
	case toOffset:
		to = t.number
	case toShift:
		to = max(from, start) + t.number
	case toTime:
		if at >= 0 {
			to = at
		}
	}
	return min(max(to, start), end)
}

func commitReset(ctx context.Context, admin *kadm.Client, name string, lines []resetLine) error {
	offsets := kadm.Offsets{}
	for _, l := range lines {
		offsets.Add(kadm.Offset{Topic: l.Topic, Partition: l.Partition, At: l.To, LeaderEpoch: -1})
	}
	r, err := admin.CommitOffsets(ctx, name, offsets)
	if err != nil {
		return err
	}
	if err := r.Error(); err != nil {
		return fmt.Errorf("%w (a group can be moved only while it has no members)", err)
	}
	return nil
}
