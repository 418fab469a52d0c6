package agent

import (
	"context"
	"errors"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Kafka's error codes, by the names of its documentation.
const (
	codeUnknownServerError        int16 = -1
	codeNone                      int16 = 0
	codeOffsetOutOfRange          int16 = 1
	codeCorruptMessage            int16 = 2
	codeUnknownTopicOrPartition   int16 = 3
	codeLeaderNotAvailable        int16 = 5
	codeRequestTimedOut           int16 = 7
	codeMessageTooLarge           int16 = 10
	codeCoordinatorLoadInProgress int16 = 14
	codeInvalidTopicException     int16 = 17
	codeNotEnoughReplicas         int16 = 19
	codeNotEnoughReplicasAfter    int16 = 20
	codeInvalidRequiredAcks       int16 = 21
	codeInvalidTimestamp          int16 = 32
	codeUnsupportedVersion        int16 = 35
	codeTopicAlreadyExists        int16 = 36
	codeInvalidPartitions         int16 = 37
	codeInvalidReplicationFactor  int16 = 38
	codeInvalidReplicaAssignment  int16 = 39
	codeInvalidConfig             int16 = 40
	codeInvalidRequest            int16 = 42
	codePolicyViolation           int16 = 44
	codeOutOfOrderSequence        int16 = 45
	codeInvalidProducerEpoch      int16 = 47
	codeInvalidTxnState           int16 = 48
	codeInvalidProducerIDMapping  int16 = 49
	codeInvalidTransactionTimeout int16 = 50
	codeConcurrentTransactions    int16 = 51
	codeTransactionalIDAuth       int16 = 53
	codeOperationNotAttempted     int16 = 55
	codeKafkaStorageError         int16 = 56
	codeFetchSessionIDNotFound    int16 = 70
	codeFencedLeaderEpoch         int16 = 74
	codeUnknownLeaderEpoch        int16 = 75
	codeUnsupportedCompression    int16 = 76
	codeInvalidRecord             int16 = 87
	codeUnstableOffsetCommit      int16 = 88
	codeProducerFenced            int16 = 90
	codeUnknownTopicID            int16 = 100
	codeTransactionalIDNotFound   int16 = 105
	codeTransactionAbortable      int16 = 120
	codeInvalidRegularExpression  int16 = 128
)

// errorCodes maps the sentinels of the packages behind the server to Kafka's codes. The first that matches wins.
var errorCodes = []struct {
	err  error
	code int16
}{
	{batcher.ErrNotPersisted, codeNotEnoughReplicas},
	{batcher.ErrMaybePersisted, codeNotEnoughReplicasAfter},
	{batcher.ErrOutOfOrder, codeOutOfOrderSequence},
	{batcher.ErrFenced, codeInvalidProducerEpoch},
	{batcher.ErrUnknownPartition, codeUnknownTopicOrPartition},
	{batcher.ErrInvalidTxnState, codeInvalidTxnState},

	{record.ErrEmpty, codeInvalidRecord},
	{record.ErrTruncated, codeInvalidRecord},
	{record.ErrLength, codeCorruptMessage},
	{record.ErrMagic, codeInvalidRecord},
	{record.ErrTrailing, codeInvalidRecord},
	{record.ErrBaseOffset, codeInvalidRecord},
	{record.ErrTooLarge, codeMessageTooLarge},
	{record.ErrCRC, codeCorruptMessage},
	{record.ErrCodec, codeUnsupportedCompression},
	{record.ErrZstdVersion, codeUnsupportedCompression},
	{record.ErrCount, codeInvalidRecord},
	{record.ErrControl, codeInvalidRecord},
	{record.ErrSequence, codeInvalidRecord},
	{record.ErrProducerEpoch, codeInvalidRecord},
	{record.ErrProducerID, codeInvalidRecord},
	{record.ErrTimestampType, codeInvalidTimestamp},
	{record.ErrBadRecord, codeInvalidRecord},
	{record.ErrDecompress, codeCorruptMessage},
	{record.ErrDecompressedSize, codeMessageTooLarge},
	{record.ErrNullKey, codeInvalidRecord},
	{record.ErrTimestamp, codeInvalidTimestamp},

	{metadata.ErrTopicExists, codeTopicAlreadyExists},
	{metadata.ErrTopicCollides, codeInvalidTopicException},
	{metadata.ErrUnknownTopic, codeUnknownTopicOrPartition},
	{metadata.ErrInvalidPartitions, codeInvalidPartitions},
	{metadata.ErrOffsetOutOfRange, codeOffsetOutOfRange},

	// Retriable in every client.
	{metadata.ErrUnavailable, codeRequestTimedOut},
	{metadata.ErrUnknownOutcome, codeRequestTimedOut},
	{context.DeadlineExceeded, codeRequestTimedOut},
	{context.Canceled, codeRequestTimedOut},
}

// codeOf gives Kafka's code for an error; codeNone for nil, codeUnknownServerError for one that is not known.
func codeOf(err error) int16 {
	if err == nil {
		return codeNone
	}
	for _, e := range errorCodes {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return codeUnknownServerError
}

// codeName gives the name of a code as Kafka writes it.
func codeName(code int16) string {
	if code == codeNone {
		return "NONE"
	}
	if e := kerr.TypedErrorForCode(code); e != nil {
		return e.Message
	}
	return kerr.UnknownServerError.Message
}
