package objstore

import (
	"context"
	"io"
	"sync"
	"time"
)

// Fault is something that goes wrong with calls of a bucket. Its parts happen in the order in which
// they stand here.
type Fault struct {
	// Op is which calls it is about; empty for all. Match narrows it to keys (a List's prefix, a
	// Delete's first key); nil for all.
	Op    Op
	Match func(key string) bool
	// Skip is how many matching calls pass first; Times how many it then strikes, 0 for all.
	Skip, Times int

	// Entered gets the key of each call that is struck; unbuffered it also holds the call up until
	// somebody takes the key. Nil for none.
	Entered chan<- string
	// Block holds calls until it is closed or their context ends.
	Block <-chan struct{}
	// Delay holds each call that long, or until its context ends.
	Delay time.Duration
	// Before makes the call fail with this kind (a sentinel of this package) without reaching the bucket.
	Before error
	// After lets the bucket do what was asked, and tells the caller that it failed with this kind.
	After error
	// Corrupt changes bytes that a Get reads; offset is their position in the object.
	Corrupt func(data []byte, offset int64)
	// CutAfter ends a Get's bytes with ErrUnavailable after that many; 0 for never.
	CutAfter int64
}

// Faults is a bucket whose calls go wrong as told: the seam through which tests see what the code
// around a bucket does then. It is safe for concurrent use.
type Faults struct {
	bucket Bucket

	mu     sync.Mutex
	faults []*activeFault
	calls  map[Op]int
}

type activeFault struct {
	Fault
	seen int // matching calls so far
}

var _ Bucket = (*Faults)(nil)

// NewFaults wraps b; nothing goes wrong yet.
func NewFaults(b Bucket) *Faults { return &Faults{bucket: b, calls: make(map[Op]int)} }

// Inject adds a fault; the function it gives removes it again. The first fault injected that matches
// a call strikes it, the others do not see that call.
func (f *Faults) Inject(fault Fault) (remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	active := &activeFault{Fault: fault}
	f.faults = append(f.faults, active)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for i, other := range f.faults {
			if other == active {
				f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
				return
			}
		}
	}
}

// Calls is how many calls of an operation there were, whether something went wrong or not.
func (f *Faults) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// strike counts a call and finds the fault that is about it; nil for none.
func (f *Faults) strike(op Op, key string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	for _, fault := range f.faults {
		if (fault.Op != "" && fault.Op != op) || (fault.Match != nil && !fault.Match(key)) {
			continue
		}
		fault.seen++
		if fault.seen > fault.Skip && (fault.Times == 0 || fault.seen <= fault.Skip+fault.Times) {
			return &fault.Fault
		}
	}
	return nil
}

// before does what happens before the bucket is reached.
func (f *Faults) before(ctx context.Context, op Op, key string) (*Fault, error) {
	fault := f.strike(op, key)
	if fault == nil {
		return &Fault{}, nil
	}
	if fault.Entered != nil {
		select {
		case fault.Entered <- key:
		case <-ctx.Done():
			return fault, NewError(ctx, op, key, nil, nil)
		}
	}
	if fault.Block != nil {
		select {
		case <-fault.Block:
		case <-ctx.Done():
			return fault, NewError(ctx, op, key, nil, nil)
		}
	}
	if fault.Delay > 0 {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fault, NewError(ctx, op, key, nil, nil)
		}
	}
	if fault.Before != nil {
		return fault, &Error{Op: op, Key: key, Kind: fault.Before, Err: errInjected}
	}
	return fault, nil
}

// errInjected is the cause of an error that a Fault asked for.
var errInjected = injectedError{}

type injectedError struct{}

func (injectedError) Error() string { return "injected by a test" }

// after turns success into the error that the fault asks for.
func (fault *Fault) after(op Op, key string, err error) error {
	if err == nil && fault.After != nil {
		return &Error{Op: op, Key: key, Kind: fault.After, Err: errInjected}
	}
	return err
}

// Put implements Bucket.
func (f *Faults) Put(ctx context.Context, key string, body Payload, opts PutOptions) error {
	fault, err := f.before(ctx, OpPut, key)
	if err != nil {
		return err
	}
	return fault.after(OpPut, key, f.bucket.Put(ctx, key, body, opts))
}

// Get implements Bucket.
func (f *Faults) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fault, err := f.before(ctx, OpGet, key)
	if err != nil {
		return nil, err
	}
	r, err := f.bucket.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	if fault.After != nil {
		return nil, fault.after(OpGet, key, r.Close())
	}
	if fault.Corrupt == nil && fault.CutAfter == 0 {
		return r, nil
	}
	return &faultyReader{ReadCloser: r, fault: fault, key: key, offset: offset, length: length}, nil
}

type faultyReader struct {
	io.ReadCloser
	fault          *Fault
	key            string
	offset, length int64
	read           int64
}

func (r *faultyReader) Read(dst []byte) (int, error) {
	if cut := r.fault.CutAfter; cut > 0 {
		if r.read >= cut {
			return 0, rangeError(OpGet, r.key, r.offset, r.length, ErrUnavailable, errInjected)
		}
		dst = dst[:min(int64(len(dst)), cut-r.read)]
	}
	n, err := r.ReadCloser.Read(dst)
	if r.fault.Corrupt != nil && n > 0 {
		r.fault.Corrupt(dst[:n], r.offset+r.read)
	}
	r.read += int64(n)
	return n, err
}

// Head implements Bucket.
func (f *Faults) Head(ctx context.Context, key string) (Info, error) {
	fault, err := f.before(ctx, OpHead, key)
	if err != nil {
		return Info{}, err
	}
	info, err := f.bucket.Head(ctx, key)
	return info, fault.after(OpHead, key, err)
}

// List implements Bucket.
func (f *Faults) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	fault, err := f.before(ctx, OpList, prefix)
	if err != nil {
		return err
	}
	return fault.after(OpList, prefix, f.bucket.List(ctx, prefix, startAfter, fn))
}

// Delete implements Bucket.
func (f *Faults) Delete(ctx context.Context, keys ...string) error {
	first := ""
	if len(keys) > 0 {
		first = keys[0]
	}
	fault, err := f.before(ctx, OpDelete, first)
	if err == nil {
		err = fault.after(OpDelete, first, f.bucket.Delete(ctx, keys...))
	}
	if e, ok := err.(*Error); ok && e.Err == error(errInjected) {
		failed := make([]KeyError, len(keys))
		for i, key := range keys {
			failed[i] = KeyError{Key: key, Err: &Error{Op: OpDelete, Key: key, Kind: e.Kind, Err: errInjected}}
		}
		return DeleteFailure(failed)
	}
	return err
}

// Check implements Bucket.
func (f *Faults) Check(ctx context.Context) error {
	fault, err := f.before(ctx, OpCheck, "")
	if err != nil {
		return err
	}
	return fault.after(OpCheck, "", f.bucket.Check(ctx))
}

// Create implements Bucket.
func (f *Faults) Create(ctx context.Context) error {
	fault, err := f.before(ctx, OpCreate, "")
	if err != nil {
		return err
	}
	return fault.after(OpCreate, "", f.bucket.Create(ctx))
}

// Close implements Bucket.
func (f *Faults) Close() error { return f.bucket.Close() }
