package agent

import (
	"encoding/binary"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// First versions of what a Fetch response has.
const (
	fetchSessions    = 7
	fetchLogStart    = 5
	fetchReplica     = 11
	fetchFlexible    = 12
	noOffset         = metadata.Offset(-1)
	noReplica        = -1
	fetchPartBytes   = 64 // fields of a partition, rounded up
	fetchTopicBytes  = 32 // of a topic but for its name
	fetchHeaderBytes = 32
	// fetchAbortedBytes are those of an aborted transaction.
	fetchAbortedBytes = 17
	topicIDBytes      = 16
)

// encode writes the response as a vector, its own fields into spare if that is large enough. It is checked byte for byte
// against kmsg's encoder.
func (f *fetch) encode(spare []byte) ([][]byte, int) {
	version := f.req.Version
	flexible := version >= fetchFlexible
	n, shared := f.estimate()
	v := newVector(n, shared, spare)
	v.int32(0) // throttled, ms
	if version >= fetchSessions {
		v.int16(codeNone)
		v.int32(0) // session id
	}
	v.length(len(f.req.Topics), flexible)
	results := f.results
	for i := range f.req.Topics {
		t := &f.req.Topics[i]
		if version >= fetchTopicIDs {
			v.bytes(t.TopicID[:])
		} else {
			v.string(t.Topic, flexible)
		}
		v.length(f.counts[i], flexible)
		for j := range f.counts[i] {
			f.encodePartition(v, &results[j])
		}
		results = results[f.counts[i]:]
		v.noTags(flexible)
	}
	v.noTags(flexible)
	return v.done()
}

// estimate gives the bytes that are not shared, at most, and the number of shared parts.
func (f *fetch) estimate() (size, shared int) {
	size = fetchHeaderBytes + len(f.results)*fetchPartBytes
	for i := range f.req.Topics {
		size += fetchTopicBytes + len(f.req.Topics[i].Topic) + topicIDBytes
	}
	for _, p := range f.parts {
		size += len(p.aborted) * fetchAbortedBytes
		for _, b := range p.batches {
			size += len(b.data)
			if n := len(b.data) - record.HeaderBytes; n >= shareBytes {
				size -= n
				shared++
			}
		}
	}
	return size, shared
}

func (f *fetch) encodePartition(v *vector, x *fetchResult) {
	version := f.req.Version
	flexible := version >= fetchFlexible
	hw, lso, logStart := noOffset, noOffset, noOffset
	code := x.errorCode()
	var batches []servedBatch
	if code == codeNone {
		hw, lso, logStart, batches = x.part.highWatermark(), x.part.lso(), x.part.logStart(), x.part.batches
	}
	v.int32(x.index)
	v.int16(code)
	v.int64(int64(hw))
	v.int64(int64(lso))
	if version >= fetchLogStart {
		v.int64(int64(logStart))
	}
	if f.req.IsolationLevel == readCommitted && code == codeNone {
		v.length(len(x.part.aborted), flexible)
		for _, a := range x.part.aborted {
			v.int64(int64(a.Producer))
			v.int64(int64(a.First))
			v.noTags(flexible)
		}
	} else {
		v.length(-1, flexible)
	}
	if version >= fetchReplica {
		if x.moved && code == codeNone {
			v.int32(x.elsewhere)
		} else {
			v.int32(noReplica)
		}
	}
	size := 0
	for _, b := range batches {
		size += len(b.data)
	}
	v.length(size, flexible)
	for _, b := range batches {
		v.batch(b.data, b.base)
	}
	v.noTags(flexible)
}

// noTags writes an empty tag section, where the version has them.
func (v *vector) noTags(flexible bool) {
	if flexible {
		v.room(binary.MaxVarintLen64)
		v.buf = append(v.buf, 0)
	}
}
