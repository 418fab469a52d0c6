package record

import "fmt"

// SetDeleteHorizon notes in the header when tombstones and markers of the batch may go (milliseconds, KIP-534). It takes
// the place of the base timestamp, from which Rebuild then counts.
func (h *Header) SetDeleteHorizon(ms int64) {
	h.Attributes |= attrDeleteHorizon
	h.BaseTimestamp = ms
}

// Rebuild makes a batch of some of the records of the one whose header h was: offsets (base offset and last offset delta),
// producer, sequence, codec and all other attributes stay; count, length, CRC and, but for LogAppendTime, the largest
// timestamp are those of the records. Without records it is a header alone, which key compaction leaves where the last
// offset must stay. level as in Recompress.
func Rebuild(h Header, level int, records []Record) ([]byte, error) {
	h.RecordCount = int32(len(records))
	if len(records) == 0 {
		h.Attributes &^= attrCodecMask
	}
	var data []byte
	for i, r := range records {
		if r.OffsetDelta > h.LastOffsetDelta || i > 0 && r.OffsetDelta <= records[i-1].OffsetDelta {
			return nil, fmt.Errorf("%w: offset delta %d of at most %d", ErrBuild, r.OffsetDelta, h.LastOffsetDelta)
		}
		if !h.LogAppendTime() {
			if i == 0 {
				h.MaxTimestamp = r.Timestamp
			}
			h.MaxTimestamp = max(h.MaxTimestamp, r.Timestamp)
			r.TimestampDelta = r.Timestamp - h.BaseTimestamp
		}
		data = appendRecord(data, r)
	}
	return assemble(h, level, data)
}
