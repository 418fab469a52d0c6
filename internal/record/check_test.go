package record

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

func TestCheckRecordsRefuses(t *testing.T) {
	type edit func(b *Builder)
	const now = 1_700_000_000_000
	bounds := RecordOptions{CheckTimestamps: true, Now: now, BeforeMax: 1000, AfterMax: 500}
	keys := RecordOptions{RequireKeys: true}
	tests := []struct {
		name   string
		edit   edit
		o      RecordOptions
		want   error
		index  []int32
		errors int
	}{
		{"fine", func(b *Builder) { b.Append(now, []byte("k"), nil) }, keys, nil, nil, 0},
		{"empty key", func(b *Builder) { b.Append(now, []byte{}, nil) }, keys, nil, nil, 0},
		{"null key", func(b *Builder) { b.Append(now, []byte("k"), nil).Append(now, nil, []byte("v")) }, keys, ErrNullKey, []int32{1}, 1},
		{"null key allowed", func(b *Builder) { b.Append(now, nil, nil) }, RecordOptions{}, nil, nil, 0},
		{"at the bounds", func(b *Builder) { b.Append(now-1000, nil, nil).Append(now+500, nil, nil) }, bounds, nil, nil, 0},
		{"too old", func(b *Builder) { b.Append(now, nil, nil).Append(now-1001, nil, nil) }, bounds, ErrTimestamp, []int32{1}, 1},
		{"too new", func(b *Builder) { b.Append(now+501, nil, nil).Append(now, nil, nil).Append(now+501, nil, nil) }, bounds, ErrTimestamp, []int32{0, 2}, 2},
		{"no timestamp", func(b *Builder) { b.Append(NoTimestamp, nil, nil) }, bounds, nil, nil, 0},
		{"no bounds", func(b *Builder) { b.Append(5, nil, nil).Append(math.MaxInt64, nil, nil) },
			RecordOptions{CheckTimestamps: true, Now: now, BeforeMax: math.MaxInt64, AfterMax: math.MaxInt64}, nil, nil, 0},
		{"timestamp before key", func(b *Builder) { b.Append(now, nil, nil).Append(0, []byte("k"), nil) },
			RecordOptions{RequireKeys: true, CheckTimestamps: true, Now: now, BeforeMax: 1, AfterMax: 1}, ErrTimestamp, []int32{0, 1}, 2},
		{"gap", func(b *Builder) { b.Append(now, nil, nil).Add(Record{OffsetDelta: 2, Timestamp: now}) }, RecordOptions{}, ErrBadRecord, []int32{1}, 1},
		{"starts at 1", func(b *Builder) { b.Add(Record{OffsetDelta: 1, Timestamp: now}) }, RecordOptions{}, ErrBadRecord, []int32{0}, 1},
	}
	for _, tt := range tests {
		for c := CodecNone; c < codecs; c++ {
			b := NewBuilder().SetCodec(c, 0)
			tt.edit(b)
			rep, err := CheckRecords(build(t, b, nil), tt.o)
			if !errors.Is(err, tt.want) || rep.ErrorCount != tt.errors {
				t.Errorf("%s, %s: %v, %+v", tt.name, c, err, rep)
			}
			var index []int32
			for _, e := range rep.Errors {
				index = append(index, e.Index)
				if e.Message == "" || e.Err == nil {
					t.Errorf("%s, %s: %+v", tt.name, c, e)
				}
			}
			if !slices.Equal(index, tt.index) {
				t.Errorf("%s, %s: refused %v, want %v", tt.name, c, index, tt.index)
			}
		}
	}
}

func TestCheckRecordsBoundsItsErrors(t *testing.T) {
	b := NewBuilder()
	for range 10 * MaxRecordErrors {
		b.Append(1, nil, nil)
	}
	rep, err := CheckRecords(build(t, b, nil), RecordOptions{RequireKeys: true})
	if !errors.Is(err, ErrNullKey) || rep.ErrorCount != 10*MaxRecordErrors || len(rep.Errors) != MaxRecordErrors {
		t.Errorf("%d errors, %d named, %v", rep.ErrorCount, len(rep.Errors), err)
	}
}

func TestCheckRecordsCountsThem(t *testing.T) {
	for c := CodecNone; c < codecs; c++ {
		b := build(t, NewBuilder().SetCodec(c, 0), sampleRecords(10))
		for _, count := range []byte{9, 11} {
			lie := slices.Clone(b)
			lie[posRecordCount+3], lie[posLastOffsetDelta+3] = count, count-1
			seal(lie)
			if _, err := CheckRecords(lie, RecordOptions{}); !errors.Is(err, ErrCount) {
				t.Errorf("%s: header says %d of 10: %v", c, count, err)
			}
			n := 0
			var last error
			for _, err := range Records(lie, 0) {
				n, last = n+1, err
			}
			if last == nil {
				t.Errorf("%s: header says %d of 10: iterated over %d without an error", c, count, n)
			}
		}
	}
}

// withPayload makes a batch of any bytes, as a client could.
func withPayload(t testing.TB, c Codec, count int32, payload []byte) []byte {
	t.Helper()
	h := NewBuilder().h
	h.RecordCount, h.LastOffsetDelta = count, count-1
	b, err := assemble(h, 0, payload)
	if err != nil {
		t.Fatal(err)
	}
	b[posAttributes+1] |= byte(c)
	seal(b)
	return b
}

func TestMalformedRecords(t *testing.T) {
	good := appendRecord(nil, Record{Key: []byte("k"), Value: []byte("v"), Headers: []RecordHeader{{"h", []byte("x")}}})
	tests := map[string][]byte{
		"empty":               {},
		"varint too long":     bytes.Repeat([]byte{0xff}, 11),
		"varint cut":          {0x80},
		"length 0":            {0, 0, 0, 0, 0, 0, 0, 0},
		"length negative":     {1, 0, 0, 0, 0, 0, 0, 0},
		"length over the end": {200, 1, 0, 0, 0, 1, 1, 0},
		"record cut":          good[:len(good)-1],
		"key length -2":       {12, 0, 0, 0, 3, 1, 0},
		"key over the end":    {12, 0, 0, 0, 20, 1, 0},
		"value over the end":  {12, 0, 0, 0, 1, 20, 0},
		"headers -1":          {12, 0, 0, 0, 1, 1, 1},
		"headers many":        append([]byte{20, 0, 0, 0, 1, 1}, 0xfe, 0xff, 0xff, 0xff, 0x0f),
		"header key null":     {16, 0, 0, 0, 1, 1, 2, 1, 1},
		"header value long":   {16, 0, 0, 0, 1, 1, 2, 0, 20},
		"offset delta 64 bit": append([]byte{30, 0, 0}, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 1, 0, 0, 0, 0, 0, 0, 0),
		"bytes in record":     {14, 0, 0, 0, 1, 1, 0, 0},
	}
	for name, p := range tests {
		b := withPayload(t, CodecNone, 1, p)
		if _, err := CheckRecords(b, RecordOptions{}); !errors.Is(err, ErrBadRecord) && !errors.Is(err, ErrCount) {
			t.Errorf("%s: %v", name, err)
		}
		var last error
		for _, err := range Records(b, 0) {
			last = err
		}
		if last == nil {
			t.Errorf("%s: iterated without an error", name)
		}
		if name != "bytes in record" && len(p) > 0 {
			if _, _, _, err := MaxTimestampRecord(b); !errors.Is(err, ErrBadRecord) {
				t.Errorf("%s: searched without an error: %v", name, err)
			}
		}
	}
}

func TestUndecodable(t *testing.T) {
	plain := build(t, NewBuilder(), sampleRecords(20))[HeaderBytes:]
	for c := CodecGzip; c < codecs; c++ {
		packed := build(t, NewBuilder().SetCodec(c, 0), sampleRecords(20))[HeaderBytes:]
		for name, p := range map[string][]byte{
			"not compressed": plain, "cut": packed[:len(packed)-1], "half": packed[:len(packed)/2], "one byte": packed[:1],
		} {
			if _, err := CheckRecords(withPayload(t, c, 20, p), RecordOptions{}); err == nil {
				t.Errorf("%s, %s: accepted", c, name)
			}
		}
	}
	if _, err := CheckRecords(withPayload(t, 7, 1, plain), RecordOptions{}); !errors.Is(err, ErrCodec) {
		t.Errorf("codec 7: %v", err)
	}
	// S2's extension of snappy (a copy of offset 0: repeat the last) is unknown to Kafka's clients.
	repeat := []byte{16, 7 << 2, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 0b00000001, 4, 0b00000001, 0}
	if _, err := s2.Decode(nil, repeat); err != nil {
		t.Fatalf("not valid S2 either: %v", err)
	}
	if _, err := decompress(CodecSnappy, nil, repeat, 0); !errors.Is(err, ErrDecompress) {
		t.Errorf("S2 block: %v", err)
	}
}

// bombs are small payloads that become size bytes of zeros.
func bombs(t testing.TB, size int) map[string]struct {
	codec Codec
	p     []byte
} {
	t.Helper()
	zeros := make([]byte, size)
	out := map[string]struct {
		codec Codec
		p     []byte
	}{}
	for c := CodecGzip; c < codecs; c++ {
		p, err := compress(c, 0, nil, zeros)
		if err != nil {
			t.Fatal(err)
		}
		out[c.String()] = struct {
			codec Codec
			p     []byte
		}{c, p}
	}
	// A zstd frame that does not say its size, with a large window.
	var streamed bytes.Buffer
	w, err := zstd.NewWriter(&streamed, zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range slices.Chunk(zeros, 1<<20) {
		if _, err := w.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out["zstd stream"] = struct {
		codec Codec
		p     []byte
	}{CodecZstd, streamed.Bytes()}
	out["snappy block"] = struct {
		codec Codec
		p     []byte
	}{CodecSnappy, s2.EncodeSnappy(nil, zeros)}
	return out
}

func TestBombsAreBounded(t *testing.T) {
	const size, limit = 12 << 20, 1 << 20
	for name, bomb := range bombs(t, size) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decompress(bomb.codec, nil, bomb.p, limit)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrDecompressedSize) {
			t.Errorf("%s: %d bytes: %v", name, len(bomb.p), err)
		}
		// A coder of its own, and the buffer grown to the limit in steps.
		if n := after.TotalAlloc - before.TotalAlloc; n > 16*limit {
			t.Errorf("%s: allocated %d bytes for a limit of %d", name, n, limit)
		}
		for _, limit := range []int{size, size + 1} {
			if out, err := decompress(bomb.codec, nil, bomb.p, limit); err != nil || len(out) != size {
				t.Errorf("%s: limit %d: %d bytes, %v", name, limit, len(out), err)
			}
		}
		if _, err := decompress(bomb.codec, nil, bomb.p, size-1); !errors.Is(err, ErrDecompressedSize) {
			t.Errorf("%s: one byte under its size: %v", name, err)
		}
	}
}

// A Java producer at zstd level 22 announces a window of 128 MiB for any size.
func TestZstdLargeWindow(t *testing.T) {
	want := bytes.Repeat([]byte("window "), 10_000)
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(1<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(want, 1000) { // a stream, whose size nobody knows at its start
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p := b.Bytes()
	const descriptor, log = 5, 27
	p[descriptor] = (log - 10) << 3
	var h zstd.Header
	if err := h.Decode(p); err != nil || h.HasFCS || h.SingleSegment || h.WindowSize != 1<<log {
		t.Fatalf("%+v, %v", h, err)
	}
	if out, err := decompress(CodecZstd, nil, p, len(want)); err != nil || !bytes.Equal(out, want) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	p[descriptor] = (log + 1 - 10) << 3
	if _, err := decompress(CodecZstd, nil, p, len(want)); !errors.Is(err, ErrDecompress) {
		t.Errorf("window of 256 MiB: %v", err)
	}
}

func TestSnappyClaims(t *testing.T) {
	for name, p := range map[string][]byte{
		"block claims 4 GiB":      {0xff, 0xff, 0xff, 0xff, 0x0f, 0},
		"block claims 32 MiB":     {0x80, 0x80, 0x80, 0x10, 0},
		"xerial block of 2 GiB":   append(slices.Clone(xerialHeader), 0x7f, 0xff, 0xff, 0xff, 1),
		"xerial negative block":   append(slices.Clone(xerialHeader), 0xff, 0xff, 0xff, 0xff, 1),
		"xerial length cut":       append(slices.Clone(xerialHeader), 0, 0),
		"xerial block of nothing": append(slices.Clone(xerialHeader), 0, 0, 0, 0),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decompress(CodecSnappy, nil, p, 0)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: allocated %d bytes", name, n)
		}
	}
	joined := append(snappyTo(nil, []byte("one")), snappyTo(nil, []byte("two"))...)
	if out, err := decompress(CodecSnappy, nil, joined, 0); err != nil || string(out) != "onetwo" {
		t.Errorf("joined streams: %q, %v", out, err)
	}
}

func TestCodecNames(t *testing.T) {
	for c := CodecNone; c < codecs; c++ {
		if got, err := ParseCodec(c.String()); err != nil || got != c {
			t.Errorf("%s: %v, %v", c, got, err)
		}
	}
	if c, err := ParseCodec("uncompressed"); err != nil || c != CodecNone {
		t.Errorf("uncompressed: %v, %v", c, err)
	}
	if _, err := ParseCodec("producer"); !errors.Is(err, ErrCodec) {
		t.Errorf("producer: %v", err)
	}
}

func BenchmarkCheckProduce(b *testing.B) {
	for _, n := range []int{1, 16, 1000} {
		bld := NewBuilder()
		for i := range n {
			bld.Append(int64(i), nil, bytes.Repeat([]byte{byte(i)}, 1024))
		}
		batch := build(b, bld, nil)
		b.Run(fmt.Sprintf("1KiBx%d", n), func(b *testing.B) {
			b.SetBytes(int64(len(batch)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := CheckProduce(batch, ProduceLimits{MaxBytes: 2 << 20}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheckRecords(b *testing.B) {
	small := NewBuilder()
	for i := range 10_000 {
		small.Append(int64(i), fmt.Appendf(nil, "key-%d", i), make([]byte, 90))
	}
	batch := build(b, small, nil)
	b.Run("100Bx10000/none", func(b *testing.B) {
		b.SetBytes(int64(len(batch)))
		for b.Loop() {
			if _, err := CheckRecords(batch, RecordOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	for c := CodecNone; c < codecs; c++ {
		bld := NewBuilder().SetCodec(c, 0)
		for i := range 1000 {
			bld.Append(int64(i), fmt.Appendf(nil, "key-%d", i), bytes.Repeat(fmt.Appendf(nil, "line %d of a log, ", i), 64)[:1024])
		}
		batch := build(b, bld, nil)
		b.Run(fmt.Sprintf("1KiBx1000/%s", c), func(b *testing.B) {
			b.SetBytes(1024 * 1000)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := CheckRecords(batch, RecordOptions{RequireKeys: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
