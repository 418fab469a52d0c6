package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// proxyHeader makes a header.
func proxyHeader(command, family byte, rest []byte) []byte {
	b := append([]byte(proxySignature), proxyVersion|command, family, byte(len(rest)>>8), byte(len(rest)))
	return append(b, rest...)
}

func TestProxyHeader(t *testing.T) {
	v4 := []byte{10, 1, 2, 3, 127, 0, 0, 1, 0x30, 0x39, 0x23, 0x84}
	v6 := append(append(bytes.Repeat([]byte{0x20}, 16), make([]byte, 16)...), 0x30, 0x39, 0x23, 0x84)
	for name, tt := range map[string]struct {
		header []byte
		want   string // "" = no address
		bad    bool
	}{
		"IPv4":             {proxyHeader(proxyFor, proxyTCPv4, v4), "10.1.2.3:12345", false},
		"IPv4 with fields": {proxyHeader(proxyFor, proxyTCPv4, append(bytes.Clone(v4), 4, 0, 1, 0)), "10.1.2.3:12345", false},
		"IPv6":             {proxyHeader(proxyFor, proxyTCPv6, v6), "[2020:2020:2020:2020:2020:2020:2020:2020]:12345", false},
		"health check":     {proxyHeader(proxyLocal, 0, nil), "", false},
		"unix socket":      {proxyHeader(proxyFor, 0x31, make([]byte, 216)), "", false},
		"too short":        {proxyHeader(proxyFor, proxyTCPv4, v4[:8]), "", true},
		"too long":         {proxyHeader(proxyFor, proxyTCPv4, make([]byte, maxProxyBytes+1)), "", true},
		"version 1":        {[]byte("PROXY TCP4 10.1.2.3 127.0.0.1 12345 9092\r\n"), "", true},
		"unknown command":  {proxyHeader(2, proxyTCPv4, v4), "", true},
		"a Kafka request":  {append([]byte{0, 0, 0, 30, 0, 18, 0, 3}, make([]byte, 30)...), "", true},
		"connected only":   {nil, "", true},
		"cut off":          {proxyHeader(proxyFor, proxyTCPv4, v4)[:20], "", true},
	} {
		t.Run(name, func(t *testing.T) {
			br := bufio.NewReader(io.MultiReader(bytes.NewReader(tt.header), strings.NewReader("next")))
			if name == "cut off" || name == "connected only" {
				br = bufio.NewReader(bytes.NewReader(tt.header))
			}
			a, err := readProxyHeader(br)
			if tt.bad {
				if want := map[bool]error{true: errClosedByClient, false: errProxyHeader}[tt.header == nil]; !errors.Is(err, want) {
					t.Fatalf("address %v, error %v", a, err)
				}
				return
			}
			if err != nil || (a == nil) != (tt.want == "") || a != nil && a.String() != tt.want {
				t.Fatalf("address %v, error %v; want %q", a, err, tt.want)
			}
			if next, _ := io.ReadAll(br); string(next) != "next" {
				t.Errorf("after the header comes %q", next)
			}
		})
	}
}

// TestBadProxyHeaderClosesItsConnectionOnly: a header that is garbage, comes too slowly, stops in the middle or never comes
// ends its connection within proxyHeaderTimeout, while others are served.
func TestBadProxyHeaderClosesItsConnectionOnly(t *testing.T) {
	good := proxyHeader(proxyFor, proxyTCPv4, []byte{10, 1, 2, 3, 127, 0, 0, 1, 0x30, 0x39, 0x23, 0x84})
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ps := newPipeServer(t, withConfig(func(c *Config) { c.ProxyProtocol = true }), func(_ *Config, d *Deps) {
			d.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		served := ps.connect()
		served.sendBytes(good)
		garbage := ps.connect()
		var writing sync.WaitGroup
		defer writing.Wait()
		writing.Go(func() { garbage.Write(bytes.Repeat([]byte{0xff}, 100)) }) // the pipe is closed under it
		half := ps.connect()
		half.sendBytes(good[:20])
		slow := ps.connect()
		writing.Go(func() {
			for i := range good { // each byte in time, the header not
				if _, err := slow.Write(good[i : i+1]); err != nil {
					return
				}
				time.Sleep(proxyHeaderTimeout / 4)
			}
		})
		silent := ps.connect()
		ask[*kmsg.ApiVersionsResponse](served, kmsg.NewPtrApiVersionsRequest(), 0)
		time.Sleep(proxyHeaderTimeout + time.Second)
		for _, c := range []*rawConn{garbage, half, slow, silent} {
			c.wantClosed()
		}
		synctest.Wait()
		if got := ps.closedFor("proxy_header"); got != 4 {
			t.Errorf("%v connections were closed for their header, want 4", got)
		}
		ask[*kmsg.ApiVersionsResponse](served, kmsg.NewPtrApiVersionsRequest(), 0)
		if n := strings.Count(log.String(), "PROXY protocol's header"); n != 1 {
			t.Errorf("the log says it %d times, want once a minute:\n%s", n, log.String())
		}
	})
}

// FuzzProxyHeader: whatever comes, the answer is an address of what was sent, none, or an error, and no more is read than
// the header says and its bound allows.
func FuzzProxyHeader(f *testing.F) {
	v4 := []byte{10, 1, 2, 3, 127, 0, 0, 1, 0x30, 0x39, 0x23, 0x84}
	f.Add(proxyHeader(proxyFor, proxyTCPv4, v4))
	f.Add(proxyHeader(proxyFor, proxyTCPv6, bytes.Repeat([]byte{1}, proxyV6Bytes+7)))
	f.Add(proxyHeader(proxyLocal, 0, nil))
	f.Add(proxyHeader(proxyFor, 0x31, make([]byte, 216)))
	f.Add([]byte("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const next = "next"
		br := bufio.NewReader(io.MultiReader(bytes.NewReader(b), strings.NewReader(next)))
		a, err := readProxyHeader(br)
		if err != nil {
			if a != nil || !errors.Is(err, errProxyHeader) {
				t.Errorf("%x: address %v, error %v", b, a, err)
			}
			return
		}
		size := proxyFixedBytes + int(b[14])<<8 + int(b[15])
		left, _ := io.ReadAll(br)
		if !bytes.HasPrefix(b, []byte(proxySignature)) || size > proxyFixedBytes+maxProxyBytes || string(left) != (string(b) + next)[size:] {
			t.Errorf("%x: accepted, and then comes %q", b, left)
		}
		if a != nil && (b[12] != proxyVersion|proxyFor || b[13] != proxyTCPv4 && b[13] != proxyTCPv6) {
			t.Errorf("%x: address %v", b, a)
		}
	})
}
