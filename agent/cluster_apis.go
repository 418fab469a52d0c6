package agent

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// What Kafka's tools and web consoles ask of a cluster, and which has little to say here: leaders are not elected,
// replicas are not assigned, there is one log directory, and neither quotas nor SCRAM credentials are kept. Each is
// answered as a broker that has none of it does.

const (
	codeLogDirNotFound         int16 = 57
	codeElectionNotNeeded      int16 = 84
	codeNoReassignmentProgress int16 = 85
	codeResourceNotFound       int16 = 91
	codeDuplicateResource      int16 = 92
)

// clusterAPIs are the lines of the table whose handlers are here.
func (s *Server) clusterAPIs() []api {
	return []api{
		{key: 34, name: "AlterReplicaLogDirs", min: 1, max: 2, handle: s.alterReplicaLogDirs, note: "There is one virtual folder, " +
			"where everything is."},
		{key: 43, name: "ElectLeaders", min: 0, max: 2, handle: s.electLeaders, note: "ELECTION_NOT_NEEDED: every agent leads."},
		{key: 45, name: "AlterPartitionReassignments", min: 0, max: 1, handle: s.alterReassignments, note: "What is the assignment " +
			"already succeeds; others get INVALID_REPLICA_ASSIGNMENT, since agents are chosen by zone and not assigned."},
		{key: 46, name: "ListPartitionReassignments", min: 0, max: 0, handle: s.listReassignments, note: "There are none."},
		{key: 48, name: "DescribeClientQuotas", min: 0, max: 1, handle: s.describeQuotas, note: "There are none."},
		{key: 50, name: "DescribeUserScramCredentials", min: 0, max: 0, handle: s.describeScram, note: "There are none: named users " +
			"get RESOURCE_NOT_FOUND."},
	}
}

// clusterCatalogue gives the catalogue as it is now; when that fails, the code to answer, or the connection's end.
func (s *Server) clusterCatalogue(ctx context.Context, what string) (*metadata.Catalogue, int16, error) {
	call, cancel := context.WithTimeout(ctx, defaultAdminTimeout)
	defer cancel()
	c, err := s.freshCatalogue(call)
	if err != nil {
		if err := s.ended(ctx, what, err); err != nil {
			return nil, codeNone, err
		}
		return nil, codeOf(err), nil
	}
	return c, codeNone, nil
}

// partitionExists says whether there is such a partition.
func partitionExists(c *metadata.Catalogue, topic string, index int32) bool {
	t := c.ByName(topic)
	return t != nil && index >= 0 && int(index) < len(t.Partitions)
}

func (s *Server) electLeaders(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ElectLeadersRequest)
	resp := kmsg.NewPtrElectLeadersResponse()
	resp.SetVersion(r.version)
	c, code, err := s.clusterCatalogue(ctx, "ElectLeaders")
	if err != nil {
		return reply{}, err
	}
	// Null asks for all that need it: none does.
	for i := range req.Topics {
		q := &req.Topics[i]
		x := kmsg.NewElectLeadersResponseTopic()
		x.Topic = q.Topic
		for _, index := range q.Partitions {
			p := kmsg.NewElectLeadersResponseTopicPartition()
			p.Partition = index
			switch {
			case code != codeNone:
				p.ErrorCode = r.note(code)
			case !partitionExists(c, q.Topic, index):
				p.ErrorCode, p.ErrorMessage = unknownTopic().fail(r)
			default:
				p.ErrorCode, p.ErrorMessage = refusef(codeElectionNotNeeded, "Leader election not needed for topic partition.").fail(r)
			}
			x.Partitions = append(x.Partitions, p)
		}
		resp.Topics = append(resp.Topics, x)
	}
	return reply{msg: resp}, nil
}

func (s *Server) alterReassignments(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.AlterPartitionAssignmentsRequest)
	resp := kmsg.NewPtrAlterPartitionAssignmentsResponse()
	resp.SetVersion(r.version)
	if r.version >= 1 {
		resp.AllowReplicationFactorChange = req.AllowReplicationFactorChange
	}
	c, code, err := s.clusterCatalogue(ctx, "AlterPartitionReassignments")
	if err != nil {
		return reply{}, err
	}
	if code != codeNone {
		resp.ErrorCode = r.note(code)
		return reply{msg: resp}, nil
	}
	place := s.placement(r.clientID)
	for i := range req.Topics {
		q := &req.Topics[i]
		x := kmsg.NewAlterPartitionAssignmentsResponseTopic()
		x.Topic = q.Topic
		for j := range q.Partitions {
			p := kmsg.NewAlterPartitionAssignmentsResponseTopicPartition()
			p.Partition = q.Partitions[j].Partition
			p.ErrorCode, p.ErrorMessage = badReassignment(&place, c, q.Topic, &q.Partitions[j]).fail(r)
			x.Partitions = append(x.Partitions, p)
		}
		resp.Topics = append(resp.Topics, x)
	}
	return reply{msg: resp}, nil
}

// badReassignment says why a partition is not reassigned, nil where it has these replicas.
func badReassignment(
	place *placement, c *metadata.Catalogue, topic string, q *kmsg.AlterPartitionAssignmentsRequestTopicPartition,
) *refusal {
	switch {
	case !partitionExists(c, topic, q.Partition):
		return unknownTopic()
	case q.Replicas == nil:
		return refusef(codeNoReassignmentProgress, "No partition reassignment is in progress.")
	}
	has := place.replicas(c.ByName(topic).ID, q.Partition)
	if !slices.Equal(slices.Sorted(slices.Values(q.Replicas)), slices.Sorted(slices.Values(has))) {
		return refusef(codeInvalidReplicaAssignment, "Replicas are one agent of each zone, now %v; they cannot be assigned.", has)
	}
	return nil
}

func (s *Server) listReassignments(_ context.Context, r *request) (reply, error) {
	resp := kmsg.NewPtrListPartitionReassignmentsResponse()
	resp.SetVersion(r.version)
	return reply{msg: resp}, nil
}

func (s *Server) alterReplicaLogDirs(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.AlterReplicaLogDirsRequest)
	resp := kmsg.NewPtrAlterReplicaLogDirsResponse()
	resp.SetVersion(r.version)
	c, code, err := s.clusterCatalogue(ctx, "AlterReplicaLogDirs")
	if err != nil {
		return reply{}, err
	}
	for i := range req.Dirs {
		for j := range req.Dirs[i].Topics {
			q := &req.Dirs[i].Topics[j]
			x := kmsg.NewAlterReplicaLogDirsResponseTopic()
			x.Topic = q.Topic
			for _, index := range q.Partitions {
				p := kmsg.NewAlterReplicaLogDirsResponseTopicPartition()
				p.Partition = index
				switch {
				case code != codeNone:
					p.ErrorCode = r.note(code)
				case req.Dirs[i].Dir != virtualLogDir:
					p.ErrorCode = r.note(codeLogDirNotFound)
				case !partitionExists(c, q.Topic, index):
					p.ErrorCode = r.note(codeUnknownTopicOrPartition)
				}
				x.Partitions = append(x.Partitions, p)
			}
			resp.Topics = append(resp.Topics, x)
		}
	}
	return reply{msg: resp}, nil
}

func (s *Server) describeQuotas(_ context.Context, r *request) (reply, error) {
	resp := kmsg.NewPtrDescribeClientQuotasResponse()
	resp.SetVersion(r.version)
	resp.Entries = []kmsg.DescribeClientQuotasResponseEntry{} // null is for errors
	return reply{msg: resp}, nil
}

func (s *Server) describeScram(_ context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeUserSCRAMCredentialsRequest)
	resp := kmsg.NewPtrDescribeUserSCRAMCredentialsResponse()
	resp.SetVersion(r.version)
	asked := map[string]int{}
	for _, u := range req.Users {
		asked[u.Name]++
	}
	for _, u := range req.Users {
		n := asked[u.Name]
		if n == 0 {
			continue // answered
		}
		asked[u.Name] = 0
		x := kmsg.NewDescribeUserSCRAMCredentialsResponseResult()
		x.User = u.Name
		why := refusef(codeResourceNotFound, "Attempt to describe a user credential that does not exist: %s", u.Name)
		if n > 1 {
			why = refusef(codeDuplicateResource, "Cannot describe SCRAM credentials for the same user twice in a single request: %s", u.Name)
		}
		x.ErrorCode, x.ErrorMessage = why.fail(r)
		resp.Results = append(resp.Results, x)
	}
	return reply{msg: resp}, nil
}
