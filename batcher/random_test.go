package batcher

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/metadata"
)

var seeds = flag.Int("seeds", 12, "how many seeds the randomized tests run")

// chaos is a source of faults: calm, with single faults, and bursts in which everything fails.
type chaos struct {
	mu    sync.Mutex
	rng   *rand.Rand
	until time.Time // end of the present burst or calm
	burst bool
	kinds []outcome
	off   bool
}

func newChaos(seed uint64, kinds ...outcome) *chaos {
	return &chaos{rng: rand.New(rand.NewPCG(seed, 99)), kinds: kinds}
}

func (c *chaos) next() (outcome, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		return succeed, 0
	}
	if now := time.Now(); now.After(c.until) {
		c.burst = !c.burst
		length := 3 * time.Second // calm
		if c.burst {
			length = []time.Duration{50 * time.Millisecond, time.Second, 8 * time.Second}[c.rng.IntN(3)]
		}
		c.until = now.Add(time.Duration(c.rng.Int64N(int64(length))))
	}
	delay := time.Duration(c.rng.Int64N(int64(20 * time.Millisecond)))
	if c.rng.IntN(20) == 0 {
		delay = time.Duration(c.rng.Int64N(int64(4 * time.Second)))
	}
	faulty := c.rng.IntN(20) == 0
	if c.burst {
		faulty = c.rng.IntN(10) != 0
	}
	if !faulty {
		return succeed, delay
	}
	return c.kinds[c.rng.IntN(len(c.kinds))], delay
}

func (c *chaos) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = true
}

// world is agents over one bucket and one store, with faults.
type world struct {
	t      *testing.T
	store  *fakeStore
	log    func(metadata.Partition) []entry
	agents []*rig
	bucket *chaos
	db     *chaos
	clock  *ticks
}

// ticks orders what clients do and hear.
type ticks struct {
	mu sync.Mutex
	n  int
}

func (c *ticks) tick() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func newWorld(t *testing.T, seed uint64, agents int, change func(*Config)) *world {
	w := &world{t: t, clock: &ticks{}, bucket: newChaos(seed, fail, loseReply), db: newChaos(seed+1000, fail, loseReply, loseAll, condemn)}
	for range agents {
		r := newRig(t, change)
		if w.store == nil {
			w.store, w.log = r.store, r.store.log
		}
		// All agents see the first one's store and bucket.
		r.store.shared = w.store
		r.bucket.Memory = w.store.bucket.Memory
		r.bucket.set(func() { r.bucket.fault = func(int, string) (outcome, time.Duration) { return w.bucket.next() } })
		r.store.set(func() { r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) { return w.db.next() } })
		w.agents = append(w.agents, r)
	}
	return w
}

func retriable(err error) bool {
	return errors.Is(err, ErrNotPersisted) || errors.Is(err, ErrMaybePersisted)
}

// idempotentClient produces total batches as producer to one partition, five in flight, and tries again what failed
// retriably, lowest sequence first, as Java's and franz-go's clients do; a patient one first waits for all that is in
// flight, as librdkafka does.
func (w *world) idempotentClient(rng *rand.Rand, producer metadata.ProducerID, part metadata.Partition, total int, patient bool) {
	type reply struct {
		seq int
		res Result
	}
	replies := make(chan reply, 5)
	const (
		unsent = iota
		sent
		acked
	)
	state := make([]int, total)
	inFlight, done, failing := 0, 0, false
	agent := rng.IntN(len(w.agents))
	conn := rng.Uint64()
	for done < total {
		for seq := done; seq < total && seq < done+5 && inFlight < 5 && !(patient && failing); seq++ {
			if state[seq] != unsent {
				continue
			}
			state[seq] = sent
			inFlight++
			b := makeBatch(w.t, part, producer, 0, metadata.Sequence(seq), uint64(seq), rng.IntN(2000))
			a := w.agents[agent].submit(conn, time.Duration(1+rng.IntN(6))*time.Second, b)
			go func() { replies <- reply{seq, a.wait()[0]} }()
			if len(w.agents) > 1 && rng.IntN(10) == 0 {
				agent, conn = rng.IntN(len(w.agents)), rng.Uint64()
			}
			if rng.IntN(3) == 0 {
				time.Sleep(time.Duration(rng.Int64N(int64(50 * time.Millisecond))))
			}
		}
		x := <-replies
		inFlight--
		switch {
		case x.res.Err == nil:
			state[x.seq] = acked
			for done < total && state[done] == acked {
				done++
			}
		case retriable(x.res.Err):
			state[x.seq], failing = unsent, true
			time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
		default:
			w.t.Errorf("producer %d sequence %d: %v", producer, x.seq, x.res.Err)
			return
		}
		if inFlight == 0 {
			failing = false
		}
	}
}

func (w *world) checkIdempotent(producer metadata.ProducerID, part metadata.Partition, total int) {
	w.t.Helper()
	next := uint64(0)
	for _, e := range w.log(part) {
		if e.meta.Producer != producer {
			continue
		}
		if n := number(w.t, e.data); n != next || e.meta.First != metadata.Sequence(next) {
			w.t.Errorf("producer %d, partition %v: sequence %d (number %d) where %d belongs", producer, part, e.meta.First, n, next)
			return
		}
		next++
	}
	if next != uint64(total) {
		w.t.Errorf("producer %d, partition %v: %d batches in the log, %d were acknowledged", producer, part, next, total)
	}
}

// attempt is one submission without a producer id.
type attempt struct {
	number           uint64
	submitted, heard int // ticks
	err              error
	base             metadata.Offset
}

// plainClient submits batches of one connection to one partition, five in flight, and never tries again: every attempt is
// its own number.
func (w *world) plainClient(rng *rand.Rand, conn uint64, part metadata.Partition, total int) []attempt {
	attempts := make([]attempt, total)
	slots := make(chan struct{}, 5)
	var wg sync.WaitGroup
	for i := range attempts {
		slots <- struct{}{}
		x := &attempts[i]
		x.number = conn<<32 | uint64(i)
		b := makeBatch(w.t, part, metadata.NoProducer, -1, -1, x.number, rng.IntN(2000))
		x.submitted = w.clock.tick()
		done := make(chan struct{})
		w.agents[0].Submit(Produce{
			Conn: conn, Deadline: time.Now().Add(time.Duration(1+rng.IntN(6)) * time.Second), Batches: []Batch{b},
			Done: func(res []Result) {
				x.heard, x.err, x.base = w.clock.tick(), res[0].Err, res[0].Base
				clear(b.Data)
				close(done)
			},
		})
		wg.Go(func() { <-done; <-slots })
		if rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.Int64N(int64(50 * time.Millisecond))))
		}
	}
	wg.Wait()
	return attempts
}

func (w *world) checkPlain(part metadata.Partition, attempts []attempt) {
	w.t.Helper()
	at := map[uint64]metadata.Offset{}
	for _, e := range w.log(part) {
		if e.meta.Producer != metadata.NoProducer {
			continue
		}
		n := number(w.t, e.data)
		if _, twice := at[n]; twice {
			w.t.Errorf("partition %v: attempt %x is in the log twice", part, n)
		}
		at[n] = e.base
	}
	last := metadata.Offset(-1)
	for i := range attempts {
		x := &attempts[i]
		base, stored := at[x.number]
		switch {
		case x.err == nil && (!stored || base != x.base):
			w.t.Errorf("attempt %x was acknowledged at %d, the log has it at %d (%v)", x.number, x.base, base, stored)
		case errors.Is(x.err, ErrNotPersisted) && stored:
			w.t.Errorf("attempt %x is in the log though the answer was: not persisted", x.number)
		case x.err != nil && !retriable(x.err):
			w.t.Errorf("attempt %x: %v", x.number, x.err)
		}
		if stored {
			if base < last {
				w.t.Errorf("attempt %x is at %d, before an earlier one of its chain at %d", x.number, base, last)
			}
			last = base
		}
	}
	w.checkCascades(attempts)
}

// checkCascades: what was in the pipeline when an earlier batch of its chain failed must fail too. A client that heard of
// any failure of a run may have sent the next batch before it heard of the others.
func (w *world) checkCascades(attempts []attempt) {
	w.t.Helper()
	for i := 0; i < len(attempts); i++ {
		first, heard := i, attempts[i].heard
		for ; i < len(attempts) && attempts[i].err != nil; i++ {
			heard = min(heard, attempts[i].heard)
		}
		if i > first && i < len(attempts) && attempts[i].submitted < heard {
			w.t.Errorf("attempts %x to %x failed and %x, submitted before the first of that was heard, was acknowledged",
				attempts[first].number, attempts[i-1].number, attempts[i].number)
		}
	}
}

// heal ends the faults, waits until all outcomes are settled and drains.
func (w *world) heal() {
	w.bucket.stop()
	w.db.stop()
	time.Sleep(time.Minute)
	for _, r := range w.agents {
		r.checkEmpty()
		r.close()
	}
}

func randomConfig(rng *rand.Rand) func(*Config) {
	inline := []int64{0, 4 << 10, 64 << 10}[rng.IntN(3)]
	puts := []float64{0, 2, 8}[rng.IntN(3)]
	commits := []float64{0, 10, 50}[rng.IntN(3)]
	size := []int64{8 << 10, 64 << 10, 8 << 20}[rng.IntN(3)]
	return func(c *Config) {
		c.InlineMaxBytes, c.PutBudget, c.CommitBudget, c.SegmentBytes = inline, puts, commits, size
	}
}

// TestRandomFaults: clients against one agent whose bucket and database fail in every way. Nothing acknowledged is lost,
// nothing is there twice, order is kept, and every waiter's answer is true of its own batch.
func TestRandomFaults(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runWorld(t, uint64(seed), 1) })
		})
	}
}

// TestRandomAgents: the same with producers that move between three agents.
func TestRandomAgents(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runWorld(t, uint64(seed)+1_000_000, 3) })
		})
	}
}

func runWorld(t *testing.T, seed uint64, agents int) {
	const producers, partitions, total, conns = 3, 3, 60, 3
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, seed, agents, randomConfig(rng))
	part := func(i int) metadata.Partition { return partition(metadata.BlockID(1+i%2), metadata.Slot(i)) }
	var wg sync.WaitGroup
	for p := range producers {
		for i := range partitions {
			rng := rand.New(rand.NewPCG(seed, uint64(10+p*partitions+i)))
			wg.Go(func() { w.idempotentClient(rng, metadata.ProducerID(1+p), part(i), total, p == 0) })
		}
	}
	plain := make([][]attempt, conns*partitions)
	for k := range plain {
		rng := rand.New(rand.NewPCG(seed, uint64(100+k)))
		wg.Go(func() { plain[k] = w.plainClient(rng, uint64(1+k/partitions), part(k%partitions), total) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Hour)
	defer cancel()
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-ctx.Done():
		t.Error("clients are stuck")
		w.heal()
		<-finished
		return
	}
	w.heal()
	for p := range producers {
		for i := range partitions {
			w.checkIdempotent(metadata.ProducerID(1+p), part(i), total)
		}
	}
	for k, attempts := range plain {
		w.checkPlain(part(k%partitions), attempts)
	}
}
