package objstore

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"time"
)

// What follows is what the S3 clients of two vendors have in common: the HTTP transport, what the
// protocol's error codes mean, and the reader of a response's body. It knows neither vendor's library.

// S3MaxAttempts bounds how often a client itself sends one request. The second attempt is for idle
// connections that the server has closed; whether to go on after that is the caller's decision, who
// knows the deadline and the hedges. A conditional Put is sent once: after a lost answer a second
// attempt would find the first one's object and report ErrExists.
const S3MaxAttempts = 2

// Limits of the transport.
const (
	dialTimeout           = 5 * time.Second
	tlsHandshakeTimeout   = 10 * time.Second
	tcpKeepAlive          = 15 * time.Second
	idleConnTimeout       = 60 * time.Second
	responseHeaderTimeout = 30 * time.Second // from the end of the request to the answer's first byte
	// maxIdleConnsPerHost: the standard library keeps two, and would dial for nearly every request of
	// a busy agent.
	maxIdleConnsPerHost = 256
	connBufferBytes     = 64 << 10
)

// NewS3Transport makes a transport for large bodies.
func NewS3Transport() *http.Transport {
	t := new(http.Transport)
	TuneS3Transport(t)
	return t
}

// TuneS3Transport sets up a transport for large bodies over HTTP/1.1: HTTP/2 would put all of a host's bodies
// through one connection and its flow control. What it leaves alone is who is trusted (TLS).
func TuneS3Transport(t *http.Transport) {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: tcpKeepAlive}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	t.Proxy = http.ProxyFromEnvironment
	t.DialContext = dialer.DialContext
	t.TLSHandshakeTimeout = tlsHandshakeTimeout
	t.MaxIdleConns = 0 // bounded per host
	t.MaxIdleConnsPerHost = maxIdleConnsPerHost
	t.IdleConnTimeout = idleConnTimeout
	t.ResponseHeaderTimeout = responseHeaderTimeout
	t.DisableCompression = true // segments do not compress again, and ranges must be exact
	t.WriteBufferSize = connBufferBytes
	t.ReadBufferSize = connBufferBytes
	t.ForceAttemptHTTP2 = false
	t.Protocols = protocols
}

// S3Kind maps an error of the S3 protocol to a sentinel. Status is the HTTP status and code
// the one in the XML body, each zero where there was none; both zero means that no answer came.
func S3Kind(status int, code string) error {
	switch code {
	case "NoSuchKey":
		return ErrNotFound
	case "NoSuchBucket":
		return ErrNoBucket
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
		"TokenRefreshRequired", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "RequestTimeTooSkewed",
		"InvalidSecurity", "UnauthorizedAccess":
		return ErrAccess
	case "PreconditionFailed":
		return ErrExists
	case "InvalidRange":
		return ErrRange
	case "BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody":
		return ErrChecksum
	case "XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded":
		return ErrFull
	case "KeyTooLongError", "XMinioInvalidObjectName", "XMinioParentIsObject", "XMinioObjectExistsAsDirectory":
		return ErrInvalidKey
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "RequestTimeout", "InternalError", "ServiceUnavailable",
		"Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "XMinioServerNotInitialized",
		// 409 while another writes the same key: it may still fail, so the key is not known to be taken.
		"ConditionalRequestConflict", "OperationAborted":
		return ErrUnavailable
	}
	switch {
	case status == 0, status == http.StatusRequestTimeout, status == http.StatusTooManyRequests:
		return ErrUnavailable
	case status == http.StatusInsufficientStorage:
		return ErrFull
	case status >= 500:
		return ErrUnavailable
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrAccess
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusPreconditionFailed:
		return ErrExists
	case status == http.StatusRequestedRangeNotSatisfiable:
		return ErrRange
	default:
		return ErrRefused
	}
}

// s3Body is the body of a GET. It gives the errors of the network a name, and context's end its own.
type s3Body struct {
	ctx            context.Context // the Get call's; a body lives for that one call
	body           io.ReadCloser
	key            string
	offset, length int64
}

// NewS3Body wraps the body of a GET of a range.
func NewS3Body(ctx context.Context, body io.ReadCloser, key string, offset, length int64) io.ReadCloser {
	return &s3Body{ctx: ctx, body: body, key: key, offset: offset, length: length}
}

// Read implements io.Reader.
func (b *s3Body) Read(dst []byte) (int, error) {
	n, err := b.body.Read(dst)
	if err != nil && err != io.EOF {
		err = NewRangeError(b.ctx, b.key, b.offset, b.length, ErrUnavailable, err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *s3Body) Close() error { return b.body.Close() }

// S3Range is the value of a Range header; empty for a whole object, which may be an empty one.
func S3Range(offset, length int64) string {
	if offset == 0 && length < 0 {
		return ""
	}
	if length < 0 || length > math.MaxInt64-offset {
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// S3Checksum is a CRC32C as the x-amz-checksum-crc32c header has it.
func S3Checksum(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}
