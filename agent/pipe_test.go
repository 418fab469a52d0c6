package agent

import (
	"bufio"
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
)

// pipeServer is a server whose connections are net.Pipes, for tests inside a synctest bubble: there time passes when
// everybody waits, and synctest.Wait tells when that is.
type pipeServer struct {
	*Server
	t        *testing.T
	ctx      context.Context
	producer *gatedProducer
	store    *metadata.Store
	metrics  *prometheus.Registry
}

// gatedProducer keeps what is submitted until the test completes it.
type gatedProducer struct {
	mu   sync.Mutex
	held []batcher.Produce
}

func (g *gatedProducer) Submit(p batcher.Produce) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = append(g.held, p)
}

func (g *gatedProducer) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.held)
}

// complete answers the i-th of what is held: its batches get offsets from base on.
func (g *gatedProducer) complete(i int, base metadata.Offset) {
	g.mu.Lock()
	p := g.held[i]
	g.mu.Unlock()
	results := make([]batcher.Result, len(p.Batches))
	for j := range results {
		results[j] = batcher.Result{Base: base, LogStart: 0}
	}
	p.Done(results)
}

// fail answers the i-th of what is held with an error.
func (g *gatedProducer) fail(i int, err error) {
	g.mu.Lock()
	p := g.held[i]
	g.mu.Unlock()
	results := make([]batcher.Result, len(p.Batches))
	for j := range results {
		results[j] = batcher.Result{Err: err, Base: -1, LogStart: -1}
	}
	p.Done(results)
}

func newPipeServer(t *testing.T, options ...testOption) *pipeServer {
	t.Helper()
	driver, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ps := &pipeServer{
		t: t, producer: &gatedProducer{}, store: metadata.NewStore(metadata.Options{Driver: driver}),
		metrics: prometheus.NewRegistry(),
	}
	cfg := Config{Listen: "pipe", NodeID: 7, AdvertisedHost: "broker", AdvertisedPort: 9092, AutoCreateTopics: true}
	deps := Deps{Store: ps.store, Producer: ps.producer, Metrics: ps.metrics}
	for _, o := range options {
		o(&cfg, &deps)
	}
	if ps.Server, err = New(cfg, deps); err != nil {
		t.Fatal(err)
	}
	ps.state.Store(stateListening)
	ctx, cancel := context.WithCancel(context.Background())
	ps.ctx = ctx
	t.Cleanup(func() {
		cancel()
		ps.cutOff(context.Canceled)
		ps.conns.Wait()
		if err := driver.Close(); err != nil {
			t.Errorf("close database: %v", err)
		}
	})
	return ps
}

// connect opens a connection.
func (ps *pipeServer) connect() *rawConn {
	ps.t.Helper()
	client, server := net.Pipe()
	ps.t.Cleanup(func() { client.Close() })
	ps.admit(ps.ctx, server, "")
	return &rawConn{Conn: client, t: ps.t, br: bufio.NewReader(client)}
}

// topic makes a topic.
func (ps *pipeServer) topic(name string, partitions int32) *metadata.Topic {
	ps.t.Helper()
	made, errs, err := ps.store.CreateTopics(ps.t.Context(), []metadata.NewTopic{{
		Name: name, Partitions: partitions, ReplicationFactor: 1,
	}}, false)
	if err != nil || errs[0] != nil {
		ps.t.Fatal(err, errs)
	}
	return made[0]
}

// oneRecord gives a record batch of one record with a value of so many bytes.
func oneRecord(t testing.TB, valueBytes int) []byte {
	t.Helper()
	b, err := record.NewBuilder().Append(time.Now().UnixMilli(), nil, make([]byte, valueBytes)).Build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// produceOf makes a Produce request for one partition.
func produceOf(topic string, partition int32, acks int16, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = acks, 30_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	tp := kmsg.NewProduceRequestTopic()
	tp.Topic, tp.Partitions = topic, []kmsg.ProduceRequestTopicPartition{p}
	req.Topics = []kmsg.ProduceRequestTopic{tp}
	return req
}

// firstPartition gives the response for a request's only partition.
func firstPartition(t testing.TB, resp kmsg.Response) kmsg.ProduceResponseTopicPartition {
	t.Helper()
	r, ok := resp.(*kmsg.ProduceResponse)
	if !ok || len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 {
		t.Fatalf("response is %+v", resp)
	}
	return r.Topics[0].Partitions[0]
}
