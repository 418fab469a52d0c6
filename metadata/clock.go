package metadata

import (
	"sync"
	"time"
)

const (
	// clockAnchor is how long a reading of the database's clock is trusted: then the next one counts even if it is behind,
	// so that the drift between the two machines' oscillators does not add up.
	clockAnchor = 30 * time.Second
	// clockStep is how far behind a reading must be to be a step of the database's clock (a failover), not an answer that
	// was long on its way.
	clockStep = 10 * time.Second
)

// clock gives database time between readings of it: the latest one plus the monotonic time since. It never runs ahead
// of the database by more than what the oscillators drift apart in clockAnchor, whatever this machine's wall clock says,
// and goes back only after a step of the database's clock.
type clock struct {
	mu   sync.Mutex
	base Millis
	at   time.Time
	last Millis // given by now
}

// saw notes a reading of the database's clock. Readings that were longer on their way than others are passed over.
func (c *clock) saw(now Millis) {
	at := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	behind := c.base.Add(at.Sub(c.at)).Sub(now)
	switch {
	case c.base == 0:
	case behind > clockStep:
		c.last = 0
	case behind > 0 && at.Sub(c.at) < clockAnchor:
		return
	}
	c.base, c.at = now, at
}

// now gives database time, and false before the first reading.
func (c *clock) now() (Millis, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base == 0 {
		return 0, false
	}
	c.last = max(c.last, c.base.Add(time.Since(c.at)))
	return c.last, true
}
