package metadata

import (
	"encoding/binary"
	"fmt"
	"math"
)

// decision is one commit being decided: the rules over the states of its blocks. It changes the states; when the commit
// then fails they must be thrown away.
type decision struct {
	now    Millis
	states map[BlockID]*State
	ages   ProducerAges
	// inlineNew are payloads inserted by this very transaction: only these may be dropped again.
	inlineNew map[FlushID]bool
	txns      txnRows
	markers   bool // control batches may be written
	onlyOpen  bool // only where their producer has a transaction open
	save      CommitSave
	stale     bool // a batch was validated against older configs
}

// decide takes every flush's results from its receipt or decides them now.
func (d *decision) decide(flushes []*Flush, receipts map[FlushID][]byte) ([]FlushResult, error) {
	results := make([]FlushResult, len(flushes))
	for i, f := range flushes {
		var err error
		if data, ok := receipts[f.ID]; ok {
			results[i], err = d.resubmitted(f, data)
		} else if d.now.Sub(f.Seen) > MaxResubmit {
			results[i] = FlushResult{Err: ErrFlushTooOld}
			d.dropPayload(f)
		} else {
			results[i] = d.flush(f)
		}
		if err != nil {
			return nil, fmt.Errorf("flush %s: %w", f.ID, err)
		}
	}
	return results, nil
}

// dropPayload lets go of the bytes of a flush that no row names through this attempt.
func (d *decision) dropPayload(f *Flush) {
	if f.Object == "" {
		if d.inlineNew[f.ID] {
			d.save.DropInline = append(d.save.DropInline, f.ID)
		}
		return
	}
	d.save.Objects = append(d.save.Objects, ObjectRow{Key: f.Object, Size: f.ObjectSize, State: ObjectGarbage, Lenient: true})
}

// resubmitted takes a flush's results from its receipt. Its object may be the one that the rows name or another upload
// of the same bytes: it is registered as garbage only when it is not known. An inline payload that was merged away since
// has just been inserted again, and is dropped.
func (d *decision) resubmitted(f *Flush, data []byte) (FlushResult, error) {
	res, err := decodeReceipt(data, f)
	if err != nil {
		return FlushResult{}, err
	}
	n := 0
	for i := range f.Extents {
		e := &f.Extents[i]
		s := d.states[e.Block]
		for range e.Batches {
			if s != nil {
				res[n].LogStart = s.Row.LogStart[e.Slot]
			}
			n++
		}
	}
	d.dropPayload(f)
	return FlushResult{Batches: res, Resubmitted: true}, nil
}

// flush decides a flush that was not committed before: one row for every block in which a batch is accepted.
func (d *decision) flush(f *Flush) FlushResult {
	n := 0
	for i := range f.Extents {
		n += len(f.Extents[i].Batches)
	}
	results := make([]BatchResult, 0, n)
	rows := 0
	for i := 0; i < len(f.Extents); {
		j := i + 1
		for j < len(f.Extents) && f.Extents[j].Block == f.Extents[i].Block {
			j++
		}
		var row *Row
		row, results = d.block(f, f.Extents[i:j], results)
		if row != nil {
			d.save.Rows = append(d.save.Rows, row)
			rows++
		}
		i = j
	}
	d.save.Receipts = append(d.save.Receipts, Receipt{Flush: f.ID, Data: encodeReceipt(results)})
	if rows == 0 {
		d.dropPayload(f)
	} else if f.Object != "" {
		d.save.Objects = append(d.save.Objects, ObjectRow{Key: f.Object, Size: f.ObjectSize, Refs: rows, State: ObjectLive})
	}
	return FlushResult{Batches: results}
}

// block decides the extents of one flush in one block.
func (d *decision) block(f *Flush, extents []Extent, results []BatchResult) (*Row, []BatchResult) {
	s := d.states[extents[0].Block]
	accepted := false
	at := d.now
	if s != nil {
		at = max(at, s.Time)
	}
	for i := range extents {
		e := &extents[i]
		for j := range e.Batches {
			b := &e.Batches[j]
			b.Flags &^= FlagAccepted
			r := d.batch(s, e, b, at)
			if r.Code == CodeAccepted {
				b.Flags |= FlagAccepted
				accepted = true
			}
			results = append(results, r)
		}
	}
	if !accepted {
		return nil, results
	}
	row := &Row{
		Block: s.Row.ID, Seq: s.Seq + 1, Flush: f.ID, Object: f.Object, Time: at,
		Touched: make([]Touched, len(extents)), Photo: s.Photo,
	}
	for i := range extents {
		e := &extents[i]
		row.Touched[i] = Touched{
			Slot: e.Slot, Position: e.Position, Length: e.Length, RawLength: e.RawLength, Codec: e.Codec, CRC: e.CRC,
			Batches: e.Batches,
		}
	}
	s.Seq, s.Time = row.Seq, at
	return row, results
}

// batch decides one batch and, when it is accepted, folds it into the state.
func (d *decision) batch(s *State, e *Extent, b *Batch, at Millis) BatchResult {
	if s == nil || s.Row.Deleted&(1<<e.Slot) != 0 {
		d.stale = true // the name may be another topic's by now
		return BatchResult{Code: CodeUnknownPartition, Base: -1, LogStart: -1}
	}
	r := BatchResult{Base: -1, LogStart: s.Row.LogStart[e.Slot]}
	if b.Flags&FlagControl != 0 {
		return d.marker(s, e, b, at)
	}
	if b.Validated < s.Row.ConfigEpoch {
		r.Code, d.stale = CodeStale, true
		return r
	}
	base := s.Photo.Next[e.Slot]
	if b.Producer != NoProducer {
		if r.Code, r.Base = d.producer(s, e, b, base, at); r.Code != CodeAccepted {
			return r
		}
	}
	r.Base = base
	s.Photo.append(e.Slot, b)
	return r
}

// producer checks a batch of a producer against its transaction and its sequence, and notes it when it is accepted.
func (d *decision) producer(s *State, e *Extent, b *Batch, base Offset, at Millis) (Code, Offset) {
	k := producerKey{slot: e.Slot, id: b.Producer}
	joins := false
	if b.Flags&FlagTransactional != 0 {
		var code Code
		if code, joins = d.txns.check(e, b); code != CodeAccepted {
			return code, -1
		}
	} else if _, open := s.open[k]; open {
		return CodeInvalidTxnState, -1 // not in the middle of the producer's transaction
	}
	p := s.producer(k, at)
	code, first := d.sequence(p, e, b)
	if code != CodeAccepted {
		return code, first
	}
	if joins {
		d.join(e, b)
	}
	s.noteOf(k, p, b, base, at)
	return CodeAccepted, -1
}

// sequence checks an idempotent batch against its producer's state p. With no state at all (nil) a sequence other than 0 is
// held when an earlier batch must still be on its way: the producer id was handed out after the partition was made and
// not longer ago than state is kept (design: write path).
func (d *decision) sequence(p *producer, e *Extent, b *Batch) (Code, Offset) {
	if p != nil {
		return p.check(b)
	}
	if b.First == 0 {
		return CodeAccepted, -1
	}
	if b.Joins {
		return CodeNotYet, -1 // with KIP-890 every transaction begins at 0
	}
	handed, ok := d.ages.HandedOut(b.Producer)
	if ok && handed >= e.Created && d.now.Sub(handed) < ProducerExpiry {
		return CodeNotYet, -1
	}
	return CodeAccepted, -1
}

const receiptVersion = 1

// encodeReceipt keeps code and base of every batch, in order. The log start is not kept: it is read anew.
func encodeReceipt(results []BatchResult) []byte {
	b := make([]byte, 0, 8+len(results)*8)
	b = append(b, receiptVersion)
	b = binary.AppendUvarint(b, uint64(len(results)))
	for i := range results {
		b = append(b, byte(results[i].Code))
		b = binary.AppendVarint(b, int64(results[i].Base))
	}
	return b
}

func decodeReceipt(data []byte, f *Flush) ([]BatchResult, error) {
	d := decoder{b: data}
	if v := d.byte(); v != receiptVersion {
		return nil, fmt.Errorf("%w: receipt of version %d", ErrCorrupt, v)
	}
	want := 0
	for i := range f.Extents {
		want += len(f.Extents[i].Batches)
	}
	results := make([]BatchResult, d.count(math.MaxInt32, 2))
	for i := range results {
		results[i] = BatchResult{Code: Code(d.byte()), Base: Offset(d.varint()), LogStart: -1}
	}
	if d.err == nil && len(d.b) != 0 {
		d.fail()
	}
	if d.err != nil {
		return nil, fmt.Errorf("receipt: %w", d.err)
	}
	if len(results) != want {
		return nil, fmt.Errorf("%w: receipt has %d results for %d batches", ErrCorrupt, len(results), want)
	}
	return results, nil
}
