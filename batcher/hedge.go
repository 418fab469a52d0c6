package batcher

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// Bounds of hedging: a PUT that takes longer than most others of its size is begun again under a second key, and the first
// to land is the one that the flush names. The other one, should it land, is garbage that the compactor's listing finds.
const (
	// hedgeSamples is how many of the last PUTs of a size the running 95th percentile is of, hedgeLeast how many there
	// must be.
	hedgeSamples = 64
	hedgeLeast   = 16
	// hedgeFloor is the shortest time after which a PUT is hedged.
	hedgeFloor = 20 * time.Millisecond
	// hedgeShare is the part of PUTs that may be hedged, hedgeBurst how many at once: a bucket that slows down as a
	// whole must not get twice the load.
	hedgeShare = 0.1
	hedgeBurst = 4
)

// putTimes are the durations of the last PUTs, by size, and the allowance for hedges. It is safe for concurrent use.
type putTimes struct {
	mu      sync.Mutex
	classes map[int]*durations
	allowed float64
}

// durations is a ring.
type durations struct {
	ring [hedgeSamples]time.Duration
	n    int // ever added
}

// sizeClass puts sizes together that differ by less than a factor of four.
func sizeClass(size int64) int { return bits.Len64(uint64(size)) / 2 }

// add notes a successful PUT.
func (p *putTimes) add(size int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.classes[sizeClass(size)]
	if c == nil {
		c = &durations{}
		p.classes[sizeClass(size)] = c
	}
	c.ring[c.n%hedgeSamples] = took
	c.n++
	p.allowed = min(p.allowed+hedgeShare, hedgeBurst)
}

// after is when a PUT of this size is slow; ok is false while that is not known.
func (p *putTimes) after(size int64) (d time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.classes[sizeClass(size)]
	if c == nil || c.n < hedgeLeast {
		return 0, false
	}
	sorted := slices.Clone(c.ring[:min(c.n, hedgeSamples)])
	slices.Sort(sorted)
	return max(sorted[len(sorted)*95/100], hedgeFloor), true
}

// take uses one of the allowed hedges.
func (p *putTimes) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.allowed < 1 {
		return false
	}
	p.allowed--
	return true
}

// landed is the outcome of one of a flush's PUTs.
type landed struct {
	key   metadata.ObjectKey
	hedge bool
	err   error
}

// putObject puts a segment, twice when the first time takes too long, and sets the flush's key to the one that landed.
// When it returns nobody reads the payload any more.
func (b *Batcher) putObject(ctx context.Context, f *flush) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan landed, 2)
	payload := objstore.Payload(f.payload)
	put := func(key metadata.ObjectKey, hedge bool) {
		results <- landed{key, hedge, b.bucket.Put(ctx, string(key), payload, objstore.PutOptions{})}
	}
	began, running := time.Now(), 1
	go put(f.key, false)
	defer func() {
		cancel() // the other one, which must end before the payload's memory is given back
		for ; running > 0; running-- {
			<-results
		}
	}()
	var slow <-chan time.Time
	if d, ok := b.times.after(f.size); ok && b.cfg.Hedge {
		t := time.NewTimer(d)
		defer t.Stop()
		slow = t.C
	}
	hedged := false
	for {
		select {
		case <-slow:
			slow = nil
			if !b.times.take() {
				continue
			}
			hedged = true
			f.keys++
			running++
			b.spendPut()
			go put(objectKey(f.id, f.keys), true)
		case r := <-results:
			running--
			if r.err == nil {
				b.times.add(f.size, time.Since(began))
				b.metrics.hedge(hedged, r.hedge)
				f.key = r.key
				return nil
			}
			if running == 0 {
				b.metrics.hedge(hedged, false)
				return r.err
			}
		}
	}
}

// spendPut counts a PUT against the budget.
func (b *Batcher) spendPut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.puts.spend(1)
}
