package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// postgresConnections is the max_connections of servers that this package starts.
const postgresConnections = 200

// startAttempts is how often a server is started on another port when somebody took its port.
const startAttempts = 5

// PostgresServer is a Postgres server. Only one from NewPostgres can be stopped, frozen or killed.
type PostgresServer struct {
	url    *url.URL                                          // of the maintenance database
	sql    func(ctx context.Context, statement string) error // runs a statement in it
	server *server                                           // nil when somebody else runs it
	Port   int                                               // of a server started here
}

// sharedPostgres is the test process's one server; it lives until the process ends.
var sharedPostgres = sync.OnceValues(func() (*PostgresServer, error) {
	f := systemFinder()
	if raw := os.Getenv(EnvPostgresURL); raw != "" {
		return remotePostgres(f, raw)
	}
	bin, err := f.postgresBin()
	if err == nil {
		return startPostgres(bin)
	}
	return containerPostgres(err)
})

// Postgres gives the URL of the shared server's maintenance database. Use PostgresDatabase for a
// database of the test's own.
func Postgres(t testing.TB) string {
	t.Helper()
	return postgres(t).URL()
}

func postgres(t testing.TB) *PostgresServer {
	t.Helper()
	s, err := sharedPostgres()
	if err != nil {
		t.Fatalf("Postgres for tests: %v", err)
	}
	return s
}

// PostgresDatabase makes an empty database in the shared server, which goes when the test ends, and
// gives its URL.
func PostgresDatabase(t testing.TB) string {
	t.Helper()
	return postgres(t).Database(t)
}

// NewPostgres starts a server of the test's own, from local binaries. It goes when the test ends.
func NewPostgres(t testing.TB) *PostgresServer {
	t.Helper()
	bin, err := systemFinder().postgresBin()
	if err != nil {
		t.Fatalf("a Postgres that a test can stop needs local binaries: %v", err)
	}
	s, err := startPostgres(bin)
	if err != nil {
		t.Fatalf("Postgres for tests: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close Postgres: %v", err)
		}
	})
	return s
}

// StartPostgres starts a server for a development tool, from local binaries; Close ends it.
func StartPostgres() (*PostgresServer, error) {
	bin, err := systemFinder().postgresBin()
	if err != nil {
		return nil, err
	}
	return startPostgres(bin)
}

// URL is the maintenance database's. The user is a superuser.
func (s *PostgresServer) URL() string { return s.url.String() }

// DatabaseURL is the URL of a database in the server.
func (s *PostgresServer) DatabaseURL(name string) string {
	u := *s.url
	u.Path = "/" + name
	return u.String()
}

// Database makes an empty database that goes when the test ends, and gives its URL.
func (s *PostgresServer) Database(t testing.TB) string {
	t.Helper()
	name := "skein_" + strings.ToLower(rand.Text())
	if err := s.sql(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("create database: %v", err)
	}
	t.Cleanup(func() {
		if s.server != nil && !s.server.alive() {
			return // the test stopped it for good
		}
		// The test's context has ended by now.
		if err := s.sql(context.Background(), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("drop database: %v", err)
		}
	})
	return s.DatabaseURL(name)
}

// Stop ends the server: at once and without a checkpoint (SIGQUIT) when immediate, otherwise in order,
// cutting off clients (SIGINT). Start starts it again, on the same port and data.
func (s *PostgresServer) Stop(immediate bool) error {
	if immediate {
		return s.server.stop(syscall.SIGQUIT)
	}
	return s.server.stop(syscall.SIGINT)
}

// Start starts a server that was stopped or killed.
func (s *PostgresServer) Start() error { return s.server.start() }

// Kill ends the server and its backends with SIGKILL.
func (s *PostgresServer) Kill() error { return s.server.kill() }

// Pause freezes the server and its backends: connections stay open and nothing answers.
func (s *PostgresServer) Pause() error { return s.server.signalAll(syscall.SIGSTOP) }

// Resume thaws what Pause froze.
func (s *PostgresServer) Resume() error { return s.server.signalAll(syscall.SIGCONT) }

// Close ends the server for good and removes its data.
func (s *PostgresServer) Close() error {
	if s.server == nil {
		return nil
	}
	if s.server.alive() {
		if err := s.Resume(); err != nil { // a frozen server does not hear a signal
			return errors.Join(err, s.server.kill(), s.server.close(syscall.SIGKILL))
		}
	}
	return s.server.close(syscall.SIGQUIT)
}

// remotePostgres uses a server that runs already.
func remotePostgres(f finder, raw string) (*PostgresServer, error) {
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return nil, fmt.Errorf("%s: want postgres://user@host:port/database", EnvPostgresURL)
	}
	psql, err := f.psql()
	if err != nil {
		return nil, err
	}
	s := &PostgresServer{url: u, sql: psqlRunner(psql, raw)}
	if err := s.sql(context.Background(), "SELECT 1"); err != nil {
		return nil, fmt.Errorf("%s: %w", EnvPostgresURL, err)
	}
	return s, nil
}

// psqlRunner runs statements through the client: only the Postgres store imports a driver.
func psqlRunner(psql, url string) func(context.Context, string) error {
	return func(ctx context.Context, statement string) error {
		cmd := exec.CommandContext(ctx, psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement, url)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("psql %q: %w: %s", statement, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
}

func startPostgres(bin string) (*PostgresServer, error) { return startPostgresOn(bin, freePort) }

// startPostgresOn starts a server on one of the ports that port gives.
func startPostgresOn(bin string, port func() (int, error)) (*PostgresServer, error) {
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		p, err := port()
		if err != nil {
			return nil, err
		}
		s, err := launchPostgres(bin, p, owner)
		if err == nil {
			return s, nil
		}
		if attempt == startAttempts || !strings.Contains(err.Error(), "Address already in use") {
			return nil, err
		}
	}
}

// unprivileged is whom Postgres runs as: it refuses root. Nil when this process is not root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("Postgres refuses to run as root, and there is neither a user postgres nor nobody")
}

func initPostgres(bin, dir string, owner *syscall.Credential) error {
	if owner != nil {
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return fmt.Errorf("give Postgres its folder: %w", err)
		}
	}
	// --no-sync spares fsyncs of a cluster that holds nothing yet; the server itself runs with fsync on.
	cmd := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "postgres",
		"--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// launchPostgres makes a cluster and starts a server of it. Where that fails the folder goes: another attempt has its own.
func launchPostgres(bin string, port int, owner *syscall.Credential) (*PostgresServer, error) {
	dir, err := os.MkdirTemp("", "skein-postgres-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for Postgres: %w", err)
	}
	if err := initPostgres(bin, dir, owner); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &PostgresServer{
		url:  &url.URL{Scheme: "postgres", User: url.User("postgres"), Host: "127.0.0.1:" + strconv.Itoa(port), Path: "/postgres", RawQuery: "sslmode=disable"},
		Port: port,
		server: &server{
			name: "Postgres", dir: dir, path: filepath.Join(bin, "postgres"), user: owner,
			args: []string{
				"-D", filepath.Join(dir, "data"), "-p", strconv.Itoa(port),
				"-c", "listen_addresses=127.0.0.1",
				"-c", "unix_socket_directories=" + dir,
				"-c", "max_connections=" + strconv.Itoa(postgresConnections),
				"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "full_page_writes=on",
				"-c", "logging_collector=off", "-c", "log_destination=stderr",
			},
			ready: func(s *server) error { return s.waitFor("database system is ready to accept connections") },
		},
	}
	s.sql = psqlRunner(filepath.Join(bin, "psql"), s.URL())
	if err := s.server.launch("QUIT"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}
