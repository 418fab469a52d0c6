package cache

import "github.com/prometheus/client_golang/prometheus"

// kind of a load.
const (
	kindObject = "object"
	kindInline = "inline"
)

type metrics struct {
	hits, misses, bytes [classes]prometheus.Counter
	flying              [classes]prometheus.Gauge
	loads               map[string]prometheus.Counter
}

func newMetrics(c *Cache, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	hits := counter("skein_cache_hits_total", "Extents served from memory, by class of reader.", "class")
	misses := counter("skein_cache_misses_total", "Extents that had to be waited for, by class of reader.", "class")
	read := counter("skein_cache_read_bytes_total", "Bytes of extents read from the bucket, by class of reader.", "class")
	loads := counter("skein_cache_loads_total", "Loads, by kind: GETs of objects, reads of inline payloads.", "kind")
	flying := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "skein_cache_in_flight_bytes", Help: "Bytes being read and decoded, by class of reader.",
	}, []string{"class"})
	m := &metrics{loads: map[string]prometheus.Counter{}}
	for class := range classes {
		m.hits[class] = hits.WithLabelValues(class.String())
		m.misses[class] = misses.WithLabelValues(class.String())
		m.bytes[class] = read.WithLabelValues(class.String())
		m.flying[class] = flying.WithLabelValues(class.String())
	}
	for _, kind := range []string{kindObject, kindInline} {
		m.loads[kind] = loads.WithLabelValues(kind)
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{hits, misses, read, loads, flying}
	for class := range classes {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skein_pinned_bytes", Help: "Memory pinned, by pool.",
			ConstLabels: prometheus.Labels{"pool": "cache_" + class.String()},
		}, func() float64 {
			c.mu.Lock()
			defer c.mu.Unlock()
			return float64(c.regions[class].bytes)
		}))
	}
	for _, x := range all {
		if err := reg.Register(x); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) lookups(class Class, hits, misses int) {
	m.hits[class].Add(float64(hits))
	m.misses[class].Add(float64(misses))
}

func (m *metrics) loaded(kind string)            { m.loads[kind].Inc() }
func (m *metrics) readBytes(class Class, n int)  { m.bytes[class].Add(float64(n)) }
func (m *metrics) inFlight(class Class, n int64) { m.flying[class].Add(float64(n)) }
