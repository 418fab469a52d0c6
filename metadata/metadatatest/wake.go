package metadatatest

import (
	"time"

	"github.com/skeinio/skein/metadata"
)

// testWatch lets a Store wait for a commit of its own, then of another.
func testWatch(e *env) {
	s, other := e.store(), e.store()
	p := e.topic(s, "t", 65).Partitions
	e.view(s, p[0].Block)
	e.run(s)
	e.run(other)
	for i, committer := range []*metadata.Store{s, other, s, other} {
		w := s.Watch([]metadata.BlockID{p[0].Block, p[64].Block})
		at := p[i/2*64]
		want := metadata.Offset(i%2 + 1)
		start := time.Now()
		e.expect("commit", e.one(committer, at, plain(1)), metadata.CodeAccepted, want-1)
		e.await(s, w, at, want)
		e.Logf("commit %d was seen after %v", i, time.Since(start))
		w.Close()
	}
	// A change of the row (log start) wakes too.
	w := s.Watch([]metadata.BlockID{p[0].Block})
	defer w.Close()
	_, err := other.DeleteRecords(e.Context(), []metadata.DeleteRecords{
		{Partition: metadata.PartitionID{Block: p[0].Block, Slot: p[0].Slot}, Before: 1},
	})
	e.must(err)
	ctx := e.within()
	for {
		v, err := s.View(ctx, p[0].Block)
		e.must(err)
		if v.LogStart(p[0].Slot) == 1 {
			return
		}
		select {
		case <-w.C():
		case <-ctx.Done():
			e.Fatal("the new log start is not seen")
		}
	}
}

// await waits on a watch until a partition's high watermark is there.
func (e *env) await(s *metadata.Store, w *metadata.Watch, p metadata.Partition, want metadata.Offset) {
	e.Helper()
	ctx := e.within()
	for {
		v, err := s.View(ctx, p.Block)
		e.must(err)
		if v.HighWatermark(p.Slot) == want {
			return
		}
		select {
		case <-w.C():
		case <-ctx.Done():
			e.Fatalf("high watermark %d, waited for %d", v.HighWatermark(p.Slot), want)
		}
	}
}

// testRefresh: what a commit has answered, a Refresh that begins afterwards sees, at every Store, while others commit
// and refresh as well.
func testRefresh(e *env) {
	stores := []*metadata.Store{e.store(), e.store(), e.store()}
	p := e.topic(stores[0], "t", 2).Partitions
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // others who commit and refresh
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			s := stores[i%len(stores)]
			if _, err := s.Commit(e.Context(), []*metadata.Flush{e.flush(s, of(p[1], plain(1)))}); err != nil {
				e.Error(err)
				return
			}
			if err := stores[(i+1)%len(stores)].Refresh(e.Context(), p[1].Block); err != nil {
				e.Error(err)
				return
			}
		}
	}()
	seen := make([]metadata.Seq, len(stores))
	for i := range 50 {
		writer := stores[i%len(stores)]
		r := e.one(writer, p[0], plain(1))
		for j, s := range stores {
			v := e.view(s, p[0].Block)
			if v.HighWatermark(p[0].Slot) <= r.Base {
				e.Errorf("store %d: high watermark %d after the commit of %d", j, v.HighWatermark(p[0].Slot), r.Base)
			}
			if v.Seq < seen[j] {
				e.Errorf("store %d: the view went from seq %d back to %d", j, seen[j], v.Seq)
			}
			seen[j] = v.Seq
		}
	}
	close(stop)
	<-done
}
