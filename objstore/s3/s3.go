// Package s3 is the bucket of AWS and of what speaks its protocol, on aws-sdk-go-v2.
//
// A Put streams from the caller's slices and is signed without a hash of the payload (which costs about
// 1.0 CPU second per GiB); what guards the bytes on their way is a CRC32C in a header, computed once per
// Put with the CPU's instruction and verified by the store.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/skeinio/skein/objstore"
)

// defaultRegion is what stores other than AWS's are signed for when nothing else is said.
const defaultRegion = "us-east-1"

// maxBackoff is the longest wait between the attempts of one request.
const maxBackoff = 100 * time.Millisecond

// Options say where the bucket is. What is empty comes from AWS's usual sources: environment,
// shared configuration files, the machine's role.
type Options struct {
	Bucket    string
	Region    string
	Endpoint  string // URL; empty for AWS itself
	PathStyle bool   // bucket in the path rather than in the host name

	// AccessKey and SecretKey replace the credential chain when both are set.
	AccessKey, SecretKey string
	// Transport replaces the HTTP transport; tests look at requests through it.
	Transport http.RoundTripper
}

// Bucket is a bucket of S3.
type Bucket struct {
	client    *s3.Client
	name      string
	region    string
	transport http.RoundTripper
}

var _ objstore.Bucket = (*Bucket)(nil)

// Open makes a client for a bucket. It fails with objstore.ErrAccess when there is no credential; it
// does not contact the bucket, which Check does.
func Open(ctx context.Context, o Options) (*Bucket, error) {
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(objstore.TuneS3Transport)),
		config.WithRetryer(newRetryer),
		// Neither a second checksum on the way out nor any on the way in: extents carry their own.
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.AccessKey != "" && o.SecretKey != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, "")))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("open bucket s3://%s: load AWS configuration: %w", o.Bucket, err)
	}
	if cfg.Region == "" {
		if o.Endpoint == "" {
			return nil, fmt.Errorf("open bucket s3://%s: no region: put ?region=… into the URL or set AWS_REGION", o.Bucket)
		}
		cfg.Region = defaultRegion
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("open bucket s3://%s: %w: no AWS credential: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "+
			"a profile, or give the machine a role: %w", o.Bucket, objstore.ErrAccess, err)
	}
	transport := o.Transport
	if c, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok && transport == nil {
		transport = c.GetTransport() // with the certificates that AWS_CA_BUNDLE and the shared files name
	}
	client := s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.HTTPClient = &http.Client{Transport: transport, CheckRedirect: noRedirect}
		so.UsePathStyle = o.PathStyle
		if o.Endpoint != "" {
			so.BaseEndpoint = aws.String(o.Endpoint)
		}
		// "Expect: 100-continue" costs each large Put a round trip.
		so.ContinueHeaderThresholdBytes = -1
		so.DisableLogOutputChecksumValidationSkipped = true
	})
	return &Bucket{client: client, name: o.Bucket, region: cfg.Region, transport: transport}, nil
}

// noRedirect leaves redirects alone: a request is signed for one host, and the SDK makes an error of them.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// newRetryer bounds the attempts; no token bucket of its own may turn requests away.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = objstore.S3MaxAttempts
		o.MaxBackoff = maxBackoff
		o.RateLimiter = ratelimit.None
	})
}

// Put implements objstore.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body objstore.Payload, opts objstore.PutOptions) error {
	if err := objstore.CheckKey(objstore.OpPut, key); err != nil {
		return err
	}
	r := body.NewReader()
	defer r.Close() // the transport may still read when it has given up
	in := &s3.PutObjectInput{
		Bucket: &b.name, Key: &key, Body: r,
		ContentLength:  aws.Int64(r.Size()),
		ChecksumCRC32C: aws.String(objstore.S3Checksum(body.CRC32C())),
	}
	perCall := []func(*s3.Options){s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)}
	if opts.IfNoneMatch {
		in.IfNoneMatch = aws.String("*")
		perCall = append(perCall, func(so *s3.Options) { so.Retryer = aws.NopRetryer{} })
	}
	if _, err := b.client.PutObject(ctx, in, perCall...); err != nil {
		return objstore.NewError(ctx, objstore.OpPut, key, kind(err), err)
	}
	return nil
}

// Get implements objstore.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := objstore.CheckGet(key, offset, length); err != nil {
		return nil, err
	}
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key}
	if r := objstore.S3Range(offset, length); r != "" {
		in.Range = &r
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		return nil, objstore.NewRangeError(ctx, key, offset, length, kind(err), err)
	}
	return objstore.NewS3Body(ctx, out.Body, key, offset, length), nil
}

// Head implements objstore.Bucket.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	if err := objstore.CheckKey(objstore.OpHead, key); err != nil {
		return objstore.Info{}, err
	}
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return objstore.Info{}, objstore.NewError(ctx, objstore.OpHead, key, b.headKind(ctx, err), err)
	}
	return objstore.Info{Key: key, Size: aws.ToInt64(out.ContentLength), LastModified: aws.ToTime(out.LastModified)}, nil
}

// headKind asks about the bucket when an answer without a body leaves open what is missing.
func (b *Bucket) headKind(ctx context.Context, err error) error {
	k := kind(err)
	if errors.Is(k, objstore.ErrNotFound) && errors.Is(b.Check(ctx), objstore.ErrNoBucket) {
		return objstore.ErrNoBucket
	}
	return k
}

// List implements objstore.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string, fn func(objstore.Info) error) error {
	in := &s3.ListObjectsV2Input{Bucket: &b.name, MaxKeys: aws.Int32(objstore.ListPageKeys)}
	if prefix != "" {
		in.Prefix = &prefix
	}
	if startAfter != "" {
		in.StartAfter = &startAfter
	}
	for {
		page, err := b.client.ListObjectsV2(ctx, in)
		if err != nil {
			return objstore.NewError(ctx, objstore.OpList, prefix, kind(err), err)
		}
		for i := range page.Contents {
			o := &page.Contents[i]
			info := objstore.Info{Key: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), LastModified: aws.ToTime(o.LastModified)}
			if err := fn(info); err != nil {
				return err
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		in.ContinuationToken = page.NextContinuationToken
	}
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

func (b *Bucket) deleteBatch(ctx context.Context, keys []string) []objstore.KeyError {
	ids := make([]types.ObjectIdentifier, len(keys))
	for i := range keys {
		ids[i].Key = &keys[i]
	}
	out, err := b.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{
		Bucket: &b.name, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)},
	})
	var failed []objstore.KeyError
	if err != nil {
		for _, key := range keys {
			failed = append(failed, objstore.KeyError{Key: key, Err: objstore.NewError(ctx, objstore.OpDelete, key, kind(err), err)})
		}
		return failed
	}
	for i := range out.Errors {
		e := &out.Errors[i]
		key, code := aws.ToString(e.Key), aws.ToString(e.Code)
		k := objstore.S3Kind(http.StatusBadRequest, code)
		if errors.Is(k, objstore.ErrNotFound) {
			continue
		}
		failed = append(failed, objstore.KeyError{Key: key, Err: objstore.NewError(ctx, objstore.OpDelete, key, k,
			fmt.Errorf("%s: %s", code, aws.ToString(e.Message)))})
	}
	return failed
}

// Check implements objstore.Bucket.
func (b *Bucket) Check(ctx context.Context) error {
	// Not HeadBucket: the answer to a HEAD has no body and so no reason, and the SDK learns from the reason that this
	// machine's clock is wrong, and signs with the server's time from then on. The permission is the same.
	_, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, MaxKeys: aws.Int32(1)})
	if err == nil {
		return nil
	}
	k := kind(err)
	if errors.Is(k, objstore.ErrNotFound) {
		k = objstore.ErrNoBucket
	}
	return objstore.NewError(ctx, objstore.OpCheck, "", k, fmt.Errorf("bucket %s: %w", b.name, err))
}

// Create implements objstore.Bucket.
func (b *Bucket) Create(ctx context.Context) error {
	in := &s3.CreateBucketInput{Bucket: &b.name}
	if b.region != defaultRegion { // which S3 refuses to be told
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(b.region)}
	}
	_, err := b.client.CreateBucket(ctx, in)
	var ours *types.BucketAlreadyOwnedByYou
	if err == nil || errors.As(err, &ours) {
		return nil
	}
	k := kind(err)
	var others *types.BucketAlreadyExists
	if errors.As(err, &others) {
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

// kind maps the SDK's errors to objstore's.
func kind(err error) error {
	var code string
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	var status int
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	var signing *v4.SigningError
	if errors.As(err, &signing) {
		return objstore.ErrAccess // the credential chain dried up
	}
	return objstore.S3Kind(status, code)
}
