package agent

import (
	"context"
	"time"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Produce, key 0, versions 3 to 13. Versions 0 to 2 are advertised (librdkafka before 2.6 stops compressing otherwise,
// KAFKA-18659) and refused. acks 1 is treated as -1.

const (
	acksAll  int16 = -1
	acksNone int16 = 0
	acksOne  int16 = 1

	// minProduceTimeout and maxProduceTimeout bound the client's timeout.
	minProduceTimeout = time.Second
	maxProduceTimeout = 2 * time.Minute

	// produceZstd is the first version that may carry zstd (KIP-110).
	produceZstd int16 = 7
)

// produceOutcome is what is answered for one partition.
type produceOutcome struct {
	code       int16
	message    string // "" = none
	records    []record.RecordError
	base       int64
	logStart   int64
	appendTime int64
}

func refused(code int16, message string) produceOutcome {
	return produceOutcome{code: code, message: message, base: -1, logStart: -1, appendTime: -1}
}

// produce is one Produce request under way.
type produce struct {
	s        *Server
	r        *request
	req      *produceRequest
	deadline time.Time
	outcomes []produceOutcome // by partition, in the request's order
	batches  []batcher.Batch
	at       []int // of each batch, its place in outcomes
	// held is what of decodedBytes, rewritten what of rewrittenBytes was taken.
	held, rewritten int64
}

// beginProduce implements pipelined: it checks the batches and hands them to the batcher.
func (s *Server) beginProduce(ctx context.Context, r *request, x *pending) error {
	message := r.frame[r.body:]
	size, err := measureProduce(message, r.version)
	if err != nil {
		return err
	}
	p := &produce{s: s, r: r}
	if n := size.decodedBytes(); n > uncountedBytes {
		if err := s.decodedBytes.acquire(ctx, n); err != nil {
			return err
		}
		p.held = n
	}
	if p.req, err = decodeProduce(message, r.version, size); err != nil {
		p.release()
		return err
	}
	x.expect(size.responseBytes())
	p.deadline = time.Now().Add(produceTimeout(p.req.timeoutMillis))
	p.outcomes = make([]produceOutcome, len(p.req.partitions))
	p.validate(ctx)
	if len(p.batches) == 0 {
		x.dropFrame()
		x.done(p.answer, p.release)
		return nil
	}
	s.producer.Submit(batcher.Produce{
		Conn: r.conn.id, Deadline: p.deadline, Batches: p.batches,
		Done: func(results []batcher.Result) {
			p.settle(results)
			x.dropFrame()
			x.done(p.answer, p.release)
		},
	})
	return nil
}

func produceTimeout(millis int32) time.Duration {
	return min(max(time.Duration(millis)*time.Millisecond, minProduceTimeout), maxProduceTimeout)
}

// release gives back the memory that was taken beside the frame.
func (p *produce) release() {
	if p.held > 0 {
		p.s.decodedBytes.release(p.held)
	}
	p.held = 0
}

// settle takes over the batcher's results and lets go of the batches.
func (p *produce) settle(results []batcher.Result) {
	for i, res := range results {
		o := &p.outcomes[p.at[i]]
		if res.Err != nil {
			code := codeOf(res.Err)
			switch {
			case code == codeUnknownTopicOrPartition:
				code = p.unknownTopic()
			case code == codeInvalidTxnState && p.r.version >= produceAbortable:
				code = codeTransactionAbortable
			}
			*o = refused(code, res.Err.Error())
			continue
		}
		o.base, o.logStart = int64(res.Base), int64(res.LogStart)
	}
	p.batches, p.at = nil, nil
	if p.rewritten > 0 {
		p.s.rewrittenBytes.release(p.rewritten)
	}
}

// unknownTopic is the code for a topic that is not there: by name or by id.
func (p *produce) unknownTopic() int16 {
	if p.r.version >= produceTopicIDs {
		return codeUnknownTopicID
	}
	return codeUnknownTopicOrPartition
}

// find gives the request's topic in a catalogue, or nil.
func (p *produce) find(c *metadata.Catalogue, t *produceTopic) *metadata.Topic {
	if p.r.version >= produceTopicIDs {
		return c.ByID(t.id)
	}
	return c.ByName(t.name)
}

// knows says whether every partition of the request is in a catalogue.
func (p *produce) knows(c *metadata.Catalogue) bool {
	next := 0
	for i := range p.req.topics {
		t := &p.req.topics[i]
		topic := p.find(c, t)
		if topic == nil {
			return false
		}
		for _, part := range p.req.partitions[next : next+t.count] {
			if int(part.index) >= len(topic.Partitions) {
				return false
			}
		}
		next += t.count
	}
	return true
}

// refuseAll answers every partition alike.
func (p *produce) refuseAll(code int16, message string) {
	for i := range p.outcomes {
		p.outcomes[i] = refused(code, message)
	}
}

// catalogueWait bounds how long a Produce waits for the newest catalogue when an older one has its topics.
const catalogueWait = time.Second

// catalogue gives the newest catalogue that is to be had. While the database does not answer that is the last one seen:
// what was validated against it is checked again by the commit (metadata.CodeStale, CodeUnknownPartition).
func (p *produce) catalogue(ctx context.Context) (*metadata.Catalogue, error) {
	old := p.s.catalogue.Load()
	if old == nil || !p.knows(old) {
		return p.s.catalogueWith(ctx, p.knows)
	}
	ctx, cancel := context.WithTimeout(ctx, catalogueWait)
	defer cancel()
	if c, err := p.s.catalogueWith(ctx, p.knows); err == nil {
		return c, nil
	}
	return old, nil
}

// validate fills in the outcomes of what is refused and collects the batches that are not.
func (p *produce) validate(ctx context.Context) {
	if a := p.req.acks; a != acksAll && a != acksNone && a != acksOne {
		p.refuseAll(codeInvalidRequiredAcks, "")
		return
	}
	if len(p.req.partitions) == 0 {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, p.deadline)
	defer cancel()
	catalogue, err := p.catalogue(ctx)
	if err != nil {
		p.refuseAll(codeNotEnoughReplicas, err.Error())
		return
	}
	now, err := p.s.store.Now(ctx)
	if err != nil {
		p.refuseAll(codeNotEnoughReplicas, err.Error())
		return
	}
	p.batches = make([]batcher.Batch, 0, len(p.req.partitions))
	p.at = make([]int, 0, len(p.req.partitions))
	v := produceValidator{p: p, ctx: ctx, catalogue: catalogue, now: now}
	next := 0
	for i := range p.req.topics {
		t := &p.req.topics[i]
		v.use(p.find(catalogue, t))
		for j := next; j < next+t.count; j++ {
			p.outcomes[j] = v.partition(j)
		}
		next += t.count
	}
}

// answer makes the response.
func (p *produce) answer() (reply, error) {
	for i := range p.outcomes {
		if p.r.note(p.outcomes[i].code) != codeNone && p.req.acks == acksNone {
			// There is no response to say it with: closing the connection is how Kafka tells.
			return reply{}, errRefused
		}
	}
	if p.req.acks == acksNone {
		return reply{}, nil
	}
	resp := kmsg.NewPtrProduceResponse()
	resp.SetVersion(p.r.version)
	resp.Topics = make([]kmsg.ProduceResponseTopic, len(p.req.topics))
	partitions := make([]kmsg.ProduceResponseTopicPartition, len(p.outcomes))
	next := 0
	for i := range p.req.topics {
		t, out := &p.req.topics[i], &resp.Topics[i]
		*out = kmsg.NewProduceResponseTopic()
		out.Topic, out.TopicID = t.name, t.id
		for j := next; j < next+t.count; j++ {
			p.outcomes[j].fill(&partitions[j], p.req.partitions[j].index)
		}
		out.Partitions = partitions[next : next+t.count]
		next += t.count
	}
	return reply{msg: resp}, nil
}

// fill writes an outcome into the response.
func (o *produceOutcome) fill(out *kmsg.ProduceResponseTopicPartition, index int32) {
	*out = kmsg.NewProduceResponseTopicPartition()
	out.Partition, out.ErrorCode = index, o.code
	out.BaseOffset, out.LogStartOffset, out.LogAppendTime = o.base, o.logStart, o.appendTime
	if o.message != "" {
		out.ErrorMessage = &o.message
	}
	for i := range o.records {
		e := kmsg.NewProduceResponseTopicPartitionErrorRecord()
		e.RelativeOffset, e.ErrorMessage = o.records[i].Index, &o.records[i].Message
		out.ErrorRecords = append(out.ErrorRecords, e)
	}
}
