package agent

import (
	"context"
	"time"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// run writes back whom this agent heard of, looks for groups that are due, polls for lost wake-ups while members wait, and
// keeps house, until ctx ends.
func (gs *groups) runAll(ctx context.Context) {
	if gs.store == nil {
		return
	}
	write, poll := time.NewTicker(gs.pause), time.NewTicker(groupPoll)
	defer write.Stop()
	defer poll.Stop()
	house := time.NewTimer(offsetsFirst)
	defer house.Stop()
	gs.writeBack(ctx)
	gs.loadSettings(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-write.C:
			gs.writeBack(ctx)
			gs.sweep(ctx)
			gs.loadSettings(ctx)
			gs.forget()
		case <-gs.reload:
			gs.loadSettings(ctx)
		case <-poll.C:
			gs.poll(ctx)
		case <-house.C:
			gs.keepHouse(ctx)
			house.Reset(offsetsInterval)
		}
	}
}

// toWrite gives what the next write-back says, and the groups' state when it was gathered.
func (gs *groups) toWrite(now metadata.Millis) (w metadata.WriteBack, seqs map[metadata.GroupID]uint64) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	w.Agent = gs.agent
	seqs = map[metadata.GroupID]uint64{}
	for id, x := range gs.entries {
		for m := range x.waiting {
			h := x.heard[m]
			if h == nil {
				member := (*group.Member)(nil)
				if x.snap != nil {
					member = x.snap.Members[m]
				}
				if member == nil {
					continue
				}
				h = &heardMember{session: member.Session}
				x.heard[m] = h
			}
			h.at = max(h.at, now)
		}
		for m, h := range x.heard {
			switch {
			case now.Sub(h.at) > h.session:
				delete(x.heard, m) // it went elsewhere, or is gone
			case h.at > h.written && now.Sub(h.written) >= h.session/writeBackShare:
				w.Heard = append(w.Heard, metadata.Heard{Group: id, Member: m, At: h.at})
			}
		}
		if len(x.heard)+len(x.waiting) > 0 && x.snap != nil {
			w.Confirm = append(w.Confirm, id)
			seqs[id] = x.seq
		}
	}
	return w, seqs
}

// writeBack tells the database whom this agent heard of, and hears whether what it knows of their groups still holds.
func (gs *groups) writeBack(ctx context.Context) {
	now, err := gs.store.Now(ctx)
	if err != nil {
		gs.log.Warn("members heard of were not written back", "error", err)
		return
	}
	w, seqs := gs.toWrite(now)
	at := time.Now()
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	done, err := gs.store.WriteBack(call, w)
	if err != nil {
		if ctx.Err() == nil {
			gs.log.Warn("members heard of were not written back", "members", len(w.Heard), "error", err)
		}
		return
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, h := range w.Heard {
		if x := gs.entries[h.Group]; x != nil && x.heard[h.Member] != nil {
			x.heard[h.Member].written = h.At
		}
	}
	for id, seq := range seqs {
		x := gs.entries[id]
		if x == nil || x.snap == nil {
			continue
		}
		switch {
		case done.Versions[id] == x.snap.Version && at.After(x.confirmed):
			x.confirmed, x.snapSeq = at, max(x.snapSeq, seq)
		case done.Versions[id] > x.snap.Version, done.Versions[id] == 0:
			x.stale()
		}
	}
}

// sweep lets time pass in groups that are due.
func (gs *groups) sweep(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	ids, err := gs.store.SweepGroups(call, sweepLimit)
	if err != nil {
		if ctx.Err() == nil {
			gs.log.Warn("groups that are due were not looked for", "error", err)
		}
		return
	}
	for _, id := range ids {
		if err := gs.tick(call, id); err != nil && ctx.Err() == nil {
			gs.log.Warn("group was not looked at", "group", id, "error", err)
			return
		}
	}
}

// poll asks for the versions of the groups that members wait for.
func (gs *groups) poll(ctx context.Context) {
	var ids []metadata.GroupID
	gs.mu.Lock()
	for id, x := range gs.entries {
		if len(x.waiting) > 0 {
			ids = append(ids, id)
		}
	}
	gs.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	call, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	versions, err := gs.store.GroupVersions(call, ids)
	if err != nil {
		if ctx.Err() == nil {
			gs.log.Debug("versions of groups were not read", "error", err)
		}
		return
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, id := range ids {
		if x := gs.entries[id]; x != nil && x.snap != nil && versions[id] != x.snap.Version {
			x.stale()
		}
	}
}

// forget drops groups that nobody asks for.
func (gs *groups) forget() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for id, x := range gs.entries {
		if len(x.waiting)+len(x.heard) == 0 && !x.applying && x.loading == nil && time.Since(x.used) > groupKept {
			delete(gs.entries, id)
		}
	}
}
