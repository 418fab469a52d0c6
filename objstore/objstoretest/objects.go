package objstoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/skeinio/skein/objstore"
)

func testPayloads(t *testing.T, f Factory) {
	b := f.New(t)
	data := random(1, 300_000)
	payloads := map[string]objstore.Payload{
		"nil":          nil,
		"empty":        {{}},
		"empty-slices": {nil, {}, data[:5], {}, nil, data[5:7], {}},
		"one-byte":     {data[:1]},
		"one-slice":    {data},
		"small-slices": chop(data, 100),
		"mixed-slices": append(chop(data[:1000], 7), data[1000:200_000], data[200_000:200_001], data[200_001:]),
	}
	for name, payload := range payloads {
		if err := b.Put(t.Context(), name, payload, objstore.PutOptions{}); err != nil {
			t.Errorf("put %s: %v", name, err)
			continue
		}
		wantObject(t, b, name, bytes.Join(payload, nil))
	}
}

func chop(data []byte, n int) objstore.Payload {
	var p objstore.Payload
	for len(data) > n {
		p, data = append(p, data[:n]), data[n:]
	}
	return append(p, data)
}

func testBigObject(t *testing.T, f Factory) {
	b := f.New(t)
	data := random(2, f.BigBytes)
	if err := b.Put(t.Context(), "big", chop(data, 1<<20-1), objstore.PutOptions{}); err != nil {
		t.Fatalf("put: %v", err)
	}
	wantObject(t, b, "big", data)
	part := make([]byte, 1000)
	at := int64(len(data) - len(part))
	if err := objstore.ReadRange(t.Context(), b, "big", at, len(part), part); err != nil {
		t.Fatalf("read range: %v", err)
	}
	if !bytes.Equal(part, data[at:]) {
		t.Fatal("the last bytes are not the ones put")
	}
}

func testRanges(t *testing.T, f Factory) {
	b := f.New(t)
	data := random(3, 1000)
	mustPut(t, b, "object", data)
	mustPut(t, b, "empty", nil)
	tests := []struct {
		key            string
		offset, length int64
		want           []byte
		err            error
	}{
		{"object", 0, -1, data, nil},
		{"object", 0, 1000, data, nil},
		{"object", 0, 1, data[:1], nil},
		{"object", 0, 999, data[:999], nil},
		{"object", 1, 1, data[1:2], nil},
		{"object", 999, 1, data[999:], nil},
		{"object", 500, -1, data[500:], nil},
		{"object", 500, 100, data[500:600], nil},
		{"object", 999, 100, data[999:], nil}, // ends where the object ends
		{"object", 0, 1 << 40, data, nil},
		{"object", 1, math.MaxInt64, data[1:], nil},
		{"object", 1000, 1, nil, objstore.ErrRange},
		{"object", 1000, -1, nil, objstore.ErrRange},
		{"object", 5000, 10, nil, objstore.ErrRange},
		{"object", -1, 10, nil, objstore.ErrRange},
		{"object", 0, 0, nil, objstore.ErrRange},
		{"empty", 0, -1, []byte{}, nil},
		{"empty", 0, 1, nil, objstore.ErrRange},
		{"empty", 1, -1, nil, objstore.ErrRange},
		{"missing", 10, 10, nil, objstore.ErrNotFound},
	}
	for _, test := range tests {
		name := fmt.Sprintf("%s[%d:+%d]", test.key, test.offset, test.length)
		got, err := get(t.Context(), b, test.key, test.offset, test.length)
		if test.err != nil {
			wantError(t, name, err, test.err, objstore.OpGet, test.key)
			var oe *objstore.Error
			if errors.As(err, &oe) && (!oe.Ranged || oe.Offset != test.offset || oe.Length != test.length) {
				t.Errorf("%s: error does not name the range: %v", name, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("%s: got %d bytes and error %v, want %d", name, len(got), err, len(test.want))
		}
	}
}

func testReadRange(t *testing.T, f Factory) {
	b := f.New(t)
	data := random(4, 1000)
	mustPut(t, b, "object", data)
	dst := make([]byte, 600)
	if err := objstore.ReadRange(t.Context(), b, "object", 400, 600, dst); err != nil || !bytes.Equal(dst, data[400:]) {
		t.Errorf("a range to the end: error %v", err)
	}
	err := objstore.ReadRange(t.Context(), b, "object", 401, 600, dst)
	wantError(t, "a range past the end", err, objstore.ErrShort, objstore.OpGet, "object")
	err = objstore.ReadRange(t.Context(), b, "object", 1000, 1, dst)
	wantError(t, "a range behind the end", err, objstore.ErrRange, objstore.OpGet, "object")
	err = objstore.ReadRange(t.Context(), b, "object", 0, 601, dst)
	wantError(t, "a range larger than the buffer", err, objstore.ErrRange, objstore.OpGet, "object")
	if _, err := objstore.ReadAll(t.Context(), b, "object", 999); !errors.Is(err, objstore.ErrRange) {
		t.Errorf("read all of a too large object: got error %v", err)
	}
	if got, err := objstore.ReadAll(t.Context(), b, "object", 1000); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read all: got %d bytes, error %v", len(got), err)
	}
}

func testMissingKey(t *testing.T, f Factory) {
	b := f.New(t)
	mustPut(t, b, "folder/object", []byte("x"))
	for _, key := range []string{"missing", "folder", "folder/missing", "folder/object/below", "a/b/c"} {
		_, err := b.Get(t.Context(), key, 0, -1)
		wantError(t, "get", err, objstore.ErrNotFound, objstore.OpGet, key)
		_, err = b.Head(t.Context(), key)
		wantError(t, "head", err, objstore.ErrNotFound, objstore.OpHead, key)
		if err := b.Delete(t.Context(), key); err != nil {
			t.Errorf("delete of missing %q: %v", key, err)
		}
	}
	wantObject(t, b, "folder/object", []byte("x"))
}

func testOverwrite(t *testing.T, f Factory) {
	b := f.New(t)
	for i := range 3 {
		data := random(uint64(i), 5000-i*1000)
		mustPut(t, b, "object", data)
		wantObject(t, b, "object", data)
	}
}

func testIfNoneMatch(t *testing.T, f Factory) {
	b := f.New(t)
	once := objstore.PutOptions{IfNoneMatch: true}
	first := []byte("first")
	if err := b.Put(t.Context(), "dir/object", objstore.Bytes(first), once); err != nil {
		t.Fatalf("first put: %v", err)
	}
	err := b.Put(t.Context(), "dir/object", objstore.Bytes([]byte("second")), once)
	wantError(t, "second put", err, objstore.ErrExists, objstore.OpPut, "dir/object")
	wantObject(t, b, "dir/object", first)
	if err := b.Delete(t.Context(), "dir/object"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if err := b.Put(t.Context(), "dir/object", objstore.Bytes([]byte("third")), once); err != nil {
		t.Fatalf("put after delete: %v", err)
	}
	wantObject(t, b, "dir/object", []byte("third"))
}

func testIfNoneMatchRace(t *testing.T, f Factory) {
	b := f.New(t)
	const writers = 16
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			body := objstore.Bytes(random(uint64(i), 10_000))
			errs[i] = b.Put(t.Context(), "object", body, objstore.PutOptions{IfNoneMatch: true})
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Fatalf("writers %d and %d both made the object", winner, i)
		case err == nil:
			winner = i
		case errors.Is(err, objstore.ErrExists):
		// A store may tell those who come while another writes to try again.
		case errors.Is(err, objstore.ErrUnavailable):
		default:
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatalf("nobody made the object: %v", errs)
	}
	wantObject(t, b, "object", random(uint64(winner), 10_000))
}

func testConcurrentPuts(t *testing.T, f Factory) {
	b := f.New(t)
	const writers = 8
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if err := b.Put(t.Context(), "d/object", objstore.Bytes(random(uint64(i), 100_000+i)), objstore.PutOptions{}); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	got := mustGet(t, b, "d/object")
	i := len(got) - 100_000
	if i < 0 || i >= writers || !bytes.Equal(got, random(uint64(i), len(got))) {
		t.Fatalf("the object (%d bytes) is none of those put", len(got))
	}
}

func oddKeys() []string {
	return []string{
		"plain", "with space", "plus+plus", "percent%20", "question?x=1&y=2", "hash#frag", "amp&amp", "equals=",
		"quote'\"", "at@colon:semi;comma,", "bang!star*paren()", "tilde~caret^pipe|", "dollar$", "brackets[]{}<>",
		"grüße/日本語/🧵", ".hidden", "..two", "dir.with.dots/x..y", "UPPER/lower", "-dash", "_under",
		"long/" + strings.Repeat("e", objstore.MaxKeyElementBytes), "deep/" + strings.Repeat("d/", 60) + "x",
	}
}

func testOddKeys(t *testing.T, f Factory) {
	b := f.New(t)
	want := map[string]bool{}
	for i, key := range oddKeys() {
		mustPut(t, b, key, random(uint64(i), 10+i))
		want[key] = true
	}
	for i, key := range oddKeys() {
		wantObject(t, b, key, random(uint64(i), 10+i))
	}
	found := keys(t, b, "", "")
	for _, key := range found {
		if !want[key] {
			t.Errorf("listed %q, which was not put", key)
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("not listed: %q", key)
	}
	if err := b.Delete(t.Context(), oddKeys()...); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if left := keys(t, b, "", ""); len(left) != 0 {
		t.Errorf("left after delete: %q", left)
	}
}

func testInvalidKeys(t *testing.T, f Factory) {
	b := f.New(t)
	for _, key := range []string{
		"", "/", "/abs", "trailing/", "two//slashes", ".", "..", "../escape", "a/../b", "a/./b", "nul\x00", "line\n",
		"back\\slash", "not-utf8-\xff", strings.Repeat("e", objstore.MaxKeyElementBytes+1),
		strings.Repeat("d/", objstore.MaxKeyBytes/2) + "x",
	} {
		err := b.Put(t.Context(), key, objstore.Bytes([]byte("x")), objstore.PutOptions{})
		wantError(t, "put", err, objstore.ErrInvalidKey, objstore.OpPut, key)
		_, err = b.Get(t.Context(), key, 0, -1)
		wantError(t, "get", err, objstore.ErrInvalidKey, objstore.OpGet, key)
		_, err = b.Head(t.Context(), key)
		wantError(t, "head", err, objstore.ErrInvalidKey, objstore.OpHead, key)
		err = b.Delete(t.Context(), key)
		wantError(t, "delete", err, objstore.ErrInvalidKey, objstore.OpDelete, key)
	}
}

func testCancelledBefore(t *testing.T, f Factory) {
	b := f.New(t)
	mustPut(t, b, "object", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := b.Put(ctx, "new", objstore.Bytes([]byte("x")), objstore.PutOptions{})
	wantError(t, "put", err, context.Canceled, objstore.OpPut, "new")
	_, err = b.Get(ctx, "object", 0, -1)
	wantError(t, "get", err, context.Canceled, objstore.OpGet, "object")
	_, err = b.Head(ctx, "object")
	wantError(t, "head", err, context.Canceled, objstore.OpHead, "object")
	err = b.List(ctx, "", "", func(objstore.Info) error { return nil })
	wantError(t, "list", err, context.Canceled, objstore.OpList, "")
	if err := b.Delete(ctx, "object"); !errors.Is(err, context.Canceled) {
		t.Errorf("delete: got error %v", err)
	}
	wantObject(t, b, "object", []byte("x"))
}

func testCancelledRead(t *testing.T, f Factory) {
	b := f.New(t)
	data := random(5, f.BigBytes)
	mustPut(t, b, "big", data)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := b.Get(ctx, "big", 0, -1)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head, data[:1000]) {
		t.Fatalf("the first bytes: %v", err)
	}
	cancel()
	// What the kernel holds already may still come, but not the object.
	n, err := io.Copy(io.Discard, r)
	wantError(t, "read after cancel", err, context.Canceled, objstore.OpGet, "big")
	if n+1000 >= int64(len(data)) {
		t.Errorf("read all %d bytes after cancel", n)
	}
}

// testCancelledPut overwrites the body as soon as Put has returned, which the race detector and the
// object itself show if anything still reads it.
func testCancelledPut(t *testing.T, f Factory) {
	b := f.New(t)
	body := random(6, 4<<20)
	original := bytes.Clone(body)
	for i := range 20 {
		key := fmt.Sprintf("object-%d", i)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Put(ctx, key, chop(body, 64<<10), objstore.PutOptions{}) }()
		if i%2 == 0 {
			// Half of them are cut somewhere within the upload: after another request's round trip.
			_, _ = b.Head(t.Context(), "none")
		}
		cancel()
		err := <-done
		clear(body)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("put: %v", err)
		}
		got, getErr := get(t.Context(), b, key, 0, -1)
		switch {
		case errors.Is(getErr, objstore.ErrNotFound) && err != nil:
		case getErr != nil:
			t.Fatalf("after a put that ended with %v, get: %v", err, getErr)
		case !bytes.Equal(got, original):
			t.Fatalf("after a put that ended with %v the object has other bytes", err)
		}
		copy(body, original)
	}
}
