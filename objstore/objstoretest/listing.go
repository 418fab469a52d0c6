package objstoretest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/objstore"
)

func testList(t *testing.T, f Factory) {
	b := f.New(t)
	if got := keys(t, b, "", ""); len(got) != 0 {
		t.Fatalf("an empty bucket lists %q", got)
	}
	// In byte order, which is not the order of a tree walk: '-' and '.' sort before '/', '0' after.
	all := []string{"a", "b-x", "b.x", "b/x", "b/y/z", "b0", "c/1", "c/10", "c/2", "d/e/f", "é"}
	for _, i := range []int{5, 1, 9, 0, 3, 7, 2, 10, 6, 4, 8} {
		mustPut(t, b, all[i], []byte(all[i]))
	}
	tests := []struct {
		prefix, after string
		want          []string
	}{
		{"", "", all},
		{"", "a", all[1:]},
		{"", "b", all[1:]},
		{"", "b.", all[2:]},
		{"", "b/", all[3:]},
		{"", "b/x", all[4:]},
		{"", "b/y", all[4:]},
		{"", "b/y/z", all[5:]},
		{"", "b/zz", all[5:]},
		{"", "é", nil},
		{"b", "", all[1:6]},
		{"b/", "", all[3:5]},
		{"b/y", "", all[4:5]},
		{"b/y/", "b/x", all[4:5]},
		{"c/1", "", all[6:8]},
		{"c/1", "c/1", all[7:8]},
		{"c/", "b", all[6:9]},
		{"c/", "d", nil},
		{"nothing/here", "", nil},
		{"a/", "", nil}, // "a" is an object, not a folder
		{"d/e", "", all[9:10]},
	}
	for _, test := range tests {
		if got := keys(t, b, test.prefix, test.after); !slices.Equal(got, test.want) {
			t.Errorf("list %q after %q: got %q, want %q", test.prefix, test.after, got, test.want)
		}
	}

	stop := errors.New("enough")
	seen := 0
	err := b.List(t.Context(), "", "", func(objstore.Info) error {
		if seen++; seen == 3 {
			return stop
		}
		return nil
	})
	if err != stop || seen != 3 {
		t.Errorf("a listing stopped at the third key: saw %d, error %v", seen, err)
	}
}

func testListPages(t *testing.T, f Factory) {
	b := f.New(t)
	const n = 2*objstore.ListPageKeys + 5
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("pages/%02d/%05d", i/500, i)
	}
	putAll(t, b, want)
	if t.Failed() {
		return
	}
	if got := keys(t, b, "pages/", ""); !slices.Equal(got, want) {
		t.Fatalf("listed %d keys, not the %d put in their order", len(got), n)
	}
	if got := keys(t, b, "pages/", want[999]); !slices.Equal(got, want[1000:]) {
		t.Fatalf("after the thousandth: listed %d keys, want %d", len(got), n-1000)
	}
	if err := b.Delete(t.Context(), append(slices.Clone(want), "pages/missing")...); err != nil {
		t.Fatalf("delete %d keys: %v", n, err)
	}
	if got := keys(t, b, "", ""); len(got) != 0 {
		t.Fatalf("%d keys left after delete", len(got))
	}
}

func putAll(t *testing.T, b objstore.Bucket, all []string) {
	t.Helper()
	next := make(chan string)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for key := range next {
				if err := b.Put(t.Context(), key, objstore.Bytes([]byte(key)), objstore.PutOptions{}); err != nil {
					t.Errorf("put: %v", err)
				}
			}
		})
	}
	for _, key := range all {
		next <- key
	}
	close(next)
	wg.Wait()
}

// testListDates compares dates only with each other: the bucket's clock may be any clock.
func testListDates(t *testing.T, f Factory) {
	b := f.New(t)
	var before time.Time
	for i := range 3 {
		key := fmt.Sprintf("object-%d", i)
		mustPut(t, b, key, []byte(key))
		info, err := b.Head(t.Context(), key)
		if err != nil {
			t.Fatalf("head: %v", err)
		}
		if info.LastModified.Before(before) {
			t.Errorf("%q is dated %v, before the one put earlier (%v)", key, info.LastModified, before)
		}
		before = info.LastModified
	}
	err := b.List(t.Context(), "", "", func(listed objstore.Info) error {
		info, err := b.Head(t.Context(), listed.Key)
		if err != nil {
			return err
		}
		// A HEAD's date is rounded to seconds where it comes in an HTTP header.
		if diff := listed.LastModified.Sub(info.LastModified); diff.Abs() >= time.Second || listed.Size != info.Size {
			t.Errorf("listed %+v, head says %+v", listed, info)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("list: %v", err)
	}
}

func testDelete(t *testing.T, f Factory) {
	b := f.New(t)
	for _, key := range []string{"a", "dir/b", "dir/c", "dir/sub/d"} {
		mustPut(t, b, key, []byte("x"))
	}
	if err := b.Delete(t.Context()); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}
	if err := b.Delete(t.Context(), "a", "missing", "dir/b"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if got, want := keys(t, b, "", ""), []string{"dir/c", "dir/sub/d"}; !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
	if err := b.Delete(t.Context(), "dir/c", "dir/sub/d"); err != nil {
		t.Errorf("delete: %v", err)
	}
	mustPut(t, b, "dir/c", []byte("again"))
	wantObject(t, b, "dir/c", []byte("again"))
}
