package agent

import (
	"context"
	"errors"

	"github.com/skeinio/skein/metadata"
)

// blocksOf gives the blocks of partitions, each once.
func blocksOf(parts []*partRead) []metadata.BlockID {
	ids := make([]metadata.BlockID, 0, len(parts))
	seen := make(map[metadata.BlockID]struct{}, len(parts))
	for _, p := range parts {
		if _, ok := seen[p.place.Block]; !ok {
			seen[p.place.Block] = struct{}{}
			ids = append(ids, p.place.Block)
		}
	}
	return ids
}

// view gives every partition its block's view, one for each block. Where there is none, or it says that the partition is
// deleted, the partition is unknown.
func (rd *reader) view(ctx context.Context, parts []*partRead) error {
	ids := blocksOf(parts)
	views, err := rd.store.Views(ctx, ids)
	if errors.Is(err, metadata.ErrCorrupt) && len(ids) > 1 {
		return rd.viewEach(ctx, parts, ids)
	}
	if err != nil {
		return err
	}
	setViews(parts, ids, views)
	return nil
}

// viewEach is view for when one block does not load: the others go on.
func (rd *reader) viewEach(ctx context.Context, parts []*partRead, ids []metadata.BlockID) error {
	for _, id := range ids {
		var mine []*partRead
		for _, p := range parts {
			if p.place.Block == id {
				mine = append(mine, p)
			}
		}
		views, err := rd.store.Views(ctx, []metadata.BlockID{id})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			setViews(mine, []metadata.BlockID{id}, views)
			continue
		}
		rd.failAll(mine, err)
	}
	return nil
}

func setViews(parts []*partRead, ids []metadata.BlockID, views []*metadata.View) {
	byBlock := make(map[metadata.BlockID]*metadata.View, len(ids))
	for i, id := range ids {
		byBlock[id] = views[i]
	}
	for _, p := range parts {
		p.code = codeNone
		p.view = byBlock[p.place.Block]
		if p.view == nil || p.view.Deleted(p.place.Slot) {
			p.code = codeUnknownTopicOrPartition
		}
	}
}

// look views the partitions and checks their offsets. An offset that the view does not have is asked of the database
// before it is out of range: the answer makes clients jump, and the view may be behind what they saw elsewhere.
func (rd *reader) look(ctx context.Context, parts []*partRead, committed bool) error {
	if err := rd.view(ctx, parts); err != nil {
		return err
	}
	var beyond []*partRead
	for _, p := range parts {
		if !p.failed() && !p.inRange() {
			beyond = append(beyond, p)
		}
	}
	if len(beyond) > 0 {
		if err := rd.lookBeyond(ctx, parts, beyond); err != nil {
			return err
		}
	}
	for _, p := range parts {
		if p.failed() {
			continue
		}
		p.limit = p.highWatermark()
		if committed {
			p.limit = p.lso()
		}
		if !p.inRange() {
			p.code = codeOffsetOutOfRange
		}
	}
	return nil
}

// lookBeyond asks the database for the views of partitions whose offsets are not in theirs. When it cannot be asked they
// fail, and the others are read as far as is known.
func (rd *reader) lookBeyond(ctx context.Context, parts, beyond []*partRead) error {
	err := rd.store.Refresh(ctx, blocksOf(beyond)...)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, metadata.ErrCorrupt) { // of which the views tell whose it is
		rd.failAll(beyond, err)
		return nil
	}
	return rd.view(ctx, parts)
}

func (p *partRead) inRange() bool { return p.offset >= p.logStart() && p.offset <= p.highWatermark() }
