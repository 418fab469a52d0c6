package agent

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// keepingProducer keeps a copy of what it passes on.
type keepingProducer struct {
	Submitter
	mu      sync.Mutex
	batches []batcher.Batch
}

func (k *keepingProducer) Submit(p batcher.Produce) {
	k.mu.Lock()
	for _, b := range p.Batches {
		b.Data = slices.Clone(b.Data)
		k.batches = append(k.batches, b)
	}
	k.mu.Unlock()
	k.Submitter.Submit(p)
}

func (k *keepingProducer) last(t *testing.T) (batcher.Batch, record.Header) {
	t.Helper()
	k.mu.Lock()
	b := k.batches[len(k.batches)-1]
	k.mu.Unlock()
	h, err := record.Parse(b.Data)
	if err != nil {
		t.Fatal(err)
	}
	if err := record.VerifyCRC(b.Data); err != nil {
		t.Fatal(err)
	}
	return b, h
}

func newKeepingServer(t *testing.T) (*testServer, *keepingProducer) {
	t.Helper()
	var k *keepingProducer
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		k = &keepingProducer{Submitter: d.Producer}
		d.Producer = k
	})
	return ts, k
}

// builtBatch finishes a builder.
func builtBatch(t *testing.T, b *record.Builder) []byte {
	t.Helper()
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProduceEveryVersion(t *testing.T) {
	ts := newTestServer(t)
	topic := ts.createTopic("t", 2, nil)
	c := ts.dial()
	next := int64(0)
	for v := int16(3); v <= 13; v++ {
		for _, acks := range []int16{-1, 1} {
			req := produceOf("t", 1, acks, oneRecord(t, 20))
			req.Topics[0].TopicID = topic.ID
			resp := ask[*kmsg.ProduceResponse](c, req, v)
			if v < 13 && resp.Topics[0].Topic != "t" || v >= 13 && resp.Topics[0].TopicID != topic.ID {
				t.Errorf("version %d: topic %+v", v, resp.Topics[0])
			}
			p := firstPartition(t, resp)
			if p.Partition != 1 || p.ErrorCode != 0 || p.BaseOffset != next || p.LogAppendTime != -1 || v >= 5 && p.LogStartOffset != 0 {
				t.Errorf("version %d, acks %d: %+v, want offset %d", v, acks, p, next)
			}
			next++
		}
	}
}

func TestProduceRefusals(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	ts.createTopic("append", 1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	ts.createTopic("compacted", 1, map[string]string{"cleanup.policy": "compact,delete"})
	ts.createTopic("small", 1, map[string]string{"max.message.bytes": "100"})
	now := time.Now().UnixMilli()
	good := oneRecord(t, 10)
	changed := func(at int, to byte) []byte {
		b := slices.Clone(good)
		b[at] = to
		return b
	}
	one := func() *record.Builder { return record.NewBuilder().Append(now, []byte("k"), []byte("v")) }
	zstd := builtBatch(t, one().SetCodec(record.CodecZstd, 0))
	transactional := builtBatch(t, one().SetProducer(1, 0, 0).SetTransactional())
	const magicAt, crcAt = 16, 17
	tx := "tx"
	for name, x := range map[string]struct {
		topic         string
		partition     int32
		acks          int16
		version       int16
		records       []byte
		transactional *string
		want          int16
	}{
		"unknown topic":        {"no", 0, -1, 9, good, nil, codeUnknownTopicOrPartition},
		"unknown id":           {"no", 0, -1, 13, good, nil, codeUnknownTopicID},
		"unknown partition":    {"t", 1, -1, 9, good, nil, codeUnknownTopicOrPartition},
		"negative partition":   {"t", -1, -1, 9, good, nil, codeUnknownTopicOrPartition},
		"acks 2":               {"t", 0, 2, 9, good, nil, codeInvalidRequiredAcks},
		"acks -2":              {"t", 0, -2, 9, good, nil, codeInvalidRequiredAcks},
		"no records":           {"t", 0, -1, 9, []byte{}, nil, codeInvalidRecord},
		"null records":         {"t", 0, -1, 9, nil, nil, codeInvalidRecord},
		"half a batch":         {"t", 0, -1, 9, good[:40], nil, codeInvalidRecord},
		"two batches":          {"t", 0, -1, 9, append(slices.Clone(good), good...), nil, codeInvalidRecord},
		"magic 1":              {"t", 0, -1, 9, changed(magicAt, 1), nil, codeInvalidRecord},
		"wrong checksum":       {"t", 0, -1, 9, changed(crcAt, ^good[crcAt]), nil, codeCorruptMessage},
		"base offset":          {"t", 0, -1, 9, changed(7, 1), nil, codeInvalidRecord},
		"too large":            {"small", 0, -1, 9, oneRecord(t, 200), nil, codeMessageTooLarge},
		"zstd, version 6":      {"t", 0, -1, 6, zstd, nil, codeUnsupportedCompression},
		"control batch":        {"t", 0, -1, 9, record.ControlBatch(record.ControlCommit, 1, 0, 0, now), nil, codeInvalidRecord},
		"append time":          {"append", 0, -1, 9, builtBatch(t, one().SetLogAppendTime(now)), nil, codeInvalidTimestamp},
		"null key":             {"compacted", 0, -1, 9, good, nil, codeInvalidRecord},
		"far in the future":    {"t", 0, -1, 9, builtBatch(t, record.NewBuilder().Append(now+2*3600_000, nil, nil)), nil, codeInvalidTimestamp},
		"transaction, no id":   {"t", 0, -1, 9, transactional, nil, codeTransactionalIDAuth},
		"transaction":          {"t", 0, -1, 9, transactional, &tx, codeInvalidTxnState},
		"sequence out of turn": {"t", 0, -1, 9, builtBatch(t, one().SetProducer(77, 0, -1)), nil, codeInvalidRecord},
	} {
		t.Run(name, func(t *testing.T) {
			req := produceOf(x.topic, x.partition, x.acks, x.records)
			req.TransactionID = x.transactional
			p := firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), req, x.version))
			if p.ErrorCode != x.want || p.BaseOffset != -1 || p.LogAppendTime != -1 || p.LogStartOffset != -1 {
				t.Errorf("%s: %+v", codeName(p.ErrorCode), p)
			}
			// Nothing that was refused got an offset; without a response the connection is closed.
			if x.acks == -1 {
				req.Acks = 0
				c := ts.dial()
				c.send(req, 1)
				c.wantClosed()
			}
		})
	}
	if zstdOK := firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf("t", 0, -1, zstd), 7)); zstdOK.BaseOffset != 0 {
		t.Errorf("zstd in version 7: %+v", zstdOK)
	}
}

func TestProduceNamesRefusedRecords(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("compacted", 1, map[string]string{"cleanup.policy": "compact"})
	now := time.Now().UnixMilli()
	records := builtBatch(t, record.NewBuilder().Append(now, []byte("k"), nil).Append(now, nil, nil).Append(now, nil, nil))
	p := firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf("compacted", 0, -1, records), 8))
	if len(p.ErrorRecords) != 2 || p.ErrorRecords[0].RelativeOffset != 1 || p.ErrorRecords[1].RelativeOffset != 2 ||
		!strings.Contains(*p.ErrorRecords[0].ErrorMessage, "key") || p.ErrorMessage == nil {
		t.Errorf("%+v", p)
	}
}

func TestProduceSeveralPartitions(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("a", 2, nil)
	ts.createTopic("b", 1, nil)
	req := produceOf("a", 1, -1, oneRecord(t, 1))
	for _, more := range []*kmsg.ProduceRequest{
		produceOf("b", 0, -1, oneRecord(t, 1)), produceOf("no", 0, -1, oneRecord(t, 1)), produceOf("a", 0, -1, oneRecord(t, 1)),
		produceOf("a", 1, -1, oneRecord(t, 1)),
	} {
		req.Topics = append(req.Topics, more.Topics...)
	}
	resp := ask[*kmsg.ProduceResponse](ts.dial(), req, 9)
	want := []struct {
		topic     string
		partition int32
		code      int16
	}{{"a", 1, 0}, {"b", 0, 0}, {"no", 0, codeUnknownTopicOrPartition}, {"a", 0, 0}, {"a", 1, codeInvalidRequest}}
	for i, w := range want {
		got := resp.Topics[i]
		if p := got.Partitions[0]; got.Topic != w.topic || p.Partition != w.partition || p.ErrorCode != w.code {
			t.Errorf("%d: %+v, want %+v", i, got, w)
		}
	}
}

func TestProduceTimestamps(t *testing.T) {
	ts, kept := newKeepingServer(t)
	ts.createTopic("create", 1, nil)
	ts.createTopic("append", 1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	old := time.Now().Add(-time.Hour).UnixMilli()
	batch := func() *record.Builder { return record.NewBuilder().Append(old, nil, []byte("v")) }

	p := firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf("append", 0, -1, builtBatch(t, batch())), 9))
	b, h := kept.last(t)
	if !h.LogAppendTime() || h.MaxTimestamp <= old || p.LogAppendTime != h.MaxTimestamp || int64(b.Meta.MaxTimestamp) != h.MaxTimestamp {
		t.Errorf("response %+v, header %+v, meta %+v", p, h, b.Meta)
	}
	// A bit that does not belong is cleared.
	p = firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf("create", 0, -1, builtBatch(t, batch().SetLogAppendTime(old))), 9))
	if _, h = kept.last(t); h.LogAppendTime() || p.LogAppendTime != -1 || p.ErrorCode != 0 {
		t.Errorf("response %+v, header %+v", p, h)
	}
	ts.createTopic("bounded", 1, map[string]string{"message.timestamp.before.max.ms": "1000"})
	p = firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf("bounded", 0, -1, builtBatch(t, batch())), 9))
	if p.ErrorCode != codeInvalidTimestamp || len(p.ErrorRecords) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestProduceCompressesAsTheTopicAsks(t *testing.T) {
	ts, kept := newKeepingServer(t)
	for _, codec := range []record.Codec{record.CodecNone, record.CodecGzip, record.CodecSnappy, record.CodecLZ4, record.CodecZstd} {
		name := codec.String()
		if codec == record.CodecNone {
			name = "uncompressed"
		}
		ts.createTopic(name, 1, map[string]string{"compression.type": name})
		value := []byte(strings.Repeat("compresses well ", 100))
		in := record.NewBuilder().SetCodec(record.CodecLZ4, 0).SetProducer(9, 0, 0).Append(time.Now().UnixMilli(), nil, value)
		p := firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf(name, 0, -1, builtBatch(t, in)), 9))
		b, h := kept.last(t)
		if p.ErrorCode != 0 || h.Codec() != codec || h.ProducerID != 9 || b.Uncompressed != (codec == record.CodecNone) ||
			int(b.Meta.Length) != len(b.Data) {
			t.Errorf("%s: %+v, header %+v", name, p, h)
		}
		for r, err := range record.Records(b.Data, 0) {
			if err != nil || string(r.Value) != string(value) {
				t.Errorf("%s: record %v, %v", name, r, err)
			}
		}
	}
	if used := ts.rewrittenBytes.used.Load(); used != 0 {
		t.Errorf("%d bytes are still pinned", used)
	}
}

func TestProduceTellsTheBatcher(t *testing.T) {
	ts, kept := newKeepingServer(t)
	topic := ts.createTopic("t", 2, nil)
	in := record.NewBuilder().SetProducer(5, 3, int32(metadata.MaxSequence))
	now := time.Now().UnixMilli()
	in.Append(now-5, nil, []byte("a")).Append(now, nil, []byte("b"))
	data := builtBatch(t, in)
	ask[*kmsg.ProduceResponse](ts.dial(), produceOf("t", 1, -1, data), 9)
	b, _ := kept.last(t)
	version := ts.catalogue.Load().Version
	want := metadata.Batch{
		Length: int32(len(data)), Records: 2, MaxTimestamp: metadata.Millis(now), Producer: 5, Epoch: 3,
		First: metadata.MaxSequence, Last: 0, Validated: version,
	}
	if b.Meta != want || b.Topic != topic.ID || b.Index != 1 || b.Partition != topic.Partitions[1] || !b.Uncompressed ||
		!slices.Equal(b.Data, data) {
		t.Errorf("got %+v, want %+v", b.Meta, want)
	}
}

// TestProduceSeesNewPartitions: a catalogue that is behind is asked for again before a partition is unknown.
func TestProduceSeesNewPartitions(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	c := ts.dial()
	ask[*kmsg.ProduceResponse](c, produceOf("t", 0, -1, oneRecord(t, 1)), 9)
	if err := ts.store.CreatePartitions(t.Context(), "t", 3, false); err != nil {
		t.Fatal(err)
	}
	if p := firstPartition(t, ask[*kmsg.ProduceResponse](c, produceOf("t", 2, -1, oneRecord(t, 1)), 9)); p.ErrorCode != 0 {
		t.Errorf("%+v", p)
	}
}

func TestIdempotentProducers(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	c := ts.dial()
	id := ask[*kmsg.InitProducerIDResponse](c, kmsg.NewPtrInitProducerIDRequest(), 4).ProducerID
	send := func(epoch int16, sequence int32) kmsg.ProduceResponseTopicPartition {
		b := record.NewBuilder().SetProducer(id, epoch, sequence).Append(time.Now().UnixMilli(), nil, []byte("v"))
		return firstPartition(t, ask[*kmsg.ProduceResponse](c, produceOf("t", 0, -1, builtBatch(t, b)), 9))
	}
	for i, x := range []struct {
		epoch    int16
		sequence int32
		code     int16
		base     int64
	}{
		{0, 0, 0, 0}, {0, 1, 0, 1}, {0, 1, 0, 1}, {0, 0, 0, 0}, {1, 0, 0, 2}, {0, 2, codeInvalidProducerEpoch, -1}, {1, 1, 0, 3},
	} {
		if p := send(x.epoch, x.sequence); p.ErrorCode != x.code || p.BaseOffset != x.base {
			t.Errorf("%d: %+v gives %+v", i, x, p)
		}
	}
}

func TestFranzProducesInEveryWay(t *testing.T) {
	ts := newTestServer(t)
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(),
		"zstd": kgo.ZstdCompression(),
	} {
		cl := ts.client(kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic(name), kgo.ProducerBatchCompression(codec))
		const records = 500
		var all []*kgo.Record
		for range records {
			all = append(all, kgo.StringRecord(strings.Repeat("x", 1000)))
		}
		if err := cl.ProduceSync(t.Context(), all...).FirstErr(); err != nil {
			t.Fatal(name, err)
		}
	}
}

// TestOldClientsHeader: a request without a client id (null) in the first header version.
func TestNullClientID(t *testing.T) {
	ts := newTestServer(t)
	c := ts.dial()
	req := metadataOf(false)
	req.SetVersion(1)
	body := []byte{0, 3, 0, 1, 0, 0, 0, 9, 0xff, 0xff}
	body = append(body, req.AppendTo(nil)...)
	c.sendBytes(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	c.receive(req, 9)
}
