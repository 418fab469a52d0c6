package testenv

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// minioProbeInterval is how often a starting MinIO is asked whether it serves: it has no other signal.
const minioProbeInterval = 20 * time.Millisecond

// MinIORegion is the region of servers that this package starts.
const MinIORegion = "us-east-1"

// MinIOServer is a MinIO server. Only one from NewMinIO can be stopped, frozen or killed.
type MinIOServer struct {
	Endpoint  string // host:port, plain HTTP
	AccessKey string
	SecretKey string
	server    *server // nil when somebody else runs it
}

// sharedMinIO is the test process's one server; it lives until the process ends.
var sharedMinIO = sync.OnceValues(func() (*MinIOServer, error) {
	if endpoint := os.Getenv(EnvMinIOEndpoint); endpoint != "" {
		return remoteMinIO(endpoint, os.Getenv(EnvMinIOAccessKey), os.Getenv(EnvMinIOSecretKey))
	}
	bin, err := systemFinder().minioBin()
	if err == nil {
		return startMinIO(bin, "")
	}
	return containerMinIO(err)
})

// MinIO gives the shared server.
func MinIO(t testing.TB) *MinIOServer {
	t.Helper()
	s, err := sharedMinIO()
	if err != nil {
		t.Fatalf("MinIO for tests: %v", err)
	}
	return s
}

// NewMinIO starts a server of the test's own, from the local binary. It goes when the test ends.
func NewMinIO(t testing.TB) *MinIOServer {
	t.Helper()
	return NewMinIOIn(t, "")
}

// NewMinIOIn is NewMinIO with its data in a folder of the caller's; "" for one of its own.
func NewMinIOIn(t testing.TB, data string) *MinIOServer {
	t.Helper()
	bin, err := systemFinder().minioBin()
	if err != nil {
		t.Fatalf("a MinIO that a test can stop needs the local binary: %v", err)
	}
	s, err := startMinIO(bin, data)
	if err != nil {
		t.Fatalf("MinIO for tests: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close MinIO: %v", err)
		}
	})
	return s
}

// StartMinIO starts a server for a development tool, from the local binary; Close ends it.
func StartMinIO() (*MinIOServer, error) {
	bin, err := systemFinder().minioBin()
	if err != nil {
		return nil, err
	}
	return startMinIO(bin, "")
}

// BucketName makes up the name of a bucket that no other test uses. The caller creates the bucket.
func (s *MinIOServer) BucketName() string { return "skein-" + strings.ToLower(rand.Text()) }

// S3URL is a bucket's URL for the AWS client.
func (s *MinIOServer) S3URL(bucket string) string {
	q := url.Values{"region": {MinIORegion}, "endpoint": {"http://" + s.Endpoint}, "path_style": {"true"}}
	return "s3://" + bucket + "?" + q.Encode()
}

// MinIOURL is a bucket's URL for the MinIO client.
func (s *MinIOServer) MinIOURL(bucket string) string {
	return "minio://" + s.Endpoint + "/" + bucket + "?secure=false"
}

// Env are the environment variables through which both clients find the credential, for a process
// that a test starts.
func (s *MinIOServer) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey, "AWS_REGION=" + MinIORegion,
		"MINIO_ACCESS_KEY=" + s.AccessKey, "MINIO_SECRET_KEY=" + s.SecretKey,
	}
}

// PID is the server's process, 0 when somebody else runs it.
func (s *MinIOServer) PID() int {
	if s.server == nil {
		return 0
	}
	return s.server.pid()
}

// Stop ends the server in order (SIGTERM). Start starts it again, on the same port and data.
func (s *MinIOServer) Stop() error { return s.server.stop(syscall.SIGTERM) }

// Start starts a server that was stopped or killed.
func (s *MinIOServer) Start() error { return s.server.start() }

// Kill ends the server with SIGKILL.
func (s *MinIOServer) Kill() error { return s.server.stop(syscall.SIGKILL) }

// Pause freezes the server: connections stay open and nothing answers.
func (s *MinIOServer) Pause() error { return s.server.signalAll(syscall.SIGSTOP) }

// Resume thaws what Pause froze.
func (s *MinIOServer) Resume() error { return s.server.signalAll(syscall.SIGCONT) }

// Close ends the server for good and removes its data, frozen or not.
func (s *MinIOServer) Close() error {
	if s.server == nil {
		return nil
	}
	return s.server.close(syscall.SIGKILL)
}

// remoteMinIO uses a server that runs already.
func remoteMinIO(endpoint, access, secret string) (*MinIOServer, error) {
	endpoint = strings.TrimSuffix(strings.TrimPrefix(endpoint, "http://"), "/")
	if access == "" || secret == "" || strings.Contains(endpoint, "/") {
		return nil, fmt.Errorf("%s wants host:port, with %s and %s set", EnvMinIOEndpoint, EnvMinIOAccessKey, EnvMinIOSecretKey)
	}
	if err := minioHealth(endpoint); err != nil {
		return nil, fmt.Errorf("%s=%s: %w", EnvMinIOEndpoint, endpoint, err)
	}
	return &MinIOServer{Endpoint: endpoint, AccessKey: access, SecretKey: secret}, nil
}

func startMinIO(bin, data string) (*MinIOServer, error) {
	for attempt := 1; ; attempt++ {
		s, err := launchMinIO(bin, data)
		if err == nil {
			return s, nil
		}
		if attempt == startAttempts || !strings.Contains(err.Error(), "already in use") {
			return nil, err
		}
	}
}

func launchMinIO(bin, data string) (*MinIOServer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "skein-minio-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for MinIO: %w", err)
	}
	if data == "" {
		data = filepath.Join(dir, "data")
	}
	s := &MinIOServer{Endpoint: "127.0.0.1:" + strconv.Itoa(port), AccessKey: "skeintest", SecretKey: rand.Text()}
	s.server = &server{
		name: "MinIO", dir: dir, path: bin,
		args: []string{"server", data, "--address", s.Endpoint, "--config-dir", filepath.Join(dir, "config")},
		env: []string{
			"MINIO_ROOT_USER=" + s.AccessKey, "MINIO_ROOT_PASSWORD=" + s.SecretKey, "MINIO_REGION=" + MinIORegion,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off",
		},
		ready: func(s2 *server) error { return s2.waitHealthy(s.Endpoint) },
	}
	if err := s.server.launch("KILL"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// waitHealthy probes until MinIO serves.
func (s *server) waitHealthy(endpoint string) error {
	deadline := time.After(startTimeout)
	probe := time.NewTicker(minioProbeInterval)
	defer probe.Stop()
	for {
		err := minioHealth(endpoint)
		if err == nil {
			return nil
		}
		select {
		case <-probe.C:
		case <-s.exited:
			return errors.New("it ended at once")
		case <-deadline:
			return fmt.Errorf("not ready after %v: %w", startTimeout, err)
		}
	}
}

// minioHealth asks without a credential: MinIO refuses that with 403 as soon as it serves S3, and
// answers 503 before, while its own health check says already that all is well.
func minioHealth(endpoint string) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + endpoint + "/")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}
