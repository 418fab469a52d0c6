package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"

	lite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/skeinio/skein/metadata"
)

// Bounds of a connection.
const (
	writerCacheKiB = 16 << 10
	readerCacheKiB = 4 << 10
	// busyTimeoutMillis is how long a statement waits for a lock of somebody who looks at the file with another tool.
	busyTimeoutMillis = 10_000
	// walSoftBytes is after how many bytes written, by estimate, the write-ahead log is copied into the database.
	walSoftBytes = 8 << 20
	// walKeepBytes is what the log's file is cut to when it starts again. Up to there it is overwritten in place, which
	// syncs faster than a file that grows.
	walKeepBytes = 64 << 20
	// statementBytes is the estimate of what a statement that changes rows adds to the log beside its values: a page.
	statementBytes = 4 << 10
)

// session is one connection and its prepared statements. One goroutine uses it at a time. Its statements run without
// the caller's context: they are short and local, and one interrupted half-way would leave a transaction in doubt.
type session struct {
	db      *sql.DB
	conn    *sql.Conn
	stmts   map[string]*sql.Stmt
	written int64 // bytes, by estimate, since the log was last copied
}

func openSession(ctx context.Context, path string, cacheKiB int) (*session, error) {
	pragmas := []string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeoutMillis),
		"journal_mode(WAL)",
		"synchronous(FULL)",
		fmt.Sprintf("cache_size(-%d)", cacheKiB),
		"wal_autocheckpoint(0)", // Driver.tidy does it, beside the commits
		fmt.Sprintf("journal_size_limit(%d)", walKeepBytes),
	}
	dsn := (&url.URL{Scheme: "file", Path: path, RawQuery: url.Values{"_pragma": pragmas}.Encode()}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(failure(err), db.Close())
	}
	return &session{db: db, conn: conn, stmts: map[string]*sql.Stmt{}}, nil
}

func (s *session) close() error {
	var errs []error
	for _, stmt := range s.stmts {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(append(errs, s.conn.Close(), s.db.Close())...)
}

// checkDurable refuses a database that would lose commits.
func (s *session) checkDurable() error {
	var mode string
	var sync int
	if err := s.row("PRAGMA journal_mode").Scan(&mode); err != nil {
		return failure(err)
	}
	if err := s.row("PRAGMA synchronous").Scan(&sync); err != nil {
		return failure(err)
	}
	if mode != "wal" || sync != 2 {
		return fmt.Errorf("journal_mode is %s and synchronous is %d, want wal and 2 (FULL)", mode, sync)
	}
	return nil
}

func (s *session) prepare(query string) (*sql.Stmt, error) {
	if stmt := s.stmts[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, failure(err)
	}
	s.stmts[query] = stmt
	return stmt, nil
}

// exec runs a statement and gives how many rows it changed.
func (s *session) exec(query string, args ...any) (int64, error) {
	stmt, err := s.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := stmt.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, failure(err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, err
	}
	if n > 0 {
		s.written += statementBytes
		for _, a := range args {
			if b, ok := a.([]byte); ok {
				s.written += int64(len(b))
			}
		}
	}
	return n, nil
}

// scanner is a *sql.Row, or the error of getting one.
type scanner interface{ Scan(dest ...any) error }

type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }

// row runs a query for one row; its Scan gives sql.ErrNoRows when there is none.
func (s *session) row(query string, args ...any) scanner {
	stmt, err := s.prepare(query)
	if err != nil {
		return failed{err}
	}
	return stmt.QueryRowContext(context.Background(), args...)
}

// each runs a query and calls fn for every row. Bytes scanned as sql.RawBytes are valid until fn returns.
func (s *session) each(query string, args []any, fn func(*sql.Rows) error) error {
	stmt, err := s.prepare(query)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(context.Background(), args...)
	if err != nil {
		return failure(err)
	}
	for rows.Next() {
		if err := fn(rows); err != nil {
			return errors.Join(failure(err), rows.Close())
		}
	}
	return failure(errors.Join(rows.Err(), rows.Close()))
}

// failure says which of the metadata package's errors an SQLite error is. Others stay as they are.
func failure(err error) error {
	var e *lite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w", metadata.ErrCorrupt, err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM,
		sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT:
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
	}
	return err
}

// acquire takes a session out of its pool.
func (d *Driver) acquire(ctx context.Context, pool chan *session) (*session, error) {
	select {
	case <-d.closed:
		return nil, fmt.Errorf("%w: database is closed", metadata.ErrUnavailable)
	default:
	}
	select {
	case s := <-pool:
		return s, nil
	case <-d.closed:
		return nil, fmt.Errorf("%w: database is closed", metadata.ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: waiting for the database: %w", metadata.ErrUnavailable, ctx.Err())
	}
}

// write runs fn in a writing transaction. When fn fails nothing is saved. An error of the COMMIT itself is
// ErrUnknownOutcome: the log's last frames may or may not have reached the disk. After a commit it calls done, if not nil,
// before anybody else writes.
func (d *Driver) write(ctx context.Context, fn func(*session) error, done func()) error {
	s, err := d.acquire(ctx, d.writer)
	if err != nil {
		return err
	}
	defer func() { d.writer <- s }()
	if _, err := s.exec("BEGIN IMMEDIATE"); err != nil {
		if _, rollbackErr := s.exec("ROLLBACK"); rollbackErr != nil {
			return err
		}
		// A rollback that failed before had left a transaction open.
		if _, err = s.exec("BEGIN IMMEDIATE"); err != nil {
			return err
		}
	}
	if err := fn(s); err != nil {
		return errors.Join(err, s.rollback())
	}
	if _, err := s.exec("COMMIT"); err != nil {
		return errors.Join(fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, err), s.rollback())
	}
	if done != nil {
		done()
	}
	d.tidy(s)
	return nil
}

func (s *session) rollback() error {
	_, err := s.exec("ROLLBACK")
	if err != nil && strings.Contains(err.Error(), "no transaction is active") {
		return nil // SQLite rolled back by itself
	}
	return err
}

// read runs fn in a reading transaction: all it reads is one view.
func (d *Driver) read(ctx context.Context, fn func(*session) error) error {
	s, err := d.acquire(ctx, d.readers)
	if err != nil {
		return err
	}
	defer func() { d.readers <- s }()
	if _, err := s.exec("BEGIN"); err != nil {
		return err
	}
	return errors.Join(fn(s), s.rollback())
}
