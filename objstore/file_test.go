package objstore_test

import (
	"path/filepath"
	"testing"

	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/objstoretest"
)

func openFile(t *testing.T, dir string) *objstore.File {
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

func TestFile(t *testing.T) {
	objstoretest.Run(t, objstoretest.Factory{
		New: func(t *testing.T) objstore.Bucket { return openFile(t, t.TempDir()) },
		Missing: func(t *testing.T) objstore.Bucket {
			return openFile(t, filepath.Join(t.TempDir(), "not", "there"))
		},
	})
}
