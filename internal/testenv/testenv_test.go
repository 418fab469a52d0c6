package testenv

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// emptyFinder is a machine with nothing on it but the given files.
func emptyFinder(env map[string]string, files ...string) finder {
	has := func(path string) bool {
		for _, f := range files {
			if f == path {
				return true
			}
		}
		return false
	}
	return finder{
		getenv: func(name string) string { return env[name] },
		lookPath: func(name string) (string, error) {
			if !strings.Contains(name, "/") {
				name = "/path/" + name
			}
			if has(name) {
				return name, nil
			}
			return "", exec.ErrNotFound
		},
		glob: func(pattern string) ([]string, error) {
			var found []string
			for _, f := range files {
				if ok, err := filepath.Match(pattern, filepath.Dir(f)); err != nil {
					return nil, err
				} else if ok {
					found = append(found, filepath.Dir(f))
				}
			}
			return found, nil
		},
	}
}

func postgresFiles(dir string) []string {
	return []string{dir + "/initdb", dir + "/postgres", dir + "/psql"}
}

func TestNothingFound(t *testing.T) {
	f := emptyFinder(map[string]string{"HOME": "/home/me"})
	_, err := f.postgresBin()
	wantWords(t, err, "no Postgres", "make tools", EnvPostgresURL, EnvPostgresBin)
	_, err = f.psql()
	wantWords(t, err, "no psql", "make tools")
	_, err = f.minioBin()
	wantWords(t, err, "no MinIO", "make tools", EnvMinIOEndpoint, EnvMinIOBin, "/home/me/.cache/skein-tools/bin/minio")
	_, err = f.kcatBin()
	wantWords(t, err, "no kcat", "make tools", EnvKcatBin)
	_, err = f.haproxyBin()
	wantWords(t, err, "no haproxy", "make tools", EnvHAProxyBin)

	f = emptyFinder(map[string]string{EnvPostgresBin: "/nowhere", EnvMinIOBin: "/nowhere/minio", EnvKcatBin: "/nowhere/kcat"},
		append(postgresFiles("/usr/lib/postgresql/15/bin"), "/path/minio")...)
	_, err = f.postgresBin()
	wantWords(t, err, EnvPostgresBin, "/nowhere")
	_, err = f.minioBin()
	wantWords(t, err, EnvMinIOBin, "/nowhere/minio")
	_, err = f.kcatBin()
	wantWords(t, err, EnvKcatBin, "/nowhere/kcat")
}

func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error does not name %q: %v", word, err)
		}
	}
}

func TestFinders(t *testing.T) {
	system := append(postgresFiles("/usr/lib/postgresql/9/bin"), postgresFiles("/usr/lib/postgresql/15/bin")...)
	tests := []struct {
		name  string
		env   map[string]string
		files []string
		want  string
	}{
		{"newest of the packages'", nil, system, "/usr/lib/postgresql/15/bin"},
		{"PATH first", nil, append(postgresFiles("/path"), system...), "/path"},
		{"client only on the PATH", nil, append([]string{"/path/initdb"}, system...), "/usr/lib/postgresql/15/bin"},
		{"variable first of all", map[string]string{EnvPostgresBin: "/mine"}, append(postgresFiles("/mine"), postgresFiles("/path")...), "/mine"},
		{"tools cache", map[string]string{"XDG_CACHE_HOME": "/c"}, append(postgresFiles("/c/skein-tools/postgres/bin"), system...), "/c/skein-tools/postgres/bin"},
	}
	for _, test := range tests {
		got, err := emptyFinder(test.env, test.files...).postgresBin()
		if err != nil || got != test.want {
			t.Errorf("%s: got %q, error %v, want %q", test.name, got, err, test.want)
		}
	}
	for _, test := range []struct {
		env   map[string]string
		files []string
		want  string
	}{
		{map[string]string{"XDG_CACHE_HOME": "/c"}, []string{"/c/skein-tools/bin/minio"}, "/c/skein-tools/bin/minio"},
		{map[string]string{"XDG_CACHE_HOME": "/c"}, []string{"/c/skein-tools/bin/minio", "/path/minio"}, "/path/minio"},
		{map[string]string{EnvMinIOBin: "/mine/minio"}, []string{"/mine/minio", "/path/minio"}, "/mine/minio"},
	} {
		got, err := emptyFinder(test.env, test.files...).minioBin()
		if err != nil || got != test.want {
			t.Errorf("minio: got %q, error %v, want %q", got, err, test.want)
		}
	}
	if got, err := emptyFinder(nil, "/usr/sbin/haproxy").haproxyBin(); err != nil || got != "/usr/sbin/haproxy" {
		t.Errorf("HAProxy outside of the PATH: got %q, error %v", got, err)
	}
	if got, err := emptyFinder(nil, "/path/kafkacat").kcatBin(); err != nil || got != "/path/kafkacat" {
		t.Errorf("kcat under its old name: got %q, error %v", got, err)
	}
}

// query runs a statement on a database and gives its one value.
func query(t *testing.T, url, statement string) (string, error) {
	t.Helper()
	psql, err := systemFinder().psql()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, psql, "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", statement, url).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustQuery(t *testing.T, url, statement string) string {
	t.Helper()
	out, err := query(t, url, statement)
	if err != nil {
		t.Fatalf("%s: %v: %s", statement, err, out)
	}
	return out
}

func TestPostgresDatabasesAreIsolated(t *testing.T) {
	one, two := PostgresDatabase(t), PostgresDatabase(t)
	mustQuery(t, one, "CREATE TABLE mine (id int)")
	if got := mustQuery(t, two, "SELECT count(*) FROM pg_tables WHERE tablename = 'mine'"); got != "0" {
		t.Errorf("another test's table is visible")
	}
	if got := mustQuery(t, one, "SHOW fsync"); got != "on" {
		t.Errorf("fsync is %s", got)
	}
	var gone string
	t.Run("child", func(t *testing.T) {
		url := PostgresDatabase(t)
		gone = mustQuery(t, url, "SELECT current_database()")
	})
	if got := mustQuery(t, Postgres(t), "SELECT count(*) FROM pg_database WHERE datname = '"+gone+"'"); got != "0" {
		t.Errorf("database %s outlived its test", gone)
	}
}

func TestPostgresFaults(t *testing.T) {
	s := NewPostgres(t)
	url := s.Database(t)
	mustQuery(t, url, "CREATE TABLE kept (id int); INSERT INTO kept VALUES (42)")
	faults := []struct {
		name string
		stop func() error
	}{
		{"stop", func() error { return s.Stop(false) }},
		{"stop immediately", func() error { return s.Stop(true) }},
		{"kill", s.Kill},
	}
	for _, fault := range faults {
		if err := fault.stop(); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		if out, err := query(t, url, "SELECT 1"); err == nil {
			t.Errorf("after %s it still answers %s", fault.name, out)
		}
		if err := s.Start(); err != nil {
			t.Fatalf("start after %s: %v", fault.name, err)
		}
		if got := mustQuery(t, url, "SELECT id FROM kept"); got != "42" {
			t.Errorf("after %s: got %q", fault.name, got)
		}
	}
	if err := s.Start(); err == nil {
		t.Error("starting a running server is no error")
	}
	testPause(t, s, url)
}

// TestPostgresOnAnotherPort wants a server whose port somebody took to be started on another one.
func TestPostgresOnAnotherPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bin, err := systemFinder().postgresBin()
	if err != nil {
		t.Fatal(err)
	}
	taken := l.Addr().(*net.TCPAddr).Port
	ports := []func() (int, error){func() (int, error) { return taken, nil }, freePort}
	s, err := startPostgresOn(bin, func() (int, error) {
		port := ports[0]
		ports = ports[1:]
		return port()
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Port == taken || len(ports) > 0 {
		t.Errorf("it is on port %d, %d was taken", s.Port, taken)
	}
	if got := mustQuery(t, s.URL(), "SELECT 1"); got != "1" {
		t.Errorf("it answers %q", got)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// testPause wants a frozen server to go on with a query when it is thawed, and not before.
func testPause(t *testing.T, s *PostgresServer, url string) {
	if err := s.Pause(); err != nil {
		t.Fatalf("pause: %v", err)
	}
	answer := make(chan string, 1)
	go func() {
		out, err := query(t, url, "SELECT 'thawed'")
		if err != nil {
			out = err.Error()
		}
		answer <- out
	}()
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(s.Port))
	if err != nil {
		t.Fatalf("the kernel refuses connections to a frozen server: %v", err)
	}
	conn.Close()
	select {
	case out := <-answer:
		t.Errorf("a frozen server answered %q", out)
	default:
	}
	if err := s.Resume(); err != nil {
		t.Fatalf("resume: %v", err)
	}
	if out := <-answer; out != "thawed" {
		t.Errorf("after resume: %q", out)
	}
}

func TestMinIOShared(t *testing.T) {
	s := MinIO(t)
	if err := minioHealth(s.Endpoint); err != nil {
		t.Fatal(err)
	}
	if again := MinIO(t); again != s {
		t.Error("two shared servers")
	}
	if a, b := s.BucketName(), s.BucketName(); a == b || len(a) > 63 {
		t.Errorf("bucket names %q and %q", a, b)
	}
}

func TestMinIOFaults(t *testing.T) {
	s := NewMinIO(t)
	for name, stop := range map[string]func() error{"stop": s.Stop, "kill": s.Kill} {
		if err := stop(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := minioHealth(s.Endpoint); err == nil {
			t.Errorf("after %s it still answers", name)
		}
		if err := s.Start(); err != nil {
			t.Fatalf("start after %s: %v", name, err)
		}
	}
	if err := s.Pause(); err != nil {
		t.Fatalf("pause: %v", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatalf("resume: %v", err)
	}
	if err := minioHealth(s.Endpoint); err != nil {
		t.Errorf("after resume: %v", err)
	}
}

// envVictim makes this test binary start servers and wait to be killed.
const envVictim = "SKEIN_TESTENV_VICTIM"

// TestNothingOutlivesAKilledTest kills a test process with SIGKILL and wants its servers to end and
// their folders to go.
func TestNothingOutlivesAKilledTest(t *testing.T) {
	if os.Getenv(envVictim) != "" {
		victim(t)
		return
	}
	temp := t.TempDir()
	if err := os.Chmod(filepath.Dir(temp), 0o755); err != nil { // Postgres runs as another user
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), envVictim+"=1", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "server "); ok {
			pid, err := strconv.Atoi(rest)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		if len(pids) == 2 {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed: the error is what is wanted
	if len(pids) != 2 {
		t.Fatalf("the victim started %d servers", len(pids))
	}
	deadline := time.Now().Add(startTimeout)
	for { // what is waited for happens in processes that are not ours to wait on
		left, err := filepath.Glob(filepath.Join(temp, "skein-*"))
		if err != nil {
			t.Fatal(err)
		}
		alive := 0
		for _, pid := range pids {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				alive++
			}
		}
		if alive == 0 && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d servers alive, left behind: %v", alive, left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func victim(t *testing.T) {
	p, m := NewPostgres(t), NewMinIO(t)
	if err := p.Pause(); err != nil { // the hard case: a server that does not hear a signal
		t.Fatal(err)
	}
	os.Stdout.WriteString("\nserver " + strconv.Itoa(p.server.pid()) + "\nserver " + strconv.Itoa(m.PID()) + "\n")
	<-t.Context().Done() // never: this process is killed
}
