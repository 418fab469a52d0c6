package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/skeinio/skein/internal/pgproxy"
)

// cuts puts a proxy between the agents and Postgres that loses connections at COMMIT: half of them before the server got
// it, half of them after it committed and before it told.
type cuts struct {
	proxy         *pgproxy.Proxy
	before, after atomic.Int64
}

// metadataURL is the variable from which scripts/up-lib.sh takes the agents' database.
const metadataURL = "METADATA_URL"

// startCuts sends the agents through the proxy. One of every commits loses its connection.
func startCuts(ctx context.Context, every int64) (*cuts, error) {
	raw, err := os.ReadFile(".skein-up/metadata.url")
	if err != nil {
		return nil, fmt.Errorf("where is the database of make up: %w", err)
	}
	u, err := url.Parse(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("metadata.url: %w", err)
	}
	target := u.Host
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return nil, fmt.Errorf("metadata.url: %w", err)
	}
	c := &cuts{}
	if c.proxy, err = pgproxy.Listen(net.JoinHostPort(u.Hostname(), strconv.Itoa(port+1)), target); err != nil {
		return nil, err
	}
	u.Host = c.proxy.Addr()
	if err := errors.Join(os.Setenv(metadataURL, u.String()), rollAgents(ctx)); err != nil {
		return nil, errors.Join(err, c.proxy.Close())
	}
	c.proxy.Rules(c.lose(&c.before, every*2, commits), c.lose(&c.after, every*2, committed))
	return c, nil
}

// lose gives a rule that cuts one of every messages that match, at random.
func (c *cuts) lose(count *atomic.Int64, every int64, match func(pgproxy.Message) bool) func(pgproxy.Message) pgproxy.Verdict {
	return func(m pgproxy.Message) pgproxy.Verdict {
		if !match(m) || rand.Int64N(every) != 0 {
			return pgproxy.Verdict{}
		}
		count.Add(1)
		return pgproxy.Verdict{Cut: true}
	}
}

// commits: COMMIT by the hot path's prepared statement, or by itself.
func commits(m pgproxy.Message) bool {
	return m.Bound() == "skein_commit" || m.Kind == 'Q' && strings.HasPrefix(strings.ToLower(string(m.Body)), "commit")
}

func committed(m pgproxy.Message) bool {
	return m.Kind == 'C' && strings.HasPrefix(string(m.Body), "COMMIT")
}

// close lets the agents go back to the database itself.
func (c *cuts) close() error {
	c.proxy.Rules(nil, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return errors.Join(os.Unsetenv(metadataURL), rollAgents(ctx), c.proxy.Close())
}

// rollAgents restarts the agents one by one, so that they read their configuration.
func rollAgents(ctx context.Context) error {
	return rolling(func(a string) func(context.Context) error { return script("scripts/down.sh", a) })(ctx)
}
