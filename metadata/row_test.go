package metadata

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// golden reads bytes that a version of Skein wrote. They are kept for ever: databases hold such bytes.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkGolden compares an encoding with the golden one.
func checkGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	if want := golden(t, name); !bytes.Equal(got, want) {
		t.Fatalf("%s: encoded as\n%x\nwant\n%x", name, got, want)
	}
}

func goldenTouched() []Touched {
	return []Touched{
		{
			Slot: 0, Position: 0, Length: 100, RawLength: 100, Codec: CodecStored, CRC: 0x01020304,
			Batches: []Batch{{
				Length: 100, Records: 1, MaxTimestamp: 1_700_000_000_000, Producer: NoProducer, Epoch: -1, First: -1, Last: -1,
				Flags: FlagAccepted,
			}},
		},
		{
			Slot: 63, Position: 1 << 40, Length: 8 << 20, RawLength: 16 << 20, Codec: CodecZstd, CRC: 0xffffffff,
			Batches: []Batch{
				{
					Length: 1 << 20, Records: 300, MaxTimestamp: NoTimestamp, Producer: 1 << 50, Epoch: 32767,
					First: MaxSequence, Last: 298, Flags: FlagAccepted | FlagTransactional,
				},
				{Length: 70, Records: 1, MaxTimestamp: 5, Producer: 7, Epoch: 0, First: 0, Last: 0},
				{
					Length: 78, Records: 1, MaxTimestamp: 6, Producer: 1 << 50, Epoch: 32767, First: -1, Last: -1,
					Flags: FlagAccepted | FlagTransactional | FlagControl | FlagCommit,
				},
			},
		},
	}
}

func goldenPhoto() Photo {
	p := EmptyPhoto()
	for s := range p.Next {
		p.Next[s], p.Bytes[s] = Offset(s)<<32, int64(s)<<40+1
		if s%2 == 1 {
			p.MaxTS[s] = Millis(s) + 1_700_000_000_000
		}
	}
	return p
}

func TestGoldenTouched(t *testing.T) {
	want := goldenTouched()
	checkGolden(t, "touched-1.hex", AppendTouched(nil, want))
	got, err := DecodeTouched(golden(t, "touched-1.hex"))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	for n := range golden(t, "touched-1.hex") {
		if _, err := DecodeTouched(golden(t, "touched-1.hex")[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("the first %d bytes decode: %v", n, err)
		}
	}
}

func TestDecodeTouchedRefuses(t *testing.T) {
	good := golden(t, "touched-1.hex")
	twice := goldenTouched()
	twice[1].Slot = 0
	for name, b := range map[string][]byte{
		"another version": append([]byte{2}, good[1:]...),
		"trailing bytes":  append(bytes.Clone(good), 0),
		"slot twice":      AppendTouched(nil, twice),
		"65 extents":      {1, 65},
		"slot 64":         {1, 1, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"2^31 batches":    {1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x07},
		"huge length":     {1, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 0, 0},
		"endless varint":  append([]byte{1, 1, 0, 0}, bytes.Repeat([]byte{0xff}, 20)...),
	} {
		if got, err := DecodeTouched(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: decoded %+v, %v", name, got, err)
		}
	}
}

func TestGoldenPhoto(t *testing.T) {
	want := goldenPhoto()
	checkGolden(t, "photo.hex", want.AppendTo(nil))
	var got Photo
	if err := got.Decode(golden(t, "photo.hex")); err != nil || got != want {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	if err := got.Decode(make([]byte, PhotoSize-1)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a short photo: %v", err)
	}
	// What SQL of both databases relies on.
	b := want.AppendTo(nil)
	if len(b) != 1536 || b[24*5+3] != 5 || b[24*5+8+7] == 0xff || b[24*6+8] != 0xff || b[24*6+16+2] != 6 {
		t.Fatal("slot s's fields do not stand at 24 s, 24 s + 8 and 24 s + 16")
	}
}

// goldenState is a state with idle, expired and fenced producers, and open transactions.
func goldenState() *State {
	s := NewState(BlockRow{ID: 12})
	s.Seq, s.Time, s.Photo = 1<<33, 1_700_000_000_000, goldenPhoto()
	add := func(slot Slot, id ProducerID, epoch ProducerEpoch, idle Millis, batches ...committed) {
		p := producer{epoch: epoch, at: s.Time - idle, n: uint8(len(batches))}
		copy(p.last[:], batches)
		s.producers.set(producerKey{slot, id}, p)
	}
	day := Millis(ProducerExpiry.Milliseconds())
	add(0, 5, 0, 0, committed{0, 9, 0}, committed{10, 10, 10})
	add(0, 6, 32767, day, committed{0, 0, 1}, committed{1, 1, 2}, committed{2, 2, 3}, committed{3, 3, 4}, committed{MaxSequence, 0, 1 << 40})
	add(63, 1<<50, 3, day+1, committed{7, 8, 9}) // open: kept however idle
	add(1, 5, 2, 1)                              // a control batch moved its epoch
	s.open[producerKey{63, 1 << 50}] = 1 << 38
	s.open[producerKey{1, 5}] = 17
	return s
}

func TestGoldenCheckpoint(t *testing.T) {
	want := goldenState()
	expired := goldenState()
	expired.producers.set(producerKey{9, 9}, producer{at: expired.Time - Millis(ProducerExpiry.Milliseconds()) - 1, n: 1})
	checkGolden(t, "checkpoint-1.hex", expired.AppendCheckpoint(nil))
	data := golden(t, "checkpoint-1.hex")
	row := BlockRow{ID: 12, Version: 3, MergedSeq: 4}
	got, err := FromCheckpoint(row, data)
	if err != nil {
		t.Fatal(err)
	}
	want.Row = row
	want.producers.hot, got.producers.hot = nil, nil
	want.producers.id, got.producers.id = 0, 0
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v", got)
	}
	for n := range data {
		if _, err := FromCheckpoint(row, data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("the first %d bytes decode: %v", n, err)
		}
	}
	bad := want
	bad.open[producerKey{64, 1}] = 1
	for name, b := range map[string][]byte{
		"another version":          append([]byte{2}, data[1:]...),
		"trailing bytes":           append(bytes.Clone(data), 0),
		"open transaction slot 64": bad.AppendCheckpoint(nil),
	} {
		if _, err := FromCheckpoint(row, b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := FromCheckpoint(BlockRow{ID: 13}, data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another block's checkpoint: %v", err)
	}
}

func goldenReceipt() (*Flush, []BatchResult) {
	f := &Flush{Extents: []Extent{{Batches: make([]Batch, 2)}, {Batches: make([]Batch, 6)}}}
	return f, []BatchResult{
		{Code: CodeAccepted, Base: 0, LogStart: -1},
		{Code: CodeAccepted, Base: 1 << 60, LogStart: -1},
		{Code: CodeDuplicate, Base: 77, LogStart: -1},
		{Code: CodeNotYet, Base: -1, LogStart: -1},
		{Code: CodeOutOfOrder, Base: -1, LogStart: -1},
		{Code: CodeFenced, Base: -1, LogStart: -1},
		{Code: CodeUnknownPartition, Base: -1, LogStart: -1},
		{Code: CodeStale, Base: -1, LogStart: -1},
	}
}

func TestGoldenReceipt(t *testing.T) {
	f, want := goldenReceipt()
	checkGolden(t, "receipt-1.hex", encodeReceipt(want))
	data := golden(t, "receipt-1.hex")
	got, err := decodeReceipt(data, f)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	fewer := &Flush{Extents: f.Extents[:1]}
	for name, try := range map[string]struct {
		data []byte
		f    *Flush
	}{
		"truncated": {data[:len(data)-1], f}, "trailing bytes": {append(bytes.Clone(data), 0), f},
		"another flush": {data, fewer}, "another version": {append([]byte{2}, data[1:]...), f}, "empty": {nil, f},
	} {
		if _, err := decodeReceipt(try.data, try.f); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRowFindAndBase(t *testing.T) {
	r := &Row{Touched: goldenTouched(), Photo: goldenPhoto()}
	for slot, want := range map[Slot]int{0: 0, 1: -1, 62: -1, 63: 1} {
		if got := r.Find(slot); got != want {
			t.Errorf("slot %d is at %d, want %d", slot, got, want)
		}
	}
	if got, want := r.Base(1), r.Photo.Next[63]-301; got != want { // the middle batch was not accepted
		t.Errorf("base %d, want %d", got, want)
	}
}

func FuzzDecodeTouched(f *testing.F) {
	f.Add(golden(f, "touched-1.hex"))
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		touched, err := DecodeTouched(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		batches := 0
		for i := range touched {
			batches += cap(touched[i].Batches)
		}
		if len(touched) > SlotsPerBlock || batches*minBatchSize > len(b) {
			t.Fatalf("%d extents and room for %d batches from %d bytes", len(touched), batches, len(b))
		}
		again, err := DecodeTouched(AppendTouched(nil, touched))
		if err != nil || !reflect.DeepEqual(again, touched) {
			t.Fatalf("%+v, encoded and decoded: %+v, %v", touched, again, err)
		}
	})
}

func FuzzFromCheckpoint(f *testing.F) {
	f.Add(golden(f, "checkpoint-1.hex"))
	row := BlockRow{ID: 12}
	f.Add(NewState(row).AppendCheckpoint(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := FromCheckpoint(row, b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if n := s.Producers()*minProducerSize + len(s.open)*minOpenSize; n > len(b) {
			t.Fatalf("%d producers and %d open transactions from %d bytes", s.Producers(), len(s.open), len(b))
		}
		s.prune()
		s.lsos()
		again, err := FromCheckpoint(row, s.AppendCheckpoint(nil))
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v, encoded and decoded: %+v, %v", s, again, err)
		}
	})
}

func FuzzDecodeReceipt(f *testing.F) {
	flush, _ := goldenReceipt()
	f.Add(golden(f, "receipt-1.hex"))
	f.Fuzz(func(t *testing.T, b []byte) {
		results, err := decodeReceipt(b, flush)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeReceipt(encodeReceipt(results), flush)
		if err != nil || !reflect.DeepEqual(again, results) {
			t.Fatalf("%+v, encoded and decoded: %+v, %v", results, again, err)
		}
	})
}
