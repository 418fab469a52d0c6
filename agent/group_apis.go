package agent

import (
	"context"
	"errors"
	"math"
	"net"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// Kafka's error codes that only groups answer; the rules' own are in package group.
const (
	codeOffsetMetadataTooLarge  int16 = 12
	codeCoordinatorNotAvailable int16 = 15
	codeNotCoordinator          int16 = 16
	codeInvalidGroupID          int16 = 24
	codeUnknownMemberID         int16 = 25
)

// groupVersion is the level of the feature group.version: KIP-848 is served.
const groupVersion int16 = 1

// neverFlexible is for requests that have no flexible version.
const neverFlexible int16 = math.MaxInt16

// maxClientIDInMember bounds what of a client id goes into a member id, in bytes.
const maxClientIDInMember = 200

// groupAPIs are the lines of the table of consumer groups.
func (s *Server) groupAPIs() []api {
	const ids = "Group and member ids are at most 1,024 bytes of UTF-8 without NUL. "
	return []api{
		{key: 8, name: "OffsetCommit", min: 2, max: 10, handle: s.offsetCommit},
		{key: 9, name: "OffsetFetch", min: 1, max: 10, handle: s.offsetFetch},
		{key: 11, name: "JoinGroup", min: 0, max: 9, handle: s.joinGroup, note: ids},
		{key: 12, name: "Heartbeat", min: 0, max: 4, handle: s.heartbeat},
		{key: 13, name: "LeaveGroup", min: 0, max: 5, handle: s.leaveGroup},
		{key: 14, name: "SyncGroup", min: 0, max: 5, handle: s.syncGroup},
		{key: 15, name: "DescribeGroups", min: 0, max: 6, handle: s.describeGroups},
		{key: 16, name: "ListGroups", min: 0, max: 5, handle: s.listGroups},
		{key: 42, name: "DeleteGroups", min: 0, max: 2, handle: s.deleteGroups},
		{key: 68, name: "ConsumerGroupHeartbeat", min: 0, max: 1, handle: s.consumerGroupHeartbeat},
		{key: 69, name: "ConsumerGroupDescribe", min: 0, max: 1, handle: s.consumerGroupDescribe},
		{key: 47, name: "OffsetDelete", min: 0, max: 0, handle: s.offsetDelete},
	}
}

// validGroupID says whether an id can be a group's.
func validGroupID(id string) bool {
	return id != "" && storable(id, metadata.MaxGroupIDBytes)
}

// storable says whether a text can be kept in the database as a key.
func storable(s string, limit int) bool {
	return len(s) <= limit && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// newMemberID makes a member's id, as Kafka does of the client's id or the instance's.
func newMemberID(clientID, instance string) metadata.MemberID {
	name := clientID
	if instance != "" {
		name = instance
	}
	name = strings.ReplaceAll(strings.ToValidUTF8(name, "?"), "\x00", "?")
	for len(name) > maxClientIDInMember {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return metadata.MemberID(name + "-" + uuid.NewString())
}

// clientHost gives a client's address as Kafka shows it.
func clientHost(r *request) string {
	if r.conn.remote == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(r.conn.remote.String())
	if err != nil {
		return "/" + r.conn.remote.String()
	}
	return "/" + host
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// groupCode gives the code of an error of the groups' rows: clients look for another coordinator and try again. ok is false
// when the connection has ended.
func (s *Server) groupCode(ctx context.Context, what string, err error) (code int16, ok bool) {
	var refused *groupRefusal
	switch {
	case err == nil:
		return codeNone, true
	case ctx.Err() != nil:
		return 0, false
	case errors.As(err, &refused):
		return refused.code, true
	case errors.Is(err, errGroupDraining):
		return codeNotCoordinator, true
	case errors.Is(err, metadata.ErrCorrupt):
		s.log.Error(what+" failed", "error", err)
		return codeUnknownServerError, true
	}
	s.log.Warn(what+" failed", "error", err)
	return codeCoordinatorNotAvailable, true
}

// groupRefusal is a code that a check under the group's lock gives.
type groupRefusal struct{ code int16 }

func (e *groupRefusal) Error() string { return codeName(e.code) }

// refuse gives a code of the rules as an error, nil for none.
func refuse(code group.Code) error {
	if code == group.None {
		return nil
	}
	return &groupRefusal{code: int16(code)}
}

func newGroupMetrics(reg prometheus.Registerer) *groupMetrics {
	f := promauto.With(reg)
	return &groupMetrics{
		rebalances: f.NewCounter(prometheus.CounterOpts{
			Name: "skein_group_rebalances_total", Help: "Rebalances of consumer groups that this agent began.",
		}),
		expired: f.NewCounter(prometheus.CounterOpts{
			Name: "skein_group_members_expired_total", Help: "Members that this agent removed because their time was over.",
		}),
		heartbeats: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_group_heartbeats_total", Help: "Heartbeats answered, from memory or after asking the database.",
		}, []string{"from"}),
		changes: f.NewCounter(prometheus.CounterOpts{
			Name: "skein_group_changes_total", Help: "Transactions that changed a group, or tried to.",
		}),
		events: f.NewCounter(prometheus.CounterOpts{
			Name: "skein_group_events_total", Help: "Events of groups that those transactions applied.",
		}),
	}
}
