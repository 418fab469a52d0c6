package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/objstore"
)

// wholeAgent is a server with a real batcher and cache on a store and a bucket that other agents share. A flush of more
// than 1 KiB becomes an object.
func wholeAgent(t *testing.T, store *metadata.Store, bucket objstore.Bucket) *testServer {
	t.Helper()
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		held, err := NewExtentCache(store, cache.Options{Bucket: bucket, Registerer: d.Metrics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(held.Close)
		cfg := batcher.DefaultConfig()
		cfg.InlineMaxBytes, cfg.PutBudget, cfg.CommitBudget, cfg.InlineBytesPerSecond = 1<<10, 0, 0, 0
		b, err := batcher.New(batcher.Options{Config: cfg, Bucket: bucket, Store: store, Sink: CacheSink{Cache: held}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			<-ended
		})
		d.Store, d.Producer, d.Extents, d.Bucket, d.Logger = store, b, held, bucket, nil
	})
	ts.store = store
	return ts
}

// deafAgents are agents that no wake-up and no poll reaches: what they know of each other they have asked for.
func deafAgents(t *testing.T, n int) []*testServer {
	t.Helper()
	url, bucket := testenv.PostgresDatabase(t), objstore.NewMemory()
	agents := make([]*testServer, n)
	for i := range agents {
		driver, err := postgres.Open(t.Context(), url, postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { driver.Close() })
		agents[i] = wholeAgent(t, metadata.NewStore(metadata.Options{Driver: driver}), bucket)
	}
	return agents
}

// keyed is a record batch of one record with a key.
func keyed(t *testing.T, key, value []byte) []byte {
	return builtBatch(t, record.NewBuilder().Append(1, key, value))
}

// seen is what one agent says of topics, each question on a connection of its own.
type seen struct {
	*testServer
	conn *rawConn
}

func see(ts *testServer) seen { return seen{ts, ts.dial()} }

// produce writes a batch by the topic's name and gives the code and the offset; like a client it tries again after a
// retriable error, once: what the first attempt found out must do.
func (s seen) produce(topic string, partition int32, batch []byte) (int16, int64) {
	s.t.Helper()
	for again := true; ; again = false {
		p := firstPartition(s.t, ask[*kmsg.ProduceResponse](s.conn, produceOf(topic, partition, acksAll, batch), 9))
		retriable := p.ErrorCode == codeUnknownTopicOrPartition || p.ErrorCode == codeNotEnoughReplicas
		if !retriable || !again {
			return p.ErrorCode, p.BaseOffset
		}
	}
}

func (s seen) mustProduce(topic string, partition int32, value []byte, want int64) {
	s.t.Helper()
	if code, at := s.produce(topic, partition, keyed(s.t.(*testing.T), []byte("k"), value)); code != codeNone || at != want {
		s.t.Fatalf("produce: %s, offset %d; want offset %d", codeName(code), at, want)
	}
}

// end is a partition's end by ListOffsets.
func (s seen) end(topic string, partition int32) (int16, int64) {
	s.t.Helper()
	p := ask[*kmsg.ListOffsetsResponse](s.conn, listRequest(topic, partition), 7).Topics[0].Partitions[0]
	return p.ErrorCode, p.Offset
}

func (s seen) wantEnd(when, topic string, partition int32, code int16, end int64) {
	s.t.Helper()
	if c, e := s.end(topic, partition); c != code || e != end {
		s.t.Errorf("%s: ListOffsets gives %s, %d; want %s, %d", when, codeName(c), e, codeName(code), end)
	}
}

func listRequest(topic string, partitions ...int32) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	x := kmsg.NewListOffsetsRequestTopic()
	x.Topic = topic
	for _, p := range partitions {
		q := kmsg.NewListOffsetsRequestTopicPartition()
		q.Partition, q.Timestamp = p, latestTimestamp
		x.Partitions = append(x.Partitions, q)
	}
	req.Topics = append(req.Topics, x)
	return req
}

// topic is what Metadata says, without creating anything.
func (s seen) topic(name string) kmsg.MetadataResponseTopic {
	s.t.Helper()
	return ask[*kmsg.MetadataResponse](s.conn, metadataRequest(name), 12).Topics[0]
}

func metadataRequest(name string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	x := kmsg.NewMetadataRequestTopic()
	x.Topic = &name
	req.Topics, req.AllowAutoTopicCreation = append(req.Topics, x), false
	return req
}

func (s seen) wantTopic(when, name string, code int16, partitions int) {
	s.t.Helper()
	if x := s.topic(name); x.ErrorCode != code || len(x.Partitions) != partitions {
		s.t.Errorf("%s: Metadata gives %s, %d partitions; want %s, %d", when, codeName(x.ErrorCode), len(x.Partitions),
			codeName(code), partitions)
	}
}

// fetch reads by name, or by id where the topic has one.
func (s seen) fetch(topic string, id [16]byte, partition int32, offset int64) *kmsg.FetchResponseTopicPartition {
	s.t.Helper()
	version := int16(11)
	if id != [16]byte{} {
		version = 13
	}
	return part(ask[*kmsg.FetchResponse](s.conn, fetchOne(topic, id, partition, offset), version), 0)
}

// fetchOne asks for one partition and waits for up to 10 s.
func fetchOne(topic string, id [16]byte, partition int32, offset int64) *kmsg.FetchRequest {
	req := fetchReq(topic, offset)
	req.Topics[0].TopicID, req.Topics[0].Partitions[0].Partition, req.MaxWaitMillis = id, partition, 10_000
	return req
}

// TestWhatHoldsAtOnce: what one agent acknowledged holds at two others at once, though they know the topic from before and
// nobody wakes them.
func TestWhatHoldsAtOnce(t *testing.T) {
	agents := deafAgents(t, 3)
	a := agents[0]
	others := []seen{see(agents[1]), see(agents[2])}
	each := func(check func(o seen)) {
		for _, o := range others {
			check(o)
		}
	}
	writer := see(a)
	each(func(o seen) { o.wantTopic("before", "t", codeUnknownTopicOrPartition, 0) })
	a.createTopic("t", 1, nil)
	each(func(o seen) {
		o.wantEnd("created", "t", 0, codeNone, 0)
		o.wantTopic("created", "t", codeNone, 1)
	})
	for i := range int64(4) { // inline and as objects
		writer.mustProduce("t", 0, make([]byte, 10+i*700), i)
		each(func(o seen) {
			o.wantEnd("acknowledged", "t", 0, codeNone, i+1)
			wantOffsetsFrom(t, o.fetch("t", [16]byte{}, 0, i), i)
		})
	}
	writer.mustProduce("t", 0, []byte("x"), 4)
	writer.mustProduce("t", 0, []byte("x"), 5)
	// Their views end at 4: an offset beyond that is asked of the database.
	each(func(o seen) { wantOffsetsFrom(t, o.fetch("t", [16]byte{}, 0, 5), 5) })
	each(func(o seen) {
		if c := o.fetch("t", [16]byte{}, 0, 7).ErrorCode; c != codeOffsetOutOfRange {
			t.Errorf("beyond the end: %s", codeName(c))
		}
	})

	grow(t, a, "t", 2)
	each(func(o seen) { o.wantEnd("grown", "t", 1, codeNone, 0) })
	grow(t, a, "t", 3)
	writer.mustProduce("t", 2, []byte("x"), 0)
	others[0].mustProduce("t", 2, []byte("x"), 1)
	// A view that has ended before may be waited for, so only that the partition is known is certain here.
	wait := fetchOne("t", [16]byte{}, 2, 0)
	wait.MaxWaitMillis = 0
	if c := part(ask[*kmsg.FetchResponse](others[1].conn, wait, 11), 0).ErrorCode; c != codeNone {
		t.Errorf("fetch of the third partition: %s", codeName(c))
	}
	each(func(o seen) { o.wantTopic("grown", "t", codeNone, 3) })

	deleteTopic(t, a, "t")
	each(func(o seen) {
		if code, _ := o.produce("t", 0, keyed(t, []byte("k"), []byte("v"))); code != codeUnknownTopicOrPartition {
			t.Errorf("produce to what is deleted: %s", codeName(code))
		}
		o.wantEnd("deleted", "t", 0, codeUnknownTopicOrPartition, -1)
		o.wantTopic("deleted", "t", codeUnknownTopicOrPartition, 0)
	})
}

// TestRecreationHoldsAtOnce: a topic that another agent deleted and made again under its name is the new one in every answer.
func TestRecreationHoldsAtOnce(t *testing.T) {
	agents := deafAgents(t, 2)
	a, writer, o := agents[0], see(agents[0]), see(agents[1])
	for what, first := range map[string]func(){
		"list":     func() { o.wantEnd("made again", "t", 0, codeNone, 1) },
		"metadata": func() { o.wantTopic("made again", "t", codeNone, 1) },
		"produce":  func() { o.mustProduce("t", 0, []byte("x"), 1) },
	} {
		t.Run(what, func(t *testing.T) {
			a.createTopic("t", 1, nil)
			for i := range int64(3) {
				writer.mustProduce("t", 0, []byte("old"), i)
			}
			o.wantEnd("old", "t", 0, codeNone, 3)
			old := o.topic("t").TopicID
			wantOffsetsFrom(t, o.fetch("t", old, 0, 2), 2)
			deleteTopic(t, a, "t")
			a.createTopic("t", 1, nil)
			writer.mustProduce("t", 0, []byte("new"), 0)
			first()
			if code, end := o.end("t", 0); code != codeNone || end > 2 {
				t.Errorf("after that ListOffsets gives %s, %d", codeName(code), end)
			}
			p := o.fetch("t", [16]byte{}, 0, 0)
			wantOffsetsFrom(t, p, 0)
			for _, value := range valuesIn(t, p) {
				if value == "old" {
					t.Error("an old record under the new name")
				}
			}
			if id := o.topic("t").TopicID; id == old {
				t.Error("Metadata gives the old id")
			}
			deleteTopic(t, a, "t")
		})
	}
}

// TestFetchFollowsTheName: a Fetch by name that finds the topic deleted looks whether there is another one of that name.
func TestFetchFollowsTheName(t *testing.T) {
	agents := deafAgents(t, 2)
	a, writer, o := agents[0], see(agents[0]), see(agents[1])
	a.createTopic("t", 1, nil)
	writer.mustProduce("t", 0, []byte("old"), 0)
	o.wantEnd("old", "t", 0, codeNone, 1)
	deleteTopic(t, a, "t")
	a.createTopic("t", 1, nil)
	for i := range int64(3) {
		writer.mustProduce("t", 0, []byte("new"), i)
	}
	p := o.fetch("t", [16]byte{}, 0, 2) // beyond the old one's end, so that its block is asked for
	wantOffsetsFrom(t, p, 2)
	if values := valuesIn(t, p); len(values) != 1 || values[0] != "new" {
		t.Errorf("fetched %q", values)
	}
}

// TestConfigsHoldAtOnce: what one agent forbade is not written through another.
func TestConfigsHoldAtOnce(t *testing.T) {
	agents := deafAgents(t, 2)
	a, o := agents[0], see(agents[1])
	a.createTopic("t", 1, nil)
	large := make([]byte, 5000)
	o.mustProduce("t", 0, large, 0)
	alter := func(configs ...string) {
		t.Helper()
		if code := ask[*kmsg.AlterConfigsResponse](a.dial(), alterRequest("t", configs...), 2).Resources[0].ErrorCode; code != codeNone {
			t.Fatalf("alter: %s", codeName(code))
		}
	}
	alter("max.message.bytes", "1000")
	if code, _ := o.produce("t", 0, keyed(t, []byte("k"), large)); code != codeMessageTooLarge {
		t.Errorf("a large batch: %s", codeName(code))
	}
	o.mustProduce("t", 0, []byte("small"), 1)
	alter("cleanup.policy", "compact")
	if code, _ := o.produce("t", 0, keyed(t, nil, []byte("no key"))); code != codeInvalidRecord {
		t.Errorf("a record without a key: %s", codeName(code))
	}
	o.mustProduce("t", 0, large, 2)
	describe := describeRequest(kmsg.ConfigResourceTypeTopic, "t", "cleanup.policy")
	if v := ask[*kmsg.DescribeConfigsResponse](o.conn, describe, 4).Resources[0].Configs[0].Value; *v != "compact" {
		t.Errorf("the other agent shows cleanup.policy %s", *v)
	}
}

func wantOffsetsFrom(t *testing.T, p *kmsg.FetchResponseTopicPartition, first int64) {
	t.Helper()
	if p.ErrorCode != codeNone {
		t.Fatalf("fetch of offset %d: %s", first, codeName(p.ErrorCode))
	}
	for b, err := range record.Batches(p.RecordBatches) {
		if err != nil || b.BaseOffset > first {
			t.Errorf("fetch of offset %d starts at %d: %v", first, b.BaseOffset, err)
		}
		return
	}
	t.Errorf("fetch of offset %d: nothing", first)
}

// valuesIn gives a response's values.
func valuesIn(t *testing.T, p *kmsg.FetchResponseTopicPartition) (values []string) {
	t.Helper()
	for b, err := range record.Batches(p.RecordBatches) {
		if err != nil {
			t.Fatal(err)
		}
		v, err := valuesOf(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, v...)
	}
	return values
}

func grow(t *testing.T, ts *testServer, topic string, partitions int32) {
	t.Helper()
	if err := ts.store.CreatePartitions(t.Context(), topic, partitions, false); err != nil {
		t.Fatal(err)
	}
}

func deleteTopic(t *testing.T, ts *testServer, name string) {
	t.Helper()
	_, errs, err := ts.store.DeleteTopics(t.Context(), []metadata.TopicRef{{Name: name}})
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
}
