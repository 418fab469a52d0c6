package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds a server's start and stop on a busy machine.
const startTimeout = 60 * time.Second

// keptLogBytes is how much of a server's output an error shows at most.
const keptLogBytes = 16 << 10

// errNotOurs: a test may only touch a server that it started.
var errNotOurs = errors.New("this server was not started by this process; use NewPostgres or NewMinIO")

// server is one server process that can be stopped, started, frozen and killed. Its folder and port
// stay the same over all of that.
type server struct {
	name string
	dir  string // removed at the end
	path string
	args []string
	env  []string // beside the test process's own
	user *syscall.Credential

	ready func(*server) error // waits until the server serves; ends early when exited does
	guard *watchdog

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended; nil when never started
	log    *tail
}

// launch makes the watchdog and starts the server.
func (s *server) launch(stopSignal string) error {
	guard, err := startWatchdog(s.dir, stopSignal)
	if err != nil {
		return err
	}
	s.guard = guard
	if err := s.start(); err != nil {
		return errors.Join(err, s.close(syscall.SIGKILL))
	}
	return nil
}

// start runs the process and waits until it serves.
func (s *server) start() error {
	if s == nil {
		return errNotOurs
	}
	s.mu.Lock()
	if s.running() {
		s.mu.Unlock()
		return fmt.Errorf("start %s: it runs already", s.name)
	}
	cmd := exec.Command(s.path, s.args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.user}
	s.log = newTail(keptLogBytes)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		s.mu.Unlock()
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	exited := make(chan struct{})
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	go func() {
		// How it ended is in its log; that it ended is what counts. A killed Postgres leaves children
		// that hold the pipe for a moment, which is why nobody else waits on Wait.
		_ = cmd.Wait()
		close(exited)
	}()
	if err := s.guard.tell(cmd.Process.Pid); err != nil {
		return fmt.Errorf("start %s: tell watchdog: %w", s.name, err)
	}
	if err := s.ready(s); err != nil {
		return fmt.Errorf("start %s: %w; its output ends with:\n%s", s.name, err, s.log)
	}
	return nil
}

// running needs s.mu.
func (s *server) running() bool {
	if s.exited == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// stop sends a signal and waits for the end.
func (s *server) stop(signal syscall.Signal) error {
	if s == nil {
		return errNotOurs
	}
	s.mu.Lock()
	cmd, exited, running := s.cmd, s.exited, s.running()
	s.mu.Unlock()
	if !running {
		return nil
	}
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.name, err)
	}
	select {
	case <-exited:
	case <-time.After(startTimeout):
		return fmt.Errorf("stop %s: still there %v after %v; its output ends with:\n%s", s.name, startTimeout, signal, s.log)
	}
	return s.guard.tell(0)
}

// signalAll sends a signal to the server and all its children; the server first, so that it cannot
// have new ones meanwhile when the signal stops it.
func (s *server) signalAll(signal syscall.Signal) error {
	if s == nil {
		return errNotOurs
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return fmt.Errorf("send %v to %s: it does not run", signal, s.name)
	}
	pid := s.cmd.Process.Pid
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("send %v to %s: %w", signal, s.name, err)
	}
	children, err := childrenOf(pid)
	if err != nil {
		return fmt.Errorf("send %v to %s: %w", signal, s.name, err)
	}
	for _, child := range children {
		if err := syscall.Kill(child, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("send %v to a child of %s: %w", signal, s.name, err)
		}
	}
	return nil
}

// kill ends the server and its children at once, as a power cut would but for the page cache.
func (s *server) kill() error {
	if s == nil {
		return errNotOurs
	}
	s.mu.Lock()
	running := s.running()
	s.mu.Unlock()
	if !running {
		return nil
	}
	// Freeze first: children of a killed Postgres would otherwise notice and end in their own way.
	if err := s.signalAll(syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := childrenOf(s.cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("kill %s: %w", s.name, err)
	}
	for _, child := range children {
		if err := syscall.Kill(child, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill a child of %s: %w", s.name, err)
		}
	}
	return s.stop(syscall.SIGKILL)
}

// close stops the server for good and removes its folder.
func (s *server) close(signal syscall.Signal) error {
	err := s.stop(signal)
	return errors.Join(err, s.guard.finish())
}

// childrenOf lists a process's direct children.
func childrenOf(pid int) ([]int, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=", "-o", "ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes with ps: %w", err)
	}
	var children []int
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 2 && fields[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(fields[0])
			if err != nil {
				return nil, fmt.Errorf("list processes with ps: %w", err)
			}
			children = append(children, child)
		}
	}
	return children, nil
}

// Bounds of the ports that freePort gives. They are below those that Linux (32768) and others (49152) give to connections of
// clients and to who listens on port 0: nobody gets the port of a server that a test stops for a while, and a client
// that dials it meanwhile is not connected to itself.
const (
	lowestPort  = 10_000
	highestPort = 32_767
)

// freePort finds a loopback port that nobody listens on. Somebody may take it before the server does:
// whoever starts the server tries again then.
func freePort() (int, error) {
	for attempt := 1; ; attempt++ {
		port := lowestPort + rand.IntN(highestPort-lowestPort+1)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
		if attempt == portAttempts {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
	}
}

// portAttempts is how many ports are tried.
const portAttempts = 100

// FreeAddress gives a loopback address that nobody listens on and that no client's connection gets.
func FreeAddress(t testing.TB) string {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// tail keeps the end of what a server writes, and lets one wait for a line.
type tail struct {
	max int

	mu      sync.Mutex
	kept    []byte
	changed chan struct{} // closed and replaced at every write
}

var _ io.Writer = (*tail)(nil)

func newTail(maxBytes int) *tail { return &tail{max: maxBytes, changed: make(chan struct{})} }

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, p...)
	if over := len(l.kept) - l.max; over > 0 {
		l.kept = bytes.Clone(l.kept[over:])
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.kept)
}

// has tells whether text was written, and gives what to wait on when not.
func (l *tail) has(text string) (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.kept, []byte(text)), l.changed
}

// waitFor waits until the server has written text.
func (s *server) waitFor(text string) error {
	deadline := time.After(startTimeout)
	for {
		found, changed := s.log.has(text)
		if found {
			return nil
		}
		select {
		case <-changed:
		case <-s.exited:
			return errors.New("it ended at once")
		case <-deadline:
			return fmt.Errorf("not ready after %v", startTimeout)
		}
	}
}

// alive tells whether the process runs.
func (s *server) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running()
}

func (s *server) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return 0
	}
	return s.cmd.Process.Pid
}
