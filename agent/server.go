package agent

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// Server serves the Kafka protocol on one listener.
type Server struct {
	cfg      Config
	log      *slog.Logger
	store    Store
	producer Submitter
	metrics  *metrics
	table    map[int16]*api
}

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
		cfg: cfg, log: deps.Logger, store: deps.Store, producer: deps.Producer, metrics: newMetrics(deps.Metrics),
		table: map[int16]*api{},
	}
	for _, a := range s.apis() {
		if s.table[a.key] != nil {
			return nil, fmt.Errorf("api %d (%s) is in the table twice", a.key, a.name)
		}
		s.table[a.key] = &a
	}
	return s, nil
}
