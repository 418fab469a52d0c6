package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	keyProduce     int16 = 0
	keyApiVersions int16 = 18

	// produceFlexible is the first flexible version of Produce.
	produceFlexible int16 = 9
)

// Errors that close a connection, by what was wrong with its bytes.
var (
	errFrameSize  = errors.New("impossible request size")
	errUnknownAPI = errors.New("unknown api")
	errVersion    = errors.New("unsupported version")
	errHeader     = errors.New("malformed request header")
)

// frameHead is what is known of a frame before its body is read.
type frameHead struct {
	size    int // bytes after the length field
	key     int16
	version int16
}

// frameHeadBytes is how many bytes parseFrameHead needs.
const frameHeadBytes = 8

// parseFrameHead reads the length, the key and the version of a frame.
func parseFrameHead(b []byte) (frameHead, error) {
	be := binary.BigEndian
	size := int32(be.Uint32(b))
	if size < minRequestBytes {
		return frameHead{}, fmt.Errorf("%w: %d bytes", errFrameSize, size)
	}
	return frameHead{size: int(size), key: int16(be.Uint16(b[4:])), version: int16(be.Uint16(b[6:]))}, nil
}

// checkFrame finds the frame's line in the table and checks the frame's size against its bound. An unsupported version of
// ApiVersions is let through: it has an answer.
func (s *Server) checkFrame(h frameHead) (*api, error) {
	a := s.table[h.key]
	switch {
	case a == nil:
		return nil, fmt.Errorf("%w: key %d", errUnknownAPI, h.key)
	case !a.serves(h.version) && h.key != keyApiVersions:
		return nil, fmt.Errorf("%w: %s version %d", errVersion, a.name, h.version)
	}
	limit := MaxOtherRequestBytes
	if h.key == keyProduce {
		limit = s.cfg.MaxRequestBytes
	}
	if h.size > limit {
		return nil, fmt.Errorf("%w: %s of %d bytes, the limit is %d", errFrameSize, a.name, h.size, limit)
	}
	return a, nil
}

// correlationID reads the correlation id of a frame of at least minRequestBytes.
func correlationID(frame []byte) int32 { return int32(binary.BigEndian.Uint32(frame[4:])) }

// parseHeader fills in what the request's header says. flexible says that the header is of version 2.
func (r *request) parseHeader(flexible bool) error {
	b := r.frame
	if len(b) < minRequestBytes {
		return fmt.Errorf("%w: %d bytes", errHeader, len(b))
	}
	r.correlationID = correlationID(b)
	w := walker{b: b[minRequestBytes:]}
	// The client id is not compact, even in a header of version 2.
	if len(w.b) < 2 {
		return fmt.Errorf("%w: no client id", errHeader)
	}
	n := int64(int16(binary.BigEndian.Uint16(w.b)))
	w.skip(2)
	if n > int64(len(w.b)) {
		return fmt.Errorf("%w: client id of %d bytes", errHeader, n)
	}
	if n > 0 {
		r.clientID = string(w.b[:n])
		w.skip(n)
	}
	w.flexible = flexible
	w.tags(nil)
	if w.bad {
		return fmt.Errorf("%w: tags", errHeader)
	}
	r.body = len(b) - len(w.b)
	return nil
}

// decode lets kmsg decode the message, whose bytes schema.check has walked.
func (r *request) decode(message []byte) error {
	msg := kmsg.RequestForKey(r.key)
	msg.SetVersion(r.version)
	if hasBytes(r.api.schema.fields) {
		message = bytes.Clone(message) // kmsg copies strings, but its byte slices are parts of what it reads
	}
	if err := msg.ReadFrom(message); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	r.msg = msg
	return nil
}
