package agent

import (
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

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
	resp := kmsg.NewPtrDescribeConfigsResponse()
	resp.SetVersion(r.version)
	resp.Resources = make([]kmsg.DescribeConfigsResponseResource, len(req.Resources))
	for i := range req.Resources {
		q, out := &req.Resources[i], &resp.Resources[i]
		*out = kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = q.ResourceType, q.ResourceName
		entries, why := d.describe(q)
		if ctx.Err() != nil {
			return reply{}, ctx.Err()
		}
		out.ErrorCode, out.ErrorMessage = why.fail(r)
		for j := range entries {
			if e := &entries[j]; len(q.ConfigNames) == 0 || slices.Contains(q.ConfigNames, e.name) {
				out.Configs = append(out.Configs, e.response(req))
			}
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
	broker []configEntry // made when first asked for
}

func (d *configsCall) describe(q *kmsg.DescribeConfigsRequestResource) ([]configEntry, *refusal) {
	switch q.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		return d.topic(q.ResourceName)
	case kmsg.ConfigResourceTypeBroker:
		if q.ResourceName == "" {
			return nil, nil
		}
		if why := d.s.badBrokerID(q.ResourceName, "Broker", " or empty string"); why != nil {
			return nil, why
		}
		if d.broker == nil {
			d.broker = d.s.brokerEntries(d.topics)
		}
		return d.broker, nil
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
func (d *configsCall) topic(name string) ([]configEntry, *refusal) {
	if why := badTopicName(name); why != nil {
		return nil, why
	}
	c, err := d.s.freshCatalogue(d.ctx)
	if err != nil {
		d.s.log.Warn("DescribeConfigs failed", "error", err)
		return nil, refusalOf(err)
	}
	t := c.ByName(name)
	if t == nil {
		return nil, unknownTopic()
	}
	entries := make([]configEntry, 0, len(d.topics))
	for _, name := range slices.Sorted(maps.Keys(d.topics)) {
		entries = append(entries, topicEntry(d.topics, t.Configs, name))
	}
	return entries, nil
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
