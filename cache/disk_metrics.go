package cache

import "github.com/prometheus/client_golang/prometheus"

// drop is why an extent was not written.
type drop uint8

const (
	dropQueue  drop = iota // too much waits to be written
	dropSize               // larger than a volume
	dropPaused             // after an error
	drops
)

func (r drop) String() string { return [drops]string{"queue", "size", "paused"}[r] }

type diskMetrics struct {
	hits, misses                          prometheus.Counter
	readBytes, writtenBytes, evictedBytes prometheus.Counter
	dropped                               [drops]prometheus.Counter
	errors                                *prometheus.CounterVec
}

func newDiskMetrics(d *Disk, reg prometheus.Registerer) (*diskMetrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "skein_cache_disk_dropped_total",
		Help: "Extents that were not written to the disk tier, by reason: queue is full, size is above a file's, paused after an error.",
	}, []string{"reason"})
	m := &diskMetrics{
		hits:         counter("skein_cache_disk_hits_total", "Extents read from the disk tier instead of the bucket."),
		misses:       counter("skein_cache_disk_misses_total", "Extents that the disk tier did not have."),
		readBytes:    counter("skein_cache_disk_read_bytes_total", "Bytes of extents read from the disk tier."),
		writtenBytes: counter("skein_cache_disk_written_bytes_total", "Bytes written to the disk tier."),
		evictedBytes: counter("skein_cache_disk_evicted_bytes_total", "Bytes removed from the disk tier to make room."),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_cache_disk_errors_total",
			Help: "Errors of the disk tier, by operation; read: also bytes that are not what was written.",
		}, []string{"op"}),
	}
	for r := range drops {
		m.dropped[r] = dropped.WithLabelValues(r.String())
	}
	for _, op := range []string{"read", "write", "remove"} {
		m.errors.WithLabelValues(op)
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			return value()
		})
	}
	for _, x := range []prometheus.Collector{
		m.hits, m.misses, m.readBytes, m.writtenBytes, m.evictedBytes, dropped, m.errors,
		gauge("skein_cache_disk_bytes", "Size of the disk tier's files.", nil, func() float64 { return float64(d.used) }),
		gauge("skein_cache_disk_extents", "Extents in the disk tier.", nil, func() float64 { return float64(len(d.index)) }),
		gauge("skein_pinned_bytes", "Memory pinned, by pool.", prometheus.Labels{"pool": "cache_disk_queue"},
			func() float64 { return float64(d.queued) }),
	} {
		if err := reg.Register(x); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *diskMetrics) failed(op string) { m.errors.WithLabelValues(op).Inc() }
