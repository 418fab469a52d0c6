package group

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/skeinio/skein/metadata"
)

// Versions of the encodings of a group's and a member's data. A test keeps golden bytes of each.
const (
	groupVersion  = 1
	memberVersion = 1
)

// Decode makes a group of its rows.
func Decode(rows *metadata.GroupRows) (*Group, error) {
	row := &rows.Group
	g := New(row.ID)
	g.Version, g.Kind, g.Since, g.ProtocolType, g.Contacts = row.Version, row.Kind, row.Since, row.ProtocolType, rows.Contacts
	if len(row.Data) > 0 {
		if err := g.decode(row.Data); err != nil {
			return nil, fmt.Errorf("group %q: %w", row.ID, err)
		}
	}
	for i := range rows.Members {
		m, err := DecodeMember(&rows.Members[i])
		if err != nil {
			return nil, fmt.Errorf("group %q: %w", row.ID, err)
		}
		g.Members[m.ID] = m
	}
	return g, nil
}

// DecodeMember makes a member of its row.
func DecodeMember(row *metadata.MemberRow) (*Member, error) {
	m := &Member{ID: row.ID, Instance: row.Instance, Session: row.Session, Heard: row.Heard, HeardBy: row.HeardBy}
	if err := m.decode(row.Data); err != nil {
		return nil, fmt.Errorf("member %q: %w", row.ID, err)
	}
	return m, nil
}

// Save says what of the group differs from the rows that it was made of; nil for nothing.
func (g *Group) Save(e Event, rows *metadata.GroupRows) *metadata.GroupSave {
	s := &metadata.GroupSave{Group: metadata.GroupRow{
		ID: g.ID, Kind: g.Kind, State: g.Shown().String(), ProtocolType: g.ProtocolType, Data: g.encode(), Since: g.Since,
	}}
	s.Group.Due, s.Group.Timer = g.due(e)
	old := map[metadata.MemberID]*metadata.MemberRow{}
	for i := range rows.Members {
		m := &rows.Members[i]
		if old[m.ID] = m; g.Members[m.ID] == nil {
			s.Drop = append(s.Drop, m.ID)
		}
	}
	for _, m := range g.Sorted() {
		row := metadata.MemberRow{
			ID: m.ID, Instance: m.Instance, Data: m.encode(), Session: m.Session, Heard: m.Heard, HeardBy: m.HeardBy,
		}
		if was := old[m.ID]; was == nil || was.Instance != row.Instance || was.Session != row.Session || !bytes.Equal(was.Data, row.Data) {
			s.Save = append(s.Save, row)
		}
	}
	was := &rows.Group
	if len(s.Save)+len(s.Drop) == 0 && was.Version != 0 && was.Kind == s.Group.Kind && was.State == s.Group.State &&
		was.ProtocolType == s.Group.ProtocolType && was.Since == s.Group.Since && bytes.Equal(was.Data, s.Group.Data) {
		if was.Due == s.Group.Due && was.Timer == s.Group.Timer {
			return nil
		}
		s.Quiet = true
	}
	if was.Version == 0 && len(g.Members)+len(g.Pending) == 0 {
		return nil // nothing came of it
	}
	return s
}

// encode writes the group's own data: version, then fields in order.
func (g *Group) encode() []byte {
	w := writer{groupVersion}
	w.uint(uint64(g.State))
	w.int(int64(g.Generation))
	w.str(g.Protocol)
	w.str(string(g.Leader))
	w.int(int64(g.JoinDeadline))
	w.bool(g.Initial)
	w.int(int64(g.Remaining))
	w.bool(g.NewMember)
	w.int(int64(g.SyncDeadline))
	w.uint(uint64(len(g.Pending)))
	for _, id := range slices.Sorted(maps.Keys(g.Pending)) {
		w.str(string(id))
		w.int(int64(g.Pending[id]))
	}
	c := g.Consumer
	w.bool(c != nil)
	if c == nil {
		return w
	}
	w.int(int64(c.Epoch))
	w.int(int64(c.TargetEpoch))
	w.uint(uint64(len(c.Topics)))
	for _, name := range slices.Sorted(maps.Keys(c.Topics)) {
		t := c.Topics[name]
		w.str(name)
		w = append(w, t.ID[:]...)
		w.int(int64(t.Partitions))
	}
	return w
}

func (g *Group) decode(b []byte) error {
	r := reader{b: b}
	r.version(groupVersion)
	g.State = State(r.uint())
	g.Generation = int32(r.int())
	g.Protocol = r.str()
	g.Leader = metadata.MemberID(r.str())
	g.JoinDeadline = metadata.Millis(r.int())
	g.Initial = r.bool()
	g.Remaining = time.Duration(r.int())
	g.NewMember = r.bool()
	g.SyncDeadline = metadata.Millis(r.int())
	for range r.count() {
		id := metadata.MemberID(r.str())
		g.Pending[id] = metadata.Millis(r.int())
	}
	if r.bool() {
		c := &Consumer{Epoch: int32(r.int()), TargetEpoch: int32(r.int()), Topics: map[string]Topic{}}
		for range r.count() {
			name := r.str()
			c.Topics[name] = Topic{ID: r.topic(), Partitions: int32(r.int())}
		}
		g.Consumer = c
	}
	return r.end()
}

func (m *Member) encode() []byte {
	w := writer{memberVersion}
	w.str(m.ClientID)
	w.str(m.ClientHost)
	w.int(int64(m.Rebalance))
	w.uint(uint64(len(m.Protocols)))
	for _, p := range m.Protocols {
		w.str(p.Name)
		w.str(string(p.Metadata))
	}
	w.str(string(m.Assignment))
	w.bool(m.Joined)
	w.bool(m.Synced)
	c := m.Consumer
	w.bool(c != nil)
	if c == nil {
		return w
	}
	w.int(int64(c.Epoch))
	w.int(int64(c.PrevEpoch))
	w.uint(uint64(c.State))
	w.uint(uint64(len(c.Topics)))
	for _, t := range c.Topics {
		w.str(t)
	}
	w.str(c.Regex)
	w.str(c.Rack)
	w.str(c.Assignor)
	w.assignment(c.Assigned)
	w.assignment(c.Revoking)
	w.assignment(c.Target)
	w.int(int64(c.RevokeDeadline))
	w.int(int64(c.JoinDeadline))
	w.bool(c.Classic)
	w.bool(c.Away)
	return w
}

func (m *Member) decode(b []byte) error {
	r := reader{b: b}
	r.version(memberVersion)
	m.ClientID, m.ClientHost = r.str(), r.str()
	m.Rebalance = time.Duration(r.int())
	for range r.count() {
		m.Protocols = append(m.Protocols, Protocol{Name: r.str(), Metadata: []byte(r.str())})
	}
	m.Assignment = []byte(r.str())
	m.Joined, m.Synced = r.bool(), r.bool()
	if r.bool() {
		c := &ConsumerMember{Epoch: int32(r.int()), PrevEpoch: int32(r.int()), State: MemberState(r.uint())}
		for range r.count() {
			c.Topics = append(c.Topics, r.str())
		}
		c.Regex, c.Rack, c.Assignor = r.str(), r.str(), r.str()
		c.Assigned, c.Revoking, c.Target = r.assignment(), r.assignment(), r.assignment()
		c.RevokeDeadline, c.JoinDeadline = metadata.Millis(r.int()), metadata.Millis(r.int())
		c.Classic, c.Away = r.bool(), r.bool()
		m.Consumer = c
	}
	return r.end()
}

// writer appends fields: integers as varints, strings with their length before them.
type writer []byte

func (w *writer) uint(v uint64) { *w = binary.AppendUvarint(*w, v) }
func (w *writer) int(v int64)   { *w = binary.AppendVarint(*w, v) }

func (w *writer) str(s string) {
	w.uint(uint64(len(s)))
	*w = append(*w, s...)
}

func (w *writer) bool(v bool) {
	b := byte(0)
	if v {
		b = 1
	}
	*w = append(*w, b)
}

func (w *writer) assignment(a Assignment) {
	w.uint(uint64(len(a)))
	for _, id := range a.topics() {
		*w = append(*w, id[:]...)
		w.uint(uint64(len(a[id])))
		before := int32(-1) // ascending, so that differences are small
		for _, p := range a[id] {
			w.uint(uint64(p - before))
			before = p
		}
	}
}

// reader reads what writer wrote. After the first fault it gives zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad, r.b = true, nil
}

func (r *reader) version(want byte) {
	if len(r.b) == 0 || r.b[0] != want {
		r.fail()
		return
	}
	r.b = r.b[1:]
}

func (r *reader) end() error {
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%w: data of a group", metadata.ErrCorrupt)
	}
	return nil
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads the length of a list, whose elements take at least a byte each.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail()
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string { return string(r.bytes(r.count())) }

func (r *reader) bool() bool { return r.bytes(1)[0] != 0 }

func (r *reader) topic() metadata.TopicID { return metadata.TopicID(r.bytes(len(metadata.TopicID{}))) }

func (r *reader) assignment() Assignment {
	a := Assignment{}
	for range r.count() {
		id := r.topic()
		before := int32(-1)
		for range r.count() {
			before += int32(r.uint())
			a[id] = append(a[id], before)
		}
	}
	return a
}
