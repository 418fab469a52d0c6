package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// Exit codes. They are part of the command line's contract.
const (
	exitOK     = 0
	exitFailed = 1 // failed while running
	exitUsage  = 2 // wrong usage or configuration
)

// usageError is wrong usage or configuration: exit code 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes a usageError.
func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// process is what a command sees of the process it runs in, so that tests can give it another one.
type process struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	stderrTTY      bool
	// signals gets SIGINT and SIGTERM.
	signals <-chan os.Signal
	// exit ends the process at once.
	exit func(code int)
}

// interruptible gives a context that ends at the first signal; a second one ends the process.
func (p *process) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-ctx.Done():
			return
		case s := <-p.signals:
			cancel(fmt.Errorf("%w: %v", errInterrupted, s))
		}
		<-p.signals
		p.exit(exitFailed)
	}()
	return ctx, func() { cancel(nil) }
}

// errInterrupted is the cause of an interruptible context's end.
var errInterrupted = errors.New("interrupted")

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	p := &process{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stderrTTY: term.IsTerminal(int(os.Stderr.Fd())), signals: signals, exit: os.Exit,
	}
	os.Exit(run(context.Background(), p, os.Args[1:]))
}

// run runs the command line and gives its exit code. An error is one line on stderr.
func run(ctx context.Context, p *process, args []string) int {
	root := newRoot(p)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(p.stderr, "skein: %s\n", oneLine(err.Error()))
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// oneLine folds an error's line breaks: scripts and log shippers read lines.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
