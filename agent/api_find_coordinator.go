package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// FindCoordinator, key 10, versions 0 to 6. Any agent serves any group and transactional id. Topology "virtual" names the one
// broker there is, "direct" an agent by rendezvous hashing, the same for every client, so that what an agent keeps of a
// group in memory is of use, and that ListGroups asked of every broker lists each group once.

// findCoordinatorBatch is the first version that asks for several keys (KIP-699).
const findCoordinatorBatch int16 = 4

// maxCoordinatorType: 0 groups, 1 transactions. Share groups (2) are not served.
const maxCoordinatorType int8 = 1

func (s *Server) findCoordinator(_ context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.FindCoordinatorRequest)
	resp := kmsg.NewPtrFindCoordinatorResponse()
	resp.SetVersion(r.version)
	code := codeNone
	if req.CoordinatorType < 0 || req.CoordinatorType > maxCoordinatorType {
		code = r.note(codeInvalidRequest)
	}
	find := func(key string) broker {
		if code != codeNone {
			return broker{id: -1, port: -1}
		}
		return s.coordinatorOf(key, r.conn.listener)
	}
	if r.version < findCoordinatorBatch {
		b := find(req.CoordinatorKey)
		resp.ErrorCode, resp.NodeID, resp.Host, resp.Port = code, b.id, b.host, b.port
		return reply{msg: resp}, nil
	}
	resp.Coordinators = make([]kmsg.FindCoordinatorResponseCoordinator, 0, len(req.CoordinatorKeys))
	for _, key := range req.CoordinatorKeys {
		b := find(key)
		c := kmsg.NewFindCoordinatorResponseCoordinator()
		c.Key, c.ErrorCode, c.NodeID, c.Host, c.Port = key, code, b.id, b.host, b.port
		resp.Coordinators = append(resp.Coordinators, c)
	}
	return reply{msg: resp}, nil
}
