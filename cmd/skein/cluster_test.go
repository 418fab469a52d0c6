package main

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/skeinio/skein/internal/testenv"
)

// agentFlags are those of an agent on free ports.
func agentFlags(metadata, bucket string, more ...string) []string {
	return append([]string{
		"agent", "--listen=127.0.0.1:0", "--advertise=127.0.0.1:1", "--http=127.0.0.1:0", "--metadata", metadata, "--bucket", bucket,
	}, more...)
}

// agentOn starts an agent that advertises its own listener, on a port that was free a moment ago.
func agentOn(t *testing.T, env []string, metadata, bucket string, more ...string) *server {
	t.Helper()
	if slices.Contains(more, "--create-bucket") { // the first one
		fsckAfter(t, env, metadata, bucket)
	}
	address := testenv.FreeAddress(t)
	s := start(t, env, append(agentFlags(metadata, bucket, more...), "--listen", address, "--advertise", address)...)
	s.ready(t)
	return s
}

// TestAgentsOnPostgresAndMinIO writes through one agent, ends it, and reads through another, with both bucket clients.
func TestAgentsOnPostgresAndMinIO(t *testing.T) {
	database, store := testenv.PostgresDatabase(t), testenv.MinIO(t)
	mustSkein(t, nil, "migrate", "--metadata", database)
	bucket := store.BucketName()
	first := agentOn(t, store.Env(), database, store.S3URL(bucket), "--create-bucket", "--inline-max-bytes=0")
	second := agentOn(t, store.Env(), database, store.MinIOURL(bucket))
	mustSkein(t, strings.NewReader(numbered("a", 5000)), first.flags("produce", "t")...)
	if got := mustSkein(t, nil, second.flags("consume", "t", "--exit-at-end")...); got != numbered("a", 5000) {
		t.Errorf("consumed %d bytes from the second agent, want the 5000 lines", len(got))
	}
	if code := first.end(t, syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit %d", code)
	}
	mustSkein(t, strings.NewReader(numbered("b", 10)), second.flags("produce", "t")...)
	if got := mustSkein(t, nil, second.flags("consume", "t", "--exit-at-end")...); got != numbered("a", 5000)+numbered("b", 10) {
		t.Errorf("consumed %d bytes, want all lines", len(got))
	}
	if code := second.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
}

// TestWhatWaitingDoesNotMendExits1 starts agents that can never run.
func TestWhatWaitingDoesNotMendExits1(t *testing.T) {
	database, store := testenv.PostgresDatabase(t), testenv.MinIO(t)
	sqlite := "sqlite:" + t.TempDir() + "/metadata.db"
	wrong := []string{"AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY=wrong-secret", "MINIO_ACCESS_KEY=nobody", "MINIO_SECRET_KEY=wrong-secret"}
	missing := store.BucketName()
	for _, tt := range []struct {
		name             string
		env              []string
		metadata, bucket string
		want             string
	}{
		{"missing database", nil, strings.Replace(database, "?", "_missing?", 1), "mem:", "has no database"},
		{"missing bucket, s3", store.Env(), sqlite, store.S3URL(missing), "no such bucket"},
		{"missing bucket, minio", store.Env(), sqlite, store.MinIOURL(missing), "no such bucket"},
		{"missing bucket, folder", nil, sqlite, "file://" + t.TempDir() + "/missing", "no such bucket"},
		{"wrong credential, s3", wrong, sqlite, store.S3URL(missing), "access denied"},
		{"wrong credential, minio", wrong, sqlite, store.MinIOURL(missing), "access denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, tt.env, agentFlags(tt.metadata, tt.bucket)...)
			code := s.wait(t)
			lines := strings.Split(s.text(), "\n")
			last := lines[len(lines)-1]
			if code != exitFailed || !strings.HasPrefix(last, "skein: ") || !strings.Contains(last, tt.want) {
				t.Errorf("exit %d, %q; want exit 1 and %q", code, last, tt.want)
			}
			if strings.Contains(s.text(), "wrong-secret") {
				t.Error("the log shows a secret")
			}
		})
	}
}

var (
	startingLine = regexp.MustCompile(`msg=starting http=(\S+)`)
	waitingLine  = regexp.MustCompile(`msg="waiting for the (database|bucket) `)
)

func TestAgentWaitsForTheDatabase(t *testing.T) {
	s := start(t, nil, agentFlags("postgres://skein:hunter2@"+testenv.FreeAddress(t)+"/skein", "mem:")...)
	s.http = s.await(t, startingLine)[1]
	if m := s.await(t, waitingLine); m[1] != "database" {
		t.Errorf("waits for the %s", m[1])
	}
	if code, body := s.get(t, "/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "waiting for the database") {
		t.Errorf("/ready answers %d %q", code, body)
	}
	if code, _ := s.get(t, "/live"); code != http.StatusOK {
		t.Errorf("/live answers %d", code)
	}
	if code := s.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
	if strings.Contains(s.text(), "hunter2") {
		t.Error("the log shows the password")
	}
}

func TestAgentWaitsForTheBucket(t *testing.T) {
	store := testenv.NewMinIO(t)
	if err := store.Stop(); err != nil {
		t.Fatal(err)
	}
	s := start(t, store.Env(), agentFlags("sqlite:"+t.TempDir()+"/metadata.db", store.S3URL(store.BucketName()), "--create-bucket")...)
	if m := s.await(t, waitingLine); m[1] != "bucket" {
		t.Errorf("waits for the %s", m[1])
	}
	if err := store.Start(); err != nil {
		t.Fatal(err)
	}
	s.ready(t)
	if code, body := s.get(t, "/ready"); code != http.StatusOK {
		t.Errorf("/ready answers %d %q", code, body)
	}
}

// TestSecondSignalEndsAtOnce freezes the bucket, so that a drain cannot finish.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	store := testenv.NewMinIO(t)
	s := agentOn(t, store.Env(), "sqlite:"+t.TempDir()+"/metadata.db", store.S3URL(store.BucketName()), "--create-bucket",
		"--inline-max-bytes=0", "--put-budget=0", "--drain-timeout=10m")
	if err := store.Pause(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Resume(); err != nil {
			t.Error(err)
		}
	})
	w := startWriter(t, "t", 1, s.kafka)
	s.awaitMetric(t, "skein_batcher_buffered_bytes", func(v float64) bool { return v > 0 })
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.await(t, regexp.MustCompile(`msg=draining`))
	if code := s.end(t, syscall.SIGTERM); code != exitFailed {
		t.Errorf("second SIGTERM: exit %d", code)
	}
	w.stop()
	if n := len(w.acked); n > 0 {
		t.Errorf("%d records were acknowledged without a bucket", n)
	}
}
