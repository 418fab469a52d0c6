package agent

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/topicconf"
)

// AlterConfigs, key 33, versions 0 to 2: replaces all that is set on a topic, or of the dynamic configs of all agents
// (group_settings.go). What both ways of altering configs (the other is IncrementalAlterConfigs) share is here.

// alteration is one resource of a request that alters configs.
type alteration struct {
	typ  kmsg.ConfigResourceType
	name string
	ops  []configOp
	why  *refusal // nil where there is none
}

// configOp is what is to be done to one config.
type configOp struct {
	op    kmsg.IncrementalAlterConfigOp
	name  string
	value *string
}

func (s *Server) alterConfigs(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.AlterConfigsRequest)
	alterations := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		q, a := &req.Resources[i], &alterations[i]
		a.typ, a.name = q.ResourceType, q.ResourceName
		for _, c := range q.Configs {
			a.ops = append(a.ops, configOp{op: kmsg.IncrementalAlterConfigOpSet, name: c.Name, value: c.Value})
		}
	}
	if err := s.alter(ctx, "AlterConfigs", alterations, req.ValidateOnly, true); err != nil {
		return reply{}, err
	}
	resp := kmsg.NewPtrAlterConfigsResponse()
	resp.SetVersion(r.version)
	for i := range alterations {
		a := &alterations[i]
		x := kmsg.NewAlterConfigsResponseResource()
		x.ResourceType, x.ResourceName = a.typ, a.name
		x.ErrorCode, x.ErrorMessage = a.why.fail(r)
		resp.Resources = append(resp.Resources, x)
	}
	return reply{msg: resp}, nil
}

// alter does what is asked for and fills in why not. Its error closes the connection.
func (s *Server) alter(conn context.Context, api string, alterations []alteration, validateOnly, replace bool) error {
	ctx, cancel := context.WithTimeout(conn, defaultAdminTimeout)
	defer cancel()
	refuseTwice(alterations)
	var changes []metadata.ConfigChange
	var at []*alteration
	set := topicconf.All()
	for i := range alterations {
		a := &alterations[i]
		switch {
		case len(alterations) > maxTopicsPerRequest:
			a.why = tooManyTopics()
		case a.why == nil:
			a.why = s.badAlteration(a)
		}
		if a.why == nil && a.typ == kmsg.ConfigResourceTypeBroker {
			a.why = s.alterBroker(ctx, a, validateOnly, replace)
			continue
		}
		if a.why == nil {
			changes = append(changes, metadata.ConfigChange{Topic: a.name, Replace: replace, Edit: a.edit(set)})
			at = append(at, a)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	var errs []error
	var err error
	if validateOnly {
		errs, err = s.tryChanges(ctx, changes)
	} else {
		errs, err = s.store.AlterConfigs(ctx, changes)
	}
	if err != nil {
		if err := s.ended(conn, api, err); err != nil {
			return err
		}
	}
	for i, a := range at {
		switch {
		case err != nil:
			a.why = refusalOf(err)
		case errors.Is(errs[i], metadata.ErrUnknownTopic):
			a.why = refusef(codeUnknownTopicOrPartition, "The topic '%s' does not exist.", a.name)
		default:
			a.why = refusalOf(errs[i])
		}
	}
	return nil
}

// tryChanges checks changes without making them.
func (s *Server) tryChanges(ctx context.Context, changes []metadata.ConfigChange) ([]error, error) {
	c, err := s.freshCatalogue(ctx)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(changes))
	for i := range changes {
		if t := c.ByName(changes[i].Topic); t != nil {
			_, errs[i] = changes[i].Apply(t.Configs)
		} else {
			errs[i] = metadata.ErrUnknownTopic
		}
	}
	return errs, nil
}

// refuseTwice refuses resources that are there more than once.
func refuseTwice(alterations []alteration) {
	type resource struct {
		typ  kmsg.ConfigResourceType
		name string
	}
	seen := make(map[resource]*alteration, len(alterations))
	for i := range alterations {
		a := &alterations[i]
		k := resource{a.typ, a.name}
		if first := seen[k]; first != nil {
			first.why = refusef(codeInvalidRequest, "Each resource must appear at most once.")
			a.why = first.why
		}
		seen[k] = a
	}
}

// badAlteration says what is wrong with an alteration whatever the resource's configs are, nil if nothing is.
func (s *Server) badAlteration(a *alteration) *refusal {
	seen := make(map[string]bool, len(a.ops))
	var null []string
	for i := range a.ops {
		o := &a.ops[i]
		if seen[o.name] {
			return refusef(codeInvalidRequest, "Error due to duplicate config keys")
		}
		seen[o.name] = true
		if o.value == nil && o.op != kmsg.IncrementalAlterConfigOpDelete {
			null = append(null, o.name)
		}
	}
	if len(null) > 0 {
		return refusef(codeInvalidRequest, "Null value not supported for : %s", strings.Join(null, ", "))
	}
	if i := slices.IndexFunc(a.ops, func(o configOp) bool { return o.op < 0 || o.op > kmsg.IncrementalAlterConfigOpSubtract }); i >= 0 {
		return refusef(codeInvalidRequest, "Unknown operations type %d", int8(a.ops[i].op))
	}
	switch a.typ {
	case kmsg.ConfigResourceTypeTopic:
		if a.name == "" {
			return refusef(codeInvalidRequest, "Default topic resources are not allowed.")
		}
		return badTopicName(a.name)
	case kmsg.ConfigResourceTypeBroker:
		if a.name != "" {
			if why := s.badBrokerID(a.name, "Node", ""); why != nil {
				return why
			}
		}
		return nil
	case kmsg.ConfigResourceTypeBrokerLogger:
		return refusef(codeInvalidRequest, "Skein has no loggers to configure over the Kafka protocol.")
	case kmsg.ConfigResourceTypeClientMetrics:
		return refusef(codeInvalidRequest, "Skein does not collect client metrics (KIP-714).")
	case kmsg.ConfigResourceTypeGroupConfig:
		return refusef(codeInvalidRequest, "This version of Skein has no group configs.")
	}
	return refusef(codeInvalidRequest, "Unknown resource type %d", int8(a.typ))
}

// edit gives the function from a topic's configs to those after the alteration. All that is set then is checked, not only
// what changed: bounds hold between configs.
func (a *alteration) edit(set topicconf.Set) func(map[string]string) (map[string]string, error) {
	return func(configs map[string]string) (map[string]string, error) {
		for i := range a.ops {
			o := &a.ops[i]
			var err error
			switch o.op {
			case kmsg.IncrementalAlterConfigOpSet:
				configs[o.name] = *o.value
			case kmsg.IncrementalAlterConfigOpDelete:
				delete(configs, o.name)
			case kmsg.IncrementalAlterConfigOpAppend:
				err = set.Append(configs, o.name, *o.value)
			case kmsg.IncrementalAlterConfigOpSubtract:
				err = set.Subtract(configs, o.name, *o.value)
			}
			if err != nil {
				return nil, err
			}
		}
		return configs, set.Validate(configs)
	}
}
