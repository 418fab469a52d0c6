package objstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/skeinio/skein/objstore"
)

func TestParseURL(t *testing.T) {
	tests := map[string]objstore.URL{
		"mem:":                 {Scheme: objstore.SchemeMemory},
		"file:///abs/dir":      {Scheme: objstore.SchemeFile, Path: "/abs/dir"},
		"file:/abs/dir":        {Scheme: objstore.SchemeFile, Path: "/abs/dir"},
		"file:rel/dir":         {Scheme: objstore.SchemeFile, Path: "rel/dir"},
		"file:./rel":           {Scheme: objstore.SchemeFile, Path: "./rel"},
		"file:with%20space":    {Scheme: objstore.SchemeFile, Path: "with space"},
		"file:///a%20b/100%25": {Scheme: objstore.SchemeFile, Path: "/a b/100%"},
		"s3://bucket":          {Scheme: objstore.SchemeS3, Bucket: "bucket"},
		"s3://bucket/a/b/?region=eu-west-1": {
			Scheme: objstore.SchemeS3, Bucket: "bucket", Prefix: "a/b", Region: "eu-west-1"},
		"s3://b/p?region=r&endpoint=http://host:9000&path_style=true": {
			Scheme: objstore.SchemeS3, Bucket: "b", Prefix: "p", Region: "r", Endpoint: "http://host:9000", PathStyle: true},
		"minio://host:9000/bucket": {Scheme: objstore.SchemeMinIO, Endpoint: "host:9000", Bucket: "bucket", Secure: true},
		"minio://host:9000/bucket/pre/fix?secure=false": {
			Scheme: objstore.SchemeMinIO, Endpoint: "host:9000", Bucket: "bucket", Prefix: "pre/fix"},
	}
	for raw, want := range tests {
		got, err := objstore.ParseURL(raw)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, error %v", raw, got, err)
			continue
		}
		again, err := objstore.ParseURL(got.String())
		if err != nil || again != want {
			t.Errorf("%s printed as %s: got %+v, error %v", raw, got, again, err)
		}
	}
}

func TestParseURLErrors(t *testing.T) {
	tests := map[string]string{ // what is wrong → a word that the error must have
		"":                                    "scheme",
		"/var/data":                           "file:/var/data",
		"ftp://host/x":                        "ftp",
		"s3:///prefix":                        "s3://bucket/prefix",
		"s3://bucket?zone=a":                  `"zone"`,
		"s3://bucket?region=a&region=b":       "2 times",
		"s3://bucket?path_style=maybe":        "maybe",
		"s3://bucket?endpoint=host:9000":      "http://host:port",
		"s3://bucket/a//b":                    "prefix",
		"s3://bucket/../b":                    "prefix",
		"s3://bucket#x":                       "fragment",
		"minio://host:9000":                   "minio://host:port/bucket",
		"minio:///bucket":                     "minio://host:port/bucket",
		"minio://host/bucket?path_style=true": `"path_style"`,
		"file:":                               "file:///abs/dir",
		"file://rel/dir":                      "host",
		"file:x?sync=false":                   `"sync"`,
		"mem:x":                               "mem:",
		"s3://bu cket":                        "parse",
	}
	for raw, word := range tests {
		_, err := objstore.ParseURL(raw)
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: error %v does not say %q", raw, err, word)
		}
	}
	for _, raw := range []string{"s3://id:hunter2@bucket", "minio://id:hunter2@host/bucket", "s3://id:hunter2@bu cket",
		"s3://b?endpoint=http://id:hunter2@host", "s3://b?secret_key=hunter2", "ftp://b?key=hunter2", "mem:?hunter2"} {
		_, err := objstore.ParseURL(raw)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a URL with a secret: error %v", err)
		}
	}
}

func TestValidateKeyErrors(t *testing.T) {
	if err := objstore.ValidateKey("a//b"); !errors.Is(err, objstore.ErrInvalidKey) {
		t.Errorf("a//b: %v", err)
	}
	if err := objstore.ValidateKey("a/b"); err != nil {
		t.Errorf("a/b: %v", err)
	}
}
