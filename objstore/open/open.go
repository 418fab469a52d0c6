// Package open opens the bucket that a URL names. It is apart from objstore so that the interface does
// not depend on its implementations, and none of them has to register itself.
package open

import (
	"context"
	"fmt"
	"net/http"

	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/minio"
	"github.com/skeinio/skein/objstore/s3"
)

// Options are what a URL does not say. The zero value takes credentials from the environment.
type Options struct {
	// AccessKey and SecretKey replace the environment's credential when both are set.
	AccessKey, SecretKey string
	// Transport replaces the HTTP transport of s3 and minio.
	Transport http.RoundTripper
}

// Open opens the bucket of a URL (see objstore.ParseURL). It neither contacts nor makes the bucket:
// Check and Create do.
func Open(ctx context.Context, rawURL string, opts Options) (objstore.Bucket, error) {
	u, err := objstore.ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case objstore.SchemeMemory:
		return objstore.NewMemory(), nil
	case objstore.SchemeFile:
		b, err := objstore.OpenFile(u.Path)
		if err != nil {
			return nil, err
		}
		return b, nil
	case objstore.SchemeS3:
		b, err := s3.Open(ctx, s3.Options{
			Bucket: u.Bucket, Region: u.Region, Endpoint: u.Endpoint, PathStyle: u.PathStyle,
			AccessKey: opts.AccessKey, SecretKey: opts.SecretKey, Transport: opts.Transport,
		})
		if err != nil {
			return nil, err
		}
		return objstore.WithPrefix(b, u.Prefix), nil
	case objstore.SchemeMinIO:
		b, err := minio.Open(minio.Options{
			Endpoint: u.Endpoint, Bucket: u.Bucket, Region: u.Region, Secure: u.Secure,
			AccessKey: opts.AccessKey, SecretKey: opts.SecretKey, Transport: opts.Transport,
		})
		if err != nil {
			return nil, err
		}
		return objstore.WithPrefix(b, u.Prefix), nil
	default:
		return nil, fmt.Errorf("bucket URL %s: scheme %q has no implementation", u, u.Scheme)
	}
}
