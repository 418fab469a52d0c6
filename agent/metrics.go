package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics of the server.
type metrics struct {
	requests    *prometheus.CounterVec   // by api, error
	latency     *prometheus.HistogramVec // by api
	bytesIn     prometheus.Counter
	bytesOut    prometheus.Counter
	connections prometheus.Gauge
	accepted    prometheus.Counter
	closed      *prometheus.CounterVec // by reason
	panics      prometheus.Counter
	refused     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_requests_total", Help: "Requests answered, by API and first error in the response.",
		}, []string{"api", "error"}),
		latency: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skein_request_seconds", Help: "Time from a request's last byte to its answer being ready.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"api"}),
		bytesIn:     f.NewCounter(prometheus.CounterOpts{Name: "skein_request_bytes_total", Help: "Bytes of requests read."}),
		bytesOut:    f.NewCounter(prometheus.CounterOpts{Name: "skein_response_bytes_total", Help: "Bytes of responses written."}),
		connections: f.NewGauge(prometheus.GaugeOpts{Name: "skein_connections", Help: "Open connections."}),
		accepted:    f.NewCounter(prometheus.CounterOpts{Name: "skein_connections_accepted_total", Help: "Connections accepted."}),
		closed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_connections_closed_total", Help: "Connections closed, by reason.",
		}, []string{"reason"}),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "skein_handler_panics_total", Help: "Requests whose handler panicked: each is a bug.",
		}),
		refused: f.NewCounter(prometheus.CounterOpts{
			Name: "skein_connections_refused_total", Help: "Connections refused because of max-connections.",
		}),
	}
}
