package record

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// sampleRecords are n records with every kind of null, key and header.
func sampleRecords(n int) []Record {
	out := make([]Record, n)
	for i := range out {
		out[i] = Record{
			OffsetDelta: int32(i),
			Timestamp:   1_700_000_000_000 + int64(i)*7 - int64(i%3)*20,
			Key:         fmt.Appendf(nil, "key-%d", i%5),
			Value:       bytes.Repeat(fmt.Appendf(nil, "value %d ", i), 1+i%9),
		}
		switch i % 4 {
		case 1:
			out[i].Key, out[i].Value = nil, []byte{}
		case 2:
			out[i].Headers = []RecordHeader{{"trace", []byte("abc")}, {"", nil}, {"empty", []byte{}}}
		case 3:
			out[i].Key, out[i].Value = []byte{}, nil
		}
	}
	return out
}

func build(t testing.TB, b *Builder, records []Record) []byte {
	t.Helper()
	for _, r := range records {
		b.Add(r)
	}
	batch, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

// kmsgBatch encodes records with franz-go's codecs, independently of this package.
func kmsgBatch(t testing.TB, records []Record, codec kgo.CompressionCodec, kind Codec) []byte {
	t.Helper()
	var payload []byte
	base := records[0].Timestamp
	maxTS := base
	for i, r := range records {
		kr := kmsg.NewRecord()
		kr.TimestampDelta64 = r.Timestamp - base
		kr.TimestampDelta = int32(kr.TimestampDelta64)
		kr.OffsetDelta = int32(i)
		kr.Key, kr.Value = r.Key, r.Value
		for _, h := range r.Headers {
			kr.Headers = append(kr.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		body := kr.AppendTo(nil)[1:] // with length 0 in one byte
		kr.Length = int32(len(body))
		payload = kr.AppendTo(payload)
		maxTS = max(maxTS, r.Timestamp)
	}
	if kind != CodecNone {
		c, err := kgo.DefaultCompressor(codec)
		if err != nil {
			t.Fatal(err)
		}
		out, used := c.Compress(new(bytes.Buffer), payload)
		if Codec(used) != kind {
			t.Fatalf("compressor used %v, want %v", used, kind)
		}
		payload = slices.Clone(out)
	}
	kb := kmsg.NewRecordBatch()
	kb.PartitionLeaderEpoch = -1
	kb.Magic = 2
	kb.Attributes = int16(kind)
	kb.LastOffsetDelta = int32(len(records) - 1)
	kb.FirstTimestamp, kb.MaxTimestamp = base, maxTS
	kb.ProducerID, kb.ProducerEpoch, kb.FirstSequence = 77, 3, 41
	kb.NumRecords = int32(len(records))
	kb.Records = payload
	kb.Length = int32(len(kb.AppendTo(nil)) - 12)
	kb.CRC = int32(crc32.Checksum(kb.AppendTo(nil)[21:], crc32.MakeTable(crc32.Castagnoli)))
	return kb.AppendTo(nil)
}

var franzCodecs = map[Codec]kgo.CompressionCodec{
	CodecNone: kgo.NoCompression(), CodecGzip: kgo.GzipCompression(), CodecSnappy: kgo.SnappyCompression(),
	CodecLZ4: kgo.Lz4Compression(), CodecZstd: kgo.ZstdCompression(),
}

func TestReadsWhatFranzEncodes(t *testing.T) {
	want := sampleRecords(200)
	for kind, codec := range franzCodecs {
		t.Run(kind.String(), func(t *testing.T) {
			b := kmsgBatch(t, want, codec, kind)
			h, err := CheckProduce(b, ProduceLimits{MaxBytes: len(b)})
			if err != nil {
				t.Fatal(err)
			}
			if h.ProducerID != 77 || h.ProducerEpoch != 3 || h.BaseSequence != 41 || h.LastSequence() != 240 ||
				h.RecordCount != 200 || h.Codec() != kind || h.Size() != len(b) || h.Transactional() || h.Control() {
				t.Fatalf("header %+v", h)
			}
			rep, err := CheckRecords(b, RecordOptions{})
			if err != nil || rep.MaxTimestamp != h.MaxTimestamp {
				t.Fatalf("report %+v, %v", rep, err)
			}
			compareRecords(t, b, want)
		})
	}
}

func TestFranzReadsWhatBuilderEncodes(t *testing.T) {
	want := sampleRecords(200)
	d := kgo.DefaultDecompressor()
	for kind := CodecNone; kind < codecs; kind++ {
		for _, level := range []int{DefaultLevel, 1, 9, 22} {
			t.Run(fmt.Sprintf("%s/%d", kind, level), func(t *testing.T) {
				b := build(t, NewBuilder().SetCodec(kind, level).SetProducer(9, 1, 5).SetTransactional(), want)
				var kb kmsg.RecordBatch
				if err := kb.ReadFrom(b); err != nil {
					t.Fatal(err)
				}
				if kb.ProducerID != 9 || kb.ProducerEpoch != 1 || kb.FirstSequence != 5 || kb.NumRecords != 200 ||
					kb.LastOffsetDelta != 199 || kb.Attributes != int16(kind)|attrTransactional || int(kb.Length)+12 != len(b) {
					t.Fatalf("batch %+v", kb)
				}
				p, err := d.Decompress(kb.Records, kgo.CompressionCodecType(kind))
				if err != nil {
					t.Fatal(err)
				}
				for i, w := range want {
					var kr kmsg.Record
					size, n := kmsgVarint(p)
					if err := kr.ReadFrom(p[:n+size]); err != nil {
						t.Fatalf("record %d: %v", i, err)
					}
					p = p[n+size:]
					if kr.OffsetDelta != w.OffsetDelta || kb.FirstTimestamp+kr.TimestampDelta64 != w.Timestamp ||
						!sameBytes(kr.Key, w.Key) || !sameBytes(kr.Value, w.Value) || len(kr.Headers) != len(w.Headers) {
						t.Fatalf("record %d: %+v, want %+v", i, kr, w)
					}
				}
				if len(p) != 0 {
					t.Fatalf("%d bytes left", len(p))
				}
			})
		}
	}
}

func kmsgVarint(p []byte) (size, n int) {
	var u uint64
	for shift := 0; ; shift += 7 {
		c := p[n]
		n++
		u |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return int(u >> 1), n
		}
	}
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func compareRecords(t testing.TB, b []byte, want []Record) {
	t.Helper()
	i := 0
	for got, err := range Records(b, 0) {
		if err != nil {
			t.Fatal(err)
		}
		w := want[i]
		if got.OffsetDelta != w.OffsetDelta || got.Timestamp != w.Timestamp || !sameBytes(got.Key, w.Key) ||
			!sameBytes(got.Value, w.Value) || len(got.Headers) != len(w.Headers) {
			t.Fatalf("record %d: %+v, want %+v", i, got, w)
		}
		for j, h := range w.Headers {
			if got.Headers[j].Key != h.Key || !sameBytes(got.Headers[j].Value, h.Value) {
				t.Fatalf("record %d header %d: %+v, want %+v", i, j, got.Headers[j], h)
			}
		}
		i++
	}
	if i != len(want) {
		t.Fatalf("%d records, want %d", i, len(want))
	}
}

func TestParseRefuses(t *testing.T) {
	good := build(t, NewBuilder(), sampleRecords(3))
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	tests := map[string]struct {
		b    []byte
		want error
	}{
		"nothing":       {nil, ErrEmpty},
		"16 bytes":      {good[:16], ErrTruncated},
		"header only":   {good[:HeaderBytes], ErrTruncated},
		"one too short": {good[:len(good)-1], ErrTruncated},
		"magic 0":       {edit(func(b []byte) []byte { b[posMagic] = 0; return b }), ErrMagic},
		"magic 1":       {edit(func(b []byte) []byte { b[posMagic] = 1; return b }), ErrMagic},
		"magic 3":       {edit(func(b []byte) []byte { b[posMagic] = 3; return b }), ErrMagic},
		"length 48":     {edit(func(b []byte) []byte { b[11] = 48; return b }), ErrLength},
		"length -1":     {edit(func(b []byte) []byte { copy(b[8:], "\xff\xff\xff\xff"); return b }), ErrLength},
		"length max":    {edit(func(b []byte) []byte { copy(b[8:], "\x7f\xff\xff\xff"); return b }), ErrTruncated},
	}
	for name, tt := range tests {
		if _, err := Parse(tt.b); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if h, err := Parse(append(slices.Clone(good), "more"...)); err != nil || h.Size() != len(good) {
		t.Errorf("bytes behind the batch: %+v, %v", h, err)
	}
}

func TestCheckProduceRefuses(t *testing.T) {
	plain := func() *Builder { return NewBuilder() }
	// resealed changes a built batch and makes its CRC right again.
	resealed := func(b *Builder, f func(b []byte)) []byte {
		out := build(t, b, sampleRecords(3))
		f(out)
		seal(out)
		return out
	}
	good := build(t, plain(), sampleRecords(3))
	nothing := func([]byte) {}
	tests := map[string]struct {
		b    []byte
		l    ProduceLimits
		want error
	}{
		"good":          {good, ProduceLimits{MaxBytes: len(good)}, nil},
		"too large":     {good, ProduceLimits{MaxBytes: len(good) - 1}, ErrTooLarge},
		"two batches":   {append(slices.Clone(good), good...), ProduceLimits{}, ErrTrailing},
		"trailing byte": {append(slices.Clone(good), 0), ProduceLimits{}, ErrTrailing},
		"base offset":   {resealed(plain().SetBaseOffset(1), nothing), ProduceLimits{}, ErrBaseOffset},
		"crc":           {func() []byte { b := slices.Clone(good); b[len(b)-1] ^= 1; return b }(), ProduceLimits{}, ErrCRC},
		"codec 5":       {resealed(plain(), func(b []byte) { b[posAttributes+1] |= 5 }), ProduceLimits{}, ErrCodec},
		"zstd":          {resealed(plain().SetCodec(CodecZstd, 0), nothing), ProduceLimits{RefuseZstd: true}, ErrZstdVersion},
		"count 0":       {resealed(plain(), func(b []byte) { copy(b[posRecordCount:], "\x00\x00\x00\x00") }), ProduceLimits{}, ErrCount},
		"count off":     {resealed(plain(), func(b []byte) { b[posRecordCount+3]++ }), ProduceLimits{}, ErrCount},
		"count negative": {resealed(plain(), func(b []byte) {
			copy(b[posRecordCount:], "\xff\xff\xff\xff")
			copy(b[posLastOffsetDelta:], "\xff\xff\xff\xfe")
		}), ProduceLimits{}, ErrCount},
		"count too many": {resealed(plain(), func(b []byte) {
			copy(b[posRecordCount:], "\x00\x01\x00\x00")
			copy(b[posLastOffsetDelta:], "\x00\x00\xff\xff")
		}), ProduceLimits{}, ErrCount},
		"delta max": {resealed(plain(), func(b []byte) {
			copy(b[posRecordCount:], "\x80\x00\x00\x00")
			copy(b[posLastOffsetDelta:], "\x7f\xff\xff\xff")
		}), ProduceLimits{}, ErrCount},
		"control":            {ControlBatch(ControlCommit, 1, 0, 0, 0), ProduceLimits{}, ErrControl},
		"no sequence":        {resealed(plain().SetProducer(5, 0, -1), nothing), ProduceLimits{}, ErrSequence},
		"no epoch":           {resealed(plain().SetProducer(5, -1, 0), nothing), ProduceLimits{}, ErrProducerEpoch},
		"no producer":        {resealed(plain().SetTransactional(), nothing), ProduceLimits{}, ErrProducerID},
		"log append time":    {resealed(plain().SetLogAppendTime(5), nothing), ProduceLimits{LogAppendTime: true}, ErrTimestampType},
		"create time topic":  {resealed(plain().SetLogAppendTime(5), nothing), ProduceLimits{}, nil},
		"order size > crc":   {func() []byte { b := slices.Clone(good); b[len(b)-1] ^= 1; return b }(), ProduceLimits{MaxBytes: 70}, ErrTooLarge},
		"order crc > counts": {func() []byte { b := slices.Clone(good); b[posRecordCount] ^= 1; return b }(), ProduceLimits{}, ErrCRC},
	}
	for name, tt := range tests {
		if _, err := CheckProduce(tt.b, tt.l); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = CheckProduce(good, ProduceLimits{}) }); n != 0 {
		t.Errorf("CheckProduce allocates %v times", n)
	}
}

func TestLastSequenceWraps(t *testing.T) {
	tests := []struct{ base, delta, want int32 }{
		{-1, 9, -1}, {0, 0, 0}, {0, 9, 9}, {math.MaxInt32, 0, math.MaxInt32}, {math.MaxInt32, 1, 0},
		{math.MaxInt32 - 2, 5, 2}, {math.MaxInt32, math.MaxInt32, math.MaxInt32 - 1},
	}
	for _, tt := range tests {
		if got := (Header{BaseSequence: tt.base, LastOffsetDelta: tt.delta}).LastSequence(); got != tt.want {
			t.Errorf("base %d + %d: %d, want %d", tt.base, tt.delta, got, tt.want)
		}
	}
}

func TestPatch(t *testing.T) {
	records := sampleRecords(5)
	b := build(t, NewBuilder(), records)
	orig := slices.Clone(b)

	var dst [HeaderBytes]byte
	PatchedHeader(&dst, b, 1<<40, 7)
	if !bytes.Equal(b, orig) {
		t.Fatal("PatchedHeader changed its source")
	}
	served := append(dst[:], b[HeaderBytes:]...)
	h, err := Parse(served)
	if err != nil || h.BaseOffset != 1<<40 || h.LeaderEpoch != 7 || h.LastOffset() != 1<<40+4 {
		t.Fatalf("%+v, %v", h, err)
	}
	if err := VerifyCRC(served); err != nil {
		t.Fatal(err)
	}

	if err := SetLogAppendTime(b, 1_800_000_000_000); err != nil {
		t.Fatal(err)
	}
	h, err = CheckProduce(b, ProduceLimits{})
	if err != nil || !h.LogAppendTime() || h.MaxTimestamp != 1_800_000_000_000 {
		t.Fatalf("%+v, %v", h, err)
	}
	for r, err := range Records(b, 0) {
		if err != nil || r.Timestamp != 1_800_000_000_000 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if err := ClearLogAppendTime(b); err != nil {
		t.Fatal(err)
	}
	if h, err = CheckProduce(b, ProduceLimits{}); err != nil || h.LogAppendTime() {
		t.Fatalf("%+v, %v", h, err)
	}
	compareRecords(t, b, records)
	if err := SetMaxTimestamp(b, records[4].Timestamp); err != nil {
		t.Fatal(err)
	}
	if h, err = CheckProduce(b, ProduceLimits{}); err != nil || h.MaxTimestamp != records[4].Timestamp {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, f := range []func() error{
		func() error { return SetLogAppendTime(orig[:20], 0) },
		func() error { return ClearLogAppendTime(nil) },
	} {
		if err := f(); !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrEmpty) {
			t.Errorf("short batch: %v", err)
		}
	}
}

func TestRecompress(t *testing.T) {
	records := sampleRecords(300)
	for from := CodecNone; from < codecs; from++ {
		b := build(t, NewBuilder().SetCodec(from, 0).SetProducer(4, 2, 8), records)
		for to := CodecNone; to < codecs; to++ {
			got, err := Recompress(b, to, DefaultLevel)
			if err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			h, err := CheckProduce(got, ProduceLimits{})
			if err != nil || h.Codec() != to || h.ProducerID != 4 || h.BaseSequence != 8 || h.RecordCount != 300 {
				t.Fatalf("%s to %s: %+v, %v", from, to, h, err)
			}
			if to == from && &got[0] != &b[0] {
				t.Errorf("%s was rewritten for nothing", from)
			}
			compareRecords(t, got, records)
		}
	}
	if _, err := Recompress(build(t, NewBuilder(), records), 6, 0); !errors.Is(err, ErrCodec) {
		t.Errorf("codec 6: %v", err)
	}
}

func TestControlBatch(t *testing.T) {
	b := ControlBatch(ControlAbort, 12, 3, 9, 1_700_000_000_000)
	h, err := Parse(b)
	if err != nil || !h.Control() || !h.Transactional() || h.BaseSequence != -1 || h.RecordCount != 1 || h.LastOffsetDelta != 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	if err := VerifyCRC(b); err != nil {
		t.Fatal(err)
	}
	for r, err := range Records(b, 0) {
		if err != nil {
			t.Fatal(err)
		}
		var k kmsg.ControlRecordKey
		if err := k.ReadFrom(r.Key); err != nil || k.Version != 0 || k.Type != kmsg.ControlRecordKeyTypeAbort {
			t.Errorf("key %+v, %v", k, err)
		}
		var v kmsg.EndTxnMarker
		if err := v.ReadFrom(r.Value); err != nil || v.CoordinatorEpoch != 9 {
			t.Errorf("value %+v, %v", v, err)
		}
	}
	m, err := ParseControl(b)
	if err != nil || m != (Marker{ControlAbort, 12, 3, 9, 1_700_000_000_000}) {
		t.Errorf("marker %+v, %v", m, err)
	}
	if _, err := ParseControl(build(t, NewBuilder(), sampleRecords(1))); !errors.Is(err, ErrControl) {
		t.Errorf("data batch: %v", err)
	}
}

func TestBatches(t *testing.T) {
	var all []byte
	for i := 1; i <= 4; i++ {
		all = append(all, build(t, NewBuilder().SetBaseOffset(int64(i*100)), sampleRecords(i))...)
	}
	var got []int64
	for b, err := range Batches(all) {
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes, all[b.Position:b.Position+b.Size()]) {
			t.Fatalf("batch at %d", b.Position)
		}
		got = append(got, b.BaseOffset)
	}
	if !slices.Equal(got, []int64{100, 200, 300, 400}) {
		t.Errorf("base offsets %v", got)
	}
	n := 0
	var last error
	for _, err := range Batches(all[:len(all)-1]) {
		n, last = n+1, err
	}
	if n != 4 || !errors.Is(last, ErrTruncated) {
		t.Errorf("cut short: %d elements, %v", n, last)
	}
}

func TestBuilderKeepsHoles(t *testing.T) {
	rs := sampleRecords(9)
	kept := []Record{rs[2], rs[7]}
	b := build(t, NewBuilder().SetBaseOffset(50).SetBaseTimestamp(1_600_000_000_000), kept)
	compareRecords(t, b, kept)
	h, err := Parse(b)
	if err != nil || h.LastOffset() != 57 || h.RecordCount != 2 || h.BaseTimestamp != 1_600_000_000_000 {
		t.Fatalf("%+v, %v", h, err)
	}
	// What key compaction leaves of the last batch of a partition.
	empty, err := NewBuilder().SetBaseOffset(50).SetLastOffsetDelta(8).Build()
	if err != nil {
		t.Fatal(err)
	}
	if h, err = Parse(empty); err != nil || h.LastOffset() != 58 || h.RecordCount != 0 || len(empty) != HeaderBytes {
		t.Fatalf("%+v, %v", h, err)
	}
	compareRecords(t, empty, nil)
	for _, delta := range []int32{0, 12} {
		bld := NewBuilder()
		for _, r := range kept {
			bld.Add(r)
		}
		b := build(t, bld.SetLastOffsetDelta(delta), nil)
		if h, err := Parse(b); err != nil || h.LastOffsetDelta != max(delta, 7) {
			t.Errorf("last offset delta %d, %v, want at least %d and 7", h.LastOffsetDelta, err, delta)
		}
	}
	if _, err := NewBuilder().Build(); !errors.Is(err, ErrBuild) {
		t.Errorf("no records: %v", err)
	}
}

func TestTimestampSearch(t *testing.T) {
	for kind := CodecNone; kind < codecs; kind++ {
		bld := NewBuilder().SetCodec(kind, 0)
		for i, ts := range []int64{100, 90, 130, 120, 130} {
			bld.Append(ts, nil, fmt.Appendf(nil, "v%d", i))
		}
		b, err := bld.Build()
		if err != nil {
			t.Fatal(err)
		}
		tests := []struct {
			t     int64
			from  int32
			delta int32
			ts    int64
			ok    bool
		}{
			{math.MinInt64, 0, 0, 100, true}, {100, 0, 0, 100, true}, {101, 0, 2, 130, true}, {130, 0, 2, 130, true},
			{131, 0, 0, 0, false}, {90, 1, 1, 90, true}, {110, 3, 3, 120, true}, {125, 3, 4, 130, true}, {1, 5, 0, 0, false},
		}
		for _, tt := range tests {
			delta, ts, ok, err := FirstAtOrAfterFrom(b, tt.t, tt.from)
			if err != nil || delta != tt.delta || ts != tt.ts || ok != tt.ok {
				t.Errorf("%s: first at %d from %d: %d %d %v %v, want %+v", kind, tt.t, tt.from, delta, ts, ok, err, tt)
			}
		}
		if delta, ts, ok, err := MaxTimestampRecord(b); err != nil || delta != 2 || ts != 130 || !ok {
			t.Errorf("%s: max %d %d %v %v", kind, delta, ts, ok, err)
		}
		if err := SetLogAppendTime(b, 500); err != nil {
			t.Fatal(err)
		}
		if delta, ts, ok, err := FirstAtOrAfter(b, 400); err != nil || delta != 0 || ts != 500 || !ok {
			t.Errorf("%s: log append time %d %d %v %v", kind, delta, ts, ok, err)
		}
	}
}
