package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy"
)

// Java's snappy library wraps blocks in a framing of its own (xerial): a 16-byte
// header, then blocks preceded by their length. librdkafka and some others send one
// bare block instead. Consumers read both, so both must be read here.
const (
	xerialMagicBytes  = 8
	xerialHeaderBytes = 16 // magic, version, lowest compatible version
	xerialLengthBytes = 4
	xerialBlockBytes  = 32 << 10

	// snappyMaxRatio is the most that a snappy block can expand: a 3-byte copy
	// makes 64 bytes.
	snappyMaxRatio = 22
)

var (
	xerialHeader = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1}

	errXerial      = errors.New("malformed xerial framing")
	errSnappyBlock = errors.New("malformed block")
)

func isXerial(src []byte) bool {
	return len(src) >= xerialHeaderBytes && bytes.Equal(src[:xerialMagicBytes], xerialHeader[:xerialMagicBytes])
}

func unsnappy(dst, src []byte, limit int) ([]byte, error) {
	out := dst[:0]
	if !isXerial(src) {
		return snappyBlock(out, src, limit)
	}
	var err error
	for len(src) > 0 {
		if isXerial(src) { // also where streams were joined
			src = src[xerialHeaderBytes:]
			continue
		}
		if len(src) < xerialLengthBytes {
			return nil, errXerial
		}
		n := int64(binary.BigEndian.Uint32(src))
		src = src[xerialLengthBytes:]
		if n > int64(len(src)) {
			return nil, errXerial
		}
		if out, err = snappyBlock(out, src[:n], limit); err != nil {
			return nil, err
		}
		src = src[n:]
	}
	return out, nil
}

// snappyBlock appends the decoded form of one block to out. The strict decoder is
// used: the usual one also takes S2's extension, which no Kafka client reads.
func snappyBlock(out, block []byte, limit int) ([]byte, error) {
	n, err := s2.DecodedLen(block)
	switch {
	case err != nil:
		return nil, errSnappyBlock
	case n > limit-len(out):
		return nil, tooLarge(limit)
	case n > snappyMaxRatio*len(block):
		return nil, errSnappyBlock
	}
	out = slices.Grow(out, n)
	if _, err := snappy.DecodeStrict(out[len(out):len(out)+n], block); err != nil {
		return nil, err
	}
	return out[:len(out)+n], nil
}

// snappyTo writes xerial framing, as Kafka's broker does when it recompresses.
func snappyTo(dst, src []byte) []byte {
	dst = append(dst, xerialHeader...)
	for len(src) > 0 {
		block := src[:min(len(src), xerialBlockBytes)]
		src = src[len(block):]
		at := len(dst)
		dst = slices.Grow(dst, xerialLengthBytes+s2.MaxEncodedLen(len(block)))
		dst = dst[:at+xerialLengthBytes]
		out := s2.EncodeSnappy(dst[len(dst):cap(dst)], block)
		binary.BigEndian.PutUint32(dst[at:], uint32(len(out)))
		dst = dst[:len(dst)+len(out)]
	}
	return dst
}
