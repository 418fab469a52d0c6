package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
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
		"cut off":          {proxyHeader(proxyFor, proxyTCPv4, v4)[:20], "", true},
	} {
		t.Run(name, func(t *testing.T) {
			br := bufio.NewReader(io.MultiReader(bytes.NewReader(tt.header), strings.NewReader("next")))
			if name == "cut off" {
				br = bufio.NewReader(bytes.NewReader(tt.header))
			}
			a, err := readProxyHeader(br)
			if tt.bad {
				if !errors.Is(err, errProxyHeader) {
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

func FuzzProxyHeader(f *testing.F) {
	f.Add(proxyHeader(proxyFor, proxyTCPv4, make([]byte, 12)))
	f.Add([]byte("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readProxyHeader(bufio.NewReader(bytes.NewReader(b)))
		if err == nil && !bytes.HasPrefix(b, []byte(proxySignature)) || err != nil && a != nil {
			t.Errorf("%x: address %v, error %v", b, a, err)
		}
	})
}
