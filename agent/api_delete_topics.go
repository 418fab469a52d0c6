package agent

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// DeleteTopics, key 20, versions 1 to 6: by name, from version 6 by name or id. A topic's records are gone for readers and
// producers of every agent when the response is there; the compactor removes their bytes later.

// deleteTopicsByID is the first version that may name topics by id.
const deleteTopicsByID int16 = 6

// deletion is one topic of a DeleteTopics request.
type deletion struct {
	name *string
	id   metadata.TopicID
	why  *refusal
}

func (s *Server) deleteTopics(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DeleteTopicsRequest)
	deletions := asDeletions(req, r.version)
	if len(deletions) > maxTopicsPerRequest {
		for _, d := range deletions {
			d.why = tooManyTopics()
		}
	}
	call, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	if err := s.delete(call, deletions); err != nil {
		if err := s.ended(ctx, "DeleteTopics", err); err != nil {
			return reply{}, err
		}
		for _, d := range deletions {
			if d.why == nil {
				d.why = refusalOf(err)
			}
		}
	}
	resp := kmsg.NewPtrDeleteTopicsResponse()
	resp.SetVersion(r.version)
	resp.Topics = make([]kmsg.DeleteTopicsResponseTopic, len(deletions))
	for i, d := range deletions {
		out := &resp.Topics[i]
		*out = kmsg.NewDeleteTopicsResponseTopic()
		out.Topic, out.TopicID = d.name, d.id
		out.ErrorCode, out.ErrorMessage = d.why.fail(r)
	}
	return reply{msg: resp}, nil
}

// asDeletions gives what a request asks for, with what is wrong with it. What is there more than once has one entry.
func asDeletions(req *kmsg.DeleteTopicsRequest, version int16) []*deletion {
	var out []*deletion
	names, ids := map[string]*deletion{}, map[metadata.TopicID]*deletion{}
	add := func(name *string, id metadata.TopicID) {
		d := &deletion{name: name, id: id}
		switch {
		case name != nil && !id.IsZero():
			d.why = refusef(codeInvalidRequest, "You may not specify both topic name and topic id.")
		case name == nil && id.IsZero():
			d.why = refusef(codeInvalidRequest, "Neither topic name nor id were specified.")
		case name != nil && names[*name] != nil:
			names[*name].why = duplicateTopic()
			return
		case name != nil:
			names[*name] = d
		case ids[id] != nil:
			ids[id].why = refusef(codeInvalidRequest, "Duplicate topic id.")
			return
		default:
			ids[id] = d
		}
		out = append(out, d)
	}
	if version < deleteTopicsByID {
		for _, name := range req.TopicNames {
			add(&name, metadata.TopicID{})
		}
		return out
	}
	for i := range req.Topics {
		add(req.Topics[i].Topic, req.Topics[i].TopicID)
	}
	return out
}

// delete deletes what was not refused, and fills in names and ids.
func (s *Server) delete(ctx context.Context, deletions []*deletion) error {
	c, err := s.freshCatalogue(ctx)
	if err != nil {
		return err
	}
	asked := map[metadata.TopicID]*deletion{} // by id
	for _, d := range deletions {
		if d.why == nil && d.name == nil {
			asked[d.id] = d
		}
	}
	var refs []metadata.TopicRef
	var at []*deletion
	for _, d := range deletions {
		if d.why != nil {
			continue
		}
		t := c.ByID(d.id)
		if d.name != nil {
			t = c.ByName(*d.name)
		}
		switch {
		case t == nil && d.name == nil:
			d.why = unknownTopicID()
		case t == nil:
			d.why = unknownTopic()
		case d.name != nil && asked[t.ID] != nil:
			d.why = refusef(codeInvalidRequest, "The provided topic name maps to an ID that was already supplied.")
			asked[t.ID].why = d.why
		}
		if t != nil {
			refs, at = append(refs, metadata.TopicRef{ID: t.ID, Name: t.Name}), append(at, d)
		}
	}
	return s.deleteAll(ctx, refs, at)
}

// deleteAll deletes topics and takes their results.
func (s *Server) deleteAll(ctx context.Context, refs []metadata.TopicRef, at []*deletion) error {
	var wanted []metadata.TopicRef
	var of []*deletion
	for i, d := range at {
		if d.why == nil {
			wanted, of = append(wanted, refs[i]), append(of, d)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	_, errs, err := s.store.DeleteTopics(ctx, wanted)
	if err != nil {
		return err
	}
	for i, d := range of {
		switch {
		case errs[i] == nil:
			d.name, d.id = &wanted[i].Name, wanted[i].ID
		case !errors.Is(errs[i], metadata.ErrUnknownTopic):
			d.why = refusalOf(errs[i])
		case d.name == nil:
			d.why = unknownTopicID()
		default:
			d.why = unknownTopic()
		}
	}
	return nil
}

func unknownTopicID() *refusal {
	return refusef(codeUnknownTopicID, "This server does not host this topic ID.")
}
