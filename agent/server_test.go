package agent

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Whose connection a drain ends finds nobody listening when it connects again at once.
func TestDrainStopsListeningFirst(t *testing.T) {
	ts := newTestServer(t)
	conns := make([]*rawConn, 100)
	for i := range conns {
		conns[i] = ts.dial()
		ask[*kmsg.ApiVersionsResponse](conns[i], kmsg.NewPtrApiVersionsRequest(), 0)
	}
	var ended sync.WaitGroup
	for _, c := range conns {
		ended.Go(func() {
			if _, err := c.br.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("the connection's end: %v", err)
			}
			if again, err := net.Dial("tcp", ts.addr); err == nil {
				again.Close()
				t.Error("a new connection is taken")
			}
		})
	}
	if err := ts.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	ended.Wait()
}

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
