package metadatatest

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"sync"

	"github.com/skeinio/skein/metadata"
)

// sameCatalogue asserts that Stores, refreshed, have the same topics, and gives the first one's catalogue.
func (e *env) sameCatalogue(stores ...*metadata.Store) *metadata.Catalogue {
	e.Helper()
	var first *metadata.Catalogue
	for i, s := range stores {
		c, err := s.RefreshCatalogue(e.Context())
		e.must(err)
		if first == nil {
			first = c
		}
		if c.Version != first.Version || !reflect.DeepEqual(c.Topics(), first.Topics()) {
			e.Fatalf("catalogue of store %d at version %d differs from the first at %d:\n%s\n%s", i, c.Version, first.Version,
				show(c), show(first))
		}
		for _, t := range c.Topics() {
			if c.ByName(t.Name) != t || c.ByID(t.ID) != t {
				e.Fatalf("topic %s is not found by name and id", t.Name)
			}
		}
	}
	return first
}

func show(c *metadata.Catalogue) string {
	s := ""
	for _, t := range c.Topics() {
		s += fmt.Sprintf("%+v\n", *t)
	}
	return s
}

// checkPlaces asserts that no two partitions that ever were share a place.
func (e *env) checkPlaces(seen map[metadata.PartitionID]metadata.TopicID, c *metadata.Catalogue) {
	e.Helper()
	for _, t := range c.Topics() {
		for _, p := range t.Partitions {
			id := metadata.PartitionID{Block: p.Block, Slot: p.Slot}
			if other, ok := seen[id]; ok && other != t.ID {
				e.Fatalf("place %v of topic %s was another topic's", id, t.Name)
			}
			if p.Block < 1 || p.Slot >= metadata.SlotsPerBlock || p.Created == 0 {
				e.Fatalf("partition %+v", p)
			}
			seen[id] = t.ID
		}
	}
}

func testCatalogue(e *env) {
	s, follower := e.store(), e.store()
	seen := map[metadata.PartitionID]metadata.TopicID{}
	step := func() *metadata.Catalogue {
		e.Helper()
		c := e.sameCatalogue(follower, s, e.store()) // incrementally, by its own changes, at once
		e.checkPlaces(seen, c)
		return c
	}
	if c := step(); len(c.Topics()) != 0 {
		e.Fatalf("topics in a new database: %s", show(c))
	}
	made, errs, err := s.CreateTopics(e.Context(), []metadata.NewTopic{
		{Name: "a", Partitions: 3, ReplicationFactor: 2, Configs: map[string]string{"k": "v", "ü": "\"\\"}},
		{Name: "b", Partitions: 130},
		{Name: "zero", Partitions: 0},
		{Name: "many", Partitions: metadata.MaxPartitionsPerTopic + 1},
	}, false)
	e.must(err, errs[0], errs[1])
	for _, bad := range errs[2:] {
		if !errors.Is(bad, metadata.ErrInvalidPartitions) {
			e.Fatalf("a topic with a wrong number of partitions: %v", bad)
		}
	}
	c := step()
	a, b := c.ByName("a"), c.ByName("b")
	if !reflect.DeepEqual(a, made[0]) || !reflect.DeepEqual(b, made[1]) || made[2] != nil {
		e.Fatalf("made %+v, %+v; the catalogue has\n%s", made[0], made[1], show(c))
	}
	if a.ReplicationFactor != 2 || !maps.Equal(a.Configs, map[string]string{"k": "v", "ü": "\"\\"}) {
		e.Fatalf("topic a: %+v", a)
	}
	if b.Partitions[0].Block == b.Partitions[64].Block || b.Partitions[63].Block != b.Partitions[0].Block ||
		b.Partitions[128].Block != a.Partitions[0].Block {
		e.Fatalf("places of b: %+v, of a: %+v", b.Partitions, a.Partitions)
	}
	e.grow(s, c)
	c = step()
	if got := c.ByName("a"); len(got.Partitions) != 70 || !slices.Equal(got.Partitions[:3], a.Partitions) || got.ID != a.ID {
		e.Fatalf("topic a after it grew: %+v", got)
	}
	e.alter(s)
	c = step()
	if got := c.ByName("a").Configs; !maps.Equal(got, map[string]string{"n": "2", "l": "x,y"}) {
		e.Fatalf("configs of a: %v", got)
	}
	e.recreate(s, c)
	c = step()
	if got := c.ByName("a"); got.ID == a.ID || len(got.Partitions) != 1 || c.ByID(a.ID) != nil || c.ByName("b") != nil {
		e.Fatalf("catalogue after a was made again and b deleted: %s", show(c))
	}
	if v := c.Version; step().Version != v {
		e.Fatal("the version moves by itself")
	}
}

func (e *env) grow(s *metadata.Store, c *metadata.Catalogue) {
	e.Helper()
	ctx := e.Context()
	for _, count := range []int32{0, 2, 3, metadata.MaxPartitionsPerTopic + 1} {
		if err := s.CreatePartitions(ctx, "a", count, false); !errors.Is(err, metadata.ErrInvalidPartitions) {
			e.Fatalf("growing from 3 to %d: %v", count, err)
		}
	}
	if err := s.CreatePartitions(ctx, "none", 9, false); !errors.Is(err, metadata.ErrUnknownTopic) {
		e.Fatalf("growing no topic: %v", err)
	}
	_, errs, err := s.CreateTopics(ctx, []metadata.NewTopic{{Name: "never", Partitions: 100}}, true)
	e.must(err, errs[0], s.CreatePartitions(ctx, "a", 70, true))
	if now := e.sameCatalogue(s); now.Version != c.Version || now.ByName("never") != nil {
		e.Fatalf("validating only changed the catalogue: %s", show(now))
	}
	e.must(s.CreatePartitions(ctx, "a", 70, false))
}

func (e *env) alter(s *metadata.Store) {
	e.Helper()
	refused := errors.New("refused")
	errs, err := s.AlterConfigs(e.Context(), []metadata.ConfigChange{
		{Topic: "a", Set: map[string]string{"m": "1", "n": "1", "l": "x"}},
		{Topic: "a", Set: map[string]string{"n": "2"}, Delete: []string{"m", "n", "unknown", "k", "ü"}},
		{Topic: "none", Set: map[string]string{"n": "1"}},
		{Topic: "a", Edit: func(c map[string]string) (map[string]string, error) {
			c["l"] += ",y"
			return c, nil
		}},
		{Topic: "a", Edit: func(map[string]string) (map[string]string, error) { return nil, refused }},
		{Topic: "b", Replace: true, Set: map[string]string{"r": "1"}},
	})
	e.must(err, errs[0], errs[1], errs[3], errs[5])
	if !errors.Is(errs[2], metadata.ErrUnknownTopic) || !errors.Is(errs[4], refused) {
		e.Fatalf("altering no topic and a refused edit: %v", errs)
	}
}

func (e *env) recreate(s *metadata.Store, c *metadata.Catalogue) {
	e.Helper()
	a, b := c.ByName("a"), c.ByName("b")
	gone, errs, err := s.DeleteTopics(e.Context(), []metadata.TopicRef{
		{Name: "a"}, {ID: b.ID}, {Name: "a"}, {ID: metadata.NewTopicID()}, {Name: "none"},
	})
	e.must(err, errs[0], errs[1])
	for _, err := range errs[2:] {
		if !errors.Is(err, metadata.ErrUnknownTopic) {
			e.Fatalf("deleting what is not there: %v", errs)
		}
	}
	if gone[0].ID != a.ID || gone[1].Name != "b" {
		e.Fatalf("deleted %+v", gone)
	}
	for _, p := range append(a.Partitions, b.Partitions...) {
		if !e.view(s, p.Block).Deleted(p.Slot) {
			e.Fatalf("%+v is not marked deleted", p)
		}
	}
	e.topic(s, "a", 1)
}

// testCatalogueConcurrent lets Stores change the catalogue at once: every topic is made once, no place twice.
func testCatalogueConcurrent(e *env) {
	stores := []*metadata.Store{e.store(), e.store(), e.store()}
	const names = 12
	made := make([][]*metadata.Topic, len(stores))
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			for n := range names {
				topics, errs, err := s.CreateTopics(e.Context(), []metadata.NewTopic{
					{Name: fmt.Sprint("shared-", n), Partitions: 7}, {Name: fmt.Sprintf("own-%d-%d", i, n), Partitions: 30},
				}, false)
				if err != nil || errs[1] != nil || (errs[0] != nil && !errors.Is(errs[0], metadata.ErrTopicExists)) {
					e.Errorf("store %d, topics %d: %v, %v", i, n, err, errs)
					return
				}
				made[i] = append(made[i], topics...)
			}
		})
	}
	wg.Wait()
	c := e.sameCatalogue(append(stores, e.store())...)
	if len(c.Topics()) != names*(1+len(stores)) {
		e.Fatalf("%d topics", len(c.Topics()))
	}
	e.checkPlaces(map[metadata.PartitionID]metadata.TopicID{}, c)
	shared := 0
	for _, t := range slices.Concat(made...) {
		if t == nil {
			continue
		}
		if !reflect.DeepEqual(c.ByID(t.ID), t) {
			e.Fatalf("topic %s was made as %+v", t.Name, t)
		}
		if t.Name[0] == 's' {
			shared++
		}
	}
	if shared != names {
		e.Fatalf("%d Stores' creations of %d shared names succeeded", shared, names)
	}
}

// testTombstones lets a Store miss more deletions than are remembered.
func testTombstones(e *env) {
	s, away := e.store(), e.store()
	e.topic(s, "stays", 1)
	e.topic(s, "goes", 1)
	e.sameCatalogue(s, away)
	d := e.db.Driver(e.T)
	since := e.version(away)
	l, err := d.LoadTopics(e.Context(), since)
	e.must(err)
	if l.Full || len(l.Topics)+len(l.Deleted) != 0 || l.Version != since {
		e.Fatalf("nothing changed, but: %+v", l)
	}
	remove := func(names ...string) {
		e.Helper()
		var refs []metadata.TopicRef
		for _, n := range names {
			refs = append(refs, metadata.TopicRef{Name: n})
		}
		_, errs, err := s.DeleteTopics(e.Context(), refs)
		e.must(append(errs, err)...)
	}
	remove("goes")
	if l, err = d.LoadTopics(e.Context(), since); err != nil || l.Full || len(l.Deleted) != 1 || len(l.Topics) != 0 {
		e.Fatalf("after one deletion: %+v, %v", l, err)
	}
	const step = metadata.TombstonesKept/4 + 1
	for i := range 4 {
		var topics []metadata.NewTopic
		var names []string
		for j := range step {
			names = append(names, fmt.Sprintf("n-%d-%d", i, j))
			topics = append(topics, metadata.NewTopic{Name: names[j], Partitions: 1})
		}
		_, errs, err := s.CreateTopics(e.Context(), topics, false)
		e.must(append(errs, err)...)
		remove(names...)
	}
	if l, err = d.LoadTopics(e.Context(), since); err != nil || !l.Full || len(l.Topics) != 1 || len(l.Deleted) != 0 {
		e.Fatalf("after too many deletions: full %v, %d topics, %d deleted, %v", l.Full, len(l.Topics), len(l.Deleted), err)
	}
	now := e.version(s)
	if l, err = d.LoadTopics(e.Context(), now-1); err != nil || l.Full || len(l.Deleted) != step {
		e.Fatalf("the last deletions: full %v, %d deleted, %v", l.Full, len(l.Deleted), err)
	}
	e.sameCatalogue(s, away, e.store())
}

func testCollisions(e *env) {
	s := e.store()
	e.topic(s, "a.b_c", 1)
	before := e.version(s)
	_, errs, err := s.CreateTopics(e.Context(), []metadata.NewTopic{
		{Name: "a_b.c", Partitions: 1}, {Name: "a.b_c", Partitions: 1}, {Name: "x.y", Partitions: 1},
		{Name: "x_y", Partitions: 1}, {Name: "x.y", Partitions: 1}, {Name: "A.b_c", Partitions: 1},
	}, false)
	e.must(err, errs[2], errs[5])
	for i, want := range map[int]error{
		0: metadata.ErrTopicCollides, 1: metadata.ErrTopicExists, 3: metadata.ErrTopicCollides, 4: metadata.ErrTopicExists,
	} {
		if !errors.Is(errs[i], want) {
			e.Errorf("topic %d: %v, want %v", i, errs[i], want)
		}
	}
	if now := e.version(s); now != before+1 {
		e.Errorf("catalogue version went from %d to %d", before, now)
	}
}

func testDeleteRecords(e *env) {
	s, other := e.store(), e.store()
	p := e.topic(s, "t", 66).Partitions
	e.commit(s, e.flush(s, of(p[0], plain(10)), of(p[1], plain(5)), of(p[65], plain(7))))
	e.view(other, p[0].Block)
	_, errs, err := s.DeleteTopics(e.Context(), []metadata.TopicRef{{ID: e.topic(s, "gone", 1).ID}})
	e.must(append(errs, err)...)
	gone := metadata.Partition{Block: p[65].Block, Slot: p[65].Slot + 1}
	ask := func(p metadata.Partition, before metadata.Offset) metadata.DeleteRecords {
		return metadata.DeleteRecords{Partition: metadata.PartitionID{Block: p.Block, Slot: p.Slot}, Before: before}
	}
	got, err := s.DeleteRecords(e.Context(), []metadata.DeleteRecords{
		ask(p[0], 4), ask(p[1], -1), ask(p[65], 8), ask(p[65], -2), ask(p[65], 7), ask(gone, 0), ask(p[0], 3), ask(p[2], -1), ask(p[2], 1),
	})
	e.must(err)
	for i, want := range []metadata.DeleteRecordsResult{
		{LogStart: 4}, {LogStart: 5}, {LogStart: -1, Err: metadata.ErrOffsetOutOfRange},
		{LogStart: -1, Err: metadata.ErrOffsetOutOfRange}, {LogStart: 7}, {LogStart: -1, Err: metadata.ErrUnknownTopic},
		{LogStart: 4}, {LogStart: 0}, {LogStart: -1, Err: metadata.ErrOffsetOutOfRange},
	} {
		if got[i].LogStart != want.LogStart || !errors.Is(got[i].Err, want.Err) {
			e.Errorf("request %d: %+v, want %+v", i, got[i], want)
		}
	}
	if v, err := s.View(e.Context(), p[0].Block); err != nil || v.LogStart(p[0].Slot) != 4 {
		e.Errorf("the view of the Store that moved log starts: %+v, %v", v, err)
	}
	for _, store := range []*metadata.Store{s, other, e.store()} {
		v := e.view(store, p[0].Block)
		if v.LogStart(p[0].Slot) != 4 || v.LogStart(p[1].Slot) != 5 || v.LogStart(p[2].Slot) != 0 || v.HighWatermark(p[0].Slot) != 10 {
			e.Errorf("log starts %v", v.Row.LogStart)
		}
		if v = e.view(store, p[65].Block); v.LogStart(p[65].Slot) != 7 {
			e.Errorf("log starts in the second block %v", v.Row.LogStart)
		}
	}
	r := e.one(other, p[1], plain(1))
	e.expect("after all was deleted", r, metadata.CodeAccepted, 5)
	if r.LogStart != 5 {
		e.Errorf("log start in a result: %d", r.LogStart)
	}
}

func testProducerIDs(e *env) {
	stores := []*metadata.Store{e.store(), e.store(), e.store()}
	d := e.db.Driver(e.T)
	var mu sync.Mutex
	var ranges []metadata.ProducerRange
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			for n := range 20 {
				r, err := s.AllocateProducerIDs(e.Context(), 1+(n+i)%3)
				if err != nil {
					e.Error(err)
					return
				}
				mu.Lock()
				ranges = append(ranges, r)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	owner := map[metadata.ProducerID]metadata.ProducerRange{}
	var ids []metadata.ProducerID
	for _, r := range ranges {
		for i := range r.Count {
			id := r.First + metadata.ProducerID(i)
			if o, ok := owner[id]; ok || id < 0 || r.At == 0 {
				e.Fatalf("id %d is in %+v and in %+v", id, r, o)
			}
			owner[id] = r
			ids = append(ids, id)
		}
	}
	top := slices.Max(ids)
	found, err := d.ProducerRangeOf(e.Context(), append(ids, top+1, 1<<50))
	e.must(err)
	for _, id := range ids {
		if !slices.ContainsFunc(found, func(r metadata.ProducerRange) bool { return r.Contains(id) && r == owner[id] }) {
			e.Fatalf("the range of id %d, %+v, is not found", id, owner[id])
		}
	}
	if found, err = d.ProducerRangeOf(e.Context(), []metadata.ProducerID{top + 1, -7}); err != nil || len(found) != 0 {
		e.Fatalf("ranges of ids that nobody was given: %+v, %v", found, err)
	}
	if _, err := d.AllocateProducerIDs(e.Context(), 0); err == nil {
		e.Error("no ids at all were handed out")
	}
}

func testClusterID(e *env) {
	id, err := e.store().ClusterID(e.Context())
	e.must(err)
	again, err := e.store().ClusterID(e.Context())
	e.must(err)
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{22}$`).MatchString(id) || id != again {
		e.Fatalf("cluster ids %q and %q", id, again)
	}
}
