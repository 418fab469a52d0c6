package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// maxCheckers is how many connections may look into compressed records at once: each may need a decompressed batch's
// memory (record.DefaultMaxDecompressedBytes), and more would not be faster.
func maxCheckers() int { return runtime.GOMAXPROCS(0) }

// produceValidator checks the batches of one request against one catalogue.
type produceValidator struct {
	p         *produce
	ctx       context.Context
	catalogue *metadata.Catalogue
	now       metadata.Millis
	topic     *metadata.Topic // nil: unknown
	config    produceConfig
	seen      map[batchKey]struct{} // only where there are several partitions
}

type batchKey struct {
	topic metadata.TopicID
	index int32
}

// use makes topic the one that the next partitions are of.
func (v *produceValidator) use(topic *metadata.Topic) {
	if v.topic = topic; topic != nil {
		v.config = v.p.s.configs.of(topic)
	}
}

// partition checks the j-th partition of the request; what passes is added to the batches, and its outcome is filled in
// when the batcher is done.
func (v *produceValidator) partition(j int) produceOutcome {
	part := &v.p.req.partitions[j]
	if v.topic == nil {
		return refused(v.p.unknownTopic(), "")
	}
	if part.index < 0 || int(part.index) >= len(v.topic.Partitions) {
		return refused(codeUnknownTopicOrPartition, "")
	}
	if v.twice(part.index) {
		return refused(codeInvalidRequest, "the partition is in the request twice")
	}
	data, h, report, err := v.check(part.records)
	if err != nil {
		return v.refuse(err, report)
	}
	v.p.at = append(v.p.at, j)
	v.p.batches = append(v.p.batches, v.batch(part.index, data, h))
	o := produceOutcome{base: -1, logStart: -1, appendTime: record.NoTimestamp}
	if v.config.logAppendTime {
		o.appendTime = int64(v.now)
	}
	return o
}

// twice says whether the partition came before in this request.
func (v *produceValidator) twice(index int32) bool {
	if len(v.p.req.partitions) == 1 {
		return false
	}
	if v.seen == nil {
		v.seen = make(map[batchKey]struct{}, len(v.p.req.partitions))
	}
	k := batchKey{topic: v.topic.ID, index: index}
	_, seen := v.seen[k]
	v.seen[k] = struct{}{}
	return seen
}

// Refusals that are not the record package's.
var (
	errNoTransactionalID = errors.New("transactional batch in a request without a transactional id")
	errRewriteMemory     = errors.New("no memory for compressing the batch anew")
)

// refuse gives the outcome for a batch that did not pass.
func (v *produceValidator) refuse(err error, report record.RecordsReport) produceOutcome {
	var code int16
	switch {
	case errors.Is(err, errNoTransactionalID):
		code = codeTransactionalIDAuth
	case errors.Is(err, errRewriteMemory), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = codeNotEnoughReplicas
	default:
		code = codeOf(err)
	}
	o := refused(code, err.Error())
	o.records = report.Errors
	return o
}

// check validates a batch in Kafka's order, and rewrites it where its topic asks for that. The data it gives is the
// frame's own unless the codec had to change.
func (v *produceValidator) check(b []byte) (data []byte, h record.Header, report record.RecordsReport, err error) {
	c := &v.config
	h, err = record.CheckProduce(b, record.ProduceLimits{
		MaxBytes: c.maxMessageBytes, LogAppendTime: c.logAppendTime, RefuseZstd: v.p.r.version < produceZstd,
	})
	if err != nil {
		return nil, h, report, err
	}
	if h.Transactional() {
		switch {
		case v.p.req.transactionalID == nil:
			return nil, h, report, errNoTransactionalID
		case !h.HasProducerID():
			return nil, h, report, fmt.Errorf("%w: transactional batch without one", record.ErrProducerID)
		}
	}
	recompress := c.recompress && c.codec != h.Codec()
	if recompress || v.looksInside(h) {
		if b, report, err = v.inside(b, h, recompress); err != nil {
			return nil, h, report, err
		}
	}
	if c.logAppendTime {
		err = record.SetLogAppendTime(b, int64(v.now))
	} else if h.LogAppendTime() {
		err = record.ClearLogAppendTime(b)
	}
	if err == nil {
		h, err = record.Parse(b)
	}
	return b, h, report, err
}

// looksInside says whether the header alone does not show that the records may be stored.
func (v *produceValidator) looksInside(h record.Header) bool {
	c := &v.config
	if c.compacted {
		return true
	}
	if c.logAppendTime {
		return false
	}
	// The header's maximum is enough for the upper bound: a batch whose header understates it is taken.
	return c.beforeMax != math.MaxInt64 || (c.afterMax != math.MaxInt64 && h.MaxTimestamp-int64(v.now) > c.afterMax)
}

// inside checks the records themselves, and compresses them anew when asked to.
func (v *produceValidator) inside(b []byte, h record.Header, recompress bool) ([]byte, record.RecordsReport, error) {
	select {
	case v.p.s.checkers <- struct{}{}:
		defer func() { <-v.p.s.checkers }()
	case <-v.ctx.Done():
		return nil, record.RecordsReport{}, v.ctx.Err()
	}
	c := &v.config
	report, err := record.CheckRecords(b, record.RecordOptions{
		RequireKeys: c.compacted, CheckTimestamps: !c.logAppendTime, Now: int64(v.now), BeforeMax: c.beforeMax,
		AfterMax: c.afterMax,
	})
	if err != nil {
		return nil, report, err
	}
	if !c.logAppendTime && report.MaxTimestamp != h.MaxTimestamp {
		if err := record.SetMaxTimestamp(b, report.MaxTimestamp); err != nil {
			return nil, report, err
		}
	}
	if recompress {
		b, err = v.recompress(b)
	}
	return b, report, err
}

// recompress gives the batch with its topic's codec.
func (v *produceValidator) recompress(b []byte) ([]byte, error) {
	b, err := record.Recompress(b, v.config.codec, v.config.level)
	if err != nil {
		return nil, err
	}
	if len(b) > v.config.maxMessageBytes {
		return nil, fmt.Errorf("%w: %d bytes once compressed as the topic asks, limit %d", record.ErrTooLarge, len(b),
			v.config.maxMessageBytes)
	}
	// Not waiting for memory while holding some: the client is told to try again.
	if !v.p.s.rewrittenBytes.tryAcquire(int64(cap(b))) {
		return nil, errRewriteMemory
	}
	v.p.rewritten += v.p.s.rewrittenBytes.clamp(int64(cap(b)))
	return b, nil
}

// batch describes a batch that passed.
func (v *produceValidator) batch(index int32, data []byte, h record.Header) batcher.Batch {
	m := metadata.Batch{
		Length: int32(len(data)), Records: h.RecordCount, MaxTimestamp: metadata.Millis(h.MaxTimestamp),
		Producer: metadata.NoProducer, Epoch: metadata.ProducerEpoch(record.NoProducerEpoch),
		First: metadata.Sequence(record.NoSequence), Last: metadata.Sequence(record.NoSequence),
		Validated: v.catalogue.Version,
	}
	if h.HasProducerID() {
		m.Producer, m.Epoch = metadata.ProducerID(h.ProducerID), metadata.ProducerEpoch(h.ProducerEpoch)
		m.First, m.Last = metadata.Sequence(h.BaseSequence), metadata.Sequence(h.LastSequence())
	}
	if h.Transactional() {
		m.Flags |= metadata.FlagTransactional
		m.Joins = v.p.r.version >= produceJoins
	}
	return batcher.Batch{
		Topic: v.topic.ID, Index: index, Partition: v.topic.Partitions[index], Data: data,
		Uncompressed: h.Codec() == record.CodecNone, Meta: m,
	}
}
