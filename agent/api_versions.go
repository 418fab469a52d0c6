package agent

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// ApiVersions, key 18, versions 0 to 4. The response header is version 0 always (write.go). A version that is not known
// is answered in version 0, with error 35 and this API's own range, whatever its body says.

const (
	// apiVersionsClient is the first version in which the client names its software (KIP-511).
	apiVersionsClient int16 = 3
	// apiVersionsZeroFeatures is the first version that may list supported features whose minimum is 0 (KAFKA-17492).
	apiVersionsZeroFeatures int16 = 4
	// featuresEpoch is the epoch of the finalized features: Java reads them again only when it rises, and ignores them
	// below 0.
	featuresEpoch int64 = 0
)

// feature is a cluster-wide feature (KIP-584): level is what is finalized, 0 for off. All agents must agree.
type feature struct {
	name            string
	min, max, level int16
}

// features are what clients find out about the cluster beside the versions of APIs. transaction.version 2 is what lets
// clients use KIP-890; group.version 1 goes with KIP-848.
func (s *Server) features() []feature {
	return []feature{
		{name: "group.version", min: 0, max: groupVersion, level: groupVersion},
		{name: "transaction.version", min: 0, max: transactionVersion, level: transactionVersion},
	}
}

func (s *Server) apiVersions(_ context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ApiVersionsRequest)
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(r.version)
	if r.version >= apiVersionsClient && !(validSoftware(req.ClientSoftwareName) && validSoftware(req.ClientSoftwareVersion)) {
		resp.ErrorCode = r.note(codeInvalidRequest)
		return reply{msg: resp}, nil
	}
	for _, a := range s.table {
		resp.ApiKeys = append(resp.ApiKeys, a.versionRange())
	}
	slices.SortFunc(resp.ApiKeys, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey - b.ApiKey) })
	if r.version >= apiVersionsClient {
		addFeatures(resp, s.features())
	}
	return reply{msg: resp}, nil
}

func (a *api) versionRange() kmsg.ApiVersionsResponseApiKey {
	k := kmsg.NewApiVersionsResponseApiKey()
	k.ApiKey, k.MinVersion, k.MaxVersion = a.key, a.min, a.max
	return k
}

func addFeatures(resp *kmsg.ApiVersionsResponse, features []feature) {
	resp.FinalizedFeaturesEpoch = featuresEpoch
	for _, f := range features {
		if f.min > 0 || resp.Version >= apiVersionsZeroFeatures {
			x := kmsg.NewApiVersionsResponseSupportedFeature()
			x.Name, x.MinVersion, x.MaxVersion = f.name, f.min, f.max
			resp.SupportedFeatures = append(resp.SupportedFeatures, x)
		}
		if f.level > 0 {
			x := kmsg.NewApiVersionsResponseFinalizedFeature()
			x.Name, x.MinVersionLevel, x.MaxVersionLevel = f.name, f.level, f.level
			resp.FinalizedFeatures = append(resp.FinalizedFeatures, x)
		}
	}
}

// unsupportedApiVersions answers a version that is not known.
func unsupportedApiVersions(a *api) reply {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(0)
	resp.ErrorCode = codeUnsupportedVersion
	resp.ApiKeys = []kmsg.ApiVersionsResponseApiKey{a.versionRange()}
	return reply{msg: resp}
}

// validSoftware says whether s matches [a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?.
func validSoftware(s string) bool {
	if s == "" || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if b := s[i]; !isAlphanumeric(b) && b != '-' && b != '.' {
			return false
		}
	}
	return true
}
