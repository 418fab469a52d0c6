package agent

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestNothingToElectOrAssign asks what Kafka's tools ask of a cluster that has none of it.
func TestNothingToElectOrAssign(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("a", 2, nil)
	conn := ts.dial()
	for _, v := range versions(0, 2) {
		req := kmsg.NewPtrElectLeadersRequest()
		req.Topics = []kmsg.ElectLeadersRequestTopic{{Topic: "a", Partitions: []int32{0, 2}}, {Topic: "nope", Partitions: []int32{0}}}
		resp := ask[*kmsg.ElectLeadersResponse](conn, req, v)
		if len(resp.Topics) != 2 || resp.Topics[0].Partitions[0].ErrorCode != codeElectionNotNeeded ||
			resp.Topics[0].Partitions[1].ErrorCode != codeUnknownTopicOrPartition ||
			resp.Topics[1].Partitions[0].ErrorCode != codeUnknownTopicOrPartition {
			t.Errorf("ElectLeaders %d: %+v", v, resp)
		}
		req.Topics = nil
		if resp = ask[*kmsg.ElectLeadersResponse](conn, req, v); len(resp.Topics) != 0 || v > 0 && resp.ErrorCode != 0 {
			t.Errorf("ElectLeaders %d of all: %+v", v, resp)
		}
	}
	for _, v := range versions(0, 1) {
		req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
		req.Topics = []kmsg.AlterPartitionAssignmentsRequestTopic{{Topic: "a", Partitions: []kmsg.AlterPartitionAssignmentsRequestTopicPartition{
			{Partition: 0, Replicas: []int32{ts.cfg.NodeID}}, {Partition: 0, Replicas: []int32{ts.cfg.NodeID + 1}}, {Partition: 1}, {Partition: 2},
		}}}
		resp := ask[*kmsg.AlterPartitionAssignmentsResponse](conn, req, v)
		for i, want := range []int16{codeNone, codeInvalidReplicaAssignment, codeNoReassignmentProgress, codeUnknownTopicOrPartition} {
			if got := resp.Topics[0].Partitions[i].ErrorCode; got != want {
				t.Errorf("AlterPartitionReassignments %d, %d: code %d, want %d", v, i, got, want)
			}
		}
		quotas := ask[*kmsg.DescribeClientQuotasResponse](conn, kmsg.NewPtrDescribeClientQuotasRequest(), v)
		if quotas.ErrorCode != 0 || quotas.Entries == nil || len(quotas.Entries) != 0 {
			t.Errorf("DescribeClientQuotas %d: %+v", v, quotas)
		}
	}
	list := ask[*kmsg.ListPartitionReassignmentsResponse](conn, kmsg.NewPtrListPartitionReassignmentsRequest(), 0)
	if list.ErrorCode != 0 || len(list.Topics) != 0 {
		t.Errorf("ListPartitionReassignments: %+v", list)
	}
	for _, v := range versions(1, 2) {
		req := kmsg.NewPtrAlterReplicaLogDirsRequest()
		for _, dir := range []string{virtualLogDir, "/elsewhere"} {
			req.Dirs = append(req.Dirs, kmsg.AlterReplicaLogDirsRequestDir{Dir: dir, Topics: []kmsg.AlterReplicaLogDirsRequestDirTopic{
				{Topic: "a", Partitions: []int32{0, 2}},
			}})
		}
		resp := ask[*kmsg.AlterReplicaLogDirsResponse](conn, req, v)
		for i, want := range []int16{codeNone, codeUnknownTopicOrPartition, codeLogDirNotFound, codeLogDirNotFound} {
			if got := resp.Topics[i/2].Partitions[i%2].ErrorCode; got != want {
				t.Errorf("AlterReplicaLogDirs %d, %d: code %d, want %d", v, i, got, want)
			}
		}
	}
	users := kmsg.NewPtrDescribeUserSCRAMCredentialsRequest()
	if resp := ask[*kmsg.DescribeUserSCRAMCredentialsResponse](conn, users, 0); resp.ErrorCode != 0 || len(resp.Results) != 0 {
		t.Errorf("DescribeUserScramCredentials of all: %+v", resp)
	}
	users.Users = []kmsg.DescribeUserSCRAMCredentialsRequestUser{{Name: "x"}, {Name: "y"}, {Name: "x"}}
	resp := ask[*kmsg.DescribeUserSCRAMCredentialsResponse](conn, users, 0)
	if len(resp.Results) != 2 || resp.Results[0].ErrorCode != codeDuplicateResource || resp.Results[1].ErrorCode != codeResourceNotFound {
		t.Errorf("DescribeUserScramCredentials: %+v", resp)
	}
}
