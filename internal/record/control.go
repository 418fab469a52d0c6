package record

import (
	"encoding/binary"
	"fmt"
)

// ControlKind is the type of a transaction marker, numbered as in its key.
type ControlKind int16

// The markers that Kafka's transactions use.
const (
	ControlAbort  ControlKind = 0
	ControlCommit ControlKind = 1
)

// String is "abort" or "commit".
func (k ControlKind) String() string {
	switch k {
	case ControlAbort:
		return "abort"
	case ControlCommit:
		return "commit"
	}
	return fmt.Sprintf("control(%d)", int16(k))
}

const (
	controlKeyVersion   = 0
	controlValueVersion = 0
	controlKeyBytes     = 4
	controlValueBytes   = 6
)

// Marker is what a control batch says.
type Marker struct {
	Kind             ControlKind
	ProducerID       int64
	ProducerEpoch    int16
	CoordinatorEpoch int32
	Timestamp        int64 // milliseconds
}

// ControlBatch builds the marker that ends a producer's transaction in one
// partition: a batch of one record that takes an offset like any other. ts is in
// milliseconds.
func ControlBatch(kind ControlKind, producerID int64, epoch int16, coordinatorEpoch int32, ts int64) []byte {
	key := make([]byte, controlKeyBytes)
	binary.BigEndian.PutUint16(key[0:], controlKeyVersion)
	binary.BigEndian.PutUint16(key[2:], uint16(kind))
	value := make([]byte, controlValueBytes)
	binary.BigEndian.PutUint16(value[0:], controlValueVersion)
	binary.BigEndian.PutUint32(value[2:], uint32(coordinatorEpoch))
	b, err := NewBuilder().SetProducer(producerID, epoch, NoSequence).SetTransactional().SetControl().
		Append(ts, key, value).Build()
	if err != nil {
		// One uncompressed record of 10 bytes: there is nothing to fail.
		panic(fmt.Sprintf("build control batch: %v", err))
	}
	return b
}

// ParseControl reads the marker in the first batch of b, which must have the
// control bit; ErrControl otherwise.
func ParseControl(b []byte) (Marker, error) {
	h, err := Parse(b)
	if err != nil {
		return Marker{}, err
	}
	if !h.Control() {
		return Marker{}, fmt.Errorf("%w: not a control batch", ErrControl)
	}
	for r, err := range Records(b, DefaultMaxDecompressedBytes) {
		if err != nil {
			return Marker{}, err
		}
		if len(r.Key) < controlKeyBytes || len(r.Value) < controlValueBytes {
			return Marker{}, fmt.Errorf("%w: key of %d bytes, value of %d", ErrBadRecord, len(r.Key), len(r.Value))
		}
		return Marker{
			Kind:             ControlKind(binary.BigEndian.Uint16(r.Key[2:])),
			ProducerID:       h.ProducerID,
			ProducerEpoch:    h.ProducerEpoch,
			CoordinatorEpoch: int32(binary.BigEndian.Uint32(r.Value[2:])),
			Timestamp:        r.Timestamp,
		}, nil
	}
	return Marker{}, fmt.Errorf("%w: control batch without a record", ErrBadRecord)
}
