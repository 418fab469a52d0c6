// Package objstoretest is the acceptance suite that every objstore.Bucket passes: what an object store
// has to do for Skein, and how it has to fail.
package objstoretest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/skeinio/skein/objstore"
)

// Factory makes the buckets that the suite runs on. Each function is called once per test that needs
// it and cleans up through t. A nil function says that the store cannot get into that situation.
type Factory struct {
	// New makes an empty bucket that exists.
	New func(t *testing.T) objstore.Bucket
	// Missing makes a bucket that does not exist and that Create can make.
	Missing func(t *testing.T) objstore.Bucket
	// Forbidden opens an existing bucket with a credential that may not use it. The suite uses it from
	// the goroutine that called, so that a factory may tie the credential to its thread.
	Forbidden func(t *testing.T) objstore.Bucket
	// Full makes an existing bucket that has room for an object of FitsBytes but not for two of
	// FillsBytes.
	Full func(t *testing.T) objstore.Bucket
	// Unreachable opens a bucket whose server does not answer.
	Unreachable func(t *testing.T) objstore.Bucket
	// BigBytes is the size of the suite's big objects; 0 means 32 MiB.
	BigBytes int
}

// What a bucket made by Factory.Full has to hold and not to hold.
const (
	FitsBytes  = 64 << 10
	FillsBytes = 48 << 20
)

const defaultBigBytes = 32 << 20

// Run runs the suite.
func Run(t *testing.T, f Factory) {
	if f.BigBytes == 0 {
		f.BigBytes = defaultBigBytes
	}
	tests := []struct {
		name string
		run  func(*testing.T, Factory)
	}{
		{"Payloads", testPayloads},
		{"BigObject", testBigObject},
		{"Ranges", testRanges},
		{"ReadRange", testReadRange},
		{"MissingKey", testMissingKey},
		{"Overwrite", testOverwrite},
		{"IfNoneMatch", testIfNoneMatch},
		{"IfNoneMatchRace", testIfNoneMatchRace},
		{"ConcurrentPutsOfOneKey", testConcurrentPuts},
		{"OddKeys", testOddKeys},
		{"InvalidKeys", testInvalidKeys},
		{"CancelledBefore", testCancelledBefore},
		{"CancelledRead", testCancelledRead},
		{"CancelledPutLetsGoOfItsBody", testCancelledPut},
		{"List", testList},
		{"ListPages", testListPages},
		{"ListDates", testListDates},
		{"Delete", testDelete},
		{"MissingBucket", testMissingBucket},
		{"Forbidden", testForbidden},
		{"Full", testFull},
		{"Unreachable", testUnreachable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, f) })
	}
}

// random gives n bytes that compress badly and are the same for the same seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	data := make([]byte, n)
	if _, err := rand.NewChaCha8(key).Read(data); err != nil {
		panic(err) // documented never to fail
	}
	return data
}

func mustPut(t *testing.T, b objstore.Bucket, key string, data []byte) {
	t.Helper()
	if err := b.Put(t.Context(), key, objstore.Bytes(data), objstore.PutOptions{}); err != nil {
		t.Fatalf("put: %v", err)
	}
}

func mustGet(t *testing.T, b objstore.Bucket, key string) []byte {
	t.Helper()
	data, err := get(t.Context(), b, key, 0, -1)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	return data
}

func get(ctx context.Context, b objstore.Bucket, key string, offset, length int64) ([]byte, error) {
	r, err := b.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func wantObject(t *testing.T, b objstore.Bucket, key string, want []byte) {
	t.Helper()
	got := mustGet(t, b, key)
	if !bytes.Equal(got, want) {
		t.Fatalf("object %q: got %d bytes that are not the %d put", key, len(got), len(want))
	}
	info, err := b.Head(t.Context(), key)
	if err != nil {
		t.Fatalf("head: %v", err)
	}
	if info.Key != key || info.Size != int64(len(want)) || info.LastModified.IsZero() {
		t.Fatalf("head %q: got %+v, want %d bytes and a date", key, info, len(want))
	}
}

// wantError wants err to be exactly one of the package's sentinels, and to say what was tried on what.
func wantError(t *testing.T, what string, err, want error, op objstore.Op, key string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
		return
	}
	for _, other := range sentinels {
		if other != want && errors.Is(err, other) {
			t.Errorf("%s: error is %v and %v at once: %v", what, want, other, err)
		}
	}
	var oe *objstore.Error
	if !errors.As(err, &oe) || oe.Op != op || oe.Key != key {
		t.Errorf("%s: error %v does not name operation %s and key %q", what, err, op, key)
	}
	if retriable := want == objstore.ErrUnavailable; objstore.Retriable(err) != retriable {
		t.Errorf("%s: Retriable(%v) is %v", what, err, !retriable)
	}
}

var sentinels = []error{
	objstore.ErrNotFound, objstore.ErrNoBucket, objstore.ErrAccess, objstore.ErrExists, objstore.ErrFull,
	objstore.ErrUnavailable, objstore.ErrRange, objstore.ErrShort, objstore.ErrInvalidKey,
	objstore.ErrChecksum, objstore.ErrRefused, context.Canceled, context.DeadlineExceeded,
}

// keys lists a bucket.
func keys(t *testing.T, b objstore.Bucket, prefix, startAfter string) []string {
	t.Helper()
	found := []string{}
	err := b.List(t.Context(), prefix, startAfter, func(info objstore.Info) error {
		found = append(found, info.Key)
		return nil
	})
	if err != nil {
		t.Fatalf("list %q after %q: %v", prefix, startAfter, err)
	}
	return found
}
