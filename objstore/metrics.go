package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what buckets are asked, which is what they bill: requests and bytes.
//
//	skein_bucket_requests_total{op,outcome}   op: put, get, head, list, delete
//	skein_bucket_bytes_total{op}              put: bytes of finished Puts; get: bytes read
//	skein_bucket_request_seconds{op}          put, head, delete: the whole call; get: to the first byte;
//	                                          list: the whole listing, with its caller's work
//	skein_bucket_requests_in_flight{op}       get: until the reader is closed
//
// A List counts one request per page, a Delete one per batch, and Check one head. What a client itself
// sends a second time is not seen here.
type Metrics struct {
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
}

// NewMetrics registers the metrics. One Metrics serves any number of buckets.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_bucket_requests_total", Help: "Requests to the bucket, by operation and outcome.",
		}, []string{"op", "outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_bucket_bytes_total", Help: "Bytes put to and got from the bucket.",
		}, []string{"op"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skein_bucket_request_seconds", Help: "Duration of requests to the bucket; of a get, to its first byte.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), // 1 ms to 33 s
		}, []string{"op"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "skein_bucket_requests_in_flight", Help: "Requests to the bucket under way.",
		}, []string{"op"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.bytes, m.seconds, m.inFlight} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register bucket metrics: %w", err)
		}
	}
	for _, op := range []Op{OpPut, OpGet, OpHead, OpList, OpDelete} {
		m.requests.WithLabelValues(string(op), outcome(nil)) // so that rates start from zero
	}
	return m, nil
}

// Wrap gives b with its requests counted.
func (m *Metrics) Wrap(b Bucket) Bucket { return &measured{bucket: b, m: m} }

// outcome is the label of an error.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	for _, known := range []struct {
		kind  error
		label string
	}{
		{context.Canceled, "canceled"}, {context.DeadlineExceeded, "deadline"}, {ErrNotFound, "not_found"},
		{ErrNoBucket, "no_bucket"}, {ErrAccess, "access"}, {ErrExists, "exists"}, {ErrFull, "full"},
		{ErrUnavailable, "unavailable"}, {ErrRange, "range"}, {ErrShort, "short"}, {ErrInvalidKey, "invalid_key"},
		{ErrChecksum, "checksum"}, {ErrRefused, "refused"},
	} {
		if errors.Is(err, known.kind) {
			return known.label
		}
	}
	return "error"
}

type measured struct {
	bucket Bucket
	m      *Metrics
}

var _ Bucket = (*measured)(nil)

// begin notes a call; the function it gives notes its end, as that many requests.
func (b *measured) begin(op Op) (end func(err error, requests int)) {
	label, start := string(op), time.Now()
	b.m.inFlight.WithLabelValues(label).Inc()
	return func(err error, requests int) {
		b.m.inFlight.WithLabelValues(label).Dec()
		b.m.seconds.WithLabelValues(label).Observe(time.Since(start).Seconds())
		b.m.requests.WithLabelValues(label, outcome(err)).Add(float64(requests))
	}
}

func (b *measured) Put(ctx context.Context, key string, body Payload, opts PutOptions) error {
	end := b.begin(OpPut)
	err := b.bucket.Put(ctx, key, body, opts)
	end(err, 1)
	if err == nil {
		b.m.bytes.WithLabelValues(string(OpPut)).Add(float64(body.Size()))
	}
	return err
}

func (b *measured) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	label, start := string(OpGet), time.Now()
	b.m.inFlight.WithLabelValues(label).Inc()
	r, err := b.bucket.Get(ctx, key, offset, length)
	b.m.seconds.WithLabelValues(label).Observe(time.Since(start).Seconds())
	if err != nil {
		b.m.inFlight.WithLabelValues(label).Dec()
		b.m.requests.WithLabelValues(label, outcome(err)).Inc()
		return nil, err
	}
	return &measuredReader{ReadCloser: r, m: b.m, bytes: b.m.bytes.WithLabelValues(label)}, nil
}

// measuredReader counts its request when it ends, since only then the outcome is known.
type measuredReader struct {
	io.ReadCloser
	m      *Metrics
	bytes  prometheus.Counter
	failed error
	closed bool
}

func (r *measuredReader) Read(dst []byte) (int, error) {
	n, err := r.ReadCloser.Read(dst)
	r.bytes.Add(float64(n))
	if err != nil && err != io.EOF {
		r.failed = err
	}
	return n, err
}

func (r *measuredReader) Close() error {
	if !r.closed {
		r.closed = true
		r.m.inFlight.WithLabelValues(string(OpGet)).Dec()
		r.m.requests.WithLabelValues(string(OpGet), outcome(r.failed)).Inc()
	}
	return r.ReadCloser.Close()
}

func (b *measured) Head(ctx context.Context, key string) (Info, error) {
	end := b.begin(OpHead)
	info, err := b.bucket.Head(ctx, key)
	end(err, 1)
	return info, err
}

func (b *measured) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	end := b.begin(OpList)
	keys, stopped := 0, false
	err := b.bucket.List(ctx, prefix, startAfter, func(info Info) error {
		keys++
		err := fn(info)
		stopped = err != nil
		return err
	})
	failure := err
	if stopped {
		failure = nil // the caller had enough
	}
	end(failure, max(1, ceilDiv(keys, ListPageKeys)))
	return err
}

func (b *measured) Delete(ctx context.Context, keys ...string) error {
	end := b.begin(OpDelete)
	err := b.bucket.Delete(ctx, keys...)
	end(err, ceilDiv(len(keys), DeleteBatchKeys))
	return err
}

func (b *measured) Check(ctx context.Context) error {
	end := b.begin(OpHead)
	err := b.bucket.Check(ctx)
	end(err, 1)
	return err
}

func (b *measured) Create(ctx context.Context) error { return b.bucket.Create(ctx) }
func (b *measured) Close() error                     { return b.bucket.Close() }

func ceilDiv(n, d int) int { return (n + d - 1) / d }
