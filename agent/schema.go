package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// A schema says how a request is laid out, so that its bytes can be walked before kmsg decodes them. kmsg trusts the
// counts in front of tags: a request of thirty bytes can keep it looping for a minute (four thousand million tags); and it
// allocates arrays of structs at once, a hundred bytes for every byte of the request. The walk allocates nothing, is
// bounded by the request's bytes, and tells how much memory the decoded request will take.
type schema struct {
	flexible int16 // first flexible version
	fields   []field
	// tagged are the known tagged fields that hold structures (kmsg decodes those tags' contents), by tag.
	tagged map[uint32][]field
}

type kind uint8

const (
	kindFixed  kind = iota // size bytes
	kindString             // length and bytes; may be null
	kindBytes              // likewise, with a length of four bytes where a string's has two
	kindStruct             // fields
	kindOption             // a byte, below 0 for null, then fields
)

// field is a field of a request, or the elements of one that is an array.
type field struct {
	kind     kind
	array    bool
	size     int // bytes, of kindFixed
	min, max int16
	fields   []field
}

func fixed(size int) field { return field{kind: kindFixed, size: size, max: math.MaxInt16} }
func i8() field            { return fixed(1) }
func i16() field           { return fixed(2) }
func i32() field           { return fixed(4) }
func i64() field           { return fixed(8) }
func uuidField() field     { return fixed(16) }
func str() field           { return field{kind: kindString, max: math.MaxInt16} }
func byteString() field    { return field{kind: kindBytes, max: math.MaxInt16} }
func array(of field) field { of.array = true; return of }
func structs(fields ...field) field {
	return array(field{kind: kindStruct, max: math.MaxInt16, fields: fields})
}
func option(fields ...field) field {
	return field{kind: kindOption, max: math.MaxInt16, fields: fields}
}

// since and until bound the versions that have the field.
func (f field) since(version int16) field { f.min = version; return f }
func (f field) until(version int16) field { f.max = version; return f }

// Memory that decoded elements take, rounded up: a test compares them with kmsg's types.
const (
	structElementBytes    = 128
	primitiveElementBytes = 16
)

// hasBytes says whether some field is bytes.
func hasBytes(fields []field) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return f.kind == kindBytes || hasBytes(f.fields) })
}

// errMalformed: a request's bytes are not what its version says.
var errMalformed = errors.New("malformed request")

// check walks the message of a request. It gives how many bytes the message takes, and about how many the decoded
// request will take in memory.
func (s *schema) check(b []byte, version int16) (used int, decodedBytes int64, err error) {
	w := walker{b: b, version: version, flexible: version >= s.flexible}
	w.fields(s.fields, s.tagged)
	if w.bad {
		return 0, 0, fmt.Errorf("%w: %d bytes are not a message of version %d", errMalformed, len(b), version)
	}
	return len(b) - len(w.b), w.decoded + int64(len(b)), nil
}

type walker struct {
	b        []byte // what is left
	version  int16
	flexible bool
	bad      bool
	decoded  int64
}

func (w *walker) fail() {
	w.bad, w.b = true, nil
}

func (w *walker) skip(n int64) {
	if n < 0 || n > int64(len(w.b)) {
		w.fail()
		return
	}
	w.b = w.b[n:]
}

func (w *walker) uvarint() uint32 {
	v, n := readUvarint(w.b)
	if n <= 0 {
		w.fail()
		return 0
	}
	w.b = w.b[n:]
	return v
}

// maxUvarintBytes is how long a 32-bit varint may be.
const maxUvarintBytes = 5

// readUvarint reads an unsigned 32-bit varint; n is 0 where there is none.
func readUvarint(b []byte) (v uint32, n int) {
	x, n := binary.Uvarint(b[:min(len(b), maxUvarintBytes)])
	if n <= 0 || x > math.MaxUint32 {
		return 0, 0
	}
	return uint32(x), n
}

// length reads the length of a string (fixedSize 2) or an array (fixedSize 4); null gives 0.
func (w *walker) length(fixedSize int) int64 {
	if w.flexible {
		return max(int64(w.uvarint())-1, 0)
	}
	if len(w.b) < fixedSize {
		w.fail()
		return 0
	}
	n := int64(int16(binary.BigEndian.Uint16(w.b)))
	if fixedSize == 4 {
		n = int64(int32(binary.BigEndian.Uint32(w.b)))
	}
	w.b = w.b[fixedSize:]
	return max(n, 0)
}

func (w *walker) fields(fields []field, tagged map[uint32][]field) {
	for i := range fields {
		f := &fields[i]
		if w.version < f.min || w.version > f.max {
			continue
		}
		if !f.array {
			w.value(f)
			continue
		}
		n := w.length(4)
		// Every element takes at least one byte.
		if n > int64(len(w.b)) {
			w.fail()
		}
		if f.kind == kindStruct {
			w.decoded += n * structElementBytes
		} else {
			w.decoded += n * primitiveElementBytes
		}
		for ; n > 0 && !w.bad; n-- {
			w.value(f)
		}
	}
	w.tags(tagged)
}

func (w *walker) value(f *field) {
	switch f.kind {
	case kindFixed:
		w.skip(int64(f.size))
	case kindString:
		w.skip(w.length(2))
	case kindBytes:
		w.skip(w.length(4))
	case kindStruct:
		w.fields(f.fields, nil)
	case kindOption:
		if len(w.b) == 0 {
			w.fail()
			return
		}
		present := int8(w.b[0]) >= 0
		w.b = w.b[1:]
		if present {
			w.fields(f.fields, nil)
		}
	}
}

// tags walks a tag section (KIP-482). kmsg keeps unknown tags in a map.
func (w *walker) tags(tagged map[uint32][]field) {
	if !w.flexible {
		return
	}
	for n := w.uvarint(); n > 0 && !w.bad; n-- {
		w.decoded += structElementBytes
		tag, size := w.uvarint(), int64(w.uvarint())
		if size > int64(len(w.b)) {
			w.fail()
			return
		}
		if fields := tagged[tag]; fields != nil {
			in := walker{b: w.b[:size], version: w.version, flexible: true}
			in.fields(fields, nil)
			if in.bad {
				w.fail()
				return
			}
		}
		w.skip(size)
	}
}
