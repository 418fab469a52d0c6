package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/agent/group"
)

// Defaults of Config.
const (
	DefaultMaxRequestBytes      = 100 << 20
	DefaultProduceBufferBytes   = 256 << 20
	DefaultMaxConnections       = 10_000
	DefaultIdleTimeout          = 10 * time.Minute // Kafka's connections.max.idle.ms
	DefaultPartitions           = 1
	DefaultMaxConnectionAge     = 0 // off
	MaxOtherRequestBytes        = 1 << 20
	minProduceBufferBytes       = 1 << 20
	maxAdvertisedPort           = 65535
	connectionAgeJitterFraction = 4 // an age is moved by up to 1/4 of it, so that connections do not end together
)

// Config is how a Server behaves. Zero values take the defaults unless the field says otherwise.
type Config struct {
	Listen string // host:port; port 0 takes a free one

	// NodeID, AdvertisedHost and AdvertisedPort are what Metadata and FindCoordinator answer. An empty host or a zero
	// port takes the listener's.
	NodeID         int32
	AdvertisedHost string
	AdvertisedPort int32
	Rack           string // "" = none
	// Listeners are further listeners: for instance one for clients outside of the network.
	Listeners []Listener
	// ProxyProtocol expects a header of the PROXY protocol, version 2, on every connection: the load balancer's. Its
	// client address is then the connection's. Connections without one are closed.
	ProxyProtocol bool

	// MaxRequestBytes bounds one Produce request; others are bounded by MaxOtherRequestBytes.
	MaxRequestBytes int
	// ProduceBufferBytes bounds what Produce requests pin in memory, over all connections. Over it reads pause.
	ProduceBufferBytes int64
	MaxConnections     int
	// IdleTimeout closes a connection on which nothing came for so long.
	IdleTimeout time.Duration
	// MaxConnectionAge closes a connection of about that age between requests; 0 = never.
	MaxConnectionAge time.Duration

	// AutoCreateTopics lets Metadata create topics that are asked for.
	AutoCreateTopics  bool
	DefaultPartitions int32 // of topics that do not say

	// Groups are the group.* settings, as far as no dynamic config says otherwise.
	Groups group.Settings
}

// Listener is a further listener and what its clients are told to connect to.
type Listener struct {
	Name           string // not "", which is the first one's
	Listen         string // host:port
	AdvertisedHost string
	AdvertisedPort int32
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = DefaultMaxRequestBytes
	}
	if c.ProduceBufferBytes == 0 {
		c.ProduceBufferBytes = DefaultProduceBufferBytes
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	if c.DefaultPartitions == 0 {
		c.DefaultPartitions = DefaultPartitions
	}
	if c.Groups == (group.Settings{}) {
		c.Groups = group.Defaults()
	}
	return c
}

// validate says what is wrong with a config that has its defaults.
func (c Config) validate() error {
	var errs []error
	if c.MaxRequestBytes < MaxOtherRequestBytes {
		errs = append(errs, fmt.Errorf("max-request-bytes %d is below %d", c.MaxRequestBytes, MaxOtherRequestBytes))
	}
	// A request that does not fit the pool could never be read.
	if c.ProduceBufferBytes < int64(c.MaxRequestBytes) || c.ProduceBufferBytes < minProduceBufferBytes {
		errs = append(errs, fmt.Errorf("produce-buffer-bytes %d is below max-request-bytes %d", c.ProduceBufferBytes,
			c.MaxRequestBytes))
	}
	if c.MaxConnections < 1 {
		errs = append(errs, fmt.Errorf("max-connections %d is below 1", c.MaxConnections))
	}
	if c.IdleTimeout < 0 || c.MaxConnectionAge < 0 {
		errs = append(errs, errors.New("timeouts of connections must not be negative"))
	}
	if c.DefaultPartitions < 1 {
		errs = append(errs, fmt.Errorf("default-partitions %d is below 1", c.DefaultPartitions))
	}
	names := map[string]bool{"": true}
	for _, l := range c.Listeners {
		if names[l.Name] {
			errs = append(errs, fmt.Errorf("listener name %q is there twice", l.Name))
		}
		names[l.Name] = true
		if l.AdvertisedHost == "" || l.AdvertisedPort < 1 || l.AdvertisedPort > maxAdvertisedPort {
			errs = append(errs, fmt.Errorf("listener %q has no address for clients", l.Name))
		}
	}
	if c.NodeID < 0 {
		errs = append(errs, fmt.Errorf("node-id %d is negative", c.NodeID))
	}
	if c.AdvertisedPort < 0 || c.AdvertisedPort > maxAdvertisedPort {
		errs = append(errs, fmt.Errorf("advertised port %d is out of range", c.AdvertisedPort))
	}
	if err := c.Groups.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
