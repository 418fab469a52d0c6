package testenv

import (
	"net/url"
	"testing"

	"github.com/skeinio/skein/internal/pgproxy"
)

// PostgresProxy stands between a driver and Postgres for as long as a test runs.
type PostgresProxy struct {
	*pgproxy.Proxy
	t testing.TB
}

// PostgresMessage and PostgresVerdict are a message that passes and what becomes of it.
type (
	PostgresMessage = pgproxy.Message
	PostgresVerdict = pgproxy.Verdict
)

// NewPostgresProxy listens and gives the URL that goes through it.
func NewPostgresProxy(t testing.TB, rawURL string) (*PostgresProxy, string) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pgproxy.Listen("127.0.0.1:0", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	u.Host = p.Addr()
	return &PostgresProxy{Proxy: p, t: t}, u.String()
}

// Redirect sends new connections elsewhere and cuts those there are.
func (p *PostgresProxy) Redirect(rawURL string) {
	u, err := url.Parse(rawURL)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.Proxy.Redirect(u.Host)
}
