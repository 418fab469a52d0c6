package postgres_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
)

// patience bounds what should come soon.
const patience = 20 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// agents gives two Stores on one database; the first one's connections go through a proxy.
func agents(t *testing.T, partitions int32) (p *testenv.PostgresProxy, frozen, other *metadata.Store, otherDriver *postgres.Driver, parts []metadata.Partition) {
	t.Helper()
	d, url := open(t, postgres.Options{})
	other, parts = newStore(t, d, "t", partitions)
	p, through := testenv.NewPostgresProxy(t, url)
	frozen = metadata.NewStore(metadata.Options{Driver: openAt(t, through, postgres.Options{})})
	commit(t, frozen, flushOf(t, frozen, parts, metadata.NoProducer, 0, 1)) // its connection is there and warm
	return p, frozen, other, d, parts
}

// awaitEnded waits until the lock watch has ended n sessions: it says so after those who waited for them go on.
func awaitEnded(t testing.TB, d *postgres.Driver, n int64) {
	t.Helper()
	for ctx := within(t); d.Ended() < n; {
		if ctx.Err() != nil {
			t.Fatalf("the lock watch ended %d sessions, not %d", d.Ended(), n)
		}
		runtime.Gosched()
	}
}

type outcome struct {
	results []metadata.FlushResult
	err     error
}

func inBackground(t testing.TB, s *metadata.Store, f *metadata.Flush) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		r, err := s.Commit(within(t), []*metadata.Flush{f})
		done <- outcome{r, err}
	}()
	return done
}

func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %s for %s", patience, what)
		panic("unreachable")
	}
}

func binds(name string) match {
	return func(m testenv.PostgresMessage) bool { return m.Bound() == name }
}

// TestFrozenClient stops an agent at points where its session holds the blocks' locks. Others go on, after how long is in
// the log (3 s at most on an idle machine); when it comes back it learns that its commit failed or is unknown, and its resubmission is right.
func TestFrozenClient(t *testing.T) {
	for _, c := range []struct {
		name  string
		at    match // the message that does not arrive
		ended bool  // by the lock watch for certain; else the server's own timeout may come first
	}{
		{"inside the first pipeline, locks taken, before Sync", binds("skein_receipts"), true},
		{"between the round trips", binds("skein_add_rows"), false},
		{"inside the second pipeline, rows inserted, before COMMIT and Sync", binds("skein_add_receipts"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, frozen, other, driver, parts := agents(t, 3)
			frost := make(chan struct{})
			thaw := sync.OnceFunc(func() { close(frost) })
			t.Cleanup(thaw)
			rule, hit := once(c.at, testenv.PostgresVerdict{Hold: frost})
			p.Rules(rule, nil)
			f := flushOf(t, frozen, parts, metadata.NoProducer, 0, 1)
			done := inBackground(t, frozen, f)
			await(t, "the freeze", hit)
			awaitLocked(t, driver)
			start := time.Now()
			others := await(t, "the others", inBackground(t, other, flushOf(t, other, parts, metadata.NoProducer, 0, 1)))
			if others.err != nil {
				t.Fatalf("the others: %v", others.err)
			}
			took := time.Since(start)
			if c.ended {
				awaitEnded(t, driver, 1)
			}
			t.Logf("the others went on after %s; %d sessions ended by the watch", took, driver.Ended())
			p.Rules(nil, nil)
			thaw()
			out := await(t, "the frozen commit", done)
			if out.err != nil {
				if !errors.Is(out.err, metadata.ErrUnavailable) && !errors.Is(out.err, metadata.ErrUnknownOutcome) {
					t.Fatalf("the frozen commit: %v", out.err)
				}
				out.results = commit(t, frozen, f)
			}
			for i, b := range out.results[0].Batches {
				// A commit that lost its session before anything was decided begins again by itself, and may come first.
				o := others.results[0].Batches[i]
				if b.Code != metadata.CodeAccepted || o.Code != metadata.CodeAccepted || min(b.Base, o.Base) != 1 || max(b.Base, o.Base) != 2 {
					t.Errorf("partition %d: %+v, the others %+v", i, b, o)
				}
			}
			checkDense(t, other, parts, 3)
		})
	}
}

// awaitLocked waits until a session holds rows of blocks: the server may be slower than the proxy.
func awaitLocked(t *testing.T, d *postgres.Driver) {
	t.Helper()
	ctx := within(t)
	for held := false; !held; {
		err := d.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'blocks'::regclass
			AND mode = 'RowShareLock' AND granted)`).Scan(&held)
		if err != nil {
			t.Fatalf("look for locks: %v", err)
		}
	}
}

// checkDense asserts that n records were committed to every partition.
func checkDense(t *testing.T, s *metadata.Store, parts []metadata.Partition, n metadata.Offset) {
	t.Helper()
	for i, p := range parts {
		if err := s.Refresh(t.Context(), p.Block); err != nil {
			t.Fatal(err)
		}
		v, err := s.View(t.Context(), p.Block)
		if err != nil {
			t.Fatal(err)
		}
		if hw := v.HighWatermark(p.Slot); hw != n {
			t.Errorf("partition %d: high watermark %d, want %d", i, hw, n)
		}
	}
}

// TestConnectionLostAtCommit loses the connection before the server got the second round trip, in the middle of it, and
// after it committed. The agent cannot tell, and says so; the resubmission at another agent settles it.
func TestConnectionLostAtCommit(t *testing.T) {
	committed := func(m testenv.PostgresMessage) bool {
		return m.Kind == 'C' && strings.HasPrefix(string(m.Body), "COMMIT")
	}
	for _, c := range []struct {
		name        string
		frontend    match
		backend     match
		resubmitted bool
	}{
		{"before the second round trip", binds("skein_add_rows"), nil, false},
		{"before COMMIT", binds("skein_commit"), nil, false},
		{"after COMMIT", nil, committed, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, s, other, _, parts := agents(t, 3)
			var frontend, backend rule
			if c.frontend != nil {
				frontend, _ = once(c.frontend, testenv.PostgresVerdict{Cut: true})
			} else {
				backend, _ = once(c.backend, testenv.PostgresVerdict{Cut: true})
			}
			p.Rules(frontend, backend)
			f := flushOf(t, s, parts, metadata.NoProducer, 0, 5)
			if _, err := s.Commit(within(t), []*metadata.Flush{f}); !errors.Is(err, metadata.ErrUnknownOutcome) {
				t.Fatalf("commit: %v, want an unknown outcome", err)
			}
			for i, at := range []*metadata.Store{other, s} { // both answer alike, in whatever order
				r := commit(t, at, f)[0]
				if r.Resubmitted != (c.resubmitted || i > 0) {
					t.Errorf("resubmission %d: %+v", i, r)
				}
				for _, b := range r.Batches {
					if b.Code != metadata.CodeAccepted || b.Base != 1 {
						t.Errorf("resubmission %d: %+v", i, b)
					}
				}
			}
			checkDense(t, s, parts, 6)
		})
	}
}

// TestConnectionLostBeforeLocks: nothing was committed, so the driver begins again by itself.
func TestConnectionLostBeforeLocks(t *testing.T) {
	p, s, _, _, parts := agents(t, 3)
	rule, hit := once(binds("skein_lock"), testenv.PostgresVerdict{Cut: true})
	p.Rules(rule, nil)
	if r := commit(t, s, flushOf(t, s, parts, metadata.NoProducer, 0, 1))[0]; r.Resubmitted || r.Batches[0].Base != 1 {
		t.Fatalf("%+v", r)
	}
	await(t, "the cut", hit)
	checkDense(t, s, parts, 2)
}

// TestForeignLock: a lock that is not Skein's to break is waited for beyond lock_timeout, as long as the context lasts.
func TestForeignLock(t *testing.T) {
	_, url := open(t, postgres.Options{})
	p, through := testenv.NewPostgresProxy(t, url)
	d := openAt(t, through, postgres.Options{})
	s, parts := newStore(t, d, "t", 1)
	holder := connect(t, url)
	for _, sql := range []string{"BEGIN", "SELECT FROM blocks FOR UPDATE"} {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	f := flushOf(t, s, parts, metadata.NoProducer, 0, 1)
	if _, err := s.Commit(short, []*metadata.Flush{f}); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("commit under a foreign lock: %v", err)
	}
	rule, again := nth(3, binds("skein_lock")) // after twice lock_timeout, when a frozen session would be ended
	p.Rules(rule, nil)
	done := inBackground(t, s, f)
	select {
	case out := <-done:
		t.Fatalf("committed under a foreign lock: %+v", out)
	case <-again:
	}
	if _, err := holder.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatalf("the holder's session was ended: %v", err)
	}
	if out := await(t, "the commit", done); out.err != nil || d.Ended() != 0 {
		t.Fatalf("commit after the lock: %+v, %d ended", out, d.Ended())
	}
}

// TestServerRestart: while the server is down commits fail at once and nothing is lost; when it is back all goes on,
// without a new driver.
func TestServerRestart(t *testing.T) {
	server := testenv.NewPostgres(t)
	d := openAt(t, server.Database(t), postgres.Options{})
	s, parts := newStore(t, d, "t", 2)
	all := make(chan struct{}, 16)
	ctx, stop := context.WithCancel(t.Context())
	listening := make(chan error, 1)
	go func() {
		listening <- d.Listen(ctx, func(e metadata.Event) {
			if e.All {
				all <- struct{}{}
			}
		})
	}()
	await(t, "the listener", all)
	n := metadata.Offset(0)
	for _, immediate := range []bool{true, false} {
		for range 20 { // several connections
			commit(t, s, flushOf(t, s, parts, metadata.NoProducer, 0, 1))
			n++
		}
		if err := server.Stop(immediate); err != nil {
			t.Fatal(err)
		}
		f := flushOf(t, s, parts, metadata.NoProducer, 0, 1)
		start := time.Now()
		if _, err := s.Commit(within(t), []*metadata.Flush{f}); !errors.Is(err, metadata.ErrUnavailable) {
			t.Fatalf("commit while the server is down: %v", err)
		}
		t.Logf("it took %s to say that the server is down", time.Since(start))
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		if r := commit(t, s, f)[0]; r.Batches[0].Base != n {
			t.Fatalf("after the restart: %+v, want base %d", r, n)
		}
		n++
		await(t, "the listener to come back", all)
	}
	checkDense(t, s, parts, n)
	stop()
	if err := await(t, "the listener's end", listening); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestPoolExhausted(t *testing.T) {
	d, _ := open(t, postgres.Options{CommitConns: 1, ReadConns: 1})
	s, parts := newStore(t, d, "t", 1)
	f := flushOf(t, s, parts, metadata.NoProducer, 0, 1)
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- d.Commit(t.Context(), metadata.CommitLoad{}, func(*metadata.CommitLoaded) (*metadata.CommitSave, error) {
			close(inside)
			<-leave
			return &metadata.CommitSave{}, nil
		})
	}()
	await(t, "the first commit", inside)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := s.Commit(short, []*metadata.Flush{f})
	if !errors.Is(err, metadata.ErrUnavailable) || !strings.Contains(err.Error(), "all 1 connections") {
		t.Fatalf("commit without a connection: %v", err)
	}
	if _, err := d.Now(within(t)); err != nil {
		t.Fatalf("readers have connections of their own: %v", err)
	}
	close(leave)
	if err := await(t, "the first commit", done); err != nil {
		t.Fatal(err)
	}
	commit(t, s, f)
}

// TestIncarnation puts another database in the place of the one that the agent knows. Its states must be gone before
// the first commit there.
func TestIncarnation(t *testing.T) {
	old, restored := testenv.NewPostgres(t), testenv.NewPostgres(t)
	setup := func(server *testenv.PostgresServer) (string, []metadata.Partition) {
		url := server.URL()
		_, parts := newStore(t, openAt(t, url, postgres.Options{}), "t", 2)
		return url, parts
	}
	oldURL, parts := setup(old)
	restoredURL, _ := setup(restored)
	p, through := testenv.NewPostgresProxy(t, oldURL)
	changes := make(chan postgres.Incarnation, 8)
	d := openAt(t, through, postgres.Options{OnIncarnation: func(_, now postgres.Incarnation) { changes <- now }})
	s := metadata.NewStore(metadata.Options{Driver: d})
	for i := range metadata.Offset(5) {
		if r := commit(t, s, flushOf(t, s, parts, metadata.NoProducer, 0, 1))[0]; r.Batches[0].Base != i {
			t.Fatalf("%+v", r)
		}
	}
	f := flushOf(t, s, parts, metadata.NoProducer, 0, 1)
	p.Redirect(restoredURL)
	var r []metadata.FlushResult
	for {
		var err error
		if r, err = s.Commit(within(t), []*metadata.Flush{f}); err == nil {
			break
		}
		if !errors.Is(err, metadata.ErrUnavailable) && !errors.Is(err, metadata.ErrUnknownOutcome) {
			t.Fatal(err)
		}
	}
	if r[0].Batches[0].Base != 0 {
		t.Fatalf("the first commit in the restored database: %+v", r[0])
	}
	if now := await(t, "the hook", changes); now.System == 0 || now.Timeline == 0 || now.LSN == 0 {
		t.Fatalf("incarnation %+v", now)
	}
	checkDense(t, s, parts, 1)
}

// TestNotReplicated: a commit whose wait for its standby was cancelled is not reported as done, although the server
// answers COMMIT.
func TestNotReplicated(t *testing.T) {
	server := testenv.NewPostgres(t)
	d := openAt(t, server.URL(), postgres.Options{})
	s, parts := newStore(t, d, "t", 1)
	conn := connect(t, server.URL())
	f := flushOf(t, s, parts, metadata.NoProducer, 0, 1)
	setStandby(t, conn, "nobody")
	for _, what := range []string{"the first attempt", "the receipt alone does not prove it"} {
		done := inBackground(t, s, f)
		cancelled := false
		for !cancelled {
			err := conn.QueryRow(within(t), `SELECT coalesce(bool_or(pg_cancel_backend(pid)), false) FROM pg_stat_activity
				WHERE wait_event = 'SyncRep' AND application_name = 'skein'`).Scan(&cancelled)
			if err != nil {
				t.Fatal(err)
			}
		}
		if out := await(t, what, done); !errors.Is(out.err, metadata.ErrUnknownOutcome) {
			t.Fatalf("%s: %v", what, out.err)
		}
	}
	setStandby(t, conn, "")
	if r := commit(t, s, f)[0]; !r.Resubmitted || r.Batches[0].Base != 0 {
		t.Fatalf("with the standby: %+v", r)
	}
}

// setStandby says whose confirmation commits wait for, and waits until the server knows.
func setStandby(t *testing.T, conn *pgx.Conn, names string) {
	t.Helper()
	for _, sql := range []string{
		"SET synchronous_commit = local", "ALTER SYSTEM SET synchronous_standby_names = '" + names + "'", "SELECT pg_reload_conf()",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for ctx, have := within(t), "?"; have != names; {
		if err := conn.QueryRow(ctx, "SELECT current_setting('synchronous_standby_names')").Scan(&have); err != nil {
			t.Fatal(err)
		}
	}
}
