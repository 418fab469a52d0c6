package main

import (
	"math/bits"
	"sync"
	"time"
)

// histogram counts durations in buckets of about 1.6 % width, so that a run of any length takes the same memory. It is
// safe for concurrent use.
type histogram struct {
	mu      sync.Mutex
	count   int64
	max     time.Duration
	buckets [histogramBuckets]int64
}

const (
	// histogramBits is how many bits of a value decide its bucket: 64 buckets per power of two.
	histogramBits    = 6
	histogramBuckets = (64 - histogramBits + 1) << histogramBits
)

// bucketOf is the bucket of a value in nanoseconds: exact below 128, then 64 for each power of two.
func bucketOf(v uint64) int {
	shift := max(0, bits.Len64(v)-histogramBits-1)
	return shift<<histogramBits + int(v>>shift)
}

// bucketTop is the largest value of a bucket.
func bucketTop(b int) uint64 {
	if b < 2<<histogramBits {
		return uint64(b)
	}
	shift := b>>histogramBits - 1
	mantissa := uint64(b - shift<<histogramBits)
	return (mantissa+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.mu.Lock()
	h.count++
	h.max = max(h.max, d)
	h.buckets[bucketOf(uint64(d))]++
	h.mu.Unlock()
}

// quantile is the duration that a share q of the values do not exceed; 0 without values.
func (h *histogram) quantile(q float64) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	rank := int64(q * float64(h.count))
	if float64(rank) < q*float64(h.count) {
		rank++
	}
	var seen int64
	for b, n := range h.buckets {
		if seen += n; n > 0 && seen >= rank {
			return min(time.Duration(bucketTop(b)), h.max)
		}
	}
	return h.max
}

func (h *histogram) largest() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.max
}
