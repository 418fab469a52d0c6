package objstoretest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/skeinio/skein/objstore"
)

// refusedBytes is more than the kernel buffers of a connection hold.
const refusedBytes = 16 << 20

// wantEveryOperation wants all operations on objects to fail with one sentinel.
func wantEveryOperation(t *testing.T, b objstore.Bucket, want error) {
	t.Helper()
	err := b.Put(t.Context(), "dir/object", objstore.Bytes([]byte("x")), objstore.PutOptions{})
	wantError(t, "put", err, want, objstore.OpPut, "dir/object")
	// A server may answer before it has read such a body, and hang up.
	err = b.Put(t.Context(), "dir/object", objstore.Bytes(random(9, refusedBytes)), objstore.PutOptions{})
	wantError(t, "put of a large object", err, want, objstore.OpPut, "dir/object")
	_, err = b.Get(t.Context(), "dir/object", 0, 1)
	wantError(t, "get", err, want, objstore.OpGet, "dir/object")
	err = b.List(t.Context(), "dir/", "", func(objstore.Info) error { return nil })
	wantError(t, "list", err, want, objstore.OpList, "dir/")
	err = b.Delete(t.Context(), "dir/object")
	wantDeleteError(t, err, want, "dir/object")
	_, err = b.Head(t.Context(), "dir/object")
	wantError(t, "head", err, want, objstore.OpHead, "dir/object")
	wantError(t, "check", b.Check(t.Context()), want, objstore.OpCheck, "")
}

// wantDeleteError accepts that a store answers for the whole request or for each key.
func wantDeleteError(t *testing.T, err, want error, key string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("delete: got error %v, want %v", err, want)
	}
	var de *objstore.DeleteError
	if !errors.As(err, &de) || len(de.Failed) != 1 || de.Failed[0].Key != key {
		t.Errorf("delete: error does not name the key that stayed: %v", err)
	}
}

func testMissingBucket(t *testing.T, f Factory) {
	if f.Missing == nil {
		t.Log("this store has no missing buckets")
		return
	}
	b := f.Missing(t)
	wantEveryOperation(t, b, objstore.ErrNoBucket)
	for range 2 {
		if err := b.Create(t.Context()); err != nil {
			t.Fatalf("create: %v", err)
		}
	}
	if err := b.Check(t.Context()); err != nil {
		t.Fatalf("check after create: %v", err)
	}
	mustPut(t, b, "dir/object", []byte("x"))
	if err := b.Create(t.Context()); err != nil {
		t.Fatalf("create of a bucket in use: %v", err)
	}
	wantObject(t, b, "dir/object", []byte("x"))
}

func testForbidden(t *testing.T, f Factory) {
	if f.Forbidden == nil {
		t.Log("this store has no credentials")
		return
	}
	wantEveryOperation(t, f.Forbidden(t), objstore.ErrAccess)
}

func testFull(t *testing.T, f Factory) {
	if f.Full == nil {
		t.Log("this store does not get full")
		return
	}
	b := f.Full(t)
	data := random(7, FitsBytes)
	mustPut(t, b, "fits", data)
	filler := random(8, FillsBytes)
	var err error
	for i := 0; i < 2 && err == nil; i++ {
		err = b.Put(t.Context(), fmt.Sprintf("fills-%d", i), objstore.Bytes(filler), objstore.PutOptions{})
	}
	wantFull(t, err)
	// What failed must not be half there, and what was there must still be.
	err = b.List(t.Context(), "", "", func(info objstore.Info) error {
		if info.Size != FitsBytes && info.Size != FillsBytes {
			t.Errorf("listed %+v, which is neither of the objects put", info)
		}
		return nil
	})
	if err != nil {
		t.Errorf("list: %v", err)
	}
	wantObject(t, b, "fits", data)
	if err := b.Delete(t.Context(), "fills-0"); err != nil {
		t.Errorf("delete in a full bucket: %v", err)
	}
}

func wantFull(t *testing.T, err error) {
	t.Helper()
	var oe *objstore.Error
	if !errors.As(err, &oe) {
		t.Fatalf("filling the bucket: got error %v, want %v", err, objstore.ErrFull)
	}
	wantError(t, "filling the bucket", err, objstore.ErrFull, objstore.OpPut, oe.Key)
}

func testUnreachable(t *testing.T, f Factory) {
	if f.Unreachable == nil {
		t.Log("this store has no server")
		return
	}
	wantEveryOperation(t, f.Unreachable(t), objstore.ErrUnavailable)
}
