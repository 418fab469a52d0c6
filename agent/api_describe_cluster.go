package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeCluster, key 60, versions 0 to 2: the agents as brokers, the one that was asked as controller. Controllers of
// their own (endpoint type 2) do not exist, and no agent is ever fenced.

const (
	endpointBrokers     int8 = 1
	endpointControllers int8 = 2
	// describeClusterTypes is the first version that asks for a type of endpoint.
	describeClusterTypes int16 = 1
)

func (s *Server) describeCluster(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeClusterRequest)
	resp := kmsg.NewPtrDescribeClusterResponse()
	resp.SetVersion(r.version)
	resp.ControllerID = -1
	if why := badEndpointType(req, r.version); why != nil {
		resp.ErrorCode, resp.ErrorMessage = why.fail(r)
		return reply{msg: resp}, nil
	}
	id := s.clusterID(ctx)
	if id == nil {
		why := refusef(codeRequestTimedOut, "The metadata database does not tell the cluster's id.")
		resp.ErrorCode, resp.ErrorMessage = why.fail(r)
		return reply{msg: resp}, nil
	}
	resp.ClusterID, resp.ControllerID = *id, s.controller()
	for _, b := range s.brokers(r.conn.listener) {
		x := kmsg.NewDescribeClusterResponseBroker()
		x.NodeID, x.Host, x.Port = b.id, b.host, b.port
		if b.rack != "" {
			x.Rack = &b.rack
		}
		resp.Brokers = append(resp.Brokers, x)
	}
	if req.IncludeClusterAuthorizedOperations {
		resp.ClusterAuthorizedOperations = clusterOperations
	}
	return reply{msg: resp}, nil
}

func badEndpointType(req *kmsg.DescribeClusterRequest, version int16) *refusal {
	switch {
	case version < describeClusterTypes || req.EndpointType == endpointBrokers:
		return nil
	case req.EndpointType == endpointControllers:
		return refusef(codeMismatchedEndpointType, "The request was sent to an endpoint of type BROKER, but we wanted an endpoint "+
			"of type CONTROLLER")
	}
	return refusef(codeUnsupportedEndpointType, "Unsupported endpoint type %d", req.EndpointType)
}
