package metadata

import (
	"cmp"
	"slices"
	"sync"
)

// ProducerAges says when producer ids were handed out. It is asked only about producers whose first batch in a
// partition does not start at sequence 0.
type ProducerAges interface {
	HandedOut(ProducerID) (at Millis, ok bool)
}

// idRanges is ranges of producer ids by First. They do not overlap and never change.
type idRanges []ProducerRange

func (r idRanges) find(id ProducerID) (ProducerRange, bool) {
	i, found := slices.BinarySearchFunc(r, id, func(a ProducerRange, id ProducerID) int { return cmp.Compare(a.First, id) })
	if !found {
		i--
	}
	if i < 0 || !r[i].Contains(id) {
		return ProducerRange{}, false
	}
	return r[i], true
}

func (r idRanges) contains(id ProducerID) bool {
	_, ok := r.find(id)
	return ok
}

func (r *idRanges) insert(x ProducerRange) {
	i, found := slices.BinarySearchFunc(*r, x, func(a, b ProducerRange) int { return cmp.Compare(a.First, b.First) })
	if !found {
		*r = slices.Insert(*r, i, x)
	}
}

// HandedOut implements ProducerAges.
func (r *idRanges) HandedOut(id ProducerID) (Millis, bool) {
	x, ok := r.find(id)
	return x.At, ok
}

var _ ProducerAges = (*idRanges)(nil)

// maxIDRanges bounds the ranges, and the ids in none, that a Store remembers.
const maxIDRanges = 4096

// ageCache remembers what commits looked up. A commit copies what it needs before it decides: what is forgotten here
// meanwhile does not change its rules.
type ageCache struct {
	mu     sync.Mutex
	ranges idRanges
	missed map[ProducerID]struct{} // ids in no range
}

// learn notes ranges that were found for ids, and that the other ids are in none.
func (c *ageCache) learn(found []ProducerRange, ids []ProducerID) {
	known := idRanges{}
	for _, r := range found {
		known.insert(r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range known {
		if len(c.ranges) >= maxIDRanges {
			c.ranges = slices.Clone(c.ranges[maxIDRanges/2:]) // the newer ones
		}
		c.ranges.insert(r)
	}
	for _, id := range ids {
		if known.contains(id) {
			continue
		}
		if len(c.missed) >= maxIDRanges || c.missed == nil {
			c.missed = map[ProducerID]struct{}{}
		}
		c.missed[id] = struct{}{}
	}
}

// copyTo adds id's range to ranges where it has one. It is false when nothing is known of id.
func (c *ageCache) copyTo(ranges *idRanges, id ProducerID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.ranges.find(id); ok {
		ranges.insert(r)
		return true
	}
	_, missed := c.missed[id]
	return missed
}
