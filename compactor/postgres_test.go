package compactor

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
)

// onPostgres makes a database; what it gives opens drivers of it, each with connections of its own.
func onPostgres(t *testing.T) (open func() *postgres.Driver) {
	t.Helper()
	url := testenv.PostgresDatabase(t)
	return func() *postgres.Driver {
		d, err := postgres.Open(t.Context(), url, postgres.Options{CommitConns: 2, ReadConns: 3})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
}

// TestPostgres lets two compactors, each with a store and connections of its own, merge what a third one produces, and reads
// everything; then collects the garbage and asks fsck.
func TestPostgres(t *testing.T) {
	open := onPostgres(t)
	r := newRigOn(t, &clock{}, open(), 130, nil)
	r.some(40)
	var wg sync.WaitGroup
	var list [2]*Compactor
	var rounds [2]chan struct{}
	for i := range list {
		d := open()
		store := metadata.NewStore(metadata.Options{Driver: d})
		// A grace of nothing: what is garbage goes at once, whoever still reads it.
		c, err := New(Options{Holder: fmt.Sprint(i), Driver: d, Store: store, Bucket: r.bucket, Config: Config{GCGrace: time.Nanosecond}})
		r.must(err)
		list[i], rounds[i] = c, make(chan struct{}, 1)
		wg.Go(func() {
			for range rounds[i] {
				for _, j := range c.jobs() {
					run := j.run
					if j.name == jobMerge {
						run = c.MergeEverything
					}
					if err := run(t.Context()); err != nil {
						t.Errorf("compactor %d, %s: %v", i, j.name, err)
						return
					}
				}
			}
		})
	}
	for range 6 {
		for _, c := range rounds {
			c <- struct{}{}
		}
		r.some(10)
		r.check(r.store)
	}
	for _, c := range rounds {
		close(c)
	}
	wg.Wait()
	for _, j := range list[0].jobs() {
		if j.name == jobMerge {
			j.run = list[0].MergeEverything
		}
		r.must(j.run(t.Context()))
	}
	r.must(list[0].Garbage(t.Context())) // condemned by the one before
	r.check(r.store)
	r.check(metadata.NewStore(metadata.Options{Driver: open()}))
	rep := r.fsck()
	if rep.Inline != 0 || rep.Waiting > 5 || rep.Rows != 3 {
		t.Errorf("left: %+v", rep)
	}
	g, err := r.driver.GCState(t.Context())
	r.must(err)
	if g.Generation == 0 || g.Halted != "" || g.Timeline == 0 {
		t.Errorf("garbage collection %+v", g)
	}
}
