package objstore

import (
	"context"
	"io"
	"strings"
)

// WithPrefix gives the part of a bucket below prefix as a bucket of its own: keys neither have the
// prefix nor can leave it. Closing it closes b.
func WithPrefix(b Bucket, prefix string) Bucket {
	prefix = strings.Trim(prefix, "/")
	if prefix == "" {
		return b
	}
	return &prefixed{bucket: b, prefix: prefix + "/"}
}

type prefixed struct {
	bucket Bucket
	prefix string // ends in a slash
}

var _ Bucket = (*prefixed)(nil)

// key checks first: a key that is invalid must not become valid (or another's) behind the prefix.
func (p *prefixed) key(op Op, key string) (string, error) {
	if err := checkKey(op, key); err != nil {
		return "", err
	}
	return p.prefix + key, nil
}

func (p *prefixed) Put(ctx context.Context, key string, body Payload, opts PutOptions) error {
	full, err := p.key(OpPut, key)
	if err != nil {
		return err
	}
	return p.rename(p.bucket.Put(ctx, full, body, opts))
}

func (p *prefixed) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckGet(key, offset, length); err != nil {
		return nil, err
	}
	r, err := p.bucket.Get(ctx, p.prefix+key, offset, length)
	if err != nil {
		return nil, p.rename(err)
	}
	return &prefixedReader{ReadCloser: r, prefixed: p}, nil
}

// prefixedReader names the key in a read's error as the caller does.
type prefixedReader struct {
	io.ReadCloser
	prefixed *prefixed
}

func (r *prefixedReader) Read(dst []byte) (int, error) {
	n, err := r.ReadCloser.Read(dst)
	if err != nil && err != io.EOF {
		err = r.prefixed.rename(err)
	}
	return n, err
}

func (p *prefixed) Head(ctx context.Context, key string) (Info, error) {
	full, err := p.key(OpHead, key)
	if err != nil {
		return Info{}, err
	}
	info, err := p.bucket.Head(ctx, full)
	if err != nil {
		return Info{}, p.rename(err)
	}
	info.Key = key
	return info, nil
}

func (p *prefixed) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	after := ""
	if startAfter != "" {
		after = p.prefix + startAfter
	}
	var stopped error // fn's own error is not the bucket's, whatever it is
	err := p.bucket.List(ctx, p.prefix+prefix, after, func(info Info) error {
		info.Key = strings.TrimPrefix(info.Key, p.prefix)
		stopped = fn(info)
		return stopped
	})
	if stopped != nil {
		return stopped
	}
	return p.rename(err)
}

func (p *prefixed) Delete(ctx context.Context, keys ...string) error {
	full := make([]string, len(keys))
	for i, key := range keys {
		var err error
		if full[i], err = p.key(OpDelete, key); err != nil {
			return err
		}
	}
	return p.rename(p.bucket.Delete(ctx, full...))
}

func (p *prefixed) Check(ctx context.Context) error  { return p.bucket.Check(ctx) }
func (p *prefixed) Create(ctx context.Context) error { return p.bucket.Create(ctx) }
func (p *prefixed) Close() error                     { return p.bucket.Close() }

// rename takes the prefix off the key that an error names: it is what the caller knows it by.
func (p *prefixed) rename(err error) error {
	e, ok := err.(*Error)
	if !ok {
		return err
	}
	renamed := *e
	renamed.Key = strings.TrimPrefix(e.Key, p.prefix)
	if de, ok := e.Err.(*DeleteError); ok {
		inner := &DeleteError{Failed: make([]KeyError, len(de.Failed))}
		for i, f := range de.Failed {
			inner.Failed[i] = KeyError{Key: strings.TrimPrefix(f.Key, p.prefix), Err: p.rename(f.Err)}
		}
		renamed.Err = inner
	}
	return &renamed
}
