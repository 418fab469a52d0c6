package batcher

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skeinio/skein/metadata"
)

// A short outage of bucket or database costs time, nothing else.
func TestOutagesAreRiddenOut(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault func(r *rig)
	}{
		{"bucket", func(r *rig) {
			r.bucket.fault = func(n int, _ string) (outcome, time.Duration) {
				return map[bool]outcome{true: fail, false: succeed}[n <= 4], 0
			}
		}},
		{"bucket stores but fails", func(r *rig) {
			r.bucket.fault = func(n int, _ string) (outcome, time.Duration) {
				return map[bool]outcome{true: loseReply, false: succeed}[n <= 4], 0
			}
		}},
		{"database", func(r *rig) {
			r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
				return map[bool]outcome{true: fail, false: succeed}[n <= 4], 0
			}
		}},
		{"database at commit, kept", func(r *rig) {
			r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
				return map[bool]outcome{true: loseReply, false: succeed}[n <= 4], 0
			}
		}},
		{"database at commit, lost", func(r *rig) {
			r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
				return map[bool]outcome{true: loseAll, false: succeed}[n <= 4], 0
			}
		}},
		{"condemned keys", func(r *rig) {
			r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
				return map[bool]outcome{true: condemn, false: succeed}[n <= 4], 0
			}
		}},
		{"condemned after an unknown outcome", func(r *rig) {
			r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
				return []outcome{0, loseAll, condemn, loseReply, fail}[n%5], 0
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(c *Config) { c.InlineMaxBytes = 0 })
				tt.fault(r)
				var all []*answer
				for i := range 5 {
					all = append(all, r.submit(1, 30*second, idem(t, partition(1, 0), i), plain(t, partition(2, 0), i)))
					synctest.Wait()
				}
				for _, a := range all {
					res := a.wait()
					wantErr(t, "idempotent", res[0].Err, nil)
					wantErr(t, "plain", res[1].Err, nil)
				}
				wantLog(t, r, partition(1, 0), 0, 1, 2, 3, 4)
				wantLog(t, r, partition(2, 0), 0, 1, 2, 3, 4)
				r.checkEmpty()
				r.close()
			})
		})
	}
}

// A condemned key is not used again, and the flush keeps its id.
func TestCondemnedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes = 0 })
		var keys []metadata.ObjectKey
		ids := map[metadata.FlushID]bool{}
		r.store.fault = func(n int, f []*metadata.Flush) (outcome, time.Duration) {
			keys = append(keys, f[0].Object)
			ids[f[0].ID] = true
			return map[bool]outcome{true: condemn, false: succeed}[n == 1], 0
		}
		wantErr(t, "produce", r.submit(1, 30*second, plain(t, partition(1, 0), 1)).err(), nil)
		if len(keys) != 2 || keys[0] == keys[1] || len(ids) != 1 {
			t.Errorf("keys %v under %d flush ids, want two keys under one", keys, len(ids))
		}
		for _, k := range keys {
			if !strings.HasPrefix(string(k), "seg/") {
				t.Errorf("key %s", k)
			}
		}
		wantLog(t, r, partition(1, 0), 1)
		r.close()
	})
}

// When the first waiter's deadline passes, its chain fails and the others go on.
func TestDeadlineFailsTheChainOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes, c.PutBudget = 0, 0 })
		down := true
		r.bucket.fault = func(int, string) (outcome, time.Duration) {
			return map[bool]outcome{true: fail, false: succeed}[down], 10 * time.Millisecond
		}
		first := r.submit(1, 2*second, idem(t, partition(1, 0), 0))
		patient := r.submit(2, 30*second, plain(t, partition(1, 0), 100))
		synctest.Wait()
		second1 := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		synctest.Wait()
		third := r.submit(1, 30*second, idem(t, partition(1, 0), 2), idem(t, partition(1, 1), 0))
		start := time.Now()
		wantErr(t, "first", first.err(), ErrNotPersisted)
		r.checkLetGo()
		if got := time.Since(start); got < 2*second || got > 2*second+20*time.Millisecond {
			t.Errorf("first answered after %v, want its deadline, 2s", got)
		}
		wantErr(t, "second", second1.err(), ErrNotPersisted)
		if !patient.pending() {
			t.Error("the patient waiter of the same flush was answered with the impatient one")
		}
		r.bucket.set(func() { down = false })
		wantErr(t, "patient", patient.err(), nil)
		res := third.wait()
		wantErr(t, "third", res[0].Err, ErrNotPersisted)
		wantErr(t, "third, other chain", res[1].Err, nil)
		// The mark holds back what comes later until the first failed one comes again.
		wantErr(t, "later than the mark", r.submit(1, 30*second, idem(t, partition(1, 0), 3)).err(), ErrNotPersisted)
		again := r.submit(1, 30*second, idem(t, partition(1, 0), 0))
		after := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
		wantErr(t, "again", again.err(), nil)
		wantErr(t, "after", after.err(), nil)
		wantErr(t, "mark is gone", r.submit(1, 30*second, idem(t, partition(1, 0), 2)).err(), nil)
		wantLog(t, r, partition(1, 0), 100, 0, 1, 2)
		r.checkEmpty()
		r.close()
	})
}

// A PUT that does not heed its cancellation still reads the batches' bytes: nobody is answered before it returns.
func TestBytesAreKeptWhileTheyAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := &stubbornBucket{fakeBucket: newFakeBucket(), stuck: make(chan struct{})}
		r := newRigOn(t, bucket.fakeBucket, bucket, func(c *Config) { c.InlineMaxBytes = 0 })
		late := r.submit(1, second, plain(t, partition(1, 0), 1))
		patient := r.submit(2, 30*second, plain(t, partition(1, 0), 2))
		time.Sleep(3 * second)
		if !late.pending() {
			t.Error("answered while its bytes were read")
		}
		close(bucket.stuck)
		wantErr(t, "late", late.err(), ErrNotPersisted)
		wantErr(t, "patient", patient.err(), nil)
		wantLog(t, r, partition(1, 0), 2)
		r.checkEmpty()
		r.close()
	})
}

func TestMarkEnds(t *testing.T) {
	failed := func(t *testing.T) *rig {
		r := newRig(t, nil)
		r.store.set(func() { r.store.down = true })
		wantErr(t, "database down", r.submit(1, second, idem(t, partition(1, 0), 0)).err(), ErrNotPersisted)
		r.store.set(func() { r.store.down, r.store.strict = false, false })
		wantErr(t, "held back by the mark", r.submit(1, second, idem(t, partition(1, 0), 1)).err(), ErrNotPersisted)
		return r
	}
	t.Run("epoch moves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := failed(t)
			wantErr(t, "new epoch", r.submit(1, second, makeBatch(t, partition(1, 0), 1, 1, 0, 7, 8)).err(), nil)
			r.checkEmpty()
			r.close()
		})
	})
	t.Run("two minutes pass", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := failed(t)
			time.Sleep(markRetention)
			r.checkEmpty()
			if n := r.remembered(); n != 0 {
				t.Errorf("%d chains are remembered after the retention", n)
			}
			wantErr(t, "later", r.submit(1, second, idem(t, partition(1, 0), 1)).err(), nil)
			r.close()
		})
	})
	// Other agents commit what failed here, and the producer comes back.
	for name, tt := range map[string]struct {
		elsewhere func(t *testing.T) []Batch
		next      func(t *testing.T) Batch
		want      error
	}{
		"another agent commits": {
			func(t *testing.T) []Batch { return []Batch{idem(t, partition(1, 0), 0), idem(t, partition(1, 0), 1)} },
			func(t *testing.T) Batch { return idem(t, partition(1, 0), 2) }, nil,
		},
		"another agent goes past the mark's epoch": {
			func(t *testing.T) []Batch { return []Batch{makeBatch(t, partition(1, 0), 1, 1, 0, 7, 8)} },
			func(t *testing.T) Batch { return idem(t, partition(1, 0), 1) }, ErrFenced,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := failed(t)
				time.Sleep(holdPoll) // the database knows nothing yet; it may be asked again now
				for _, b := range tt.elsewhere(t) {
					r.store.accept(b)
				}
				wantErr(t, "held back by the mark", r.submit(1, second, tt.next(t)).err(), ErrNotPersisted)
				synctest.Wait()
				wantErr(t, "tried again", r.submit(1, second, tt.next(t)).err(), tt.want)
				r.checkEmpty()
				if n := r.remembered(); n != 0 {
					t.Errorf("%d chains are remembered", n)
				}
				r.close()
			})
		})
	}
	t.Run("what comes before the mark settles nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			wantErr(t, "first", r.submit(1, second, idem(t, partition(1, 0), 0)).err(), nil)
			r.store.set(func() { r.store.down = true })
			wantErr(t, "database down", r.submit(1, second, idem(t, partition(1, 0), 1)).err(), ErrNotPersisted)
			r.store.set(func() { r.store.down = false })
			for range 3 {
				wantErr(t, "held back by the mark", r.submit(1, second, idem(t, partition(1, 0), 2)).err(), ErrNotPersisted)
				time.Sleep(holdPoll)
			}
			r.mu.Lock()
			for _, c := range r.chains {
				if !c.mark.set {
					t.Error("the mark is gone")
				}
			}
			r.mu.Unlock()
			r.close()
		})
	})
	t.Run("no mark without a producer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			r.store.set(func() { r.store.down = true })
			wantErr(t, "database down", r.submit(1, second, plain(t, partition(1, 0), 0)).err(), ErrNotPersisted)
			r.store.set(func() { r.store.down = false })
			wantErr(t, "next", r.submit(1, second, plain(t, partition(1, 0), 1)).err(), nil)
			r.checkEmpty()
			r.close()
		})
	})
}

// An unknown outcome that outlives its waiter is settled before its chain goes on.
func TestUnknownOutcomeOutlivesTheWaiter(t *testing.T) {
	for _, kept := range []outcome{loseReply, loseAll} {
		for _, inline := range []int64{0, 64 << 10} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(c *Config) { c.InlineMaxBytes = inline })
				up := false
				r.store.fault = func(n int, _ []*metadata.Flush) (outcome, time.Duration) {
					switch {
					case n == 1:
						return kept, 0
					case up:
						return succeed, 0
					}
					return fail, 0
				}
				first := r.submit(1, second, idem(t, partition(1, 0), 0))
				conn := r.submit(1, 30*second, plain(t, partition(1, 1), 50))
				synctest.Wait()
				later := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
				wantErr(t, "first", first.err(), ErrMaybePersisted)
				wantErr(t, "later, never tried", later.err(), ErrNotPersisted)
				again := r.submit(1, 30*second, idem(t, partition(1, 0), 0))
				behind := r.submit(1, 30*second, idem(t, partition(1, 0), 1))
				time.Sleep(5 * second)
				if !again.pending() || !behind.pending() {
					t.Error("the chain went on before its unknown outcome was settled")
				}
				r.store.set(func() { up = true })
				res := again.wait()[0]
				if res.Err != nil || !res.Duplicate || res.Base != 0 {
					t.Errorf("again: got %+v, want a duplicate", res)
				}
				wantErr(t, "behind", behind.err(), nil)
				wantErr(t, "conn", conn.err(), nil)
				wantLog(t, r, partition(1, 0), 0, 1)
				wantLog(t, r, partition(1, 1), 50)
				r.checkEmpty()
				r.close()
			})
		}
	}
}

// After MaxResubmit the database refuses, and the chain goes on.
func TestUnknownOutcomeTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) { return loseAll, 0 }
		wantErr(t, "first", r.submit(1, second, idem(t, partition(1, 0), 0)).err(), ErrMaybePersisted)
		time.Sleep(metadata.MaxResubmit + second)
		r.store.set(func() { r.store.fault = nil })
		wantErr(t, "again", r.submit(1, 30*second, idem(t, partition(1, 0), 0)).err(), nil)
		wantLog(t, r, partition(1, 0), 0)
		r.checkEmpty()
		r.close()
	})
}

// While a commit is under way nobody knows its outcome, and the database may still read the payload.
func TestDeadlineDuringCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.store.fault = func(int, []*metadata.Flush) (outcome, time.Duration) { return succeed, 3 * second }
		a := r.submit(1, second, plain(t, partition(1, 0), 42)) // submit clears the bytes when it is answered
		wantErr(t, "during the commit", a.err(), ErrMaybePersisted)
		time.Sleep(5 * second)
		wantLog(t, r, partition(1, 0), 42)
		r.checkEmpty()
		r.close()
	})
}
