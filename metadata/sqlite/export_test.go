package sqlite

import (
	"context"
	"database/sql"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Write runs statements in one writing transaction.
func (d *Driver) Write(ctx context.Context, fn func(exec func(query string, args ...any) error) error) error {
	return d.write(ctx, func(s *session) error {
		return fn(func(query string, args ...any) error {
			_, err := s.exec(query, args...)
			return err
		})
	}, nil)
}

// Query reads rows.
func (d *Driver) Query(ctx context.Context, query string, args []any, fn func(*sql.Rows) error) error {
	return d.read(ctx, func(s *session) error { return s.each(query, args, fn) })
}

// Statements gives every statement that was run so far.
func (d *Driver) Statements(ctx context.Context) ([]string, error) {
	var all []string
	for _, pool := range []chan *session{d.writer, d.readers} {
		for range cap(pool) {
			s, err := d.acquire(ctx, pool)
			if err != nil {
				return nil, err
			}
			for query := range s.stmts {
				all = append(all, query)
			}
			defer func() { pool <- s }()
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Place is where a row is.
func Place(b metadata.BlockID, seq metadata.Seq) int64 { return place(b, seq) }
