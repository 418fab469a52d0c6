package group

import (
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Committer is who commits offsets.
type Committer struct {
	Member     metadata.MemberID
	Instance   string
	Generation int32 // or member epoch; -1: not a member
	// Transactional commits check a generation of -1 only against what else is given.
	Transactional bool
}

// anonymous says whether a transaction's commit names no member at all: then there is none to check.
func (c Committer) anonymous() bool { return c.Transactional && c.Member == "" && c.Instance == "" }

// CheckCommit says whether a member may commit, from the group's row and those of the member and of its instance's holder.
func CheckCommit(row *metadata.GroupRow, members []metadata.MemberRow, c Committer) (Code, error) {
	if row.Version == 0 {
		// Only who commits without being a member makes a group.
		if c.Generation < 0 {
			return None, nil
		}
		return GroupIDNotFound, nil
	}
	g, err := Decode(&metadata.GroupRows{Group: *row, Members: members})
	if err != nil {
		return None, err
	}
	empty := g.Kind == metadata.GroupSimple || row.State == Empty.String()
	if g.Kind == metadata.GroupConsumer {
		return g.checkConsumer(c, empty), nil
	}
	return g.checkClassic(c, empty), nil
}

func (g *Group) checkClassic(c Committer, empty bool) Code {
	if c.Generation < 0 && empty {
		return None
	}
	if c.Generation >= 0 || c.Member != "" || c.Instance != "" {
		if _, code := g.current(c.Member, c.Instance); code != None {
			return code
		}
		if c.Generation != g.Generation {
			return IllegalGeneration
		}
	} else if !c.Transactional {
		// Only members commit to a group that has members.
		return UnknownMemberID
	}
	if g.State == Completing && !c.Transactional {
		return RebalanceInProgress
	}
	return None
}

func (g *Group) checkConsumer(c Committer, empty bool) Code {
	if c.Generation < 0 && (empty || c.anonymous()) {
		return None
	}
	m := g.Members[c.Member]
	if m == nil || m.Consumer == nil {
		return UnknownMemberID
	}
	switch {
	case c.Instance != "" && m.Instance != c.Instance:
		return FencedInstanceID
	case c.Generation == m.Consumer.Epoch:
		return None
	case m.Consumer.Classic:
		return IllegalGeneration
	}
	return StaleMemberEpoch
}

// Shown is the group's state as listings and descriptions show it.
func (g *Group) Shown() State {
	if g.Kind != metadata.GroupConsumer || g.Consumer == nil {
		return g.State
	}
	c := g.Consumer
	switch {
	case len(g.Members) == 0:
		return Empty
	case c.Epoch > c.TargetEpoch:
		return Assigning
	}
	for _, m := range g.Members {
		if m.Consumer.State != MemberStable || m.Consumer.Epoch != c.TargetEpoch {
			return Reconciling
		}
	}
	return Stable
}

// Subscribed gives the topics that the group's members subscribe to; ok is false when that cannot be told, as for other
// protocol types than consumers'.
func (g *Group) Subscribed() (topics map[string]bool, ok bool) {
	topics = map[string]bool{}
	if g.Kind == metadata.GroupConsumer {
		for name := range g.Consumer.Topics {
			topics[name] = true
		}
		for _, m := range g.Members {
			for _, t := range m.Consumer.Topics {
				topics[t] = true
			}
		}
		return topics, true
	}
	if len(g.Members) == 0 {
		return topics, true
	}
	if g.ProtocolType != ConsumerProtocol {
		return nil, false
	}
	for _, m := range g.Members {
		for _, p := range m.Protocols {
			s, err := ParseSubscription(p.Metadata)
			if err != nil {
				return nil, false
			}
			for _, t := range s.Topics {
				topics[t] = true
			}
		}
	}
	return topics, true
}

// Delete says whether a group may be deleted.
func (g *Group) Delete() Code {
	switch {
	case !g.Exists():
		return GroupIDNotFound
	case len(g.Members) > 0 || g.State != Empty:
		return NonEmptyGroup
	}
	return None
}

// ExpiredOffsets gives the offsets whose retention is over, and whether the group can go with them: Kafka's rules. The
// offsets of an empty group expire together, from when it became empty; those of a group that never had members from their
// commits; those of a living group only for topics that it no longer subscribes to. name gives a topic's name, "" for
// one that is gone.
func (g *Group) ExpiredOffsets(e Event, offsets []metadata.GroupOffset, name func(metadata.TopicID) string) (gone []metadata.TopicPartition, whole bool) {
	retention := e.Settings.OffsetRetention
	subscribed, known := g.Subscribed()
	empty := len(g.Members) == 0
	for _, o := range offsets {
		from := o.Committed
		switch {
		case o.Expires != 0:
			if o.Expires <= e.Now && (empty || known && !subscribed[name(o.Topic)]) {
				gone = append(gone, o.TopicPartition)
			}
			continue
		case g.Kind == metadata.GroupSimple:
		case empty:
			from = max(from, g.Since)
		case !known || subscribed[name(o.Topic)]:
			continue
		}
		if from.Add(retention) <= e.Now {
			gone = append(gone, o.TopicPartition)
		}
	}
	return gone, empty && len(g.Pending) == 0 && g.State == Empty && len(gone) == len(offsets) &&
		g.Since.Add(min(retention, emptyGroupKept)) <= e.Now
}

// emptyGroupKept is how long an empty group without offsets is kept.
const emptyGroupKept = offsetsCheck

// Subscription is what a consumer puts into its protocol metadata (ConsumerProtocolSubscription, versions 0 to 3).
type Subscription struct {
	Topics  []string
	Owned   map[string][]int32 // version 1 and up
	Version int16
}

// ParseSubscription reads a consumer's metadata.
func ParseSubscription(b []byte) (s Subscription, err error) {
	r := wire{b: b}
	s.Version = r.int16()
	for range r.count() {
		s.Topics = append(s.Topics, r.str())
	}
	r.skipBytes() // user data
	if s.Version >= 1 && !r.bad {
		s.Owned = map[string][]int32{}
		for range r.count() {
			name := r.str()
			for range r.count() {
				s.Owned[name] = append(s.Owned[name], r.int32())
			}
		}
	}
	slices.Sort(s.Topics)
	s.Topics = slices.Compact(s.Topics)
	return s, r.err()
}

// CheckFetch says whether a member of a consumer group may read offsets (OffsetFetch version 9 and up).
func (g *Group) CheckFetch(id metadata.MemberID, epoch int32) Code {
	if g.Kind != metadata.GroupConsumer {
		return None
	}
	m := g.Members[id]
	switch {
	case m == nil:
		return UnknownMemberID
	case m.Consumer.Epoch != epoch:
		return StaleMemberEpoch
	}
	return None
}
