package agent

import (
	"math"
	"strconv"
	"strings"
	"sync"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// Kafka's defaults of the topic configs that Produce obeys.
const (
	defaultMaxMessageBytes    = 1048588
	defaultTimestampAfterMax  = 3600000       // milliseconds
	defaultTimestampBeforeMax = math.MaxInt64 // milliseconds
	minCachedProduceConfigs   = 1024          // topics
	compressionProducer       = "producer"    // keep what the producer chose
	logAppendTimeType         = "LogAppendTime"
)

// produceConfig is what a topic's configs say about writing to it.
type produceConfig struct {
	maxMessageBytes int
	logAppendTime   bool
	beforeMax       int64 // milliseconds
	afterMax        int64 // milliseconds
	compacted       bool
	recompress      bool // to codec, when a batch came in another
	codec           record.Codec
	level           int
}

// parseProduceConfig reads configs that were validated when they were set; what does not parse takes its default.
func parseProduceConfig(configs map[string]string) produceConfig {
	number := func(name string, otherwise int64) int64 {
		if n, err := strconv.ParseInt(configs[name], 10, 64); err == nil {
			return n
		}
		return otherwise
	}
	c := produceConfig{
		maxMessageBytes: int(number("max.message.bytes", defaultMaxMessageBytes)),
		logAppendTime:   configs["message.timestamp.type"] == logAppendTimeType,
		beforeMax:       number("message.timestamp.before.max.ms", defaultTimestampBeforeMax),
		afterMax:        number("message.timestamp.after.max.ms", defaultTimestampAfterMax),
		level:           record.DefaultLevel,
	}
	for policy := range strings.SplitSeq(configs["cleanup.policy"], ",") {
		c.compacted = c.compacted || strings.TrimSpace(policy) == "compact"
	}
	if name := configs["compression.type"]; name != "" && name != compressionProducer {
		if codec, err := record.ParseCodec(name); err == nil {
			c.recompress, c.codec = true, codec
			c.level = int(number("compression."+name+".level", record.DefaultLevel))
		}
	}
	return c
}

// produceConfigs keeps parsed configs by topic. A topic in a catalogue is never changed: a changed one is another pointer.
type produceConfigs struct {
	mu      sync.RWMutex
	byTopic map[metadata.TopicID]parsedConfig
}

type parsedConfig struct {
	topic  *metadata.Topic
	config produceConfig
}

// of gives the config of a topic.
func (p *produceConfigs) of(t *metadata.Topic) produceConfig {
	p.mu.RLock()
	c, ok := p.byTopic[t.ID]
	p.mu.RUnlock()
	if ok && c.topic == t {
		return c.config
	}
	c = parsedConfig{topic: t, config: parseProduceConfig(t.Configs)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byTopic == nil {
		p.byTopic = map[metadata.TopicID]parsedConfig{}
	}
	p.byTopic[t.ID] = c
	return c.config
}

// trim forgets everything when there are far more entries than topics: deleted topics leave theirs behind.
func (p *produceConfigs) trim(topics int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.byTopic) > 2*topics+minCachedProduceConfigs {
		p.byTopic = nil
	}
}
