package compactor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/skeinio/skein/internal/pgproxy"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
)

// manyPartitions are in topics of 1,000; a large cluster has 100,000.
var manyPartitions = flag.Int("many-partitions", 6000, "partitions of TestManyPartitions")

// manyStatements bounds what a pass of retention over n partitions may ask: some for each page of blocks and of partitions.
func manyStatements(n int) int64 {
	pages := 1 + n/(backlogPage*metadata.SlotsPerBlock) + n/retentionParts
	return int64(20 + 8*pages)
}

// counted counts a driver's calls in passes of retention.
type counted struct {
	metadata.Compaction
	n *atomic.Int64
}

func (c counted) Backlog(ctx context.Context, after metadata.BlockID, limit int) ([]metadata.BacklogRow, error) {
	c.n.Add(1)
	return c.Compaction.Backlog(ctx, after, limit)
}

func (c counted) RetentionStarts(ctx context.Context, queries []metadata.RetentionQuery) ([]metadata.Offset, error) {
	c.n.Add(1)
	return c.Compaction.RetentionStarts(ctx, queries)
}

func (c counted) MoveLogStarts(ctx context.Context, moves []metadata.LogStart) ([]metadata.BlockID, error) {
	c.n.Add(1)
	return c.Compaction.MoveLogStarts(ctx, moves)
}

func (c counted) DropRuns(ctx context.Context, below []metadata.RunsBelow, limit int) error {
	c.n.Add(1)
	return c.Compaction.DropRuns(ctx, below, limit)
}

func (c counted) DropBlocks(ctx context.Context, blocks []metadata.BlockID) ([]metadata.BlockID, error) {
	c.n.Add(1)
	return c.Compaction.DropBlocks(ctx, blocks)
}

// manyRetention makes the partitions, one record in each block, lets it expire, then deletes all topics: what that asks of the
// database goes by pages, not by partitions. statements gives how many were run until now.
func manyRetention(t *testing.T, r *rig, statements func() int64) {
	first := r.topic.Partitions[0].Block
	var refs []metadata.TopicRef
	var news []metadata.NewTopic
	for i := range *manyPartitions / 1000 {
		name := fmt.Sprint("many-", i)
		refs = append(refs, metadata.TopicRef{Name: name})
		news = append(news, metadata.NewTopic{Name: name, Partitions: 1000, Configs: map[string]string{"retention.ms": "1000"}})
	}
	made, errs, err := r.store.CreateTopics(t.Context(), news, false)
	r.must(errors.Join(append(errs, err)...))
	blocks := map[metadata.BlockID]bool{}
	for _, topic := range made {
		var parts []part
		for i, p := range topic.Partitions {
			if !blocks[p.Block] {
				blocks[p.Block] = true
				parts = append(parts, part{i, [][]byte{r.batchOf(1, record.CodecNone, "k", "v")}})
			}
		}
		r.topic, r.want = topic, make([][]string, 1000)
		r.write(true, parts...)
	}
	c := r.compactor(Options{})
	r.must(c.MergeEverything(t.Context()))
	r.must(c.Release(t.Context()))
	bound := manyStatements(*manyPartitions)
	pass := func(what string) {
		t.Helper()
		before := statements()
		r.must(c.Retention(t.Context()))
		n := statements() - before
		t.Logf("%s: %d partitions in %d blocks, %d statements", what, *manyPartitions, len(blocks), n)
		if n == 0 || n > bound {
			t.Errorf("%s: %d statements, bound %d", what, n, bound)
		}
	}
	pass("records expire")
	pass("nothing to do")
	_, errs, err = r.store.DeleteTopics(t.Context(), refs)
	r.must(errors.Join(append(errs, err)...))
	pass("topics are deleted")
	r.must(c.eachBlock(t.Context(), func(page []metadata.BacklogRow) error {
		for _, b := range page { // those with free slots stay
			if b.Row.Used == metadata.SlotsPerBlock && b.Row.ID != first {
				t.Errorf("block %d is left", b.Row.ID)
			}
		}
		return nil
	}))
}

func TestManyPartitions(t *testing.T) {
	r := newRig(t, 1, nil)
	n := &atomic.Int64{}
	r.driver = counted{r.driver, n}
	manyRetention(t, r, n.Load)
}

func TestManyPartitionsOnPostgres(t *testing.T) {
	p, url := testenv.NewPostgresProxy(t, testenv.PostgresDatabase(t))
	var n atomic.Int64
	p.Rules(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Kind == 'E' || m.Kind == 'Q' { // Execute, Query
			n.Add(1)
		}
		return pgproxy.Verdict{}
	}, nil)
	d, err := postgres.Open(t.Context(), url, postgres.Options{CommitConns: 2, ReadConns: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	manyRetention(t, newRigOn(t, &clock{}, d, 1, nil), n.Load)
}
