package metadata

import (
	"context"
	"sync"
	"time"
)

// coalescer runs one call at a time for sets of keys: what is asked while one runs is asked together in the next. A
// caller's answer always comes from a call that began after it asked, so reads through it are linearizable.
type coalescer[K comparable] struct {
	call    func(ctx context.Context, keys []K) error
	timeout time.Duration // of one call

	mu      sync.Mutex
	running bool
	next    *coalesced[K]
}

type coalesced[K comparable] struct {
	keys map[K]struct{}
	lead chan struct{} // one token: its taker makes the call
	done chan struct{}
	err  error
}

// do asks for keys and waits. The call itself outlives the caller's context, as others may wait for it too.
func (c *coalescer[K]) do(ctx context.Context, keys ...K) error {
	c.mu.Lock()
	b := c.next
	if b == nil {
		b = &coalesced[K]{keys: map[K]struct{}{}, lead: make(chan struct{}, 1), done: make(chan struct{})}
		c.next = b
	}
	for _, k := range keys {
		b.keys[k] = struct{}{}
	}
	if !c.running {
		c.running = true
		b.lead <- struct{}{}
	}
	c.mu.Unlock()
	select {
	case <-b.lead:
		c.run(ctx, b)
	case <-b.done:
	case <-ctx.Done():
		// A token that nobody is left to take stays for who asks next: b takes keys until its call begins.
		return ctx.Err()
	}
	return b.err
}

func (c *coalescer[K]) run(ctx context.Context, b *coalesced[K]) {
	c.mu.Lock()
	if c.next == b {
		c.next = nil
	}
	c.mu.Unlock()
	keys := make([]K, 0, len(b.keys))
	for k := range b.keys {
		keys = append(keys, k)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	b.err = c.call(ctx, keys)
	cancel()
	close(b.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.running = false
		return
	}
	c.next.lead <- struct{}{}
}
