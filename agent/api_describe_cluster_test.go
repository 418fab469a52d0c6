package agent

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestDescribeCluster(t *testing.T) {
	ts := newTestServer(t, withConfig(func(c *Config) { c.Rack = "z1" }))
	id, err := ts.store.ClusterID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := ts.dial()
	for _, v := range versions(0, 2) {
		for _, operations := range []bool{false, true} {
			req := kmsg.NewPtrDescribeClusterRequest()
			req.IncludeClusterAuthorizedOperations = operations
			resp := ask[*kmsg.DescribeClusterResponse](conn, req, v)
			want := int32(-2147483648)
			if operations {
				want = 8096 // what Kafka answers where nobody is forbidden anything
			}
			if resp.ErrorCode != 0 || resp.ClusterID != id || resp.ControllerID != 7 || resp.ClusterAuthorizedOperations != want {
				t.Errorf("version %d: %+v", v, resp)
			}
			b := resp.Brokers[0]
			if len(resp.Brokers) != 1 || b.NodeID != 7 || b.Host != "127.0.0.1" || b.Port != ts.self("").port || *b.Rack != "z1" || b.IsFenced {
				t.Errorf("version %d: broker %+v", v, b)
			}
		}
	}
	for typ, want := range map[int8]outcome{
		2: {114, "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER"},
		0: {115, "Unsupported endpoint type 0"},
		5: {115, "Unsupported endpoint type 5"},
	} {
		for _, v := range versions(1, 2) {
			req := kmsg.NewPtrDescribeClusterRequest()
			req.EndpointType = typ
			resp := ask[*kmsg.DescribeClusterResponse](conn, req, v)
			if got := outcomeOf(resp.ErrorCode, resp.ErrorMessage); got != want || resp.ControllerID != -1 || len(resp.Brokers) > 0 {
				t.Errorf("version %d, endpoint type %d: %+v", v, typ, resp)
			}
		}
	}
}
