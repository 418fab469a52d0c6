package metadatatest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

// RunGroups runs the suite of consumer groups' rows; open makes an empty database.
func RunGroups(t *testing.T, open func(t *testing.T) Database) {
	for _, test := range []struct {
		name string
		run  func(e *env)
	}{
		{"Changes", testGroups},
		{"Concurrent", testGroupsConcurrent},
		{"WakeUps", testGroupWakeUps},
		{"WriteBack", testGroupWriteBack},
		{"Sweep", testGroupSweep},
		{"Offsets", testGroupOffsets},
		{"OffsetsBulk", testGroupOffsetsBulk},
		{"OffsetsLock", testGroupOffsetsLock},
		{"OffsetsOfDeletedTopics", testGroupOffsetsOfDeletedTopics},
		{"OldOffsets", testOldOffsets},
		{"Settings", testSettings},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&env{T: t, db: open(t)})
		})
	}
}

type changeFn = func(metadata.Millis, *metadata.GroupRows) (*metadata.GroupSave, error)

// change applies fn and gives the version.
func (e *env) change(s *metadata.Store, id metadata.GroupID, fn changeFn) int64 {
	e.Helper()
	v, err := s.ChangeGroup(e.Context(), id, fn)
	e.must(err)
	return v
}

// save gives a function that saves s.
func save(s metadata.GroupSave) changeFn {
	return func(metadata.Millis, *metadata.GroupRows) (*metadata.GroupSave, error) { return &s, nil }
}

func (e *env) group(s *metadata.Store, id metadata.GroupID) *metadata.GroupRows {
	e.Helper()
	_, rows, err := s.LoadGroups(e.Context(), id)
	e.must(err)
	return &rows[0]
}

func member(id string, heard metadata.Millis) metadata.MemberRow {
	return metadata.MemberRow{
		ID: metadata.MemberID(id), Instance: "i-" + id, Data: []byte(id + "\x00\xff"), Session: 10 * time.Second, Heard: heard,
		HeardBy: metadata.AgentID{9},
	}
}

func testGroups(e *env) {
	s, other := e.store(), e.store()
	if g := e.group(s, "g"); g.Group.Version != 0 || g.Group.ID != "g" {
		e.Fatalf("a group that is not there: %+v", g)
	}
	// Nothing saved, nothing there.
	e.change(s, "g", func(_ metadata.Millis, rows *metadata.GroupRows) (*metadata.GroupSave, error) {
		if rows.Group.Version != 0 || len(rows.Members) != 0 {
			e.Errorf("a new group: %+v", rows)
		}
		return nil, nil
	})
	wrong := errors.New("wrong")
	if _, err := s.ChangeGroup(e.Context(), "g", func(metadata.Millis, *metadata.GroupRows) (*metadata.GroupSave, error) { return nil, wrong }); !errors.Is(err, wrong) {
		e.Fatalf("error of the function: %v", err)
	}
	if g := e.group(other, "g"); g.Group.Version != 0 {
		e.Fatalf("a change that saved nothing made a group: %+v", g)
	}
	row := metadata.GroupRow{
		Kind: metadata.GroupClassic, State: "Stable", ProtocolType: "consumer", Data: []byte{0, 1, 255}, Since: 17, Due: 20, Timer: 19,
	}
	v1 := e.change(s, "g", save(metadata.GroupSave{Group: row, Save: []metadata.MemberRow{member("b", 5), member("a", 5), member("c", 5)}}))
	row.ID, row.Version = "g", v1
	g := e.group(other, "g")
	if !slices.EqualFunc(g.Members, []metadata.MemberRow{member("a", 5), member("b", 5), member("c", 5)}, equalMember) || !equalGroup(g.Group, row) {
		e.Fatalf("saved: %+v", g)
	}
	// Another change sees it, raises the version and touches what it says only. What was heard does not go back.
	b := member("b", 3)
	b.Data = []byte("new")
	v2 := e.change(other, "g", func(now metadata.Millis, rows *metadata.GroupRows) (*metadata.GroupSave, error) {
		if len(rows.Members) != 3 || rows.Group.Version != v1 || now < 1e12 {
			e.Errorf("loaded at %d: %+v", now, rows)
		}
		return &metadata.GroupSave{Group: row, Save: []metadata.MemberRow{b}, Drop: []metadata.MemberID{"a"}}, nil
	})
	b.Heard = 5
	g = e.group(s, "g")
	if v2 <= v1 || g.Group.Version != v2 || len(g.Members) != 2 || string(g.Members[0].Data) != "new" || g.Members[0].Heard != 5 {
		e.Fatalf("version %d after %d: %+v", v2, v1, g)
	}
	quiet := row
	quiet.Due, quiet.Timer, quiet.State = 99, 0, "not saved"
	if v := e.change(s, "g", save(metadata.GroupSave{Group: quiet, Quiet: true})); v != v2 {
		e.Fatalf("a quiet change gave version %d, want %d", v, v2)
	}
	if g = e.group(s, "g"); g.Group.Due != 99 || g.Group.Timer != 0 || g.Group.State != "Stable" || g.Group.Version != v2 {
		e.Fatalf("after a quiet change: %+v", g)
	}
	for i := range 5 {
		e.change(s, metadata.GroupID(fmt.Sprint("h", i)), save(metadata.GroupSave{Group: row}))
	}
	page, err := s.ListGroups(e.Context(), "g", 3)
	if e.must(err); len(page) != 3 || page[0].ID != "h0" || page[2].ID != "h2" || len(page[0].Data) != 0 || page[0].State != "Stable" {
		e.Fatalf("page: %+v", page)
	}
	versions, err := s.GroupVersions(e.Context(), []metadata.GroupID{"g", "nope"})
	if e.must(err); len(versions) != 1 || versions["g"] != v2 {
		e.Fatalf("versions %v", versions)
	}
	if v := e.change(s, "g", save(metadata.GroupSave{Delete: true})); v != 0 {
		e.Fatalf("deleted: version %d", v)
	}
	if g = e.group(s, "g"); g.Group.Version != 0 || len(g.Members) != 0 {
		e.Fatalf("deleted: %+v", g)
	}
	if v := e.change(s, "g", save(metadata.GroupSave{Group: row})); v < v2 {
		e.Fatalf("made anew with version %d, the one before had %d", v, v2)
	}
	// The longest ids.
	long := metadata.GroupID(strings.Repeat("g", metadata.MaxGroupIDBytes))
	m := member(strings.Repeat("m", metadata.MaxMemberIDBytes), 1)
	e.change(s, long, save(metadata.GroupSave{Group: row, Save: []metadata.MemberRow{m}}))
	if g = e.group(s, long); len(g.Members) != 1 || g.Members[0].ID != m.ID {
		e.Fatal("the longest ids are not kept")
	}
}

func equalMember(a, b metadata.MemberRow) bool {
	return a.ID == b.ID && a.Instance == b.Instance && string(a.Data) == string(b.Data) && a.Session == b.Session && a.Heard == b.Heard && a.HeardBy == b.HeardBy
}

func equalGroup(a, b metadata.GroupRow) bool {
	return a.ID == b.ID && a.Version == b.Version && a.Kind == b.Kind && a.State == b.State && a.ProtocolType == b.ProtocolType &&
		string(a.Data) == string(b.Data) && a.Since == b.Since && a.Due == b.Due && a.Timer == b.Timer
}

// testGroupsConcurrent: changes of one group exclude each other, its making included.
func testGroupsConcurrent(e *env) {
	stores := []*metadata.Store{e.store(), e.store(), e.store()}
	const each = 20
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			for n := range each {
				_, err := s.ChangeGroup(e.Context(), "g", func(_ metadata.Millis, rows *metadata.GroupRows) (*metadata.GroupSave, error) {
					return &metadata.GroupSave{
						Group: metadata.GroupRow{State: "Empty", Data: append(slices.Clone(rows.Group.Data), 1)},
						Save:  []metadata.MemberRow{member(fmt.Sprint(i, "-", n), 1)},
					}, nil
				})
				if err != nil {
					e.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if g := e.group(stores[0], "g"); len(g.Group.Data) != each*len(stores) || len(g.Members) != each*len(stores) {
		e.Fatalf("%d changes, %d members of %d", len(g.Group.Data), len(g.Members), each*len(stores))
	}
}

// testGroupWakeUps: other Stores hear of a change.
func testGroupWakeUps(e *env) {
	s, other := e.store(), e.store()
	type moved struct {
		groups []metadata.GroupVersion
		all    bool
	}
	heard := make(chan moved, 100)
	other.OnGroups(func(groups []metadata.GroupVersion, all bool) { heard <- moved{groups, all} })
	e.run(s)
	e.run(other)
	if m := <-heard; !m.all { // begins to listen
		e.Fatalf("first wake-up: %+v", m)
	}
	if s == other {
		return
	}
	id := metadata.GroupID("a group: with spaces, ümläuts\nand more")
	v := e.change(s, id, save(metadata.GroupSave{Group: metadata.GroupRow{State: "Empty"}}))
	if !e.tells() {
		return
	}
	ctx := e.within()
	hear := func(what metadata.GroupVersion) {
		for {
			select {
			case m := <-heard:
				if slices.Contains(m.groups, what) {
					return
				}
			case <-ctx.Done():
				e.Fatalf("%+v was not heard of", what)
			}
		}
	}
	hear(metadata.GroupVersion{ID: id, Version: v})
	one := "1"
	e.must(s.ChangeSettings(e.Context(), settings(map[string]*string{"a": &one})))
	hear(metadata.GroupVersion{ID: metadata.SettingsMoved})
}

// tells says whether drivers of this kind tell each other: an embedded database has one process.
func (e *env) tells() bool { return e.db.Driver(e.T) != e.db.Driver(e.T) }

func testGroupWriteBack(e *env) {
	s := e.store()
	now, err := s.Now(e.Context())
	e.must(err)
	v := e.change(s, "g", save(metadata.GroupSave{Group: metadata.GroupRow{State: "Stable"}, Save: []metadata.MemberRow{member("a", now), member("b", now)}}))
	agent := metadata.NewAgentID()
	done, err := s.WriteBack(e.Context(), metadata.WriteBack{
		Agent: agent,
		Heard: []metadata.Heard{
			{Group: "g", Member: "a", At: now + 5}, {Group: "g", Member: "b", At: now - 5}, {Group: "g", Member: "gone", At: now},
			{Group: "gone", Member: "a", At: now},
		},
		Confirm: []metadata.GroupID{"g", "gone"},
	})
	e.must(err)
	if len(done.Versions) != 1 || done.Versions["g"] != v || done.Now < now {
		e.Fatalf("written back: %+v", done)
	}
	g := e.group(s, "g")
	a, b := g.Members[0], g.Members[1]
	if a.Heard != now+5 || a.HeardBy != agent || b.Heard != now || b.HeardBy == agent {
		e.Fatalf("heard: %+v %+v", a, b)
	}
	if g.Group.Version != v {
		e.Fatal("hearing members raised the version")
	}
	c := g.Contacts[agent]
	if c.Since != done.Now || c.Seen != done.Now {
		e.Fatalf("contact %+v, written back at %d", c, done.Now)
	}
	again, err := s.WriteBack(e.Context(), metadata.WriteBack{Agent: agent})
	e.must(err)
	if c = e.group(s, "g").Contacts[agent]; c.Since != done.Now || c.Seen != again.Now {
		e.Fatalf("contact %+v, begun %d, now %d", c, done.Now, again.Now)
	}
	e.must(s.ForgetAgents(e.Context(), again.Now+1))
	if n := len(e.group(s, "g").Contacts); n != 0 {
		e.Fatalf("%d contacts are left", n)
	}
}

func testGroupSweep(e *env) {
	s := e.store()
	now, err := s.Now(e.Context())
	e.must(err)
	group := func(id metadata.GroupID, due, timer, heard metadata.Millis) {
		var members []metadata.MemberRow
		if heard != 0 {
			members = append(members, member("a", heard), member("b", heard+1))
		}
		e.change(s, id, save(metadata.GroupSave{Group: metadata.GroupRow{State: "Stable", Due: due, Timer: timer}, Save: members}))
	}
	group("later", now+3600_000, 0, now)
	group("never", 0, 0, 0)
	group("timer", now-5, now-5, 0)
	group("heard", now-1, 0, now)           // its members have been heard of since
	group("silent", now-3, 0, now-10_000-5) // their sessions are over
	group("both", now-2, now+7200_000, now) // put off to the end of the sessions
	got, err := s.SweepGroups(e.Context(), 10)
	e.must(err)
	slices.Sort(got)
	if !slices.Equal(got, []metadata.GroupID{"silent", "timer"}) {
		e.Fatalf("due: %v", got)
	}
	for _, id := range []metadata.GroupID{"heard", "both"} {
		if g := e.group(s, id); g.Group.Due != now+10_000 {
			e.Fatalf("%s is put off to %d, now is %d", id, g.Group.Due, now)
		}
	}
}

// commitOffsets commits without a condition.
func (e *env) commitOffsets(s *metadata.Store, id metadata.GroupID, offsets ...metadata.GroupOffset) {
	e.Helper()
	e.must(s.CommitOffsets(e.Context(), metadata.OffsetCommit{
		Group: id, Offsets: offsets,
		Check: func(metadata.Millis, *metadata.GroupRow, []metadata.MemberRow) error { return nil },
	}))
}

func offset(topic metadata.TopicID, partition int32, at metadata.Offset) metadata.GroupOffset {
	return metadata.GroupOffset{
		TopicPartition: metadata.TopicPartition{Topic: topic, Partition: partition}, Offset: at, LeaderEpoch: int32(at) - 1,
		Metadata: []byte{0, 255, byte(at)},
	}
}

func (e *env) offsets(s *metadata.Store, q metadata.OffsetQuery) []metadata.GroupOffset {
	e.Helper()
	lists, err := s.LoadOffsets(e.Context(), []metadata.OffsetQuery{{Group: "other", All: true}, q})
	e.must(err)
	return lists[1]
}

func testGroupOffsets(e *env) {
	s := e.store()
	t, u := e.topic(s, "t", 3).ID, e.topic(s, "u", 3).ID
	e.commitOffsets(s, "g", offset(t, 0, 5), offset(u, 2, 7), offset(t, 0, 6))
	if g := e.group(s, "g"); g.Group.Version == 0 || g.Group.Kind != metadata.GroupSimple || g.Group.State != "Empty" {
		e.Fatalf("the group of a commit: %+v", g)
	}
	all := metadata.OffsetQuery{Group: "g", All: true}
	got := e.offsets(s, all)
	if len(got) != 2 {
		e.Fatalf("offsets %+v", got)
	}
	i := slices.IndexFunc(got, func(o metadata.GroupOffset) bool { return o.Topic == t })
	if o := got[i]; o.Offset != 6 || o.LeaderEpoch != 5 || string(o.Metadata) != "\x00\xff\x06" || o.Committed < 1e12 {
		e.Fatalf("offset %+v", o)
	}
	e.commitOffsets(s, "g", offset(t, 0, 4), offset(t, 1, 1)) // a commit may go back
	got = e.offsets(s, metadata.OffsetQuery{Group: "g", Partitions: []metadata.TopicPartition{{Topic: t, Partition: 0}, {Topic: t, Partition: 2}}})
	if len(got) != 1 || got[0].Offset != 4 {
		e.Fatalf("asked by partition: %+v", got)
	}
	e.commitOffsets(s, "h", offset(t, 0, 100))
	refused := errors.New("refused")
	err := s.CommitOffsets(e.Context(), metadata.OffsetCommit{
		Group: "n", Offsets: []metadata.GroupOffset{offset(t, 0, 1)},
		Check: func(_ metadata.Millis, g *metadata.GroupRow, _ []metadata.MemberRow) error {
			if g.Version != 0 {
				e.Errorf("group %+v", g)
			}
			return refused
		},
	})
	if !errors.Is(err, refused) || e.group(s, "n").Group.Version != 0 {
		e.Fatalf("a refused commit: %v", err)
	}
	// The check sees the member and whoever has its instance.
	e.change(s, "m", save(metadata.GroupSave{
		Group: metadata.GroupRow{State: "Stable"}, Save: []metadata.MemberRow{member("a", 1), member("b", 1), member("c", 1)},
	}))
	e.must(s.CommitOffsets(e.Context(), metadata.OffsetCommit{
		Group: "m", Member: "a", Instance: "i-b",
		Check: func(_ metadata.Millis, g *metadata.GroupRow, members []metadata.MemberRow) error {
			if g.State != "Stable" || len(members) != 2 || members[0].ID != "a" || members[1].ID != "b" {
				e.Errorf("checked: %+v %+v", g, members)
			}
			return nil
		},
	}))
	e.must(s.DeleteOffsets(e.Context(), "g", []metadata.TopicPartition{{Topic: t, Partition: 0}, {Topic: t, Partition: 2}}, 0, nil))
	if got = e.offsets(s, all); len(got) != 2 {
		e.Fatalf("after deleting: %+v", got)
	}
	e.must(s.DeleteOffsets(e.Context(), "g", []metadata.TopicPartition{{Topic: t, Partition: 1}}, 1, nil)) // committed since
	if got = e.offsets(s, all); len(got) != 2 {
		e.Fatalf("after deleting what is older: %+v", got)
	}
	e.change(s, "g", save(metadata.GroupSave{Delete: true}))
	if got = e.offsets(s, all); len(got) != 0 || len(e.offsets(s, metadata.OffsetQuery{Group: "h", All: true})) != 1 {
		e.Fatalf("after deleting the group: %+v", got)
	}
}

func testGroupOffsetsBulk(e *env) {
	s := e.store()
	const n = 10_000
	t := e.topic(s, "t", n).ID
	list := make([]metadata.GroupOffset, n)
	for i := range list {
		list[i] = offset(t, int32(n-1-i), metadata.Offset(i))
	}
	for range 3 {
		start := time.Now()
		e.commitOffsets(s, "g", list...)
		took := time.Since(start)
		start = time.Now()
		got := e.offsets(s, metadata.OffsetQuery{Group: "g", All: true})
		e.Logf("%d offsets: committed in %v, read in %v", n, took, time.Since(start))
		if len(got) != n || got[0].Offset != n-1 {
			e.Fatalf("%d offsets, the first %+v", len(got), got[0])
		}
	}
}

// testGroupOffsetsLock: a commit whose check has passed is done before the group can change.
func testGroupOffsetsLock(e *env) {
	s, other := e.store(), e.store()
	t := e.topic(s, "t", 1).ID
	e.change(s, "g", save(metadata.GroupSave{Group: metadata.GroupRow{State: "Stable"}, Save: []metadata.MemberRow{member("a", 1)}}))
	checking, goOn := make(chan struct{}), make(chan struct{})
	committed := make(chan error, 1)
	var once sync.Once
	go func() {
		committed <- s.CommitOffsets(e.Context(), metadata.OffsetCommit{
			Group: "g", Member: "a", Offsets: []metadata.GroupOffset{offset(t, 0, 5)},
			Check: func(metadata.Millis, *metadata.GroupRow, []metadata.MemberRow) error {
				once.Do(func() {
					close(checking)
					<-goOn
				})
				return nil
			},
		})
	}()
	<-checking
	changed := make(chan []metadata.GroupOffset, 1)
	go func() {
		_, err := other.ChangeGroup(e.Context(), "g", save(metadata.GroupSave{Group: metadata.GroupRow{State: "Empty"}, Drop: []metadata.MemberID{"a"}}))
		if err != nil {
			e.Error(err)
		}
		lists, err := other.LoadOffsets(e.Context(), []metadata.OffsetQuery{{Group: "g", All: true}})
		if err != nil {
			e.Error(err)
			lists = make([][]metadata.GroupOffset, 1)
		}
		changed <- lists[0]
	}()
	close(goOn)
	e.must(<-committed)
	if got := <-changed; len(got) != 1 {
		e.Fatalf("the group changed before the commit that was checked: %v", got)
	}
}

func testGroupOffsetsOfDeletedTopics(e *env) {
	s := e.store()
	t, u := e.topic(s, "t", 1), e.topic(s, "u", 1)
	e.commitOffsets(s, "g", offset(t.ID, 0, 1), offset(u.ID, 0, 2))
	_, errs, err := s.DeleteTopics(e.Context(), []metadata.TopicRef{{ID: t.ID, Name: "t"}})
	e.must(append(errs, err)...)
	all := metadata.OffsetQuery{Group: "g", All: true}
	if got := e.offsets(s, all); len(got) != 1 || got[0].Topic != u.ID {
		e.Fatalf("offsets %+v", got)
	}
	e.commitOffsets(s, "g", offset(t.ID, 0, 3)) // too late
	if got := e.offsets(s, all); len(got) != 1 {
		e.Fatalf("offsets of a deleted topic: %+v", got)
	}
}

func testOldOffsets(e *env) {
	s := e.store()
	t := e.topic(s, "t", 1).ID
	for _, id := range []metadata.GroupID{"a", "b", "c"} {
		e.commitOffsets(s, id, offset(t, 0, 1))
	}
	e.change(s, "bare", save(metadata.GroupSave{Group: metadata.GroupRow{State: "Empty"}}))
	now, err := s.Now(e.Context())
	e.must(err)
	for before, want := range map[metadata.Millis][]metadata.GroupID{0: {"bare"}, now + 1000: {"a", "b", "bare", "c"}} {
		var got []metadata.GroupID
		for next := metadata.GroupID(""); ; {
			var page []metadata.GroupID
			page, next, err = s.OldOffsets(e.Context(), before, next, 2)
			e.must(err)
			if got = append(got, page...); next == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			e.Fatalf("older than %d: %v, want %v", before, got, want)
		}
	}
}

func testSettings(e *env) {
	s, other := e.store(), e.store()
	one, two := "1", "2"
	e.must(s.ChangeSettings(e.Context(), settings(map[string]*string{"a": &one, "b": &one})))
	e.must(other.ChangeSettings(e.Context(), settings(map[string]*string{"a": &two, "b": nil, "c": nil})))
	refused := errors.New("refused")
	err := s.ChangeSettings(e.Context(), func(now map[string]string) (map[string]*string, error) {
		if len(now) != 1 || now["a"] != "2" {
			e.Errorf("decides on %v", now)
		}
		return map[string]*string{"d": &one}, refused
	})
	if !errors.Is(err, refused) {
		e.Errorf("refused: %v", err)
	}
	got, err := s.LoadSettings(e.Context())
	if e.must(err); len(got) != 1 || got["a"] != "2" {
		e.Fatalf("settings %v", got)
	}
	// Each decides on what the one before it left.
	const changes = 20
	var wg sync.WaitGroup
	for i := range changes {
		wg.Go(func() {
			err := []*metadata.Store{s, other}[i%2].ChangeSettings(e.Context(), func(now map[string]string) (map[string]*string, error) {
				n, _ := strconv.Atoi(now["n"])
				next := strconv.Itoa(n + 1)
				return map[string]*string{"n": &next}, nil
			})
			if err != nil {
				e.Error(err)
			}
		})
	}
	wg.Wait()
	got, err = s.LoadSettings(e.Context())
	if e.must(err); got["n"] != strconv.Itoa(changes) {
		e.Fatalf("%s changes of %d are left", got["n"], changes)
	}
}

// settings decides on the same changes whatever there is.
func settings(changes map[string]*string) metadata.SettingsFunc {
	return func(map[string]string) (map[string]*string, error) { return changes, nil }
}
