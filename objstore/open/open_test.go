package open_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/objstoretest"
	"github.com/skeinio/skein/objstore/open"
)

// kinds are the clients of an S3 server, by the URL they are opened with.
var kinds = []struct {
	name string
	url  func(s *testenv.MinIOServer, bucket string) string
}{
	{"s3", (*testenv.MinIOServer).S3URL},
	{"minio", (*testenv.MinIOServer).MinIOURL},
}

func mustOpen(t *testing.T, url string, opts open.Options) objstore.Bucket {
	t.Helper()
	b, err := open.Open(t.Context(), url, opts)
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

func credential(s *testenv.MinIOServer) open.Options {
	return open.Options{AccessKey: s.AccessKey, SecretKey: s.SecretKey}
}

// create opens and makes a bucket.
func create(t *testing.T, url string, opts open.Options) objstore.Bucket {
	t.Helper()
	b := mustOpen(t, url, opts)
	if err := b.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestServers runs the acceptance suite with both clients on a real MinIO.
func TestServers(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s := testenv.MinIO(t)
			f := objstoretest.Factory{
				New: func(t *testing.T) objstore.Bucket {
					return create(t, kind.url(s, s.BucketName()), credential(s))
				},
				Missing: func(t *testing.T) objstore.Bucket {
					return mustOpen(t, kind.url(s, s.BucketName()), credential(s))
				},
				Forbidden: func(t *testing.T) objstore.Bucket {
					url := kind.url(s, s.BucketName())
					create(t, url, credential(s))
					return mustOpen(t, url, open.Options{AccessKey: s.AccessKey, SecretKey: "wrong" + s.SecretKey})
				},
				Unreachable: func(t *testing.T) objstore.Bucket {
					nobody := *s
					nobody.Endpoint = testenv.FreeAddress(t)
					return mustOpen(t, kind.url(&nobody, "bucket"), credential(s))
				},
			}
			if testenv.CanMount(t) { // else only TestAttempts tells what a full server's answer becomes
				f.Full = func(t *testing.T) objstore.Bucket {
					small := testenv.NewMinIOIn(t, testenv.SmallDisk(t, objstoretest.FillsBytes+objstoretest.FillsBytes/2))
					return create(t, kind.url(small, small.BucketName()), credential(small))
				}
			}
			objstoretest.Run(t, f)
		})
	}
}

// TestPrefix runs the suite below a prefix of the memory bucket: the decorator must not show.
func TestPrefix(t *testing.T) {
	objstoretest.Run(t, objstoretest.Factory{
		New: func(*testing.T) objstore.Bucket { return objstore.WithPrefix(objstore.NewMemory(), "/a/b/") },
	})
}

// TestPrefixesOfOneBucket wants two prefixes not to see each other.
func TestPrefixesOfOneBucket(t *testing.T) {
	inner := objstore.NewMemory()
	one, two := objstore.WithPrefix(inner, "a"), objstore.WithPrefix(inner, "ab")
	for _, b := range []objstore.Bucket{one, two} {
		if err := b.Put(t.Context(), "x", nil, objstore.PutOptions{IfNoneMatch: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.Delete(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Head(t.Context(), "x"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("deleted object: %v", err)
	}
	if _, err := two.Head(t.Context(), "x"); err != nil {
		t.Errorf("the other prefix's object: %v", err)
	}
	if _, err := inner.Head(t.Context(), "ab/x"); err != nil {
		t.Errorf("the object's full name: %v", err)
	}
}

func TestLocal(t *testing.T) {
	if _, ok := mustOpen(t, "mem:", open.Options{}).(*objstore.Memory); !ok {
		t.Error("mem: is not a memory bucket")
	}
	dir := filepath.Join(t.TempDir(), "bucket")
	b := mustOpen(t, "file://"+dir, open.Options{})
	if f, ok := b.(*objstore.File); !ok || f.Root() != dir {
		t.Errorf("file:// is %T", b)
	}
	if err := b.Check(t.Context()); !errors.Is(err, objstore.ErrNoBucket) {
		t.Errorf("a missing folder: %v", err)
	}
	if _, err := open.Open(t.Context(), "ftp://x/y", open.Options{}); err == nil {
		t.Error("ftp:// opens")
	}
}

// TestNoCredential wants a missing credential to be told at once and by name.
func TestNoCredential(t *testing.T) {
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY",
		"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	for _, url := range []string{"s3://bucket?region=x", "minio://127.0.0.1:1/bucket?secure=false"} {
		if _, err := open.Open(t.Context(), url, open.Options{}); !errors.Is(err, objstore.ErrAccess) {
			t.Errorf("%s: %v", url, err)
		}
	}
	t.Setenv("MINIO_ROOT_USER", "root")
	t.Setenv("MINIO_ROOT_PASSWORD", "secret")
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	for _, url := range []string{"s3://bucket?region=x", "minio://127.0.0.1:1/bucket?secure=false"} {
		if _, err := open.Open(t.Context(), url, open.Options{}); err != nil {
			t.Errorf("%s with a credential in the environment: %v", url, err)
		}
	}
}
