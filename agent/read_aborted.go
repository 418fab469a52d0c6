package agent

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Of a batch's header: attributes, and their bits for transactions and control batches.
const (
	attributesAt     = 21
	lastOffsetAt     = 23
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
		p.aborted = found[i]
		slices.SortFunc(p.aborted, func(a, b metadata.AbortedTxn) int { return cmp.Compare(a.First, b.First) })
	}
	return nil
}

// transactional says whether there is a transaction's data among the batches.
func (p *partRead) transactional() bool {
	for i := range p.batches {
		if attributes := binary.BigEndian.Uint16(p.batches[i].data[attributesAt:]); attributes&(transactionalBit|controlBit) == transactionalBit {
			return true
		}
	}
	return false
}
