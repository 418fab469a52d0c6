package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// program is the binary under test, built once.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "skein-cmd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "skein")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build skein: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// commandTimeout bounds one client command of a test.
const commandTimeout = time.Minute

// skein runs the program to its end.
func skein(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("skein %v: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// mustSkein is skein for a command that must succeed.
func mustSkein(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	code, stdout, stderr := skein(t, stdin, args...)
	if code != exitOK {
		t.Fatalf("skein %v: exit %d: %s", args, code, stderr)
	}
	return stdout
}

// server is a running `skein dev` or `skein agent`.
type server struct {
	cmd         *exec.Cmd
	kafka, http string
	mu          sync.Mutex
	log         []string
	ended       chan struct{} // closed when the log has ended
	lines       chan string
	after       *aftermath
}

var readyLine = regexp.MustCompile(`msg=ready kafka=(\S+) http=(\S+)`)

// start runs a server; its addresses are known when ready returns.
func start(t *testing.T, env []string, args ...string) *server {
	t.Helper()
	s := &server{cmd: exec.Command(program, args...), ended: make(chan struct{}), lines: make(chan string, 10_000)}
	s.cmd.Env = append(os.Environ(), env...)
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		defer close(s.lines)
		for in := bufio.NewScanner(stderr); in.Scan(); {
			s.mu.Lock()
			s.log = append(s.log, in.Text())
			s.mu.Unlock()
			s.lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill() // it may have ended meanwhile
			<-s.ended
			_ = s.cmd.Wait() // its status does not matter any more
		}
		if t.Failed() {
			t.Logf("log of the server:\n%s", s.text())
		}
	})
	return s
}

func (s *server) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, "\n")
}

// await waits for a line of the log.
func (s *server) await(t *testing.T, what *regexp.Regexp) []string {
	t.Helper()
	timeout := time.After(commandTimeout)
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				t.Fatalf("the server ended without %q:\n%s", what, s.text())
			}
			if m := what.FindStringSubmatch(line); m != nil {
				return m
			}
		case <-timeout:
			t.Fatalf("no %q in the log:\n%s", what, s.text())
		}
	}
}

// ready waits until the server is ready.
func (s *server) ready(t *testing.T) {
	t.Helper()
	m := s.await(t, readyLine)
	s.kafka, s.http = m[1], m[2]
}

// end sends a signal and gives the exit code.
func (s *server) end(t *testing.T, signal os.Signal) int {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return s.wait(t)
}

// wait waits for the server's end and gives its exit code.
func (s *server) wait(t *testing.T) int {
	t.Helper()
	for range s.lines { // until the log ends
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// get asks the server's HTTP listener.
func (s *server) get(t *testing.T, path string) (int, string) {
	t.Helper()
	r, err := http.Get(s.http + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// dev starts `skein dev` on a folder and waits until it is ready.
func dev(t *testing.T, data string, args ...string) *server {
	t.Helper()
	var after *aftermath
	if _, err := os.Stat(filepath.Join(data, "metadata.db")); err != nil { // the first one on this folder
		after = fsckAfter(t, nil, "sqlite:"+data+"/metadata.db", "file:"+data+"/bucket")
	}
	s := start(t, nil, append([]string{"dev", "--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--data", data}, args...)...)
	s.after = after
	s.ready(t)
	return s
}

// flags name the server to a client command.
func (s *server) flags(args ...string) []string { return append(args, "--bootstrap", s.kafka) }

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"version"}, exitOK, ""},
		{[]string{"--help"}, exitOK, ""},
		{nil, exitUsage, "skein needs a command"},
		{[]string{"fsck"}, exitUsage, "--metadata and --bucket are needed"},
		{[]string{"group", "reset", "g", "--topic", "t"}, exitUsage, "--to"},
		{[]string{"topc"}, exitUsage, "did you mean topic?"},
		{[]string{"topic", "lst"}, exitUsage, "did you mean list?"},
		{[]string{"topic", "create"}, exitUsage, "missing NAME"},
		{[]string{"topic", "create", "t", "-c", "nonsense"}, exitUsage, "want key=value"},
		{[]string{"produce"}, exitUsage, "missing TOPIC"},
		{[]string{"produce", "t", "--acks", "2"}, exitUsage, "want all, 1 or 0"},
		{[]string{"consume", "t", "--from", "never"}, exitUsage, "not earliest, latest"},
		{[]string{"consume", "t", "-f", "%q"}, exitUsage, "format has %q"},
		{[]string{"topic", "list", "-o", "xml"}, exitUsage, "not one of table, json"},
		{[]string{"topic", "list", "--bootstrap", "nowhere"}, exitUsage, `"nowhere" is not host:port`},
		{[]string{"topic", "list", "--bootstrap", "127.0.0.1:1"}, exitFailed, "no agent answers at 127.0.0.1:1"},
		{[]string{"migrate"}, exitUsage, "missing --metadata"},
		{[]string{"bench", "latency", "--record-bytes", "3"}, exitUsage, "--record-bytes 3"},
		{[]string{"segment", "dump", "nonsense", "k"}, exitUsage, "has no scheme"},
		{[]string{"segment", "dump", "mem:", "k"}, exitFailed, "no such object"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, _, stderr := skein(t, nil, tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.want) || tt.want != "" && strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit %d, %q; want exit %d and one line with %q", code, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestPortInUseExits1(t *testing.T) {
	s := dev(t, t.TempDir())
	code, _, stderr := skein(t, nil, "dev", "--listen", s.kafka, "--http=127.0.0.1:0", "--data", t.TempDir())
	if code != exitFailed || !strings.Contains(stderr, "address already in use") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	code, _, stderr = skein(t, nil, "dev", "--listen=127.0.0.1:0", "--http", strings.TrimPrefix(s.http, "http://"), "--data", t.TempDir())
	if code != exitFailed || !strings.Contains(stderr, "address already in use") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestDataInUseExits1(t *testing.T) {
	data := t.TempDir()
	dev(t, data)
	code, _, stderr := skein(t, nil, "dev", "--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--data", data)
	if code != exitFailed || !strings.Contains(stderr, "in use by another process") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestDevIsReady(t *testing.T) {
	began := time.Now()
	s := dev(t, filepath.Join(t.TempDir(), "made", "by", "dev"))
	t.Logf("ready after %v", time.Since(began))
	for path, want := range map[string]string{"/live": "live", "/ready": "ready", "/metrics": "skein_connections 0"} {
		if code, body := s.get(t, path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s answers %d %q", path, code, body)
		}
	}
	if code := s.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
}

// numbered is the lines prefix-0 to prefix-(n-1).
func numbered(prefix string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s-%d\n", prefix, i)
	}
	return b.String()
}

// TestDevKeepsEverythingOverAStop is the main job.
func TestDevKeepsEverythingOverAStop(t *testing.T) {
	data := t.TempDir()
	s := dev(t, data)
	mustSkein(t, strings.NewReader(numbered("a", 1000)), s.flags("produce", "auto")...)
	mustSkein(t, strings.NewReader("k1:v1\nk2:v2\nk1:v3\n"), s.flags("produce", "keyed", "-k", ":", "-H", "h=1", "--compression", "zstd")...)
	// Larger than inline: a segment.
	large := strings.Repeat("0123456789abcdef", 16<<10)
	mustSkein(t, strings.NewReader(large+"\n"), s.flags("produce", "large")...)

	check := func(s *server) {
		t.Helper()
		if got := mustSkein(t, nil, s.flags("consume", "auto", "--exit-at-end")...); got != numbered("a", 1000) {
			t.Errorf("consumed %d bytes, want the 1000 lines", len(got))
		}
		if got := mustSkein(t, nil, s.flags("consume", "auto", "--from", "998", "--exit-at-end", "-f", `%o %s\n`)...); got != "998 a-998\n999 a-999\n" {
			t.Errorf("from offset 998: %q", got)
		}
		if got := mustSkein(t, nil, s.flags("consume", "auto", "-n", "1")...); got != "a-0\n" {
			t.Errorf("first: %q", got)
		}
		if got := mustSkein(t, nil, s.flags("consume", "large", "--exit-at-end")...); got != large+"\n" {
			t.Errorf("large: %d bytes, want %d", len(got), len(large)+1)
		}
		keyed := mustSkein(t, nil, s.flags("consume", "keyed", "--exit-at-end", "-f", `%k=%s %h\n`)...)
		for _, want := range []string{"k1=v1 h=1\n", "k2=v2 h=1\n", "k1=v3 h=1\n"} {
			if !strings.Contains(keyed, want) {
				t.Errorf("%q is missing in %q", want, keyed)
			}
		}
	}
	check(s)
	if code := s.end(t, syscall.SIGTERM); code != exitOK {
		t.Fatalf("SIGTERM: exit %d", code)
	}
	s = dev(t, data)
	check(s)
	if code := s.end(t, syscall.SIGKILL); code != -1 {
		t.Fatalf("SIGKILL: exit %d", code)
	}
	s = dev(t, data)
	check(s)
}

// awaitMetric scrapes until a metric without labels is as wanted.
func (s *server) awaitMetric(t *testing.T, name string, wanted func(float64) bool) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`)
	deadline := time.Now().Add(commandTimeout)
	for time.Now().Before(deadline) {
		_, body := s.get(t, "/metrics")
		if m := line.FindStringSubmatch(body); m != nil {
			v, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			if wanted(v) {
				return
			}
		}
	}
	t.Fatalf("%s is not as wanted", name)
}

// onlyObject gives the key of the one object below a folder bucket.
func onlyObject(t *testing.T, dir string) string {
	t.Helper()
	var keys []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			key, relErr := filepath.Rel(dir, path)
			keys, err = append(keys, filepath.ToSlash(key)), relErr
		}
		return err
	})
	if err != nil || len(keys) != 1 {
		t.Fatalf("objects are %v, %v; want one", keys, err)
	}
	return keys[0]
}

// turnByte changes one byte of a file.
func turnByte(t *testing.T, path string, at int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 0xff
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
