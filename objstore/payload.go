package objstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"sync"
)

// Payload is an object's bytes as a vector of slices, in order. The slices are not copied on their way
// to the store (the memory bucket, which has to keep them, does copy); they must not change before Put
// returns.
type Payload [][]byte

// Bytes makes a payload of one slice.
func Bytes(b []byte) Payload { return Payload{b} }

// Size is the number of bytes.
func (p Payload) Size() int64 {
	var n int64
	for _, s := range p {
		n += int64(len(s))
	}
	return n
}

// castagnoli is a lookup table, not state: crc32 builds it once and uses the CPU's instruction.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C is the checksum of the whole payload, as S3's x-amz-checksum-crc32c has it.
func (p Payload) CRC32C() uint32 {
	var sum uint32
	for _, s := range p {
		sum = crc32.Update(sum, castagnoli, s)
	}
	return sum
}

// NewReader makes an independent reader over the payload. Several may be in use at once (hedged Puts).
func (p Payload) NewReader() *PayloadReader {
	return &PayloadReader{payload: p, size: p.Size()}
}

// ErrPayloadClosed is what a PayloadReader answers after Close.
var ErrPayloadClosed = errors.New("payload reader is closed")

// PayloadReader reads a Payload. Close waits for a read that is under way and refuses later ones: an
// HTTP transport may go on reading a request's body after the request has been given up, which must not
// reach memory that the owner has already reused.
type PayloadReader struct {
	payload Payload
	size    int64

	mu     sync.RWMutex // write-locked by what moves the position and by Close; read-locked by ReadAt
	closed bool
	pos    int64 // bytes from the start
	slice  int   // the slice that pos is in
	within int   // bytes from that slice's start

	startsOnce sync.Once
	starts     []int64 // each slice's first position, for ReadAt; made when first needed
}

var (
	_ io.ReadSeekCloser = (*PayloadReader)(nil)
	_ io.ReaderAt       = (*PayloadReader)(nil)
	_ io.WriterTo       = (*PayloadReader)(nil)
)

// Size is the payload's size in bytes, wherever the reader stands.
func (r *PayloadReader) Size() int64 { return r.size }

// Len is the number of bytes that are left to read; some HTTP clients learn the length of a body so.
func (r *PayloadReader) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return int(max(r.size-r.pos, 0))
}

// Read implements io.Reader. It fills dst across slices, so that the writes behind it are large.
func (r *PayloadReader) Read(dst []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, ErrPayloadClosed
	}
	if len(dst) == 0 {
		return 0, nil
	}
	n := 0
	for n < len(dst) {
		rest := r.rest()
		if rest == nil {
			break
		}
		c := copy(dst[n:], rest)
		r.advance(c)
		n += c
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// WriteTo implements io.WriterTo: it hands the slices over as they are.
func (r *PayloadReader) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, ErrPayloadClosed
	}
	var total int64
	for {
		rest := r.rest()
		if rest == nil {
			return total, nil
		}
		n, err := w.Write(rest)
		r.advance(n)
		total += int64(n)
		if err != nil {
			return total, err
		}
		if n < len(rest) {
			return total, io.ErrShortWrite
		}
	}
}

// Seek implements io.Seeker. A position past the end is allowed and reads as the end.
func (r *PayloadReader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, ErrPayloadClosed
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	default:
		return 0, fmt.Errorf("seek payload: whence %d", whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek payload: position %d", offset)
	}
	r.pos = offset
	r.slice, r.within = r.locate(offset)
	return offset, nil
}

// ReadAt implements io.ReaderAt; it neither uses nor moves the position.
func (r *PayloadReader) ReadAt(dst []byte, offset int64) (int, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return 0, ErrPayloadClosed
	}
	if offset < 0 {
		return 0, fmt.Errorf("read payload: position %d", offset)
	}
	slice, within := r.locate(offset)
	n := 0
	for ; slice < len(r.payload) && n < len(dst); slice++ {
		n += copy(dst[n:], r.payload[slice][within:])
		within = 0
	}
	if n < len(dst) {
		return n, io.EOF
	}
	return n, nil
}

// Close ends the reader: when it returns nothing reads the payload through this reader any more.
func (r *PayloadReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// rest is what is left of the current slice, having skipped empty ones; nil at the end.
func (r *PayloadReader) rest() []byte {
	for r.slice < len(r.payload) {
		if rest := r.payload[r.slice][r.within:]; len(rest) > 0 {
			return rest
		}
		r.slice, r.within = r.slice+1, 0
	}
	return nil
}

func (r *PayloadReader) advance(n int) {
	r.pos += int64(n)
	r.within += n
}

// locate finds the slice that holds a position, and the position within it.
func (r *PayloadReader) locate(offset int64) (slice, within int) {
	if offset == 0 {
		return 0, 0
	}
	if offset >= r.size {
		return len(r.payload), 0
	}
	r.startsOnce.Do(func() {
		r.starts = make([]int64, len(r.payload))
		var at int64
		for i, s := range r.payload {
			r.starts[i] = at
			at += int64(len(s))
		}
	})
	slice = sort.Search(len(r.starts), func(i int) bool { return r.starts[i] > offset }) - 1
	return slice, int(offset - r.starts[slice])
}
