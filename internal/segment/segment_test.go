package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skeinio/skein/internal/record"
)

var update = flag.Bool("update", false, "write the golden files of this format version that do not exist yet")

const goldenDir = "../../testdata/segments"

var (
	topicA = TopicID{0xa1, 0xa2, 0xa3, 0xa4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	topicB = TopicID{0xb1, 0xb2, 0xb3, 0xb4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	segID  = ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

const baseMs = 1_700_000_000_000

// batch builds n records of about size bytes.
func batch(t testing.TB, b *record.Builder, n, size int, ts int64) []byte {
	t.Helper()
	for i := range n {
		value := bytes.Repeat(fmt.Appendf(nil, "line %d of a log, ", i), size/10+1)[:size]
		b.Append(ts+int64(i), fmt.Appendf(nil, "k%d", i), value)
	}
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func add(t testing.TB, w *Writer, topic TopicID, partition int32, parts ...[]byte) Placed {
	t.Helper()
	m, err := Describe(topic, partition, parts)
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Add(m, parts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func finish(t testing.TB, w *Writer) []byte {
	t.Helper()
	want := w.Size()
	o, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Join(o.Parts, nil)
	if int64(len(b)) != o.Size || o.Size != want {
		t.Fatalf("%d bytes, object says %d, writer said %d", len(b), o.Size, want)
	}
	return b
}

// level0 is a flush of three partitions: plain, compressed by its producer, and a
// control batch among idempotent ones.
func level0(t testing.TB, c Compression) []byte {
	t.Helper()
	w := NewWriter(Options{ID: segID, CreatedMs: baseMs, Compression: c})
	add(t, w, topicA, 0, batch(t, record.NewBuilder(), 3, 400, baseMs), batch(t, record.NewBuilder(), 2, 100, baseMs+50))
	add(t, w, topicA, 7, snappyBatch(t))
	add(t, w, topicB, 0,
		batch(t, record.NewBuilder().SetProducer(9, 1, 0).SetTransactional(), 2, 30, baseMs+1),
		record.ControlBatch(record.ControlCommit, 9, 1, 0, baseMs+99))
	return finish(t, w)
}

// snappyBatch is a batch that its producer compressed: a bare snappy block, one
// literal, made by hand so that its bytes depend on no library.
func snappyBatch(t testing.TB) []byte {
	t.Helper()
	b := batch(t, record.NewBuilder(), 1, 20, baseMs+7)
	p := b[record.HeaderBytes:]
	block := append([]byte{byte(len(p)), byte(len(p)-1) << 2}, p...)
	out := append(b[:record.HeaderBytes:record.HeaderBytes], block...)
	binary.BigEndian.PutUint32(out[8:], uint32(len(out)-12))
	out[22] |= byte(record.CodecSnappy)
	binary.BigEndian.PutUint32(out[17:], crc32.Checksum(out[21:], castagnoli))
	return out
}

// level1 is a run in three chunks, and a short run that is not chunked.
func level1(t testing.TB, c Compression) []byte {
	t.Helper()
	w := NewWriter(Options{ID: segID, Level: 1, CreatedMs: baseMs, Compression: c})
	run := ExtentMeta{TopicID: topicA, Partition: 3, BaseOffset: 1000, MaxTimestamp: baseMs + 202}
	var chunks []ChunkInput
	next := int64(1000)
	for i := range 3 {
		ts := baseMs + int64(i)*100
		parts := [][]byte{
			batch(t, record.NewBuilder().SetBaseOffset(next), 2, 200, ts),
			batch(t, record.NewBuilder().SetBaseOffset(next+2), 3, 300, ts),
		}
		chunks = append(chunks, ChunkInput{
			BaseOffset: next, LastOffset: next + 4, MaxTimestamp: ts + 2, Uncompressed: true, Parts: parts,
		})
		run.LastOffset = next + 4
		run.Batches += 2
		run.Records += 5
		next += 5 + int64(i) // holes between chunks, as key compaction leaves them
	}
	if _, err := w.AddRun(run, chunks); err != nil {
		t.Fatal(err)
	}
	add(t, w, topicB, 1, batch(t, record.NewBuilder().SetBaseOffset(5), 4, 60, baseMs))
	return finish(t, w)
}

var goldens = []struct {
	name string
	make func(testing.TB, Compression) []byte
	mode Compression
	// pinned: the writer must still produce these very bytes. What zstd makes may
	// change with the library; it must only stay readable.
	pinned bool
}{
	{"v1-level0-stored", level0, CompressionNone, true},
	{"v1-level0-zstd", level0, CompressionZstd, false},
	{"v1-level1-stored", level1, CompressionNone, true},
	{"v1-level1-zstd", level1, CompressionZstd, false},
}

func TestGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			made := g.make(t, g.mode)
			want := golden(t, g.name+".seg", made)
			if g.pinned && !bytes.Equal(made, want) {
				t.Errorf("the writer makes %d other bytes than the golden file's %d; a changed format needs a new version",
					len(made), len(want))
			}
			for _, o := range []DumpOptions{{Batches: true}, {Batches: true, JSON: true}} {
				var out bytes.Buffer
				if err := Dump(&out, bytes.NewReader(want), int64(len(want)), o); err != nil {
					t.Fatal(err)
				}
				name := g.name + ".txt"
				if o.JSON {
					name = g.name + ".json"
				}
				if w := golden(t, name, out.Bytes()); !bytes.Equal(out.Bytes(), w) {
					t.Errorf("dump is not %s:\n%s", name, out.Bytes())
				}
			}
			rep, err := Verify(bytes.NewReader(want), int64(len(want)), VerifyOptions{Records: true})
			if err != nil {
				t.Fatalf("%+v: %v", rep, err)
			}
			// The same batches are in it, however they are stored.
			if got, plain := contents(t, want), contents(t, g.make(t, CompressionNone)); !bytes.Equal(got, plain) {
				t.Error("decoded batches differ")
			}
		})
	}
}

func golden(t *testing.T, name string, made []byte) []byte {
	t.Helper()
	path := filepath.Join(goldenDir, name)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		b, err = made, os.WriteFile(path, made, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// contents decodes all extents.
func contents(t testing.TB, object []byte) []byte {
	t.Helper()
	x, err := OpenIndex(bytes.NewReader(object), int64(len(object)))
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	decode := func(pos, stored, raw int64, codec Codec, crc uint32) {
		b, err := DecodeExtent(object[pos:pos+stored], codec, raw, crc)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	for _, e := range x.Extents {
		if e.Codec != CodecChunked {
			decode(e.Position, e.StoredLength, e.RawLength, e.Codec, e.CRC)
		}
		for _, c := range e.Chunks {
			decode(c.Position, c.StoredLength, c.RawLength, c.Codec, c.CRC)
		}
	}
	return out
}

func TestIndexSaysWhatWasAdded(t *testing.T) {
	w := NewWriter(Options{ID: segID, CreatedMs: baseMs, Compression: CompressionAuto})
	compressible := [][]byte{batch(t, record.NewBuilder(), 50, 1000, baseMs), batch(t, record.NewBuilder(), 50, 1000, baseMs+500)}
	small := snappyBatch(t)
	p0 := add(t, w, topicA, 4, compressible...)
	p1 := add(t, w, topicB, 0, small)
	if p0.Codec != CodecZstd || p0.Position != HeaderBytes || p0.StoredLength >= p0.RawLength ||
		int(p0.RawLength) != len(compressible[0])+len(compressible[1]) {
		t.Errorf("compressible: %+v", p0)
	}
	if p1.Codec != CodecStored || p1.Position != p0.Position+int64(p0.StoredLength) || int(p1.RawLength) != len(small) {
		t.Errorf("compressed by its producer: %+v", p1)
	}
	b := finish(t, w)
	x, err := OpenIndex(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if x.ID != segID || x.Level != 0 || x.CreatedMs != baseMs || len(x.Extents) != 2 {
		t.Fatalf("%+v", x)
	}
	found := x.Find(topicA, 4)
	if len(found) != 1 || len(x.Find(topicA, 0)) != 0 {
		t.Fatalf("found %+v", found)
	}
	e := found[0]
	if e.Batches != 2 || e.Records != 100 || e.BaseOffset != -1 || e.LastOffset != -1 || e.MaxTimestamp != baseMs+549 ||
		e.Position != p0.Position || e.StoredLength != int64(p0.StoredLength) || e.RawLength != int64(p0.RawLength) || e.CRC != p0.CRC {
		t.Errorf("%+v", e)
	}
	if got := contents(t, b); !bytes.Equal(got, bytes.Join([][]byte{compressible[0], compressible[1], small}, nil)) {
		t.Error("decoded batches differ")
	}
}

func TestDescribe(t *testing.T) {
	plain := batch(t, record.NewBuilder().SetBaseOffset(7), 3, 10, baseMs+500)
	marker := record.ControlBatch(record.ControlAbort, 1, 0, 0, baseMs)
	packed := snappyBatch(t)
	tests := []struct {
		parts [][]byte
		want  ExtentMeta
	}{
		{[][]byte{plain}, ExtentMeta{Batches: 1, Records: 3, BaseOffset: 7, LastOffset: 9, MaxTimestamp: baseMs + 502, Uncompressed: true}},
		{[][]byte{slices.Concat(plain, marker)}, ExtentMeta{Batches: 2, Records: 4, BaseOffset: 7, MaxTimestamp: baseMs + 502, Uncompressed: true}},
		{[][]byte{packed, plain}, ExtentMeta{Batches: 2, Records: 4, LastOffset: 9, MaxTimestamp: baseMs + 502}},
		{[][]byte{plain, packed}, ExtentMeta{Batches: 2, Records: 4, BaseOffset: 7, MaxTimestamp: baseMs + 502}},
	}
	for i, tt := range tests {
		tt.want.TopicID, tt.want.Partition = topicB, 5
		if got, err := Describe(topicB, 5, tt.parts); err != nil || got != tt.want {
			t.Errorf("%d: %+v, %v, want %+v", i, got, err, tt.want)
		}
	}
}

func TestStoredPartsAreNotCopied(t *testing.T) {
	parts := [][]byte{batch(t, record.NewBuilder(), 2, 100, 0), batch(t, record.NewBuilder(), 2, 100, 0)}
	w := NewWriter(Options{Compression: CompressionNone})
	add(t, w, topicA, 0, parts...)
	o, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Parts) != 4 || &o.Parts[1][0] != &parts[0][0] || &o.Parts[2][0] != &parts[1][0] {
		t.Errorf("%d parts, not header, the two given, footer", len(o.Parts))
	}
	if want := int64(HeaderBytes + FooterPrefixBytes + ExtentEntryBytes + TrailerBytes); o.Allocated != want {
		t.Errorf("allocated %d, want %d", o.Allocated, want)
	}
}

func TestEncodePolicy(t *testing.T) {
	random := make([]byte, 300<<10)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(random); err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog. "), 10_000)
	half := slices.Concat(text[:100<<10], random[:100<<10], text[:100<<10])
	randomFirst := slices.Concat(random[:70<<10], text[:230<<10])
	tests := []struct {
		name         string
		raw          []byte
		mode         Compression
		uncompressed bool
		want         Codec
	}{
		{"text", text, CompressionAuto, true, CodecZstd},
		{"text, off", text, CompressionNone, true, CodecStored},
		{"text that the producer compressed", text, CompressionAuto, false, CodecStored},
		{"text that the producer compressed, always", text, CompressionZstd, false, CodecStored},
		{"random", random, CompressionAuto, true, CodecStored},
		{"random, always", random, CompressionZstd, true, CodecStored},
		{"random at its start only", randomFirst, CompressionAuto, true, CodecZstd},
		{"half", half, CompressionAuto, true, CodecZstd},
		{"small text", text[:5000], CompressionAuto, true, CodecZstd},
		{"tiny text", text[:4000], CompressionAuto, true, CodecStored},
		{"tiny text, always", text[:500], CompressionZstd, true, CodecZstd},
		{"small random", random[:5000], CompressionAuto, true, CodecStored},
		{"at the sample's size", text[:sampleBytes], CompressionAuto, true, CodecZstd},
		{"just above it", text[:sampleBytes+1], CompressionAuto, true, CodecZstd},
	}
	for _, tt := range tests {
		// Cut into parts of every size around the sample's pieces.
		for _, cut := range []int{len(tt.raw), 1000, 16<<10 - 1, 40 << 10} {
			parts := slices.Collect(slices.Chunk(tt.raw, cut))
			e, err := Encode(parts, tt.mode, tt.uncompressed)
			if err != nil {
				t.Fatal(err)
			}
			if e.Codec != tt.want {
				t.Errorf("%s in parts of %d: %s, want %s", tt.name, cut, e.Codec, tt.want)
			}
			stored := bytes.Join(e.Parts, nil)
			got, err := DecodeExtent(stored, e.Codec, e.RawLength, e.CRC)
			if err != nil || !bytes.Equal(got, tt.raw) {
				t.Errorf("%s in parts of %d: decodes to %d bytes, %v", tt.name, cut, len(got), err)
			}
			if e.Codec == CodecZstd && e.Allocated < e.StoredLength || e.Codec == CodecStored && e.Allocated != 0 {
				t.Errorf("%s: allocated %d", tt.name, e.Allocated)
			}
		}
	}
}

func TestSampleIsSpread(t *testing.T) {
	raw := make([]byte, 1<<20)
	for i := range raw {
		raw[i] = byte(i >> 12) // says which 4 KiB it is from
	}
	for _, cut := range []int{len(raw), 999, 100 << 10} {
		got := appendSample(nil, slices.Collect(slices.Chunk(raw, cut)), int64(len(raw)))
		if len(got) != sampleBytes {
			t.Fatalf("parts of %d: %d bytes", cut, len(got))
		}
		if !bytes.Equal(got[:16<<10], raw[:16<<10]) || !bytes.Equal(got[48<<10:], raw[len(raw)-16<<10-(len(raw)-16<<10)%3:][:16<<10]) {
			t.Errorf("parts of %d: the first or last piece is not from the start or the end", cut)
		}
	}
}

func TestDecodeExtentRefuses(t *testing.T) {
	raw := bytes.Repeat([]byte("compress me "), 1000)
	e, err := Encode([][]byte{raw}, CompressionZstd, true)
	if err != nil || e.Codec != CodecZstd {
		t.Fatal(e.Codec, err)
	}
	stored := e.Parts[0]
	crc := func(b []byte) uint32 {
		e, err := Encode([][]byte{b}, CompressionNone, true)
		if err != nil {
			t.Fatal(err)
		}
		return e.CRC
	}
	cut := stored[:len(stored)-3]
	tests := map[string]struct {
		stored []byte
		codec  Codec
		raw    int64
		crc    uint32
	}{
		"crc":               {stored, CodecZstd, e.RawLength, e.CRC ^ 1},
		"raw length small":  {stored, CodecZstd, e.RawLength - 1, e.CRC},
		"raw length large":  {stored, CodecZstd, e.RawLength + 1, e.CRC},
		"raw length huge":   {stored, CodecZstd, MaxBlobBytes + 1, e.CRC},
		"raw length < 0":    {stored, CodecZstd, -1, e.CRC},
		"stored length":     {raw, CodecStored, e.RawLength + 1, crc(raw)},
		"not zstd":          {raw, CodecZstd, e.RawLength, crc(raw)},
		"cut":               {cut, CodecZstd, e.RawLength, crc(cut)},
		"nothing":           {nil, CodecZstd, 61, 0},
		"chunked":           {stored, CodecChunked, e.RawLength, e.CRC},
		"codec from beyond": {stored, 9, e.RawLength, e.CRC},
	}
	for name, tt := range tests {
		if b, err := DecodeExtent(tt.stored, tt.codec, tt.raw, tt.crc); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	b := batch(t, record.NewBuilder(), 1, 10, 0)
	good, err := Describe(topicA, 0, [][]byte{b})
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(Options{Level: 1})
	bad := map[string]func(m *ExtentMeta){
		"no batches":          func(m *ExtentMeta) { m.Batches = 0 },
		"too many batches":    func(m *ExtentMeta) { m.Batches = 9 },
		"partition":           func(m *ExtentMeta) { m.Partition = -1 },
		"unknown offsets":     func(m *ExtentMeta) { m.BaseOffset, m.LastOffset = -1, -1 },
		"offsets run back":    func(m *ExtentMeta) { m.BaseOffset, m.LastOffset = 9, 8 },
		"run without a chunk": nil,
	}
	size := w.Size()
	for name, change := range bad {
		m := good
		if change == nil {
			_, err = w.AddRun(m, nil)
		} else {
			change(&m)
			_, err = w.Add(m, [][]byte{b})
		}
		if !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.Size() != size || w.Extents() != 0 {
		t.Errorf("refused extents left something: %d bytes, %d extents", w.Size(), w.Extents())
	}
	if _, err := w.AddRun(good, []ChunkInput{{BaseOffset: 1, LastOffset: 2, Parts: [][]byte{b}}}); !errors.Is(err, ErrInput) {
		t.Errorf("chunk outside its run: %v", err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(good, [][]byte{b}); !errors.Is(err, ErrInput) {
		t.Errorf("after Finish: %v", err)
	}
	if _, err := w.Finish(); !errors.Is(err, ErrInput) {
		t.Errorf("second Finish: %v", err)
	}
	if _, err := Describe(topicA, 0, nil); !errors.Is(err, ErrInput) {
		t.Errorf("describe nothing: %v", err)
	}
	if _, err := Describe(topicA, 0, [][]byte{b[:len(b)-1]}); !errors.Is(err, record.ErrTruncated) {
		t.Errorf("describe half a batch: %v", err)
	}
}

func TestTooManyExtents(t *testing.T) {
	b := batch(t, record.NewBuilder(), 1, 10, 0)
	m, err := Describe(topicA, 0, [][]byte{b})
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(Options{})
	for range MaxExtents {
		if _, err := w.Add(m, [][]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Add(m, [][]byte{b}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one more than %d: %v", MaxExtents, err)
	}
	object := finish(t, w)
	var reads [][2]int64
	x, err := OpenIndex(ReadAtFunc(func(p []byte, off int64) (int, error) {
		reads = append(reads, [2]int64{off, int64(len(p))})
		return bytes.NewReader(object).ReadAt(p, off)
	}), int64(len(object)))
	if err != nil || len(x.Extents) != MaxExtents {
		t.Fatalf("%v", err)
	}
	if len(reads) != 2 {
		t.Errorf("reads %v", reads)
	}
}

func TestEmptySegment(t *testing.T) {
	b := finish(t, NewWriter(Options{}))
	if len(b) != minObjectBytes {
		t.Errorf("%d bytes", len(b))
	}
	if rep, err := Verify(bytes.NewReader(b), int64(len(b)), VerifyOptions{}); err != nil || rep.Extents != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestDrain(t *testing.T) {
	one := batch(t, record.NewBuilder(), 2, 100, baseMs)
	two := batch(t, record.NewBuilder(), 3, 100, baseMs)
	w := NewWriter(Options{ID: segID})
	add(t, w, topicA, 0, one)
	streamed := bytes.Join(w.Drain(), nil)
	add(t, w, topicA, 1, two)
	streamed = append(streamed, bytes.Join(w.Drain(), nil)...)
	o, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	streamed = append(streamed, bytes.Join(o.Parts, nil)...)
	whole := NewWriter(Options{ID: segID})
	add(t, whole, topicA, 0, one)
	add(t, whole, topicA, 1, two)
	if want := finish(t, whole); !bytes.Equal(streamed, want) || o.Size != int64(len(want)) {
		t.Errorf("drained %d bytes, object of %d, want %d", len(streamed), o.Size, len(want))
	}
}

func TestOpenIndexReadErrors(t *testing.T) {
	b := level0(t, CompressionNone)
	boom := errors.New("bucket is down")
	_, err := OpenIndex(ReadAtFunc(func([]byte, int64) (int, error) { return 0, boom }), int64(len(b)))
	if !errors.Is(err, boom) || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	_, err = OpenIndex(bytes.NewReader(b[:len(b)-5]), int64(len(b)))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("object shorter than said: %v", err)
	}
}
