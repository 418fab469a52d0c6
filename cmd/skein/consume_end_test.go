package main

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestConsumeToAnEmptyEnd: key compaction leaves a last batch without records; what reads to the end finds out that there is
// nothing more.
func TestConsumeToAnEmptyEnd(t *testing.T) {
	s := dev(t, t.TempDir(), "--compaction-interval=100ms")
	mustSkein(t, nil, s.flags("topic", "create", "t", "-c", "cleanup.policy=compact", "-c", "delete.retention.ms=0", "-c", "min.cleanable.dirty.ratio=0.01")...)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, r := range []*kgo.Record{{Key: []byte("a"), Value: []byte("stays")}, {Key: []byte("b"), Value: []byte("goes")}, {Key: []byte("b")}} {
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s.awaitMetric(t, `skein_compactor_removed_total{table="compacted_records"}`, func(n float64) bool { return n >= 2 })
	if got := mustSkein(t, nil, s.flags("consume", "t", "--exit-at-end", "-f", `%k=%s\n`)...); got != "a=stays\n" {
		t.Errorf("got %q", got)
	}
	if got := mustSkein(t, nil, s.flags("consume", "t", "--from", "1", "--exit-at-end")...); got != "" {
		t.Errorf("got %q", got)
	}
	contract(t, mustSkein(t, nil, s.flags("bench", "consume", "--topic", "t", "-o", "json")...), "records")
}
