package agent

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestProduceWithFranz(t *testing.T) {
	ts := newTestServer(t)
	cl := ts.client(kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("made-on-the-way"))
	for i := range 10 {
		res := cl.ProduceSync(t.Context(), kgo.StringRecord("hello"))
		r, err := res.First()
		if err != nil {
			t.Fatal(err)
		}
		if r.Offset != int64(i) {
			t.Fatalf("record %d got offset %d", i, r.Offset)
		}
	}
}
