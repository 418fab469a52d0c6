package agent

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeAcls, CreateAcls and DeleteAcls, keys 29 to 31, versions 1 to 3: there is no authorizer, and each is answered as
// a broker without one does. MirrorMaker 2 and web consoles expect that answer.

const codeSecurityDisabled int16 = 54

// noAuthorizer is Kafka's own text.
func noAuthorizer() *refusal {
	return refusef(codeSecurityDisabled, "No Authorizer is configured.")
}

// aclAPIs are the lines of the table whose handlers are here.
func aclAPIs() []api {
	const note = "There is no authorizer: SECURITY_DISABLED."
	return []api{
		{key: 29, name: "DescribeAcls", min: 1, max: 3, handle: describeACLs, note: note},
		{key: 30, name: "CreateAcls", min: 1, max: 3, handle: createACLs, note: note},
		{key: 31, name: "DeleteAcls", min: 1, max: 3, handle: deleteACLs, note: note},
	}
}

func describeACLs(_ context.Context, r *request) (reply, error) {
	resp := kmsg.NewPtrDescribeACLsResponse()
	resp.SetVersion(r.version)
	resp.ErrorCode, resp.ErrorMessage = noAuthorizer().fail(r)
	return reply{msg: resp}, nil
}

func createACLs(_ context.Context, r *request) (reply, error) {
	resp := kmsg.NewPtrCreateACLsResponse()
	resp.SetVersion(r.version)
	for range r.msg.(*kmsg.CreateACLsRequest).Creations {
		x := kmsg.NewCreateACLsResponseResult()
		x.ErrorCode, x.ErrorMessage = noAuthorizer().fail(r)
		resp.Results = append(resp.Results, x)
	}
	return reply{msg: resp}, nil
}

func deleteACLs(_ context.Context, r *request) (reply, error) {
	resp := kmsg.NewPtrDeleteACLsResponse()
	resp.SetVersion(r.version)
	for range r.msg.(*kmsg.DeleteACLsRequest).Filters {
		x := kmsg.NewDeleteACLsResponseResult()
		x.ErrorCode, x.ErrorMessage = noAuthorizer().fail(r)
		resp.Results = append(resp.Results, x)
	}
	return reply{msg: resp}, nil
}
