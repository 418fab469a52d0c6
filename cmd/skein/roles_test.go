package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/skeinio/skein/internal/testenv"
)

var readyAlone = regexp.MustCompile(`msg=ready http=(\S+)`)

// TestRolesApart runs a proxy and a compactor as processes of their own, on Postgres and MinIO: the one serves clients and
// merges nothing, the other merges and has no Kafka listener. A second proxy keeps what it reads on disk, also over a restart.
func TestRolesApart(t *testing.T) {
	database, store := testenv.PostgresDatabase(t), testenv.MinIO(t)
	bucket := store.S3URL(store.BucketName())
	first := agentOn(t, store.Env(), database, bucket, "--create-bucket", "--roles=proxy", "--inline-max-bytes=0")
	mustSkein(t, strings.NewReader(numbered("a", 5000)), first.flags("produce", "t")...)
	if _, body := first.get(t, "/metrics"); strings.Contains(body, "skein_compactor_") {
		t.Error("a proxy shows a compactor's metrics")
	}

	compactor := start(t, store.Env(), "agent", "--roles=compactor", "--http=127.0.0.1:0", "--metadata", database, "--bucket", bucket,
		"--compaction-interval=100ms")
	compactor.http = compactor.await(t, readyAlone)[1]
	for _, path := range []string{"/live", "/ready"} {
		if code, body := compactor.get(t, path); code != http.StatusOK {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
	}
	compactor.awaitMetric(t, `skein_compactor_objects_total\{what="written"\}`, func(v float64) bool { return v > 0 })
	if _, body := compactor.get(t, "/metrics"); strings.Contains(body, "skein_cache_") || strings.Contains(body, "skein_flushes_total") {
		t.Error("a compactor shows a proxy's metrics")
	}

	dir := filepath.Join(t.TempDir(), "cache")
	disk := []string{"--roles=proxy", "--cache-dir", dir, "--cache-disk-bytes=64MiB"}
	second := agentOn(t, store.Env(), database, bucket, disk...)
	consume := func(s *server) {
		t.Helper()
		if got := mustSkein(t, nil, s.flags("consume", "t", "--exit-at-end")...); got != numbered("a", 5000) {
			t.Errorf("consumed %d bytes, want the 5000 lines", len(got))
		}
	}
	consume(second)
	second.awaitMetric(t, "skein_cache_disk_extents", func(v float64) bool { return v > 0 })
	if code := second.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
	second = agentOn(t, store.Env(), database, bucket, disk...)
	second.awaitMetric(t, "skein_cache_disk_extents", func(v float64) bool { return v > 0 })
	consume(second)
	second.awaitMetric(t, "skein_cache_disk_hits_total", func(v float64) bool { return v > 0 })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	consume(second)

	if code := compactor.end(t, syscall.SIGTERM); code != exitOK {
		t.Errorf("SIGTERM of the compactor: exit %d", code)
	}
}

// TestDiskCacheIsNotShared: a second agent on the same folder says so and exits.
func TestDiskCacheIsNotShared(t *testing.T) {
	dir := t.TempDir()
	dev(t, t.TempDir(), "--cache-dir", dir, "--cache-disk-bytes=64MiB")
	second := start(t, nil, "dev", "--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--data", t.TempDir(), "--cache-dir", dir,
		"--cache-disk-bytes=64MiB")
	if code := second.wait(t); code != exitFailed || !strings.Contains(second.text(), "in use by another process") {
		t.Errorf("exit %d: %s", code, second.text())
	}
}
