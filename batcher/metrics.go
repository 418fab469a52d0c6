package batcher

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/metadata"
)

// metrics are the batcher's counters. They exist whether they are registered or not.
type metrics struct {
	flushes     [reasons][kinds]prometheus.Counter
	flushBytes  [kinds]prometheus.Observer
	puts        prometheus.Histogram
	putFailures prometheus.Counter
	hedges      [2]prometheus.Counter // lost, won

	commits        [kinds + 1]prometheus.Counter
	commitFailures *prometheus.CounterVec
	commitSeconds  prometheus.Histogram
	commitFlushes  prometheus.Histogram
	commitBatches  prometheus.Histogram

	results             *prometheus.CounterVec
	accepted, duplicate prometheus.Counter // of results

	collectors []prometheus.Collector
}

// commitMixed is the kind of a commit that has both inline and other flushes.
const commitMixed = kinds

var commitKinds = [kinds + 1]string{KindPut: "put", KindInline: "inline", commitMixed: "mixed"}

func newMetrics(b *Batcher) *metrics {
	m := &metrics{}
	flushes := counterVec("skein_flushes_total", "Flushes cut, by reason and by where their bytes go.", "reason", "kind")
	bytes := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "skein_flush_bytes", Help: "Raw bytes of flushes.", Buckets: prometheus.ExponentialBuckets(1<<10, 4, 9),
	}, []string{"kind"})
	for k := range kinds {
		m.flushBytes[k] = bytes.WithLabelValues(k.String())
		for r := range reasons {
			m.flushes[r][k] = flushes.WithLabelValues(r.String(), k.String())
		}
	}
	m.puts = seconds("skein_segment_put_seconds", "Time of successful segment uploads.")
	m.putFailures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "skein_segment_put_failures_total", Help: "Segment uploads that failed and are tried again.",
	})
	hedges := counterVec("skein_segment_hedges_total", "Segment uploads that were slow and begun again under a second key, by whether "+
		"that one landed first.", "won")
	m.hedges = [2]prometheus.Counter{hedges.WithLabelValues("false"), hedges.WithLabelValues("true")}
	commits := counterVec("skein_commits_total", "Commits, by where their flushes' bytes are.", "kind")
	for k, name := range commitKinds {
		m.commits[k] = commits.WithLabelValues(name)
	}
	m.commitFailures = counterVec("skein_commit_failures_total", "Attempts to commit that failed, by cause.", "cause")
	m.commitSeconds = seconds("skein_commit_seconds", "Time of successful commits.")
	m.commitFlushes = sizes("skein_commit_flushes", "Flushes in a commit.", 8)
	m.commitBatches = sizes("skein_commit_batches", "Record batches in a commit.", 17)
	m.results = counterVec("skein_batch_results_total", "Record batches answered, by result.", "result")
	m.accepted, m.duplicate = m.results.WithLabelValues("accepted"), m.results.WithLabelValues("duplicate")
	m.collectors = []prometheus.Collector{
		flushes, bytes, m.puts, m.putFailures, commits, m.commitFailures, m.commitSeconds, m.commitFlushes, m.commitBatches,
		m.results, hedges,
		gauge(b, "skein_batcher_buffered_bytes", "Bytes of record batches without a result.", nil,
			func() float64 { return float64(b.buffered) }),
		gauge(b, "skein_batcher_held_bytes", "Bytes of record batches held for an earlier one.", nil,
			func() float64 { return float64(b.heldBytes) }),
		gauge(b, "skein_batcher_marks", "Chains remembered for a failure or a gap.", nil,
			func() float64 { return float64(b.aged.Len()) }),
		gauge(b, "skein_batcher_unsettled_flushes", "Flushes whose commit's outcome is unknown.", nil,
			func() float64 { return float64(b.unsettled) }),
	}
	for p, name := range map[phase]string{
		phaseQueued: "queued", phaseUploading: "uploading", phaseReady: "uploaded", phaseCommitting: "committing",
	} {
		m.collectors = append(m.collectors, gauge(b, "skein_batcher_flushes", "Flushes in the pipeline, by phase.",
			prometheus.Labels{"phase": name}, func() float64 { return float64(b.inPhase(p)) }))
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range m.collectors {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func seconds(name, help string) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
	})
}

func sizes(name, help string, powers int) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(1, 2, powers),
	})
}

// gauge reads a figure under the batcher's lock.
func gauge(b *Batcher, name, help string, labels prometheus.Labels, read func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return read()
	})
}

func (b *Batcher) inPhase(p phase) (n int) {
	for _, f := range b.flushes {
		if f.phase == p {
			n++
		}
	}
	return n
}

func (m *metrics) flush(f *flush) {
	m.flushes[f.reason][f.kind].Inc()
	m.flushBytes[f.kind].Observe(float64(f.bytes))
}

func (m *metrics) put(err error, took time.Duration) {
	if err != nil {
		m.putFailures.Inc()
		return
	}
	m.puts.Observe(took.Seconds())
}

// hedge counts a PUT that was hedged, if it was.
func (m *metrics) hedge(hedged, won bool) {
	switch {
	case hedged && won:
		m.hedges[1].Inc()
	case hedged:
		m.hedges[0].Inc()
	}
}

func (m *metrics) commit(group []*flush, err error, took time.Duration) {
	if err != nil {
		m.commitFailures.WithLabelValues(commitCause(err)).Inc()
		return
	}
	kind, batches := group[0].kind, 0
	for _, f := range group {
		batches += len(f.order)
		if f.kind != kind {
			kind = commitMixed
		}
	}
	m.commits[kind].Inc()
	m.commitSeconds.Observe(took.Seconds())
	m.commitFlushes.Observe(float64(len(group)))
	m.commitBatches.Observe(float64(batches))
}

func commitCause(err error) string {
	switch {
	case errors.Is(err, metadata.ErrUnknownOutcome):
		return "unknown_outcome"
	case errors.Is(err, metadata.ErrCondemned):
		return "condemned"
	case errors.Is(err, metadata.ErrUnavailable):
		return "unavailable"
	}
	return "other"
}

// result counts a batch's result.
func (m *metrics) result(err error, duplicate bool) {
	name := "invalid_batch"
	switch {
	case duplicate:
		m.duplicate.Inc()
		return
	case err == nil:
		m.accepted.Inc()
		return
	case errors.Is(err, ErrNotPersisted):
		name = "not_persisted"
	case errors.Is(err, ErrMaybePersisted):
		name = "maybe_persisted"
	case errors.Is(err, ErrOutOfOrder):
		name = "out_of_order"
	case errors.Is(err, ErrFenced):
		name = "fenced"
	case errors.Is(err, ErrUnknownPartition):
		name = "unknown_partition"
	case errors.Is(err, ErrInvalidTxnState):
		name = "invalid_txn_state"
	}
	m.results.WithLabelValues(name).Inc()
}
