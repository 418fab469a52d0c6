package sqlite

import (
	"context"
	"fmt"
)

// tidy copies the write-ahead log into the database when enough was written: beside the commits, so that none of them
// waits for it. s is the writer.
func (d *Driver) tidy(s *session) {
	if s.written < walSoftBytes || !d.copying.CompareAndSwap(false, true) {
		return
	}
	s.written = 0
	d.background.Go(func() {
		defer d.copying.Store(false)
		if err := d.copyLog(context.Background()); err != nil {
			// What was committed is safe in the log; the next round copies it.
			d.log.Warn("write-ahead log not copied into the database", "error", err)
		}
	})
}

// copyLog copies most of the log on a reader's connection while commits go on, then the rest while none does: only a log
// that is copied to its end starts again.
func (d *Driver) copyLog(ctx context.Context) error {
	for _, pool := range []chan *session{d.readers, d.writer} {
		s, err := d.acquire(ctx, pool)
		if err != nil {
			return nil // closing: the last connection to close copies it all
		}
		err = s.copyLog()
		pool <- s
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) copyLog() error {
	var busy, frames, copied int
	if err := s.row("PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &frames, &copied); err != nil {
		return fmt.Errorf("copy the write-ahead log: %w", failure(err))
	}
	return nil
}

// InlineResident implements metadata.Driver. The payloads are counted once, then the count is kept: this process is the
// only one that changes them.
func (d *Driver) InlineResident(ctx context.Context) (int64, error) {
	if d.residentKnown.Load() {
		return d.resident.Load(), nil
	}
	s, err := d.acquire(ctx, d.writer) // no commit meanwhile
	if err != nil {
		return 0, err
	}
	defer func() { d.writer <- s }()
	var sum int64
	if err := s.row("SELECT coalesce(sum(size), 0) FROM inline").Scan(&sum); err != nil {
		return 0, fmt.Errorf("count inline payloads: %w", failure(err))
	}
	d.resident.Store(sum)
	d.residentKnown.Store(true)
	return sum, nil
}

// inlineChanged keeps the count of inline bytes. The writer is held.
func (d *Driver) inlineChanged(bytes int64) {
	if d.residentKnown.Load() {
		d.resident.Add(bytes)
	}
}
