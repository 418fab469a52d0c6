package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/skeinio/skein/metadata"
)

// SQLSTATEs that mean something here (Postgres manual, appendix A).
const (
	codeUniqueViolation      = "23505"
	codeInvalidAuthorization = "28000"
	codeInvalidPassword      = "28P01"
	codeNoSuchDatabase       = "3D000"
	codeSerialization        = "40001"
	codeDeadlock             = "40P01"
	codeLockNotAvailable     = "55P03"
	codeCannotConnectNow     = "57P03"
	codeTooManyConnections   = "53300"
	codeAdminShutdown        = "57P01"
	codeCrashShutdown        = "57P02"
	codeCondemned            = "SK001" // raised by skein_condemned
	codeFenced               = "SK002" // raised by skein_require
)

// sqlstate gives the code of a server's error, or "".
func sqlstate(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// refused says that the server answered a statement with an error and goes on with the session: the transaction is
// aborted. A FATAL error ends the session, as does a lost connection.
func refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR"
}

// lost says that the session is gone: a FATAL error or a broken connection.
func lost(err error) bool {
	return err != nil && !refused(err) && !errors.Is(err, metadata.ErrCorrupt) && !errors.Is(err, errWire)
}

// worthAgain says that a transaction of which nothing was committed may succeed when it is simply begun again.
func worthAgain(err error) bool {
	switch sqlstate(err) {
	case codeLockNotAvailable, codeSerialization, codeDeadlock,
		codeUniqueViolation: // of a flush id or key that another transaction has just inserted
		return true
	}
	return false
}

// unavailable marks an error of which it is certain that nothing was committed.
func unavailable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, metadata.ErrCorrupt), errors.Is(err, errWire), errors.Is(err, metadata.ErrUnavailable):
		return err
	case sqlstate(err) == codeCondemned:
		return fmt.Errorf("%w: %w", metadata.ErrCondemned, err)
	case sqlstate(err) == codeFenced:
		return fmt.Errorf("%w: %w", metadata.ErrFenced, err)
	}
	return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
}

// explain says what keeps us from a server, for the person who gave the URL.
func explain(err error, config *pgx.ConnConfig) error {
	where := fmt.Sprintf("%s:%d", config.Host, config.Port)
	var settings *SettingError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &settings):
		return fmt.Errorf("postgres at %s: %w", where, settings)
	case sqlstate(err) == codeNoSuchDatabase:
		return fmt.Errorf("postgres at %s has no database %q: create it (CREATE DATABASE %s) or correct the URL: %w",
			where, config.Database, pgx.Identifier{config.Database}.Sanitize(), err)
	case sqlstate(err) == codeInvalidPassword, sqlstate(err) == codeInvalidAuthorization:
		return fmt.Errorf("postgres at %s does not let user %q in: wrong password or not allowed: %w", where, config.User, err)
	case sqlstate(err) == codeCannotConnectNow:
		return fmt.Errorf("%w: postgres at %s is starting up or shutting down: %w", metadata.ErrUnavailable, where, err)
	case sqlstate(err) != "":
		return fmt.Errorf("%w: postgres at %s refuses: %w", metadata.ErrUnavailable, where, err)
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("%w: postgres at %s cannot be reached: %w", metadata.ErrUnavailable, where, err)
}

// mayPass says whether an error of connecting may go away by waiting.
func mayPass(err error) bool {
	var settings *SettingError
	if errors.As(err, &settings) {
		return settings.mayPass
	}
	switch sqlstate(err) {
	case "", codeCannotConnectNow, codeTooManyConnections, codeAdminShutdown, codeCrashShutdown:
		return true
	}
	return false
}
