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
	note        string // for docs/PROTOCOL.md: how the API differs from Kafka's
}

// serves says whether version is served.
func (a *api) serves(version int16) bool {
	return version >= max(a.min, a.refuseBelow) && version <= a.max
}

// apis is the table, by key. Add a line when its handler is there, and its request's schema in schemas.go, not before:
// what stands here is advertised.
func (s *Server) apis() []api {
	table := []api{}
	slices.SortFunc(table, func(a, b api) int { return int(a.key - b.key) })
	return table
}
