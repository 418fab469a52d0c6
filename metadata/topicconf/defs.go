package topicconf

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	maxLong = math.MaxInt64
	maxInt  = math.MaxInt32
	minLong = math.MinInt64
)

// Defs gives all topic configs of Kafka 4.2 by name.
func Defs() []Def {
	return []Def{
		list("cleanup.policy", "delete", "log.cleanup.policy", Honoured, "What happens to old records: delete them by retention, compact them by key, or both; none: they are kept for ever. With compact, records need keys.", oneOf("compact", "delete")),
		integer("compression.gzip.level", "-1", "compression.gzip.level", Honoured, "Level where compression.type is gzip.", gzipLevel),
		integer("compression.lz4.level", "9", "compression.lz4.level", Honoured, "Level where compression.type is lz4.", within(1, 17)),
		choice("compression.type", CompressionProducer, "compression.type", Honoured, "Codec of the topic's record batches; producer keeps what the producer chose.", "uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
		integer("compression.zstd.level", "3", "compression.zstd.level", Honoured, "Level where compression.type is zstd.", within(-131072, 22)),
		long("delete.retention.ms", "86400000", "log.cleaner.delete.retention.ms", Honoured, "How long tombstones stay in a compacted topic, in milliseconds.", 0),
		long("file.delete.delay.ms", "60000", "log.segment.delete.delay.ms", Echoed, "Delay before a log file is removed, in milliseconds.", 0),
		long("flush.messages", "9223372036854775807", "log.flush.interval.messages", Echoed, "Records between fsyncs; Skein acknowledges only what is durable.", 1),
		unset(long("flush.ms", "9223372036854775807", "log.flush.interval.ms", Echoed, "Time between fsyncs, in milliseconds; Skein acknowledges only what is durable.", 0)),
		list("follower.replication.throttled.replicas", "", "", Echoed, "Replicas whose replication is throttled on the follower's side.", replicas),
		integer("index.interval.bytes", "4096", "log.index.interval.bytes", Echoed, "Bytes between index entries of a log file.", within(0, maxInt)),
		list("leader.replication.throttled.replicas", "", "", Echoed, "Replicas whose replication is throttled on the leader's side.", replicas),
		long("local.retention.bytes", "-2", "log.local.retention.bytes", Echoed, "Bytes kept locally under tiered storage; -2: retention.bytes.", -2),
		long("local.retention.ms", "-2", "log.local.retention.ms", Echoed, "Time kept locally under tiered storage, in milliseconds; -2: retention.ms.", -2),
		long("max.compaction.lag.ms", "9223372036854775807", "log.cleaner.max.compaction.lag.ms", Honoured, "A record is compacted at the latest so long after it was written, in milliseconds.", 1),
		integer("max.message.bytes", "1048588", "message.max.bytes", Honoured, "The largest record batch taken, in bytes.", within(0, maxInt)),
		long("message.timestamp.after.max.ms", "3600000", "log.message.timestamp.after.max.ms", Honoured, "How far a record's timestamp may lie in the future, in milliseconds.", 0),
		long("message.timestamp.before.max.ms", "9223372036854775807", "log.message.timestamp.before.max.ms", Honoured, "How far a record's timestamp may lie in the past, in milliseconds.", 0),
		choice("message.timestamp.type", "CreateTime", "log.message.timestamp.type", Honoured, "Whether records carry the time they were made or the time they were appended.", "CreateTime", "LogAppendTime"),
		double("min.cleanable.dirty.ratio", "0.5", "log.cleaner.min.cleanable.ratio", Honoured, "Share of uncompacted bytes from which a log is compacted.", 0, 1),
		long("min.compaction.lag.ms", "0", "log.cleaner.min.compaction.lag.ms", Honoured, "A record is compacted at the earliest so long after it was written, in milliseconds.", 0),
		integer("min.insync.replicas", "1", "min.insync.replicas", Echoed, "Replicas that must have a record before it is acknowledged; the bucket replicates.", within(1, maxInt)),
		boolean("preallocate", "false", "log.preallocate", Echoed, "Whether log files are preallocated."),
		boolean("remote.log.copy.disable", "false", "", Echoed, "Whether tiered storage takes no more data."),
		boolean("remote.log.delete.on.disable", "false", "", Echoed, "Whether disabling tiered storage deletes its data."),
		boolean("remote.storage.enable", "false", "", Echoed, "Kafka's tiered storage; all of Skein's storage is remote, so true is refused."),
		long("retention.bytes", "-1", "log.retention.bytes", Honoured, "Bytes of a partition from which its oldest records are deleted; below 0: no limit.", minLong),
		unset(long("retention.ms", "604800000", "log.retention.ms", Honoured, "Age from which records are deleted, in milliseconds; -1: no limit.", -1)),
		integer("segment.bytes", "1073741824", "log.segment.bytes", Echoed, "Size of a log file, in bytes.", within(14, maxInt)),
		integer("segment.index.bytes", "10485760", "log.index.size.max.bytes", Echoed, "Size of a log file's index, in bytes.", within(4, maxInt)),
		unset(long("segment.jitter.ms", "0", "log.roll.jitter.ms", Echoed, "Jitter of segment.ms, in milliseconds.", 0)),
		unset(long("segment.ms", "604800000", "log.roll.ms", Echoed, "Age at which a log file is rolled, in milliseconds.", 1)),
		boolean("unclean.leader.election.enable", "false", "unclean.leader.election.enable", Echoed, "Whether a replica that lags may lead; there are none."),
	}
}

func unset(d Def) Def { d.BrokerUnset = true; return d }

func boolean(name, def, broker string, use Use, doc string) Def {
	return Def{Name: name, Type: Boolean, Default: def, Broker: broker, Use: use, Doc: doc, check: func(name, v string) error {
		if l := strings.ToLower(v); l != "true" && l != "false" {
			return invalidValue(name, v, "Expected value to be either true or false")
		}
		return nil
	}}
}

// bounds gives what is wrong with a number, or "".
type bounds func(n int64) string

func within(low, high int64) bounds {
	return func(n int64) string {
		switch {
		case n < low:
			return "Value must be at least " + strconv.FormatInt(low, 10)
		case n > high:
			return "Value must be no more than " + strconv.FormatInt(high, 10)
		}
		return ""
	}
}

func gzipLevel(n int64) string {
	if n != -1 && (n < 1 || n > 9) {
		return "Value must be between 1 and 9 or equal to -1"
	}
	return ""
}

func integer(name, def, broker string, use Use, doc string, bad bounds) Def {
	return Def{Name: name, Type: Int, Default: def, Broker: broker, Use: use, Doc: doc, check: whole(Int, 32, bad)}
}

func long(name, def, broker string, use Use, doc string, low int64) Def {
	return Def{
		Name: name, Type: Long, Default: def, Broker: broker, Use: use, Doc: doc, check: whole(Long, 64, within(low, maxLong)),
	}
}

func whole(t Type, bits int, bad bounds) func(name, v string) error {
	return func(name, v string) error {
		n, err := strconv.ParseInt(v, 10, bits)
		if err != nil {
			return invalidValue(name, v, "Not a number of type "+t.String())
		}
		if why := bad(n); why != "" {
			return invalidValue(name, v, why)
		}
		return nil
	}
}

func double(name, def, broker string, use Use, doc string, low, high float64) Def {
	return Def{Name: name, Type: Double, Default: def, Broker: broker, Use: use, Doc: doc, check: func(name, v string) error {
		f, err := strconv.ParseFloat(v, 64)
		switch {
		case err != nil || f != f:
			return invalidValue(name, v, "Not a number of type DOUBLE")
		case f < low:
			return invalidValue(name, v, "Value must be at least "+strconv.FormatFloat(low, 'f', -1, 64))
		case f > high:
			return invalidValue(name, v, "Value must be no more than "+strconv.FormatFloat(high, 'f', -1, 64))
		}
		return nil
	}}
}

func choice(name, def, broker string, use Use, doc string, values ...string) Def {
	allowed := oneOf(values...)
	return Def{Name: name, Type: String, Default: def, Broker: broker, Use: use, Doc: doc, check: func(name, v string) error {
		return allowed(name, []string{v})
	}}
}

func list(name, def, broker string, use Use, doc string, allowed func(name string, items []string) error) Def {
	return Def{Name: name, Type: List, Default: def, Broker: broker, Use: use, Doc: doc, check: func(name, v string) error {
		items := SplitList(v)
		if slices.Contains(items, "") {
			return invalid("Configuration '%s' values must not be empty.", name)
		}
		return allowed(name, items)
	}}
}

func oneOf(values ...string) func(name string, items []string) error {
	return func(name string, items []string) error {
		for _, item := range items {
			if !slices.Contains(values, item) {
				return invalidValue(name, item, "String must be one of: "+strings.Join(values, ", "))
			}
		}
		return nil
	}
}

// isReplica says whether item is a partition's and a broker's number.
func isReplica(item string) bool {
	partition, broker, ok := strings.Cut(item, ":")
	return ok && isDigits(partition) && isDigits(broker)
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// replicas checks a list of throttled replicas: '*', or partition:broker each.
func replicas(name string, items []string) error {
	if len(items) == 1 && items[0] == "*" {
		return nil
	}
	for _, item := range items {
		if !isReplica(item) {
			return invalidValue(name, "["+strings.Join(items, ", ")+"]", name+" must be the literal '*' or a list of replicas in "+
				"the following format: [partitionId]:[brokerId],[partitionId]:[brokerId],...")
		}
	}
	return nil
}

func invalidValue(name, value, why string) error {
	return invalid("Invalid value %s for configuration %s: %s", value, name, why)
}
