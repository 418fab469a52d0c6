package cache

import (
	"math"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// entry is a cached extent. Its data is never changed.
type entry struct {
	data  []byte
	ahead bool // prefetched and not read yet
}

func (e *entry) weight() int64 { return int64(cap(e.data)) + EntryOverheadBytes }

// region is an LRU bounded in bytes. It has no lock of its own.
type region struct {
	max   int64
	bytes int64
	lru   *simplelru.LRU[Key, *entry]
}

// newRegion makes a region of max bytes; gone is told of every entry that leaves it.
func newRegion(max int64, gone func(*entry)) (*region, error) {
	r := &region{max: max}
	var err error
	r.lru, err = simplelru.NewLRU(math.MaxInt, func(_ Key, e *entry) {
		r.bytes -= e.weight()
		gone(e)
	})
	return r, err
}

// get gives an entry, nil where there is none, and makes it the youngest.
func (r *region) get(k Key) *entry {
	e, _ := r.lru.Get(k)
	return e
}

// peek is get without making it younger.
func (r *region) peek(k Key) *entry {
	e, _ := r.lru.Peek(k)
	return e
}

// add puts an entry in, and the oldest out until all fit. What does not fit alone is not kept. An entry that is there
// already stays: entries are immutable.
func (r *region) add(k Key, e *entry) (kept bool) {
	if r.lru.Contains(k) || e.weight() > r.max {
		return false
	}
	for r.bytes+e.weight() > r.max {
		r.lru.RemoveOldest()
	}
	r.bytes += e.weight()
	r.lru.Add(k, e)
	return true
}
