package compactor

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	rows, bytes, age, worst prometheus.Gauge
	success                 *prometheus.GaugeVec
	runs                    *prometheus.CounterVec
	seconds                 *prometheus.CounterVec
	moved                   *prometheus.CounterVec
	objects                 *prometheus.CounterVec
	damaged                 prometheus.Counter
	halted, memory, inline  prometheus.Gauge
	removed                 *prometheus.CounterVec
	ages                    map[string]*atomic.Int64 // when a job last succeeded, in ns
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	started := time.Now()
	success := map[string]*atomic.Int64{}
	for _, job := range jobNames() {
		at := &atomic.Int64{}
		at.Store(started.UnixNano())
		success[job] = at
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skein_compactor_job_age_seconds", ConstLabels: prometheus.Labels{"job": job},
			Help: "By job: since it last ended without an error, or found another compactor at it, or since the start.",
		}, func() float64 { return time.Since(time.Unix(0, at.Load())).Seconds() })
	}
	return &metrics{
		ages:  success,
		rows:  f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_unmerged_rows", Help: "Level-0 rows that are not merged, of all blocks."}),
		bytes: f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_unmerged_bytes", Help: "Raw bytes of level 0 that are not merged."}),
		age:   f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_unmerged_age_seconds", Help: "Age of the oldest unmerged flush."}),
		worst: f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_unmerged_rows_worst_block", Help: "Unmerged rows of the block with most; producers slow at max-unmerged."}),
		success: f.NewGaugeVec(prometheus.GaugeOpts{Name: "skein_compactor_last_success_timestamp_seconds",
			Help: "When a job last ended without an error, by this process's clock."}, []string{"job"}),
		runs:    f.NewCounterVec(prometheus.CounterOpts{Name: "skein_compactor_jobs_total", Help: "Jobs by outcome."}, []string{"job", "outcome"}),
		seconds: f.NewCounterVec(prometheus.CounterOpts{Name: "skein_compactor_job_seconds_total", Help: "Time spent in jobs."}, []string{"job"}),
		moved: f.NewCounterVec(prometheus.CounterOpts{Name: "skein_compactor_bytes_total",
			Help: "Bytes: stored ones read and written, raw ones merged for the first time (in). Write amplification is written / in."},
			[]string{"job", "direction"}),
		objects: f.NewCounterVec(prometheus.CounterOpts{Name: "skein_compactor_objects_total", Help: "Objects written, condemned, deleted, and orphans found."}, []string{"what"}),
		damaged: f.NewCounter(prometheus.CounterOpts{Name: "skein_compactor_damaged_extents_total", Help: "Extents that could not be read and were left where they are."}),
		memory:  f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_memory_bytes", Help: "Memory that running jobs have taken, of a bounded amount."}),
		inline:  f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_inline_bytes", Help: "Inline payloads in the database; merging makes room when they near inline-resident-bytes."}),
		halted:  f.NewGauge(prometheus.GaugeOpts{Name: "skein_compactor_gc_halted", Help: "1: nothing is deleted until fsck releases it."}),
		removed: f.NewCounterVec(prometheus.CounterOpts{Name: "skein_compactor_removed_total", Help: "Rows removed, by table."}, []string{"table"}),
	}
}

func (m *metrics) done(job string, err error, took time.Duration) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	} else {
		m.success.WithLabelValues(job).SetToCurrentTime()
		m.ages[job].Store(time.Now().UnixNano())
	}
	m.runs.WithLabelValues(job, outcome).Inc()
	m.seconds.WithLabelValues(job).Add(took.Seconds())
}

// noRegistry takes metrics that nobody looks at.
type noRegistry struct{}

func (noRegistry) Register(prometheus.Collector) error  { return nil }
func (noRegistry) MustRegister(...prometheus.Collector) {}
func (noRegistry) Unregister(prometheus.Collector) bool { return true }
