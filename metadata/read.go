package metadata

import (
	"context"
	"fmt"
	"sort"
)

// Located is an extent that holds offsets of a partition.
type Located struct {
	Object    ObjectKey // "" = inline payload of Flush
	Flush     FlushID
	Position  int64
	Length    int64 // bytes stored
	RawLength int64 // bytes after decoding; 0 in runs
	Codec     Codec
	CRC       uint32  // of the stored bytes; not in runs
	Base      Offset  // of the first accepted record
	End       Offset  // after the last accepted record
	MaxTS     Millis  // largest timestamp of accepted batches
	Batches   []Batch // nil in runs
	Level     int16   // 0, or of the run
	Seq       Seq     // of the level0 row
	// Run says that it is a run: merged data. Its extent's codec and chunks are in its object's index.
	Run        bool
	ObjectSize int64 // of a run's object, bytes
}

// Locate finds where the partitions' records from the given offsets are: consecutive extents, up to the query's bounds
// (always at least one where there is one). It answers from the view's newest rows when these reach back far enough,
// else asks the database, in one statement for all.
func (s *Store) Locate(ctx context.Context, queries []LocateQuery) ([][]Located, error) {
	answers := make([][]Located, len(queries))
	var ask []LocateQuery
	var at []int
	for i, q := range queries {
		if v := s.block(q.Block).view.Load(); v != nil {
			if rows, ok := v.find(q); ok {
				answers[i] = located(rows, nil, q.Slot)
				continue
			}
		}
		ask, at = append(ask, q), append(at, i)
	}
	if len(ask) == 0 {
		return answers, nil
	}
	found, err := s.driver.Locate(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("locate %d offsets: %w", len(ask), err)
	}
	for i, a := range found {
		answers[at[i]] = located(a.Rows, a.Runs, ask[i].Slot)
	}
	return answers, nil
}

// LocateTime finds, for each query, extents from the first that may hold a record of at least the timestamp. The caller
// looks into them: what set a running maximum may be gone.
func (s *Store) LocateTime(ctx context.Context, queries []LocateTimeQuery) ([][]Located, error) {
	found, err := s.driver.LocateTime(ctx, queries)
	if err != nil {
		return nil, fmt.Errorf("locate %d timestamps: %w", len(queries), err)
	}
	answers := make([][]Located, len(queries))
	for i, a := range found {
		answers[i] = located(a.Rows, a.Runs, queries[i].Slot)
	}
	return answers, nil
}

// find answers a query from the view's tail. It can when the tail's first row ends at or below the offset, or the tail
// starts at the block's first row.
func (v *View) find(q LocateQuery) ([]*Row, bool) {
	if len(v.tail) == 0 {
		return nil, false
	}
	first := v.tail[0]
	if first.Photo.Next[q.Slot] > q.Offset && first.Seq != 1 {
		return nil, false
	}
	if first.Seq <= v.Row.MergedSeq {
		// Rows at or below the merged seq are not to be read. The offset is above them when the last of them ends at or
		// below it.
		i := min(int(v.Row.MergedSeq-first.Seq), len(v.tail)-1)
		if v.tail[i].Photo.Next[q.Slot] > q.Offset {
			return nil, false
		}
	}
	i := sort.Search(len(v.tail), func(i int) bool { return v.tail[i].Photo.Next[q.Slot] > q.Offset })
	var rows []*Row
	var size int64
	for ; i < len(v.tail) && len(rows) < q.MaxRows; i++ {
		r := v.tail[i]
		t := r.Find(q.Slot)
		if t < 0 {
			continue
		}
		if len(rows) > 0 && size+int64(r.Touched[t].RawLength) > q.MaxBytes {
			break
		}
		size += int64(r.Touched[t].RawLength)
		rows = append(rows, r)
	}
	return rows, true
}

// located turns rows and runs into extents. Rows in which nothing of the slot was accepted are left out.
func located(rows []*Row, runs []RunRow, slot Slot) []Located {
	out := make([]Located, 0, len(rows)+len(runs))
	for i := range runs {
		r := &runs[i]
		out = append(out, Located{
			Object: r.Object, Position: r.Position, Length: r.Length, Base: r.Base, End: r.Last + 1, MaxTS: r.MaxTS,
			Level: r.Level, Run: true, ObjectSize: r.ObjectSize,
		})
	}
	for _, r := range rows {
		i := r.Find(slot)
		if i < 0 {
			continue
		}
		t := &r.Touched[i]
		x := Located{
			Object: r.Object, Flush: r.Flush, Position: t.Position, Length: int64(t.Length), RawLength: int64(t.RawLength),
			Codec: t.Codec, CRC: t.CRC, Base: r.Base(i), End: r.Photo.Next[slot], MaxTS: NoTimestamp, Batches: t.Batches,
			Seq: r.Seq,
		}
		for j := range t.Batches {
			if t.Batches[j].Flags&FlagAccepted != 0 {
				x.MaxTS = max(x.MaxTS, t.Batches[j].MaxTimestamp)
			}
		}
		if x.End > x.Base {
			out = append(out, x)
		}
	}
	return out
}
