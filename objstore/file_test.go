package objstore_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/objstoretest"
)

func openFile(t testing.TB, dir string) *objstore.File {
	t.Helper()
	b, err := objstore.OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// TestFile runs the acceptance suite. A full disk and a foreign user need root; without it the seams of
// file_internal_test.go stand for the disk.
func TestFile(t *testing.T) {
	f := objstoretest.Factory{
		New: func(t *testing.T) objstore.Bucket { return openFile(t, t.TempDir()) },
		Missing: func(t *testing.T) objstore.Bucket {
			return openFile(t, filepath.Join(t.TempDir(), "not", "there"))
		},
		Forbidden: forbiddenFile,
	}
	if testenv.CanMount(t) {
		f.Full = func(t *testing.T) objstore.Bucket {
			return openFile(t, testenv.SmallDisk(t, objstoretest.FillsBytes+objstoretest.FillsBytes/2))
		}
	}
	objstoretest.Run(t, f)
}

// forbiddenFile is a bucket with an object in it, in a folder that this user may not enter.
func forbiddenFile(t *testing.T) objstore.Bucket {
	dir := t.TempDir()
	b := openFile(t, dir)
	if err := b.Put(t.Context(), "dir/object", objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o000); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Error(err)
		}
	})
	b = openFileUnchecked(t, dir)
	dropPrivileges(t)
	return b
}

func openFileUnchecked(t *testing.T, dir string) *objstore.File {
	t.Helper()
	b, err := objstore.OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func BenchmarkFilePut(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"64KiB", 64 << 10}, {"8MiB", 8 << 20}} {
		body := chopAt(testBytes(size.bytes), 16<<10)
		b.Run(size.name, func(b *testing.B) {
			bucket := openFile(b, b.TempDir())
			b.SetBytes(int64(size.bytes))
			i := 0
			for b.Loop() {
				if err := bucket.Put(b.Context(), "d/"+string(rune('a'+i%16)), body, objstore.PutOptions{}); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
		b.Run(size.name+"/parallel8", func(b *testing.B) {
			bucket := openFile(b, b.TempDir())
			b.SetBytes(int64(size.bytes))
			b.SetParallelism(4) // of two cores
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if err := bucket.Put(b.Context(), "d/"+string(rune('a'+i%16)), body, objstore.PutOptions{}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
