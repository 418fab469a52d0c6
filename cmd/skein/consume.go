package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consumeFlags are the flags of `skein consume`.
type consumeFlags struct {
	group      string
	from       string
	count      int64
	format     string
	exitAtEnd  bool
	partitions []int32
	isolation  string
}

func newConsume(p *process) *cobra.Command {
	cmd := &cobra.Command{Use: "consume TOPIC", Short: "Print a topic's records", Args: exactArgs("TOPIC")}
	var f consumeFlags
	cmd.Flags().StringVarP(&f.group, "group", "g", "", "consume as a member of this group")
	cmd.Flags().StringVar(&f.from, "from", "earliest",
		"earliest, latest, an offset, -N for N before the end, or a time: 2006-01-02T15:04:05Z, 2006-01-02, or milliseconds (13 digits, or @N)")
	cmd.Flags().Int64VarP(&f.count, "count", "n", 0, "stop after this many records; 0: go on")
	cmd.Flags().StringVarP(&f.format, "format", "f", defaultFormat,
		`%s value %k key %t topic %p partition %o offset %T timestamp %h headers %S %K lengths %R length as 4 bytes %% \n \r \t \0 \xHH`)
	cmd.Flags().BoolVar(&f.exitAtEnd, "exit-at-end", false, "stop at the end that the topic had at the start")
	cmd.Flags().Int32SliceVarP(&f.partitions, "partition", "p", nil, "only these partitions")
	cmd.Flags().StringVar(&f.isolation, "isolation", "committed", "committed or uncommitted: whether records of open and aborted transactions are shown")
	addBootstrap(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		err := consume(ctx, p, cmd, args[0], &f)
		if errors.Is(err, errInterrupted) {
			return nil // the usual way to end it
		}
		return err
	}
	return cmd
}

// check refuses flags that do not go together.
func (f *consumeFlags) check() error {
	switch {
	case f.isolation != "committed" && f.isolation != "uncommitted":
		return usagef("--isolation %q: want committed or uncommitted", f.isolation)
	case f.count < 0:
		return usagef("-n %d: want at least 0", f.count)
	case f.group != "" && (len(f.partitions) > 0 || f.exitAtEnd):
		return usagef("-g does not go with -p or --exit-at-end: the group decides what is read")
	}
	return nil
}

func consume(ctx context.Context, p *process, cmd *cobra.Command, topic string, f *consumeFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	format, err := parseFormat(f.format)
	if err != nil {
		return usagef("-f: %w", err)
	}
	start, err := parseStart(f.from)
	if err != nil {
		return usagef("--from: %w", err)
	}
	opts := []kgo.Opt{kgo.KeepControlRecords()}
	if f.exitAtEnd {
		opts = append(opts, kgo.FetchMaxWait(probeAfter))
	}
	if f.isolation == "committed" {
		opts = append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}
	if f.group != "" {
		if err := groupServed(ctx, cmd, f.group); err != nil {
			return err
		}
		opts = append(opts, kgo.ConsumerGroup(f.group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(start.reset()))
	}
	client, err := connect(ctx, cmd, opts...)
	if err != nil {
		return err
	}
	defer client.Close()
	if f.group != "" {
		return printRecords(ctx, p, client, format, f.count, nil)
	}
	plan, err := planRead(ctx, kadm.NewClient(client), topic, f, start)
	if err != nil {
		return err
	}
	if f.exitAtEnd && len(plan.left) == 0 {
		return nil
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: plan.from})
	var end *endReader
	if f.exitAtEnd {
		end = newEndReader(client, topic, plan.from, plan.left)
	}
	return printRecords(ctx, p, client, format, f.count, end)
}

// joinGroupKey is the API that members of classic groups join with.
const joinGroupKey = 11

// groupServed asks whether the agents serve groups: the client itself would try again for ever, or say that they are old.
// It has a client of its own, since one that is a member of a group takes long to close when no agent answers.
func groupServed(ctx context.Context, cmd *cobra.Command, group string) error {
	client, err := connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	versions, err := kadm.NewClient(client).ApiVersions(ctx)
	if err != nil {
		return fmt.Errorf("group %q: ask what the agents serve: %w", group, stopCause(ctx, err))
	}
	for _, v := range versions.Sorted() {
		if v.Err != nil {
			return fmt.Errorf("group %q: ask what agent %d serves: %w", group, v.NodeID, stopCause(ctx, v.Err))
		}
		if _, ok := v.KeyMaxVersion(joinGroupKey); !ok {
			return fmt.Errorf("group %q: the agents do not serve consumer groups; leave -g out", group)
		}
	}
	return nil
}

// readPlan says where to start in each partition, and where to stop.
type readPlan struct {
	from map[int32]kgo.Offset
	// left are the partitions with something to read, with the end offsets as of the start.
	left map[int32]int64
}

// planRead finds the topic's partitions, ends, and the offsets to start at.
func planRead(ctx context.Context, admin *kadm.Client, topic string, f *consumeFlags, start startPoint) (*readPlan, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	list := admin.ListEndOffsets
	if f.isolation == "committed" {
		list = admin.ListCommittedOffsets
	}
	first, err := listOffsets(ctx, topic, admin.ListStartOffsets)
	if err != nil {
		return nil, err
	}
	ends, err := listOffsets(ctx, topic, list)
	if err != nil {
		return nil, err
	}
	var at map[int32]int64
	if start.kind == startTime {
		at, err = listOffsets(ctx, topic, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return admin.ListOffsetsAfterMilli(ctx, start.n, topics...)
		})
		if err != nil {
			return nil, err
		}
	}
	wanted := f.partitions
	if len(wanted) == 0 {
		for x := range ends {
			wanted = append(wanted, x)
		}
	}
	plan := &readPlan{from: map[int32]kgo.Offset{}, left: map[int32]int64{}}
	for _, x := range wanted {
		end, ok := ends[x]
		if !ok {
			return nil, fmt.Errorf("topic %q has no partition %d", topic, x)
		}
		offset := start.offset(first[x], end, at[x])
		plan.from[x] = kgo.NewOffset().At(offset)
		if offset < end {
			plan.left[x] = end
		}
	}
	return plan, nil
}

// listOffsets asks for an offset of each partition of the topic.
func listOffsets(ctx context.Context, topic string, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[int32]int64, error) {
	listed, err := list(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("offsets of topic %q: %w", topic, stopCause(ctx, err))
	}
	out := map[int32]int64{}
	for x, o := range listed[topic] {
		out[x] = o.Offset
	}
	return out, nil
}

// printRecords prints what comes until count records were printed (0: no limit), or everything up to end was read (nil: no
// end).
func printRecords(ctx context.Context, p *process, client *kgo.Client, format recordFormat, count int64, end *endReader) error {
	out := bufio.NewWriterSize(p.stdout, 64<<10)
	poll := func(ctx context.Context) (kgo.Fetches, error) { return pollForEver(ctx, client) }
	var left map[int32]int64
	if end != nil {
		poll, left = end.poll, end.left
	}
	var line []byte
	var printed int64
	for {
		fetches, err := poll(ctx)
		if err != nil {
			return errors.Join(out.Flush(), err)
		}
		for records := fetches.RecordIter(); !records.Done(); {
			r := records.Next()
			end, bounded := left[r.Partition]
			if left != nil && (!bounded || r.Offset >= end) {
				delete(left, r.Partition)
				continue
			}
			if !r.Attrs.IsControl() {
				line = format.append(line[:0], r)
				if _, err := out.Write(line); err != nil {
					return fmt.Errorf("write: %w", err)
				}
				printed++
			}
			if bounded && r.Offset >= end-1 {
				delete(left, r.Partition)
			}
			if count > 0 && printed == count {
				return out.Flush()
			}
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if left != nil && len(left) == 0 {
			return nil
		}
	}
}

// startKind says how a start is meant.
type startKind uint8

const (
	startEarliest startKind = iota
	startLatest
	startOffset    // n
	startBeforeEnd // n before the end
	startTime      // n milliseconds
)

// startPoint is where to start reading a partition.
type startPoint struct {
	kind startKind
	n    int64
}

// leastMillis is the least number without an @ that is taken for a time: 13 digits, September 2001. No offset of a
// partition is as large: at a million records a second that takes eleven days, but then @ and RFC 3339 still work.
const leastMillis = 1_000_000_000_000

// parseStart reads --from.
func parseStart(text string) (startPoint, error) {
	switch text {
	case "earliest", "beginning":
		return startPoint{kind: startEarliest}, nil
	case "latest", "end":
		return startPoint{kind: startLatest}, nil
	}
	digits, isTime := strings.CutPrefix(text, "@")
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		switch {
		case isTime && n < 0:
			return startPoint{}, fmt.Errorf("%q: a time before 1970", text)
		case isTime || n >= leastMillis:
			return startPoint{kind: startTime, n: n}, nil
		case n < 0:
			return startPoint{kind: startBeforeEnd, n: -n}, nil
		}
		return startPoint{kind: startOffset, n: n}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return startPoint{kind: startTime, n: t.UnixMilli()}, nil
		}
	}
	return startPoint{}, fmt.Errorf("%q is not earliest, latest, an offset or a time", text)
}

// offset is where to start in a partition with these first and end offsets, and this first offset at or after the time.
func (s startPoint) offset(first, end, atTime int64) int64 {
	switch s.kind {
	case startLatest:
		return end
	case startOffset:
		return s.n
	case startBeforeEnd:
		return max(first, end-s.n)
	case startTime:
		return atTime
	}
	return first
}

// reset is where a group without a committed offset starts.
func (s startPoint) reset() kgo.Offset {
	switch s.kind {
	case startLatest:
		return kgo.NewOffset().AtEnd()
	case startOffset:
		return kgo.NewOffset().At(s.n)
	case startBeforeEnd:
		return kgo.NewOffset().AtEnd().Relative(-s.n)
	case startTime:
		return kgo.NewOffset().AfterMilli(s.n)
	}
	return kgo.NewOffset().AtStart()
}
