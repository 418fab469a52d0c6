package agent

import (
	"context"
	"time"

	"github.com/skeinio/skein/metadata"
)

// Txns is what the server needs of transactions' rows.
type Txns interface {
	ChangeTxn(ctx context.Context, id metadata.TransactionalID, rule metadata.TxnRule) error
	EndTxn(ctx context.Context, id metadata.TransactionalID, rule metadata.TxnRule) error
	LoadTxns(ctx context.Context, ids ...metadata.TransactionalID) (metadata.Millis, []metadata.Txn, error)
	TxnsOf(ctx context.Context, producers ...metadata.ProducerID) ([]metadata.TransactionalID, error)
	ListTxns(ctx context.Context, after metadata.TransactionalID, limit int) (metadata.Millis, []metadata.TxnRow, error)
	DueTxns(ctx context.Context, limit int) ([]metadata.TransactionalID, error)
	AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (lease metadata.Lease, ok bool, err error)
	ReleaseLease(ctx context.Context, lease metadata.Lease) error
	PendingOffsets(ctx context.Context, queries []metadata.OffsetQuery) ([][]metadata.TopicPartition, error)
	Producers(ctx context.Context, id metadata.PartitionID) ([]metadata.ActiveProducer, error)
	WriteMarkers(ctx context.Context, producer metadata.ProducerID, epoch metadata.ProducerEpoch, parts []metadata.PartitionID,
		commits bool, marker []byte) ([]metadata.BatchResult, error)
}
