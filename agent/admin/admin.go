// Package admin is the agent's HTTP side: liveness, readiness, metrics and profiles. It decides nothing: what is ready
// and what is measured, others say. It is meant for the operator's network, not for the clients'.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds of the HTTP server. There is none on writing: a profile may take minutes.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = time.Minute
	maxHeaderBytes    = 64 << 10
	maxScrapes        = 8
	closeTimeout      = time.Second
)

// Options of a Server.
type Options struct {
	Listen string // host:port; port 0 takes a free one
	// Ready says why the agent is not ready, or nil. It must not block.
	Ready func() error
	// Draining is the reason of Ready's that means draining; nil: none does.
	Draining error
	Metrics  prometheus.Gatherer
	Logger   *slog.Logger // nil: discard
}

// Server serves the admin endpoints: /live, /ready, /metrics and /debug/pprof/.
type Server struct {
	opts     Options
	listener net.Listener
}

// New makes a Server. It starts nothing.
func New(opts Options) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{opts: opts}
}

// Listen opens the listener.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.opts.Listen)
	if err != nil {
		return fmt.Errorf("listen for HTTP on %s: %w", s.opts.Listen, err)
	}
	s.listener = l
	return nil
}

// Addr is the listener's address; nil before Listen.
func (s *Server) Addr() net.Addr {
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		return errors.New("admin: Run before Listen")
	}
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(s.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	// Scrapes are short; a profile that still runs is cut off.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := srv.Shutdown(closing); err != nil {
		err = srv.Close()
		<-ended
		return err
	}
	<-ended
	return nil
}

// Handler gives the endpoints.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "live") })
	mux.HandleFunc("GET /ready", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.opts.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// ready answers 503 with the reason while the agent is not ready. With ?draining=404 it answers 404 while it drains: load
// balancers that cut connections to a server that is down can be told to leave those to one that is not found (HAProxy's
// http-check disable-on-404).
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if err := s.opts.Ready(); err != nil {
		status := http.StatusServiceUnavailable
		if s.opts.Draining != nil && errors.Is(err, s.opts.Draining) && r.URL.Query().Get("draining") == "404" {
			status = http.StatusNotFound
		}
		answer(w, status, err.Error())
		return
	}
	answer(w, http.StatusOK, "ready")
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the client may be gone
}
