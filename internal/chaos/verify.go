package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// verifyTimeout bounds reading everything back.
const verifyTimeout = 5 * time.Minute

// verify reads the whole topic with a fresh client and compares it with what was acknowledged.
func verify(ctx context.Context, o *options, topic string, l *ledger) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	w := &load{o: o, topic: topic}
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(o.bootstrap, ",")...), kgo.ConsumePartitions(w.assignments()))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ends, err := endOffsets(ctx, cl, topic)
	if err != nil {
		return nil, err
	}
	c := &checker{r: &result{Topic: topic, ends: ends}, seen: map[string]position{}, last: map[string]int64{}}
	left := int64(0)
	for _, end := range ends {
		left += end
	}
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read everything back, %d records are missing: %w", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			left--
			c.record(r)
		})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c.compare(l.acked)
	return c.r, nil
}

func endOffsets(ctx context.Context, cl *kgo.Client, topic string) (map[int32]int64, error) {
	list, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err == nil {
		err = list.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list end offsets: %w", err)
	}
	ends := map[int32]int64{}
	list.Each(func(x kadm.ListedOffset) { ends[x.Partition] = x.Offset })
	return ends, nil
}

// checker counts what is wrong with what was read.
type checker struct {
	r    *result
	seen map[string]position
	last map[string]int64 // number of the last record, by producer and partition
}

func (c *checker) record(r *kgo.Record) {
	value := string(r.Value)
	c.r.Found++
	if _, twice := c.seen[value]; twice {
		c.r.Duplicated++
		return
	}
	c.seen[value] = position{r.Partition, r.Offset}
	f := strings.Fields(value)
	chain := fmt.Sprintf("%s %d", f[0], r.Partition)
	n, err := strconv.ParseInt(f[2], 10, 64)
	if last, ok := c.last[chain]; err != nil || ok && n < last || f[1] != strconv.Itoa(int(r.Partition)) {
		c.r.OutOfOrder++
	}
	c.last[chain] = n
}

func (c *checker) compare(acked map[string]position) {
	c.r.Acknowledged = len(acked)
	for value, at := range acked {
		found, ok := c.seen[value]
		switch {
		case !ok:
			c.r.Lost++
		case at.offset >= 0 && at != found:
			c.r.Misplaced++
		}
	}
}
