package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// expiredProducerRanges is how many old ranges one allocation removes at most: more than it adds.
const expiredProducerRanges = 100

// AllocateProducerIDs implements metadata.Driver. Ranges that were handed out longer ago than any state is kept are
// removed on the way: nobody asks how old they are.
func (d *Driver) AllocateProducerIDs(ctx context.Context, count int) (metadata.ProducerRange, error) {
	if count < 1 {
		return metadata.ProducerRange{}, fmt.Errorf("allocate %d producer ids: not positive", count)
	}
	r := metadata.ProducerRange{Count: count}
	err := d.write(ctx, func(s *session) error {
		r.At = d.millis()
		err := s.row("UPDATE cluster SET next_producer = next_producer + ? RETURNING next_producer - ?", count, count).
			Scan(&r.First)
		if err != nil {
			return failure(err)
		}
		_, err = s.exec("INSERT INTO producer_ids (first, count, time) VALUES (?, ?, ?)", int64(r.First), count, int64(r.At))
		if err != nil {
			return err
		}
		_, err = s.exec(`DELETE FROM producer_ids WHERE first IN (SELECT first FROM producer_ids ORDER BY first LIMIT ?)
			AND time < ?`, expiredProducerRanges, int64(r.At.Add(-2*metadata.ProducerExpiry)))
		return err
	}, nil)
	if err != nil {
		return metadata.ProducerRange{}, err
	}
	return r, nil
}

// ProducerRangeOf implements metadata.Driver.
func (d *Driver) ProducerRangeOf(ctx context.Context, ids []metadata.ProducerID) ([]metadata.ProducerRange, error) {
	var found []metadata.ProducerRange
	err := d.read(ctx, func(s *session) error {
		for _, id := range ids {
			if slices.ContainsFunc(found, func(r metadata.ProducerRange) bool { return r.Contains(id) }) {
				continue
			}
			var r metadata.ProducerRange
			err := s.row("SELECT first, count, time FROM producer_ids WHERE first <= ? ORDER BY first DESC LIMIT 1", int64(id)).
				Scan(&r.First, &r.Count, &r.At)
			switch {
			case errors.Is(err, sql.ErrNoRows):
			case err != nil:
				return failure(err)
			case r.Contains(id):
				found = append(found, r)
			}
		}
		return nil
	})
	return found, err
}
