package open_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/objstore"
	"github.com/skeinio/skein/objstore/open"
)

// envSink makes BenchmarkPut's process the server that swallows what another one puts.
const envSink = "SKEIN_BENCH_SINK"

// BenchmarkPut tells what a Put costs this process: cpu-s/GiB is its user and system time. "sink" puts
// to a server in another process that throws all away, so that the figure is the client's alone;
// "server" puts to a MinIO. The payload is cut as a segment writer cuts it.
func BenchmarkPut(b *testing.B) {
	if os.Getenv(envSink) != "" {
		serveSink(b)
	}
	const size, slice = 8 << 20, 16 << 10
	body := make(objstore.Payload, size/slice)
	for i := range body {
		body[i] = make([]byte, slice)
		for j := range body[i] {
			body[i][j] = byte(i * j)
		}
	}
	sink := &testenv.MinIOServer{Endpoint: startSink(b), AccessKey: "id", SecretKey: "secret"}
	for _, kind := range kinds {
		for _, to := range []struct {
			name   string
			server func() *testenv.MinIOServer
		}{{"sink", func() *testenv.MinIOServer { return sink }}, {"server", func() *testenv.MinIOServer { return testenv.MinIO(b) }}} {
			b.Run(kind.name+"/"+to.name, func(b *testing.B) {
				s := to.server()
				bucket, err := open.Open(b.Context(), kind.url(s, s.BucketName()), open.Options{AccessKey: s.AccessKey, SecretKey: s.SecretKey})
				if err != nil {
					b.Fatal(err)
				}
				defer bucket.Close()
				if err := bucket.Create(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(size)
				before := cpuTime(b)
				for b.Loop() {
					if err := bucket.Put(b.Context(), "object", body, objstore.PutOptions{}); err != nil {
						b.Fatal(err)
					}
				}
				used := cpuTime(b) - before
				b.ReportMetric(used.Seconds()/(float64(b.N)*size/(1<<30)), "cpu-s/GiB")
			})
		}
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// startSink starts a server in another process, which ends with its standard input.
func startSink(b *testing.B) (address string) {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^"+b.Name()+"$")
	cmd.Env = append(os.Environ(), envSink+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait() // its exit status says nothing
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if _, address, ok := strings.Cut(lines.Text(), "sink at "); ok {
			return address
		}
	}
	b.Fatal("the sink did not start")
	return ""
}

func serveSink(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	os.Stdout.WriteString("\nsink at " + l.Addr().String() + "\n")
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	b.Fatal(http.Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		// Large reads: the sink must not be what is measured.
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
	})))
}
