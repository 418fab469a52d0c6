package cache

import (
	"cmp"
	"slices"
)

const (
	// MaxGapBytes: extents of one object with no more than so many bytes between them are one GET. Reading a gap costs
	// its transfer (a millisecond or so at 128 KiB), another GET a round trip and a request's price.
	MaxGapBytes = 128 << 10
	// MaxGetBytes bounds what is read by one GET where it is made of several extents.
	MaxGetBytes = 8 << 20
)

// coalesce groups flights into loads: extents near each other in one object, and inline extents, up to MaxGetBytes each.
// Every group is in order of position.
func coalesce(flights []*flight) [][]*flight {
	if len(flights) == 1 {
		return [][]*flight{flights}
	}
	slices.SortStableFunc(flights, func(a, b *flight) int {
		return cmp.Or(cmp.Compare(a.extent.Object, b.extent.Object), slices.Compare(a.extent.Inline[:], b.extent.Inline[:]),
			cmp.Compare(a.extent.Position, b.extent.Position))
	})
	var groups [][]*flight
	start := 0
	size := flights[0].extent.Length // of the group that starts at start, gaps included
	for i := 1; i < len(flights); i++ {
		last, next := &flights[i-1].extent, &flights[i].extent
		grown := size + next.Length
		if next.Object != "" {
			gap := next.Position - (last.Position + last.Length)
			grown += gap
			if gap < 0 || gap > MaxGapBytes {
				grown = MaxGetBytes + 1
			}
		}
		if next.Object != last.Object || grown > MaxGetBytes {
			groups = append(groups, flights[start:i])
			start, grown = i, next.Length
		}
		size = grown
	}
	return append(groups, flights[start:])
}
