package agent

import (
	"fmt"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// pick is consecutive batches of one extent that are to be sent.
type pick struct {
	extent   *metadata.Located
	from, to int             // of extent.Batches; those that were not accepted are left out
	position int64           // of batch from in the decoded extent, bytes
	base     metadata.Offset // of batch from
	end      metadata.Offset // after the last accepted one
	batches  int             // accepted ones
	bytes    int             // of them
	run      *runPick        // of a chunk of a run, whose batches show when it is read: these figures are then the most there can be
}

func (k *pick) name() string {
	e := extentOf(k.extent)
	return e.String()
}

// accepted says whether the i-th batch of an extent got offsets.
func accepted(l *metadata.Located, i int) bool { return l.Batches[i].Flags&metadata.FlagAccepted != 0 }

// pickBatches chooses from consecutive extents the batches from the one that contains offset (or, where there is a hole,
// the next) up to limit, as many as fit maxBytes; one more when atLeastOne says so and the first does not fit. An error
// comes with what was chosen before it.
func pickBatches(located []metadata.Located, offset, limit metadata.Offset, maxBytes int, atLeastOne bool) ([]pick, error) {
	var picks []pick
	for i := range located {
		l := &located[i]
		if l.Base >= limit {
			break
		}
		choose := pickFrom
		if l.Run {
			choose = pickChunk
		} else if err := checkLocated(l); err != nil {
			return picks, err
		}
		k, full := choose(l, offset, limit, maxBytes, atLeastOne)
		if k.batches > 0 {
			picks = append(picks, k)
			maxBytes -= k.bytes
			atLeastOne = false
		}
		if full {
			break
		}
	}
	return picks, nil
}

// pickFrom chooses from one extent; full says that the next batch does not fit.
func pickFrom(l *metadata.Located, offset, limit metadata.Offset, maxBytes int, atLeastOne bool) (k pick, full bool) {
	k.extent = l
	base, position := l.Base, int64(0)
	for i := range l.Batches {
		b := &l.Batches[i]
		if accepted(l, i) {
			next := base + metadata.Offset(b.Records)
			switch {
			case base >= limit:
				return k, true
			case next <= offset: // before the one that contains offset
			case k.bytes+int(b.Length) > maxBytes && !(atLeastOne && k.batches == 0):
				return k, true
			default:
				if k.batches == 0 {
					k.from, k.position, k.base = i, position, base
				}
				k.to, k.end = i+1, next
				k.batches++
				k.bytes += int(b.Length)
			}
			base = next
		}
		position += int64(b.Length)
	}
	return k, false
}

// checkLocated makes sure that what the database says of an extent fits together before bytes are cut by it.
func checkLocated(l *metadata.Located) error {
	var length int64
	for i := range l.Batches {
		if n := l.Batches[i].Length; n < record.HeaderBytes {
			return fmt.Errorf("%w: %s: batch of %d bytes", cache.ErrCorrupt, (&pick{extent: l}).name(), n)
		}
		length += int64(l.Batches[i].Length)
	}
	if length != l.RawLength {
		return fmt.Errorf("%w: %s: batches of %d bytes in %d", cache.ErrCorrupt, (&pick{extent: l}).name(), length, l.RawLength)
	}
	return nil
}

// appendBatches cuts the pick's batches out of the decoded extent.
func (k *pick) appendBatches(dst []servedBatch, data []byte) ([]servedBatch, error) {
	if k.run != nil {
		return k.appendChunk(dst, data)
	}
	position, base := k.position, k.base
	for i := k.from; i < k.to; i++ {
		m := &k.extent.Batches[i]
		end := position + int64(m.Length)
		if accepted(k.extent, i) {
			if end > int64(len(data)) {
				return dst, fmt.Errorf("%w: %s: batch %d ends at %d of %d bytes", cache.ErrCorrupt, k.name(), i, end, len(data))
			}
			b := data[position:end:end]
			h, err := record.Parse(b)
			if err != nil {
				return dst, fmt.Errorf("%w: %s: batch %d at %d: %w", cache.ErrCorrupt, k.name(), i, position, err)
			}
			if h.Size() != len(b) || h.LastOffsetDelta+1 != m.Records {
				return dst, fmt.Errorf("%w: %s: batch %d at %d has %d bytes and %d offsets, expected %d and %d", cache.ErrCorrupt,
					k.name(), i, position, h.Size(), h.LastOffsetDelta+1, len(b), m.Records)
			}
			dst = append(dst, servedBatch{data: b, base: base})
			base += metadata.Offset(m.Records)
		}
		position = end
	}
	return dst, nil
}
