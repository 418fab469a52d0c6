package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// InitProducerId, key 22, versions 0 to 5, without a transactional id: always a fresh id and epoch 0. Transactional ids
// are refused until transactions are served.

func (s *Server) initProducerID(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.InitProducerIDRequest)
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.SetVersion(r.version)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	switch {
	case req.TransactionalID == nil:
	case *req.TransactionalID == "":
		resp.ErrorCode = r.note(codeInvalidRequest)
		return reply{msg: resp}, nil
	default:
		resp.ErrorCode = r.note(codeUnsupportedVersion)
		return reply{msg: resp}, nil
	}
	var version metadata.CatalogueVersion
	if c := s.catalogue.Load(); c != nil {
		version = c.Version
	}
	id, err := s.ids.next(ctx, version)
	if err != nil {
		if ctx.Err() != nil {
			return reply{}, err
		}
		s.log.Warn("no producer id", "error", err)
		// The one error that every client takes for "ask again", without looking for another coordinator first.
		resp.ErrorCode = r.note(codeCoordinatorLoadInProgress)
		return reply{msg: resp}, nil
	}
	resp.ProducerID, resp.ProducerEpoch = int64(id), 0
	return reply{msg: resp}, nil
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
