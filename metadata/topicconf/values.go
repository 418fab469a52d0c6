package topicconf

import (
	"slices"
	"strconv"
)

// Millis is a time or a span in milliseconds, as Kafka's configs have it.
type Millis int64

// Compression types of topics that are not a codec's name.
const (
	// CompressionProducer keeps the codec that the producer chose.
	CompressionProducer = "producer"
	// CompressionNone stores records uncompressed.
	CompressionNone = "uncompressed"
)

// Values are the configs of one topic that Skein acts on.
type Values struct {
	Compact, Delete bool // cleanup.policy; neither: kept for ever

	MaxMessageBytes    int
	LogAppendTime      bool
	TimestampBeforeMax Millis
	TimestampAfterMax  Millis
	Compression        string // a codec's name, CompressionProducer or CompressionNone
	CompressionLevel   int    // of that codec, in Kafka's numbers; 0 where it has none

	RetentionMillis  Millis // -1: no limit
	RetentionBytes   int64  // below 0: no limit
	DeleteRetention  Millis
	MinCompactionLag Millis
	MaxCompactionLag Millis
}

// Values reads a topic's configs. What does not parse, which Validate would have refused, takes its default.
func (s Set) Values(configs map[string]string) Values {
	number := func(name string) int64 {
		n, err := strconv.ParseInt(s.Get(configs, name), 10, 64)
		if err != nil {
			n, _ = strconv.ParseInt(s[name].Default, 10, 64)
		}
		return n
	}
	policy := SplitList(s.Get(configs, "cleanup.policy"))
	v := Values{
		Compact:            slices.Contains(policy, "compact"),
		Delete:             slices.Contains(policy, "delete"),
		MaxMessageBytes:    int(number("max.message.bytes")),
		LogAppendTime:      s.Get(configs, "message.timestamp.type") == "LogAppendTime",
		TimestampBeforeMax: Millis(number("message.timestamp.before.max.ms")),
		TimestampAfterMax:  Millis(number("message.timestamp.after.max.ms")),
		Compression:        s.Get(configs, "compression.type"),
		RetentionMillis:    Millis(number("retention.ms")),
		RetentionBytes:     number("retention.bytes"),
		DeleteRetention:    Millis(number("delete.retention.ms")),
		MinCompactionLag:   Millis(number("min.compaction.lag.ms")),
		MaxCompactionLag:   Millis(number("max.compaction.lag.ms")),
	}
	if level := "compression." + v.Compression + ".level"; s[level].Name != "" {
		v.CompressionLevel = int(number(level))
	}
	return v
}
