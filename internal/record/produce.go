package record

import "fmt"

// ProduceLimits is what a topic and a Produce version allow.
type ProduceLimits struct {
	// MaxBytes is the topic's max.message.bytes; 0 or less means no limit.
	MaxBytes int
	// LogAppendTime says that the topic's message.timestamp.type is LogAppendTime.
	LogAppendTime bool
	// RefuseZstd is set for Produce below version 7.
	RefuseZstd bool
}

// CheckProduce validates the records of one partition of a Produce request, in
// Kafka's order, from the header and the checksum alone: nothing is decompressed
// and, when it succeeds, nothing allocated. b must hold exactly one batch. The
// error is one of this package's sentinels, wrapped with figures.
//
// A LogAppendTime bit on a CreateTime topic is no error: clear it with
// ClearLogAppendTime.
func CheckProduce(b []byte, l ProduceLimits) (Header, error) {
	h, err := Parse(b)
	if err != nil {
		return Header{}, err
	}
	if err := h.checkRequest(len(b), l); err != nil {
		return Header{}, err
	}
	if h.BaseOffset != 0 {
		return Header{}, fmt.Errorf("%w but %d", ErrBaseOffset, h.BaseOffset)
	}
	if l.MaxBytes > 0 && len(b) > l.MaxBytes {
		return Header{}, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, len(b), l.MaxBytes)
	}
	if err := h.verifyCRC(b); err != nil {
		return Header{}, err
	}
	if err := h.checkBatch(l); err != nil {
		return Header{}, err
	}
	return h, nil
}

// checkRequest is what Kafka checks when it decodes the request.
func (h Header) checkRequest(size int, l ProduceLimits) error {
	switch c := h.Codec(); {
	case !c.Valid():
		return fmt.Errorf("%w: %d", ErrCodec, c)
	case c == CodecZstd && l.RefuseZstd:
		return ErrZstdVersion
	case h.Size() != size:
		return fmt.Errorf("%w: %d bytes after the first", ErrTrailing, size-h.Size())
	}
	return nil
}

// checkBatch is what Kafka checks once the checksum has shown that the header can
// be believed.
func (h Header) checkBatch(l ProduceLimits) error {
	switch {
	case h.RecordCount <= 0 || int64(h.LastOffsetDelta)+1 != int64(h.RecordCount):
		return fmt.Errorf("%w: count %d, last offset delta %d", ErrCount, h.RecordCount, h.LastOffsetDelta)
	case h.Codec() == CodecNone && int64(h.RecordCount)*minRecordBytes > int64(h.Size()-HeaderBytes):
		return fmt.Errorf("%w: %d records cannot fit in %d bytes", ErrCount, h.RecordCount, h.Size()-HeaderBytes)
	case h.Control():
		return ErrControl
	case h.HasProducerID() && h.BaseSequence < 0:
		return fmt.Errorf("%w: producer %d, sequence %d", ErrSequence, h.ProducerID, h.BaseSequence)
	case h.HasProducerID() && h.ProducerEpoch < 0:
		return fmt.Errorf("%w: producer %d, epoch %d", ErrProducerEpoch, h.ProducerID, h.ProducerEpoch)
	case h.Transactional() && !h.HasProducerID():
		return ErrProducerID
	case l.LogAppendTime && h.LogAppendTime():
		return ErrTimestampType
	}
	return nil
}
