package batcher

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/objstore"
)

// TestSlowPutIsHedged: when a PUT hangs, a second one under another key lands, and the flush names that; while the first
// hangs no other flush does, and what lands in the end is not named by any row.
func TestSlowPutIsHedged(t *testing.T) {
	for _, hedge := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Hedge, c.InlineMaxBytes, c.PutBudget = hedge, 0, 0 })
			slow := 0
			r.bucket.fault = func(n int, _ string) (outcome, time.Duration) {
				if n == slow {
					return succeed, 5 * second
				}
				return succeed, 10 * time.Millisecond
			}
			produce := func(i int) time.Duration {
				start := time.Now()
				wantErr(t, "produce", r.submit(1, 30*second, plain(t, partition(1, 0), i)).err(), nil)
				return time.Since(start)
			}
			want := []uint64{}
			for i := range 40 {
				produce(i)
				want = append(want, uint64(i))
			}
			slow = 41
			took := produce(40)
			if hedge && took > 100*time.Millisecond || !hedge && took < 5*second {
				t.Errorf("hedge %v: took %v", hedge, took)
			}
			wantLog(t, r, partition(1, 0), append(want, 40)...)
			keys := []string{}
			wantErr(t, "list", r.bucket.List(t.Context(), "", "", func(i objstore.Info) error {
				keys = append(keys, i.Key)
				return nil
			}), nil)
			another := slices.ContainsFunc(keys, func(k string) bool { return strings.HasSuffix(k, "-2") })
			if len(keys) != 41 || another != hedge {
				t.Errorf("hedge %v: %d objects, under a second key: %v", hedge, len(keys), another)
			}
			if won := testutil.ToFloat64(r.metrics.hedges[1]); (won == 1) != hedge {
				t.Errorf("hedge %v: %v won", hedge, won)
			}
			r.checkEmpty()
			r.close()
		})
	}
}

// TestHedgesAreBounded: when the whole bucket slows down, few PUTs are doubled.
func TestHedgesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes, c.PutBudget = 0, 0 })
		delay := 10 * time.Millisecond
		r.bucket.fault = func(int, string) (outcome, time.Duration) { return succeed, delay }
		for i := range 100 {
			if i == 40 {
				delay = second
			}
			wantErr(t, "produce", r.submit(1, 30*second, plain(t, partition(1, 0), i)).err(), nil)
		}
		if puts := r.bucket.count(); puts < 101 || puts > 100+hedgeBurst+int(100*hedgeShare) {
			t.Errorf("%d PUTs for 100 flushes", puts)
		}
		r.checkEmpty()
		r.close()
	})
}

// TestFailedPutAndHedge: both fail, and the flush is tried again.
func TestFailedPutAndHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.InlineMaxBytes, c.PutBudget = 0, 0 })
		r.bucket.fault = func(n int, _ string) (outcome, time.Duration) {
			switch n {
			case 41:
				return loseReply, second
			case 42:
				return fail, 2 * second
			}
			return succeed, 10 * time.Millisecond
		}
		for i := range 45 {
			wantErr(t, "produce", r.submit(1, 30*second, idem(t, partition(1, 0), i)).err(), nil)
		}
		if puts := r.bucket.count(); puts != 47 {
			t.Errorf("%d PUTs, want one each, a hedge and a retry", puts)
		}
		r.checkEmpty()
		r.close()
	})
}
