package agent

import (
	"context"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// ListConfigResources, key 74, versions 0 and 1 (KIP-1142): the topics and brokers that may have configs. Version 0 lists
// client metrics subscriptions only, of which there are none.

// listConfigResourcesTypes is the first version that asks for other types than client metrics.
const listConfigResourcesTypes int16 = 1

func (s *Server) listConfigResources(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ListConfigResourcesRequest)
	resp := kmsg.NewPtrListConfigResourcesResponse()
	resp.SetVersion(r.version)
	if r.version < listConfigResourcesTypes {
		return reply{msg: resp}, nil
	}
	known := []kmsg.ConfigResourceType{
		kmsg.ConfigResourceTypeTopic, kmsg.ConfigResourceTypeBroker, kmsg.ConfigResourceTypeBrokerLogger,
		kmsg.ConfigResourceTypeClientMetrics, kmsg.ConfigResourceTypeGroupConfig,
	}
	wants := func(t kmsg.ConfigResourceType) bool {
		return len(req.ResourceTypes) == 0 || slices.Contains(req.ResourceTypes, int8(t))
	}
	for _, t := range req.ResourceTypes {
		if !slices.Contains(known, kmsg.ConfigResourceType(t)) {
			resp.ErrorCode = r.note(codeUnsupportedVersion)
			return reply{msg: resp}, nil
		}
	}
	if wants(kmsg.ConfigResourceTypeBroker) {
		for _, b := range s.brokers(r.conn.listener) {
			resp.ConfigResources = append(resp.ConfigResources, configResource(kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(b.id))))
		}
	}
	if !wants(kmsg.ConfigResourceTypeTopic) {
		return reply{msg: resp}, nil
	}
	call, cancel := context.WithTimeout(ctx, defaultAdminTimeout)
	defer cancel()
	c, err := s.freshCatalogue(call)
	if err != nil {
		if err := s.ended(ctx, "ListConfigResources", err); err != nil {
			return reply{}, err
		}
		resp.ErrorCode, resp.ConfigResources = r.note(codeOf(err)), nil
		return reply{msg: resp}, nil
	}
	for _, t := range c.Topics() {
		resp.ConfigResources = append(resp.ConfigResources, configResource(kmsg.ConfigResourceTypeTopic, t.Name))
	}
	return reply{msg: resp}, nil
}

func configResource(t kmsg.ConfigResourceType, name string) kmsg.ListConfigResourcesResponseConfigResource {
	x := kmsg.NewListConfigResourcesResponseConfigResource()
	x.Name, x.Type = name, int8(t)
	return x
}
