package agent

import (
	"context"
	"errors"
	"time"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// Housekeeping of offsets, by Kafka's rules (group.ExpiredOffsets) and at its interval.
const (
	offsetsInterval = 10 * time.Minute
	offsetsFirst    = time.Minute // after the start
	offsetsPage     = 100         // groups looked at in one statement
	offsetsPause    = 20 * time.Millisecond
)

// keepHouse removes offsets whose retention is over, groups that are left with nothing, and contacts of agents long gone.
func (gs *groups) keepHouse(ctx context.Context) {
	now, err := gs.store.Now(ctx)
	if err == nil {
		if err = gs.store.ForgetAgents(ctx, now.Add(-agentsKept)); err == nil {
			gs.store.Did(metadata.ChoreContacts)
		}
	}
	for next := metadata.GroupID(""); err == nil; {
		var old []metadata.GroupID
		old, next, err = gs.store.OldOffsets(ctx, now.Add(-gs.settings().OffsetRetention), next, offsetsPage)
		if err != nil {
			break
		}
		for _, id := range old {
			if err = gs.expireOffsets(ctx, id); err != nil {
				break
			}
		}
		if next == "" && err == nil {
			gs.store.Did(metadata.ChoreOffsets)
		}
		if next == "" || err != nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(offsetsPause):
		}
	}
	if err != nil && ctx.Err() == nil {
		gs.log.Warn("old offsets were not removed", "error", err)
	}
}

// errStillNeeded: a group that looked expired has moved meanwhile.
var errStillNeeded = errors.New("group is needed again")

// expireOffsets removes a group's expired offsets, and the group when nothing is left.
func (gs *groups) expireOffsets(ctx context.Context, id metadata.GroupID) error {
	c, err := gs.store.Catalogue(ctx)
	if err != nil {
		return err
	}
	name := func(t metadata.TopicID) string {
		if x := c.ByID(t); x != nil {
			return x.Name
		}
		return ""
	}
	lists, err := gs.store.LoadOffsets(ctx, []metadata.OffsetQuery{{Group: id, All: true}})
	if err != nil {
		return err
	}
	now, rows, err := gs.store.LoadGroups(ctx, id)
	if err != nil {
		return err
	}
	g, err := group.Decode(&rows[0])
	if err != nil {
		return err
	}
	e := group.Event{Now: now, Agent: gs.agent, Settings: gs.settings()}
	gone, whole := g.ExpiredOffsets(e, lists[0], name)
	if len(gone) > 0 {
		err = gs.store.DeleteOffsets(ctx, id, gone, now.Add(-min(e.Settings.OffsetRetention, gs.base.OffsetRetention)),
			func(_ metadata.Millis, rows *metadata.GroupRows) error {
				if rows.Group.Version != g.Version {
					return errStillNeeded
				}
				return nil
			})
	}
	if err == nil && whole {
		err = gs.deleteIfBare(ctx, id, g.Version)
	}
	if errors.Is(err, errStillNeeded) {
		return nil
	}
	return err
}

// deleteIfBare deletes a group that has no offsets and has not changed since.
func (gs *groups) deleteIfBare(ctx context.Context, id metadata.GroupID, version int64) error {
	lists, err := gs.store.LoadOffsets(ctx, []metadata.OffsetQuery{{Group: id, All: true}})
	if err != nil || len(lists[0]) > 0 {
		return err
	}
	return gs.apply(ctx, id, func(_ group.Event, g *group.Group) {
		if g.Version == version {
			g.MarkDeleted()
		}
	})
}
