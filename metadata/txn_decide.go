package metadata

import (
	"cmp"
	"slices"
)

// txnRows are the transactions that a commit locked.
type txnRows struct {
	rows      map[ProducerID]*TxnRow
	open      map[TxnPart]struct{}
	exclusive bool
	changed   []ProducerID
	// joins: a batch joins a transaction whose row is locked FOR SHARE only. What was decided must be thrown away.
	joins bool
}

func newTxnRows(loaded *CommitLoaded, exclusive bool) txnRows {
	if len(loaded.Txns) == 0 {
		return txnRows{exclusive: exclusive}
	}
	t := txnRows{
		rows: make(map[ProducerID]*TxnRow, len(loaded.Txns)), open: make(map[TxnPart]struct{}, len(loaded.TxnOpen)),
		exclusive: exclusive,
	}
	for i := range loaded.Txns {
		t.rows[loaded.Txns[i].Producer] = &loaded.Txns[i]
	}
	for _, p := range loaded.TxnOpen {
		t.open[p] = struct{}{}
	}
	return t
}

// check says whether a transactional batch may be part of its producer's transaction, and whether it still has to join.
func (t *txnRows) check(e *Extent, b *Batch) (code Code, joins bool) {
	row := t.rows[b.Producer]
	switch {
	case row == nil: // no such producer is anybody's (any more)
		return CodeInvalidTxnState, false
	case b.Epoch != row.Epoch: // above it: a producer that never was
		return CodeFenced, false
	}
	if _, open := t.open[partOf(b.Producer, e)]; open {
		return CodeAccepted, false
	}
	if !b.Joins {
		return CodeInvalidTxnState, false
	}
	return CodeAccepted, true
}

func partOf(producer ProducerID, e *Extent) TxnPart {
	return TxnPart{Producer: producer, PartitionID: PartitionID{Block: e.Block, Slot: e.Slot}}
}

// join adds the partition of an accepted batch to its transaction, and begins that where it has not begun.
func (d *decision) join(e *Extent, b *Batch) {
	t := &d.txns
	if !t.exclusive {
		t.joins = true
		return
	}
	part := partOf(b.Producer, e)
	t.open[part] = struct{}{}
	d.save.TxnAdd = append(d.save.TxnAdd, part)
	row := t.rows[b.Producer]
	if row.State != TxnOngoing {
		row.State, row.Started = TxnOngoing, d.now
	}
	row.Protocol, row.Updated = TxnKIP890, d.now
	if !slices.Contains(t.changed, b.Producer) {
		t.changed = append(t.changed, b.Producer)
		row.Version = NextVersion(row.Version, d.now)
	}
}

// saveTxns notes the rows that changed.
func (d *decision) saveTxns() {
	for _, id := range d.txns.changed {
		d.save.Txns = append(d.save.Txns, *d.txns.rows[id])
	}
}

// marker decides a control batch and folds it into the state.
func (d *decision) marker(s *State, e *Extent, b *Batch, at Millis) BatchResult {
	r := BatchResult{Base: -1, LogStart: s.Row.LogStart[e.Slot]}
	k := producerKey{slot: e.Slot, id: b.Producer}
	p := s.producer(k, at)
	first, open := s.open[k]
	switch {
	case !d.markers, d.onlyOpen && !open:
		r.Code = CodeInvalidTxnState
		return r
	case p != nil && b.Epoch < p.epoch:
		r.Code = CodeFenced
		return r
	}
	r.Base = s.Photo.Next[e.Slot]
	s.noteOf(k, p, b, r.Base, at)
	s.Photo.append(e.Slot, b)
	if open && b.Flags&FlagCommit == 0 {
		d.save.Aborted = append(d.save.Aborted, AbortedTxn{
			Partition: PartitionID{Block: e.Block, Slot: e.Slot}, Marker: r.Base, First: first, Producer: b.Producer,
			LSO: s.LSO(e.Slot),
		})
	}
	return r
}

// txnLoad gives what of transactions a commit has to load, nil where no batch is part of one.
func (c *commit) txnLoad() *TxnLoad {
	if c.plan != nil {
		return &TxnLoad{ID: c.plan.id}
	}
	var l *TxnLoad
	for _, f := range c.flushes {
		for i := range f.Extents {
			e := &f.Extents[i]
			for j := range e.Batches {
				b := &e.Batches[j]
				if b.Flags&(FlagTransactional|FlagControl) != FlagTransactional {
					continue
				}
				if l == nil {
					l = &TxnLoad{Exclusive: c.exclusive}
				}
				l.Parts = append(l.Parts, partOf(b.Producer, e))
				// With KIP-890 the first batch of a transaction in a partition has sequence 0, and joins.
				l.Exclusive = l.Exclusive || b.Joins && b.First == 0
			}
		}
	}
	if l != nil {
		slices.SortFunc(l.Parts, TxnPart.compare)
		l.Parts = slices.Compact(l.Parts)
	}
	return l
}

func (p TxnPart) compare(q TxnPart) int {
	return cmp.Or(cmp.Compare(p.Producer, q.Producer), cmp.Compare(p.Block, q.Block), cmp.Compare(p.Slot, q.Slot))
}

// planned says whether the plan of a transaction's end still holds: its row is as it was, or the end was committed before.
func (c *commit) planned(loaded *CommitLoaded) error {
	if c.plan == nil {
		return nil
	}
	if _, done := loaded.Receipts[c.flushes[0].ID]; done {
		return nil
	}
	if len(loaded.Txns) != 1 || loaded.Txns[0].Version != c.plan.version {
		return errTxnMoved
	}
	return nil
}

// end adds the end of a transaction to what its markers' commit saves.
func (c *commit) end(save *CommitSave, results []FlushResult) {
	if c.plan == nil || results[0].Resubmitted || results[0].Err != nil {
		return
	}
	save.Txns = append(save.Txns, c.plan.change.Row)
	save.TxnEnd = c.plan.change.end()
}
