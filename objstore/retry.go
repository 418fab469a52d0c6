package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// RetryPolicy says how RetryReads goes about it.
type RetryPolicy struct {
	Attempts int           // of one request, the first included; at least 1
	Backoff  time.Duration // before the second; doubles with each, jittered by half
	Max      time.Duration // the longest wait
}

// DefaultRetryPolicy rides out short bursts of failures (under two seconds) and no more: who reads has
// a client waiting with a deadline.
func DefaultRetryPolicy() RetryPolicy {
	return RetryPolicy{Attempts: 5, Backoff: 50 * time.Millisecond, Max: time.Second}
}

// RetryReads gives b with Get, Head, List and Delete tried again after errors that are Retriable, until
// the policy or the context ends it. A Get whose bytes break off goes on where it stopped; a List goes
// on after the last key it gave. A Put is passed through: when and under which key to try it again, or
// to hedge, is decided by who knows the flush.
//
// A Get that goes on after a break could see another version of an object; Skein's objects are never
// overwritten.
func RetryReads(b Bucket, p RetryPolicy) Bucket { return &retrying{Bucket: b, policy: p} }

type retrying struct {
	Bucket // Put, Check, Create and Close as they are
	policy RetryPolicy
}

var _ Bucket = (*retrying)(nil)

// do calls fn until it succeeds, fails for good, or the policy ends. The error is the last one.
func (b *retrying) do(ctx context.Context, fn func() error) error {
	wait := b.policy.Backoff
	for attempt := 1; ; attempt++ {
		err := fn()
		if err == nil || attempt >= b.policy.Attempts || !Retriable(err) {
			return err
		}
		jittered := wait
		if half := int64(wait / 2); half > 0 {
			jittered = wait - time.Duration(rand.Int64N(half))
		}
		timer := time.NewTimer(jittered)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ended(ctx, err)
		}
		wait = min(2*wait, b.policy.Max)
	}
}

// ended is the error of a call whose context ended while it waited to try again after err.
func ended(ctx context.Context, err error) error {
	out := &Error{Err: fmt.Errorf("%w while waiting to try again after: %v", ctx.Err(), err)}
	var e *Error
	if errors.As(err, &e) {
		out.Op, out.Key, out.Offset, out.Length, out.Ranged = e.Op, e.Key, e.Offset, e.Length, e.Ranged
	}
	return out
}

func (b *retrying) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r := &retryingReader{b: b, ctx: ctx, key: key, offset: offset, length: length}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// retryingReader opens the rest of the range again when its bytes break off.
type retryingReader struct {
	b              *retrying
	ctx            context.Context // the Get call's; a reader lives for that one call
	key            string
	offset, length int64 // what is left to read
	body           io.ReadCloser
	breaks         int // without a byte in between
}

func (r *retryingReader) open() error {
	return r.b.do(r.ctx, func() error {
		body, err := r.b.Bucket.Get(r.ctx, r.key, r.offset, r.length)
		if err == nil {
			r.body = body
		}
		return err
	})
}

func (r *retryingReader) Read(dst []byte) (int, error) {
	for {
		n, err := r.body.Read(dst)
		r.offset += int64(n)
		if r.length > 0 {
			r.length -= int64(n)
		}
		if n > 0 {
			r.breaks = 0
			if err != nil && Retriable(err) {
				err = nil // the next Read will see it again
			}
			return n, err
		}
		if err == nil || !Retriable(err) {
			return 0, err
		}
		if r.breaks++; r.breaks >= r.b.policy.Attempts {
			return 0, err
		}
		if r.length == 0 { // all was read before it broke
			return 0, io.EOF
		}
		r.body.Close() // broken; its error says nothing new
		r.body = failedBody{err}
		if reopened := r.open(); reopened != nil {
			if errors.Is(reopened, ErrRange) && r.length < 0 {
				return 0, io.EOF // it broke exactly at the object's end
			}
			return 0, reopened
		}
	}
}

// failedBody stands for a body that was closed and not opened again.
type failedBody struct{ err error }

func (b failedBody) Read([]byte) (int, error) { return 0, b.err }
func (failedBody) Close() error               { return nil }

func (r *retryingReader) Close() error { return r.body.Close() }

func (b *retrying) Head(ctx context.Context, key string) (info Info, err error) {
	err = b.do(ctx, func() (err error) {
		info, err = b.Bucket.Head(ctx, key)
		return err
	})
	return info, err
}

func (b *retrying) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	var stopped error // fn's own error, which is none of the bucket's
	err := b.do(ctx, func() error {
		err := b.Bucket.List(ctx, prefix, startAfter, func(info Info) error {
			startAfter = info.Key
			stopped = fn(info)
			return stopped
		})
		if stopped != nil {
			return nil
		}
		return err
	})
	if stopped != nil {
		return stopped
	}
	return err
}

func (b *retrying) Delete(ctx context.Context, keys ...string) error {
	return b.do(ctx, func() error {
		err := b.Bucket.Delete(ctx, keys...)
		var de *DeleteError
		if errors.As(err, &de) {
			keys = keys[:0:0] // only those that are left
			for _, failed := range de.Failed {
				keys = append(keys, failed.Key)
			}
		}
		return err
	})
}
