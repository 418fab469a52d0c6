package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// Fetch, key 1, versions 4 to 18.
//
// Deviations: there are no fetch sessions (KIP-227), which the protocol allows: every response has session id 0, and a
// request that refers to a session gets FETCH_SESSION_ID_NOT_FOUND, upon which clients send the whole list again.
//
// A consumer that says its rack is sent to the agent of that zone (KIP-392), where there is one.

const (
	// maxFetchWait bounds a client's max_wait.
	maxFetchWait = 5 * time.Minute

	initialSessionEpoch = 0
	finalSessionEpoch   = -1
	readCommitted       = 1
	leaderEpoch         = 0 // of every partition
	noLeaderEpoch       = -1
	fetchTopicIDs       = 13 // first version that names topics by id
)

// fetch is one Fetch request being served.
type fetch struct {
	reader *reader
	req    *kmsg.FetchRequest
	// results has the response's partitions, in the request's order: topics[i] has the next counts[i] of them.
	results  []fetchResult
	counts   []int
	parts    []*partRead // those of results that exist and are read here
	moved    []*partRead // those that are to be read elsewhere
	maxBytes int
	minBytes int
	wait     time.Duration
	// preferred is Server.preferredReplica.
	preferred func(rack string, topic metadata.TopicID, index int32) (node int32, other bool)
	drained   <-chan struct{} // ends the wait: what there is then is the answer
	refreshed bool            // the database was asked for the catalogue
	deleted   bool            // a partition of the catalogue is deleted
}

// fetchResult is one partition of the response: part, or an error found before anything was looked at.
type fetchResult struct {
	index int32
	code  int16
	part  *partRead
	// moved: the consumer is to fetch from the agent elsewhere instead.
	moved     bool
	elsewhere int32
}

func (x *fetchResult) errorCode() int16 {
	if x.part != nil {
		return x.part.code
	}
	return x.code
}

// fetch serves a Fetch request.
func (s *Server) fetch(ctx context.Context, r *request) (reply, error) {
	req, ok := r.msg.(*kmsg.FetchRequest)
	if !ok {
		return reply{}, fmt.Errorf("fetch: request is %T", r.msg)
	}
	if req.SessionEpoch != initialSessionEpoch && req.SessionEpoch != finalSessionEpoch {
		resp := kmsg.NewPtrFetchResponse()
		resp.Version, resp.ErrorCode = req.Version, r.note(codeFetchSessionIDNotFound)
		return reply{msg: resp}, nil
	}
	f := &fetch{
		reader: s.reader, req: req,
		maxBytes: int(min(max(req.MaxBytes, 0), maxFetchBytes)), minBytes: int(req.MinBytes),
		wait:    min(time.Duration(max(req.MaxWaitMillis, 0))*time.Millisecond, maxFetchWait),
		drained: s.drained, preferred: s.preferredReplica,
	}
	catalogue, err := s.store.Catalogue(ctx)
	if err := f.resolve(ctx, s.store, catalogue, err); err != nil {
		return reply{}, err
	}
	release, err := f.run(ctx, s.store)
	if err != nil {
		return reply{}, err
	}
	for i := range f.results {
		r.note(f.results[i].errorCode())
	}
	buf := s.responses.get()
	n, _ := f.estimate()
	*buf = slices.Grow((*buf)[:0], n)
	body, size := f.encode(*buf)
	return reply{body: body, size: size, release: func() {
		release()
		s.responses.put(buf)
	}}, nil
}

// resolve finds the request's partitions in the catalogue. A topic or partition that is not in it is asked of the database
// once.
func (f *fetch) resolve(ctx context.Context, topics Topics, catalogue *metadata.Catalogue, err error) error {
	f.results, f.counts, f.parts, f.moved = nil, nil, nil, nil
	for i := range f.req.Topics {
		t := &f.req.Topics[i]
		f.counts = append(f.counts, len(t.Partitions))
		var topic *metadata.Topic
		if err == nil {
			topic = f.find(catalogue, t)
			if !hasPartitions(topic, t) && !f.refreshed {
				f.refreshed = true
				if catalogue, err = topics.RefreshCatalogue(ctx); err == nil {
					topic = f.find(catalogue, t)
				}
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for j := range t.Partitions {
			x := f.result(topic, &t.Partitions[j], err)
			if x.part != nil {
				x.elsewhere, x.moved = f.preferred(f.req.Rack, topic.ID, x.index)
			}
			f.results = append(f.results, x)
		}
	}
	for i := range f.results {
		x := &f.results[i]
		switch {
		case x.part == nil:
		case x.moved:
			f.moved = append(f.moved, x.part)
		default:
			f.parts = append(f.parts, x.part)
		}
	}
	return nil
}

// hasPartitions says whether a topic has all partitions that are asked for; nil has none.
func hasPartitions(topic *metadata.Topic, t *kmsg.FetchRequestTopic) bool {
	if topic == nil {
		return false
	}
	for i := range t.Partitions {
		if int(t.Partitions[i].Partition) >= len(topic.Partitions) {
			return false
		}
	}
	return true
}

func (f *fetch) find(c *metadata.Catalogue, t *kmsg.FetchRequestTopic) *metadata.Topic {
	if f.req.Version >= fetchTopicIDs {
		return c.ByID(t.TopicID)
	}
	return c.ByName(t.Topic)
}

// unknownTopic is the code for a topic that is not there.
func (f *fetch) unknownTopic() int16 {
	if f.req.Version >= fetchTopicIDs {
		return codeUnknownTopicID
	}
	return codeUnknownTopicOrPartition
}

func (f *fetch) result(topic *metadata.Topic, p *kmsg.FetchRequestTopicPartition, err error) fetchResult {
	x := fetchResult{index: p.Partition}
	switch {
	case err != nil:
		x.code = readCode(err)
	case topic == nil:
		x.code = f.unknownTopic()
	case p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
		x.code = codeUnknownTopicOrPartition
	default:
		x.code = checkLeaderEpoch(p.CurrentLeaderEpoch)
	}
	if x.code != codeNone {
		return x
	}
	place := topic.Partitions[p.Partition]
	x.part = &partRead{
		topic: topic.Name, index: p.Partition, place: metadata.PartitionID{Block: place.Block, Slot: place.Slot},
		offset: metadata.Offset(p.FetchOffset), max: int(max(p.PartitionMaxBytes, 0)),
	}
	return x
}

// checkLeaderEpoch checks the epoch that a client believes in (KIP-320). -1: it does not say.
func checkLeaderEpoch(epoch int32) int16 {
	switch {
	case epoch == leaderEpoch || epoch == noLeaderEpoch:
		return codeNone
	case epoch < leaderEpoch:
		return codeFencedLeaderEpoch
	}
	return codeUnknownLeaderEpoch
}

// run waits until there is enough to return, and reads it. release gives back the memory that the response refers to.
func (f *fetch) run(ctx context.Context, topics Topics) (release func(), err error) {
	began := time.Now()
	ready, err := f.begin(ctx)
	if err == nil && f.deleted && !f.refreshed && f.req.Version < fetchTopicIDs {
		// Another agent may have made it again under its name.
		f.refreshed = true
		catalogue, catalogueErr := topics.RefreshCatalogue(ctx)
		if err = f.resolve(ctx, topics, catalogue, catalogueErr); err == nil {
			ready, err = f.begin(ctx)
		}
	}
	if err == nil && len(f.parts) == 0 {
		return func() {}, nil
	}
	if err == nil && !ready && f.wait > 0 {
		err = f.await(ctx, began.Add(f.wait))
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		f.reader.failAll(f.parts, err)
		return func() {}, nil
	}
	release, err = f.reader.load(ctx, f.parts)
	if errors.Is(err, errPinned) {
		return func() {}, nil // without records
	}
	if err == nil && f.req.IsolationLevel == readCommitted {
		if err = f.reader.findAborted(ctx, f.parts); err != nil {
			release()
		}
	}
	return release, err
}

// begin looks at what the request asks for as it is now.
func (f *fetch) begin(ctx context.Context) (ready bool, err error) {
	if len(f.moved) > 0 {
		f.wait = 0 // they are told at once
		if err := f.reader.look(ctx, f.moved, false); err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			f.reader.failAll(f.moved, err)
		}
	}
	if len(f.parts) == 0 {
		return true, nil
	}
	return f.check(ctx)
}

// await is the long poll: it looks again whenever one of the blocks moves, until there is enough or the time is over.
func (f *fetch) await(ctx context.Context, deadline time.Time) error {
	w := f.reader.store.Watch(blocksOf(f.parts))
	defer w.Close()
	f.reader.waiting.Inc()
	defer f.reader.waiting.Dec()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		// After registering: what moved before is seen here, what moves later wakes.
		ready, err := f.check(ctx)
		if ready || err != nil {
			return err
		}
		select {
		case <-w.C():
		case <-timer.C:
			return nil
		case <-f.drained:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// check plans the response and says whether it is to be sent now: there is enough, or an error, or more than the request
// takes.
func (f *fetch) check(ctx context.Context) (ready bool, err error) {
	if err := f.reader.look(ctx, f.parts, f.req.IsolationLevel == readCommitted); err != nil {
		return false, err
	}
	total, err := f.reader.plan(ctx, f.parts, f.maxBytes)
	if err != nil {
		return false, err
	}
	ready = total >= f.minBytes
	for _, p := range f.parts {
		if p.code == codeUnknownTopicOrPartition {
			p.code, f.deleted = f.unknownTopic(), true // the catalogue has it still, its block says that it was deleted
		}
		ready = ready || p.failed() || (p.more && total > 0)
	}
	return ready, nil
}
