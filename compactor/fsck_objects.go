package compactor

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// known is what fsck knows about an object.
type known struct {
	key    metadata.ObjectKey
	stored *storedObject // nil: it is not in the bucket
	row    *metadata.ObjectListing
	named  int
}

// objects compares the rows of objects with what names them and with the bucket, part by part.
func (k *checker) objects(ctx context.Context) error {
	after := metadata.ObjectKey("")
	for more := true; more; {
		page, err := k.Driver.ListObjects(ctx, after, checkPage)
		if err != nil {
			return err
		}
		for i := range page {
			after = page[i].Key
			k.rep.Objects++
			if err := k.spool.add(&spooled{Key: page[i].Key, Row: &page[i]}); err != nil {
				return err
			}
		}
		more = len(page) == checkPage
	}
	now, err := bucketNow(ctx, k.Bucket)
	if err != nil {
		return err
	}
	k.bucketNow = metadata.Millis(now.UnixMilli())
	for i := range spoolShards {
		if err := k.shard(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// shard looks at one part of the objects.
func (k *checker) shard(ctx context.Context, shard int) error {
	byKey := map[metadata.ObjectKey]*known{}
	err := k.spool.each(shard, func(x *spooled) {
		o := byKey[x.Key]
		if o == nil {
			o = &known{key: x.Key}
			byKey[x.Key] = o
		}
		switch {
		case x.Stored != nil:
			o.stored = x.Stored
		case x.Row != nil:
			o.row = x.Row
		case x.Try == k.lastTry[x.Block]:
			o.named += x.Named
		}
	})
	if err != nil {
		return err
	}
	var suspects []*known
	for _, o := range byKey {
		switch {
		case o.row != nil && o.row.Changed >= k.started:
			k.rep.Moving++ // somebody is at it
		case o.row == nil && o.named == 0 && o.stored == nil: // named by a look that does not count
		case o.row == nil && o.named == 0:
			if k.bucketNow.Sub(o.stored.Modified) < metadata.MaxResubmit {
				k.rep.Waiting++ // it may be on its way to its commit
			} else {
				suspects = append(suspects, o)
			}
		case len(judge(o)) > 0:
			suspects = append(suspects, o)
		case o.named == 0 && o.stored != nil:
			k.rep.Waiting++
		}
	}
	slices.SortFunc(suspects, func(a, b *known) int { return cmp.Compare(a.key, b.key) })
	for list := range slices.Chunk(suspects, metadata.MaxCountReferences) {
		if err := k.suspects(ctx, list); err != nil {
			return err
		}
	}
	return nil
}

// verdict is what is wrong with an object, and its row as it should be; refs is below 0 where that cannot be mended.
type verdict struct {
	Problem
	refs  int
	state metadata.ObjectState
}

// judge says what is wrong with an object that somebody names or that has a row.
func judge(o *known) []verdict {
	if o.row == nil {
		v := verdict{Problem: Problem{Kind: KindRefs, Detail: fmt.Sprintf("named %d times, and has no row", o.named)}, refs: o.named, state: metadata.ObjectLive}
		if o.stored != nil {
			v.Bytes = o.stored.Size
			return []verdict{v}
		}
		v.refs = -1
		return append([]verdict{v}, lost(o, 0)...)
	}
	var list []verdict
	add := func(kind Kind, refs int, state metadata.ObjectState, format string, args ...any) {
		list = append(list, verdict{refs: refs, state: state, Problem: Problem{Kind: kind, Detail: fmt.Sprintf(format, args...), Bytes: o.row.Size}})
	}
	row := o.row
	switch {
	case o.named > 0 && row.State == metadata.ObjectCondemned && row.Gone:
		add(KindCondemned, -1, row.State, "deleted, and named %d times", o.named)
	case o.named > 0 && row.State == metadata.ObjectCondemned:
		add(KindCondemned, o.named, metadata.ObjectLive, "condemned, and named %d times", o.named)
	case o.named > 0 && row.State != metadata.ObjectLive:
		add(KindRefs, o.named, metadata.ObjectLive, "state %d, and named %d times", row.State, o.named)
	case o.named != row.Refs && o.named == 0:
		add(KindRefs, 0, metadata.ObjectGarbage, "has %d references, and nothing names it", row.Refs)
	case o.named != row.Refs:
		add(KindRefs, o.named, row.State, "has %d references, is named %d times", row.Refs, o.named)
	case o.named == 0 && row.State == metadata.ObjectLive:
		add(KindRefs, 0, metadata.ObjectGarbage, "live, and nothing names it")
	}
	return append(list, lost(o, row.Size)...)
}

// lost says whether an object that is named is not there, or not what it was.
func lost(o *known, size int64) []verdict {
	p := Problem{Bytes: size}
	switch {
	case o.named > 0 && o.stored == nil:
		p.Kind, p.Detail = KindMissing, fmt.Sprintf("named %d times, and not in the bucket", o.named)
	case o.named > 0 && o.stored.Size != size:
		p.Kind, p.Detail = KindCorrupt, fmt.Sprintf("has %d bytes, its row says %d", o.stored.Size, size)
	default:
		return nil
	}
	return []verdict{{Problem: p, refs: -1}}
}

// suspects looks at objects again that look wrong, now by what names them in one moment: agents may have changed rows
// between one look and the other.
func (k *checker) suspects(ctx context.Context, list []*known) error {
	keys := make([]metadata.ObjectKey, len(list))
	for i, o := range list {
		keys[i] = o.key
	}
	counts, err := k.Driver.CountReferences(ctx, keys)
	if err != nil {
		return err
	}
	for i, o := range list {
		c := &counts[i]
		if c.Known != (o.row != nil) || c.Known && c.Changed != o.row.Changed {
			k.rep.Moving++
			continue
		}
		o.named = c.Named
		if !c.Known && c.Named == 0 {
			if err := k.orphan(ctx, o); err != nil {
				return err
			}
			continue
		}
		for _, v := range judge(o) {
			v.Where = string(o.key)
			if k.Repair && v.refs >= 0 {
				if err := k.mend(ctx, o, &v); err != nil {
					return err
				}
			}
			k.problem(v.Problem)
		}
	}
	return nil
}

// mend corrects an object's row. An agent that is faster leaves it as it is.
func (k *checker) mend(ctx context.Context, o *known, v *verdict) error {
	row := o.row
	if row == nil {
		if err := k.Driver.RegisterObjects(ctx, []metadata.ObjectRow{{Key: o.key, Size: o.stored.Size}}); err != nil {
			return err
		}
		made, err := k.Driver.CountReferences(ctx, []metadata.ObjectKey{o.key})
		if err != nil {
			return err
		}
		row = &made[0].ObjectListing
	}
	ok, err := k.Driver.SetObject(ctx, *row, v.refs, v.state)
	if err != nil {
		return err
	}
	if ok {
		v.Repaired = fmt.Sprintf("references set to %d, state to %d", v.refs, v.state)
	}
	return nil
}

// orphan reports an object that has no row and that nothing names.
func (k *checker) orphan(ctx context.Context, o *known) error {
	p := Problem{Kind: KindOrphan, Where: string(o.key), Detail: "no row names it"}
	if o.stored == nil {
		return nil
	}
	p.Bytes = o.stored.Size
	young := k.bucketNow.Sub(o.stored.Modified) < orphansKept
	if young {
		k.rep.Uncommitted++
		k.rep.UncommittedBytes += p.Bytes
	}
	if k.Repair {
		// Condemned, not deleted: whoever may yet commit it is refused, and the compactor deletes it after the grace.
		gone, err := k.Driver.CondemnUnknown(ctx, []metadata.ObjectRow{{Key: o.key, Size: p.Bytes}})
		if err != nil {
			return err
		}
		if len(gone) == 0 {
			k.rep.Moving++ // committed meanwhile
			return nil
		}
		p.Repaired = "condemned: it is deleted after the grace"
	}
	if !young || k.Repair {
		k.problem(p)
	}
	return nil
}
