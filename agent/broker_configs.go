package agent

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// What an agent shows as a broker's configs: what tools look for, as far as it means something here. All are read-only:
// an agent is configured by its own configuration.

const (
	// virtualLogDir is the folder that is shown as holding everything.
	virtualLogDir = "/skein"
	// shownBrokerProtocol is what web consoles take for the version of Kafka.
	shownBrokerProtocol = "4.2-IV1"
	// offsetsRetentionMinutes is Kafka's default: seven days.
	offsetsRetentionMinutes = 10080
)

// brokerConfig is a broker config. Its source is the agent's configuration when value is not what Kafka has as default.
type brokerConfig struct {
	name      string
	typ       kmsg.ConfigType
	value     *string // nil = none
	otherwise *string // Kafka's default; nil = none
	doc       string
}

func fixedConfig(name string, typ kmsg.ConfigType, value, doc string) brokerConfig {
	return brokerConfig{name: name, typ: typ, value: &value, otherwise: &value, doc: doc}
}

func unsetConfig(name string, typ kmsg.ConfigType, doc string) brokerConfig {
	return brokerConfig{name: name, typ: typ, doc: doc}
}

func staticConfig(name string, typ kmsg.ConfigType, value, doc string) brokerConfig {
	return brokerConfig{name: name, typ: typ, value: &value, doc: doc}
}

func setConfig(name string, typ kmsg.ConfigType, value, otherwise, doc string) brokerConfig {
	return brokerConfig{name: name, typ: typ, value: &value, otherwise: &otherwise, doc: doc}
}

// brokerEntries gives this agent's configs by name.
func (s *Server) brokerEntries(topics topicconf.Set) []configEntry {
	configs := append(s.brokerConfigs(), topicDefaults(topics)...)
	entries := make([]configEntry, 0, len(configs))
	for _, c := range configs {
		e := configEntry{
			name: c.name, value: c.value, source: kmsg.ConfigSourceDefaultConfig, typ: c.typ, readOnly: true, doc: c.doc,
		}
		if c.value != nil && (c.otherwise == nil || *c.otherwise != *c.value) {
			e.source = kmsg.ConfigSourceStaticBrokerConfig
			e.synonyms = append(e.synonyms, synonym(c.name, c.value, e.source))
		}
		if c.otherwise != nil {
			e.synonyms = append(e.synonyms, synonym(c.name, c.otherwise, kmsg.ConfigSourceDefaultConfig))
		}
		entries = append(entries, e)
	}
	entries = append(entries, s.groupEntries()...)
	slices.SortFunc(entries, func(a, b configEntry) int { return cmp.Compare(a.name, b.name) })
	return entries
}

// brokerConfigs are the broker configs that are not the default of a topic config.
func (s *Server) brokerConfigs() []brokerConfig {
	const (
		boolean, text, list = kmsg.ConfigTypeBoolean, kmsg.ConfigTypeString, kmsg.ConfigTypeList
		integer, long       = kmsg.ConfigTypeInt, kmsg.ConfigTypeLong
	)
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	id := number(int64(s.node()))
	self := s.self("")
	configs := []brokerConfig{
		setConfig("broker.id", integer, id, "-1", "This agent's id as a broker."),
		staticConfig("node.id", integer, id, "This agent's id as a broker."),
		staticConfig("process.roles", list, "broker,controller", "Every agent is a broker and answers what Kafka's controller answers."),
		staticConfig("listeners", list, "PLAINTEXT://"+s.listenAddr(), "Where this agent listens."),
		staticConfig("advertised.listeners", list, fmt.Sprintf("PLAINTEXT://%s", net.JoinHostPort(self.host, number(int64(self.port)))),
			"Where clients are told to connect."),
		fixedConfig("security.inter.broker.protocol", text, "PLAINTEXT", "Agents do not talk to each other over the Kafka protocol."),
		fixedConfig("inter.broker.protocol.version", text, shownBrokerProtocol, "The version of Kafka whose protocol is spoken."),
		fixedConfig("log.dirs", list, virtualLogDir, "A virtual folder: records are in the bucket."),
		setConfig("num.partitions", integer, number(int64(s.cfg.DefaultPartitions)), "1", "Partitions of topics that do not say."),
		fixedConfig("default.replication.factor", integer, number(int64(defaultReplicationFactor)), "Shown for topics that do not say; the bucket replicates."),
		setConfig("auto.create.topics.enable", boolean, strconv.FormatBool(s.cfg.AutoCreateTopics), "true", "Whether topics are created when clients ask for their metadata."),
		fixedConfig("delete.topic.enable", boolean, "true", "Whether topics can be deleted."),
		fixedConfig("fetch.max.bytes", integer, number(maxFetchBytes), "The most bytes of one Fetch response but for its first batch."),
		setConfig("socket.request.max.bytes", integer, number(int64(s.cfg.MaxRequestBytes)), number(DefaultMaxRequestBytes), "The largest Produce request."),
		setConfig("max.connections", integer, number(int64(s.cfg.MaxConnections)), number(DefaultMaxConnections), "Connections that an agent takes."),
		setConfig("connections.max.idle.ms", long, number(s.cfg.IdleTimeout.Milliseconds()), number(DefaultIdleTimeout.Milliseconds()), "Idle connections are closed after so long, in milliseconds."),
		fixedConfig("max.request.partition.size.limit", integer, number(maxDescribedPartitions), "Partitions of one DescribeTopicPartitions response."),
		fixedConfig("producer.id.expiration.ms", integer, number(metadata.ProducerExpiry.Milliseconds()), "How long an idle producer's state is kept, in milliseconds."),
		fixedConfig("offsets.retention.minutes", integer, number(offsetsRetentionMinutes), "How long the committed offsets of an empty group are kept."),
		fixedConfig("log.retention.hours", integer, "168", "Default of the topic config retention.ms, in hours."),
		unsetConfig("log.retention.minutes", integer, "Default of the topic config retention.ms, in minutes."),
		fixedConfig("log.roll.hours", integer, "168", "Default of the topic config segment.ms, in hours."),
		fixedConfig("log.roll.jitter.hours", integer, "0", "Default of the topic config segment.jitter.ms, in hours."),
	}
	if self.rack == "" {
		return append(configs, unsetConfig("broker.rack", text, "This agent's zone."))
	}
	return append(configs, staticConfig("broker.rack", text, self.rack, "This agent's zone."))
}

// listenAddr is the address of the listener.
func (s *Server) listenAddr() string {
	if a := s.Addr(); a != nil {
		return a.String()
	}
	return s.cfg.Listen
}

// topicDefaults are the broker configs that are the defaults of topic configs.
func topicDefaults(topics topicconf.Set) []brokerConfig {
	var configs []brokerConfig
	for _, d := range topics {
		if d.Broker == "" {
			continue
		}
		c := fixedConfig(d.Broker, responseType(d.Type), d.Default, "Default of the topic config "+d.Name+": "+d.Doc)
		if d.BrokerUnset {
			c.value, c.otherwise = nil, nil
		}
		configs = append(configs, c)
	}
	return configs
}
