// Package pgproxy is a proxy between a driver and Postgres that knows where messages begin (Postgres manual, "Message
// Formats"), so that a test can cut or hold a connection at an exact message. It is for tests only.
package pgproxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// Proxy passes connections on to a target. It is safe for concurrent use.
type Proxy struct {
	listener net.Listener
	serving  sync.WaitGroup

	mu       sync.Mutex
	target   string
	conns    map[net.Conn]struct{}
	closed   bool
	frontend func(Message) Verdict // what to do with a message of the client; nil: pass all
	backend  func(Message) Verdict
}

// Message is one message: its type and what follows its length.
type Message struct {
	Kind byte
	Body []byte
}

// Bound gives the prepared statement that a Bind is for, or "".
func (m Message) Bound() string {
	if m.Kind != 'B' {
		return ""
	}
	parts := bytes.SplitN(m.Body, []byte{0}, 3) // portal, statement, the rest
	return string(parts[1])
}

// Verdict is what becomes of a message.
type Verdict struct {
	Cut  bool            // close the connection instead
	Hold <-chan struct{} // wait for it first
}

// Listen starts a proxy at an address (host:port, port 0 for any) whose connections go on to target.
func Listen(address, target string) (*Proxy, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for the database's clients: %w", err)
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.serving.Go(func() { p.serve(client) })
		}
	})
	return p, nil
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close cuts all connections and waits until they are gone. No message may be held then.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.listener.Close()
	p.CutAll()
	p.serving.Wait()
	return err
}

// Rules sets what becomes of messages from now on.
func (p *Proxy) Rules(frontend, backend func(Message) Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frontend, p.backend = frontend, backend
}

// Redirect sends new connections to another target and cuts those there are.
func (p *Proxy) Redirect(target string) {
	p.mu.Lock()
	p.target = target
	p.mu.Unlock()
	p.CutAll()
}

// CutAll closes all connections.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) serve(client net.Conn) {
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
	if p.closed {
		p.mu.Unlock()
		return
	}
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
	wg.Go(func() { p.pump(client, server, func() func(Message) Verdict { return p.frontend }) })
	wg.Go(func() { p.pump(server, client, func() func(Message) Verdict { return p.backend }) })
	wg.Wait()
}

// pump passes messages on until either side ends; then both do.
func (p *Proxy) pump(from, to net.Conn, rule func() func(Message) Verdict) {
	defer from.Close()
	defer to.Close()
	in := bufio.NewReader(from)
	for {
		raw, m, err := readMessage(in)
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

func readMessage(r io.Reader) ([]byte, Message, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, Message{}, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > 64<<20 {
		return nil, Message{}, fmt.Errorf("message of %d bytes", size)
	}
	raw := make([]byte, 1+size)
	copy(raw, head[:])
	if _, err := io.ReadFull(r, raw[5:]); err != nil {
		return nil, Message{}, err
	}
	return raw, Message{Kind: raw[0], Body: raw[5:]}, nil
}
