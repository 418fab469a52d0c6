// Package objstore is Skein's view of an object store: the Bucket interface, the payload vector that
// is uploaded without being copied, the errors that every vendor's errors are mapped to, and the two
// buckets that need no server: memory and a local folder.
//
// The vendors live one folder below (s3, minio); package open picks one from a URL; objstoretest is
// the acceptance suite that every implementation passes. Decorators (Metrics, Faults, WithPrefix)
// wrap a Bucket and are Buckets themselves.
//
// The package knows nothing of Kafka, of segments or of the database, and it never retries a Put:
// when to retry, when to hedge and when to give up is the caller's decision.
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Bucket is one bucket of an object store (or a prefix of one). Implementations are safe for
// concurrent use.
//
// Every error of a method is an *Error that unwraps to one of the package's sentinels, or to
// context.Canceled or context.DeadlineExceeded when ctx ended first.
type Bucket interface {
	// Put stores body under key, replacing what was there unless opts say otherwise. When Put returns
	// nil the object is durable; when it returns an error the object may or may not exist, except for
	// ErrExists. In both cases nothing reads body's slices any more, so their memory can be reused.
	Put(ctx context.Context, key string, body Payload, opts PutOptions) error

	// Get opens length bytes of the object from offset on; length < 0 means to the end. The reader ends
	// early (io.EOF) where the object does: use ReadRange to have that as an error. An offset at or past
	// the object's end, or a length of zero, is ErrRange; only Get(ctx, key, 0, -1) opens an empty object.
	// Cancelling ctx aborts a read midway. The reader must be closed.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Head tells size and date of an object.
	Head(ctx context.Context, key string) (Info, error)

	// List calls fn for every object whose key starts with prefix and is greater than startAfter, in
	// byte order of the keys, fetching pages of up to ListPageKeys as it goes. Objects put or deleted
	// meanwhile may or may not be seen. An error of fn ends the listing and is returned as it is.
	List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error

	// Delete removes objects, in batches of up to DeleteBatchKeys. A missing key is not an error. When
	// some keys could not be removed the error unwraps to a *DeleteError that names them.
	Delete(ctx context.Context, keys ...string) error

	// Check tells whether the bucket can be used: nil, ErrNoBucket, ErrAccess or ErrUnavailable.
	Check(ctx context.Context) error

	// Create makes the bucket when it is missing.
	Create(ctx context.Context) error

	// Close releases connections and files. The bucket must not be used afterwards.
	Close() error
}

// ListPageKeys is how many keys one LIST request returns at most, and DeleteBatchKeys how many one
// DELETE request removes at most. Both are S3's own limits, and the unit in which it bills.
const (
	ListPageKeys    = 1000
	DeleteBatchKeys = 1000
)

// PutOptions are the conditions of a Put.
type PutOptions struct {
	// IfNoneMatch makes Put fail with ErrExists when the key exists already.
	IfNoneMatch bool
}

// Info describes an object.
type Info struct {
	Key  string
	Size int64 // bytes
	// LastModified is when the object was put, by the bucket's own clock (never by this process's,
	// unless the bucket is in this process). S3 rounds it to seconds.
	LastModified time.Time
}

// ReadRange reads exactly n bytes of the object from offset on into dst[:n]. It fails with ErrShort
// when the object ends before that, and with ErrRange when it ends at or before offset.
func ReadRange(ctx context.Context, b Bucket, key string, offset int64, n int, dst []byte) error {
	if n < 0 || n > len(dst) {
		return rangeError(OpGet, key, offset, int64(n), ErrRange,
			fmt.Errorf("%d bytes do not fit a buffer of %d", n, len(dst)))
	}
	r, err := b.Get(ctx, key, offset, int64(n))
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.ReadFull(r, dst[:n])
	if err == nil {
		return nil
	}
	// A reader's own failure is an *Error already; what io.ReadFull makes of an early end is not.
	var oe *Error
	if !errors.As(err, &oe) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return rangeError(OpGet, key, offset, int64(n), ErrShort, fmt.Errorf("got %d bytes", got))
	}
	return err
}

// ReadAll reads a whole object of at most maxBytes; a larger one is ErrRange.
func ReadAll(ctx context.Context, b Bucket, key string, maxBytes int64) ([]byte, error) {
	r, err := b.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxBytes {
		return nil, rangeError(OpGet, key, 0, -1, ErrRange, fmt.Errorf("object is larger than %d bytes", maxBytes))
	}
	return data, nil
}
