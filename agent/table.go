package agent

import (
	"slices"
)

// api is a line of the table: which versions of which API this server speaks, and who serves them. ApiVersions and
// docs/PROTOCOL.md are both made from it, so that what is advertised is what is there.
type api struct {
	key      int16
	name     string
	min, max int16 // as advertised
	// refuseBelow, where above min, is the first version that is served: lower ones close the connection though they are
	// advertised.
	refuseBelow int16
	handle      handler
	begin       pipelined // instead of handle
	schema      *schema   // of the request; nil where begin decodes it
	note        string    // for docs/PROTOCOL.md: how the API differs from Kafka's
}

// serves says whether version is served.
func (a *api) serves(version int16) bool {
	return version >= max(a.min, a.refuseBelow) && version <= a.max
}

// flexible says whether version is a flexible one (KIP-482).
func (a *api) flexible(version int16) bool {
	if a.schema == nil {
		return version >= produceFlexible
	}
	return version >= a.schema.flexible
}

// apis is the table, by key. Add a line when its handler is there, and its request's schema in schemas.go, not before:
// what stands here is advertised.
func (s *Server) apis() []api {
	table := []api{
		{key: keyProduce, name: "Produce", min: 0, max: 13, refuseBelow: 3, begin: s.beginProduce, note: "0–2 are advertised for " +
			"librdkafka before 2.6 (KAFKA-18659) and close the connection; acks 1 is served as -1."},
		{key: 3, name: "Metadata", min: 0, max: 13, handle: s.metadata, note: "Topology virtual shows one broker, direct every " +
			"agent, a partition's replicas being one agent of each zone and its leader that of the client's zone (client.id with zone=…); " +
			"leader epoch 0, in-sync replicas = replicas; a topic created on the way is there at once."},
		{key: 10, name: "FindCoordinator", min: 0, max: 6, handle: s.findCoordinator, note: "Topology virtual: the one broker; direct: an agent " +
			"by hashing, though any serves; share groups get INVALID_REQUEST."},
		{key: keyApiVersions, name: "ApiVersions", min: 0, max: 4, handle: s.apiVersions},
		{key: 22, name: "InitProducerId", min: 0, max: 5, handle: s.initProducerID},
		{key: 1, name: "Fetch", min: 4, max: 18, handle: s.fetch, note: "No fetch sessions (KIP-227): the session id is always 0, " +
			"a request that refers to a session gets FETCH_SESSION_ID_NOT_FOUND. At most 55 MiB a response."},
		{key: 2, name: "ListOffsets", min: 1, max: 11, handle: s.listOffsets, note: "Always asks the database. No tiered storage " +
			"in Kafka's sense: -4 is the log's start, -5 and -6 answer -1."},
		{key: 23, name: "OffsetForLeaderEpoch", min: 2, max: 4, handle: s.offsetForLeaderEpoch, note: "The leader epoch is 0 for " +
			"ever; epoch 0 ends at the high watermark."},
	}
	table = append(table, s.adminAPIs()...)
	table = append(table, s.clusterAPIs()...)
	table = append(table, aclAPIs()...)
	table = append(table, s.groupAPIs()...)
	table = append(table, s.txnAPIs()...)
	slices.SortFunc(table, func(a, b api) int { return int(a.key - b.key) })
	return table
}
