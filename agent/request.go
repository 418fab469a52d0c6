package agent

import (
	"context"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// connInfo is what a handler may know of a connection.
type connInfo struct {
	id       uint64 // never used twice in one process
	listener string // name of the listener, "" for the first
	remote   net.Addr
}

// request is one request of a connection.
type request struct {
	key           int16
	version       int16
	correlationID int32
	clientID      string // "" where the client sent null
	conn          connInfo
	// msg is the decoded request; nil for Produce, which is decoded from frame. It shares no memory with frame.
	msg kmsg.Request
	// frame is the request without its length field. For all but Produce it is nil by the time the handler runs.
	frame []byte
	// body is where the message starts in frame.
	body int

	code int16 // first error code that was noted

	api  *api
	read time.Time // when its last byte was there
}

// note remembers the first error code of a response, for metrics: "requests by API and error". Handlers call it for the
// codes they put into a response; codeNone is ignored.
func (r *request) note(code int16) int16 {
	if r.code == codeNone {
		r.code = code
	}
	return code
}

// reply is what goes back: msg, or an encoded body, or nothing at all (acks=0).
type reply struct {
	// msg is encoded by the connection, at the version the handler set.
	msg kmsg.Response
	// body, when msg is nil, is the encoded response after the response header (with its tag section, when flexible),
	// as a vector that is written without being copied. size is its length in bytes.
	body [][]byte
	size int
	// release, where not nil, is called once, when the reply has been written or the connection has gone.
	release func()
}

// handler serves one request. Typed errors of the protocol go into the reply; an error that is returned closes the
// connection, as Kafka does with requests it cannot make sense of. ctx ends when the connection does, or when the server
// is closed.
type handler func(ctx context.Context, r *request) (reply, error)

// answer makes a request's reply. It runs on the connection's writing side and does not block.
type answer func() (reply, error)

// pipelined begins to serve a request that later ones of its kind may overlap. It is called in the order of the
// connection's requests, and calls x.done and x.dropFrame exactly once each, at once or later, from any goroutine:
// dropFrame when nobody refers to the frame any more. An error, before any of these, closes the connection.
type pipelined func(ctx context.Context, r *request, x *pending) error
