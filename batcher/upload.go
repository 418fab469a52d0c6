package batcher

import (
	"context"
	"math/rand/v2"
	"time"
)

// startUploads starts the encoding and uploading of queued flushes, as far as there are slots. b.mu is held.
func (b *Batcher) startUploads(ctx context.Context) {
	for _, f := range b.flushes {
		if f.phase != phaseQueued || (f.kind == KindPut && b.uploading >= b.cfg.Uploads) {
			continue
		}
		f.phase = phaseUploading
		if f.kind == KindPut {
			b.uploading++
		}
		b.wg.Go(func() { b.upload(ctx, f) })
	}
}

// upload encodes a flush and puts it into the bucket, again and again until that succeeds or nobody waits any more.
func (b *Batcher) upload(ctx context.Context, f *flush) {
	defer notify(b.wake)
	for attempt := 1; ; attempt++ {
		putCtx, cancel := context.WithCancel(ctx)
		live, ok := b.beginUpload(f, cancel, attempt)
		if !ok {
			cancel()
			return
		}
		var failed error
		if live != nil {
			failed = b.encode(f, live)
		}
		if failed != nil {
			cancel()
			b.refuse(f, failed)
			return
		}
		started := time.Now()
		err := b.put(putCtx, f)
		cancel()
		done, again := b.endUpload(ctx, f, err, attempt, time.Since(started))
		if done {
			return
		}
		if !again && !sleep(ctx, backoff(attempt, putBackoffBase, putBackoffLimit)) {
			return
		}
	}
}

func (b *Batcher) put(ctx context.Context, f *flush) error {
	if f.kind == KindInline {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout+time.Duration(f.size)*(time.Second/slowestPut))
	defer cancel()
	return b.putObject(ctx, f)
}

// beginUpload pins the flush's batches. It gives those to encode, or nil when what was encoded before is still right; ok is
// false when nobody waits any more.
func (b *Batcher) beginUpload(f *flush, cancel context.CancelFunc, attempt int) (live []*item, ok bool) {
	b.mu.Lock()
	defer b.unlock()
	if f.live == 0 {
		b.leaveUpload(f)
		f.payload = nil
		return nil, false
	}
	if attempt > 1 && f.kind == KindPut {
		b.puts.spend(1)
	}
	f.reading, f.cancel = true, cancel
	if f.encoded && !f.dirty {
		return nil, true
	}
	live = make([]*item, 0, f.live)
	for _, it := range f.items {
		if !it.answered {
			live = append(live, it)
		}
	}
	f.dirty, f.encoded = false, true
	return live, true
}

// leaveUpload gives the slot back; tidy and the commit queue take over. b.mu is held.
func (b *Batcher) leaveUpload(f *flush) {
	f.phase = phaseReady
	if f.kind == KindPut {
		b.uploading--
	}
}

// endUpload unpins the batches. It says whether the flush has left the upload, and if not, whether to go on at once, since it
// was only interrupted to leave out what was answered.
func (b *Batcher) endUpload(ctx context.Context, f *flush, err error, attempt int, took time.Duration) (done, again bool) {
	b.mu.Lock()
	defer b.unlock()
	interrupted := f.dirty
	b.endReading(f)
	if f.kind == KindPut {
		b.metrics.put(err, took)
	}
	if err == nil {
		if f.kind == KindPut {
			f.payload = nil // compressed bytes are not needed any more
		}
		b.leaveUpload(f)
		return true, false
	}
	if !interrupted && ctx.Err() == nil && worthLogging(attempt) {
		b.log.Warn("segment not uploaded, trying again", "flush", f.id, "key", f.key, "bytes", f.size, "attempt", attempt,
			"error", err)
	}
	return false, interrupted && ctx.Err() == nil
}

// endReading releases what was answered meanwhile. b.mu is held.
func (b *Batcher) endReading(f *flush) {
	f.reading, f.cancel = false, nil
	for _, it := range f.deferred {
		b.release(it)
	}
	f.deferred = nil
	f.letGo()
}

// refuse fails a flush that cannot be encoded. Batches are checked by Submit, so this is a fault of this program.
func (b *Batcher) refuse(f *flush, err error) {
	b.log.Error("flush refused", "flush", f.id, "error", err)
	b.mu.Lock()
	defer b.unlock()
	b.endReading(f)
	now := time.Now()
	for _, it := range f.items {
		if !it.answered {
			b.failChain(it, ErrNotPersisted, now)
		}
	}
	b.leaveUpload(f)
}

// backoff is how long to wait after so many failures in a row: doubling, with a quarter of jitter.
func backoff(failures int, base, limit time.Duration) time.Duration {
	d := limit
	if failures < 16 {
		d = min(limit, base<<(failures-1))
	}
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

// worthLogging thins out what an outage would repeat: the first, second, fourth, eighth … failure.
func worthLogging(failures int) bool { return failures&(failures-1) == 0 }

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
