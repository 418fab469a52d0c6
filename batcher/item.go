package batcher

import (
	"time"

	"github.com/skeinio/skein/metadata"
)

// item is one batch on its way.
type item struct {
	data         []byte // nil once released
	meta         metadata.Batch
	part         metadata.Partition
	topic        metadata.TopicID
	index        int32 // of the partition in the topic
	place        int32 // in its request
	uncompressed bool

	// answered: the batch has its result. It stays in its flush until that is encoded anew or done.
	answered  bool
	held      bool      // waits in its chain for its partition to move
	holdUntil time.Time // zero: never held so far

	req   *request
	chain *chain
	flush *flush // nil while it is held, and before it has a place

	prev, next *item // in its chain, while not answered
}

// request is one Produce that waits for its results.
type request struct {
	done     func([]Result)
	deadline time.Time
	results  []Result
	left     int // items that are not released
}

// newRequest makes a request and its items, all in three allocations.
func newRequest(p *Produce, now time.Time) (*request, []item) {
	r := &request{done: p.Done, left: len(p.Batches), results: make([]Result, len(p.Batches))}
	r.deadline = p.Deadline
	if least := now.Add(MinWait); r.deadline.Before(least) {
		r.deadline = least
	}
	if most := now.Add(MaxWait); r.deadline.After(most) {
		r.deadline = most
	}
	items := make([]item, len(p.Batches))
	for i := range p.Batches {
		s := &p.Batches[i]
		items[i] = item{
			data: s.Data, meta: s.Meta, part: s.Partition, topic: s.Topic, index: s.Index, place: int32(i),
			uncompressed: s.Uncompressed, req: r,
		}
	}
	return r, items
}

// minBatchBytes is the length of a batch's header.
const minBatchBytes = 61

// valid says whether the batch can be part of a segment: one that cannot would make its whole flush fail.
func (it *item) valid() bool {
	m := &it.meta
	return len(it.data) >= minBatchBytes && int(m.Length) == len(it.data) && m.Records > 0 && it.index >= 0 &&
		it.part.Slot < metadata.SlotsPerBlock
}

// failure is the Result of an error.
func failure(err error) Result { return Result{Err: err, Base: -1, LogStart: -1} }

// answer gives a batch its result, which its waiter hears as soon as nothing reads the batch any more. b.mu is held.
func (b *Batcher) answer(it *item, res Result) {
	if it.answered {
		return
	}
	it.answered = true
	it.req.results[it.place] = res
	b.metrics.result(res.Err, res.Duplicate)
	it.chain.unlink(it)
	f := it.flush
	if f == nil {
		b.release(it)
		return
	}
	f.live--
	f.bytes -= int64(len(it.data))
	f.dirty = true
	if f.reading {
		f.deferred = append(f.deferred, it)
		if f.cancel != nil {
			f.cancel() // it would be uploaded anew anyway
		}
		return
	}
	f.letGo()
	b.release(it)
}

// release lets go of a batch's bytes, and of its waiter when it was the request's last. b.mu is held.
func (b *Batcher) release(it *item) {
	b.buffered -= int64(len(it.data))
	it.data = nil
	it.req.left--
	if it.req.left == 0 {
		b.finished = append(b.finished, it.req)
	}
}

// unlock gives up b.mu and calls those that wait for the requests that were finished under it.
func (b *Batcher) unlock() {
	finished := b.finished
	b.finished = nil
	b.mu.Unlock()
	b.deliver(finished)
}

func (b *Batcher) deliver(finished []*request) {
	if len(finished) == 0 {
		return
	}
	for _, r := range finished {
		r.done(r.results)
	}
	if b.pending.Add(-int64(len(finished))) == 0 {
		notify(b.idle)
	}
}

// notify leaves a token in a channel of capacity one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
