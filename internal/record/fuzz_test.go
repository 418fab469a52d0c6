package record

import (
	"bytes"
	"errors"
	"testing"
)

// seeds are batches of every kind, and some that are wrong.
func seeds(f *testing.F) {
	for c := CodecNone; c < codecs; c++ {
		f.Add(build(f, NewBuilder().SetCodec(c, 0).SetProducer(3, 1, 7), sampleRecords(9)))
	}
	f.Add(ControlBatch(ControlCommit, 5, 2, 1, 1_700_000_000_000))
	f.Add(build(f, NewBuilder().SetLastOffsetDelta(4), nil))
	f.Add(bytes.Repeat(build(f, NewBuilder(), sampleRecords(2)), 2))
	f.Add([]byte{})
}

func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		if h.Size() < HeaderBytes || h.Size() > len(b) || h.Magic != Magic {
			t.Fatalf("accepted %+v in %d bytes", h, len(b))
		}
		total, whole := 0, true
		for x, err := range Batches(b) {
			if err != nil {
				whole = false
				break
			}
			if x.Position != total {
				t.Fatalf("batch at %d, expected %d", x.Position, total)
			}
			total += len(x.Bytes)
		}
		if total < h.Size() || whole && total != len(b) {
			t.Fatalf("batches cover %d of %d bytes", total, len(b))
		}
	})
}

func FuzzCheckProduce(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		reseal(b)
		h, err := CheckProduce(b, ProduceLimits{MaxBytes: 1 << 20})
		if err != nil {
			return
		}
		if h.Size() != len(b) || h.RecordCount < 1 || h.LastOffsetDelta != h.RecordCount-1 || h.Control() || h.BaseOffset != 0 {
			t.Fatalf("accepted %+v in %d bytes", h, len(b))
		}
		if h.HasProducerID() && (h.LastSequence() < 0 || h.ProducerEpoch < 0) {
			t.Fatalf("accepted %+v", h)
		}
		if err := SetLogAppendTime(b, 12345); err != nil {
			t.Fatal(err)
		}
		if h, err = CheckProduce(b, ProduceLimits{}); err != nil || h.MaxTimestamp != 12345 {
			t.Fatalf("not valid after SetLogAppendTime: %+v, %v", h, err)
		}
	})
}

// reseal makes the CRC right, so that the fuzzer gets past it.
func reseal(b []byte) {
	if h, err := Parse(b); err == nil {
		seal(b[:h.Size()])
	}
}

func FuzzRecords(f *testing.F) {
	seeds(f)
	const limit = 1 << 20
	f.Fuzz(func(t *testing.T, b []byte) {
		rep, checkErr := CheckRecords(b, RecordOptions{MaxDecompressedBytes: limit})
		n, bytes := int32(0), 0
		var iterErr error
		dense := true
		for r, err := range Records(b, limit) {
			if err != nil {
				iterErr = err
				break
			}
			dense = dense && r.OffsetDelta == n
			n++
			bytes += len(r.Key) + len(r.Value)
			for _, h := range r.Headers {
				bytes += len(h.Key) + len(h.Value)
			}
		}
		if bytes > limit+len(b) {
			t.Fatalf("%d bytes over a limit of %d", bytes, limit)
		}
		h, err := Parse(b)
		if err != nil {
			if checkErr == nil || iterErr == nil {
				t.Fatalf("unparsable, but %v, %v", checkErr, iterErr)
			}
			return
		}
		// Both must agree on what is well formed; only offset deltas are checked by one alone.
		if (checkErr == nil) != (iterErr == nil && dense) {
			t.Fatalf("check %v, iterate %v, dense %v", checkErr, iterErr, dense)
		}
		if checkErr != nil {
			return
		}
		if n != max(h.RecordCount, 0) {
			t.Fatalf("%d records, header says %d", n, h.RecordCount)
		}
		if n > 0 {
			_, ts, ok, err := MaxTimestampRecord(b)
			if err != nil || !ok || max(ts, NoTimestamp) != rep.MaxTimestamp {
				t.Fatalf("max timestamp %d %v %v, report %+v", ts, ok, err, rep)
			}
		}
		plain, err := Recompress(b, CodecNone, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifyCRC(plain); err != nil && h.Codec() != CodecNone {
			t.Fatal(err)
		}
		if _, err := CheckRecords(plain, RecordOptions{}); err != nil {
			t.Fatalf("not valid once decompressed: %v", err)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	for c := CodecGzip; c < codecs; c++ {
		for _, n := range []int{0, 1, 1000, 100_000} {
			p, err := compress(c, 0, nil, bytes.Repeat([]byte("abcdefg"), n))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(c), p)
		}
	}
	const limit = 256 << 10
	f.Fuzz(func(t *testing.T, c byte, p []byte) {
		out, err := decompress(Codec(c%byte(codecs)), nil, p, limit)
		if err != nil {
			if !errors.Is(err, ErrDecompress) && !errors.Is(err, ErrDecompressedSize) {
				t.Fatal(err)
			}
			return
		}
		if len(out) > limit {
			t.Fatalf("%d bytes, limit %d", len(out), limit)
		}
	})
}
