package agent

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/record"
)

func TestParseProduceConfig(t *testing.T) {
	for _, c := range []struct {
		configs map[string]string
		want    produceConfig
	}{
		{nil, produceConfig{maxMessageBytes: 1048588, beforeMax: 1<<63 - 1, afterMax: 3600000}},
		{
			map[string]string{"compression.type": "uncompressed", "cleanup.policy": "compact, delete"},
			produceConfig{maxMessageBytes: 1048588, beforeMax: 1<<63 - 1, afterMax: 3600000, compacted: true, recompress: true},
		},
		{
			map[string]string{
				"compression.type": " gzip", "compression.gzip.level": "9", "max.message.bytes": " 7",
				"message.timestamp.type": "LogAppendTime", "message.timestamp.before.max.ms": "1", "message.timestamp.after.max.ms": "2",
			},
			produceConfig{
				maxMessageBytes: 7, logAppendTime: true, beforeMax: 1, afterMax: 2, recompress: true, codec: record.CodecGzip, level: 9,
			},
		},
	} {
		if got := parseProduceConfig(c.configs); got != c.want {
			t.Errorf("%v:\n got  %+v\n want %+v", c.configs, got, c.want)
		}
	}
}

// TestConfigsAreInForceAtOnce changes a topic's configs through one agent and produces through another, which has the old
// ones in memory and is not told: what the commit checks (the config epoch) must send the batch back, and the client's own
// retry must meet the new configs.
func TestConfigsAreInForceAtOnce(t *testing.T) {
	one, other := twoAgents(t)
	one.createTopic("t", 1, nil)
	c := other.client(
		kgo.DefaultProduceTopic("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MetadataMinAge(10*time.Millisecond), // it asks for metadata before it tries again
	)
	big := func() error {
		return c.ProduceSync(t.Context(), &kgo.Record{Value: bytes.Repeat([]byte("x"), 5000)}).FirstErr()
	}
	if err := c.ProduceSync(t.Context(), &kgo.Record{Value: []byte("first"), Timestamp: time.Now().Add(-time.Hour)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	alter := func(ops ...any) {
		t.Helper()
		// What the agent was told before reached it: only the last change is news.
		if _, err := other.store.RefreshCatalogue(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := ask[*kmsg.IncrementalAlterConfigsResponse](one.dial(), incrementalRequest("t", ops...), 1).Resources[0]
		if r.ErrorCode != 0 {
			t.Fatalf("%v: %+v", ops, outcomeOf(r.ErrorCode, r.ErrorMessage))
		}
	}
	alter("max.message.bytes", opSet, "1000")
	if err := big(); !errors.Is(err, kerr.MessageTooLarge) {
		t.Errorf("above max.message.bytes: %v", err)
	}
	alter("max.message.bytes", opDelete, nil)
	alter("cleanup.policy", opSet, "compact")
	if err := c.ProduceSync(t.Context(), &kgo.Record{Value: []byte("no key")}).FirstErr(); !errors.Is(err, kerr.InvalidRecord) {
		t.Errorf("no key on a compacted topic: %v", err)
	}
	alter("cleanup.policy", opDelete, nil)
	alter("message.timestamp.before.max.ms", opSet, "60000")
	old := &kgo.Record{Value: []byte("old"), Timestamp: time.Now().Add(-time.Hour)}
	if err := c.ProduceSync(t.Context(), old).FirstErr(); !errors.Is(err, kerr.InvalidTimestamp) {
		t.Errorf("older than allowed: %v", err)
	}
	alter("message.timestamp.before.max.ms", opDelete, nil)
	alter("message.timestamp.type", opSet, "LogAppendTime")
	late := &kgo.Record{Value: []byte("late"), Timestamp: time.Now().Add(-2 * time.Hour)}
	if err := c.ProduceSync(t.Context(), late).FirstErr(); err != nil {
		t.Errorf("LogAppendTime: %v", err)
	}
	place := mustTopic(t, other, "t").Partitions[0]
	view, err := other.store.View(t.Context(), place.Block)
	if err != nil {
		t.Fatal(err)
	}
	if newest := view.Photo.MaxTS[place.Slot].Time(); view.HighWatermark(place.Slot) != 2 || time.Since(newest) > time.Minute {
		t.Errorf("the newest of %d records is of %s: its producer's time, not the broker's", view.HighWatermark(place.Slot), newest)
	}
}

// TestProduceConfigsAreOfTheTopicVersion: a parsed config is used for as long as its topic is the same in the catalogue.
func TestProduceConfigsAreOfTheTopicVersion(t *testing.T) {
	ts := newTestServer(t)
	topic := ts.createTopic("t", 1, map[string]string{"max.message.bytes": "5"})
	var p produceConfigs
	if got := p.of(topic).maxMessageBytes; got != 5 {
		t.Errorf("max.message.bytes is %d", got)
	}
	changed := *topic
	changed.Configs = map[string]string{"max.message.bytes": "6"}
	for range 2 {
		if got := p.of(&changed).maxMessageBytes; got != 6 {
			t.Errorf("max.message.bytes is %d after the change", got)
		}
	}
	for i := range 3 * minCachedProduceConfigs {
		x := *topic
		x.ID[0], x.ID[1] = byte(i), byte(i>>8)
		x.Name = fmt.Sprint(i)
		p.of(&x)
	}
	if p.trim(10); len(p.byTopic) > 0 {
		t.Errorf("%d parsed configs are kept for 10 topics", len(p.byTopic))
	}
}
