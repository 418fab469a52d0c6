package metadata

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Photo is the state of all slots of a block after a level0 row: fixed width, so that an offset or a timestamp is found
// by binary search over (block, seq).
type Photo struct {
	Next  [SlotsPerBlock]Offset // next offset to be assigned = high watermark
	MaxTS [SlotsPerBlock]Millis // running maximum timestamp; NoTimestamp before the first record
	Bytes [SlotsPerBlock]int64  // cumulative accepted raw bytes
}

// PhotoSize is the size of an encoded Photo: for each slot next offset, running maximum timestamp and cumulative bytes,
// big-endian int64 each. Slot s's fields stand at 24*s, 24*s+8 and 24*s+16.
const PhotoSize = SlotsPerBlock * photoWidth

const photoWidth = 24

// EmptyPhoto is the state before a block's first row.
func EmptyPhoto() Photo {
	var p Photo
	for s := range p.MaxTS {
		p.MaxTS[s] = NoTimestamp
	}
	return p
}

// append moves a slot on by an accepted batch.
func (p *Photo) append(slot Slot, b *Batch) {
	p.Next[slot] += Offset(b.Records)
	p.MaxTS[slot] = max(p.MaxTS[slot], b.MaxTimestamp)
	p.Bytes[slot] += int64(b.Length)
}

// AppendTo appends the encoded photo to b.
func (p *Photo) AppendTo(b []byte) []byte {
	for s := range p.Next {
		b = binary.BigEndian.AppendUint64(b, uint64(p.Next[s]))
		b = binary.BigEndian.AppendUint64(b, uint64(p.MaxTS[s]))
		b = binary.BigEndian.AppendUint64(b, uint64(p.Bytes[s]))
	}
	return b
}

// Decode reads an encoded photo.
func (p *Photo) Decode(b []byte) error {
	if len(b) != PhotoSize {
		return fmt.Errorf("%w: photo of %d bytes, not %d", ErrCorrupt, len(b), PhotoSize)
	}
	for s := range p.Next {
		f := b[s*photoWidth:]
		p.Next[s] = Offset(binary.BigEndian.Uint64(f))
		p.MaxTS[s] = Millis(binary.BigEndian.Uint64(f[8:]))
		p.Bytes[s] = int64(binary.BigEndian.Uint64(f[16:]))
	}
	return nil
}

// Row is a level0 row: what one flush added to one block. Rows are never changed.
type Row struct {
	Block   BlockID
	Seq     Seq
	Flush   FlushID
	Object  ObjectKey // "" = inline row of the same flush id
	Time    Millis    // commit time, never less than the row before
	Touched []Touched // by slot
	Photo   Photo     // AFTER the row
	// NoPhoto: the photograph was not loaded. Only rows of a BlockDelta that have a later one after them come so;
	// State.Apply fills it in.
	NoPhoto bool
}

// Touched is a row's extent in one slot.
type Touched struct {
	Batches   []Batch // all batches in those bytes; Validated is not stored
	Position  int64
	Length    int32
	RawLength int32
	CRC       uint32
	Slot      Slot
	Codec     Codec
}

// Records is how many records of t were accepted.
func (t *Touched) Records() int64 {
	var n int64
	for i := range t.Batches {
		if t.Batches[i].Flags&FlagAccepted != 0 {
			n += int64(t.Batches[i].Records)
		}
	}
	return n
}

// Base is the offset of the first accepted record of the i-th touched extent of r.
func (r *Row) Base(i int) Offset {
	t := &r.Touched[i]
	return r.Photo.Next[t.Slot] - Offset(t.Records())
}

// Find gives the index in r.Touched of slot s, or -1.
func (r *Row) Find(s Slot) int {
	lo, hi := 0, len(r.Touched)
	for lo < hi {
		if mid := (lo + hi) / 2; r.Touched[mid].Slot < s {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(r.Touched) && r.Touched[lo].Slot == s {
		return lo
	}
	return -1
}

// touchedVersion starts an encoded list of touched extents.
const touchedVersion = 1

// AppendTouched appends the encoding of a row's touched extents: version byte, then for each the slot byte and varints.
func AppendTouched(b []byte, touched []Touched) []byte {
	b = append(b, touchedVersion)
	b = binary.AppendUvarint(b, uint64(len(touched)))
	for i := range touched {
		t := &touched[i]
		b = append(b, byte(t.Slot), byte(t.Codec))
		b = binary.AppendUvarint(b, uint64(t.Position))
		b = binary.AppendUvarint(b, uint64(t.Length))
		b = binary.AppendUvarint(b, uint64(t.RawLength))
		b = binary.BigEndian.AppendUint32(b, t.CRC)
		b = binary.AppendUvarint(b, uint64(len(t.Batches)))
		for j := range t.Batches {
			b = appendBatch(b, &t.Batches[j])
		}
	}
	return b
}

func appendBatch(b []byte, x *Batch) []byte {
	b = append(b, byte(x.Flags))
	b = binary.AppendUvarint(b, uint64(x.Length))
	b = binary.AppendUvarint(b, uint64(x.Records))
	b = binary.AppendVarint(b, int64(x.MaxTimestamp))
	b = binary.AppendVarint(b, int64(x.Producer))
	if x.Producer != NoProducer {
		b = binary.AppendVarint(b, int64(x.Epoch))
		b = binary.AppendVarint(b, int64(x.First))
		b = binary.AppendVarint(b, int64(x.Last))
	}
	return b
}

// minBatchSize is the least an encoded batch takes, to bound allocation by what is there to read.
const minBatchSize = 5

// DecodeTouched reads what AppendTouched wrote.
func DecodeTouched(b []byte) ([]Touched, error) {
	d := decoder{b: b}
	if v := d.byte(); v != touchedVersion && d.err == nil {
		return nil, fmt.Errorf("%w: touched extents of version %d", ErrCorrupt, v)
	}
	n := d.count(SlotsPerBlock, 1)
	touched := make([]Touched, n)
	slab := make([]Batch, min(n, len(d.b)/minBatchSize)) // most extents have one batch
	for i := range touched {
		t := &touched[i]
		t.Slot, t.Codec = Slot(d.byte()), Codec(d.byte())
		t.Position = int64(d.uvarint(math.MaxInt64))
		t.Length = int32(d.uvarint(math.MaxInt32))
		t.RawLength = int32(d.uvarint(math.MaxInt32))
		t.CRC = d.uint32()
		count := d.count(math.MaxInt32, minBatchSize)
		if count > len(slab) {
			slab = make([]Batch, max(count, n-i))
		}
		t.Batches, slab = slab[:count:count], slab[count:]
		for j := range t.Batches {
			d.batch(&t.Batches[j])
		}
		if d.err == nil && (t.Slot >= SlotsPerBlock || (i > 0 && t.Slot <= touched[i-1].Slot)) {
			d.err = fmt.Errorf("%w: slot %d out of order", ErrCorrupt, t.Slot)
		}
	}
	if d.err == nil && len(d.b) != 0 {
		d.err = fmt.Errorf("%w: %d bytes after the touched extents", ErrCorrupt, len(d.b))
	}
	if d.err != nil {
		return nil, d.err
	}
	return touched, nil
}

func (d *decoder) batch(x *Batch) {
	x.Flags = BatchFlags(d.byte())
	x.Length = int32(d.uvarint(math.MaxInt32))
	x.Records = int32(d.uvarint(math.MaxInt32))
	x.MaxTimestamp = Millis(d.varint())
	x.Producer = ProducerID(d.varint())
	x.Epoch, x.First, x.Last = -1, -1, -1
	if x.Producer != NoProducer {
		x.Epoch = ProducerEpoch(d.within(math.MinInt16, math.MaxInt16))
		x.First, x.Last = d.sequence(), d.sequence()
	}
}

// decoder reads the encodings of this package; after the first error it reads zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = fmt.Errorf("%w: truncated or out of bounds", ErrCorrupt)
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) < 1 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uint32() uint32 {
	if len(d.b) < 4 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) uvarint(limit uint64) uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 && uint64(d.b[0]) <= limit { // most are small
		v := uint64(d.b[0])
		d.b = d.b[1:]
		return v
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := int64(d.b[0]>>1) ^ -int64(d.b[0]&1)
		d.b = d.b[1:]
		return v
	}
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// within reads a varint that must lie within bounds.
func (d *decoder) within(lo, hi int64) int64 {
	v := d.varint()
	if v < lo || v > hi {
		d.fail()
		return 0
	}
	return v
}

// sequence reads a Sequence; -1 is that of control batches.
func (d *decoder) sequence() Sequence { return Sequence(d.within(-1, int64(MaxSequence))) }

// count reads how many elements of at least size bytes follow; never more than fit in what is left.
func (d *decoder) count(limit uint64, size int) int {
	n := d.uvarint(limit)
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) bytes(n int) []byte {
	if n < 0 || len(d.b) < n {
		d.fail()
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

// entries reads a varint count of elements of at least size bytes.
func (d *decoder) entries(size int) int {
	n := d.varint()
	if n < 0 || n > int64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func appendVarints(b []byte, vs ...int64) []byte {
	for _, v := range vs {
		b = binary.AppendVarint(b, v)
	}
	return b
}
