package metadata

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
)

// catDriver keeps a catalogue in memory: version v has topics t1 to tv.
type catDriver struct {
	Driver
	mu      sync.Mutex
	version CatalogueVersion
	during  func() // of the next LoadTopics, after its reading
	fail    error
}

func (d *catDriver) LoadTopics(_ context.Context, since CatalogueVersion) (*TopicsLoaded, error) {
	d.mu.Lock()
	l := &TopicsLoaded{Version: d.version, Full: since < 0 || since > d.version}
	for v := max(since, 0) + 1; v <= d.version; v++ {
		l.Topics = append(l.Topics, TopicRow{ID: TopicID{byte(v)}, Name: fmt.Sprintf("t%d", v), Version: v})
	}
	during, fail := d.during, d.fail
	d.during = nil
	d.mu.Unlock()
	if during != nil {
		during()
	}
	return l, fail
}

func (d *catDriver) Catalogue(_ context.Context, _ CatalogueLoad, decide func(*CatalogueLoaded) (*CatalogueSave, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	save, err := decide(&CatalogueLoaded{Version: d.version, NextBlock: 1})
	if err == nil && save.Version > 0 {
		d.version = save.Version
	}
	return err
}

func (d *catDriver) set(version CatalogueVersion, during func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version, d.during = version, during
}

// TestCatalogueOfOwnChange: who changed a topic sees the change, though a load that began before it is under way.
func TestCatalogueOfOwnChange(t *testing.T) {
	d := &catDriver{version: 1}
	s := NewStore(Options{Driver: d})
	if c, err := s.Catalogue(t.Context()); err != nil || c.Version != 1 {
		t.Fatalf("catalogue %+v: %v", c, err)
	}
	reached, release := make(chan struct{}), make(chan struct{})
	d.set(1, func() { close(reached); <-release })
	slow := make(chan error, 1)
	go func() { _, err := s.RefreshCatalogue(context.Background()); slow <- err }()
	<-reached
	if _, _, err := s.CreateTopics(t.Context(), []NewTopic{{Name: "t2", Partitions: 1}}, false); err != nil {
		t.Fatal(err)
	}
	seen := make(chan *Catalogue, 1)
	go func() { c, _ := s.Catalogue(context.Background()); seen <- c }()
	close(release)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	if c := <-seen; c == nil || c.ByName("t2") == nil {
		t.Errorf("catalogue of version %d after the change", c.Version)
	}
}

// TestCatalogueDuringLoad: while a load is under way nobody is given what it is to replace.
func TestCatalogueDuringLoad(t *testing.T) {
	d := &catDriver{version: 1}
	s := NewStore(Options{Driver: d})
	if _, err := s.Catalogue(t.Context()); err != nil {
		t.Fatal(err)
	}
	reached, release := make(chan struct{}), make(chan struct{})
	d.set(2, func() { close(reached); <-release })
	s.catalogueMoved()
	go func() { _, _ = s.Catalogue(context.Background()) }()
	<-reached
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := s.Catalogue(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got catalogue %+v while it is loaded: %v", c, err)
	}
	close(release)
	if c, err := s.Catalogue(t.Context()); err != nil || c.Version != 2 {
		t.Errorf("catalogue %+v: %v", c, err)
	}
}

// TestCatalogueAfterFailedLoad: what is stale stays stale until a load succeeds.
func TestCatalogueAfterFailedLoad(t *testing.T) {
	d := &catDriver{version: 1, fail: ErrUnavailable}
	s := NewStore(Options{Driver: d})
	for range 2 {
		if c, err := s.Catalogue(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("catalogue %+v: %v", c, err)
		}
	}
	d.fail = nil
	if c, err := s.Catalogue(t.Context()); err != nil || c.Version != 1 {
		t.Errorf("catalogue %+v: %v", c, err)
	}
}

// TestCatalogueOfAnotherHistory: a load that began in one history of the database does not bring its topics into another.
func TestCatalogueOfAnotherHistory(t *testing.T) {
	d := &catDriver{version: 3}
	s := NewStore(Options{Driver: d})
	if _, err := s.Catalogue(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.set(4, func() {
		s.Forget()
		d.set(1, nil) // restored from a copy
	})
	c, err := s.RefreshCatalogue(t.Context())
	if err != nil || c.Version != 1 || len(c.Topics()) != 1 {
		t.Errorf("catalogue of version %d with %d topics: %v", c.Version, len(c.Topics()), err)
	}
}

// TestAlterConfigsWithoutAChange: what makes no difference moves neither version nor config epoch, so that no batch is
// sent back for it.
func TestAlterConfigsWithoutAChange(t *testing.T) {
	l := &CatalogueLoaded{
		Version: 5, Topics: []TopicRow{{ID: TopicID{1}, Name: "t", Configs: map[string]string{"a": "1"}, Version: 5}},
		Partitions: []PartitionRow{{Topic: TopicID{1}, Partition: Partition{Block: 9}}}, Blocks: []BlockRow{{ID: 9, Version: 2}},
	}
	same := ConfigChange{Topic: "t", Edit: func(configs map[string]string) (map[string]string, error) {
		return maps.Clone(configs), nil
	}}
	save := &CatalogueSave{}
	if errs := alterConfigs(l, []ConfigChange{same, {Topic: "t", Set: map[string]string{"a": "1"}}}, save); errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	if save.Version != 0 || len(save.Topics) > 0 || len(save.Blocks) > 0 {
		t.Errorf("saved %+v", save)
	}
	alterConfigs(l, []ConfigChange{{Topic: "t", Set: map[string]string{"a": "2"}}}, save)
	if save.Version != 6 || len(save.Topics) != 1 || len(save.Blocks) != 1 || save.Blocks[0].ConfigEpoch != 6 {
		t.Errorf("saved %+v", save)
	}
}
