package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"
)

// The PROXY protocol, version 2: before the first request the load balancer says whom it speaks for.
// https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2.

const (
	proxySignature  = "\r\n\r\n\x00\r\nQUIT\n"
	proxyFixedBytes = len(proxySignature) + 4 // version and command, family, length of the rest
	// maxProxyBytes bounds what follows: addresses and the load balancer's own fields.
	maxProxyBytes = 4096

	proxyVersion  = 0x20
	proxyLocal    = 0 // the load balancer speaks for itself: a health check
	proxyFor      = 1
	proxyTCPv4    = 0x11
	proxyTCPv6    = 0x21
	proxyV4Bytes  = 2*4 + 2*2
	proxyV6Bytes  = 2*16 + 2*2
	proxyVersions = 0xF0
)

// errProxyHeader: a connection does not start with what the load balancer must send.
var errProxyHeader = errors.New("no header of the PROXY protocol version 2; is the load balancer set up to send it")

// proxyWarnEvery is how often the log says at most that headers are missing: with a load balancer that sends none every
// connection is closed.
const proxyWarnEvery = time.Minute

// warnProxyHeader says that a connection was closed for want of a header, unless that was said a moment ago.
func (s *Server) warnProxyHeader(c *conn, err error) {
	now := time.Now().UnixNano()
	last := s.proxyWarned.Load()
	if now-last < int64(proxyWarnEvery) || !s.proxyWarned.CompareAndSwap(last, now) {
		return
	}
	s.log.Warn("connections are closed: they do not begin with the PROXY protocol's header", "remote", c.info.remote.String(), "error", err)
}

// readProxyHeader reads the header. It gives the client's address, or nil where the load balancer speaks for itself or for
// a client that has none. The error wraps errProxyHeader, or errClosedByClient when nothing came at all.
func readProxyHeader(br *bufio.Reader) (net.Addr, error) {
	var fixed [proxyFixedBytes]byte
	switch n, err := io.ReadFull(br, fixed[:]); {
	case n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%w: %w", errClosedByClient, err) // a health check that only connects
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	version, command := fixed[12]&proxyVersions, fixed[12]&^byte(proxyVersions)
	size := int(binary.BigEndian.Uint16(fixed[14:]))
	if string(fixed[:len(proxySignature)]) != proxySignature || version != proxyVersion || command > proxyFor || size > maxProxyBytes {
		return nil, errProxyHeader
	}
	rest := make([]byte, size)
	if _, err := io.ReadFull(br, rest); err != nil {
		return nil, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	if command == proxyLocal {
		return nil, nil
	}
	var ip netip.Addr
	var ports []byte
	switch family := fixed[13]; {
	case family == proxyTCPv4 && size >= proxyV4Bytes:
		ip, ports = netip.AddrFrom4([4]byte(rest)), rest[2*4:]
	case family == proxyTCPv6 && size >= proxyV6Bytes:
		ip, ports = netip.AddrFrom16([16]byte(rest)), rest[2*16:]
	case family == proxyTCPv4 || family == proxyTCPv6:
		return nil, errProxyHeader
	default:
		return nil, nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(ports))), nil
}
