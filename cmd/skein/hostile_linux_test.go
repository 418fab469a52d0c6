package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Numbers of TestHostileClients. Connections are bounded by the files that a process may open, on both ends.
const (
	idleClients    = 9_000
	stalledClients = 200 // announce a large Produce and send no more of it
	deafClients    = 200 // ask for much and never read
	garbageClients = 200
	// hostileMemory bounds the process's resident memory under all of them: its small buffers and caches, what deaf
	// clients may pin, 20 KiB for an idle connection, and the runtime.
	hostileMemory = 400 << 20
)

// TestHostileClients runs an agent with ten thousand connections that are idle, send garbage, announce what they do not
// send, or never read what they asked for. Honest clients go on meanwhile, and memory stays under its bound.
func TestHostileClients(t *testing.T) {
	s := dev(t, t.TempDir(), "--produce-buffer-bytes=16MiB", "--max-request-bytes=8MiB", "--cache-bytes=32MiB", "--max-connections=20000")
	mustSkein(t, nil, s.flags("topic", "create", "t", "-p", "4")...)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchMaxBytes(900<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 64 { // what deaf clients ask for
		client.Produce(t.Context(), kgo.SliceRecord(random(512<<10)), nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := hostile{T: t, address: s.kafka}
	versions := request(kmsg.NewPtrApiVersionsRequest())
	for range idleClients {
		h.ask(h.connect(), versions)
	}
	stop := h.inBackground(
		func() { h.send(stalledClients, []byte{0, 0x80, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff}) }, // a Produce of 8 MiB
		func() { h.send(deafClients, bytes.Repeat(request(fetchAll("t", 4)), 64)) },
		func() {
			for range garbageClients {
				h.send(1, random(1<<10))
			}
		},
	)
	// While all that is open, honest clients are served.
	for i := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := client.ProduceSync(ctx, kgo.StringRecord(fmt.Sprintf("honest %d", i))).FirstErr(); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		cancel()
	}
	stop()
	if code, _ := s.get(t, "/live"); code != 200 {
		t.Errorf("/live answers %d", code)
	}
	s.awaitMetric(t, "skein_connections", func(open float64) bool { return open >= idleClients })
	if peak := peakMemory(t, s.cmd.Process.Pid); peak > hostileMemory {
		t.Errorf("the agent took %d MiB, the bound is %d MiB", peak>>20, hostileMemory>>20)
	} else {
		t.Logf("the agent took %d MiB at most", peak>>20)
	}
}

// hostile opens connections that last as long as the test.
type hostile struct {
	*testing.T
	address string
	next    atomic.Uint32
}

func (h *hostile) connect() net.Conn {
	d := net.Dialer{
		// More connections than ports of one loopback address would be left in TIME_WAIT by runs in a row.
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+h.next.Add(1)%4))},
	}
	c, err := d.DialContext(h.Context(), "tcp", h.address)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	return c
}

// ask sends a request and reads its response.
func (h *hostile) ask(c net.Conn, frame []byte) {
	if _, err := c.Write(frame); err != nil {
		h.Fatal(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		h.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(size[:]))); err != nil {
		h.Fatal(err)
	}
}

// send opens connections that send something and never read.
func (h *hostile) send(connections int, b []byte) {
	for range connections {
		c := h.connect()
		_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write(b) // the agent may have closed it, or stopped reading
	}
}

// inBackground runs the functions side by side; stop waits for their ends.
func (h *hostile) inBackground(all ...func()) (stop func()) {
	done := make(chan struct{}, len(all))
	for _, f := range all {
		go func() {
			defer func() { done <- struct{}{} }()
			f()
		}()
	}
	return func() {
		for range all {
			<-done
		}
	}
}

func request(r kmsg.Request) []byte {
	r.SetVersion(min(r.MaxVersion(), 3))
	if r.Key() == int16(kmsg.Fetch) {
		r.SetVersion(11)
	}
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("hostile")).AppendRequest(nil, r, 1)
}

// fetchAll asks for as much of a topic as there is.
func fetchAll(topic string, partitions int32) kmsg.Request {
	r := kmsg.NewPtrFetchRequest()
	r.MaxBytes, r.MinBytes, r.SessionEpoch = 64<<20, 1, -1
	of := kmsg.NewFetchRequestTopic()
	of.Topic = topic
	for i := range partitions {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.PartitionMaxBytes = i, 64<<20
		of.Partitions = append(of.Partitions, p)
	}
	r.Topics = append(r.Topics, of)
	return r
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// peakMemory is the most resident memory that a process had, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
