package group

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Server-side assignors (KIP-848).
const (
	AssignorUniform = "uniform" // even, and moves as little as it can
	AssignorRange   = "range"   // consecutive partitions of each topic, so that equal topics go together
)

// assignee is a member as an assignor sees it.
type assignee struct {
	id       metadata.MemberID
	instance string
	topics   map[string]Topic
	now      Assignment // its target so far
}

// assign gives every member its partitions: each partition of every topic to exactly one of the members that subscribe to
// it. members are sorted by id.
func assign(assignor string, members []assignee, topics map[string]Topic) map[metadata.MemberID]Assignment {
	out := make(map[metadata.MemberID]Assignment, len(members))
	for _, m := range members {
		out[m.id] = Assignment{}
	}
	if assignor == AssignorRange {
		assignRange(members, topics, out)
	} else {
		assignUniform(members, topics, out)
	}
	return out
}

func assignRange(members []assignee, topics map[string]Topic, out map[metadata.MemberID]Assignment) {
	order := slices.Clone(members)
	// Static members keep their place across restarts.
	key := func(m assignee) string { return cmp.Or(m.instance, string(m.id)) }
	slices.SortFunc(order, func(a, b assignee) int { return cmp.Or(cmp.Compare(key(a), key(b)), cmp.Compare(a.id, b.id)) })
	for name, t := range topics {
		var of []metadata.MemberID
		for _, m := range order {
			if _, ok := m.topics[name]; ok {
				of = append(of, m.id)
			}
		}
		n := int32(len(of))
		if n == 0 {
			continue
		}
		next := int32(0)
		for i, id := range of {
			share := t.Partitions / n
			if int32(i) < t.Partitions%n {
				share++
			}
			for range share {
				out[id][t.ID] = append(out[id][t.ID], next)
				next++
			}
		}
	}
}

// load is a member in the heap of assignUniform, the one with the fewest partitions first.
type load struct {
	member *assignee
	n      int
	at     int
}

type loads []*load

func (l loads) Len() int { return len(l) }
func (l loads) Less(i, j int) bool {
	return l[i].n < l[j].n || l[i].n == l[j].n && l[i].member.id < l[j].member.id
}
func (l loads) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].at, l[j].at = i, j
}
func (l *loads) Push(x any) { *l = append(*l, x.(*load)) }
func (l *loads) Pop() any {
	x := (*l)[len(*l)-1]
	*l = (*l)[:len(*l)-1]
	return x
}

// assignUniform keeps what members have as far as that is even, and gives the rest to those that have the fewest.
func assignUniform(members []assignee, topics map[string]Topic, out map[metadata.MemberID]Assignment) {
	if len(members) == 0 {
		return
	}
	byID := map[metadata.TopicID]string{}
	for name, t := range topics {
		byID[t.ID] = name
	}
	all := make([]*load, len(members))
	for i := range members {
		all[i] = &load{member: &members[i]}
	}
	owned := keepEven(all, topics, byID, out)
	names := slices.Sorted(maps.Keys(topics))
	h := make(map[string]*loads, 1)
	same := sameSubscriptions(members)
	for _, name := range names {
		key := name
		if same {
			key = "" // one heap for all
		}
		if h[key] == nil {
			l := &loads{}
			for _, x := range all {
				if _, ok := x.member.topics[name]; ok {
					x.at = len(*l)
					*l = append(*l, x)
				}
			}
			h[key] = l
		}
		l := h[key]
		if len(*l) == 0 {
			continue
		}
		heap.Init(l)
		t := topics[name]
		for p := range t.Partitions {
			if owned[metadata.TopicPartition{Topic: t.ID, Partition: p}] {
				continue
			}
			x := (*l)[0]
			out[x.member.id].Add(t.ID, p)
			x.n++
			heap.Fix(l, 0)
		}
	}
	if !same {
		even(all, topics, names, out)
	}
}

func sameSubscriptions(members []assignee) bool {
	for i := range members {
		if !maps.Equal(members[i].topics, members[0].topics) {
			return false
		}
	}
	return true
}

// keepEven lets members keep what they have, up to an even share, and gives what is kept.
func keepEven(all []*load, topics map[string]Topic, byID map[metadata.TopicID]string, out map[metadata.MemberID]Assignment) map[metadata.TopicPartition]bool {
	total := 0
	for _, t := range topics {
		total += int(t.Partitions)
	}
	share, extra := total/len(all), total%len(all)
	owned := map[metadata.TopicPartition]bool{}
	// Those that have more than a share take the shares that are one larger.
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b *load) int { return cmp.Compare(b.member.now.size(), a.member.now.size()) })
	for _, x := range order {
		quota := share
		if extra > 0 && x.member.now.size() > share {
			quota++
			extra--
		}
		for id, list := range x.member.now.Sorted() {
			name, there := byID[id]
			t, subscribed := x.member.topics[name]
			for _, p := range list {
				k := metadata.TopicPartition{Topic: id, Partition: p}
				if !there || !subscribed || p >= t.Partitions || owned[k] || x.n >= quota {
					continue
				}
				owned[k] = true
				out[x.member.id].Add(id, p)
				x.n++
			}
		}
	}
	return owned
}

func (a Assignment) size() int {
	n := 0
	for _, list := range a {
		n += len(list)
	}
	return n
}

// even moves partitions from members with more to members with fewer, where subscriptions differ. Every move lowers the sum
// of the squares, so it ends.
func even(all []*load, topics map[string]Topic, names []string, out map[metadata.MemberID]Assignment) {
	for moved := true; moved; {
		moved = false
		for _, name := range names {
			t := topics[name]
			var of []*load
			for _, x := range all {
				if _, ok := x.member.topics[name]; ok {
					of = append(of, x)
				}
			}
			if len(of) < 2 {
				continue
			}
			for {
				least := slices.MinFunc(of, func(a, b *load) int { return cmp.Compare(a.n, b.n) })
				var most *load
				for _, x := range of {
					if len(out[x.member.id][t.ID]) > 0 && x.n > least.n+1 && (most == nil || x.n > most.n) {
						most = x
					}
				}
				if most == nil {
					break
				}
				list := out[most.member.id][t.ID]
				p := list[len(list)-1]
				if out[most.member.id][t.ID] = list[:len(list)-1]; len(list) == 1 {
					delete(out[most.member.id], t.ID)
				}
				out[least.member.id].Add(t.ID, p)
				most.n--
				least.n++
				moved = true
			}
		}
	}
}
