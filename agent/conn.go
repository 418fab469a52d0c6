package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Why a connection ended, beside what frame.go says of its bytes.
var (
	errClosedByClient = errors.New("closed by the client")
	errIdle           = errors.New("idle for too long")
	errAge            = errors.New("reached its age")
	errDrained        = errors.New("drained")
	errFrameTime      = errors.New("request did not arrive in time")
	errRead           = errors.New("cannot read")
	errWrite          = errors.New("cannot write")
	errBroken         = errors.New("connection is broken")
	errRefused        = errors.New("a request without a response failed")
	errPanic          = errors.New("handler panicked")
)

// closeReasons are the labels of skein_connections_closed_total. The first that matches wins.
var closeReasons = []struct {
	err    error
	reason string
}{
	{errClosedByClient, "client"}, {errIdle, "idle"}, {errAge, "age"}, {errDrained, "drain"},
	{errFrameTime, "slow_request"}, {errFrameSize, "frame_size"}, {errUnknownAPI, "unknown_api"}, {errVersion, "version"}, {errProxyHeader, "proxy_header"},
	{errHeader, "header"}, {errMalformed, "malformed"}, {errWrite, "write"}, {errRefused, "refused"}, {errPanic, "panic"},
	{context.Canceled, "shutdown"}, {errRead, "read"},
}

// conn is one connection. Its reading side is the goroutine of serve; while Produce requests overlap there is a writing
// side too (write.go); all other requests are handled and answered on the reading side, when the writing side has ended.
type conn struct {
	s      *Server
	nc     net.Conn
	br     *bufio.Reader
	info   connInfo
	ctx    context.Context // ends with the connection; in the struct because the two sides and the server share it
	cancel context.CancelCauseFunc
	pipe   *pipeline
	expiry time.Time // zero: no age

	draining atomic.Bool
	served   atomic.Bool // a request
	mu       sync.Mutex
	waiting  bool // for the first byte of a request
}

// serve runs the connection until it ends, and gives the reason.
func (c *conn) serve() error {
	err := c.introduce()
	if err == nil {
		err = c.requests()
	}
	if polite(err) && c.pipe.waitIdle(c.ctx) == nil {
		c.linger()
	}
	c.abort(err)
	return context.Cause(c.ctx)
}

// introduce reads the load balancer's header, where there must be one.
func (c *conn) introduce() error {
	if !c.s.cfg.ProxyProtocol {
		return nil
	}
	if err := c.nc.SetReadDeadline(time.Now().Add(proxyHeaderTimeout)); err != nil {
		return fmt.Errorf("%w: %w", errRead, err)
	}
	remote, err := readProxyHeader(c.br)
	if remote != nil {
		c.s.mu.Lock() // for who looks through the open connections
		c.info.remote = remote
		c.s.mu.Unlock()
	}
	return err
}

// polite says whether what was asked is still answered before the connection is closed.
func polite(err error) bool {
	return errors.Is(err, errClosedByClient) || errors.Is(err, errIdle) || errors.Is(err, errAge) || errors.Is(err, errDrained)
}

// abort ends the connection at once. The first reason is kept.
func (c *conn) abort(reason error) {
	c.cancel(reason)
	c.pipe.fail()
	c.nc.Close()
}

// linger closes the sending side and waits a little for the client to close its own: closing while it still sends would
// reset the connection, and the reset may overtake the last responses.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.nc, lingerBytes)
}

// drain lets the connection end as soon as it is between requests. One that is so new that it has asked nothing yet is
// answered once if it soon asks: a client that is cut off before its first answer may take that for a wrong port or a
// missing credential, and give up (franz-go's ErrFirstReadEOF).
func (c *conn) drain() {
	c.draining.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.waiting:
	case c.served.Load():
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reading side
	default:
		_ = c.nc.SetReadDeadline(time.Now().Add(drainFirstRequest))
	}
}

// drained says whether the connection is to end rather than wait for a request.
func (c *conn) drained() bool { return c.draining.Load() && c.served.Load() }

// requests reads and serves requests until something ends it.
func (c *conn) requests() (err error) {
	defer func() {
		// A handler's bug must not take the agent, and then every other agent that the client tries, with it.
		if p := recover(); p != nil {
			c.s.metrics.panics.Inc()
			c.s.log.Error("handler panicked", "conn", c.info.id, "remote", c.info.remote.String(), "panic", p,
				"stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	for {
		h, err := c.awaitFrame()
		if err != nil {
			return err
		}
		a, err := c.s.checkFrame(h)
		if err != nil {
			return err
		}
		if a.begin != nil {
			err = c.serveOverlapping(h, a)
		} else {
			err = c.serveAlone(h, a)
		}
		if err != nil {
			return err
		}
		c.served.Store(true)
	}
}

// awaitFrame waits for a request and reads the beginning of its frame.
func (c *conn) awaitFrame() (frameHead, error) {
	if c.drained() {
		return frameHead{}, errDrained
	}
	if c.br.Buffered() < frameHeadBytes {
		if err := c.awaitByte(); err != nil {
			return frameHead{}, err
		}
		if err := c.nc.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
			return frameHead{}, fmt.Errorf("%w: %w", errRead, err)
		}
	}
	b, err := c.br.Peek(frameHeadBytes)
	if err != nil {
		return frameHead{}, readError(err)
	}
	h, err := parseFrameHead(b)
	if err != nil {
		return frameHead{}, err
	}
	if _, err := c.br.Discard(4); err != nil {
		return frameHead{}, readError(err)
	}
	return h, nil
}

// awaitByte waits for the first byte of a request.
func (c *conn) awaitByte() error {
	if c.br.Buffered() > 0 {
		return nil
	}
	now := time.Now()
	deadline := now.Add(c.s.cfg.IdleTimeout)
	if !c.expiry.IsZero() {
		if !now.Before(c.expiry) {
			return errAge
		}
		if c.expiry.Before(deadline) {
			deadline = c.expiry
		}
	}
	c.mu.Lock()
	if c.drained() {
		c.mu.Unlock()
		return errDrained
	}
	if first := now.Add(drainFirstRequest); c.draining.Load() && first.Before(deadline) {
		deadline = first
	}
	err := c.nc.SetReadDeadline(deadline)
	c.waiting = true
	c.mu.Unlock()
	if err == nil {
		_, err = c.br.Peek(1)
	}
	c.mu.Lock()
	c.waiting = false
	c.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return errClosedByClient
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return readError(err)
	case c.draining.Load():
		return errDrained
	case !c.expiry.IsZero() && !time.Now().Before(c.expiry):
		return errAge
	}
	return errIdle
}

// readError says what a failed read within a frame means.
func readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errFrameTime
	}
	return fmt.Errorf("%w: %w", errRead, err)
}

// awaitSome waits for the beginning of a frame, as much as the read buffer holds. Memory for the frame is taken only then: who
// sends a byte now and then never gets any.
func (c *conn) awaitSome(size int) error {
	n := min(size, c.br.Size())
	if c.br.Buffered() >= n {
		return nil
	}
	if err := c.nc.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
		return fmt.Errorf("%w: %w", errRead, err)
	}
	if _, err := c.br.Peek(n); err != nil {
		return readError(err)
	}
	return nil
}

// readFrame reads the rest of a frame into b, whose memory was taken from pool.
func (c *conn) readFrame(b []byte, pool *budget) error {
	start := time.Now()
	for got := 0; got < len(b); {
		if c.br.Buffered() < len(b)-got {
			if err := c.nc.SetReadDeadline(time.Now().Add(frameCheck)); err != nil {
				return fmt.Errorf("%w: %w", errRead, err)
			}
		}
		n, err := io.ReadFull(c.br, b[got:])
		got += n
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return readError(err)
		case frameIsLate(time.Since(start), got, pool.waiting.Load() > 0):
			return errFrameTime
		}
	}
	c.s.metrics.bytesIn.Add(float64(len(b) + 4))
	return nil
}

// frameIsLate says whether a frame of which got bytes came in the time is to be given up. pressed: others wait for its memory.
func frameIsLate(took time.Duration, got int, pressed bool) bool {
	limit := frameTimeout
	if pressed {
		limit = framePressedTimeout
	}
	return took >= limit+time.Duration(got)*time.Second/frameMinBytesPerSecond
}

// serveOverlapping reads a request that may overlap others of its kind, and begins it.
func (c *conn) serveOverlapping(h frameHead, a *api) error {
	s := c.s
	if err := c.pipe.waitRoom(c.ctx, int64(h.size)); err != nil {
		return err
	}
	if err := c.awaitSome(h.size); err != nil {
		return err
	}
	_, size := bufferClass(h.size)
	if err := s.produceBytes.acquire(c.ctx, int64(size)); err != nil {
		return err
	}
	buf := s.buffers.get(h.size)
	drop := func() {
		s.buffers.put(buf)
		s.produceBytes.release(int64(size))
	}
	r := &request{key: h.key, version: h.version, conn: c.info, frame: buf.b, api: a}
	err := c.readFrame(buf.b, s.produceBytes)
	if err == nil {
		err = r.parseHeader(a.flexible(h.version))
	}
	if err != nil {
		drop()
		return err
	}
	r.read = time.Now()
	x := &pending{r: r, bytes: int64(size), dropFrame: drop}
	if c.pipe.push(x) {
		c.s.conns.Go(c.drainPipeline)
	}
	if err := a.begin(c.ctx, r, x); err != nil {
		drop()
		return fmt.Errorf("%s version %d: %w", a.name, h.version, err)
	}
	return nil
}

// serveAlone reads a request, waits for those before it, handles it and writes its response.
func (c *conn) serveAlone(h frameHead, a *api) error {
	r := &request{key: h.key, version: h.version, conn: c.info, api: a}
	pinned, err := c.readAlone(r, h)
	defer func() {
		if pinned > 0 {
			c.s.decodedBytes.release(pinned)
		}
	}()
	if err != nil {
		return err
	}
	// Its predecessors may take as long as a flush; its answer must not overtake theirs, nor be from before them.
	if err := c.pipe.waitIdle(c.ctx); err != nil {
		return err
	}
	rep, err := c.handle(r)
	c.observe(r)
	if err != nil {
		call(rep.release)
		return fmt.Errorf("%s version %d: %w", a.name, r.version, err)
	}
	return c.writeReply(r, rep)
}

func (c *conn) handle(r *request) (reply, error) {
	if r.msg == nil {
		return unsupportedApiVersions(r.api), nil
	}
	return r.api.handle(c.ctx, r)
}

// readAlone reads and decodes a request. It gives what of decodedBytes was taken for it.
func (c *conn) readAlone(r *request, h frameHead) (pinned int64, err error) {
	s := c.s
	_, size := bufferClass(h.size)
	if size > uncountedBytes {
		if err := c.awaitSome(h.size); err != nil {
			return 0, err
		}
		if err := s.otherBytes.acquire(c.ctx, int64(size)); err != nil {
			return 0, err
		}
		defer s.otherBytes.release(int64(size))
	}
	buf := s.buffers.get(h.size)
	defer s.buffers.put(buf)
	r.frame = buf.b
	defer func() { r.frame = nil }()
	if err := c.readFrame(buf.b, s.otherBytes); err != nil {
		return 0, err
	}
	r.read = time.Now()
	if !r.api.serves(r.version) {
		// ApiVersions in a version that is not known: neither the rest of the header nor the body can be read, and the
		// answer needs only the correlation id.
		r.version, r.correlationID = 0, correlationID(r.frame)
		return 0, nil
	}
	if err := r.parseHeader(r.api.flexible(r.version)); err != nil {
		return 0, err
	}
	used, decoded, err := r.api.schema.check(r.frame[r.body:], r.version)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", r.api.name, err)
	}
	if decoded > uncountedBytes {
		if err := s.decodedBytes.acquire(c.ctx, decoded); err != nil {
			return 0, err
		}
		pinned = decoded
	}
	return pinned, r.decode(r.frame[r.body : r.body+used])
}

// observe counts a request that was answered.
func (c *conn) observe(r *request) {
	c.s.metrics.latency.WithLabelValues(r.api.name).Observe(time.Since(r.read).Seconds())
	c.s.metrics.requests.WithLabelValues(r.api.name, codeName(r.code)).Inc()
}
