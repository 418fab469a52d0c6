package metadata

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// GroupID names a consumer group, or a group of any other kind of members.
type GroupID string

// MemberID names a member of a group.
type MemberID string

// AgentID names one run of an agent: a process that starts again has another.
type AgentID [16]byte

// NewAgentID makes a random agent id.
func NewAgentID() AgentID { return AgentID(uuid.New()) }

func (id AgentID) String() string { return uuid.UUID(id).String() }

// GroupKind is the protocol that a group's members speak.
type GroupKind int16

// Kinds of groups. The numbers are in the database.
const (
	GroupSimple   GroupKind = 0 // no members ever: offsets only
	GroupClassic  GroupKind = 1
	GroupConsumer GroupKind = 2 // KIP-848
)

// Bounds of groups. Keys of an index in Postgres must stay below 2,700 bytes: a group's and a member's id together do.
const (
	MaxGroupIDBytes  = 1024
	MaxMemberIDBytes = 1024
)

// Times of the members' expiry, in the database's clock.
const (
	// ContactGap: an agent whose write-backs were further apart than this was out of reach of the database meanwhile, and
	// that time counts for nobody's expiry.
	ContactGap = 5 * time.Second
	// ContactLost: an agent that has not written back for so long is dead, for the members that it heard.
	ContactLost = 10 * time.Second
)

// GroupRow is a group's row. What Data holds is the group machine's matter.
type GroupRow struct {
	ID           GroupID
	Version      int64 // raised by every change of the group or a member; 0: there is no such group
	Kind         GroupKind
	State        string // for listings
	ProtocolType string // for listings
	Data         []byte
	Since        Millis // when it came into State
	// Due is when the group is to be looked at again, at the latest; Timer is what of it does not come from the members'
	// sessions. 0: never.
	Due, Timer Millis
}

// MemberRow is a member's row.
type MemberRow struct {
	ID       MemberID
	Instance string // group.instance.id, "" for none
	Data     []byte
	Session  time.Duration
	Heard    Millis // last heard of, as written back
	HeardBy  AgentID
}

// Contact says since when an agent has been in touch with the database without a gap, and its last write-back.
type Contact struct{ Since, Seen Millis }

// GroupRows is all of a group.
type GroupRows struct {
	Group    GroupRow
	Members  []MemberRow // by id
	Contacts map[AgentID]Contact
}

// GroupSave is what a change of a group writes.
type GroupSave struct {
	Group GroupRow // Version is set by the driver
	Save  []MemberRow
	Drop  []MemberID
	// Quiet: only Due and Timer are written, and the version stays.
	Quiet bool
	// Delete removes the group with its members and offsets.
	Delete bool
}

// GroupVersion is a group as of a version; 0: it is gone.
type GroupVersion struct {
	ID      GroupID
	Version int64
}

// TopicPartition names a partition by its topic's id.
type TopicPartition struct {
	Topic     TopicID
	Partition int32
}

// GroupOffset is a committed offset.
type GroupOffset struct {
	TopicPartition
	Offset      Offset
	LeaderEpoch int32  // -1: none
	Metadata    []byte // any bytes
	Committed   Millis
	Expires     Millis // 0: by the group's rules
}

// OffsetCommit commits offsets of one group. Check is called with the group's row, locked FOR SHARE (its Version is 0 when
// there is none), and the rows of Member and of whoever holds Instance; its error is the commit's. A group that is not there
// is made.
type OffsetCommit struct {
	Group    GroupID
	Member   MemberID
	Instance string
	Check    func(now Millis, group *GroupRow, members []MemberRow) error
	Offsets  []GroupOffset // Committed is filled in
}

// OffsetQuery asks for the offsets of a group: of all topics, or of these partitions.
type OffsetQuery struct {
	Group      GroupID
	All        bool
	Partitions []TopicPartition
}

// Heard is what a write-back says of one member.
type Heard struct {
	Group  GroupID
	Member MemberID
	At     Millis
}

// WriteBack says which members an agent heard of since its last one.
type WriteBack struct {
	Agent   AgentID
	Heard   []Heard
	Confirm []GroupID // whose versions are asked for
}

// WrittenBack is the answer: the versions of the groups that are there, as of Now.
type WrittenBack struct {
	Now      Millis
	Versions map[GroupID]int64
}

// GroupDriver loads and saves groups' rows. It is part of Driver. Locks: the group, then its members, then offsets.
type GroupDriver interface {
	// ChangeGroup runs one transaction: lock the group's row (a new one, of version 0, when there is none), load it all,
	// call fn, save what it returns with the version raised. A nil save, like an error, leaves everything as it was. It
	// gives the version afterwards, 0 when the group is gone.
	ChangeGroup(ctx context.Context, id GroupID, fn func(now Millis, rows *GroupRows) (*GroupSave, error)) (int64, error)

	// LoadGroups gives groups in one statement's view, in the order asked for; one that is not there has Version 0.
	LoadGroups(ctx context.Context, ids []GroupID) (Millis, []GroupRows, error)

	// GroupVersions gives the versions of those groups that are there.
	GroupVersions(ctx context.Context, ids []GroupID) (map[GroupID]int64, error)

	// ListGroups gives up to limit groups' rows without Data, by id, after the given one.
	ListGroups(ctx context.Context, after GroupID, limit int) ([]GroupRow, error)

	// WriteBack notes whom an agent heard of, never backwards, and that it is in touch.
	WriteBack(ctx context.Context, w WriteBack) (*WrittenBack, error)

	// SweepGroups gives up to limit groups that are due. Those whose members were all heard of since are put off instead.
	SweepGroups(ctx context.Context, limit int) ([]GroupID, error)

	// ForgetAgents removes contacts of agents that were last in touch before the given time.
	ForgetAgents(ctx context.Context, before Millis) error

	CommitOffsets(ctx context.Context, c OffsetCommit) error

	// LoadOffsets gives, for each query, the group's offsets by topic id and partition, all in one view.
	LoadOffsets(ctx context.Context, queries []OffsetQuery) ([][]GroupOffset, error)

	// DeleteOffsets removes offsets under the group's lock; check, where not nil, is as ChangeGroup's fn. committedBefore,
	// where not 0, leaves offsets that were committed since.
	DeleteOffsets(ctx context.Context, id GroupID, partitions []TopicPartition, committedBefore Millis,
		check func(now Millis, rows *GroupRows) error) error

	// OldOffsets gives up to limit groups after the given id, and of these which have an offset committed before the given
	// time or none at all; next is "" when there are no more groups.
	OldOffsets(ctx context.Context, before Millis, after GroupID, limit int) (old []GroupID, next GroupID, err error)

	// LoadSettings gives the cluster-wide settings of brokers, ChangeSettings changes some, one change at a time.
	LoadSettings(ctx context.Context) (map[string]string, error)
	ChangeSettings(ctx context.Context, decide SettingsFunc) error
}

// ErrNoGroup: there is no such group.
var ErrNoGroup = errors.New("unknown group")

// OnGroups sets who is told that groups may have moved at another agent: its function must not block.
func (s *Store) OnGroups(fn func(groups []GroupVersion, all bool)) { s.onGroups.Store(&fn) }

// groupsMoved tells of an event's groups.
func (s *Store) groupsMoved(e Event) {
	if fn := s.onGroups.Load(); fn != nil && (len(e.Groups) > 0 || e.AllGroups || e.All) {
		(*fn)(e.Groups, e.AllGroups || e.All)
	}
}

// ChangeGroup applies a pure function to a group under its lock, saves what it says and wakes who waits for the group. fn
// may be called more than once, each time with rows loaded anew. It gives the group's version afterwards.
func (s *Store) ChangeGroup(
	ctx context.Context, id GroupID, fn func(now Millis, rows *GroupRows) (*GroupSave, error),
) (version int64, err error) {
	loud := false
	version, err = s.driver.ChangeGroup(ctx, id, func(now Millis, rows *GroupRows) (*GroupSave, error) {
		s.clock.saw(now)
		save, err := fn(now, rows)
		loud = err == nil && save != nil && !save.Quiet
		return save, err
	})
	if errors.Is(err, ErrUnknownOutcome) {
		s.tellGroup(GroupVersion{ID: id, Version: version})
	}
	if err != nil {
		return 0, fmt.Errorf("change group %q: %w", id, err)
	}
	if loud {
		s.tellGroup(GroupVersion{ID: id, Version: version})
	}
	return version, nil
}

// tellGroup tells all other agents. Who called knows.
func (s *Store) tellGroup(v GroupVersion) { s.pending.add(Event{Groups: []GroupVersion{v}}) }

// LoadGroups gives groups as they are now.
func (s *Store) LoadGroups(ctx context.Context, ids ...GroupID) (Millis, []GroupRows, error) {
	now, rows, err := s.driver.LoadGroups(ctx, ids)
	if err != nil {
		return 0, nil, fmt.Errorf("load %d groups: %w", len(ids), err)
	}
	s.clock.saw(now)
	return now, rows, nil
}

// GroupVersions gives the versions of those groups that are there.
func (s *Store) GroupVersions(ctx context.Context, ids []GroupID) (map[GroupID]int64, error) {
	return s.driver.GroupVersions(ctx, ids)
}

// ListGroups gives a page of groups by id.
func (s *Store) ListGroups(ctx context.Context, after GroupID, limit int) ([]GroupRow, error) {
	return s.driver.ListGroups(ctx, after, limit)
}

// WriteBack notes whom an agent heard of.
func (s *Store) WriteBack(ctx context.Context, w WriteBack) (*WrittenBack, error) {
	done, err := s.driver.WriteBack(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("write back %d members: %w", len(w.Heard), err)
	}
	s.clock.saw(done.Now)
	return done, nil
}

// SweepGroups gives groups that are due.
func (s *Store) SweepGroups(ctx context.Context, limit int) ([]GroupID, error) {
	return s.driver.SweepGroups(ctx, limit)
}

// ForgetAgents removes contacts of agents that are long gone.
func (s *Store) ForgetAgents(ctx context.Context, before Millis) error {
	return s.driver.ForgetAgents(ctx, before)
}

// CommitOffsets commits offsets of a group.
func (s *Store) CommitOffsets(ctx context.Context, c OffsetCommit) error {
	if err := s.driver.CommitOffsets(ctx, c); err != nil {
		return fmt.Errorf("commit %d offsets of group %q: %w", len(c.Offsets), c.Group, err)
	}
	return nil
}

// LoadOffsets gives committed offsets of groups.
func (s *Store) LoadOffsets(ctx context.Context, queries []OffsetQuery) ([][]GroupOffset, error) {
	return s.driver.LoadOffsets(ctx, queries)
}

// DeleteOffsets removes committed offsets of a group.
func (s *Store) DeleteOffsets(ctx context.Context, id GroupID, partitions []TopicPartition, committedBefore Millis,
	check func(now Millis, rows *GroupRows) error,
) error {
	if err := s.driver.DeleteOffsets(ctx, id, partitions, committedBefore, check); err != nil {
		return fmt.Errorf("delete offsets of group %q: %w", id, err)
	}
	return nil
}

// OldOffsets finds groups with old offsets, a page at a time.
func (s *Store) OldOffsets(ctx context.Context, before Millis, after GroupID, limit int) ([]GroupID, GroupID, error) {
	return s.driver.OldOffsets(ctx, before, after, limit)
}

// LoadSettings gives the cluster-wide settings of brokers.
func (s *Store) LoadSettings(ctx context.Context) (map[string]string, error) {
	return s.driver.LoadSettings(ctx)
}

// SettingsMoved stands for the settings among the groups that moved: no group has an empty id.
const SettingsMoved GroupID = ""

// SettingsFunc decides by the settings as they are what is changed: a nil value removes one. It may be called more than
// once.
type SettingsFunc func(settings map[string]string) (changes map[string]*string, err error)

// ChangeSettings changes cluster-wide settings of brokers and tells the other agents. Nobody else changes any between what
// decide is shown and what it says.
func (s *Store) ChangeSettings(ctx context.Context, decide SettingsFunc) error {
	if err := s.driver.ChangeSettings(ctx, decide); err != nil {
		return fmt.Errorf("change settings: %w", err)
	}
	s.tellGroup(GroupVersion{ID: SettingsMoved})
	return nil
}

// NextVersion gives the version after v: never one that a deleted group of the same name had.
func NextVersion(v int64, now Millis) int64 { return max(v+1, int64(now)) }

// Compare orders partitions by topic id and index.
func (p TopicPartition) Compare(q TopicPartition) int {
	return cmp.Or(bytes.Compare(p.Topic[:], q.Topic[:]), cmp.Compare(p.Partition, q.Partition))
}
