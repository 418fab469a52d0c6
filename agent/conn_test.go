package agent

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/batcher"
)

// closedFor gives how many connections ended for a reason.
func (s *Server) closedFor(reason string) float64 {
	return testutil.ToFloat64(s.metrics.closed.WithLabelValues(reason))
}

func TestProducesOverlapAndAnswersKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		const requests = 5
		for i := range requests {
			c.send(produceOf("t", 0, -1, oneRecord(t, 10)), int32(i))
		}
		synctest.Wait()
		if n := ps.producer.count(); n != requests {
			t.Fatalf("%d of %d requests overlap", n, requests)
		}
		for i := requests - 1; i >= 0; i-- { // the last one first
			ps.producer.complete(i, 100)
		}
		for i := range requests {
			resp := c.receive(produceOf("t", 0, -1, nil), int32(i))
			if p := firstPartition(t, resp); p.ErrorCode != 0 || p.BaseOffset != 100 {
				t.Fatalf("answer %d: %+v", i, p)
			}
		}
		if used := ps.produceBytes.used.Load() + ps.decodedBytes.used.Load(); used != 0 {
			t.Errorf("%d bytes are still pinned", used)
		}
	})
}

func TestOtherRequestsWaitForProduces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		produce := produceOf("t", 0, -1, oneRecord(t, 10))
		versions := kmsg.NewPtrApiVersionsRequest()
		c.send(produce, 1)
		c.send(versions, 2)
		sent := make(chan struct{})
		go func() {
			c.send(produce, 3)
			close(sent)
		}()
		synctest.Wait()
		if n := ps.producer.count(); n != 1 {
			t.Fatalf("%d produces were begun: the one behind ApiVersions has to wait", n)
		}
		ps.producer.complete(0, 0)
		c.receive(produce, 1)
		c.receive(versions, 2)
		<-sent
		synctest.Wait()
		ps.producer.complete(1, 1)
		c.receive(produce, 3)
	})
}

func TestAcksNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		for range 3 {
			c.send(produceOf("t", 0, 0, oneRecord(t, 10)), 1)
		}
		synctest.Wait()
		for i := range 3 {
			ps.producer.complete(i, 0)
		}
		// No response to any: the first that comes is to what asks for one.
		versions := kmsg.NewPtrApiVersionsRequest()
		c.send(versions, 2)
		c.receive(versions, 2)

		c.send(produceOf("t", 0, 0, oneRecord(t, 10)), 3)
		synctest.Wait()
		ps.producer.fail(3, batcher.ErrNotPersisted)
		c.wantClosed()
		synctest.Wait()
		if ps.closedFor("refused") != 1 {
			t.Error("the connection was not closed because of acks=0")
		}
	})
}

func TestAcksNoneAnswersWhatCameBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		c.send(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
		c.send(produceOf("t", 0, 0, oneRecord(t, 10)), 2)
		synctest.Wait()
		ps.producer.fail(1, batcher.ErrMaybePersisted)
		ps.producer.complete(0, 5)
		if p := firstPartition(t, c.receive(produceOf("t", 0, -1, nil), 1)); p.BaseOffset != 5 {
			t.Errorf("%+v", p)
		}
		c.wantClosed()
	})
}

func TestProduceBufferPausesReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t, withConfig(func(c *Config) { c.MaxRequestBytes, c.ProduceBufferBytes = 1<<20, 2<<20 }))
		ps.topic("t", 1)
		var conns []*rawConn
		for range 3 {
			c := ps.connect()
			conns = append(conns, c)
			go func() { _, _ = c.Write(frameOf(produceOf("t", 0, -1, oneRecord(t, 900<<10)), 1)) }()
		}
		synctest.Wait()
		if n := ps.producer.count(); n != 2 {
			t.Fatalf("%d requests of 900 KiB were read into 2 MiB", n)
		}
		if used, waiting := ps.produceBytes.used.Load(), ps.produceBytes.waiting.Load(); used > 2<<20 || waiting != 1 {
			t.Fatalf("%d bytes are pinned, %d wait", used, waiting)
		}
		time.Sleep(time.Hour) // fake: however long it takes, nobody is dropped
		if n := testutil.ToFloat64(ps.Server.metrics.connections); n != 3 {
			t.Fatalf("%v connections are left", n)
		}
		ps.producer.complete(0, 0)
		synctest.Wait()
		if n := ps.producer.count(); n != 3 {
			t.Fatalf("reading did not go on: %d requests", n)
		}
		ps.producer.complete(1, 0)
		ps.producer.complete(2, 0)
		for _, c := range conns {
			c.receive(produceOf("t", 0, -1, nil), 1)
		}
		if used := ps.produceBytes.used.Load(); used != 0 {
			t.Errorf("%d bytes are still pinned", used)
		}
	})
}

func TestPipelineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		frame := frameOf(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
		go func() {
			for range maxPipelinedRequests + 100 {
				if _, err := c.Write(frame); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if n := ps.producer.count(); n != maxPipelinedRequests {
			t.Fatalf("%d requests were read ahead, the bound is %d", n, maxPipelinedRequests)
		}
	})
}

func TestClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		start := time.Now()
		c.send(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
		c.send(produceOf("t", 0, -1, oneRecord(t, 10)), 2)
		synctest.Wait()
		ps.producer.complete(0, 0)
		synctest.Wait()
		time.Sleep(writeTimeout + time.Second)
		synctest.Wait()
		if ps.closedFor("write") != 1 {
			t.Fatalf("the connection is open %v after its first unread response", time.Since(start))
		}
		// What was under way when the connection ended gives its memory back all the same.
		ps.producer.complete(1, 0)
		if used := ps.produceBytes.used.Load() + ps.decodedBytes.used.Load(); used != 0 {
			t.Errorf("%d bytes are still pinned", used)
		}
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		c := ps.connect()
		versions := kmsg.NewPtrApiVersionsRequest()
		for range 3 { // a request starts the time anew
			time.Sleep(DefaultIdleTimeout - time.Second)
			c.send(versions, 1)
			c.receive(versions, 1)
		}
		time.Sleep(DefaultIdleTimeout + time.Second)
		synctest.Wait()
		if ps.closedFor("idle") != 1 {
			t.Error("not closed")
		}
		c.wantClosed()
	})
}

func TestIdleConnectionThatWaitsForAnAnswerIsNotClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		c := ps.connect()
		c.send(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
		time.Sleep(DefaultIdleTimeout + time.Second)
		synctest.Wait()
		ps.producer.complete(0, 3)
		c.receive(produceOf("t", 0, -1, nil), 1)
	})
}

func TestSlowRequestIsCutOff(t *testing.T) {
	produce := frameOf(produceOf("t", 0, -1, make([]byte, 1<<10)), 1)
	for name, frame := range map[string][]byte{"head": produce[:5], "body": produce[:100], "first byte": produce[:1]} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ps := newPipeServer(t)
				c := ps.connect()
				start := time.Now()
				for i := range frame { // a byte a second is not enough
					if _, err := c.Write(frame[i : i+1]); err != nil {
						break
					}
					time.Sleep(time.Second)
				}
				_, err := c.Read(make([]byte, 1))
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				synctest.Wait()
				if took := time.Since(start); ps.closedFor("slow_request") != 1 || took > 2*frameTimeout+time.Second {
					t.Errorf("not cut off after %v", took)
				}
				if used := ps.produceBytes.used.Load(); used != 0 {
					t.Errorf("%d bytes are still pinned", used)
				}
			})
		})
	}
}

// TestNoMemoryForWhoSendsAlmostNothing: a byte a second gets none of the memory for requests, whatever was announced.
func TestNoMemoryForWhoSendsAlmostNothing(t *testing.T) {
	large := frameOf(produceOf("t", 0, -1, make([]byte, 900<<10)), 1)
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		c := ps.connect()
		for i := range large {
			if _, err := c.Write(large[i : i+1]); err != nil {
				break
			}
			if used := ps.produceBytes.used.Load(); used != 0 {
				t.Fatalf("%d bytes are pinned after %d bytes", used, i+1)
			}
			time.Sleep(time.Second) // fake
		}
		if ps.closedFor("slow_request") != 1 {
			t.Error("not cut off")
		}
	})
}

// TestAnnouncedBytesDoNotHoldUpOthers: who announces large requests and sends nothing, or almost nothing, does not keep the
// memory from those who send.
func TestAnnouncedBytesDoNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t, withConfig(func(c *Config) { c.MaxRequestBytes, c.ProduceBufferBytes = 1<<20, 2<<20 }))
		ps.topic("t", 1)
		large := frameOf(produceOf("t", 0, -1, oneRecord(t, 900<<10)), 1)
		for range 2 {
			c := ps.connect()
			go func() {
				if _, err := c.Write(large[:readBufferBytes+4]); err != nil {
					return
				}
				for i := readBufferBytes + 4; i < len(large); i++ { // a byte a second
					if _, err := c.Write(large[i : i+1]); err != nil {
						return
					}
					select {
					case <-time.After(time.Second):
					case <-t.Context().Done():
						return
					}
				}
			}()
		}
		time.Sleep(10 * time.Second) // nobody waits: they are let be
		if used := ps.produceBytes.used.Load(); used < 1<<20 || ps.closedFor("slow_request") != 0 {
			t.Fatalf("%d bytes are pinned, %v connections are cut off", used, ps.closedFor("slow_request"))
		}
		start := time.Now()
		honest := ps.connect()
		go func() { _, _ = honest.Write(large) }()
		time.Sleep(framePressedTimeout + 2*frameCheck) // fake
		synctest.Wait()
		if took := time.Since(start); ps.producer.count() != 1 || ps.closedFor("slow_request") == 0 {
			t.Fatalf("not read after %v, %v cut off", took, ps.closedFor("slow_request"))
		}
		ps.producer.complete(0, 0)
		honest.receive(produceOf("t", 0, -1, nil), 1)
	})
}

func TestFrameIsLate(t *testing.T) {
	for _, c := range []struct {
		took    time.Duration
		got     int
		pressed bool
		late    bool
	}{
		{frameTimeout - 1, 0, false, false}, {frameTimeout, 0, false, true},
		{framePressedTimeout - 1, 0, true, false}, {framePressedTimeout, 0, true, true},
		{frameTimeout + time.Minute, 60 * frameMinBytesPerSecond, false, true},
		{frameTimeout + time.Minute, 61 * frameMinBytesPerSecond, false, false},
		{framePressedTimeout + time.Minute, 61 * frameMinBytesPerSecond, true, false},
		{10 * time.Hour, DefaultMaxRequestBytes, false, true},
	} {
		if got := frameIsLate(c.took, c.got, c.pressed); got != c.late {
			t.Errorf("%+v: late is %v", c, got)
		}
	}
}

func TestConnectionAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const age = 5 * time.Minute
		ps := newPipeServer(t, withConfig(func(c *Config) { c.MaxConnectionAge = age }))
		ps.topic("t", 1)
		start := time.Now()
		c := ps.connect()
		// A request that is under way at the end of the age is answered.
		time.Sleep(age*3/4 - time.Second)
		c.send(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
		time.Sleep(age)
		synctest.Wait()
		ps.producer.complete(0, 9)
		if p := firstPartition(t, c.receive(produceOf("t", 0, -1, nil), 1)); p.BaseOffset != 9 {
			t.Errorf("%+v", p)
		}
		c.wantClosed()
		synctest.Wait()
		if ps.closedFor("age") != 1 {
			t.Errorf("not closed for its age after %v", time.Since(start))
		}
	})
}

func TestDrainAnswersWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		ps.topic("t", 1)
		busy, idle := ps.connect(), ps.connect()
		busy.send(produceOf("t", 0, -1, oneRecord(t, 10)), 1)
		synctest.Wait()
		drained := make(chan error, 1)
		go func() { drained <- ps.Drain(t.Context()) }()
		synctest.Wait()
		if err := ps.Ready(); !errors.Is(err, ErrDraining) {
			t.Errorf("ready: %v", err)
		}
		idle.wantClosed()
		select {
		case err := <-drained:
			t.Fatalf("drained before the answer: %v", err)
		default:
		}
		if late := ps.connect(); late != nil {
			late.wantClosed()
		}
		ps.producer.complete(0, 2)
		if p := firstPartition(t, busy.receive(produceOf("t", 0, -1, nil), 1)); p.BaseOffset != 2 {
			t.Errorf("%+v", p)
		}
		busy.wantClosed()
		if err := <-drained; err != nil {
			t.Error(err)
		}
	})
}

// A connection that is so new that it has asked nothing is answered once, and one that goes on asking nothing ends.
func TestDrainAnswersANewConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t)
		asks, silent := ps.connect(), ps.connect()
		synctest.Wait()
		drained := make(chan error, 1)
		go func() { drained <- ps.Drain(t.Context()) }()
		synctest.Wait()
		q := kmsg.NewPtrApiVersionsRequest()
		if r := ask[*kmsg.ApiVersionsResponse](asks, q, 0); r.ErrorCode != codeNone {
			t.Errorf("%+v", r)
		}
		asks.wantClosed()
		select {
		case err := <-drained:
			t.Fatalf("drained though a connection may still ask: %v", err)
		default:
		}
		silent.wantClosed()
		if err := <-drained; err != nil || ps.closedFor("drain") != 2 {
			t.Errorf("%v; %v connections were closed for the drain", err, ps.closedFor("drain"))
		}
	})
}

func TestMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newPipeServer(t, withConfig(func(c *Config) { c.MaxConnections = 2 }))
		first, second := ps.connect(), ps.connect()
		ps.connect().wantClosed()
		first.Close()
		synctest.Wait()
		third := ps.connect()
		for _, c := range []*rawConn{second, third} {
			versions := kmsg.NewPtrApiVersionsRequest()
			c.send(versions, 1)
			c.receive(versions, 1)
		}
	})
}

// TestBadFrames: what must close the connection, and only it.
func TestBadFrames(t *testing.T) {
	frame := func(size uint32, key, version int16, rest ...byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, size)
		b = binary.BigEndian.AppendUint16(b, uint16(key))
		b = binary.BigEndian.AppendUint16(b, uint16(version))
		return append(b, rest...)
	}
	whole := func(key, version int16, rest ...byte) []byte {
		return frame(uint32(4+len(rest)), key, version, rest...)
	}
	id := []byte{0, 0, 0, 1}
	header := append(id, 0xff, 0xff) // no client id
	with := func(b []byte, more ...byte) []byte { return append(b[:len(b):len(b)], more...) }
	cases := map[string]struct {
		bytes  []byte
		reason string
	}{
		"negative size":            {frame(0xffffffff, 3, 1, id...), "frame_size"},
		"size zero":                {frame(0, 3, 1, id...), "frame_size"},
		"size seven":               {frame(7, 3, 1, id...), "frame_size"},
		"metadata of 2 GiB":        {frame(math.MaxInt32, 3, 1, id...), "frame_size"},
		"produce over its bound":   {frame(DefaultMaxRequestBytes+1, 0, 9, id...), "frame_size"},
		"text":                     {[]byte("GET / HTTP/1.1\r\n\r\n"), "unknown_api"},
		"tls":                      {[]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, "version"},
		"unknown key":              {whole(9999, 0, header...), "unknown_api"},
		"negative key":             {whole(-1, 0, header...), "unknown_api"},
		"unknown version":          {whole(3, 99, header...), "version"},
		"negative version":         {whole(3, -1, header...), "version"},
		"produce 2":                {whole(0, 2, header...), "version"},
		"client id past the end":   {whole(3, 1, with(id, 0x7f, 0xff)...), "header"},
		"no client id":             {whole(3, 1, id...), "header"},
		"header tags without end":  {whole(3, 12, with(header, 0xff, 0xff, 0xff, 0xff, 0x0f)...), "header"},
		"metadata cut short":       {whole(3, 1, with(header, 0, 0, 0, 1, 0, 5, 'a')...), "malformed"},
		"array of 2^31":            {whole(3, 1, with(header, 0x7f, 0xff, 0xff, 0xff)...), "malformed"},
		"tags without end":         {whole(3, 12, with(header, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f)...), "malformed"},
		"produce cut short":        {whole(0, 9, with(header, 0, 0, 0, 1)...), "malformed"},
		"produce, 2^31 partitions": {whole(0, 3, with(header, 0xff, 0xff, 0, 1, 0, 0, 0, 9, 0, 0, 0, 1, 0, 1, 'a', 0x7f, 0xff, 0xff, 0xff)...), "malformed"},
		"ends within a frame":      {frame(100, 3, 1, header...), "read"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ps := newPipeServer(t)
				other := ps.connect()
				bad := ps.connect()
				go func() {
					_, _ = bad.Write(c.bytes)
					if strings.HasPrefix(name, "ends") {
						bad.Close()
					}
				}()
				if !strings.HasPrefix(name, "ends") {
					bad.wantClosed()
				}
				synctest.Wait()
				if ps.closedFor(c.reason) != 1 {
					t.Errorf("not closed for %q", c.reason)
				}
				if used := ps.produceBytes.used.Load() + ps.decodedBytes.used.Load() + ps.otherBytes.used.Load(); used != 0 {
					t.Errorf("%d bytes are still pinned", used)
				}
				versions := kmsg.NewPtrApiVersionsRequest()
				other.send(versions, 1)
				other.receive(versions, 1)
			})
		})
	}
}
