package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/objstoretest"
)

// TestDecorators runs the acceptance suite behind each decorator: it must not show.
func TestDecorators(t *testing.T) {
	for name, wrap := range map[string]func(t *testing.T, b objstore.Bucket) objstore.Bucket{
		"metrics": func(t *testing.T, b objstore.Bucket) objstore.Bucket {
			return newMetrics(t, prometheus.NewRegistry()).Wrap(b)
		},
		"faults": func(_ *testing.T, b objstore.Bucket) objstore.Bucket { return objstore.NewFaults(b) },
		"retry": func(_ *testing.T, b objstore.Bucket) objstore.Bucket {
			return objstore.RetryReads(b, objstore.DefaultRetryPolicy())
		},
	} {
		t.Run(name, func(t *testing.T) {
			objstoretest.Run(t, objstoretest.Factory{
				New:      func(t *testing.T) objstore.Bucket { return wrap(t, objstore.NewMemory()) },
				Missing:  func(t *testing.T) objstore.Bucket { return wrap(t, openFile(t, t.TempDir()+"/missing")) },
				BigBytes: 4 << 20,
			})
		})
	}
}

func newMetrics(t *testing.T, r prometheus.Registerer) *objstore.Metrics {
	t.Helper()
	m, err := objstore.NewMetrics(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	faults := objstore.NewFaults(objstore.NewMemory())
	b := newMetrics(t, registry).Wrap(faults)
	if _, err := objstore.NewMetrics(registry); err == nil {
		t.Error("registering twice is no error")
	}
	ctx := t.Context()
	keys := make([]string, objstore.ListPageKeys+1)
	for i := range keys {
		keys[i] = "k" + strings.Repeat("x", i%200) + string(rune('a'+i/200))
		if err := b.Put(ctx, keys[i], objstore.Bytes([]byte("12345")), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	_ = b.Put(ctx, keys[0], nil, objstore.PutOptions{IfNoneMatch: true}) // exists
	_, _ = b.Head(ctx, "missing")                                        // not found
	_ = objstore.ReadRange(ctx, b, keys[0], 1, 3, make([]byte, 3))       // 3 bytes
	_ = objstore.ReadRange(ctx, b, keys[0], 3, 3, make([]byte, 3))       // 2 bytes, then short
	_, _ = b.Get(ctx, keys[0], 9, 1)                                     // range
	remove := faults.Inject(objstore.Fault{Op: objstore.OpGet, CutAfter: 4})
	_, _ = objstore.ReadAll(ctx, b, keys[0], 100) // 4 bytes, then broken
	remove()
	_ = b.List(ctx, "", "", func(objstore.Info) error { return nil })                      // two pages
	_ = b.List(ctx, "", "", func(objstore.Info) error { return errors.New("had enough") }) // one page
	_ = b.Delete(ctx, keys...)                                                             // two batches
	_ = b.Check(ctx)
	open, err := b.Get(ctx, "late", 0, -1)
	if err == nil {
		t.Error(open, "opens")
	}
	const want = `
# HELP skein_bucket_bytes_total Bytes put to and got from the bucket.
# TYPE skein_bucket_bytes_total counter
skein_bucket_bytes_total{op="get"} 9
skein_bucket_bytes_total{op="put"} 5005
# HELP skein_bucket_requests_total Requests to the bucket, by operation and outcome.
# TYPE skein_bucket_requests_total counter
skein_bucket_requests_total{op="delete",outcome="ok"} 2
skein_bucket_requests_total{op="get",outcome="not_found"} 1
skein_bucket_requests_total{op="get",outcome="ok"} 2
skein_bucket_requests_total{op="get",outcome="range"} 1
skein_bucket_requests_total{op="get",outcome="unavailable"} 1
skein_bucket_requests_total{op="head",outcome="not_found"} 1
skein_bucket_requests_total{op="head",outcome="ok"} 1
skein_bucket_requests_total{op="list",outcome="ok"} 3
skein_bucket_requests_total{op="put",outcome="exists"} 1
skein_bucket_requests_total{op="put",outcome="ok"} 1001
# HELP skein_bucket_requests_in_flight Requests to the bucket under way.
# TYPE skein_bucket_requests_in_flight gauge
skein_bucket_requests_in_flight{op="delete"} 0
skein_bucket_requests_in_flight{op="get"} 0
skein_bucket_requests_in_flight{op="head"} 0
skein_bucket_requests_in_flight{op="list"} 0
skein_bucket_requests_in_flight{op="put"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want),
		"skein_bucket_requests_total", "skein_bucket_bytes_total", "skein_bucket_requests_in_flight"); err != nil {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	inner := objstore.NewMemory()
	f := objstore.NewFaults(inner)
	put := func(key string) error {
		return f.Put(t.Context(), key, objstore.Bytes([]byte("0123456789")), objstore.PutOptions{})
	}
	exists := func(key string) bool {
		_, err := inner.Head(t.Context(), key)
		return err == nil
	}

	remove := f.Inject(objstore.Fault{Op: objstore.OpPut, Before: objstore.ErrUnavailable, Skip: 1, Times: 2})
	for i, want := range []error{nil, objstore.ErrUnavailable, objstore.ErrUnavailable, nil} {
		key := string(rune('a' + i))
		if err := put(key); !errors.Is(err, want) || exists(key) != (want == nil) {
			t.Errorf("burst, call %d: error %v, stored %v", i, err, exists(key))
		}
	}
	remove()

	remove = f.Inject(objstore.Fault{Op: objstore.OpPut, After: objstore.ErrUnavailable, Match: func(key string) bool { return key == "stored" }})
	if err := put("stored"); !errors.Is(err, objstore.ErrUnavailable) || !exists("stored") {
		t.Errorf("stored but failed: error %v, stored %v", err, exists("stored"))
	}
	if err := put("other"); err != nil {
		t.Errorf("another key: %v", err)
	}
	remove()

	remove = f.Inject(objstore.Fault{Op: objstore.OpGet, Corrupt: func(data []byte, offset int64) {
		if offset <= 5 && 5 < offset+int64(len(data)) {
			data[5-offset] = 'X'
		}
	}})
	dst := make([]byte, 4)
	if err := objstore.ReadRange(t.Context(), f, "stored", 3, 4, dst); err != nil || string(dst) != "34X6" {
		t.Errorf("corrupt: %q, %v", dst, err)
	}
	remove()

	remove = f.Inject(objstore.Fault{Op: objstore.OpDelete, Before: objstore.ErrAccess})
	err := f.Delete(t.Context(), "stored", "other")
	var de *objstore.DeleteError
	if !errors.As(err, &de) || len(de.Failed) != 2 || !errors.Is(err, objstore.ErrAccess) {
		t.Errorf("delete: %v", err)
	}
	remove()
	if f.Calls(objstore.OpPut) != 6 || f.Calls(objstore.OpGet) != 1 || f.Calls(objstore.OpDelete) != 1 {
		t.Errorf("calls: %d puts, %d gets, %d deletes", f.Calls(objstore.OpPut), f.Calls(objstore.OpGet), f.Calls(objstore.OpDelete))
	}
}

func TestFaultsBlock(t *testing.T) {
	f := objstore.NewFaults(objstore.NewMemory())
	entered, release := make(chan string), make(chan struct{})
	f.Inject(objstore.Fault{Op: objstore.OpPut, Entered: entered, Block: release})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- f.Put(ctx, "cancelled", nil, objstore.PutOptions{}) }()
	if key := <-entered; key != "cancelled" {
		t.Errorf("entered with %q", key)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	go func() { done <- f.Put(t.Context(), "released", nil, objstore.PutOptions{}) }()
	<-entered
	close(release)
	if err := <-done; err != nil {
		t.Errorf("released: %v", err)
	}
}

func TestRetryReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := objstore.NewMemory()
		data := testBytes(1000)
		for _, key := range []string{"a", "b", "c"} {
			if err := inner.Put(t.Context(), key, objstore.Bytes(data), objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		f := objstore.NewFaults(inner)
		b := objstore.RetryReads(f, objstore.RetryPolicy{Attempts: 3, Backoff: 100 * time.Millisecond, Max: time.Second})
		calls := func(op objstore.Op) func() int {
			before := f.Calls(op)
			return func() int { return f.Calls(op) - before }
		}

		remove := f.Inject(objstore.Fault{Before: objstore.ErrUnavailable, Times: 2})
		n, start := calls(objstore.OpHead), time.Now()
		if _, err := b.Head(t.Context(), "a"); err != nil || n() != 3 {
			t.Errorf("head after a burst: %v, %d calls", err, n())
		}
		if waited := time.Since(start); waited < 150*time.Millisecond || waited > 300*time.Millisecond {
			t.Errorf("waited %v between three attempts", waited)
		}
		remove()

		remove = f.Inject(objstore.Fault{Before: objstore.ErrUnavailable})
		n = calls(objstore.OpGet)
		if _, err := b.Get(t.Context(), "a", 0, -1); !errors.Is(err, objstore.ErrUnavailable) || n() != 3 {
			t.Errorf("get while down: %v, %d calls", err, n())
		}
		n = calls(objstore.OpPut)
		if err := b.Put(t.Context(), "a", nil, objstore.PutOptions{}); !errors.Is(err, objstore.ErrUnavailable) || n() != 1 {
			t.Errorf("put while down: %v, %d calls", err, n())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := b.Head(ctx, "a")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || objstore.Retriable(err) || !strings.Contains(err.Error(), "unavailable") {
			t.Errorf("head with a deadline: %v", err)
		}
		remove()

		n = calls(objstore.OpHead)
		if _, err := b.Head(t.Context(), "missing"); !errors.Is(err, objstore.ErrNotFound) || n() != 1 {
			t.Errorf("head of a missing key: %v, %d calls", err, n())
		}
		testRetryBrokenReads(t, f, b, data)
		testRetryList(t, f, b)
	})
}

// testRetryBrokenReads wants all bytes in order however often they break off, as long as some come.
func testRetryBrokenReads(t *testing.T, f *objstore.Faults, b objstore.Bucket, data []byte) {
	for _, cut := range []int64{1, 99, 100, 999} {
		remove := f.Inject(objstore.Fault{Op: objstore.OpGet, CutAfter: cut})
		for _, r := range []struct{ offset, length int64 }{{0, -1}, {0, 1000}, {100, -1}, {100, 300}, {999, 1}} {
			body, err := b.Get(t.Context(), "a", r.offset, r.length)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			want := data[r.offset:]
			if r.length >= 0 {
				want = want[:r.length]
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("cut after %d, range %+v: %d bytes, error %v", cut, r, len(got), err)
			}
			if err := body.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		remove()
	}
	remove := f.Inject(objstore.Fault{Op: objstore.OpGet, CutAfter: 10, Times: 1})
	defer remove()
	body, err := b.Get(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	removeDown := f.Inject(objstore.Fault{Op: objstore.OpGet, Before: objstore.ErrUnavailable})
	defer removeDown()
	if got, err := io.ReadAll(body); !errors.Is(err, objstore.ErrUnavailable) || len(got) != 10 {
		t.Errorf("broken for good: %d bytes, error %v", len(got), err)
	}
	if err := body.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// brokenList breaks each listing off after one key.
type brokenList struct{ objstore.Bucket }

var errBroken = &objstore.Error{Op: objstore.OpList, Kind: objstore.ErrUnavailable}

func (b brokenList) List(ctx context.Context, prefix, startAfter string, fn func(objstore.Info) error) error {
	done := false
	err := b.Bucket.List(ctx, prefix, startAfter, func(info objstore.Info) error {
		if done {
			return errBroken
		}
		done = true
		return fn(info)
	})
	return err
}

func testRetryList(t *testing.T, f *objstore.Faults, _ objstore.Bucket) {
	b := objstore.RetryReads(brokenList{f}, objstore.RetryPolicy{Attempts: 3, Backoff: time.Millisecond, Max: time.Second})
	var got []string
	err := b.List(t.Context(), "", "", func(info objstore.Info) error {
		got = append(got, info.Key)
		return nil
	})
	if err != nil || strings.Join(got, "") != "abc" {
		t.Errorf("a listing broken twice: %q, error %v", got, err)
	}
	stop := &objstore.Error{Kind: objstore.ErrUnavailable} // the caller's, however it looks
	calls := 0
	err = b.List(t.Context(), "", "", func(objstore.Info) error { calls++; return stop })
	if err != error(stop) || calls != 1 {
		t.Errorf("a listing stopped: %v after %d calls", err, calls)
	}
}

// TestRetryDelete wants a second attempt to be about what the first left only.
func TestRetryDelete(t *testing.T) {
	d := &halfDelete{Bucket: objstore.NewMemory()}
	b := objstore.RetryReads(d, objstore.RetryPolicy{Attempts: 4, Backoff: time.Nanosecond, Max: time.Nanosecond})
	if err := b.Delete(t.Context(), "a", "b", "c", "d"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(d.asked, " "); got != "abcd cd d" {
		t.Errorf("asked for %q", got)
	}
}

// halfDelete deletes the first half of the keys, or the only one.
type halfDelete struct {
	objstore.Bucket
	asked []string
}

func (d *halfDelete) Delete(_ context.Context, keys ...string) error {
	d.asked = append(d.asked, strings.Join(keys, ""))
	var failed []objstore.KeyError
	if len(keys) > 1 {
		for _, key := range keys[len(keys)/2:] {
			failed = append(failed, objstore.KeyError{Key: key, Err: &objstore.Error{Kind: objstore.ErrUnavailable}})
		}
	}
	return objstore.DeleteFailure(failed)
}
