package metadata

import (
	"sync"
	"time"
)

// clock gives database time between readings of it: the last one seen plus the monotonic time since. It never runs
// ahead of the database by more than the drift of this machine's oscillator, whatever its wall clock says.
type clock struct {
	mu   sync.Mutex
	base Millis
	at   time.Time
}

// saw notes a reading of the database's clock. An older one than is known already is ignored.
func (c *clock) saw(now Millis) {
	at := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base == 0 || now >= c.base+Millis(at.Sub(c.at).Milliseconds()) || now < c.base {
		c.base, c.at = now, at
	}
}

// now gives database time, and false before the first reading.
func (c *clock) now() (Millis, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base == 0 {
		return 0, false
	}
	return c.base + Millis(time.Since(c.at).Milliseconds()), true
}
