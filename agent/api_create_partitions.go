package agent

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// CreatePartitions, key 37, versions 0 to 3: each topic on its own. A manual assignment is checked and not followed.

func (s *Server) createPartitions(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.CreatePartitionsRequest)
	call, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	c, err := s.freshCatalogue(call)
	if err != nil {
		if err := s.ended(ctx, "CreatePartitions", err); err != nil {
			return reply{}, err
		}
	}
	resp := kmsg.NewPtrCreatePartitionsResponse()
	resp.SetVersion(r.version)
	times := make(map[string]int, len(req.Topics))
	for i := range req.Topics {
		times[req.Topics[i].Topic]++
	}
	left := maxPartitionsPerRequest
	for i := range req.Topics {
		q := &req.Topics[i]
		n := times[q.Topic]
		if times[q.Topic] = 0; n == 0 {
			continue // answered already
		}
		var why *refusal
		switch {
		case n > 1:
			why = duplicateTopic()
		case err != nil:
			why = refusalOf(err)
		default:
			why = s.grow(call, c.ByName(q.Topic), q, req.ValidateOnly, &left)
		}
		if ctx.Err() != nil {
			return reply{}, ctx.Err()
		}
		x := kmsg.NewCreatePartitionsResponseTopic()
		x.Topic = q.Topic
		x.ErrorCode, x.ErrorMessage = why.fail(r)
		resp.Topics = append(resp.Topics, x)
	}
	return reply{msg: resp}, nil
}

// grow gives a topic more partitions. left is how many more the request may create.
func (s *Server) grow(
	ctx context.Context, t *metadata.Topic, q *kmsg.CreatePartitionsRequestTopic, validateOnly bool, left *int,
) *refusal {
	if t == nil {
		return unknownTopic()
	}
	if why := s.badGrowth(t, q); why != nil {
		return why
	}
	more := int(q.Count) - len(t.Partitions)
	if more > *left || q.Count > metadata.MaxPartitionsPerTopic {
		return tooManyPartitions()
	}
	*left -= more
	err := s.store.CreatePartitions(ctx, q.Topic, q.Count, validateOnly)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, metadata.ErrUnknownTopic):
		return unknownTopic()
	}
	s.log.Warn("CreatePartitions failed", "topic", q.Topic, "error", err)
	return refusalOf(err)
}

// badGrowth says what is wrong with what is asked for, nil if nothing is.
func (s *Server) badGrowth(t *metadata.Topic, q *kmsg.CreatePartitionsRequestTopic) *refusal {
	have := int32(len(t.Partitions))
	switch {
	case q.Count == have:
		return refusef(codeInvalidPartitions, "Topic already has %d partition(s).", have)
	case q.Count < have:
		return refusef(codeInvalidPartitions, "The topic %s currently has %d partition(s); %d would not be an increase.",
			q.Topic, have, q.Count)
	case q.Assignment == nil:
		return nil
	case int64(len(q.Assignment)) != int64(q.Count)-int64(have):
		return refusef(codeInvalidReplicaAssignment, "Attempted to add %d additional partition(s), but only %d assignment(s) were "+
			"specified.", q.Count-have, len(q.Assignment))
	}
	for i := range q.Assignment {
		if why := s.badReplicas(q.Assignment[i].Replicas); why != nil {
			return why
		}
	}
	return nil
}
