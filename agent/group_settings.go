package agent

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// The group.* configs of brokers are the agents' own options and, over these, dynamic configs of the whole cluster, which
// are kept in the database. Every agent reads them when it is told that they moved, and once a second in case that is lost.

// groupConfig is one of them.
type groupConfig struct {
	name string
	typ  kmsg.ConfigType
	get  func(*group.Settings) int64
	set  func(*group.Settings, int64)
	doc  string
}

// groupConfigs gives the table.
func groupConfigs() []groupConfig {
	millis := func(name, doc string, of func(*group.Settings) *time.Duration) groupConfig {
		return groupConfig{
			name: name, typ: kmsg.ConfigTypeInt, doc: doc,
			get: func(s *group.Settings) int64 { return of(s).Milliseconds() },
			set: func(s *group.Settings, v int64) { *of(s) = time.Duration(v) * time.Millisecond },
		}
	}
	number := func(name, doc string, of func(*group.Settings) *int) groupConfig {
		return groupConfig{
			name: name, typ: kmsg.ConfigTypeInt, doc: doc,
			get: func(s *group.Settings) int64 { return int64(*of(s)) },
			set: func(s *group.Settings, v int64) { *of(s) = int(v) },
		}
	}
	return []groupConfig{
		millis("group.initial.rebalance.delay.ms", "How long an empty group waits for more members.",
			func(s *group.Settings) *time.Duration { return &s.InitialDelay }),
		millis("group.min.session.timeout.ms", "The shortest session timeout of classic members.",
			func(s *group.Settings) *time.Duration { return &s.MinSession }),
		millis("group.max.session.timeout.ms", "The longest session timeout of classic members.",
			func(s *group.Settings) *time.Duration { return &s.MaxSession }),
		number("group.max.size", "Members of a group.", func(s *group.Settings) *int { return &s.MaxSize }),
		millis("group.consumer.heartbeat.interval.ms", "The heartbeat interval of KIP-848 groups.",
			func(s *group.Settings) *time.Duration { return &s.ConsumerHeartbeat }),
		millis("group.consumer.session.timeout.ms", "The session timeout of KIP-848 groups.",
			func(s *group.Settings) *time.Duration { return &s.ConsumerSession }),
		number("offset.metadata.max.bytes", "The most bytes of the metadata of a committed offset.",
			func(s *group.Settings) *int { return &s.MaxOffsetMetadata }),
	}
}

// findGroupConfig finds one by its name.
func findGroupConfig(name string) (groupConfig, bool) {
	for _, c := range groupConfigs() {
		if c.name == name {
			return c, true
		}
	}
	return groupConfig{}, false
}

// settingsWith gives the settings with dynamic configs over them.
func settingsWith(base group.Settings, dynamic map[string]string) (group.Settings, error) {
	s := base
	for name, text := range dynamic {
		c, ok := findGroupConfig(name)
		if !ok {
			continue // of a newer version
		}
		v, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return base, fmt.Errorf("%s: %q is not a number of 32 bits", name, text)
		}
		c.set(&s, v)
	}
	if err := s.Validate(); err != nil {
		return base, err
	}
	return s, nil
}

// loadSettings takes over the dynamic configs of groups.
func (gs *groups) loadSettings(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	dynamic, err := gs.store.LoadSettings(call)
	if err == nil {
		err = gs.useSettings(dynamic)
	}
	if err != nil && ctx.Err() == nil {
		gs.log.Warn("dynamic configs of groups were not read", "error", err)
	}
}

func (gs *groups) useSettings(dynamic map[string]string) error {
	if old := gs.dynamic.Load(); old != nil && maps.Equal(*old, dynamic) {
		return nil
	}
	s, err := settingsWith(gs.base, dynamic)
	if err != nil {
		return err
	}
	gs.now.Store(&s)
	gs.dynamic.Store(&dynamic)
	return nil
}

// alterBroker changes dynamic configs of all agents. nil: done.
func (s *Server) alterBroker(ctx context.Context, a *alteration, validateOnly, replace bool) *refusal {
	changes := map[string]*string{}
	for _, o := range a.ops {
		c, ok := findGroupConfig(o.name)
		switch {
		case o.op == kmsg.IncrementalAlterConfigOpDelete:
			changes[o.name] = nil // unknown ones too, as in Kafka
		case !ok:
			return refusef(codeInvalidRequest, "%s cannot be changed while agents run: set it in their configuration.", o.name)
		case o.op != kmsg.IncrementalAlterConfigOpSet:
			return refusef(codeInvalidConfig, "Config %s is not a list.", c.name)
		default:
			changes[o.name] = o.value
		}
	}
	var after map[string]string
	var invalid error
	decide := func(dynamic map[string]string) (map[string]*string, error) {
		all := maps.Clone(changes)
		after = maps.Clone(dynamic)
		for name := range dynamic {
			if _, asked := all[name]; replace && !asked {
				all[name] = nil
			}
		}
		for name, value := range all {
			if delete(after, name); value != nil {
				after[name] = *value
			}
		}
		_, invalid = settingsWith(s.groups.base, after)
		return all, invalid
	}
	err := s.decideSettings(ctx, decide, validateOnly)
	switch {
	case invalid != nil:
		return refusef(codeInvalidConfig, "Invalid value: %s", invalid)
	case err != nil || validateOnly:
		return refusalOf(err)
	}
	return refusalOf(s.groups.useSettings(after))
}

// decideSettings changes settings, or only looks what would be decided.
func (s *Server) decideSettings(ctx context.Context, decide metadata.SettingsFunc, validateOnly bool) error {
	if !validateOnly {
		return s.store.ChangeSettings(ctx, decide)
	}
	dynamic, err := s.store.LoadSettings(ctx)
	if err == nil {
		_, err = decide(dynamic)
	}
	return err
}

// groupEntries shows the configs of groups in DescribeConfigs.
func (s *Server) groupEntries() []configEntry {
	now, base, kafka := s.groups.settings(), s.groups.base, group.Defaults()
	dynamic := s.groups.dynamic.Load()
	var list []configEntry
	for _, c := range groupConfigs() {
		text := func(of *group.Settings) *string {
			v := strconv.FormatInt(c.get(of), 10)
			return &v
		}
		e := configEntry{name: c.name, value: text(&now), source: kmsg.ConfigSourceDefaultConfig, typ: c.typ, doc: c.doc}
		if dynamic != nil {
			if v, ok := (*dynamic)[c.name]; ok {
				e.source = kmsg.ConfigSourceDynamicDefaultBrokerConfig
				e.synonyms = append(e.synonyms, synonym(c.name, &v, e.source))
			}
		}
		if c.get(&base) != c.get(&kafka) {
			if e.source == kmsg.ConfigSourceDefaultConfig {
				e.source = kmsg.ConfigSourceStaticBrokerConfig
			}
			e.synonyms = append(e.synonyms, synonym(c.name, text(&base), kmsg.ConfigSourceStaticBrokerConfig))
		}
		e.synonyms = append(e.synonyms, synonym(c.name, text(&kafka), kmsg.ConfigSourceDefaultConfig))
		list = append(list, e)
	}
	return list
}
