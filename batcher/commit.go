package batcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/metadata"
)

// startCommits starts commits of what is ready, up to maxCommits at once and never two that touch the same block. It gives
// when a flush is to be tried again. b.mu is held.
func (b *Batcher) startCommits(ctx context.Context, now time.Time) (next time.Time) {
	for b.commits < maxCommits {
		group, again := b.formGroup(now)
		next = again
		if len(group) == 0 {
			break
		}
		b.commits++
		for _, f := range group {
			f.phase = phaseCommitting
			for _, id := range f.blocks {
				b.committing[id] = struct{}{}
			}
		}
		// Every flush paid for a commit of its own.
		b.commitTokens.spend(-float64(len(group) - 1))
		b.wg.Go(func() { b.commit(ctx, group) })
	}
	return next
}

// formGroup picks the flushes that go into one commit: in the order in which they were cut, those that are ready, whose
// chains' earlier flushes are done or in the group, and whose blocks no other commit touches. A flush that has to wait for
// its blocks keeps later ones from taking them.
func (b *Batcher) formGroup(now time.Time) (group []*flush, again time.Time) {
	clear(b.reserved)
	b.groups++
	batches := 0
	for _, f := range b.flushes {
		if f.phase != phaseReady || f.live == 0 && !f.frozen {
			continue
		}
		if f.retryAt.After(now) {
			again = earliest(again, f.retryAt)
			continue
		}
		if !f.frozen && b.unsettled >= maxUnsettled || !b.inTurn(f) {
			continue
		}
		if b.taken(f) || len(group) > 0 && (f.solo || f.frozen != group[0].frozen || len(group) >= maxGroupFlushes ||
			batches+len(f.order) > maxGroupBatches) {
			for _, id := range f.blocks {
				b.reserved[id] = struct{}{}
			}
			continue
		}
		f.group = b.groups
		group = append(group, f)
		batches += len(f.order)
		if f.solo {
			break
		}
	}
	return group, again
}

// inTurn says whether everything that must come before f is done or in the group that is being formed.
func (b *Batcher) inTurn(f *flush) bool {
	for _, d := range f.hard {
		if !d.done() {
			return false
		}
	}
	for _, d := range f.deps {
		if !d.done() && d.group != b.groups {
			return false
		}
	}
	return true
}

// taken says whether a block of f is in a commit in flight, or waited for by an earlier flush.
func (b *Batcher) taken(f *flush) bool {
	for _, id := range f.blocks {
		if _, ok := b.committing[id]; ok {
			return true
		}
		if _, ok := b.reserved[id]; ok {
			return true
		}
	}
	return false
}

// commit makes one attempt to commit a group.
func (b *Batcher) commit(ctx context.Context, group []*flush) {
	defer notify(b.wake)
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	started := time.Now()
	results, err := b.tryCommit(ctx, group)
	b.metrics.commit(group, err, time.Since(started))
	if err != nil {
		if failures := b.commitFailed(group, err); worthLogging(failures) && !errors.Is(err, context.Canceled) {
			b.log.Warn("flushes not committed, trying again", "flushes", len(group), "first", group[0].id, "attempt", failures,
				"error", err)
		}
		return
	}
	b.committed(group, results)
}

func (b *Batcher) tryCommit(ctx context.Context, group []*flush) ([]metadata.FlushResult, error) {
	var seen metadata.Millis
	messages := make([]*metadata.Flush, len(group))
	for i, f := range group {
		if f.seen == 0 {
			if seen == 0 {
				var err error
				if seen, err = b.store.Now(ctx); err != nil {
					return nil, fmt.Errorf("database time: %w", err)
				}
			}
			f.seen = seen
		}
		messages[i] = f.message()
	}
	results, err := b.store.Commit(ctx, messages)
	if err == nil && len(results) != len(group) {
		return nil, fmt.Errorf("%w: %d results for %d flushes", metadata.ErrUnknownOutcome, len(results), len(group))
	}
	return results, err
}

// commitFailed puts a group back. After an unknown outcome its flushes are frozen: they are submitted again as they are
// until the outcome is known, and nothing of their chains is committed before. Otherwise nothing was committed, and what
// has no waiter any more is left out of the next attempt. It gives how often the first has failed.
func (b *Batcher) commitFailed(group []*flush, err error) int {
	b.mu.Lock()
	defer b.unlock()
	b.leaveCommit(group)
	now := time.Now()
	for _, f := range group {
		f.phase = phaseReady
		f.attempts++
		f.retryAt = now.Add(backoff(f.attempts, commitBackoffBase, commitBackoffLim))
		// What made the group fail may concern one of it only.
		f.solo = true
		switch {
		case errors.Is(err, metadata.ErrUnknownOutcome):
			if !f.frozen {
				f.frozen = true
				b.unsettled++
			}
		case errors.Is(err, metadata.ErrCondemned) && len(group) > 1:
			f.retryAt = now
		case errors.Is(err, metadata.ErrCondemned):
			// A receipt would have come before the refusal: for certain nothing was committed, and nothing will be under
			// this key. Another one, from the same batches, under the same flush id.
			if f.frozen {
				f.frozen = false
				b.unsettled--
			}
			f.retryAt = now
			f.encoded = false
			if f.live > 0 {
				f.phase = phaseQueued
			}
		}
	}
	return group[0].attempts
}

func (b *Batcher) leaveCommit(group []*flush) {
	b.commits--
	for _, f := range group {
		for _, id := range f.blocks {
			delete(b.committing, id)
		}
	}
}

// committed tells the sink and the waiters of a commit.
func (b *Batcher) committed(group []*flush, results []metadata.FlushResult) {
	b.mu.Lock()
	for _, f := range group {
		f.phase, f.reading = phaseSettling, true
	}
	b.unlock()
	if b.sink != nil {
		for i, f := range group {
			b.tellSink(f, &results[i])
		}
	}
	b.mu.Lock()
	defer b.unlock()
	b.leaveCommit(group)
	now := time.Now()
	for i, f := range group {
		b.endReading(f)
		b.settle(f, &results[i], now)
	}
}

// tellSink announces the extents that have an accepted batch and whose bytes are all still there.
func (b *Batcher) tellSink(f *flush, r *metadata.FlushResult) {
	if r.Err != nil {
		return
	}
	n := 0
	for i := range f.extents {
		x := &f.extents[i]
		accepted, whole := false, true
		raw := make([][]byte, 0, x.to-x.from)
		for _, it := range f.order[x.from:x.to] {
			accepted = accepted || (n < len(r.Batches) && r.Batches[n].Code == metadata.CodeAccepted)
			whole = whole && !it.answered
			raw = append(raw, it.data)
			n++
		}
		if accepted && whole {
			b.sink.Stored(StoredExtent{
				Object: f.key, Flush: f.id, Position: x.position, RawLength: x.rawLength, Raw: raw,
			})
		}
	}
}

// settle gives every batch of a flush its own result. b.mu is held.
func (b *Batcher) settle(f *flush, r *metadata.FlushResult, now time.Time) {
	want := 0
	for i := range f.extents {
		want += f.extents[i].to - f.extents[i].from
	}
	if r.Err != nil || len(r.Batches) != want {
		b.refused(f, r, now)
		return
	}
	n := 0
	for i := range f.extents {
		for _, it := range f.order[f.extents[i].from:f.extents[i].to] {
			b.conclude(it, r.Batches[n], now)
			n++
		}
	}
	b.finish(f)
}

// refused ends a flush that the store would not decide.
func (b *Batcher) refused(f *flush, r *metadata.FlushResult, now time.Time) {
	b.log.Error("flush refused by the database", "flush", f.id, "results", len(r.Batches), "error", r.Err)
	err := ErrMaybePersisted
	if errors.Is(r.Err, metadata.ErrFlushTooOld) {
		err = ErrNotPersisted // there is no receipt, and there will be none
	}
	for _, it := range f.items {
		if !it.answered && it.flush == f {
			b.failChain(it, err, now)
		}
	}
	b.finish(f)
}

// conclude turns the commit's decision on a batch into its result. b.mu is held.
func (b *Batcher) conclude(it *item, r metadata.BatchResult, now time.Time) {
	c := it.chain
	fatal := func(err error) {
		b.resolved(it, false)
		b.answer(it, Result{Err: err, Base: -1, LogStart: r.LogStart})
	}
	switch r.Code {
	case metadata.CodeAccepted, metadata.CodeDuplicate:
		accepted := r.Code == metadata.CodeAccepted
		b.resolved(it, accepted)
		b.answer(it, Result{Base: r.Base, LogStart: r.LogStart, Duplicate: !accepted})
		if accepted && c.held > 0 {
			b.retryHeld(c, now)
		}
	case metadata.CodeNotYet:
		if !it.answered {
			b.hold(it, now)
		}
	case metadata.CodeStale:
		if !it.answered {
			b.failChain(it, ErrNotPersisted, now)
		}
	case metadata.CodeFenced:
		fatal(ErrFenced)
	case metadata.CodeUnknownPartition:
		fatal(ErrUnknownPartition)
	case metadata.CodeInvalidTxnState:
		fatal(ErrInvalidTxnState)
	case metadata.CodeOutOfOrder:
		fatal(ErrOutOfOrder)
	default:
		b.log.Error("the commit answered with an unknown code", "code", r.Code, "flush", it.flush.id)
		fatal(ErrMaybePersisted)
	}
}
