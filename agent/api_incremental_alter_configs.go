package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// IncrementalAlterConfigs, key 44, versions 0 and 1 (KIP-339): sets, deletes, appends to and subtracts from single configs
// of a topic. A resource's changes are made together or not at all.

func (s *Server) incrementalAlterConfigs(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.IncrementalAlterConfigsRequest)
	alterations := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		q, a := &req.Resources[i], &alterations[i]
		a.typ, a.name = q.ResourceType, q.ResourceName
		for _, c := range q.Configs {
			a.ops = append(a.ops, configOp{op: c.Op, name: c.Name, value: c.Value})
		}
	}
	if err := s.alter(ctx, "IncrementalAlterConfigs", alterations, req.ValidateOnly, false); err != nil {
		return reply{}, err
	}
	resp := kmsg.NewPtrIncrementalAlterConfigsResponse()
	resp.SetVersion(r.version)
	for i := range alterations {
		a := &alterations[i]
		x := kmsg.NewIncrementalAlterConfigsResponseResource()
		x.ResourceType, x.ResourceName = a.typ, a.name
		x.ErrorCode, x.ErrorMessage = a.why.fail(r)
		resp.Resources = append(resp.Resources, x)
	}
	return reply{msg: resp}, nil
}
