package metadata

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// calls records what a coalescer calls, and lets each call end when it is told.
type calls struct {
	mu   sync.Mutex
	keys [][]int
	end  chan error
}

func (c *calls) call(ctx context.Context, keys []int) error {
	slices.Sort(keys)
	c.mu.Lock()
	c.keys = append(c.keys, keys)
	c.mu.Unlock()
	select {
	case err := <-c.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestCoalescer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{end: make(chan error)}
		co := coalescer[int]{call: c.call, timeout: time.Minute}
		results := make(chan error, 10)
		ask := func(ctx context.Context, keys ...int) {
			go func() { results <- co.do(ctx, keys...) }()
			synctest.Wait()
		}
		ask(t.Context(), 1)
		ask(t.Context(), 1, 2) // the call under way began before: it does not count
		ask(t.Context(), 3)
		gone, leave := context.WithCancel(t.Context())
		ask(gone, 4)
		leave()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Fatalf("who gave up got %v", err)
		}
		first := errors.New("first")
		c.end <- first
		if err := <-results; !errors.Is(err, first) {
			t.Fatalf("the first call's caller got %v", err)
		}
		synctest.Wait()
		ask(t.Context(), 5)
		c.end <- nil
		for range 2 {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		c.end <- nil
		if err := <-results; err != nil {
			t.Fatal(err)
		}
		ask(t.Context(), 6) // nothing under way
		c.end <- nil
		if err := <-results; err != nil {
			t.Fatal(err)
		}
		want := [][]int{{1}, {1, 2, 3, 4}, {5}, {6}}
		if !slices.EqualFunc(c.keys, want, slices.Equal) {
			t.Fatalf("called for %v, want %v", c.keys, want)
		}
	})
}

// TestCoalescerAbandoned: everybody who asked gives up while a call is under way; who asks later is served.
func TestCoalescerAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{end: make(chan error)}
		co := coalescer[int]{call: c.call, timeout: time.Minute}
		results := make(chan error, 10)
		short, leave := context.WithCancel(t.Context())
		for i := range 3 {
			go func() { results <- co.do(short, i) }()
			synctest.Wait()
		}
		leave()
		for range 2 {
			if err := <-results; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		c.end <- nil // the call outlives its caller's context
		if err := <-results; err != nil {
			t.Fatalf("the caller whose call was made got %v", err)
		}
		go func() { results <- co.do(t.Context(), 9) }()
		synctest.Wait()
		c.end <- nil
		if err := <-results; err != nil {
			t.Fatal(err)
		}
		if want := [][]int{{0}, {1, 2, 9}}; !slices.EqualFunc(c.keys, want, slices.Equal) {
			t.Fatalf("called for %v, want %v", c.keys, want)
		}
	})
}

func TestCoalescerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{end: make(chan error)}
		co := coalescer[int]{call: c.call, timeout: time.Minute}
		start := time.Now()
		if err := co.do(t.Context(), 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
}
