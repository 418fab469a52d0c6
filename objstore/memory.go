package objstore

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a bucket in this process's memory, for tests and for trying things out: nothing of it
// survives the process, which is why no command uses it unless told to (mem:).
type Memory struct {
	mu      sync.RWMutex
	objects map[string]memoryObject
}

type memoryObject struct {
	data []byte // never changed once stored
	at   time.Time
}

var _ Bucket = (*Memory)(nil)

// NewMemory makes an empty bucket.
func NewMemory() *Memory { return &Memory{objects: make(map[string]memoryObject)} }

// Put implements Bucket. It copies body: the caller's memory is the caller's again when it returns.
func (m *Memory) Put(ctx context.Context, key string, body Payload, opts PutOptions) error {
	if err := checkKey(OpPut, key); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return NewError(ctx, OpPut, key, nil, nil)
	}
	data := slices.Concat(body...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken && opts.IfNoneMatch {
		return &Error{Op: OpPut, Key: key, Kind: ErrExists}
	}
	m.objects[key] = memoryObject{data: data, at: time.Now()}
	return nil
}

// Get implements Bucket.
func (m *Memory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckGet(key, offset, length); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, NewRangeError(ctx, key, offset, length, nil, nil)
	}
	m.mu.RLock()
	o, ok := m.objects[key]
	m.mu.RUnlock()
	if !ok {
		return nil, rangeError(OpGet, key, offset, length, ErrNotFound, nil)
	}
	size := int64(len(o.data))
	if !rangeWithin(offset, length, size) {
		return nil, rangeError(OpGet, key, offset, length, ErrRange, nil)
	}
	end := size
	if length >= 0 && length < size-offset {
		end = offset + length
	}
	return &contextReader{ctx: ctx, r: bytes.NewReader(o.data[offset:end]), key: key, offset: offset, length: length}, nil
}

// rangeWithin tells whether a range starts inside an object: the whole of an empty object does.
func rangeWithin(offset, length, size int64) bool {
	return offset < size || (offset == 0 && length < 0)
}

// Head implements Bucket.
func (m *Memory) Head(ctx context.Context, key string) (Info, error) {
	if err := checkKey(OpHead, key); err != nil {
		return Info{}, err
	}
	if ctx.Err() != nil {
		return Info{}, NewError(ctx, OpHead, key, nil, nil)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return Info{}, &Error{Op: OpHead, Key: key, Kind: ErrNotFound}
	}
	return Info{Key: key, Size: int64(len(o.data)), LastModified: o.at}, nil
}

// List implements Bucket.
func (m *Memory) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	m.mu.RLock()
	var found []Info
	for key, o := range m.objects {
		if strings.HasPrefix(key, prefix) && key > startAfter {
			found = append(found, Info{Key: key, Size: int64(len(o.data)), LastModified: o.at})
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
	for _, info := range found {
		if ctx.Err() != nil {
			return NewError(ctx, OpList, prefix, nil, nil)
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements Bucket.
func (m *Memory) Delete(ctx context.Context, keys ...string) error {
	if ctx.Err() != nil {
		return NewError(ctx, OpDelete, "", nil, nil)
	}
	for _, key := range keys {
		if err := checkKey(OpDelete, key); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		delete(m.objects, key)
	}
	return nil
}

// Check implements Bucket: a memory bucket is always there.
func (m *Memory) Check(context.Context) error { return nil }

// Create implements Bucket.
func (m *Memory) Create(context.Context) error { return nil }

// Close implements Bucket. The objects stay, so that a test can look at what was written.
func (m *Memory) Close() error { return nil }

// contextReader makes a reader of local bytes end with its context, as a network's does.
type contextReader struct {
	ctx            context.Context // a reader lives for one call; this is that call's context
	r              io.Reader
	closer         io.Closer // may be nil
	key            string
	offset, length int64
	fail           func(error) error // maps r's errors to a sentinel; nil when r has none
}

func (c *contextReader) Read(dst []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, NewRangeError(c.ctx, c.key, c.offset, c.length, nil, nil)
	}
	n, err := c.r.Read(dst)
	if err != nil && err != io.EOF && c.fail != nil {
		err = NewRangeError(c.ctx, c.key, c.offset, c.length, c.fail(err), err)
	}
	return n, err
}

func (c *contextReader) Close() error {
	if c.closer == nil {
		return nil
	}
	return c.closer.Close()
}
