// Package topicconf knows Kafka's topic configs: their types, defaults, bounds and documentation, and which of them Skein
// honours. It decides nothing and stores nothing.
package topicconf

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// ErrInvalid is wrapped by every error about a config's value.
var ErrInvalid = errors.New("invalid config value")

// ErrUnknown: no such topic config.
var ErrUnknown = errors.New("unknown topic config")

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
	Use     Use
	Doc     string
	check   func(string) error
}

const (
	maxLong = math.MaxInt64
	maxInt  = math.MaxInt32
)

// Defs gives all topic configs by name.
func Defs() []Def {
	defs := []Def{
		list("cleanup.policy", "delete", "log.cleanup.policy", Honoured, "What happens to old records: delete them by retention, compact them by key, or both.", "compact", "delete"),
		integer("compression.gzip.level", "-1", "compression.gzip.level", Echoed, "Level where compression.type is gzip.", -1, 9),
		integer("compression.lz4.level", "9", "compression.lz4.level", Echoed, "Level where compression.type is lz4.", 1, 17),
		choice("compression.type", "producer", "compression.type", Honoured, "Codec of the topic's record batches; producer keeps what the producer chose.", "uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
		integer("compression.zstd.level", "3", "compression.zstd.level", Echoed, "Level where compression.type is zstd.", -131072, 22),
		long("delete.retention.ms", "86400000", "log.cleaner.delete.retention.ms", Honoured, "How long tombstones stay in a compacted topic, in milliseconds.", 0),
		long("file.delete.delay.ms", "60000", "log.segment.delete.delay.ms", Echoed, "Delay before a log file is removed, in milliseconds.", 0),
		long("flush.messages", "9223372036854775807", "log.flush.interval.messages", Echoed, "Records between fsyncs; Skein acknowledges only what is durable.", 1),
		long("flush.ms", "9223372036854775807", "log.flush.interval.ms", Echoed, "Time between fsyncs, in milliseconds; Skein acknowledges only what is durable.", 0),
		list("follower.replication.throttled.replicas", "", "", Echoed, "Replicas whose replication is throttled on the follower's side."),
		integer("index.interval.bytes", "4096", "log.index.interval.bytes", Echoed, "Bytes between index entries of a log file.", 0, maxInt),
		list("leader.replication.throttled.replicas", "", "", Echoed, "Replicas whose replication is throttled on the leader's side."),
		long("local.retention.bytes", "-2", "log.local.retention.bytes", Echoed, "Bytes kept locally under tiered storage; -2: retention.bytes.", -2),
		long("local.retention.ms", "-2", "log.local.retention.ms", Echoed, "Time kept locally under tiered storage, in milliseconds; -2: retention.ms.", -2),
		long("max.compaction.lag.ms", "9223372036854775807", "log.cleaner.max.compaction.lag.ms", Honoured, "A record is compacted at the latest so long after it was written, in milliseconds.", 1),
		integer("max.message.bytes", "1048588", "message.max.bytes", Honoured, "The largest record batch taken, in bytes.", 0, maxInt),
		long("message.timestamp.after.max.ms", "3600000", "log.message.timestamp.after.max.ms", Honoured, "How far a record's timestamp may lie in the future, in milliseconds.", 0),
		long("message.timestamp.before.max.ms", "9223372036854775807", "log.message.timestamp.before.max.ms", Honoured, "How far a record's timestamp may lie in the past, in milliseconds.", 0),
		choice("message.timestamp.type", "CreateTime", "log.message.timestamp.type", Honoured, "Whether records carry the time they were made or the time they were appended.", "CreateTime", "LogAppendTime"),
		double("min.cleanable.dirty.ratio", "0.5", "log.cleaner.min.cleanable.ratio", Echoed, "Share of uncompacted bytes from which a log is compacted.", 0, 1),
		long("min.compaction.lag.ms", "0", "log.cleaner.min.compaction.lag.ms", Honoured, "A record is compacted at the earliest so long after it was written, in milliseconds.", 0),
		integer("min.insync.replicas", "1", "min.insync.replicas", Echoed, "Replicas that must have a record before it is acknowledged; the bucket replicates.", 1, maxInt),
		boolean("preallocate", "false", "log.preallocate", Echoed, "Whether log files are preallocated."),
		boolean("remote.log.copy.disable", "false", "", Echoed, "Whether tiered storage takes no more data."),
		boolean("remote.log.delete.on.disable", "false", "", Echoed, "Whether disabling tiered storage deletes its data."),
		boolean("remote.storage.enable", "false", "", Echoed, "Kafka's tiered storage; all of Skein's storage is remote."),
		long("retention.bytes", "-1", "log.retention.bytes", Honoured, "Bytes of a partition from which its oldest records are deleted; -1: no limit.", -1),
		long("retention.ms", "604800000", "log.retention.ms", Honoured, "Age from which records are deleted, in milliseconds; -1: no limit.", -1),
		integer("segment.bytes", "1073741824", "log.segment.bytes", Echoed, "Size of a log file, in bytes.", 14, maxInt),
		integer("segment.index.bytes", "10485760", "log.index.size.max.bytes", Echoed, "Size of a log file's index, in bytes.", 4, maxInt),
		long("segment.jitter.ms", "0", "log.roll.jitter.ms", Echoed, "Jitter of segment.ms, in milliseconds.", 0),
		long("segment.ms", "604800000", "log.roll.ms", Echoed, "Age at which a log file is rolled, in milliseconds.", 1),
		boolean("unclean.leader.election.enable", "false", "unclean.leader.election.enable", Echoed, "Whether a replica that lags may lead; there are none."),
	}
	return defs
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

// Validate checks a topic's configs: every name is known and every value is of its type and within its bounds. Errors
// wrap ErrUnknown or ErrInvalid.
func (s Set) Validate(configs map[string]string) error {
	names := make([]string, 0, len(configs))
	for name := range configs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		d, ok := s[name]
		if !ok {
			return fmt.Errorf("%w %q", ErrUnknown, name)
		}
		if err := d.check(configs[name]); err != nil {
			return fmt.Errorf("%w %s for configuration %s: %w", ErrInvalid, configs[name], name, err)
		}
	}
	return validateTogether(configs)
}

// validateTogether checks what holds between configs.
func validateTogether(configs map[string]string) error {
	lag := func(name string, otherwise int64) int64 {
		if n, err := strconv.ParseInt(configs[name], 10, 64); err == nil {
			return n
		}
		return otherwise
	}
	if low, high := lag("min.compaction.lag.ms", 0), lag("max.compaction.lag.ms", maxLong); low > high {
		return fmt.Errorf("%w: min.compaction.lag.ms %d is above max.compaction.lag.ms %d", ErrInvalid, low, high)
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

func boolean(name, def, broker string, use Use, doc string) Def {
	return Def{Name: name, Type: Boolean, Default: def, Broker: broker, Use: use, Doc: doc, check: func(v string) error {
		if l := strings.ToLower(v); l != "true" && l != "false" {
			return errors.New("expected true or false")
		}
		return nil
	}}
}

func integer(name, def, broker string, use Use, doc string, low, high int64) Def {
	return Def{Name: name, Type: Int, Default: def, Broker: broker, Use: use, Doc: doc, check: within(low, high, 32)}
}

func long(name, def, broker string, use Use, doc string, low int64) Def {
	return Def{Name: name, Type: Long, Default: def, Broker: broker, Use: use, Doc: doc, check: within(low, maxLong, 64)}
}

func within(low, high int64, bits int) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, bits)
		if err != nil {
			return errors.New("not a number of its type")
		}
		if n < low || n > high {
			return fmt.Errorf("must be between %d and %d", low, high)
		}
		return nil
	}
}

func double(name, def, broker string, use Use, doc string, low, high float64) Def {
	return Def{Name: name, Type: Double, Default: def, Broker: broker, Use: use, Doc: doc, check: func(v string) error {
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || f < low || f > high || f != f {
			return fmt.Errorf("must be a number between %g and %g", low, high)
		}
		return nil
	}}
}

func choice(name, def, broker string, use Use, doc string, values ...string) Def {
	return Def{Name: name, Type: String, Default: def, Broker: broker, Use: use, Doc: doc, check: func(v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("must be one of %s", strings.Join(values, ", "))
		}
		return nil
	}}
}

// list takes any items where values is empty; else at least one, and only these.
func list(name, def, broker string, use Use, doc string, values ...string) Def {
	return Def{Name: name, Type: List, Default: def, Broker: broker, Use: use, Doc: doc, check: func(v string) error {
		if len(values) == 0 {
			return nil
		}
		items := SplitList(v)
		if len(items) == 0 {
			return fmt.Errorf("must have at least one of %s", strings.Join(values, ", "))
		}
		for i, item := range items {
			if !slices.Contains(values, item) {
				return fmt.Errorf("%q must be one of %s", item, strings.Join(values, ", "))
			}
			if slices.Contains(items[:i], item) {
				return fmt.Errorf("%q stands twice", item)
			}
		}
		return nil
	}}
}
