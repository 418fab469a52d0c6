package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/txn"
	"github.com/skeinio/skein/metadata"
)

// InitProducerId, key 22, versions 0 to 5. Without a transactional id: always a fresh id and epoch 0. With one: the
// producer's next epoch, which fences the instances before it; an ongoing transaction is aborted first, and the client is
// told to ask again (CONCURRENT_TRANSACTIONS), as in Kafka.

func (s *Server) initProducerID(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.InitProducerIDRequest)
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.SetVersion(r.version)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	var err error
	id := txn.NoIdentity
	timeout := time.Duration(req.TransactionTimeoutMillis) * time.Millisecond
	switch {
	case req.TransactionalID == nil:
		id.Producer, err = s.ids.next(ctx, s.catalogueVersion())
		id.Epoch = 0
	case !validTransactionalID(*req.TransactionalID), (req.ProducerID < 0) != (req.ProducerEpoch < 0):
		resp.ErrorCode = r.note(codeInvalidRequest)
		return reply{msg: resp}, nil
	case timeout <= 0 || timeout > maxTransactionTimeout:
		resp.ErrorCode = r.note(codeInvalidTransactionTimeout)
		return reply{msg: resp}, nil
	default:
		id, err = s.initTransactional(ctx, req, timeout)
	}
	code, ok := s.txnCode(ctx, "InitProducerId", err, fencedCode(r.version, initFenced))
	if !ok {
		return reply{}, ctx.Err()
	}
	if resp.ErrorCode = r.note(code); code == codeNone {
		resp.ProducerID, resp.ProducerEpoch = int64(id.Producer), int16(id.Epoch)
	}
	return reply{msg: resp}, nil
}

// initTransactional gives a transactional producer its id and epoch.
func (s *Server) initTransactional(ctx context.Context, req *kmsg.InitProducerIDRequest, timeout time.Duration) (
	id txn.Identity, err error,
) {
	in := txn.Init{Timeout: timeout, Supplied: txn.NoIdentity}
	if req.ProducerID >= 0 {
		in.Supplied = txn.Identity{Producer: metadata.ProducerID(req.ProducerID), Epoch: metadata.ProducerEpoch(req.ProducerEpoch)}
	}
	err = s.changeTxn(ctx, *req.TransactionalID, s.store.ChangeTxn,
		func(now metadata.Millis, t *metadata.Txn, fresh metadata.ProducerID) (*metadata.TxnChange, error) {
			with := in
			with.Fresh = fresh
			var change *metadata.TxnChange
			var err error
			change, id, err = with.Decide(now, t)
			return change, err
		})
	return id, err
}

const (
	// producerIDRange is how many producer ids are taken from the store at once.
	producerIDRange = 100
	// producerIDTimeout bounds the taking.
	producerIDTimeout = 10 * time.Second
	// producerIDAge is how long ids may be handed out from memory. When a producer id was handed out tells the commit
	// whether an earlier batch of its producer may be on its way (design, section 4), and what the store remembers is
	// when the range was taken: so a range must be young, and taken after the topics that its producers write to.
	producerIDAge = 250 * time.Millisecond
)

// producerIDs hands out producer ids.
type producerIDs struct {
	store ProducerIDs
	turn  chan struct{} // one token
	now   func() time.Time

	left    metadata.ProducerRange
	taken   time.Time
	version metadata.CatalogueVersion // when it was taken
}

func newProducerIDs(store ProducerIDs) *producerIDs {
	return &producerIDs{store: store, turn: make(chan struct{}, 1), now: time.Now}
}

// next gives an id that was never given before. version is that of the newest catalogue seen.
func (p *producerIDs) next(ctx context.Context, version metadata.CatalogueVersion) (metadata.ProducerID, error) {
	ctx, cancel := context.WithTimeout(ctx, producerIDTimeout)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for producer ids: %w", ctx.Err())
	}
	// Before the store is asked: what it remembers is not older.
	now := p.now()
	if p.left.Count == 0 || now.Sub(p.taken) > producerIDAge || p.version < version {
		r, err := p.store.AllocateProducerIDs(ctx, producerIDRange)
		if err != nil {
			return 0, err
		}
		p.left, p.taken, p.version = r, now, version
	}
	id := p.left.First
	p.left.First++
	p.left.Count--
	return id, nil
}
