package objstore_test

import (
	"testing"

	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/objstoretest"
)

func TestMemory(t *testing.T) {
	objstoretest.Run(t, objstoretest.Factory{
		New: func(*testing.T) objstore.Bucket { return objstore.NewMemory() },
	})
}
