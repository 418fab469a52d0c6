package postgres

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Keepalives: a peer that vanished is noticed after about keepaliveIdle + keepaliveCount * keepaliveInterval, and one
// that does not acknowledge what was sent after userTimeout.
const (
	keepaliveIdle     = 5 * time.Second
	keepaliveInterval = 2 * time.Second
	keepaliveCount    = 3
	userTimeout       = 10 * time.Second
)

func millis(d time.Duration) string  { return strconv.FormatInt(d.Milliseconds(), 10) }
func seconds(d time.Duration) string { return strconv.FormatInt(int64(d.Seconds()), 10) }

// connConfig parses the URL and adds what every session of Skein has. What the URL sets wins, but for
// application_name, by which the lock watch knows Skein's sessions.
func connConfig(url string) (*pgx.ConnConfig, error) {
	pool, err := pgxpool.ParseConfig(url) // knows the pool_… parameters as well
	if err != nil {
		return nil, fmt.Errorf("postgres URL: %w", err) // pgx hides the password in it
	}
	c := pool.ConnConfig
	for name, value := range map[string]string{
		"idle_in_transaction_session_timeout": millis(idleInTransactionTimeout),
		"lock_timeout":                        millis(lockTimeout),
		"statement_timeout":                   millis(statementTimeout),
		"tcp_keepalives_idle":                 seconds(keepaliveIdle),
		"tcp_keepalives_interval":             seconds(keepaliveInterval),
		"tcp_keepalives_count":                strconv.Itoa(keepaliveCount),
		"tcp_user_timeout":                    millis(userTimeout),
	} {
		if _, ok := c.RuntimeParams[name]; !ok {
			c.RuntimeParams[name] = value
		}
	}
	c.RuntimeParams["application_name"] = applicationName
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	dialer := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
		},
		Control: setUserTimeout,
	}
	c.DialFunc = dialer.DialContext
	c.OnNotice = onNotice
	return c, nil
}

// hotSettings are for the sessions that run the prepared statements. Their plans are made once, when tables may be
// empty: without these settings a plan that suits an empty table stays until the next ANALYZE.
func hotSettings() map[string]string {
	return map[string]string{
		"plan_cache_mode": "force_generic_plan",
		"enable_seqscan":  "off",
		"jit":             "off",
	}
}

// localOnlyKey marks a connection whose COMMIT was told that it is not known to be replicated.
const localOnlyKey = "skein.local-only"

// onNotice hears that a COMMIT gave up waiting for synchronous replication: it is committed here and perhaps nowhere
// else, yet the server answers COMMIT. Such a commit must be taken for unknown.
func onNotice(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[localOnlyKey] = true
	}
}

// localOnly says whether onNotice heard that, and forgets it.
func localOnly(conn *pgconn.PgConn) bool {
	_, heard := conn.CustomData()[localOnlyKey]
	delete(conn.CustomData(), localOnlyKey)
	return heard
}

// SettingError says that a server is set up so that Skein must not use it.
type SettingError struct {
	Setting string
	Value   string
	Reason  string
	mayPass bool
}

func (e *SettingError) Error() string {
	return fmt.Sprintf("%s is %s: %s", e.Setting, e.Value, e.Reason)
}

// server is what every new connection reads.
type server struct {
	version           int
	fsync             string
	synchronousCommit string
	standby           bool
	incarnation       Incarnation
}

const serverSQL = `
SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('synchronous_commit'),
	pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
	CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END,
	CASE WHEN pg_is_in_recovery() THEN 0 ELSE (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8 END`

func readServer(ctx context.Context, conn *pgx.Conn) (server, error) {
	var s server
	var walFile string
	err := conn.QueryRow(ctx, serverSQL).Scan(&s.version, &s.fsync, &s.synchronousCommit, &s.standby,
		&s.incarnation.System, &walFile, &s.incarnation.LSN)
	if err != nil {
		return s, fmt.Errorf("read the server's settings: %w", err)
	}
	if len(walFile) >= 8 { // a WAL file's name starts with the timeline in hexadecimal
		timeline, err := strconv.ParseUint(walFile[:8], 16, 32)
		if err != nil {
			return s, fmt.Errorf("name of the WAL file %q: %w", walFile, err)
		}
		s.incarnation.Timeline = uint32(timeline)
	}
	return s, nil
}

// refuse says why a server must not be used: what it acknowledges would not be durable.
func (s *server) refuse() error {
	switch {
	case s.version < minServerVersion:
		return &SettingError{"server_version_num", strconv.Itoa(s.version), "Skein needs Postgres 14 or newer", false}
	case s.standby:
		return &SettingError{"pg_is_in_recovery()", "true", "this is a standby; Skein needs the primary (target_session_attrs=read-write finds it)", true}
	case s.fsync != "on":
		return &SettingError{"fsync", s.fsync, "a crash of the server would lose acknowledged records; Skein does not run on it", false}
	case s.synchronousCommit == "off":
		return &SettingError{"synchronous_commit", s.synchronousCommit, "a crash of the server would lose acknowledged records; Skein does not run on it", false}
	}
	return nil
}

// checkServer is done on every new connection that writes or reads.
func (d *Driver) checkServer(ctx context.Context, conn *pgx.Conn) error {
	floor := d.Incarnation()
	s, err := readServer(ctx, conn)
	if err != nil {
		return err
	}
	if err := s.refuse(); err != nil {
		return err
	}
	d.sawIncarnation(floor, s.incarnation)
	return nil
}
