package group

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"
)

// offsetsCheck is how often offsets are looked at for expiry, as in Kafka.
const offsetsCheck = 10 * time.Minute

// errProtocol: the bytes of a consumer are not what its embedded protocol says.
var errProtocol = errors.New("malformed consumer protocol metadata")

// wire reads the consumers' embedded protocol: big-endian integers, int16 lengths of strings, int32 of lists and bytes.
type wire struct {
	b   []byte
	bad bool
}

func (r *wire) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *wire) int16() int16 {
	if v := r.take(2); v != nil {
		return int16(binary.BigEndian.Uint16(v))
	}
	return 0
}

func (r *wire) int32() int32 {
	if v := r.take(4); v != nil {
		return int32(binary.BigEndian.Uint32(v))
	}
	return 0
}

// count reads a list's length; every element takes at least two bytes.
func (r *wire) count() int {
	n := int(r.int32())
	if n < -1 || n > len(r.b)/2 {
		r.bad, r.b = true, nil
	}
	if r.bad || n < 0 {
		return 0
	}
	return n
}

func (r *wire) str() string { return string(r.take(int(r.int16()))) }

func (r *wire) skipBytes() {
	if n := int(r.int32()); n > 0 {
		r.take(n)
	}
}

func (r *wire) err() error {
	if r.bad {
		return errProtocol
	}
	return nil
}

// ParseAssignment reads what a classic leader assigned (ConsumerProtocolAssignment).
func ParseAssignment(b []byte) (map[string][]int32, error) {
	out := map[string][]int32{}
	if len(b) == 0 {
		return out, nil
	}
	r := wire{b: b}
	r.int16()
	for range r.count() {
		name := r.str()
		for range r.count() {
			out[name] = append(out[name], r.int32())
		}
	}
	return out, r.err()
}

// AppendAssignment writes an assignment as a classic leader does, at version 0 to 3.
func AppendAssignment(b []byte, version int16, topics map[string][]int32) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, uint32(len(topics)))
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
		b = append(b, name...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(topics[name])))
		for _, p := range topics[name] {
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		}
	}
	return binary.BigEndian.AppendUint32(b, 0xFFFFFFFF) // no user data
}
