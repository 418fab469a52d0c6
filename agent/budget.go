package agent

import (
	"context"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// budget is a bound on memory of one kind, in bytes. Who asks first is served first, so a large request is not starved by
// small ones.
type budget struct {
	limit   int64
	sem     *semaphore.Weighted
	used    atomic.Int64
	waiting atomic.Int64
}

// newBudget makes a budget and its metrics, in which pool is its name.
func newBudget(pool string, limit int64, reg prometheus.Registerer) *budget {
	b := &budget{limit: limit, sem: semaphore.NewWeighted(limit)}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"pool": pool},
		}, value)
	}
	reg.MustRegister(
		gauge("skein_pinned_bytes", "Memory pinned, by pool.", func() float64 { return float64(b.used.Load()) }),
		gauge("skein_pinned_limit_bytes", "Bound of the memory pinned, by pool.", func() float64 { return float64(limit) }),
		gauge("skein_pinned_waiting", "Who waits for memory, by pool.", func() float64 { return float64(b.waiting.Load()) }),
	)
	return b
}

// clamp gives what is taken for n: what is larger than the whole budget takes all of it.
func (b *budget) clamp(n int64) int64 { return min(n, b.limit) }

// acquire waits until n bytes are free and takes them, or gives ctx's error. Take from one budget once at a time: who
// holds some and waits for more of the same may wait for himself.
func (b *budget) acquire(ctx context.Context, n int64) error {
	n = b.clamp(n)
	if b.sem.TryAcquire(n) {
		b.used.Add(n)
		return nil
	}
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	if err := b.sem.Acquire(ctx, n); err != nil {
		return err
	}
	b.used.Add(n)
	return nil
}

// tryAcquire takes n bytes if they are free.
func (b *budget) tryAcquire(n int64) bool {
	n = b.clamp(n)
	if !b.sem.TryAcquire(n) {
		return false
	}
	b.used.Add(n)
	return true
}

// release gives back what was acquired with n.
func (b *budget) release(n int64) {
	n = b.clamp(n)
	b.used.Add(-n)
	b.sem.Release(n)
}
