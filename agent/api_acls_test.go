package agent

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestNoAuthorizer: every ACL request says that there is none, in the place where clients look for it.
func TestNoAuthorizer(t *testing.T) {
	conn := newTestServer(t).dial()
	for _, v := range versions(1, 3) {
		described := ask[*kmsg.DescribeACLsResponse](conn, kmsg.NewPtrDescribeACLsRequest(), v)
		if described.ErrorCode != codeSecurityDisabled || *described.ErrorMessage != "No Authorizer is configured." {
			t.Errorf("DescribeAcls %d: %+v", v, described)
		}
		create := kmsg.NewPtrCreateACLsRequest()
		create.Creations = []kmsg.CreateACLsRequestCreation{kmsg.NewCreateACLsRequestCreation(), kmsg.NewCreateACLsRequestCreation()}
		created := ask[*kmsg.CreateACLsResponse](conn, create, v)
		if len(created.Results) != 2 || created.Results[1].ErrorCode != codeSecurityDisabled {
			t.Errorf("CreateAcls %d: %+v", v, created)
		}
		remove := kmsg.NewPtrDeleteACLsRequest()
		remove.Filters = []kmsg.DeleteACLsRequestFilter{kmsg.NewDeleteACLsRequestFilter()}
		deleted := ask[*kmsg.DeleteACLsResponse](conn, remove, v)
		if len(deleted.Results) != 1 || deleted.Results[0].ErrorCode != codeSecurityDisabled {
			t.Errorf("DeleteAcls %d: %+v", v, deleted)
		}
	}
}
