package metadata

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// CanonicalName folds '.' to '_': names that are equal then collide in metric names, as in Kafka.
func CanonicalName(name string) string { return strings.ReplaceAll(name, ".", "_") }

// Catalogue gives all topics: the cached catalogue unless it is known to be stale.
func (s *Store) Catalogue(ctx context.Context) (*Catalogue, error) {
	has := s.catHas.Load() // before the catalogue: it may only be newer
	if c := s.catalogue.Load(); c != nil && has >= s.catWanted.Load() {
		return c, nil
	}
	return s.RefreshCatalogue(ctx)
}

// RefreshCatalogue asks the database: the answer is at least as new as the call.
func (s *Store) RefreshCatalogue(ctx context.Context) (*Catalogue, error) {
	for range maxLoadTries {
		if err := s.reload.do(ctx, struct{}{}); err != nil {
			return nil, err
		}
		if c := s.catalogue.Load(); c != nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: the catalogue is forgotten as fast as it is loaded", ErrUnavailable)
}

// catalogueMoved says that the catalogue in memory is older than the database's: nobody is given it any more.
func (s *Store) catalogueMoved() { s.catWanted.Add(1) }

func (s *Store) loadCatalogue(ctx context.Context, _ []struct{}) error {
	for {
		wanted := s.catWanted.Load()
		old := s.catalogue.Load()
		since := CatalogueVersion(-1)
		if old != nil {
			since = old.Version
		}
		loaded, err := s.driver.LoadTopics(ctx, since)
		if err != nil {
			return fmt.Errorf("load topics: %w", err)
		}
		next := old
		if old == nil || loaded.Full || loaded.Version != old.Version {
			next = old.with(loaded)
		}
		if s.catalogue.CompareAndSwap(old, next) {
			s.catHas.Store(wanted)
			return nil
		}
		// Another history of the database came in between (Forget).
	}
}

// with gives the catalogue after what was loaded; c may be nil.
func (c *Catalogue) with(l *TopicsLoaded) *Catalogue {
	next := &Catalogue{Version: l.Version, byName: map[string]*Topic{}, byID: map[TopicID]*Topic{}}
	if c != nil && !l.Full {
		next.byID = maps.Clone(c.byID)
	}
	for _, id := range l.Deleted {
		delete(next.byID, id)
	}
	parts := make(map[TopicID][]Partition, len(l.Topics))
	for i := range l.Partitions {
		p := &l.Partitions[i]
		parts[p.Topic] = append(parts[p.Topic], p.Partition)
	}
	for _, r := range l.Topics {
		t := &Topic{
			ID: r.ID, Name: r.Name, Configs: r.Configs, ReplicationFactor: r.ReplicationFactor, Version: r.Version,
			Created: r.Created, Partitions: parts[r.ID],
		}
		next.byID[r.ID] = t
	}
	for _, t := range next.byID {
		next.byName[t.Name] = t
		next.sorted = append(next.sorted, t)
	}
	slices.SortFunc(next.sorted, func(a, b *Topic) int { return strings.Compare(a.Name, b.Name) })
	return next
}

// change runs one catalogue transaction and tells everybody. Its error is that of the transaction; after one of unknown
// outcome all that is cached is asked for again.
func (s *Store) change(ctx context.Context, load CatalogueLoad, decide func(*CatalogueLoaded) (*CatalogueSave, error)) error {
	var version CatalogueVersion
	var changed []BlockID
	err := s.driver.Catalogue(ctx, load, func(l *CatalogueLoaded) (*CatalogueSave, error) {
		s.clock.saw(l.Now)
		save, err := decide(l)
		if err != nil {
			return nil, err
		}
		version, changed = save.Version, nil
		for i := range save.Blocks {
			changed = append(changed, save.Blocks[i].ID)
		}
		return save, nil
	})
	if err != nil {
		s.catalogueMoved()
		if errors.Is(err, ErrUnknownOutcome) {
			s.moved(Event{All: true})
		}
		return err
	}
	if version == 0 && len(changed) == 0 {
		return nil
	}
	if version > 0 {
		s.catalogueMoved()
	}
	e := Event{Catalogue: version, Changed: changed}
	s.moved(e)      // this Store's readers see it even without Run,
	s.events.add(e) // its watchers by Run,
	s.pending.add(e)
	return nil
}

// CreateTopics makes topics, each with its own result (nil, ErrTopicExists, ErrTopicCollides, ErrInvalidPartitions). With
// validateOnly nothing is written. The error is of the whole call.
func (s *Store) CreateTopics(ctx context.Context, topics []NewTopic, validateOnly bool) ([]*Topic, []error, error) {
	load := CatalogueLoad{Shared: true}
	for _, t := range topics {
		load.Names = append(load.Names, t.Name)
		load.Canonical = append(load.Canonical, CanonicalName(t.Name))
	}
	var made []*Topic
	var errs []error
	err := s.change(ctx, load, func(l *CatalogueLoaded) (*CatalogueSave, error) {
		save := &CatalogueSave{}
		made, errs = createTopics(l, topics, save)
		if validateOnly {
			return &CatalogueSave{}, nil
		}
		return save, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create topics: %w", err)
	}
	return made, errs, nil
}

func createTopics(l *CatalogueLoaded, topics []NewTopic, save *CatalogueSave) ([]*Topic, []error) {
	names, canonical := map[string]bool{}, map[string]bool{}
	for _, t := range l.Topics {
		names[t.Name], canonical[CanonicalName(t.Name)] = true, true
	}
	alloc := newAllocator(l, save)
	made, errs := make([]*Topic, len(topics)), make([]error, len(topics))
	for i, n := range topics {
		switch {
		case names[n.Name]:
			errs[i] = fmt.Errorf("topic %q: %w", n.Name, ErrTopicExists)
		case canonical[CanonicalName(n.Name)]:
			errs[i] = fmt.Errorf("topic %q: %w", n.Name, ErrTopicCollides)
		case n.Partitions < 1 || n.Partitions > MaxPartitionsPerTopic:
			errs[i] = fmt.Errorf("topic %q: %w: %d", n.Name, ErrInvalidPartitions, n.Partitions)
		}
		if errs[i] != nil {
			continue
		}
		names[n.Name], canonical[CanonicalName(n.Name)] = true, true
		save.Version = l.Version + 1
		configs := maps.Clone(n.Configs)
		if configs == nil {
			configs = map[string]string{}
		}
		row := TopicRow{
			ID: NewTopicID(), Name: n.Name, Configs: configs, ReplicationFactor: n.ReplicationFactor,
			Version: save.Version, Created: l.Now,
		}
		save.Topics = append(save.Topics, row)
		made[i] = &Topic{
			ID: row.ID, Name: row.Name, Configs: row.Configs, ReplicationFactor: row.ReplicationFactor, Version: row.Version,
			Created: row.Created, Partitions: alloc.place(row.ID, 0, int(n.Partitions)),
		}
	}
	alloc.finish()
	return made, errs
}

// allocator places partitions: whole blocks of their own for every SlotsPerBlock partitions of a topic, the rest in the
// shared block. Slots are never used again.
type allocator struct {
	l      *CatalogueLoaded
	save   *CatalogueSave
	next   BlockID
	shared *BlockRow
	moved  bool // shared was changed and is not in save yet
}

func newAllocator(l *CatalogueLoaded, save *CatalogueSave) *allocator {
	a := &allocator{l: l, save: save, next: l.NextBlock}
	if l.SharedRow != nil {
		row := *l.SharedRow
		a.shared = &row
	}
	return a
}

// place adds partitions from (inclusive) to to (exclusive).
func (a *allocator) place(topic TopicID, from, to int) []Partition {
	var placed []Partition
	add := func(row *BlockRow) {
		p := Partition{Block: row.ID, Slot: Slot(row.Used), Created: a.l.Now}
		row.Used++
		placed = append(placed, p)
		a.save.Partitions = append(a.save.Partitions, PartitionRow{Topic: topic, Index: int32(from), Partition: p})
		from++
	}
	for to-from >= SlotsPerBlock {
		row := a.fresh(false)
		for range SlotsPerBlock {
			add(&row)
		}
		a.save.Blocks = append(a.save.Blocks, row)
	}
	for from < to {
		if a.shared == nil || a.shared.Used == SlotsPerBlock {
			a.flushShared()
			row := a.fresh(true)
			a.shared = &row
		}
		add(a.shared)
		a.moved = true
	}
	return placed
}

func (a *allocator) fresh(shared bool) BlockRow {
	row := BlockRow{ID: a.next, Shared: shared}
	a.next++
	a.save.NextBlock = a.next
	return row
}

func (a *allocator) flushShared() {
	if a.moved {
		a.shared.Version++
		a.save.Blocks = append(a.save.Blocks, *a.shared)
	}
	a.moved = false
}

func (a *allocator) finish() { a.flushShared() }

// TopicRef names a topic by id, or by name where the id is zero.
type TopicRef struct {
	ID   TopicID
	Name string
}

// DeleteTopics deletes topics, each with its own result (nil or ErrUnknownTopic). Their slots are marked deleted: readers
// and commits see it at once.
func (s *Store) DeleteTopics(ctx context.Context, refs []TopicRef) ([]TopicRow, []error, error) {
	load := CatalogueLoad{LockBlocks: true}
	for _, r := range refs {
		if r.ID.IsZero() {
			load.Names = append(load.Names, r.Name)
		} else {
			load.IDs = append(load.IDs, r.ID)
		}
	}
	var gone []TopicRow
	var errs []error
	err := s.change(ctx, load, func(l *CatalogueLoaded) (*CatalogueSave, error) {
		save := &CatalogueSave{}
		gone, errs = deleteTopics(l, refs, save)
		return save, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("delete topics: %w", err)
	}
	return gone, errs, nil
}

func deleteTopics(l *CatalogueLoaded, refs []TopicRef, save *CatalogueSave) ([]TopicRow, []error) {
	gone, errs := make([]TopicRow, len(refs)), make([]error, len(refs))
	ids := map[TopicID]bool{}
	byName, byID := make(map[string]int, len(l.Topics)), make(map[TopicID]int, len(l.Topics))
	for j := range l.Topics {
		byName[l.Topics[j].Name], byID[l.Topics[j].ID] = j, j
	}
	for i, r := range refs {
		j, ok := byID[r.ID]
		if r.ID.IsZero() {
			j, ok = byName[r.Name]
		}
		if !ok || ids[l.Topics[j].ID] {
			errs[i] = fmt.Errorf("topic %q %s: %w", r.Name, r.ID, ErrUnknownTopic)
			continue
		}
		gone[i] = l.Topics[j]
		ids[gone[i].ID] = true
		save.DeleteTopics = append(save.DeleteTopics, gone[i].ID)
		save.Version = l.Version + 1
	}
	bits := map[BlockID]uint64{}
	for _, p := range l.Partitions {
		if ids[p.Topic] {
			bits[p.Block] |= 1 << p.Slot
		}
	}
	for _, b := range l.Blocks {
		if d := bits[b.ID]; d != 0 {
			b.Deleted |= d
			b.Version++
			save.Blocks = append(save.Blocks, b)
		}
	}
	return gone, errs
}

// CreatePartitions grows a topic to count partitions. The error wraps ErrUnknownTopic or ErrInvalidPartitions.
func (s *Store) CreatePartitions(ctx context.Context, name string, count int32, validateOnly bool) error {
	err := s.change(ctx, CatalogueLoad{Names: []string{name}, Shared: true}, func(l *CatalogueLoaded) (*CatalogueSave, error) {
		if len(l.Topics) == 0 {
			return nil, ErrUnknownTopic
		}
		if have := len(l.Partitions); int(count) <= have || count > MaxPartitionsPerTopic {
			return nil, fmt.Errorf("%w: %d, there are %d", ErrInvalidPartitions, count, have)
		}
		if validateOnly {
			return &CatalogueSave{}, nil
		}
		t := l.Topics[0]
		t.Version = l.Version + 1
		save := &CatalogueSave{Version: t.Version, Topics: []TopicRow{t}}
		a := newAllocator(l, save)
		a.place(t.ID, len(l.Partitions), int(count))
		a.finish()
		return save, nil
	})
	if err != nil {
		return fmt.Errorf("create partitions of %q: %w", name, err)
	}
	return nil
}

// AlterConfigs changes topics' configs, each with its own result. When that makes a difference the config epoch of their blocks rises: batches that
// were validated against older configs are not committed after it.
func (s *Store) AlterConfigs(ctx context.Context, changes []ConfigChange) ([]error, error) {
	load := CatalogueLoad{LockBlocks: true}
	for _, c := range changes {
		load.Names = append(load.Names, c.Topic)
	}
	var errs []error
	err := s.change(ctx, load, func(l *CatalogueLoaded) (*CatalogueSave, error) {
		save := &CatalogueSave{}
		errs = alterConfigs(l, changes, save)
		return save, nil
	})
	if err != nil {
		return nil, fmt.Errorf("alter configs: %w", err)
	}
	return errs, nil
}

func alterConfigs(l *CatalogueLoaded, changes []ConfigChange, save *CatalogueSave) []error {
	errs := make([]error, len(changes))
	touched := map[TopicID]bool{}
	byName := make(map[string]int, len(l.Topics))
	for j := range l.Topics {
		byName[l.Topics[j].Name] = j
	}
	for i, c := range changes {
		j, ok := byName[c.Topic]
		if !ok {
			errs[i] = fmt.Errorf("topic %q: %w", c.Topic, ErrUnknownTopic)
			continue
		}
		t := &l.Topics[j]
		configs, err := c.Apply(t.Configs)
		if err != nil {
			errs[i] = err
			continue
		}
		if maps.Equal(configs, t.Configs) {
			continue // a change would only send batches back that were validated before it
		}
		t.Configs, t.Version = configs, l.Version+1
		save.Version = t.Version
		touched[t.ID] = true
	}
	blocks := map[BlockID]bool{}
	for _, p := range l.Partitions {
		if touched[p.Topic] {
			blocks[p.Block] = true
		}
	}
	for _, t := range l.Topics {
		if touched[t.ID] {
			save.Topics = append(save.Topics, t)
		}
	}
	for _, b := range l.Blocks {
		if blocks[b.ID] {
			b.ConfigEpoch = save.Version
			b.Version++
			save.Blocks = append(save.Blocks, b)
		}
	}
	return errs
}

// Apply gives the configs after the change; configs is not changed.
func (c *ConfigChange) Apply(configs map[string]string) (map[string]string, error) {
	next := map[string]string{}
	if !c.Replace {
		maps.Copy(next, configs)
	}
	for _, k := range c.Delete {
		delete(next, k)
	}
	maps.Copy(next, c.Set)
	if c.Edit != nil {
		return c.Edit(next)
	}
	return next, nil
}

// DeleteRecords moves log starts, each with its own result. A log start never moves back.
func (s *Store) DeleteRecords(ctx context.Context, reqs []DeleteRecords) ([]DeleteRecordsResult, error) {
	load := CatalogueLoad{LockBlocks: true}
	for _, r := range reqs {
		load.Blocks = append(load.Blocks, r.Partition.Block)
	}
	slices.Sort(load.Blocks)
	load.Blocks = slices.Compact(load.Blocks)
	var results []DeleteRecordsResult
	err := s.change(ctx, load, func(l *CatalogueLoaded) (*CatalogueSave, error) {
		save := &CatalogueSave{}
		results = deleteRecords(l, reqs, save)
		return save, nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete records: %w", err)
	}
	return results, nil
}

func deleteRecords(l *CatalogueLoaded, reqs []DeleteRecords, save *CatalogueSave) []DeleteRecordsResult {
	results := make([]DeleteRecordsResult, len(reqs))
	moved := map[BlockID]bool{}
	for i, r := range reqs {
		j := slices.IndexFunc(l.Blocks, func(b BlockRow) bool { return b.ID == r.Partition.Block })
		slot := r.Partition.Slot
		if j < 0 || l.Blocks[j].Deleted&(1<<slot) != 0 {
			results[i] = DeleteRecordsResult{LogStart: -1, Err: ErrUnknownTopic}
			continue
		}
		b := &l.Blocks[j]
		end := l.Next[b.ID][slot]
		before := r.Before
		if before == -1 {
			before = end
		}
		if before < 0 || before > end {
			results[i] = DeleteRecordsResult{LogStart: -1, Err: ErrOffsetOutOfRange}
			continue
		}
		if before > b.LogStart[slot] {
			b.LogStart[slot] = before
			moved[b.ID] = true
		}
		results[i].LogStart = b.LogStart[slot]
	}
	for _, b := range l.Blocks {
		if moved[b.ID] {
			b.Version++
			save.Blocks = append(save.Blocks, b)
		}
	}
	return results
}
