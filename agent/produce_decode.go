package agent

import (
	"encoding/binary"
	"fmt"

	"github.com/skeinio/skein/metadata"
)

// produceTopicIDs is the first version of Produce that names topics by id (KIP-516).
const produceTopicIDs int16 = 13

// produceRequest is a decoded Produce request. Its records share memory with the frame; nothing else does.
type produceRequest struct {
	transactionalID *string
	acks            int16
	timeoutMillis   int32
	topics          []produceTopic
	partitions      []producePartition // of all topics, in the request's order
}

type produceTopic struct {
	name  string           // up to version 12
	id    metadata.TopicID // from version 13 on
	count int              // of its partitions
}

type producePartition struct {
	index   int32
	records []byte // nil where the client sent null
}

// Memory that a Produce request takes beside its frame, until it is answered: rounded up, for decoding, submitting and
// answering.
const (
	produceTopicBytes     = 256
	producePartitionBytes = 512
	// producePartitionResponseBytes and produceTopicResponseBytes are about what they take in the response.
	produceTopicResponseBytes     = 64
	producePartitionResponseBytes = 64
)

// produceSize is how much there is in a Produce request.
type produceSize struct {
	topics, partitions int
}

func (n produceSize) decodedBytes() int64 {
	return int64(n.topics)*produceTopicBytes + int64(n.partitions)*producePartitionBytes
}

func (n produceSize) responseBytes() int64 {
	return int64(n.topics)*produceTopicResponseBytes + int64(n.partitions)*producePartitionResponseBytes
}

// measureProduce walks a Produce message, checking every length against what is there, and allocates nothing.
func measureProduce(b []byte, version int16) (produceSize, error) {
	r := produceReader{walker: walker{b: b, version: version, flexible: version >= produceFlexible}}
	var n produceSize
	r.request(nil, &n)
	if r.bad {
		return produceSize{}, fmt.Errorf("%w: %d bytes are not a message of version %d", errMalformed, len(b), version)
	}
	return n, nil
}

// decodeProduce decodes a message that measureProduce has measured.
func decodeProduce(b []byte, version int16, n produceSize) (*produceRequest, error) {
	r := produceReader{walker: walker{b: b, version: version, flexible: version >= produceFlexible}}
	req := &produceRequest{
		topics: make([]produceTopic, 0, n.topics), partitions: make([]producePartition, 0, n.partitions),
	}
	var again produceSize
	r.request(req, &again)
	if r.bad {
		return nil, fmt.Errorf("%w: %d bytes are not a message of version %d", errMalformed, len(b), version)
	}
	return req, nil
}

// produceReader reads a Produce message. Versions 3 to 13 have one layout; flexible ones have compact lengths and tags.
type produceReader struct {
	walker
}

// request reads the whole message, into req where it is not nil.
func (r *produceReader) request(req *produceRequest, n *produceSize) {
	transactional, ok := r.span(2)
	acks, timeout := int16(r.uint(2)), int32(r.uint(4))
	if req != nil {
		req.acks, req.timeoutMillis = acks, timeout
		if ok {
			id := string(transactional)
			req.transactionalID = &id
		}
	}
	for topics := r.arrayLength(); topics > 0 && !r.bad; topics-- {
		n.topics++
		r.topic(req, n)
	}
	r.tags(nil)
}

func (r *produceReader) topic(req *produceRequest, n *produceSize) {
	var t produceTopic
	if r.version >= produceTopicIDs {
		copy(t.id[:], r.take(len(t.id)))
	} else if name, _ := r.span(2); req != nil {
		t.name = string(name)
	}
	t.count = int(r.arrayLength())
	for i := 0; i < t.count && !r.bad; i++ {
		n.partitions++
		index := int32(r.uint(4))
		records, ok := r.span(4)
		r.tags(nil)
		if req != nil && !r.bad {
			p := producePartition{index: index}
			if ok {
				p.records = records[:len(records):len(records)]
			}
			req.partitions = append(req.partitions, p)
		}
	}
	r.tags(nil)
	if req != nil {
		req.topics = append(req.topics, t)
	}
}

// arrayLength reads an array's length. Every element takes at least one byte.
func (r *produceReader) arrayLength() int64 {
	n := r.length(4)
	if n > int64(len(r.b)) {
		r.fail()
		return 0
	}
	return n
}

// take takes n bytes; nil when they are not there.
func (r *produceReader) take(n int) []byte {
	if n > len(r.b) {
		r.fail()
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// uint reads an integer of size bytes.
func (r *produceReader) uint(size int) uint32 {
	b := r.take(size)
	switch len(b) {
	case 2:
		return uint32(binary.BigEndian.Uint16(b))
	case 4:
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// span reads bytes behind their length, which takes fixedSize bytes in versions that are not flexible; ok is false for
// null.
func (r *produceReader) span(fixedSize int) (b []byte, ok bool) {
	n := int64(-1)
	switch {
	case r.flexible:
		n = int64(r.uvarint()) - 1
	case fixedSize == 2:
		n = int64(int16(r.uint(2)))
	default:
		n = int64(int32(r.uint(4)))
	}
	if n < 0 || r.bad {
		return nil, false
	}
	if n > int64(len(r.b)) {
		r.fail()
		return nil, false
	}
	return r.take(int(n)), true
}
