// Package minio is the bucket of MinIO, on its own client, minio-go.
//
// A Put streams from the caller's slices and is signed without a hash of the payload; what guards the
// bytes on their way is a CRC32C in a header, computed once per Put and verified by the store.
package minio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/skeinio/skein/objstore"
)

// defaultRegion is MinIO's own. It is always given: without one the client asks for each bucket's.
const defaultRegion = "us-east-1"

// checksumHeader is canonical on purpose: in lower case the client takes it for a request to compute
// checksums itself.
const checksumHeader = "X-Amz-Checksum-Crc32c"

// Options say where the bucket is.
type Options struct {
	Endpoint string // host:port
	Bucket   string
	Region   string // empty: us-east-1
	Secure   bool   // TLS

	// AccessKey and SecretKey replace the environment (MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or
	// MINIO_ROOT_USER and MINIO_ROOT_PASSWORD) when both are set.
	AccessKey, SecretKey string
	// Transport replaces the HTTP transport; tests look at requests through it.
	Transport http.RoundTripper
}

// Bucket is a bucket of MinIO.
type Bucket struct {
	core      minio.Core
	name      string
	region    string
	transport http.RoundTripper
}

var _ objstore.Bucket = (*Bucket)(nil)

// Open makes a client for a bucket. It fails with objstore.ErrAccess when there is no credential; it
// does not contact the bucket, which Check does.
func Open(o Options) (*Bucket, error) {
	access, secret := o.AccessKey, o.SecretKey
	if access == "" || secret == "" {
		access, secret = environment()
	}
	where := o.Endpoint + "/" + o.Bucket
	if access == "" || secret == "" {
		return nil, fmt.Errorf("open bucket minio://%s: %w: no MinIO credential: set MINIO_ACCESS_KEY and MINIO_SECRET_KEY, "+
			"or MINIO_ROOT_USER and MINIO_ROOT_PASSWORD", where, objstore.ErrAccess)
	}
	transport := o.Transport
	if transport == nil {
		transport = objstore.NewS3Transport()
	}
	region := o.Region
	if region == "" {
		region = defaultRegion
	}
	core, err := minio.NewCore(o.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(access, secret, ""), Secure: o.Secure, Transport: transport, Region: region,
		BucketLookup: minio.BucketLookupPath, MaxRetries: objstore.S3MaxAttempts,
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket minio://%s: %w", where, err)
	}
	return &Bucket{core: *core, name: o.Bucket, region: region, transport: transport}, nil
}

// Put implements objstore.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body objstore.Payload, opts objstore.PutOptions) error {
	if err := objstore.CheckKey(objstore.OpPut, key); err != nil {
		return err
	}
	r := body.NewReader()
	defer r.Close() // the transport may still read when it has given up
	po := minio.PutObjectOptions{
		DisableContentSha256: true,
		UserMetadata:         map[string]string{checksumHeader: objstore.S3Checksum(body.CRC32C())},
	}
	var stream io.Reader = r
	if opts.IfNoneMatch {
		po.SetMatchETagExcept("*")
		stream = struct{ io.Reader }{r} // what cannot seek is sent once
	}
	// Core puts any size in one request; the client itself would split large objects into parts.
	if _, err := b.core.PutObject(ctx, b.name, key, stream, r.Size(), "", "", po); err != nil {
		return objstore.NewError(ctx, objstore.OpPut, key, kind(err), err)
	}
	return nil
}

// Get implements objstore.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := objstore.CheckGet(key, offset, length); err != nil {
		return nil, err
	}
	var g minio.GetObjectOptions
	if r := objstore.S3Range(offset, length); r != "" {
		g.Set("Range", r)
	}
	body, _, _, err := b.core.GetObject(ctx, b.name, key, g)
	if err != nil {
		return nil, objstore.NewRangeError(ctx, key, offset, length, kind(err), err)
	}
	return objstore.NewS3Body(ctx, body, key, offset, length), nil
}

// Head implements objstore.Bucket.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	if err := objstore.CheckKey(objstore.OpHead, key); err != nil {
		return objstore.Info{}, err
	}
	o, err := b.core.StatObject(ctx, b.name, key, minio.StatObjectOptions{})
	if err != nil {
		k := kind(err)
		// A HEAD's answer has no body, which leaves open what is missing.
		if errors.Is(k, objstore.ErrNotFound) && errors.Is(b.Check(ctx), objstore.ErrNoBucket) {
			k = objstore.ErrNoBucket
		}
		return objstore.Info{}, objstore.NewError(ctx, objstore.OpHead, key, k, err)
	}
	return objstore.Info{Key: key, Size: o.Size, LastModified: o.LastModified}, nil
}

// List implements objstore.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string, fn func(objstore.Info) error) error {
	objects := b.core.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{
		Prefix: prefix, StartAfter: startAfter, Recursive: true, MaxKeys: objstore.ListPageKeys,
	})
	for o := range objects {
		if o.Err != nil {
			return objstore.NewError(ctx, objstore.OpList, prefix, kind(o.Err), o.Err)
		}
		if err := fn(objstore.Info{Key: o.Key, Size: o.Size, LastModified: o.LastModified}); err != nil {
			return err
		}
	}
	if ctx.Err() != nil { // the iterator ends then as if all were listed
		return objstore.NewError(ctx, objstore.OpList, prefix, nil, nil)
	}
	return nil
}

// Delete implements objstore.Bucket.
func (b *Bucket) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := objstore.CheckKey(objstore.OpDelete, key); err != nil {
			return err
		}
	}
	var failed []objstore.KeyError
	for len(keys) > 0 {
		batch := keys[:min(len(keys), objstore.DeleteBatchKeys)]
		keys = keys[len(batch):]
		failed = append(failed, b.deleteBatch(ctx, batch)...)
	}
	return objstore.DeleteFailure(failed)
}

// deleteBatch counts as deleted only what the answer says so of: the client says nothing of the rest.
func (b *Bucket) deleteBatch(ctx context.Context, keys []string) []objstore.KeyError {
	objects := func(yield func(minio.ObjectInfo) bool) {
		for _, key := range keys {
			if !yield(minio.ObjectInfo{Key: key}) {
				return
			}
		}
	}
	why := errors.New("the store's answer does not name the key")
	outcome := make(map[string]error, len(keys))
	results, err := b.core.RemoveObjectsWithIter(ctx, b.name, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		why = err
	} else {
		for result := range results {
			if result.ObjectName == "" {
				why = result.Err
				continue
			}
			outcome[result.ObjectName] = result.Err
		}
	}
	var failed []objstore.KeyError
	for _, key := range keys {
		err, answered := outcome[key]
		if !answered {
			err = why
		}
		if err == nil || errors.Is(kind(err), objstore.ErrNotFound) {
			continue
		}
		failed = append(failed, objstore.KeyError{Key: key, Err: objstore.NewError(ctx, objstore.OpDelete, key, kind(err), err)})
	}
	return failed
}

// Check implements objstore.Bucket.
func (b *Bucket) Check(ctx context.Context) error {
	exists, err := b.core.BucketExists(ctx, b.name)
	switch {
	case err != nil:
		return objstore.NewError(ctx, objstore.OpCheck, "", kind(err), fmt.Errorf("bucket %s: %w", b.name, err))
	case !exists:
		return objstore.NewError(ctx, objstore.OpCheck, "", objstore.ErrNoBucket, errors.New(b.name))
	default:
		return nil
	}
}

// Create implements objstore.Bucket.
func (b *Bucket) Create(ctx context.Context) error {
	err := b.core.MakeBucket(ctx, b.name, minio.MakeBucketOptions{Region: b.region})
	if err == nil || minio.ToErrorResponse(err).Code == minio.BucketAlreadyOwnedByYou {
		return nil
	}
	k := kind(err)
	if minio.ToErrorResponse(err).Code == minio.BucketAlreadyExists {
		k = objstore.ErrAccess // somebody else's
	}
	return objstore.NewError(ctx, objstore.OpCreate, "", k, fmt.Errorf("bucket %s: %w", b.name, err))
}

// Close implements objstore.Bucket.
func (b *Bucket) Close() error {
	if t, ok := b.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// kind maps the client's errors to objstore's.
func kind(err error) error {
	var response minio.ErrorResponse
	if !errors.As(err, &response) {
		return objstore.S3Kind(0, "") // no answer
	}
	status := response.StatusCode
	if status == 0 { // one key's error within an answer, or the client's own refusal
		status = http.StatusBadRequest
	}
	return objstore.S3Kind(status, response.Code)
}

// environment finds the credential in the variables that MinIO's own tools use. The client's provider
// would prefer the root user where both are set.
func environment() (access, secret string) {
	for _, names := range [][2]string{{"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"}, {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}} {
		access, secret = os.Getenv(names[0]), os.Getenv(names[1])
		if access != "" && secret != "" {
			return access, secret
		}
	}
	return "", ""
}
