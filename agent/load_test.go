//go:build unix

package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/batcher"
)

// raiseFiles makes room for n open files.
func raiseFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur = min(n, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < n {
		t.Fatalf("this test needs %d open files, the limit is %d (raise it with ulimit -n)", n, limit.Cur)
	}
}

// TestIdleConnectionsAreCheap holds thousands of connections, each of which has asked something, and measures what one
// takes.
func TestIdleConnectionsAreCheap(t *testing.T) {
	conns := 9500 // each has two ends in this process, whose hard limit is often 20,000 files
	if testing.Short() {
		conns = 1000
	}
	raiseFiles(t, uint64(2*conns+200))
	ts := newTestServer(t)
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := memory()
	frame := frameOf(metadataOf(false), 1)
	var d net.Dialer
	response := make([]byte, 512)
	for range conns {
		nc, err := d.DialContext(t.Context(), "tcp", ts.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		if _, err := nc.Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Read(response); err != nil {
			t.Fatal(err)
		}
	}
	if n := testutil.ToFloat64(ts.Server.metrics.connections); n != float64(conns) {
		t.Fatalf("%v connections are open", n)
	}
	const maxBytes = 20 << 10 // with the client's end and the test's own
	if each := (int64(memory()) - int64(before)) / int64(conns); each > maxBytes {
		t.Errorf("an idle connection takes %d bytes, the bound is %d", each, maxBytes)
	} else {
		t.Logf("an idle connection takes %d bytes with its client's end", each)
	}
}

// TestDrainDoesNotReset: a client that goes on sending while the server drains still gets the answers to what was read.
func TestDrainDoesNotReset(t *testing.T) {
	gate := &gatedProducer{}
	submitted := make(chan struct{}, 10)
	ts := newTestServer(t, withProducer(signalling{gate, submitted}))
	ts.createTopic("t", 1, nil)
	c := ts.dial()
	first, second := frameOf(produceOf("t", 0, -1, oneRecord(t, 10)), 1), frameOf(metadataOf(false), 2)
	// Another kind of request makes the reading side wait, so that what follows stays unread.
	c.sendBytes(append(first, second...))
	<-submitted
	for testutil.ToFloat64(ts.Server.metrics.bytesIn) < float64(len(first)+len(second)) {
		runtime.Gosched() // until the second is read
	}
	drained := make(chan error, 1)
	go func() { drained <- ts.Drain(context.Background()) }()
	var d net.Dialer
	for ts.Ready() == nil { // until Drain has begun
		runtime.Gosched()
	}
	if nc, err := d.DialContext(t.Context(), "tcp", ts.addr); err == nil {
		// Accepted by the kernel at most.
		defer nc.Close()
	}
	c.sendBytes(bytes.Repeat(frameOf(produceOf("t", 0, -1, oneRecord(t, 1000)), 3), 100))
	gate.complete(0, 0)
	c.receive(produceOf("t", 0, -1, nil), 1)
	c.receive(metadataOf(false), 2)
	if _, err := c.br.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v", err)
	}
	c.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	if n := gate.count(); n != 1 {
		t.Errorf("%d requests were begun", n)
	}
}

// TestDrainTimeout: what waits longer than the drain may take is cut off.
func TestDrainTimeout(t *testing.T) {
	gate := &gatedProducer{}
	submitted := make(chan struct{}, 10)
	ts := newTestServer(t, withProducer(signalling{gate, submitted}))
	ts.createTopic("t", 1, nil)
	c := ts.dial()
	c.send(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
	<-submitted
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := ts.Drain(ctx); err == nil {
		t.Error("drained although a request waits")
	}
	c.wantClosed()
	gate.complete(0, 0) // late, and nobody is there
	if used := ts.produceBytes.used.Load(); used != 0 {
		t.Errorf("%d bytes are still pinned", used)
	}
}

// signalling tells of every Submit.
type signalling struct {
	*gatedProducer
	submitted chan struct{}
}

func (s signalling) Submit(p batcher.Produce) {
	s.gatedProducer.Submit(p)
	s.submitted <- struct{}{}
}

func TestBufferClasses(t *testing.T) {
	var pool bufferPool
	for n := 1; n <= 2*maxPooledBufferBytes; n += 1 + n/7 {
		class, size := bufferClass(n)
		if size < n || (n > minBufferBytes && float64(size) > 1.26*float64(n)) {
			t.Fatalf("%d bytes get a buffer of %d", n, size)
		}
		if class >= len(pool.classes) || (class < 0) != (n > maxPooledBufferBytes) {
			t.Fatalf("%d bytes are of class %d", n, class)
		}
		if class >= 0 {
			if c, s := bufferClass(size); c != class || s != size {
				t.Fatalf("class %d of size %d, of which %d is of class %d and size %d", class, size, size, c, s)
			}
		}
		b := pool.get(n)
		if len(b.b) != n || cap(b.b) != size {
			t.Fatalf("%d bytes: got %d of %d", n, len(b.b), cap(b.b))
		}
		pool.put(b)
	}
}
