// Package topicconf knows Kafka's topic configs: their types, defaults, bounds and documentation, and which of them Skein
// honours. It decides nothing and stores nothing.
package topicconf

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ErrInvalid matches every error about a config's value.
var ErrInvalid = errors.New("invalid config value")

// ErrUnknown matches: no such topic config.
var ErrUnknown = errors.New("unknown topic config")

// Error says what is wrong with a topic's configs, in Kafka's words where Kafka has some: people search for them.
type Error struct {
	text string
	kind error
}

func (e *Error) Error() string { return e.text }

// Is lets errors.Is match ErrInvalid and ErrUnknown.
func (e *Error) Is(target error) bool { return target == e.kind }

func invalid(format string, args ...any) error {
	return &Error{text: fmt.Sprintf(format, args...), kind: ErrInvalid}
}

// Type is the type of a config's value.
type Type uint8

// Types of configs.
const (
	Boolean Type = iota
	String
	Int
	Long
	Double
	List
)

// names of types as Kafka's errors write them.
func (t Type) String() string {
	return [...]string{"BOOLEAN", "STRING", "INT", "LONG", "DOUBLE", "LIST"}[t]
}

// Use says what Skein does with a config.
type Use uint8

// Uses.
const (
	// Honoured: Skein behaves as it says.
	Honoured Use = iota
	// Echoed: validated, stored and shown; it has no meaning without broker-local logs or replication.
	Echoed
)

// Def is a topic config.
type Def struct {
	Name    string
	Type    Type
	Default string
	Broker  string // the broker config that sets its default, Kafka's synonym; "" where there is none
	// BrokerUnset: that broker config has no default of its own (log.retention.ms, which log.retention.hours stands in for).
	BrokerUnset bool
	Use         Use
	Doc         string
	check       func(name, value string) error
}

// Set is the topic configs by name.
type Set map[string]Def

// All gives the topic configs by name.
func All() Set {
	s := Set{}
	for _, d := range Defs() {
		s[d.Name] = d
	}
	return s
}

// Get gives a config's value in its canonical form: what is set, else the default.
func (s Set) Get(configs map[string]string, name string) string {
	d := s[name]
	if v, ok := configs[name]; ok {
		return d.Canonical(v)
	}
	return d.Default
}

// Canonical gives a valid value as Kafka shows it: without blanks around it, a number without its plus sign, a list without
// what stands in it twice.
func (d Def) Canonical(value string) string {
	value = strings.TrimSpace(value)
	switch d.Type {
	case Boolean:
		return strings.ToLower(value)
	case Int, Long:
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return strconv.FormatInt(n, 10)
		}
	case Double:
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			return strconv.FormatFloat(f, 'f', -1, 64)
		}
	case List:
		return strings.Join(unique(SplitList(value)), ",")
	}
	return value
}

// Validate checks a topic's configs: every name is known and every value is of its type and within its bounds. Errors
// match ErrUnknown or ErrInvalid.
func (s Set) Validate(configs map[string]string) error {
	names := make([]string, 0, len(configs))
	for name := range configs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		d, ok := s[name]
		if !ok {
			return &Error{text: "Unknown topic config name: " + name, kind: ErrUnknown}
		}
		if err := d.check(name, strings.TrimSpace(configs[name])); err != nil {
			return err
		}
	}
	return s.validateTogether(configs)
}

// validateTogether checks what holds between configs.
func (s Set) validateTogether(configs map[string]string) error {
	v := s.Values(configs)
	if low, high := v.MinCompactionLag, v.MaxCompactionLag; low > high {
		return invalid("conflict topic config setting min.compaction.lag.ms (%d) > max.compaction.lag.ms (%d)", low, high)
	}
	if s.Get(configs, "remote.storage.enable") == "true" {
		return invalid("Tiered Storage functionality is disabled in the broker. Topic cannot be configured with remote log " +
			"storage.")
	}
	return nil
}

// SplitList splits a list's value into its items, without blanks around them.
func SplitList(value string) []string {
	if strings.TrimSpace(value) == "" {
		return nil
	}
	items := strings.Split(value, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

// unique leaves out what stands twice.
func unique(items []string) []string {
	var out []string
	for _, item := range items {
		if !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}

// Append does KIP-339's APPEND on configs: items that the list has already are not added.
func (s Set) Append(configs map[string]string, name, items string) error {
	if s[name].Type != List {
		return notAList("APPEND", name)
	}
	list := append(SplitList(s.Get(configs, name)), SplitList(items)...)
	configs[name] = strings.Join(unique(list), ",")
	return nil
}

// Subtract does KIP-339's SUBTRACT on configs.
func (s Set) Subtract(configs map[string]string, name, items string) error {
	if s[name].Type != List {
		return notAList("SUBTRACT", name)
	}
	without := SplitList(items)
	configs[name] = strings.Join(slices.DeleteFunc(SplitList(s.Get(configs, name)), func(item string) bool {
		return slices.Contains(without, item)
	}), ",")
	return nil
}

// notAList is in Kafka's words, SUBTRACT to included.
func notAList(verb, name string) error {
	return invalid("Can't %s to key %s because its type is not LIST.", verb, name)
}
