package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/skeinio/skein/internal/record"
)

// Where the trailer's fields start, counted from the end of the object.
const (
	trailerLength  = TrailerBytes
	trailerCRC     = TrailerBytes - 4
	trailerVersion = TrailerBytes - 8
)

func verify(b []byte) error {
	_, err := Verify(bytes.NewReader(b), int64(len(b)), VerifyOptions{Records: true})
	return err
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	for _, g := range goldens {
		b := g.make(t, g.mode)
		for i := range b {
			for bit := range 8 {
				b[i] ^= 1 << bit
				err := verify(b)
				b[i] ^= 1 << bit
				if err == nil {
					t.Fatalf("%s: bit %d of byte %d of %d changed unnoticed", g.name, bit, i, len(b))
				}
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotSegment) && !errors.Is(err, ErrVersion) {
					t.Fatalf("%s: byte %d: %v", g.name, i, err)
				}
			}
		}
		for n := range b {
			if err := verify(b[:n]); err == nil {
				t.Fatalf("%s: cut to %d of %d bytes unnoticed", g.name, n, len(b))
			}
		}
		if err := verify(append(slices.Clone(b), 0)); !errors.Is(err, ErrNotSegment) {
			t.Errorf("%s: a byte behind it: %v", g.name, err)
		}
		if err := verify(slices.Concat([]byte{0}, b)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: a byte before it: %v", g.name, err)
		}
		if err := verify(slices.Concat(b, b)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: twice: %v", g.name, err)
		}
	}
}

func TestVersionAndMagic(t *testing.T) {
	b := level0(t, CompressionNone)
	open := func(b []byte) error {
		_, err := OpenIndex(bytes.NewReader(b), int64(len(b)))
		return err
	}
	v2 := slices.Clone(b)
	binary.BigEndian.PutUint16(v2[len(v2)-trailerVersion:], 2)
	if err := open(v2); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "2") {
		t.Errorf("version 2: %v", err)
	}
	for name, b := range map[string][]byte{"nothing": nil, "text": bytes.Repeat([]byte("hello "), 100), "71 bytes": make([]byte, 71)} {
		if err := open(b); !errors.Is(err, ErrNotSegment) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// resealed changes a footer and makes its CRC right again, as an attacker or a bug
// in a writer could.
func resealed(b []byte, change func(footer []byte)) []byte {
	b = slices.Clone(b)
	n := int(binary.BigEndian.Uint32(b[len(b)-trailerLength:]))
	f := b[len(b)-TrailerBytes-n : len(b)-TrailerBytes]
	change(f)
	binary.BigEndian.PutUint32(b[len(b)-trailerCRC:], crc32.Checksum(f, castagnoli))
	return b
}

func TestOpenIndexRefusesImpossibleFooters(t *testing.T) {
	be := binary.BigEndian
	const e0 = FooterPrefixBytes
	const e1 = e0 + ExtentEntryBytes
	const c0 = FooterPrefixBytes + 2*ExtentEntryBytes // of level1
	put32 := func(at int, v uint32) func([]byte) { return func(f []byte) { be.PutUint32(f[at:], v) } }
	put64 := func(at int, v uint64) func([]byte) { return func(f []byte) { be.PutUint64(f[at:], v) } }
	put8 := func(at int, v byte) func([]byte) { return func(f []byte) { f[at] = v } }
	l0, l1 := level0(t, CompressionNone), level1(t, CompressionZstd)
	tests := []struct {
		name   string
		b      []byte
		change func([]byte)
	}{
		{"extents over the footer", l0, put32(28, 1<<31)},
		{"one extent too many", l0, put32(28, 4)},
		{"one extent too few", l0, put32(28, 2)},
		{"chunks over the footer", l0, put32(32, 1<<31)},
		{"footer padding", l0, put8(27, 1)},
		{"extent padding", l0, put8(e0+22, 1)},
		{"negative partition", l0, put32(e0+16, 1<<31)},
		{"codec", l0, put8(e0+20, 3)},
		{"chunked at level 0", l0, put8(e0+20, 2)},
		{"position early", l0, put64(e0+24, 15)},
		{"position huge", l0, put64(e0+24, 1<<63)},
		{"overlap", l0, put64(e1+24, 17)},
		{"stored length huge", l0, put32(e0+32, 1<<32-1)},
		{"stored length 0", l0, put32(e0+32, 0)},
		{"raw length", l0, put32(e0+36, 100)},
		{"no batches", l0, put32(e0+44, 0)},
		{"batches that do not fit", l0, put32(e0+44, 1000)},
		{"chunks that are not there", l0, put32(e0+52, 1<<31)},
		{"an offset at level 0", l0, put64(e0+56, 0)},
		{"level 1 without offsets", l0, func(f []byte) { be.PutUint16(f[24:], 1) }},
		{"level 0 with chunks", l1, func(f []byte) { be.PutUint16(f[24:], 0) }},
		{"a chunk too many", l1, put32(e0+52, 4)},
		{"a chunk too few", l1, put32(e0+52, 2)},
		{"no chunks", l1, put32(e0+52, 0)},
		{"the next extent takes a chunk", l1, func(f []byte) { be.PutUint32(f[e0+52:], 2); be.PutUint32(f[e1+52:], 1) }},
		{"raw length is not the chunks'", l1, put32(e0+36, 4430)},
		{"stored length is not the chunks'", l1, put32(e0+32, 661)},
		{"base offset is not the chunks'", l1, put64(e0+56, 999)},
		{"last offset is not the chunks'", l1, put64(e0+64, 1016)},
		{"timestamp below a chunk's", l1, put64(e0+72, 5)},
		{"chunks of no extent", level1(t, CompressionNone), func(f []byte) { f[e0+20] = 0; be.PutUint32(f[e0+52:], 0) }},
		{"chunk padding", l1, put8(c0+21, 1)},
		{"chunk codec", l1, put8(c0+20, 2)},
		{"chunk position", l1, put64(c0+48, 17)},
		{"chunk stored length", l1, put32(c0+8, 0)},
		{"chunk raw length", l1, put32(c0+12, 1<<31)},
		{"chunk offsets run back", l1, put64(c0+32, 999)},
		{"chunk offsets overlap", l1, put64(c0+48+24, 1004)},
	}
	for _, tt := range tests {
		b := resealed(tt.b, tt.change)
		if x, err := OpenIndex(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v", tt.name, x, err)
		}
	}
	for _, b := range [][]byte{l0, l1} {
		if same := resealed(b, func([]byte) {}); !bytes.Equal(same, b) {
			t.Error("resealing an unchanged footer changes it")
		}
	}
	for _, n := range []uint32{0, FooterPrefixBytes - 1, uint32(len(l0)), MaxFooterBytes + 1, 1<<32 - 1} {
		b := slices.Clone(l0)
		be.PutUint32(b[len(b)-trailerLength:], n)
		if _, err := OpenIndex(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("footer of %d bytes: %v", n, err)
		}
	}
}

func TestHugeFooterIsNotRead(t *testing.T) {
	const size = 1 << 40
	end := level0(t, CompressionNone)
	end = end[len(end)-TrailerBytes:]
	reads := 0
	open := func(footer uint32) error {
		reads = 0
		_, err := OpenIndex(ReadAtFunc(func(p []byte, off int64) (int, error) {
			reads++
			if off+int64(len(p)) == size {
				binary.BigEndian.PutUint32(end, footer)
				copy(p[len(p)-TrailerBytes:], end)
			}
			return len(p), nil
		}), size)
		return err
	}
	if err := open(MaxFooterBytes + 1); !errors.Is(err, ErrCorrupt) || reads != 1 {
		t.Errorf("over the bound: %d reads, %v", reads, err)
	}
	if err := open(MaxFooterBytes); !errors.Is(err, ErrCorrupt) || reads != 2 {
		t.Errorf("at the bound: %d reads, %v", reads, err)
	}
}

// What only the batches show: CRCs are right, but the index lies about them.
func TestVerifyFindsLies(t *testing.T) {
	be := binary.BigEndian
	const e0 = FooterPrefixBytes
	const c0 = FooterPrefixBytes + 2*ExtentEntryBytes
	l0, l1 := level0(t, CompressionNone), level1(t, CompressionNone)
	tests := []struct {
		name   string
		b      []byte
		change func([]byte)
		want   string
	}{
		{"batches", l0, func(f []byte) { be.PutUint32(f[e0+44:], 1) }, "2 batches"},
		{"records", l0, func(f []byte) { be.PutUint32(f[e0+48:], 6) }, "5 records"},
		{"max timestamp", l0, func(f []byte) { be.PutUint64(f[e0+72:], baseMs) }, "max timestamp"},
		{"extent crc", l1, func(f []byte) { f[e0+43] ^= 1 }, "extent has CRC"},
		{"chunk base offset", l1, func(f []byte) { be.PutUint64(f[c0+48+24:], 1006) }, "chunk has offsets 1005 to 1009"},
		{"chunk max timestamp", l1, func(f []byte) { be.PutUint64(f[c0+40:], 5) }, "chunk has max timestamp"},
		{"extent offsets", l1, func(f []byte) { be.PutUint64(f[e0+ExtentEntryBytes+56:], 4) }, "offsets 5 to 8, footer says 4 to 8"},
	}
	for _, tt := range tests {
		if err := verify(resealed(tt.b, tt.change)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// A batch whose own CRC is wrong inside an extent whose CRC is right.
	bad := batch(t, record.NewBuilder(), 2, 100, baseMs)
	bad[len(bad)-1] ^= 1
	w := NewWriter(Options{})
	add(t, w, topicA, 0, bad)
	if err := verify(finish(t, w)); !errors.Is(err, record.ErrCRC) {
		t.Errorf("batch crc: %v", err)
	}
	// Batches that overlap.
	w = NewWriter(Options{Level: 1})
	parts := [][]byte{
		batch(t, record.NewBuilder().SetBaseOffset(10), 2, 10, baseMs), batch(t, record.NewBuilder().SetBaseOffset(11), 2, 10, baseMs),
	}
	add(t, w, topicA, 0, parts...)
	if err := verify(finish(t, w)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "offset 11 after 11") {
		t.Errorf("overlap: %v", err)
	}
}

func TestVerifyBoundsItsProblems(t *testing.T) {
	bad := batch(t, record.NewBuilder(), 1, 10, baseMs)
	bad[len(bad)-1] ^= 1
	w := NewWriter(Options{})
	for i := range int32(3 * MaxProblems) {
		add(t, w, topicA, i, bad)
	}
	b := finish(t, w)
	rep, err := Verify(bytes.NewReader(b), int64(len(b)), VerifyOptions{})
	if err == nil || len(rep.Problems) != MaxProblems || rep.ProblemCount != 3*MaxProblems || rep.Extents != 3*MaxProblems {
		t.Errorf("%d named of %d, %v", len(rep.Problems), rep.ProblemCount, err)
	}
	if rep.Problems[7].Extent != 7 {
		t.Errorf("%+v", rep.Problems[7])
	}
}

func FuzzOpenIndex(f *testing.F) {
	for _, g := range goldens {
		f.Add(g.make(f, g.mode))
	}
	f.Add(finish(f, NewWriter(Options{})))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Make the frame right, so that the fuzzer gets to the entries.
		if len(b) >= minObjectBytes {
			b = slices.Clone(b)
			copy(b[len(b)-8:], magic)
			binary.BigEndian.PutUint32(b[len(b)-12:], Version<<16)
			if n := int64(binary.BigEndian.Uint32(b[len(b)-trailerLength:])); n <= int64(len(b)-TrailerBytes) {
				b = resealed(b, func([]byte) {})
			}
		}
		x, err := OpenIndex(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotSegment) {
				t.Fatal(err)
			}
			return
		}
		pos := int64(HeaderBytes)
		chunks := 0
		for _, e := range x.Extents {
			if e.Position != pos || e.StoredLength <= 0 || e.RawLength < minExtentBytes {
				t.Fatalf("extent %+v at %d", e, pos)
			}
			pos += e.StoredLength
			chunks += len(e.Chunks)
		}
		if pos != x.FooterPosition {
			t.Fatalf("extents end at %d, footer at %d", pos, x.FooterPosition)
		}
		if got := encodeFooter(x, chunks); !bytes.Equal(got, b[x.FooterPosition:]) {
			t.Fatal("footer is another when written again")
		}
		if _, err := Verify(bytes.NewReader(b), int64(len(b)), VerifyOptions{Records: true}); err != nil &&
			!errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotSegment) {
			t.Fatal(err)
		}
		if err := Dump(&bytes.Buffer{}, bytes.NewReader(b), int64(len(b)), DumpOptions{JSON: true}); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeExtent(f *testing.F) {
	for _, n := range []int{1, 100, 10_000} {
		e, err := Encode([][]byte{bytes.Repeat([]byte("abc "), n)}, CompressionZstd, true)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Join(e.Parts, nil), uint8(e.Codec), e.RawLength)
	}
	f.Fuzz(func(t *testing.T, b []byte, codec uint8, raw int64) {
		raw %= 1 << 20
		out, err := DecodeExtent(b, Codec(codec), raw, crc32.Checksum(b, castagnoli))
		if err == nil && int64(len(out)) != raw || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
	})
}

// corpora are 8 MiB as batches of 64 records of 1 KiB.
func corpora(b *testing.B) map[string][][]byte {
	b.Helper()
	r := rand.NewChaCha8([32]byte{7})
	words := strings.Fields("GET POST 200 404 500 index.html /api/v1/users /health error warn info connection reset by peer timeout 10.0.0.1 kernel systemd")
	pick := rand.New(rand.NewPCG(1, 2))
	out := map[string][][]byte{}
	for _, kind := range []string{"random", "log"} {
		var parts [][]byte
		for range 8 << 20 / (64 << 10) {
			bld := record.NewBuilder()
			for i := range 64 {
				v := make([]byte, 0, 1024)
				if kind == "random" {
					v = v[:1024]
					if _, err := r.Read(v); err != nil {
						b.Fatal(err)
					}
				}
				for len(v) < 1000 {
					v = append(v, words[pick.IntN(len(words))]...)
					v = append(v, ' ', byte('0'+pick.IntN(10)), byte('0'+pick.IntN(10)), ' ')
				}
				bld.Append(int64(i), nil, v)
			}
			p, err := bld.Build()
			if err != nil {
				b.Fatal(err)
			}
			parts = append(parts, p)
		}
		out[kind] = parts
	}
	return out
}

func BenchmarkSegment8MiB(b *testing.B) {
	c := corpora(b)
	for _, kind := range []string{"random", "log"} {
		for _, mode := range []Compression{CompressionAuto, CompressionNone} {
			for _, extents := range []int{1, 128} {
				b.Run(kind+"/"+mode.String()+map[int]string{1: "/1extent", 128: "/128extents"}[extents], func(b *testing.B) {
					parts := c[kind]
					b.SetBytes(8 << 20)
					b.ReportAllocs()
					var size int64
					for b.Loop() {
						w := NewWriter(Options{Compression: mode})
						i := 0
						for chunk := range slices.Chunk(parts, len(parts)/extents) {
							m, err := Describe(topicA, int32(i), chunk)
							if err != nil {
								b.Fatal(err)
							}
							if _, err := w.Add(m, chunk); err != nil {
								b.Fatal(err)
							}
							i++
						}
						o, err := w.Finish()
						if err != nil {
							b.Fatal(err)
						}
						size = o.Size
					}
					b.ReportMetric(float64(size)/(8<<20), "of-raw")
				})
			}
		}
	}
}

func BenchmarkDecodeExtent(b *testing.B) {
	parts := corpora(b)["log"]
	for name, n := range map[string]int{"64KiB": 1, "8MiB": len(parts)} {
		e, err := Encode(parts[:n], CompressionAuto, true)
		if err != nil || e.Codec != CodecZstd {
			b.Fatal(e.Codec, err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(e.RawLength)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeExtent(e.Parts[0], e.Codec, e.RawLength, e.CRC); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
