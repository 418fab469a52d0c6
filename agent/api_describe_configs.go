package agent

import (
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// DescribeConfigs, key 32, versions 1 to 4: every config of a topic or of this agent as a broker, with its source, type,
// synonyms and documentation. Values are shown in their canonical form. There are no dynamic broker configs, so the broker
// "" (defaults for the whole cluster) has none to show.

// configEntry is one config as clients see it.
type configEntry struct {
	name     string
	value    *string // nil = none
	source   kmsg.ConfigSource
	typ      kmsg.ConfigType
	readOnly bool
	synonyms []kmsg.DescribeConfigsResponseResourceConfigConfigSynonym // the first is in force
	doc      string
}

func (s *Server) describeConfigs(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeConfigsRequest)
	call, cancel := context.WithTimeout(ctx, defaultAdminTimeout)
	defer cancel()
	d := configsCall{s: s, ctx: call, topics: topicconf.All()}
	d.names = slices.Sorted(maps.Keys(d.topics))
	resp := kmsg.NewPtrDescribeConfigsResponse()
	resp.SetVersion(r.version)
	resp.Resources = make([]kmsg.DescribeConfigsResponseResource, len(req.Resources))
	left := maxDescribedConfigs
	for i := range req.Resources {
		q, out := &req.Resources[i], &resp.Resources[i]
		*out = kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = q.ResourceType, q.ResourceName
		entries, why := d.describe(q)
		if ctx.Err() != nil {
			return reply{}, ctx.Err()
		}
		if left -= len(entries); left < 0 {
			entries, why = nil, refusef(codePolicyViolation, "Too many configs in one response: ask for fewer resources at once.")
		}
		out.ErrorCode, out.ErrorMessage = why.fail(r)
		for j := range entries {
			out.Configs = append(out.Configs, entries[j].response(req))
		}
	}
	return reply{msg: resp}, nil
}

// response gives the entry as the response has it.
func (e *configEntry) response(req *kmsg.DescribeConfigsRequest) kmsg.DescribeConfigsResponseResourceConfig {
	x := kmsg.NewDescribeConfigsResponseResourceConfig()
	x.Name, x.Value, x.Source, x.ConfigType, x.ReadOnly = e.name, e.value, e.source, e.typ, e.readOnly
	if req.IncludeSynonyms {
		x.ConfigSynonyms = e.synonyms
	}
	if req.IncludeDocumentation {
		x.Documentation = &e.doc
	}
	return x
}

// configsCall is one DescribeConfigs request under way. The context is in it because all of it lives for one call.
type configsCall struct {
	s      *Server
	ctx    context.Context
	topics topicconf.Set
	names  []string // of topic configs, in order
	// What follows is made when it is first asked for.
	broker    []configEntry
	catalogue *metadata.Catalogue
	failure   *refusal // of reading the catalogue
}

// wants says whether a config is asked for; none named means all.
func wants(q *kmsg.DescribeConfigsRequestResource, name string) bool {
	return len(q.ConfigNames) == 0 || slices.Contains(q.ConfigNames, name)
}

func (d *configsCall) describe(q *kmsg.DescribeConfigsRequestResource) ([]configEntry, *refusal) {
	switch q.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		return d.topic(q)
	case kmsg.ConfigResourceTypeBroker:
		if q.ResourceName == "" {
			return d.ofAllBrokers(q), nil
		}
		if why := d.s.badBrokerID(q.ResourceName, "Broker", " or empty string"); why != nil {
			return nil, why
		}
		return d.ofBroker(q), nil
	case kmsg.ConfigResourceTypeBrokerLogger:
		return nil, refusef(codeInvalidRequest, "Skein has no loggers to configure over the Kafka protocol.")
	case kmsg.ConfigResourceTypeClientMetrics:
		return nil, refusef(codeInvalidRequest, "Skein does not collect client metrics (KIP-714).")
	case kmsg.ConfigResourceTypeGroupConfig:
		return nil, refusef(codeInvalidRequest, "This version of Skein has no group configs.")
	}
	return nil, refusef(codeInvalidRequest, "Unknown resource type %d", int8(q.ResourceType))
}

// topic gives the configs of a topic.
func (d *configsCall) topic(q *kmsg.DescribeConfigsRequestResource) ([]configEntry, *refusal) {
	if why := badTopicName(q.ResourceName); why != nil {
		return nil, why
	}
	if d.catalogue == nil && d.failure == nil {
		var err error
		if d.catalogue, err = d.s.freshCatalogue(d.ctx); err != nil {
			d.s.log.Warn("DescribeConfigs failed", "error", err)
			d.failure = refusalOf(err)
		}
	}
	if d.failure != nil {
		return nil, d.failure
	}
	t := d.catalogue.ByName(q.ResourceName)
	if t == nil {
		return nil, unknownTopic()
	}
	var entries []configEntry
	for _, name := range d.names {
		if wants(q, name) {
			entries = append(entries, topicEntry(d.topics, t.Configs, name))
		}
	}
	return entries, nil
}

// ofBroker gives the configs of this agent.
func (d *configsCall) ofBroker(q *kmsg.DescribeConfigsRequestResource) []configEntry {
	if d.broker == nil {
		d.broker = d.s.brokerEntries(d.topics)
	}
	var entries []configEntry
	for i := range d.broker {
		if wants(q, d.broker[i].name) {
			entries = append(entries, d.broker[i])
		}
	}
	return entries
}

// ofAllBrokers gives what is set for all brokers, and only that, as Kafka does for the broker without a name.
func (d *configsCall) ofAllBrokers(q *kmsg.DescribeConfigsRequestResource) []configEntry {
	var entries []configEntry
	for _, e := range d.ofBroker(q) {
		if e.source == kmsg.ConfigSourceDynamicDefaultBrokerConfig {
			e.synonyms = e.synonyms[:1:1] // itself
			entries = append(entries, e)
		}
	}
	return entries
}

// topicEntry gives one config of a topic on which configs are set.
func topicEntry(set topicconf.Set, configs map[string]string, name string) configEntry {
	def := set[name]
	value := set.Get(configs, name)
	e := configEntry{
		name: name, value: &value, source: kmsg.ConfigSourceDefaultConfig, typ: responseType(def.Type), doc: def.Doc,
	}
	if _, ok := configs[name]; ok {
		e.source = kmsg.ConfigSourceDynamicTopicConfig
		e.synonyms = append(e.synonyms, synonym(name, &value, e.source))
	}
	if def.Broker != "" && !def.BrokerUnset {
		e.synonyms = append(e.synonyms, synonym(def.Broker, &def.Default, kmsg.ConfigSourceDefaultConfig))
	}
	return e
}

func synonym(name string, value *string, source kmsg.ConfigSource) kmsg.DescribeConfigsResponseResourceConfigConfigSynonym {
	x := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
	x.Name, x.Value, x.Source = name, value, source
	return x
}

func responseType(t topicconf.Type) kmsg.ConfigType {
	switch t {
	case topicconf.Boolean:
		return kmsg.ConfigTypeBoolean
	case topicconf.Int:
		return kmsg.ConfigTypeInt
	case topicconf.Long:
		return kmsg.ConfigTypeLong
	case topicconf.Double:
		return kmsg.ConfigTypeDouble
	case topicconf.List:
		return kmsg.ConfigTypeList
	}
	return kmsg.ConfigTypeString
}
