package agent

import (
	"math/bits"
	"sync"
)

const (
	// minBufferBytes is the smallest class of buffers; every doubling has bufferSteps classes, so that at most a fifth of
	// a buffer is unused.
	minBufferBytes = 4 << 10
	bufferSteps    = 4
	// maxPooledBufferBytes: larger buffers are left to the garbage collector.
	maxPooledBufferBytes = 16 << 20
	bufferDoublings      = 12 // 4 KiB << 12 = 16 MiB
)

// buffer is memory for one frame.
type buffer struct {
	b     []byte
	class int // -1: not pooled
}

// bufferPool keeps free buffers by size class. What is free is not counted as pinned: the garbage collector takes it when
// memory is short.
type bufferPool struct {
	classes [bufferDoublings*bufferSteps + 1]sync.Pool
}

// bufferClass gives the class for n bytes and the size of its buffers; -1 and n where there is no class.
func bufferClass(n int) (class, size int) {
	if n > maxPooledBufferBytes {
		return -1, n
	}
	if n <= minBufferBytes {
		return 0, minBufferBytes
	}
	d := bits.Len(uint((n-1)/minBufferBytes)) - 1 // n is above minBufferBytes<<d
	base := minBufferBytes << d
	step := base / bufferSteps
	i := (n - base + step - 1) / step
	return d*bufferSteps + i, base + i*step
}

// get gives a buffer of n bytes (its b has that length); its content is anything.
func (p *bufferPool) get(n int) *buffer {
	class, size := bufferClass(n)
	if class < 0 {
		return &buffer{b: make([]byte, n), class: -1}
	}
	if buf, ok := p.classes[class].Get().(*buffer); ok {
		buf.b = buf.b[:n]
		return buf
	}
	return &buffer{b: make([]byte, n, size), class: class}
}

// put takes back a buffer that nobody refers to any more.
func (p *bufferPool) put(buf *buffer) {
	if buf.class >= 0 {
		p.classes[buf.class].Put(buf)
	}
}
