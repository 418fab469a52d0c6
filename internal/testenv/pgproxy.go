package testenv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// PostgresProxy stands between a driver and Postgres and knows where messages begin (Postgres manual, "Message Formats"), so
// that a test can cut or hold a connection at an exact message.
type PostgresProxy struct {
	t        testing.TB
	listener net.Listener

	mu       sync.Mutex
	target   string
	conns    map[net.Conn]struct{}
	frontend func(PostgresMessage) PostgresVerdict // what to do with a message of the client; nil: pass all
	backend  func(PostgresMessage) PostgresVerdict
}

// PostgresMessage is one message: its type and what follows its length.
type PostgresMessage struct {
	Kind byte
	Body []byte
}

// Bound gives the prepared statement that a Bind is for, or "".
func (m PostgresMessage) Bound() string {
	if m.Kind != 'B' {
		return ""
	}
	parts := bytes.SplitN(m.Body, []byte{0}, 3) // portal, statement, the rest
	return string(parts[1])
}

// PostgresVerdict is what becomes of a message.
type PostgresVerdict struct {
	Cut  bool            // close the connection instead
	Hold <-chan struct{} // wait for it first
}

// NewPostgresProxy listens and gives the URL that goes through it.
func NewPostgresProxy(t testing.TB, rawURL string) (*PostgresProxy, string) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &PostgresProxy{t: t, listener: l, target: u.Host, conns: map[net.Conn]struct{}{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.CutAll()
		wg.Wait()
	})
	u.Host = l.Addr().String()
	return p, u.String()
}

// Rules sets what becomes of messages from now on.
func (p *PostgresProxy) Rules(frontend, backend func(PostgresMessage) PostgresVerdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frontend, p.backend = frontend, backend
}

// Redirect sends new connections elsewhere and cuts those there are.
func (p *PostgresProxy) Redirect(rawURL string) {
	u, err := url.Parse(rawURL)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.mu.Lock()
	p.target = u.Host
	p.mu.Unlock()
	p.CutAll()
}

// CutAll closes all connections.
func (p *PostgresProxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *PostgresProxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, client)
		delete(p.conns, server)
		p.mu.Unlock()
	}()
	var startup [4]byte
	if _, err := io.ReadFull(client, startup[:]); err != nil {
		return
	}
	if _, err := server.Write(startup[:]); err != nil {
		return
	}
	if _, err := io.CopyN(server, client, int64(binary.BigEndian.Uint32(startup[:])-4)); err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.pump(client, server, func() func(PostgresMessage) PostgresVerdict { return p.frontend }) })
	wg.Go(func() { p.pump(server, client, func() func(PostgresMessage) PostgresVerdict { return p.backend }) })
	wg.Wait()
}

// pump passes messages on until either side ends; then both do.
func (p *PostgresProxy) pump(from, to net.Conn, rule func() func(PostgresMessage) PostgresVerdict) {
	defer from.Close()
	defer to.Close()
	for {
		raw, m, err := readMessage(from)
		if err != nil {
			return
		}
		p.mu.Lock()
		judge := rule()
		p.mu.Unlock()
		if judge != nil {
			v := judge(m)
			if v.Hold != nil {
				<-v.Hold
			}
			if v.Cut {
				return
			}
		}
		if _, err := to.Write(raw); err != nil {
			return
		}
	}
}

func readMessage(r io.Reader) ([]byte, PostgresMessage, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, PostgresMessage{}, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > 64<<20 {
		return nil, PostgresMessage{}, fmt.Errorf("message of %d bytes", size)
	}
	raw := make([]byte, 1+size)
	copy(raw, head[:])
	if _, err := io.ReadFull(r, raw[5:]); err != nil {
		return nil, PostgresMessage{}, err
	}
	return raw, PostgresMessage{Kind: raw[0], Body: raw[5:]}, nil
}
