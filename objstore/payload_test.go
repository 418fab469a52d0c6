package objstore_test

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/skeinio/skein/objstore"
)

// vectors are ways to cut the same bytes into slices.
func vectors(data []byte) map[string]objstore.Payload {
	n := len(data)
	return map[string]objstore.Payload{
		"one":     {data},
		"bytes":   chopAt(data, 1),
		"sevens":  chopAt(data, 7),
		"empties": {nil, data[:n/3], {}, {}, data[n/3 : n/2], data[n/2:], nil},
	}
}

func chopAt(data []byte, n int) objstore.Payload {
	var p objstore.Payload
	for len(data) > n {
		p, data = append(p, data[:n]), data[n:]
	}
	return append(p, data)
}

func testBytes(n int) []byte {
	data := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func TestPayloadReader(t *testing.T) {
	for _, n := range []int{0, 1, 1000} {
		data := testBytes(n)
		for name, p := range vectors(data) {
			if p.Size() != int64(n) {
				t.Errorf("%s: size %d, want %d", name, p.Size(), n)
			}
			if want := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)); p.CRC32C() != want {
				t.Errorf("%s: checksum %x, want %x", name, p.CRC32C(), want)
			}
			// Reads, seeks and reads at positions, in all their corners.
			if err := iotest.TestReader(p.NewReader(), data); err != nil {
				t.Errorf("%s of %d: %v", name, n, err)
			}
			var out bytes.Buffer
			if m, err := p.NewReader().WriteTo(&out); m != int64(n) || err != nil || !bytes.Equal(out.Bytes(), data) {
				t.Errorf("%s of %d: WriteTo wrote %d, error %v", name, n, m, err)
			}
		}
	}
}

// TestPayloadIsNotCopied wants WriteTo to hand over the slices themselves.
func TestPayloadIsNotCopied(t *testing.T) {
	data := testBytes(100)
	p := chopAt(data, 30)
	var seen [][]byte
	if _, err := p.NewReader().WriteTo(writerFunc(func(b []byte) (int, error) {
		seen = append(seen, b)
		return len(b), nil
	})); err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(p) {
		t.Fatalf("%d writes, want %d", len(seen), len(p))
	}
	for i := range seen {
		if &seen[i][0] != &p[i][0] {
			t.Errorf("slice %d is a copy", i)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestPayloadWriteToErrors(t *testing.T) {
	p := chopAt(testBytes(100), 30)
	broken := errors.New("broken")
	r := p.NewReader()
	n, err := r.WriteTo(writerFunc(func(b []byte) (int, error) { return 10, broken }))
	if n != 10 || err != broken {
		t.Errorf("a failing writer: %d, %v", n, err)
	}
	if n, err := r.WriteTo(writerFunc(func(b []byte) (int, error) { return len(b) - 1, nil })); n != 19 || err != io.ErrShortWrite {
		t.Errorf("a short writer: %d, %v", n, err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(rest, testBytes(100)[29:]) {
		t.Errorf("the rest: %d bytes, error %v", len(rest), err)
	}
}

func TestPayloadSeek(t *testing.T) {
	r := chopAt(testBytes(100), 30).NewReader()
	for _, test := range []struct {
		offset int64
		whence int
		want   int64
		left   int
	}{{30, io.SeekStart, 30, 70}, {-1, io.SeekCurrent, 29, 71}, {-100, io.SeekEnd, 0, 100}, {5, io.SeekEnd, 105, 0}} {
		got, err := r.Seek(test.offset, test.whence)
		if got != test.want || err != nil || r.Len() != test.left {
			t.Errorf("seek %d from %d: %d, error %v, %d left", test.offset, test.whence, got, err, r.Len())
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	for _, whence := range []int{io.SeekStart, 9} {
		if _, err := r.Seek(-1, whence); err == nil {
			t.Errorf("seek -1 from %d is no error", whence)
		}
	}
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("read at -1 is no error")
	}
}

func TestPayloadClose(t *testing.T) {
	r := objstore.Bytes(testBytes(100)).NewReader()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	_, readErr := r.Read(make([]byte, 1))
	_, atErr := r.ReadAt(make([]byte, 1), 0)
	_, seekErr := r.Seek(0, io.SeekStart)
	_, writeErr := r.WriteTo(io.Discard)
	for _, err := range []error{readErr, atErr, seekErr, writeErr} {
		if !errors.Is(err, objstore.ErrPayloadClosed) {
			t.Errorf("after close: %v", err)
		}
	}
}

// TestPayloadCloseWaits reuses the memory after Close while others read: the race detector objects if
// Close does not wait for them.
func TestPayloadCloseWaits(t *testing.T) {
	data := testBytes(1 << 20)
	r := chopAt(data, 1000).NewReader()
	var reading sync.WaitGroup
	started := make(chan struct{}, 2)
	reading.Go(func() {
		buf := make([]byte, 100)
		for first := true; ; first = false {
			if _, err := r.Read(buf); err != nil {
				return
			}
			if first {
				started <- struct{}{}
			}
		}
	})
	reading.Go(func() {
		buf := make([]byte, 100)
		for at := int64(0); ; at++ {
			if _, err := r.ReadAt(buf, at%1000); err != nil {
				return
			}
			if at == 0 {
				started <- struct{}{}
			}
		}
	})
	<-started
	<-started
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	clear(data)
	reading.Wait()
}

func BenchmarkPayloadCRC32C(b *testing.B) {
	p := chopAt(testBytes(8<<20), 16<<10)
	b.SetBytes(p.Size())
	for b.Loop() {
		_ = p.CRC32C()
	}
}
