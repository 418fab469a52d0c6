package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/metadata"
)

// Why a Server is not ready.
var (
	ErrNotListening = errors.New("not listening yet")
	ErrDraining     = errors.New("draining")
)

// Server serves the Kafka protocol on one listener.
//
// Listen, then Run; Drain lets a running server end without cutting anybody off.
type Server struct {
	cfg      Config
	log      *slog.Logger
	peers    *Cluster // nil: topology "virtual"
	store    Store
	producer Submitter
	reader   *reader
	metrics  *metrics
	table    map[int16]*api

	buffers        bufferPool
	responses      responseBuffers
	produceBytes   *budget
	otherBytes     *budget
	decodedBytes   *budget
	rewrittenBytes *budget
	responseBytes  *budget

	ids       *producerIDs
	sweeper   string // names this process as holder of a lease
	groups    *groups
	configs   produceConfigs
	catalogue atomic.Pointer[metadata.Catalogue] // the last one seen
	cluster   atomic.Pointer[string]
	checkers  chan struct{} // tokens: how many connections may decompress records at once

	nextConn atomic.Uint64
	conns    sync.WaitGroup // goroutines of connections
	state    atomic.Int32
	drained  chan struct{} // closed when no more is accepted because of Drain

	proxyWarned atomic.Int64 // when a missing header of the PROXY protocol was last said, in ns of the Unix epoch

	mu       sync.Mutex
	listener net.Listener   // the first
	others   []net.Listener // those of Config.Listeners
	open     map[*conn]struct{}
}

// States of a Server.
const (
	stateNew int32 = iota
	stateListening
	stateDraining
)

// New makes a Server. It starts nothing.
func New(cfg Config, deps Deps) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("configuration of the protocol server: %w", err)
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Metrics == nil {
		deps.Metrics = prometheus.NewRegistry()
	}
	s := &Server{
		cfg: cfg, log: deps.Logger, peers: deps.Cluster, store: deps.Store, producer: deps.Producer, metrics: newMetrics(deps.Metrics),
		reader:         newReader(deps.Store, deps.Extents, deps.Bucket, deps.Logger, deps.Metrics),
		table:          map[int16]*api{},
		produceBytes:   newBudget("produce", cfg.ProduceBufferBytes, deps.Metrics),
		otherBytes:     newBudget("requests", otherFramesBytes, deps.Metrics),
		decodedBytes:   newBudget("decoded", decodedBytes, deps.Metrics),
		rewrittenBytes: newBudget("rewritten", cfg.ProduceBufferBytes/rewrittenDivisor, deps.Metrics),
		responseBytes:  newBudget("responses", responsesBytes, deps.Metrics),
		ids:            newProducerIDs(deps.Store),
		sweeper:        fmt.Sprintf("agent/%d/%x", cfg.NodeID, rand.Uint64()),
		checkers:       make(chan struct{}, maxCheckers()),
		drained:        make(chan struct{}),
		open:           map[*conn]struct{}{},
	}
	s.groups = newGroups(s, deps.Metrics)
	return s, s.fillTable()
}

// fillTable makes the table of APIs.
func (s *Server) fillTable() error {
	layouts := schemas()
	for _, a := range s.apis() {
		if s.table[a.key] != nil {
			return fmt.Errorf("api %d (%s) is in the table twice", a.key, a.name)
		}
		if a.schema = layouts[a.key]; a.schema == nil && a.begin == nil {
			return fmt.Errorf("api %d (%s) has no schema", a.key, a.name)
		}
		s.table[a.key] = &a
	}
	return nil
}

// Listen opens the listener.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for Kafka clients on %s: %w", s.cfg.Listen, err)
	}
	others, err := s.listenMore(ctx)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.mu.Lock()
	s.listener, s.others = l, others
	s.mu.Unlock()
	if err := s.advertise(l.Addr()); err != nil {
		return errors.Join(err, s.closeListeners())
	}
	// From here on the kernel takes connections, which Run serves.
	s.state.CompareAndSwap(stateNew, stateListening)
	return nil
}

// advertise fills in what of the advertised address was not configured.
func (s *Server) advertise(a net.Addr) error {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return fmt.Errorf("address of the listener: %w", err)
	}
	if s.cfg.AdvertisedHost == "" {
		if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
			return fmt.Errorf("listening on %s: say which host to advertise to clients", a)
		}
		s.cfg.AdvertisedHost = host
	}
	if s.cfg.AdvertisedPort == 0 {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fmt.Errorf("port of the listener: %w", err)
		}
		s.cfg.AdvertisedPort = int32(n)
	}
	return nil
}

// Addr is the listener's address, nil before Listen.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Ready says why the server is not ready, or nil.
func (s *Server) Ready() error {
	switch s.state.Load() {
	case stateListening:
		return nil
	case stateDraining:
		return ErrDraining
	}
	return ErrNotListening
}

// Run accepts and serves until ctx ends, which cuts connections off, or until Drain is through. All its goroutines have
// ended when it returns.
func (s *Server) Run(ctx context.Context) error {
	if s.Addr() == nil {
		return ErrNotListening
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { s.groups.runAll(ctx) })
	background.Go(func() { s.runTxns(ctx) })
	defer cancel() // before it is waited for
	accepting := make(chan error, 1)
	go func() { accepting <- s.acceptAll(ctx) }()
	var err error
	select {
	case <-ctx.Done():
		_ = s.closeListeners() // they may be closed already
		s.cutOff(ctx.Err())
		<-accepting
		s.cutOff(ctx.Err()) // what was accepted meanwhile
	case err = <-accepting:
		if err != nil {
			s.cutOff(err)
		}
	}
	stop := context.AfterFunc(ctx, func() { s.cutOff(context.Canceled) })
	s.conns.Wait()
	stop()
	return err
}

// Drain stops accepting, lets every connection end when it is between requests and all it asked was answered, and returns
// when none is left; when ctx ends first it cuts off the rest and gives ctx's error.
func (s *Server) Drain(ctx context.Context) error {
	// The listeners first: clients connect again as soon as their connections end, and a load balancer sends them to the
	// agent that has the fewest.
	_ = s.closeListeners() // they may be closed already
	s.mu.Lock()
	if s.state.Swap(stateDraining) != stateDraining {
		close(s.drained)
	}
	for c := range s.open {
		c.drain()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		s.cutOff(errDrained)
		<-ended
		return fmt.Errorf("drain: %w", ctx.Err())
	}
}

// cutOff ends all connections at once.
func (s *Server) cutOff(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.abort(reason)
	}
}

// accept takes connections until the listener is closed.
func (s *Server) accept(ctx context.Context, l net.Listener, name string) error {
	retry := acceptRetryMin
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			retry = acceptRetryMin
			s.admit(ctx, nc, name)
			continue
		case errors.Is(err, net.ErrClosed):
			return nil
		}
		// Too many open files, or a connection that was gone before it was accepted.
		s.log.Warn("cannot accept a connection", "error", err, "retry_in", retry)
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return nil
		case <-s.drained:
			return nil
		}
		retry = min(2*retry, acceptRetryMax)
	}
}

// admit starts serving a connection, unless there are too many.
func (s *Server) admit(ctx context.Context, nc net.Conn, listener string) {
	c := &conn{
		s: s, nc: nc, br: bufio.NewReaderSize(nc, readBufferBytes), pipe: newPipeline(),
		info: connInfo{id: s.nextConn.Add(1), listener: listener, remote: nc.RemoteAddr()},
	}
	if age := s.cfg.MaxConnectionAge; age > 0 {
		jitter := time.Duration(rand.Int64N(int64(age/connectionAgeJitterFraction) + 1))
		c.expiry = time.Now().Add(age - jitter)
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	s.mu.Lock()
	full := len(s.open) >= s.cfg.MaxConnections
	refused := full || s.state.Load() == stateDraining || ctx.Err() != nil
	if !refused {
		s.open[c] = struct{}{}
		s.conns.Add(1)
	}
	s.mu.Unlock()
	if refused {
		if full {
			s.metrics.refused.Inc()
			s.log.Warn("connection refused: max-connections reached", "max_connections", s.cfg.MaxConnections)
		}
		c.cancel(nil)
		nc.Close()
		return
	}
	s.metrics.accepted.Inc()
	s.metrics.connections.Inc()
	go s.run(c)
}

// run serves a connection and forgets it.
func (s *Server) run(c *conn) {
	defer s.conns.Done()
	err := c.serve()
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	s.metrics.connections.Dec()
	s.metrics.closed.WithLabelValues(closeReason(err)).Inc()
	if errors.Is(err, errProxyHeader) {
		s.warnProxyHeader(c, err)
	}
	s.log.Debug("connection closed", "conn", c.info.id, "remote", c.info.remote.String(), "reason", err)
}

func closeReason(err error) string {
	for _, r := range closeReasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return "other"
}
