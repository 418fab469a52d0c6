package metadata

import (
	"context"
	"fmt"
	"testing"
)

// nullDriver keeps nothing: every commit finds the blocks as the Store knows them. It encodes rows as a driver would.
type nullDriver struct {
	Driver
	now Millis
	buf []byte
}

func (d *nullDriver) Commit(
	_ context.Context, load CommitLoad, decide func(*CommitLoaded) (*CommitSave, error),
) error {
	d.now++
	loaded := &CommitLoaded{Now: d.now, Blocks: make([]BlockDelta, len(load.Blocks))}
	for i, b := range load.Blocks {
		loaded.Blocks[i].Row = BlockRow{ID: b.Block}
	}
	save, err := decide(loaded)
	if err != nil {
		return err
	}
	for _, r := range save.Rows {
		d.buf = r.Photo.AppendTo(d.buf[:0])
		d.buf = AppendTouched(d.buf, r.Touched)
	}
	return nil
}

func (d *nullDriver) ProducerRangeOf(context.Context, []ProducerID) ([]ProducerRange, error) {
	return nil, nil
}

// benchFlush makes a flush with one batch for each partition, of producers in turn.
func benchFlush(partitions, producers, batches int) *Flush {
	f := &Flush{Object: "object", ObjectSize: 8 << 20}
	for i := range partitions {
		e := Extent{
			Block: BlockID(1 + i/SlotsPerBlock), Slot: Slot(i % SlotsPerBlock), Position: int64(i) * 1000, Length: 1000,
			RawLength: 1000,
		}
		for j := range batches {
			e.Batches = append(e.Batches, Batch{
				Length: 1000, Records: 1, MaxTimestamp: 1_700_000_000_000,
				Producer: ProducerID((i + j*producers/batches) % producers),
			})
		}
		f.Extents = append(f.Extents, e)
	}
	return f
}

// BenchmarkDecide is a commit without its database: load, fold, rules, encoding, publishing.
func BenchmarkDecide(b *testing.B) {
	for _, c := range []struct{ partitions, producers, batches int }{
		{1, 1, 1}, {10, 100, 100}, {100, 100, 1}, {1000, 100, 1}, {10_000, 100, 1},
	} {
		b.Run(fmt.Sprintf("partitions=%d/producers=%d/batches=%d", c.partitions, c.producers, c.batches), func(b *testing.B) {
			driver := &nullDriver{now: 1_700_000_000_000}
			s := NewStore(Options{Driver: driver})
			f := benchFlush(c.partitions, c.producers, c.batches)
			seq := Sequence(0)
			b.ReportAllocs()
			for b.Loop() {
				f.ID[0]++
				f.Seen = driver.now
				// Commit owns what it is given.
				all := make([]Batch, 0, c.partitions*c.batches)
				for i := range f.Extents {
					e := &f.Extents[i]
					from := len(all)
					all = append(all, e.Batches...)
					e.Batches = all[from:len(all):len(all)]
					for j := range e.Batches {
						e.Batches[j].First, e.Batches[j].Last = seq, seq
					}
				}
				seq = seq.Next(1)
				results, err := s.Commit(context.Background(), []*Flush{f})
				if err != nil || results[0].Batches[0].Code != CodeAccepted {
					b.Fatalf("%v, %+v", err, results)
				}
			}
			b.ReportMetric(float64(b.N)*float64(c.partitions*c.batches)/b.Elapsed().Seconds(), "batches/s")
		})
	}
}

// BenchmarkFold is what another agent does with rows of a commit.
func BenchmarkFold(b *testing.B) {
	f := benchFlush(SlotsPerBlock, 100, 4)
	row := &Row{Block: 1, Photo: EmptyPhoto()}
	for i := range f.Extents {
		e := &f.Extents[i]
		for j := range e.Batches {
			e.Batches[j].Flags = FlagAccepted
		}
		row.Touched = append(row.Touched, Touched{Slot: e.Slot, Length: e.Length, RawLength: e.RawLength, Batches: e.Batches})
	}
	encoded := AppendTouched(nil, row.Touched)
	s := NewState(BlockRow{ID: 1})
	b.ReportAllocs()
	for b.Loop() {
		touched, err := DecodeTouched(encoded)
		if err != nil {
			b.Fatal(err)
		}
		row.Seq, row.Touched, row.NoPhoto = s.Seq+1, touched, true
		if err := s.Apply(row); err != nil {
			b.Fatal(err)
		}
	}
}
