package agent

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Of a batch's header: where fields are, and the attributes' bits for transactions and control batches.
const (
	attributesAt     = 21
	lastOffsetAt     = 23
	producerAt       = 43
	recordsAt        = 57
	transactionalBit = 1 << 4
	controlBit       = 1 << 5
)

// findAborted finds the aborted transactions that may touch what the partitions return: those whose marker is at or above
// the fetch offset and that began below the end of the data. Data without transactions needs no look at the database. One
// left out would show its records to a reader that asked not to see them: a partition that cannot be told fails.
func (rd *reader) findAborted(ctx context.Context, parts []*partRead) error {
	var asked []*partRead
	var queries []metadata.AbortedQuery
	for _, p := range parts {
		p.aborted = nil
		if p.failed() || !p.transactional() {
			continue
		}
		last := &p.batches[len(p.batches)-1]
		end := last.base + metadata.Offset(binary.BigEndian.Uint32(last.data[lastOffsetAt:])) + 1
		asked = append(asked, p)
		queries = append(queries, metadata.AbortedQuery{Partition: p.place, From: p.offset, To: end})
	}
	if len(asked) == 0 {
		return nil
	}
	found, err := rd.store.Aborted(ctx, queries)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		rd.failAll(asked, err)
		return nil
	}
	for i, p := range asked {
		p.aborted = p.touching(found[i])
		slices.SortFunc(p.aborted, func(a, b metadata.AbortedTxn) int { return cmp.Compare(a.First, b.First) })
	}
	return nil
}

// touching gives those of the aborted transactions that have records among the batches. A client counts a producer as
// aborted from the first offset of such a transaction until it meets its marker; where key compaction has removed records
// and marker it would go on and hide what the producer committed later.
func (p *partRead) touching(found []metadata.AbortedTxn) []metadata.AbortedTxn {
	if len(found) == 0 {
		return nil
	}
	byProducer := map[metadata.ProducerID][]int{} // in order of offset, as a producer has one transaction at a time
	slices.SortFunc(found, func(a, b metadata.AbortedTxn) int { return cmp.Compare(a.Marker, b.Marker) })
	for i := range found {
		byProducer[found[i].Producer] = append(byProducer[found[i].Producer], i)
	}
	used := make([]bool, len(found))
	for i := range p.batches {
		b := &p.batches[i]
		if !b.transactional() || binary.BigEndian.Uint32(b.data[recordsAt:]) == 0 {
			continue
		}
		of := byProducer[metadata.ProducerID(binary.BigEndian.Uint64(b.data[producerAt:]))]
		at, _ := slices.BinarySearchFunc(of, b.base, func(x int, base metadata.Offset) int {
			return cmp.Compare(found[x].Marker, base)
		})
		if at < len(of) && found[of[at]].First <= b.base {
			used[of[at]] = true
		}
	}
	touching := found[:0]
	for i := range found {
		if used[i] {
			touching = append(touching, found[i])
		}
	}
	return touching
}

// transactional says whether there is a transaction's data among the batches.
func (p *partRead) transactional() bool {
	return slices.ContainsFunc(p.batches, func(b servedBatch) bool { return b.transactional() })
}

// transactional says whether a batch is a transaction's data.
func (b *servedBatch) transactional() bool {
	return binary.BigEndian.Uint16(b.data[attributesAt:])&(transactionalBit|controlBit) == transactionalBit
}
