package topicconf

import (
	"errors"
	"math"
	"testing"
)

func TestDefaultsAreValid(t *testing.T) {
	all := All()
	if len(all) != len(Defs()) {
		t.Fatalf("%d names for %d definitions", len(all), len(Defs()))
	}
	for name, d := range all {
		if err := all.Validate(map[string]string{name: d.Default}); err != nil {
			t.Errorf("default of %s: %v", name, err)
		}
		if c := d.Canonical(d.Default); c != d.Default {
			t.Errorf("default of %s is %q, canonically %q", name, d.Default, c)
		}
		if d.Doc == "" {
			t.Errorf("%s has no documentation", name)
		}
		if d.BrokerUnset && d.Broker == "" {
			t.Errorf("%s has no broker config that could be unset", name)
		}
	}
}

// The expectations are what Apache Kafka 4.2.0 answered to the same values; where Skein differs on purpose it says so.
func TestValidate(t *testing.T) {
	all := All()
	for _, c := range []struct {
		name, value string
		want        string // "" = valid
	}{
		{"cleanup.policy", "", ""},
		{"cleanup.policy", "compact,compact", ""},
		{"cleanup.policy", "compact, delete", ""},
		{"cleanup.policy", ",", "Configuration 'cleanup.policy' values must not be empty."},
		{"cleanup.policy", "delete,", "Configuration 'cleanup.policy' values must not be empty."},
		{"cleanup.policy", "COMPACT", "Invalid value COMPACT for configuration cleanup.policy: String must be one of: compact, delete"},
		{"segment.bytes", "14", ""}, // Kafka 4: at least 1048576; older versions took this
		{"segment.bytes", "13", "Invalid value 13 for configuration segment.bytes: Value must be at least 14"},
		{"retention.ms", " 5 ", ""},
		{"retention.ms", "+5", ""},
		{"retention.ms", "-1", ""},
		{"retention.ms", "-2", "Invalid value -2 for configuration retention.ms: Value must be at least -1"},
		{"retention.ms", "", "Invalid value  for configuration retention.ms: Not a number of type LONG"},
		{"retention.ms", "1_0", "Invalid value 1_0 for configuration retention.ms: Not a number of type LONG"},
		{"retention.ms", "9223372036854775808", "Invalid value 9223372036854775808 for configuration retention.ms: Not a number of type LONG"},
		{"retention.bytes", "-2", ""},
		{"max.message.bytes", "2147483647", ""},
		{"max.message.bytes", "-1", "Invalid value -1 for configuration max.message.bytes: Value must be at least 0"},
		{"max.message.bytes", "2147483648", "Invalid value 2147483648 for configuration max.message.bytes: Not a number of type INT"},
		{"preallocate", " TRUE ", ""},
		{"preallocate", "1", "Invalid value 1 for configuration preallocate: Expected value to be either true or false"},
		{"compression.gzip.level", "-1", ""},
		{"compression.gzip.level", "9", ""},
		{"compression.gzip.level", "0", "Invalid value 0 for configuration compression.gzip.level: Value must be between 1 and 9 or equal to -1"},
		{"compression.lz4.level", "18", "Invalid value 18 for configuration compression.lz4.level: Value must be no more than 17"},
		{"compression.zstd.level", "-131073", "Invalid value -131073 for configuration compression.zstd.level: Value must be at least -131072"},
		{"compression.type", " gzip", ""},
		{"compression.type", "uncompressed", ""},
		{"compression.type", "none", "Invalid value none for configuration compression.type: String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer"},
		{"remote.storage.enable", "false", ""},
		{"remote.storage.enable", "true", "Tiered Storage functionality is disabled in the broker. Topic cannot be configured with remote log storage."},
		{"local.retention.ms", "-3", "Invalid value -3 for configuration local.retention.ms: Value must be at least -2"},
		{"min.insync.replicas", "0", "Invalid value 0 for configuration min.insync.replicas: Value must be at least 1"},
		{"message.timestamp.type", "createtime", "Invalid value createtime for configuration message.timestamp.type: String must be one of: CreateTime, LogAppendTime"},
		{"leader.replication.throttled.replicas", "*", ""},
		{"leader.replication.throttled.replicas", "0:1, 1:2", ""},
		{"leader.replication.throttled.replicas", "0:1,x", "Invalid value [0:1, x] for configuration leader.replication.throttled.replicas: leader.replication.throttled.replicas must be the literal '*' or a list of replicas in the following format: [partitionId]:[brokerId],[partitionId]:[brokerId],..."},
		{"flush.messages", "0", "Invalid value 0 for configuration flush.messages: Value must be at least 1"},
		{"segment.ms", "0", "Invalid value 0 for configuration segment.ms: Value must be at least 1"},
		{"min.cleanable.dirty.ratio", "1.01", "Invalid value 1.01 for configuration min.cleanable.dirty.ratio: Value must be no more than 1"},
		{"min.cleanable.dirty.ratio", "-0.1", "Invalid value -0.1 for configuration min.cleanable.dirty.ratio: Value must be at least 0"},
		{"min.cleanable.dirty.ratio", "NaN", "Invalid value NaN for configuration min.cleanable.dirty.ratio: Not a number of type DOUBLE"}, // Kafka takes it
		{"foo", "1", "Unknown topic config name: foo"},
		{"message.format.version", "3.0", "Unknown topic config name: message.format.version"},
	} {
		err := all.Validate(map[string]string{c.name: c.value})
		if c.want == "" {
			if err != nil {
				t.Errorf("%s=%q: %v", c.name, c.value, err)
			}
			continue
		}
		if err == nil || err.Error() != c.want {
			t.Errorf("%s=%q:\n got  %v\n want %s", c.name, c.value, err, c.want)
		}
		_, known := all[c.name]
		if errors.Is(err, ErrInvalid) != known || errors.Is(err, ErrUnknown) == known {
			t.Errorf("%s=%q: %v is of the wrong kind", c.name, c.value, err)
		}
	}
	lags := map[string]string{"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "9"}
	want := "conflict topic config setting min.compaction.lag.ms (10) > max.compaction.lag.ms (9)"
	if err := all.Validate(lags); !errors.Is(err, ErrInvalid) || err.Error() != want {
		t.Errorf("lags the wrong way around: got %v", err)
	}
}

func TestCanonical(t *testing.T) {
	all := All()
	for _, c := range []struct{ name, value, want string }{
		{"retention.ms", " +5 ", "5"},
		{"preallocate", " TRUE ", "true"},
		{"compression.type", " gzip", "gzip"},
		{"cleanup.policy", " compact , delete,compact", "compact,delete"},
		{"cleanup.policy", "", ""},
		{"min.cleanable.dirty.ratio", "1e-1", "0.1"},
	} {
		if got := all.Get(map[string]string{c.name: c.value}, c.name); got != c.want {
			t.Errorf("%s=%q: got %q, want %q", c.name, c.value, got, c.want)
		}
	}
	if got := all.Get(nil, "segment.bytes"); got != "1073741824" {
		t.Errorf("segment.bytes when it is not set: %q", got)
	}
}

func TestValues(t *testing.T) {
	all := All()
	want := Values{
		Delete: true, MaxMessageBytes: 1048588, TimestampBeforeMax: math.MaxInt64, TimestampAfterMax: 3600000,
		Compression: CompressionProducer, RetentionMillis: 604800000, RetentionBytes: -1, DeleteRetention: 86400000,
		MaxCompactionLag: math.MaxInt64,
	}
	if got := all.Values(nil); got != want {
		t.Errorf("defaults:\n got  %+v\n want %+v", got, want)
	}
	want = Values{
		Compact: true, MaxMessageBytes: 7, LogAppendTime: true, TimestampBeforeMax: 1, TimestampAfterMax: 2,
		Compression: "gzip", CompressionLevel: 9, RetentionMillis: -1, RetentionBytes: 3, DeleteRetention: 4,
		MinCompactionLag: 5, MaxCompactionLag: 6,
	}
	got := all.Values(map[string]string{
		"cleanup.policy": " compact ", "max.message.bytes": "+7", "message.timestamp.type": "LogAppendTime",
		"message.timestamp.before.max.ms": "1", "message.timestamp.after.max.ms": "2", "compression.type": " gzip",
		"compression.gzip.level": "9", "retention.ms": "-1", "retention.bytes": " 3", "delete.retention.ms": "4",
		"min.compaction.lag.ms": "5", "max.compaction.lag.ms": "6",
	})
	if got != want {
		t.Errorf("what is set:\n got  %+v\n want %+v", got, want)
	}
}

func TestLists(t *testing.T) {
	all := All()
	for _, c := range []struct {
		do                      func(configs map[string]string, name, items string) error
		name, set, items, wants string
	}{
		{all.Append, "cleanup.policy", "delete", "compact", "delete,compact"},
		{all.Append, "cleanup.policy", "", "compact", "delete,compact"}, // to the default
		{all.Append, "cleanup.policy", "delete", "delete, compact", "delete,compact"},
		{all.Append, "leader.replication.throttled.replicas", "", "0:7,0:7", "0:7"},
		{all.Append, "cleanup.policy", "delete", "", "delete"},
		{all.Subtract, "cleanup.policy", "delete,compact", "delete", "compact"},
		{all.Subtract, "cleanup.policy", "", "delete", ""},
		{all.Subtract, "cleanup.policy", "delete", "compact", "delete"},
	} {
		configs := map[string]string{}
		if c.set != "" {
			configs[c.name] = c.set
		}
		if err := c.do(configs, c.name, c.items); err != nil || configs[c.name] != c.wants {
			t.Errorf("%q and %q: got %q, %v; want %q", c.set, c.items, configs[c.name], err, c.wants)
		}
	}
	for _, name := range []string{"retention.ms", "foo"} {
		configs := map[string]string{}
		err := all.Subtract(configs, name, "x")
		if want := "Can't SUBTRACT to key " + name + " because its type is not LIST."; !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("%s: got %v", name, err)
		}
		if err := all.Append(configs, name, "x"); !errors.Is(err, ErrInvalid) || len(configs) > 0 {
			t.Errorf("%s: got %v, configs %v", name, err, configs)
		}
	}
}
