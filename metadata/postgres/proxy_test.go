package postgres_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a driver and Postgres and knows where messages begin (Postgres manual, "Message Formats"), so
// that a test can cut or hold a connection at an exact message.
type proxy struct {
	t        testing.TB
	listener net.Listener

	mu       sync.Mutex
	target   string
	conns    map[net.Conn]struct{}
	frontend func(message) verdict // what to do with a message of the client; nil: pass all
	backend  func(message) verdict
}

// message is one message: its type and what follows its length.
type message struct {
	kind byte
	body []byte
}

// bound gives the prepared statement that a Bind is for, or "".
func (m message) bound() string {
	if m.kind != 'B' {
		return ""
	}
	parts := bytes.SplitN(m.body, []byte{0}, 3) // portal, statement, the rest
	return string(parts[1])
}

// verdict is what becomes of a message.
type verdict struct {
	cut  bool            // close the connection instead
	hold <-chan struct{} // wait for it first
}

// newProxy listens and gives the URL that goes through it.
func newProxy(t testing.TB, rawURL string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: l, target: u.Host, conns: map[net.Conn]struct{}{}}
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
		p.cutAll()
		wg.Wait()
	})
	u.Host = l.Addr().String()
	return p, u.String()
}

// rules sets what becomes of messages from now on.
func (p *proxy) rules(frontend, backend func(message) verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frontend, p.backend = frontend, backend
}

// redirect sends new connections elsewhere and cuts those there are.
func (p *proxy) redirect(rawURL string) {
	u, err := url.Parse(rawURL)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.mu.Lock()
	p.target = u.Host
	p.mu.Unlock()
	p.cutAll()
}

func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) serve(client net.Conn) {
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
	wg.Go(func() { p.pump(client, server, func() func(message) verdict { return p.frontend }) })
	wg.Go(func() { p.pump(server, client, func() func(message) verdict { return p.backend }) })
	wg.Wait()
}

// pump passes messages on until either side ends; then both do.
func (p *proxy) pump(from, to net.Conn, rule func() func(message) verdict) {
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
			if v.hold != nil {
				<-v.hold
			}
			if v.cut {
				return
			}
		}
		if _, err := to.Write(raw); err != nil {
			return
		}
	}
}

func readMessage(r io.Reader) ([]byte, message, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, message{}, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > 64<<20 {
		return nil, message{}, fmt.Errorf("message of %d bytes", size)
	}
	raw := make([]byte, 1+size)
	copy(raw, head[:])
	if _, err := io.ReadFull(r, raw[5:]); err != nil {
		return nil, message{}, err
	}
	return raw, message{kind: raw[0], body: raw[5:]}, nil
}

// once gives a rule that applies v to the first message that matches, and tells of it.
func once(match func(message) bool, v verdict) (rule func(message) verdict, hit <-chan struct{}) {
	done := make(chan struct{})
	var first sync.Once
	return func(m message) verdict {
		applies := false
		if match(m) {
			first.Do(func() {
				applies = true
				close(done)
			})
		}
		if applies {
			return v
		}
		return verdict{}
	}, done
}

// nth gives a rule that passes everything and tells when the n-th message that matches came.
func nth(n int64, match func(message) bool) (rule func(message) verdict, hit <-chan struct{}) {
	done := make(chan struct{})
	var count atomic.Int64
	return func(m message) verdict {
		if match(m) && count.Add(1) == n {
			close(done)
		}
		return verdict{}
	}, done
}
