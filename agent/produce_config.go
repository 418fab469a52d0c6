package agent

import (
	"sync"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// minCachedProduceConfigs is for how many topics configs are kept at least.
const minCachedProduceConfigs = 1024

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

// parseProduceConfig reads configs that were validated when they were set.
func parseProduceConfig(configs map[string]string) produceConfig {
	v := topicconf.All().Values(configs)
	c := produceConfig{
		maxMessageBytes: v.MaxMessageBytes,
		logAppendTime:   v.LogAppendTime,
		beforeMax:       int64(v.TimestampBeforeMax),
		afterMax:        int64(v.TimestampAfterMax),
		compacted:       v.Compact,
		level:           v.CompressionLevel,
	}
	if v.Compression != topicconf.CompressionProducer {
		codec, err := record.ParseCodec(v.Compression)
		c.recompress, c.codec = err == nil, codec
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
