package compactor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

var (
	crashRounds = flag.Int("crash-rounds", 40, "rounds of TestRandomCrashes")
	crashSeed   = flag.Uint64("crash-seed", 0, "seed of TestRandomCrashes; 0: another one each time")
)

// dying makes a compactor whose process ends at a random step, or not at all.
func (r *rig) dying(name string, random *rand.Rand) *Compactor {
	points := Points()
	at, after := points[random.IntN(len(points))], random.IntN(2)
	var mu sync.Mutex
	dead := false
	return r.compactor(Options{Holder: name, Crash: func(p Point) error {
		mu.Lock()
		defer mu.Unlock()
		if p == at {
			if after--; after < 0 {
				dead = true
			}
		}
		if dead {
			return errCrash
		}
		return nil
	}})
}

// late is a flush whose agent was paused between its PUT and its commit, or a hedge of a PUT that lands some time.
type late struct {
	flush *metadata.Flush
	parts []part
	hedge string // its key, where it is one
	round int
}

// TestRandomCrashes lets two compactors at a time end at random steps, with their leases held, and others take over, while a
// producer writes and a reader reads; agents die between PUT and commit, are paused there for up to hours and commit then, and
// hedges land late. The database's clock is two hours off this process's, to either side. Nothing that was acknowledged is lost,
// fsck is clean after every few crashes, and in the end nothing is in the bucket that no row names.
//
// make crashes runs it for long.
func TestRandomCrashes(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-crash-seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, 70, map[string]string{"retention.ms": "-1", "retention.bytes": "-1"})
	r.random = rand.New(rand.NewPCG(seed, 2))
	r.clock.advance(time.Duration(random.IntN(2)*4-2) * time.Hour)
	var waiting []late
	var committed, refused, crashed int
	for round := range *crashRounds {
		var busy sync.WaitGroup
		var mu sync.Mutex
		for i := range 2 {
			c := r.dying(fmt.Sprintf("round %d, %d", round, i), random)
			order := random.Perm(len(c.jobs()))
			busy.Go(func() {
				for _, j := range order {
					job := c.jobs()[j]
					if job.name == jobMerge {
						job.run = c.MergeEverything
					}
					switch err := job.run(t.Context()); {
					case errors.Is(err, errCrash):
						mu.Lock()
						crashed++
						mu.Unlock()
						return
					case err != nil && !errors.Is(err, metadata.ErrFenced) && !errors.Is(err, context.Canceled):
						t.Errorf("%s: %v", job.name, err)
					}
				}
			})
		}
		r.some(1 + random.IntN(6))
		for range random.IntN(3) {
			waiting = append(waiting, r.interrupted(round+random.IntN(6), random))
		}
		waiting = r.landed(waiting, round, &committed, &refused)
		if random.IntN(4) == 0 {
			r.check(r.store)
		}
		busy.Wait()
		if random.IntN(4) == 0 {
			r.check(r.store)
			for _, p := range check(r).Problems {
				if p.Kind != KindOrphan { // of dead agents, while the listing dies as well
					t.Errorf("fsck: %+v", p)
				}
			}
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
		// The dead ones' leases run out, sometimes; sometimes a grace passes.
		r.clock.advance([]time.Duration{0, DefaultLeaseTTL + time.Second, 10 * time.Minute, 2 * time.Hour}[random.IntN(4)])
	}
	r.landed(waiting, *crashRounds+10, &committed, &refused)
	r.clock.advance(time.Hour)
	for range 2 {
		r.settle(r.compactor(Options{Holder: "heir"}))
	}
	r.check(r.store)
	if rep := r.fsck(); rep.Waiting != 0 || rep.Uncommitted != 0 || rep.Inline != 0 {
		t.Errorf("left: %d objects that nothing names, %d payloads", rep.Waiting, rep.Inline)
	}
	t.Logf("%d rounds, %d compactors died, %d late commits were taken and %d refused", *crashRounds, crashed, committed, refused)
}

// interrupted is a flush that was put and is not committed: for now, or for ever, or that has a hedge.
func (r *rig) interrupted(round int, random *rand.Rand) late {
	r.Helper()
	p := part{random.IntN(len(r.want)), [][]byte{r.batchOf(r.clock.now().UnixMilli(), 0, "late", fmt.Sprint(random.Uint64()))}}
	l := late{flush: r.flush(false, p), parts: []part{p}, round: round}
	if random.IntN(3) == 0 {
		l.hedge = string(l.flush.Object[:len(l.flush.Object)-1]) + "2"
	}
	if random.IntN(3) == 0 {
		l.flush = nil // its agent is dead
	}
	return l
}

// landed lets those go on whose time has come. What a paused agent knows of the time is from before it was paused, or, when it
// has spoken to the database since, from now.
func (r *rig) landed(list []late, round int, committed, refused *int) []late {
	r.Helper()
	var left []late
	for _, l := range list {
		if l.round > round {
			left = append(left, l)
			continue
		}
		if l.hedge != "" {
			r.must(r.bucket.Put(r.Context(), l.hedge, objstore.Bytes([]byte("as good as any")), objstore.PutOptions{}))
		}
		if l.flush == nil {
			continue
		}
		if r.random.IntN(2) == 0 {
			now, err := r.driver.Now(r.Context())
			r.must(err)
			l.flush.Seen = now
		}
		res, err := r.store.Commit(r.Context(), []*metadata.Flush{l.flush})
		switch {
		case errors.Is(err, metadata.ErrCondemned), err == nil && errors.Is(res[0].Err, metadata.ErrFlushTooOld):
			*refused++
		case err != nil || res[0].Err != nil:
			r.Fatalf("late commit: %v, %+v", err, res)
		default:
			*committed++
			r.acknowledge(&res[0], l.parts)
		}
	}
	return left
}
