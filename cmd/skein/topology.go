package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/skeinio/skein/agent"
	"github.com/skeinio/skein/metadata"
)

// topologyDirect is the value of --topology with which every agent is a broker.
const topologyDirect = "direct"

// readTopology reads how the agent shows itself to clients.
func readTopology(s *settings, cfg *serverConfig) error {
	cfg.agent.ProxyProtocol = s.on("proxy-protocol")
	cfg.direct = s.str("topology") == topologyDirect
	if cfg.direct && cfg.metadata.kind == databaseSQLite {
		return errors.New("--topology direct needs a Postgres database: SQLite has one agent")
	}
	addresses, err := namedAddresses(s.names("advertised-listeners"))
	if err != nil {
		return fmt.Errorf("--advertised-listeners: %w", err)
	}
	listeners, err := namedAddresses(s.names("listeners"))
	if err != nil {
		return fmt.Errorf("--listeners: %w", err)
	}
	for _, l := range listeners {
		advertised, ok := find(addresses, l.name)
		if !ok {
			return fmt.Errorf("--listeners %s: --advertised-listeners does not say where its clients connect to", l.name)
		}
		host, port, err := splitAdvertised(advertised)
		if err != nil {
			return fmt.Errorf("--advertised-listeners %s: %w", l.name, err)
		}
		cfg.agent.Listeners = append(cfg.agent.Listeners, agent.Listener{
			Name: l.name, Listen: l.address, AdvertisedHost: host, AdvertisedPort: port,
		})
	}
	for _, a := range addresses {
		if _, ok := find(listeners, a.name); !ok {
			return fmt.Errorf("--advertised-listeners %s: --listeners has no listener of that name", a.name)
		}
	}
	return nil
}

// namedAddress is name=host:port.
type namedAddress struct{ name, address string }

func namedAddresses(list []string) (out []namedAddress, err error) {
	for _, item := range list {
		name, address, ok := strings.Cut(item, "=")
		if !ok || name == "" || address == "" {
			return nil, fmt.Errorf("%q: want name=host:port", item)
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, twice := find(out, name); twice {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		out = append(out, namedAddress{name, address})
	}
	return out, nil
}

func find(list []namedAddress, name string) (address string, ok bool) {
	for _, a := range list {
		if a.name == name {
			return a.address, true
		}
	}
	return "", false
}

// splitAdvertised reads an address that clients can connect to.
func splitAdvertised(address string) (host string, port int32, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%s: want a port from 1 to 65535", address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "", 0, fmt.Errorf("%s: want a host that clients can connect to", address)
	}
	return host, int32(n), nil
}

// nodeWait is how long a start waits for a node id whose holder may be dead: until it would count as dead.
const nodeWait = metadata.AgentLost + 2*metadata.HeartbeatInterval

// join registers the agent as a broker of topology direct. The listeners are open.
func (s *stack) join(ctx context.Context) error {
	if s.cluster == nil {
		return nil
	}
	me := s.server.AgentRow()
	started := time.Now()
	transient := func(err error) bool {
		return databaseTransient(err) || errors.Is(err, metadata.ErrNodeTaken) && time.Since(started) < nodeWait
	}
	err := untilReached(ctx, s.log, "database "+s.cfg.metadata.String(), s.ready.notReady, transient,
		func(ctx context.Context) error { return s.cluster.Join(ctx, me) })
	if err != nil {
		return err
	}
	s.ready.notReady(nil)
	s.log.Info("joined the cluster", "node", s.cluster.Node(), "zone", me.Zone)
	return nil
}
