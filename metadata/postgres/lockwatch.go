package postgres

import (
	"context"
	"sync"
	"time"
)

const (
	// guardDelay is how long a transaction may take before somebody looks whether it waits for a frozen client's lock.
	guardDelay = 200 * time.Millisecond
	// guardInterval is how often it is looked at then.
	guardInterval = 200 * time.Millisecond
	// frozenAfter is the age from which a transaction that waits for its client, and that others wait for, is ended.
	frozenAfter = idleInTransactionTimeout
	// guardTimeout bounds one look.
	guardTimeout = 2 * time.Second
)

// endFrozenSQL ends Skein's own sessions that, directly or through others, keep session $1 waiting, whose transaction is
// older than $2 milliseconds and which wait for their client. idle_in_transaction_session_timeout does not end a session
// whose client stopped after Execute and before Sync: to the server it is active. Sessions that wait for the disk, for a
// standby or for another lock are left alone.
const endFrozenSQL = `
WITH RECURSIVE w (pid) AS (
	SELECT unnest(pg_blocking_pids($1))
	UNION
	SELECT unnest(pg_blocking_pids(w.pid)) FROM w
)
SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))
FROM w JOIN pg_stat_activity a USING (pid)
WHERE a.application_name = '` + applicationName + `' AND a.datname = current_database() AND a.usename = current_user
	AND a.wait_event_type = 'Client' AND a.pid <> $1
	AND a.xact_start < clock_timestamp() - $2 * interval '1 millisecond'`

// guard watches over one transaction.
type guard struct {
	mu     sync.Mutex
	ended  bool
	timer  *time.Timer
	cancel context.CancelFunc
}

// guard looks after the transaction of the session pid until it is stopped: while it takes long, frozen sessions that
// hold it up are ended. A transaction that is quick costs a timer.
func (d *Driver) guard(ctx context.Context, pid uint32) *guard {
	g := &guard{}
	g.timer = time.AfterFunc(guardDelay, func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		g.mu.Lock()
		ended := g.ended
		g.cancel = cancel
		g.mu.Unlock()
		for !ended && ctx.Err() == nil {
			// A look under way is not broken off when the transaction goes on, perhaps because of it: it says what it ended.
			d.endFrozen(context.WithoutCancel(ctx), pid)
			ended = pause(ctx, guardInterval) != nil
		}
	})
	return g
}

// stop ends the watch. A look under way may end on its own after stop returned.
func (g *guard) stop() {
	g.timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	if g.cancel != nil {
		g.cancel()
	}
}

func (d *Driver) endFrozen(ctx context.Context, pid uint32) {
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	defer cancel()
	var n int64
	err := d.watch.QueryRow(ctx, endFrozenSQL, int32(pid), frozenAfter.Milliseconds()).Scan(&n)
	switch {
	case err != nil && ctx.Err() == nil:
		d.log.Warn("sessions that hold up a commit not looked at", "error", err)
	case n > 0:
		d.ended.Add(n)
		d.log.Warn("ended sessions of frozen clients that held up a commit", "sessions", n)
	}
}
