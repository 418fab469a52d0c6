package open_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/open"
)

// roundTrip is a transport made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// overTransport opens a bucket whose requests go through wrap.
func overTransport(t *testing.T, url func(*testenv.MinIOServer, string) string, wrap roundTrip) objstore.Bucket {
	s := testenv.MinIO(t)
	name := s.BucketName()
	create(t, url(s, name), credential(s))
	opts := credential(s)
	opts.Transport = wrap
	return mustOpen(t, url(s, name), opts)
}

// TestPutOnTheWire wants a Put to be one request, signed without a hash of the payload, with the
// checksum and the length in headers and the bytes as they are: no trailer, no chunks, no parts.
func TestPutOnTheWire(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			var seen []http.Header
			b := overTransport(t, kind.url, func(r *http.Request) (*http.Response, error) {
				h := r.Header.Clone()
				h.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
				h.Set("Transfer-Encoding", strings.Join(r.TransferEncoding, ","))
				seen = append(seen, h)
				return http.DefaultTransport.RoundTrip(r)
			})
			body := objstore.Payload{make([]byte, 15<<20), make([]byte, 5<<20)}
			if err := b.Put(t.Context(), "object", body, objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if len(seen) != 1 {
				t.Fatalf("a Put of 20 MiB was %d requests", len(seen))
			}
			sum := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, body.CRC32C()))
			for name, want := range map[string]string{
				"X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD", "X-Amz-Checksum-Crc32c": sum,
				"Content-Length": strconv.Itoa(20 << 20), "Transfer-Encoding": "", "Content-Encoding": "", "X-Amz-Trailer": "",
				"Content-Md5": "", "Expect": "", "X-Amz-Checksum-Crc32": "", "X-Amz-Checksum-Crc64nvme": "",
			} {
				if got := seen[0].Get(name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

// corrupting flips a bit of a body on its way.
type corrupting struct{ io.ReadCloser }

func (c corrupting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		p[0] ^= 1
	}
	return n, err
}

// TestCorruptionOnTheWire wants the store to refuse bytes other than those handed to Put.
func TestCorruptionOnTheWire(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			b := overTransport(t, kind.url, func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodPut {
					r.Body = corrupting{r.Body}
				}
				return http.DefaultTransport.RoundTrip(r)
			})
			err := b.Put(t.Context(), "object", objstore.Bytes(make([]byte, 100_000)), objstore.PutOptions{})
			if !errors.Is(err, objstore.ErrChecksum) || !objstore.Retriable(err) {
				t.Errorf("put: %v", err)
			}
			if _, err := b.Head(t.Context(), "object"); !errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("head after that: %v", err)
			}
		})
	}
}

// TestWrongClock is a client whose clock is hours off, which S3 refuses. aws-sdk-go-v2 signs with the server's time from the
// first answer on, a Put that is tried once too; minio-go has no such thing, and says why it is refused.
func TestWrongClock(t *testing.T) {
	const stamp = "20060102T150405Z"
	for _, off := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		for _, kind := range kinds {
			t.Run(fmt.Sprint(kind.name, "/", off), func(t *testing.T) {
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					now := time.Now().Add(-off).UTC()
					w.Header().Set("Date", now.Format(http.TimeFormat))
					w.Header().Set("Content-Type", "application/xml")
					signed, err := time.Parse(stamp, r.Header.Get("X-Amz-Date"))
					if err != nil || signed.Sub(now).Abs() > 15*time.Minute {
						w.WriteHeader(http.StatusForbidden)
						_, _ = io.WriteString(w, "<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>")
						return
					}
					_, _ = io.WriteString(w, "<ListBucketResult></ListBucketResult>")
				}))
				defer server.Close()
				b := overServer(t, kind.url, server.Listener.Addr().String())
				err := b.Check(t.Context())
				if kind.name == "minio" {
					if !errors.Is(err, objstore.ErrAccess) {
						t.Errorf("check: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatalf("check: %v", err)
				}
				if err := b.Put(t.Context(), "k", objstore.Bytes([]byte("x")), objstore.PutOptions{IfNoneMatch: true}); err != nil {
					t.Errorf("put: %v", err)
				}
			})
		}
	}
}

// TestAttempts wants a failing server to see each request twice at most, a conditional Put once, and each
// answer to become the right error.
func TestAttempts(t *testing.T) {
	answers := map[string]struct {
		status int
		code   string
		want   error
	}{
		"busy":        {http.StatusServiceUnavailable, "SlowDown", objstore.ErrUnavailable},
		"broken":      {http.StatusInternalServerError, "InternalError", objstore.ErrUnavailable},
		"full":        {http.StatusInsufficientStorage, "XMinioStorageFull", objstore.ErrFull},
		"expired":     {http.StatusBadRequest, "ExpiredToken", objstore.ErrAccess},
		"clock":       {http.StatusForbidden, "RequestTimeTooSkewed", objstore.ErrAccess},
		"in conflict": {http.StatusConflict, "ConditionalRequestConflict", objstore.ErrUnavailable},
		"strange":     {http.StatusTeapot, "Teapot", objstore.ErrRefused},
	}
	for _, kind := range kinds {
		for name, answer := range answers {
			t.Run(kind.name+"/"+name, func(t *testing.T) {
				var requests atomic.Int32
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					_, _ = io.Copy(io.Discard, r.Body)
					w.Header().Set("Content-Type", "application/xml")
					w.WriteHeader(answer.status)
					_, _ = io.WriteString(w, "<Error><Code>"+answer.code+"</Code><Message>m</Message></Error>")
				}))
				defer server.Close()
				b := overServer(t, kind.url, server.Listener.Addr().String())
				tests := map[string]struct {
					attempts int32
					run      func() error
				}{
					"put": {2, func() error { return b.Put(t.Context(), "k", objstore.Bytes([]byte("x")), objstore.PutOptions{}) }},
					"put once": {1, func() error {
						return b.Put(t.Context(), "k", objstore.Bytes([]byte("x")), objstore.PutOptions{IfNoneMatch: true})
					}},
					"get":    {2, func() error { _, err := b.Get(t.Context(), "k", 0, -1); return err }},
					"list":   {2, func() error { return b.List(t.Context(), "", "", func(objstore.Info) error { return nil }) }},
					"delete": {2, func() error { return b.Delete(t.Context(), "k") }},
				}
				for op, test := range tests {
					requests.Store(0)
					if err := test.run(); !errors.Is(err, answer.want) {
						t.Errorf("%s: got error %v, want %v", op, err, answer.want)
					}
					n := requests.Load()
					if n < 1 || n > test.attempts {
						t.Errorf("%s: %d requests, want at most %d", op, n, test.attempts)
					}
					if answer.status >= 500 && answer.want == objstore.ErrUnavailable && n != test.attempts {
						t.Errorf("%s: %d requests, want %d", op, n, test.attempts)
					}
				}
			})
		}
	}
}

func overServer(t *testing.T, url func(*testenv.MinIOServer, string) string, address string) objstore.Bucket {
	s := &testenv.MinIOServer{Endpoint: address}
	return mustOpen(t, url(s, "bucket"), open.Options{AccessKey: "id", SecretKey: "secret"})
}

// TestPutLetsGoOfItsBody has a transport answer before it has read the body, as net/http may, and read
// on when Put has returned: it must not get bytes whose memory Put's caller uses again.
func TestPutLetsGoOfItsBody(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			var body io.Reader
			s := &testenv.MinIOServer{Endpoint: "127.0.0.1:1"}
			b := mustOpen(t, kind.url(s, "bucket"), open.Options{AccessKey: "id", SecretKey: "secret", Transport: roundTrip(
				func(r *http.Request) (*http.Response, error) {
					body = r.Body
					if n, err := body.Read(make([]byte, 10)); n != 10 {
						t.Errorf("the body's first bytes: %d, error %v", n, err)
					}
					return &http.Response{
						StatusCode: http.StatusForbidden, Header: http.Header{"Content-Type": {"application/xml"}}, Request: r,
						Body: io.NopCloser(strings.NewReader("<Error><Code>AccessDenied</Code></Error>")),
					}, nil
				},
			)})
			err := b.Put(t.Context(), "k", objstore.Bytes(make([]byte, 100)), objstore.PutOptions{})
			if !errors.Is(err, objstore.ErrAccess) {
				t.Fatalf("put: %v", err)
			}
			if n, err := body.Read(make([]byte, 10)); n != 0 || err == nil {
				t.Errorf("after Put the transport read %d bytes of its body, error %v", n, err)
			}
		})
	}
}

// TestBrokenConnection wants a body that breaks off to be ErrUnavailable, never a short object.
func TestBrokenConnection(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(make([]byte, 500))
			}))
			defer server.Close()
			b := overServer(t, kind.url, server.Listener.Addr().String())
			err := objstore.ReadRange(t.Context(), b, "k", 0, 1000, make([]byte, 1000))
			if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrShort) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// TestFrozenServer wants a deadline to end requests to a server that accepts and never answers, and
// everything to work again once it does.
func TestFrozenServer(t *testing.T) {
	s := testenv.NewMinIO(t)
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			b := create(t, kind.url(s, s.BucketName()), credential(s))
			if err := b.Put(t.Context(), "k", objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := s.Pause(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error, 2)
			go func() { done <- b.Put(ctx, "new", objstore.Bytes(make([]byte, 8<<20)), objstore.PutOptions{}) }()
			go func() { _, err := b.Head(ctx, "k"); done <- err }()
			select {
			case err := <-done:
				t.Errorf("a frozen server answered: %v", err)
			default:
			}
			cancel(errors.New("enough"))
			for range 2 {
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("after cancel: %v", err)
				}
			}
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
			if err := b.Put(t.Context(), "new", objstore.Bytes([]byte("y")), objstore.PutOptions{}); err != nil {
				t.Errorf("after resume: %v", err)
			}
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Head(t.Context(), "k"); !errors.Is(err, objstore.ErrUnavailable) {
				t.Errorf("a dead server: %v", err)
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Head(t.Context(), "k"); err != nil {
				t.Errorf("after restart: %v", err)
			}
		})
	}
}
