package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// maxPooledResponseBytes bounds the buffers that are kept for encoding responses.
	maxPooledResponseBytes = 1 << 20
)

// responseBuffers are buffers in which responses are encoded.
type responseBuffers struct{ pool sync.Pool }

func (p *responseBuffers) get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return b
	}
	return new([]byte)
}

func (p *responseBuffers) put(b *[]byte) {
	if cap(*b) <= maxPooledResponseBytes {
		*b = (*b)[:0]
		p.pool.Put(b)
	}
}

// reserve takes memory for a response of about n bytes that is to be made. What it gives is the reply's release.
func (s *Server) reserve(ctx context.Context, n int64) (release func(), err error) {
	if n <= uncountedBytes {
		return func() {}, nil
	}
	if err := s.responseBytes.acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { s.responseBytes.release(n) }, nil
}

// appendResponse appends the response's length, header and, where it is a message, its body. A body that is a vector is
// counted in the length and left to the caller.
func appendResponse(dst []byte, r *request, rep reply) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.correlationID))
	size := 0
	if rep.msg != nil {
		// The response header of ApiVersions is always version 0: the client does not know yet what the server speaks.
		if rep.msg.IsFlexible() && r.key != keyApiVersions {
			dst = append(dst, 0)
		}
		dst = rep.msg.AppendTo(dst)
	} else {
		if r.api.flexible(r.version) {
			dst = append(dst, 0)
		}
		size = rep.size
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4+size))
	return dst
}

// writeReply writes one response and releases it.
func (c *conn) writeReply(r *request, rep reply) error {
	if rep.release != nil {
		defer rep.release()
	}
	if rep.msg == nil && rep.body == nil {
		return nil // acks=0
	}
	buf := c.s.responses.get()
	defer c.s.responses.put(buf)
	*buf = appendResponse((*buf)[:0], r, rep)
	if rep.msg != nil {
		return c.write(net.Buffers{*buf})
	}
	vector := make(net.Buffers, 0, 1+len(rep.body))
	return c.write(append(append(vector, *buf), rep.body...))
}

// write sends a vector. A client that does not take it in time loses its connection.
func (c *conn) write(v net.Buffers) error {
	var size int64
	for _, b := range v {
		size += int64(len(b))
	}
	limit := writeTimeout + time.Duration(size/writeMinBytesPerSecond)*time.Second
	if err := c.nc.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	n, err := v.WriteTo(c.nc)
	c.s.metrics.bytesOut.Add(float64(n))
	if err != nil {
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}

// drainPipeline is the writing side: it writes what is complete, in order, and ends when nothing is left.
func (c *conn) drainPipeline() {
	for {
		x := c.pipe.next(c.ctx)
		if x == nil {
			return
		}
		if err := c.writeReady(x); err != nil {
			c.abort(err)
		}
	}
}

// writeReady writes the response of x and of those behind it that are complete, together.
func (c *conn) writeReady(x *pending) error {
	buf := c.s.responses.get()
	defer c.s.responses.put(buf)
	*buf = (*buf)[:0]
	for ; x != nil && len(*buf) < responseChunkBytes; x = c.pipe.ready() {
		rep, err := x.answer()
		c.observe(x.r)
		if err != nil {
			// What was answered before it still goes out.
			if len(*buf) > 0 {
				err = errors.Join(err, c.write(net.Buffers{*buf}))
			}
			return err
		}
		if rep.msg != nil {
			*buf = appendResponse(*buf, x.r, rep)
		}
		c.pipe.pop()
	}
	if len(*buf) == 0 {
		return nil
	}
	return c.write(net.Buffers{*buf})
}
