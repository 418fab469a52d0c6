package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics of the server.
type metrics struct {
	requests       *prometheus.CounterVec   // by api, error
	latency        *prometheus.HistogramVec // by api
	bytesIn        prometheus.Counter
	bytesOut       prometheus.Counter
	connections    prometheus.Gauge
	accepted       prometheus.Counter
	closed         *prometheus.CounterVec // by reason
	pinned         *prometheus.GaugeVec   // by pool
	pinnedLimit    *prometheus.GaugeVec   // by pool
	pinnedWaiting  *prometheus.GaugeVec   // by pool
	invalidRequest *prometheus.CounterVec // by reason
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
		pinned: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "skein_pinned_bytes", Help: "Memory pinned, by pool.",
		}, []string{"pool"}),
		pinnedLimit: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "skein_pinned_bytes_limit", Help: "Bound of the memory pinned, by pool.",
		}, []string{"pool"}),
		pinnedWaiting: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "skein_pinned_waiting", Help: "Connections whose reading waits for memory, by pool.",
		}, []string{"pool"}),
		invalidRequest: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_invalid_requests_total", Help: "Requests that closed their connection, by reason.",
		}, []string{"reason"}),
	}
}
