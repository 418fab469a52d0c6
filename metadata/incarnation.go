package metadata

// IncarnationWatcher is implemented by drivers whose database can be replaced by another history of it while they run: a
// failover, a restored copy.
type IncarnationWatcher interface {
	// OnIncarnation has forget called each time the database turns out to be another one than before, and before any
	// connection to it is used.
	OnIncarnation(forget func())
}

// Forget drops the folded states, views and catalogue: what they say may never have happened in the database as it is
// now. Loads and commits that were asked for before, and fold only now, load again. It waits for the commits that have
// decided and not yet heard the outcome.
func (s *Store) Forget() {
	s.mu.Lock()
	all := make([]*block, 0, len(s.blocks))
	for _, b := range s.blocks {
		all = append(all, b)
	}
	s.mu.Unlock()
	for _, b := range all {
		b.mu.Lock()
		s.forget(b)
		b.failure.Store(nil)
		b.view.Store(nil)
		b.history++
		b.mu.Unlock()
	}
	s.ages.clear()
	s.catalogue.Store(nil)
	s.catalogueMoved()
	s.events.add(Event{All: true})
}

// clear forgets all ranges.
func (c *ageCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ranges, c.missed = nil, nil
}
