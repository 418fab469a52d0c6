package agent

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
	"github.com/skeinio/skein/objstore"
)

// testTimeout bounds what a test waits for; it is never waited for where the code is right.
const testTimeout = 30 * time.Second

// testServer is a server on a loopback port, with SQLite as its database and a bucket in memory.
type testServer struct {
	*Server
	t       testing.TB
	addr    string
	store   *metadata.Store
	bucket  objstore.Bucket
	metrics *prometheus.Registry
	stop    context.CancelFunc
	ended   chan error // Run's result
}

// testOption changes what a test server is made of.
type testOption func(*Config, *Deps)

func withProducer(p Submitter) testOption {
	return func(_ *Config, d *Deps) { d.Producer = p }
}

func withConfig(change func(*Config)) testOption {
	return func(c *Config, _ *Deps) { change(c) }
}

// withExtents lets a server read what is inline in its store.
func withExtents(t *testing.T) testOption {
	return func(_ *Config, d *Deps) {
		held, err := NewExtentCache(d.Store.(*metadata.Store), cache.Options{Bucket: objstore.NewMemory(), Registerer: d.Metrics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(held.Close)
		d.Extents = held
	}
}

// newTestStore opens a store on a new SQLite file and runs it until the test ends.
func newTestStore(t testing.TB) *metadata.Store {
	t.Helper()
	ctx := t.Context()
	driver, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "metadata.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	store := metadata.NewStore(metadata.Options{Driver: driver})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("store: %v", err)
		}
		if err := driver.Close(); err != nil {
			t.Errorf("close database: %v", err)
		}
	})
	return store
}

// newTestServer starts a server and stops it when the test ends. Without withProducer batches are committed at once,
// inline.
func newTestServer(t testing.TB, options ...testOption) *testServer {
	t.Helper()
	store := newTestStore(t)
	reg := prometheus.NewRegistry()
	cfg := Config{Listen: "127.0.0.1:0", NodeID: 7, AutoCreateTopics: true}
	deps := Deps{
		Store: store, Metrics: reg, Producer: directProducer{store: store},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, o := range options {
		o(&cfg, &deps)
	}
	s, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ts := &testServer{
		Server: s, t: t, addr: s.Addr().String(), store: store, bucket: objstore.NewMemory(), metrics: reg, stop: stop,
		ended: make(chan error, 1),
	}
	go func() { ts.ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ts.ended; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return ts
}

// client makes a franz-go client of the server.
func (ts *testServer) client(options ...kgo.Opt) *kgo.Client {
	ts.t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(ts.addr)}, options...)...)
	if err != nil {
		ts.t.Fatal(err)
	}
	ts.t.Cleanup(c.Close)
	return c
}

// createTopic makes a topic in the store.
func (ts *testServer) createTopic(name string, partitions int32, configs map[string]string) *metadata.Topic {
	ts.t.Helper()
	made, errs, err := ts.store.CreateTopics(ts.t.Context(), []metadata.NewTopic{{
		Name: name, Partitions: partitions, ReplicationFactor: 1, Configs: configs,
	}}, false)
	if err = cmp.Or(err, errs[0]); err != nil {
		ts.t.Fatal(err)
	}
	return made[0]
}

// rawConn is a connection on which a test sends what it wants.
type rawConn struct {
	net.Conn
	t    testing.TB
	br   *bufio.Reader
	wait time.Duration // bounds one send or receive; 0: nothing does
}

// limit bounds the send or receive that comes next.
func (c *rawConn) limit() {
	if c.wait > 0 {
		_ = c.SetDeadline(time.Now().Add(c.wait)) // an ended connection fails what comes next
	}
}

// dial opens a connection.
func (ts *testServer) dial() *rawConn {
	ts.t.Helper()
	var d net.Dialer
	nc, err := d.DialContext(ts.t.Context(), "tcp", ts.addr)
	if err != nil {
		ts.t.Fatal(err)
	}
	ts.t.Cleanup(func() { nc.Close() })
	return &rawConn{Conn: nc, t: ts.t, br: bufio.NewReader(nc), wait: testTimeout}
}

// frameOf encodes a request at the version that is set in it.
func frameOf(req kmsg.Request, correlationID int32) []byte {
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("test"))
	return f.AppendRequest(nil, req, correlationID)
}

// send writes a request.
func (c *rawConn) send(req kmsg.Request, correlationID int32) {
	c.t.Helper()
	c.sendBytes(frameOf(req, correlationID))
}

func (c *rawConn) sendBytes(b []byte) {
	c.t.Helper()
	c.limit()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// receive reads a response to req and decodes it; all of it must be used.
func (c *rawConn) receive(req kmsg.Request, correlationID int32) kmsg.Response {
	c.t.Helper()
	body := c.receiveFrame(correlationID)
	resp := req.ResponseKind()
	if resp.IsFlexible() && req.Key() != keyApiVersions {
		if len(body) == 0 || body[0] != 0 {
			c.t.Fatalf("response to %T: header has no empty tag section", req)
		}
		body = body[1:]
	}
	if err := resp.ReadFrom(body); err != nil {
		c.t.Fatalf("response to %T version %d: %v", req, req.GetVersion(), err)
	}
	if again := resp.AppendTo(nil); len(again) != len(body) {
		c.t.Fatalf("response to %T version %d has %d bytes, its content takes %d", req, req.GetVersion(), len(body), len(again))
	}
	return resp
}

// receiveFrame reads a response's bytes behind the correlation id.
func (c *rawConn) receiveFrame(correlationID int32) []byte {
	c.t.Helper()
	c.limit()
	var head [8]byte // length and correlation id
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		c.t.Fatalf("read response %d: %v", correlationID, err)
	}
	if got := int32(binary.BigEndian.Uint32(head[4:])); got != correlationID {
		c.t.Fatalf("response has correlation id %d, want %d", got, correlationID)
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:])-4)
	if _, err := io.ReadFull(c.br, body); err != nil {
		c.t.Fatal(err)
	}
	return body
}

// wantClosed checks that the server closes the connection and sends nothing more.
func (c *rawConn) wantClosed() {
	c.t.Helper()
	c.limit()
	b, err := c.br.ReadByte()
	var timeout net.Error
	switch {
	case err == nil:
		c.t.Fatalf("connection is open: read %#x", b)
	case errors.As(err, &timeout) && timeout.Timeout():
		c.t.Fatal("connection is still open")
	}
}

// ask sends req at a version on a connection and gives the response.
func ask[R kmsg.Response](c *rawConn, req kmsg.Request, version int16) R {
	c.t.Helper()
	req.SetVersion(version)
	const id = 4711
	c.send(req, id)
	resp, ok := c.receive(req, id).(R)
	if !ok {
		c.t.Fatalf("response to %T is a %T", req, resp)
	}
	return resp
}

// directProducer commits every Produce at once and inline: a batcher without batching.
type directProducer struct {
	store *metadata.Store
}

func (p directProducer) Submit(in batcher.Produce) {
	in.Done(p.commit(in))
}

func (p directProducer) commit(in batcher.Produce) []batcher.Result {
	results := make([]batcher.Result, len(in.Batches))
	fail := func(err error) []batcher.Result {
		for i := range results {
			results[i] = batcher.Result{Err: err, Base: -1, LogStart: -1}
		}
		return results
	}
	ctx, cancel := context.WithDeadline(context.Background(), in.Deadline)
	defer cancel()
	id, err := metadata.NewFlushID()
	if err != nil {
		return fail(err)
	}
	seen, err := p.store.Now(ctx)
	if err != nil {
		return fail(batcher.ErrNotPersisted)
	}
	order := make([]int, len(in.Batches))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := in.Batches[a].Partition, in.Batches[b].Partition
		return cmp.Or(cmp.Compare(x.Block, y.Block), cmp.Compare(x.Slot, y.Slot))
	})
	flush := &metadata.Flush{ID: id, Seen: seen}
	var position int64
	for _, i := range order {
		b := in.Batches[i]
		n := int32(len(b.Data))
		flush.Extents = append(flush.Extents, metadata.Extent{
			Block: b.Partition.Block, Slot: b.Partition.Slot, Position: position, Length: n, RawLength: n,
			CRC:     crc32.Checksum(b.Data, crc32.MakeTable(crc32.Castagnoli)),
			Created: b.Partition.Created, Batches: []metadata.Batch{b.Meta},
		})
		flush.Inline = append(flush.Inline, slices.Clone(b.Data))
		position += int64(n)
	}
	committed, err := p.store.Commit(ctx, []*metadata.Flush{flush})
	if err = cmp.Or(err, func() error {
		if len(committed) == 1 {
			return committed[0].Err
		}
		return nil
	}()); err != nil {
		return fail(batcher.ErrMaybePersisted)
	}
	codes := map[metadata.Code]error{
		metadata.CodeNotYet: batcher.ErrNotPersisted, metadata.CodeOutOfOrder: batcher.ErrOutOfOrder,
		metadata.CodeFenced: batcher.ErrFenced, metadata.CodeUnknownPartition: batcher.ErrUnknownPartition,
		metadata.CodeStale: batcher.ErrNotPersisted, metadata.CodeInvalidTxnState: batcher.ErrInvalidTxnState,
	}
	for k, i := range order {
		r := committed[0].Batches[k]
		results[i] = batcher.Result{
			Err: codes[r.Code], Base: r.Base, LogStart: r.LogStart, Duplicate: r.Code == metadata.CodeDuplicate,
		}
	}
	return results
}
