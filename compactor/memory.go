package compactor

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// Bounds of memory, in bytes.
const (
	// jobBytes bounds what one job has in memory as input, decoded, with its description. One extent that alone is larger is
	// a job of its own.
	jobBytes = 64 << 20
	// jobCopies is how often a job has its input in memory at most: as it is stored, decoded, and compressed again.
	jobCopies = 3
	// jobsAtOnce is how many jobs of a Compactor run at a time: a merge, and one of the others.
	jobsAtOnce = 2
	// inputBytes and batchBytes are about what the description of a level-0 extent and of a batch in it take, rowBytes what
	// a row takes while it is loaded.
	inputBytes = 384
	batchBytes = 64
	// indexesBytes bounds the footers that a rewriting job keeps.
	indexesBytes = 16 << 20
	// indexCopies is how large an index is, decoded, in footers.
	indexCopies = 2
	// keysBytes is what the keys that key compaction holds take at most: keyMapEntries of about 64 bytes, in a map that may
	// be half empty.
	keysBytes = 128 << 20
)

// MemoryBound is what a compactor takes at most, in bytes, where no flush's part for one partition is larger than
// largestExtent: a larger one is worked on all the same, alone.
func MemoryBound(largestExtent int64) int64 {
	return gateBytes(largestExtent) + indexesBytes + keysBytes
}

func gateBytes(largestExtent int64) int64 {
	return jobCopies * max(jobsAtOnce*jobBytes, largestExtent)
}

// gate lets jobs take memory. All of it together is bounded; who wants more than there is at all gets it alone.
type gate struct {
	size  int64
	sem   *semaphore.Weighted
	taken prometheus.Gauge
}

func newGate(size int64, taken prometheus.Gauge) *gate {
	return &gate{size: size, sem: semaphore.NewWeighted(size), taken: taken}
}

// take waits until there is room for n bytes. They are given back by done.
func (g *gate) take(ctx context.Context, n int64) (done func(), err error) {
	n = min(n, g.size)
	if err := g.sem.Acquire(ctx, n); err != nil {
		return nil, err
	}
	g.taken.Add(float64(n))
	return func() {
		g.taken.Sub(float64(n))
		g.sem.Release(n)
	}, nil
}
