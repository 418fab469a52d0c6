package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/objstore"
)

// newCompacted is a server and a compactor on one store and bucket.
func newCompacted(t *testing.T, driver metadata.Driver) (*testServer, *compactor.Compactor) {
	t.Helper()
	store, bucket := runStore(t, driver), objstore.NewMemory()
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		d.Store, d.Producer, d.Bucket = store, directProducer{store: store}, bucket
		c, err := NewExtentCache(store, cache.Options{Bucket: bucket, Registerer: d.Metrics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		d.Extents = c
		d.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	})
	ts.store = store
	c, err := compactor.New(compactor.Options{
		Holder: "test", Driver: driver.(metadata.Compaction), Store: store, Bucket: bucket,
		Config: compactor.Config{KeyMapEntries: 15, GCGrace: time.Nanosecond}, // several passes; garbage goes at once
	})
	if err != nil {
		t.Fatal(err)
	}
	return ts, c
}

// keyedLog is what clients produced to the partitions of one topic.
type keyedLog struct {
	t       *testing.T
	ts      *testServer
	topic   string
	append  bool // timestamps are the log's
	random  *rand.Rand
	writers []*keyedWriter
	all     [compactedPartitions]map[int64]*kgo.Record // by offset; without those that were aborted
	ends    int
}

const (
	compactedPartitions = 2
	compactedKeys       = 40
	sentinel            = "end" // key of what is written last, for readers to know that they have everything
)

// keyedWriter is a client; a transactional one has what is written in its open transaction.
type keyedWriter struct {
	client        *kgo.Client
	transactional bool
	open          []*kgo.Record
}

func newKeyedLog(t *testing.T, ts *testServer, topic string, seed uint64) *keyedLog {
	x := &keyedLog{t: t, ts: ts, topic: topic, random: rand.New(rand.NewPCG(seed, 3))}
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for i, codec := range codecs {
		options := []kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec), kgo.DefaultProduceTopic(topic)}
		if i%2 == 1 {
			options = append(options, kgo.TransactionalID(topic+fmt.Sprint(i)))
		}
		x.writers = append(x.writers, &keyedWriter{client: ts.client(options...), transactional: i%2 == 1})
	}
	for p := range x.all {
		x.all[p] = map[int64]*kgo.Record{}
	}
	return x
}

// write lets a writer produce some batches: in its transaction, if it is transactional.
func (x *keyedLog) write(ctx context.Context, w *keyedWriter) {
	x.t.Helper()
	if w.transactional && w.open == nil {
		if err := w.client.BeginTransaction(); err != nil {
			x.t.Fatal(err)
		}
	}
	var list []*kgo.Record
	for range 1 + x.random.IntN(12) {
		r := &kgo.Record{
			Topic: x.topic, Partition: int32(x.random.IntN(compactedPartitions)), Key: fmt.Append(nil, "k", x.random.IntN(compactedKeys)),
			Value: fmt.Append(nil, "v", x.random.Uint64()), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte{1}}},
		}
		if x.random.IntN(5) == 0 {
			r.Value = nil
		}
		list = append(list, r)
	}
	if err := w.client.ProduceSync(ctx, list...).FirstErr(); err != nil {
		x.t.Fatal(err)
	}
	w.open = append(w.open, list...)
	if !w.transactional {
		x.count(w)
	}
}

// count makes what a writer wrote part of the log.
func (x *keyedLog) count(w *keyedWriter) {
	for _, r := range w.open {
		x.all[r.Partition][r.Offset] = r
	}
	w.open = nil
}

// end ends a writer's transaction, if it has one.
func (x *keyedLog) end(ctx context.Context, w *keyedWriter, commit kgo.TransactionEndTry) {
	x.t.Helper()
	if !w.transactional || w.open == nil {
		return
	}
	if err := w.client.EndTransaction(ctx, commit); err != nil {
		x.t.Fatal(err)
	}
	if commit {
		x.count(w)
	}
	w.open = nil
}

// finish writes a last record to every partition.
func (x *keyedLog) finish(ctx context.Context) {
	x.t.Helper()
	x.ends++
	for p := range x.all {
		r := &kgo.Record{Topic: x.topic, Partition: int32(p), Key: []byte(sentinel), Value: fmt.Append(nil, x.ends)}
		if err := x.writers[0].client.ProduceSync(ctx, r).FirstErr(); err != nil {
			x.t.Fatal(err)
		}
		x.all[p][r.Offset] = r
	}
}

func (x *keyedLog) text(r *kgo.Record) string {
	at := r.Timestamp.UnixMilli()
	if x.append {
		at = 0
	}
	return fmt.Sprintf("%d: %s=%q %v at %d", r.Offset, r.Key, r.Value, r.Headers, at)
}

// want is the newest record of every key, by offset, but for tombstones.
func (x *keyedLog) want(partition int) []string {
	newest := map[string]*kgo.Record{}
	for _, r := range x.all[partition] {
		if n := newest[string(r.Key)]; n == nil || n.Offset < r.Offset {
			newest[string(r.Key)] = r
		}
	}
	return x.texts(slices.DeleteFunc(slices.Collect(maps.Values(newest)), func(r *kgo.Record) bool { return r.Value == nil }))
}

func (x *keyedLog) texts(records []*kgo.Record) []string {
	slices.SortFunc(records, func(a, b *kgo.Record) int { return int(a.Offset - b.Offset) })
	list := make([]string, len(records))
	for i, r := range records {
		list[i] = x.text(r)
	}
	return list
}

// read gives everything up to the last sentinel.
func (x *keyedLog) read(ctx context.Context, level kgo.IsolationLevel) [compactedPartitions][]*kgo.Record {
	x.t.Helper()
	c := x.ts.client(kgo.FetchIsolationLevel(level), kgo.ConsumeTopics(x.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer c.Close()
	var got [compactedPartitions][]*kgo.Record
	for ends := 0; ends < compactedPartitions; {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			x.t.Fatalf("%v, after %d and %d records", err, len(got[0]), len(got[1]))
		}
		fetches.EachRecord(func(r *kgo.Record) {
			got[r.Partition] = append(got[r.Partition], r)
			if string(r.Key) == sentinel && string(r.Value) == fmt.Sprint(x.ends) {
				ends++
			}
		})
	}
	return got
}

// checkOpen compares while transactions are open: nothing may be gone that a later commit would need.
func (x *keyedLog) checkOpen(ctx context.Context) {
	x.t.Helper()
	got := x.read(ctx, kgo.ReadUncommitted())
	for p := range got {
		seen := map[int64]string{}
		for _, r := range got[p] {
			seen[r.Offset] = x.text(r)
			if mine := x.all[p][r.Offset]; mine != nil && x.text(mine) != x.text(r) {
				x.t.Errorf("partition %d: %s, want %s", p, x.text(r), x.text(mine))
			}
		}
		wanted := x.want(p)
		for _, w := range x.writers {
			for _, r := range w.open {
				if int(r.Partition) == p {
					wanted = append(wanted, x.text(r))
				}
			}
		}
		for _, text := range wanted {
			var offset int64
			if _, err := fmt.Sscanf(text, "%d:", &offset); err != nil || seen[offset] != text {
				x.t.Errorf("partition %d, transactions open: %s is gone", p, text)
			}
		}
	}
}

// check compares what readers get with the model.
func (x *keyedLog) check(ctx context.Context, what string) {
	x.t.Helper()
	for name, level := range map[string]kgo.IsolationLevel{"committed": kgo.ReadCommitted(), "uncommitted": kgo.ReadUncommitted()} {
		got := x.read(ctx, level)
		for p := range got {
			if g, w := x.texts(got[p]), x.want(p); !slices.Equal(g, w) {
				x.t.Fatalf("%s, %s, partition %d: %d records, want %d\n only got %q\nonly want %q", what, name, p, len(g), len(w), without(g, w), without(w, g))
			}
		}
	}
}

// without gives what is in a and not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(x string) bool { return slices.Contains(b, x) })
}

// compactAll does what a compactor does, until nothing is left to do. Tombstones and markers go in a pass after the one that
// dates them.
func compactAll(t *testing.T, c *compactor.Compactor) {
	t.Helper()
	for _, job := range []func(context.Context) error{
		c.MergeEverything, c.Clean, c.Clean, c.Remerge, c.Clean, c.Release, c.Garbage, c.Garbage,
	} {
		if err := job(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadCompacted: clients with all codecs, half of them with transactions that commit or abort, some across several
// compactions, write keys again and again and delete some. After every compaction readers of both isolation levels get of
// every key the newest value, at its offset, and nothing else, to the very end.
func TestReadCompacted(t *testing.T) {
	test := func(t *testing.T, driver metadata.Driver) {
		ts, c := newCompacted(t, driver)
		for i, configs := range []map[string]string{
			{"cleanup.policy": "compact"},
			{"cleanup.policy": "compact,delete", "message.timestamp.type": "LogAppendTime", "compression.type": "zstd"},
		} {
			topic := fmt.Sprint("t", i)
			configs["min.cleanable.dirty.ratio"], configs["delete.retention.ms"] = "0", "0"
			ts.createTopic(topic, compactedPartitions, configs)
			x := newKeyedLog(t, ts, topic, uint64(i))
			x.append = i == 1
			ctx, cancel := context.WithTimeout(t.Context(), 4*testTimeout)
			defer cancel()
			for round := range 8 {
				for range 14 {
					w := x.writers[x.random.IntN(len(x.writers))]
					x.write(ctx, w)
					if x.random.IntN(2) == 0 {
						x.end(ctx, w, x.random.IntN(3) > 0)
					}
				}
				x.finish(ctx)
				compactAll(t, c)
				x.checkOpen(ctx)
				for _, w := range x.writers {
					x.end(ctx, w, x.random.IntN(3) > 0)
				}
				x.finish(ctx)
				compactAll(t, c)
				x.check(ctx, fmt.Sprintf("topic %d, round %d", i, round))
			}
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		d, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		test(t, d)
	})
	t.Run("postgres", func(t *testing.T) {
		d, err := postgres.Open(t.Context(), testenv.PostgresDatabase(t), postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		test(t, d)
	})
}
