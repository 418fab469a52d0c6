package postgres

import (
	"fmt"
	"sync"
)

// Incarnation tells one history of a database from another: a failover begins a new timeline, a restored copy has an
// older position in the log (design: the database's incarnation).
type Incarnation struct {
	System   int64  // system identifier, made by initdb
	Timeline uint32 // of the write-ahead log
	LSN      int64  // position up to which the log is flushed, bytes
}

func (i Incarnation) String() string {
	return fmt.Sprintf("system %d, timeline %d, log position %X/%X", i.System, i.Timeline, uint32(i.LSN>>32), uint32(i.LSN))
}

// incarnations remembers what the driver's connections saw.
type incarnations struct {
	mu    sync.Mutex
	known bool
	last  Incarnation // its LSN is the largest seen of it
	hooks []func()
}

// OnIncarnation implements metadata.IncarnationWatcher.
func (d *Driver) OnIncarnation(forget func()) {
	d.incarnation.mu.Lock()
	defer d.incarnation.mu.Unlock()
	d.incarnation.hooks = append(d.incarnation.hooks, forget)
}

// Incarnation gives what was seen last.
func (d *Driver) Incarnation() Incarnation {
	d.incarnation.mu.Lock()
	defer d.incarnation.mu.Unlock()
	return d.incarnation.last
}

// sawIncarnation compares what a new connection saw with what was seen before; floor is Incarnation() from before it
// asked. When it is another history, the hooks run before the connection is handed to anybody: a commit on it can then no
// longer build on states of the old one. The connections made before are closed.
func (d *Driver) sawIncarnation(floor, now Incarnation) {
	x := &d.incarnation
	x.mu.Lock()
	before, known := x.last, x.known
	same := before.System == now.System && before.Timeline == now.Timeline && now.LSN >= floor.LSN
	if same {
		now.LSN = max(now.LSN, before.LSN) // another connection may have asked later and been quicker
	}
	x.last, x.known = now, true
	hooks := x.hooks
	x.mu.Unlock()
	if !known || same {
		return
	}
	d.log.Warn("the database is not the one that it was: all views are dropped", "before", before.String(), "now", now.String())
	d.commits.Reset()
	d.reads.Reset()
	for _, forget := range hooks {
		forget()
	}
	if d.opts.OnIncarnation != nil {
		d.opts.OnIncarnation(before, now)
	}
}

// sawLSN notes how far the log has come, on a connection of the present incarnation.
func (d *Driver) sawLSN(lsn int64) {
	x := &d.incarnation
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last.LSN = max(x.last.LSN, lsn)
}
