package agent

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/open"
)

// outageWorld is a server on a Postgres and a MinIO of its own, and the writers through it.
type outageWorld struct {
	t        *testing.T
	server   *testServer
	database *testenv.PostgresServer
	proxy    *testenv.PostgresProxy // between server and database
	store    *testenv.MinIOServer
	seen     *witness
	writers  []testWriter
}

// outageTopic is the writers' topic.
const outageTopic = "load"

func newOutageWorld(t *testing.T, inline int64) *outageWorld {
	t.Helper()
	w := &outageWorld{t: t, database: testenv.NewPostgres(t), store: testenv.NewMinIO(t)}
	var through string
	w.proxy, through = testenv.NewPostgresProxy(t, w.database.Database(t))
	driver, err := postgres.Open(t.Context(), through, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
			t.Errorf("close database: %v", err)
		}
	})
	bucket, err := open.Open(t.Context(), w.store.S3URL(w.store.BucketName()),
		open.Options{AccessKey: w.store.AccessKey, SecretKey: w.store.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bucket.Close(); err != nil {
			t.Errorf("close bucket: %v", err)
		}
	})
	if err := bucket.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.serve(driver, objstore.RetryReads(bucket, objstore.DefaultRetryPolicy()), inline)
	return w
}

// serve starts the store, the batcher, the cache and the server.
func (w *outageWorld) serve(driver metadata.Driver, bucket objstore.Bucket, inline int64) {
	w.server, _ = startWhole(w.t, driver, bucket, inline, func(b *batcher.Batcher) Submitter {
		w.seen = newWitness(b)
		return w.seen
	})
}

// startWhole starts a server with all its parts on a database and a bucket, and ends them when the test ends; stop ends the
// store and the batcher. With inline 0 every flush is an object. producer is what the server submits to.
func startWhole(
	t *testing.T, driver metadata.Driver, bucket objstore.Bucket, inline int64, producer func(*batcher.Batcher) Submitter,
) (ts *testServer, stop context.CancelFunc) {
	t.Helper()
	store := metadata.NewStore(metadata.Options{Driver: driver})
	held, err := NewExtentCache(store, cache.Options{Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(held.Close)
	cfg := batcher.DefaultConfig()
	cfg.InlineMaxBytes, cfg.PutBudget, cfg.CommitBudget = inline, 0, 0
	b, err := batcher.New(batcher.Options{Config: cfg, Bucket: bucket, Store: store, Sink: CacheSink{Cache: held}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	t.Cleanup(func() { // after the server's end
		cancel()
		parts.Wait()
	})
	ts = newTestServer(t, func(_ *Config, d *Deps) {
		d.Store, d.Producer, d.Extents, d.Logger = store, producer(b), held, nil
	})
	ts.store = store
	for what, run := range map[string]func(context.Context) error{"store": store.Run, "batcher": b.Run} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	return ts, cancel
}

// write starts the writers: two idempotent ones and one without an id.
func (w *outageWorld) write() {
	w.writers = []testWriter{
		startFranz(w.server, outageTopic, "idempotent-1"),
		startFranz(w.server, outageTopic, "idempotent-2"),
		startFranz(w.server, outageTopic, "plain", kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck())),
	}
}

func (w *outageWorld) failures() map[string]*tally {
	out := map[string]*tally{}
	for _, x := range w.writers {
		out["failures of "+x.name()] = w.seen.failures(x.name())
	}
	return out
}

func (w *outageWorld) acks() map[string]*tally {
	out := map[string]*tally{}
	for _, x := range w.writers {
		out["acknowledged of "+x.name()] = x.acked()
	}
	return out
}

// outage is something that goes wrong for a while.
type outage struct {
	name string
	// begin and end do it; while is what is waited for between them, nil for a failure of every writer.
	begin, end func() error
	while      func(ctx context.Context)
}

// run lets the outages happen one after the other, and wants all writers to get on after each without anybody's help.
func (w *outageWorld) run(outages []outage) {
	t := w.t
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	w.write()
	awaitAll(ctx, t, w.acks(), between)
	for _, o := range outages {
		if err := o.begin(); err != nil {
			t.Fatalf("%s: %v", o.name, err)
		}
		if o.while != nil {
			o.while(ctx)
		} else {
			awaitAll(ctx, t, w.failures(), 1)
		}
		if err := o.end(); err != nil {
			t.Fatalf("%s: end: %v", o.name, err)
		}
		ended := time.Now()
		awaitAll(ctx, t, w.acks(), between)
		t.Logf("%s: %d more of everybody's are acknowledged %v after its end", o.name, between, time.Since(ended).Round(time.Millisecond))
	}
	var all sync.WaitGroup
	for _, x := range w.writers {
		all.Go(func() { x.stop(t) })
	}
	all.Wait()
	log := readAll(t, w.server, outageTopic)
	w.seen.check(t, outageTopic, log)
	for _, x := range w.writers {
		x.check(t, log)
	}
}

// cutCommits is an outage in which every other COMMIT is cut off: by turns before the database gets it, so that it does not
// happen, and when it has happened, before its answer is passed on.
func (w *outageWorld) cutCommits(cuts int) outage {
	cut := newTally()
	var mu sync.Mutex
	commits := 0
	turn := func(of int) testenv.PostgresVerdict {
		mu.Lock()
		defer mu.Unlock()
		if commits++; commits%4 != of {
			return testenv.PostgresVerdict{}
		}
		cut.add()
		return testenv.PostgresVerdict{Cut: true}
	}
	return outage{
		name: "connections dropped at COMMIT",
		begin: func() error {
			w.proxy.Rules(func(m testenv.PostgresMessage) testenv.PostgresVerdict {
				if m.Bound() != "skein_commit" {
					return testenv.PostgresVerdict{}
				}
				return turn(1)
			}, func(m testenv.PostgresMessage) testenv.PostgresVerdict {
				if m.Kind != 'C' || !strings.HasPrefix(string(m.Body), "COMMIT") {
					return testenv.PostgresVerdict{}
				}
				return turn(3)
			})
			return nil
		},
		while: func(ctx context.Context) { cut.awaitMore(ctx, w.t, "connections cut off", cuts) },
		end: func() error {
			w.proxy.Rules(nil, nil)
			return nil
		},
	}
}

// TestDatabaseFaults: Postgres is stopped, killed and frozen, and connections to it are dropped at COMMIT, under writers.
func TestDatabaseFaults(t *testing.T) {
	for name, inline := range map[string]int64{"segments": 0, "inline": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newOutageWorld(t, inline)
			db := w.database
			w.run([]outage{
				w.cutCommits(20),
				{name: "database stopped", begin: func() error { return db.Stop(false) }, end: db.Start},
				{name: "database killed", begin: db.Kill, end: db.Start},
				{name: "database frozen", begin: db.Pause, end: db.Resume},
				w.cutCommits(20),
			})
		})
	}
}

// TestBucketFaults: MinIO is stopped, killed and frozen under writers.
func TestBucketFaults(t *testing.T) {
	w := newOutageWorld(t, 0)
	store := w.store
	w.run([]outage{
		{name: "bucket stopped", begin: store.Stop, end: store.Start},
		{name: "bucket killed", begin: store.Kill, end: store.Start},
		{name: "bucket frozen", begin: store.Pause, end: store.Resume},
	})
}
