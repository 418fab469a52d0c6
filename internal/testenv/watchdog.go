package testenv

import (
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"syscall"
)

// watchdogScript runs beside a server. It reads process ids from a pipe that only the test process
// holds open, the last one being the server that runs ("-": none). When the pipe ends, because the
// test process closed it or died in whatever way, it stops that server and removes its folder.
// A test process that is killed or that panics runs no cleanup of its own, and there is no TestMain.
const watchdogScript = `
dir=$1; signal=$2; pid=-
while read -r line; do pid=$line; done
if [ "$pid" != - ]; then
	kill -CONT "$pid"; kill "-$signal" "$pid"
	i=0
	while kill -0 "$pid" && [ "$i" -lt 100 ]; do sleep 0.1; i=$((i+1)); done
	kill -KILL "$pid"
fi
rm -rf "$dir"
`

// watchdog is the writing end of that pipe.
type watchdog struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startWatchdog guards dir and the server that tell names; signal is how that server is stopped.
func startWatchdog(dir, signal string) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "sh", dir, signal)
	// Its own group: a Ctrl-C in the terminal ends the tests, and then the watchdog has work to do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	return &watchdog{cmd: cmd, pipe: pipe}, nil
}

// tell names the server's process; 0 for none.
func (w *watchdog) tell(pid int) error {
	line := "-"
	if pid != 0 {
		line = strconv.Itoa(pid)
	}
	_, err := io.WriteString(w.pipe, line+"\n")
	return err
}

// finish ends the watchdog, which removes the folder.
func (w *watchdog) finish() error {
	w.pipe.Close()
	return w.cmd.Wait()
}
