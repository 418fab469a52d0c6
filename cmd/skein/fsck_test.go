package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/internal/testenv"
)

// runFsck runs skein fsck. It may be called after the test's context has ended.
func runFsck(t *testing.T, env []string, args ...string) (code int, report *compactor.Report, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, append([]string{"fsck", "-o", "json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("skein fsck %v: %v", args, err)
	}
	report = &compactor.Report{}
	if err := json.Unmarshal(out.Bytes(), report); err != nil {
		t.Fatalf("report of skein fsck %v: %v; %s%s", args, err, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), report, errs.String()
}

// aftermath is what fsck is to find after a test.
type aftermath struct{ damaged bool }

// fsckAfter makes skein fsck look at a database and a bucket when the test is over and its servers have ended. It is called
// before the first of them is started. Nothing may be wrong, unless the test says that it damages what is kept.
func fsckAfter(t *testing.T, env []string, metadata, bucket string) *aftermath {
	a := &aftermath{}
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		code, report, stderr := runFsck(t, env, "--metadata", metadata, "--bucket", bucket)
		if damaged := code != exitOK || report.ProblemCount > 0; damaged != a.damaged {
			t.Errorf("fsck after the test: exit %d, %s, %+v", code, stderr, report.Problems)
		}
	})
	return a
}

// TestFsckCommand damages the bucket of a stopped server: fsck lists it with sizes, exits 1, mends what it can and says so.
func TestFsckCommand(t *testing.T) {
	data := t.TempDir()
	s := dev(t, data, "--inline-max-bytes=0")
	s.after.damaged = true
	mustSkein(t, strings.NewReader(numbered("a", 3000)), s.flags("produce", "t")...)
	urls := []string{"--metadata", "sqlite:" + data + "/metadata.db", "--bucket", "file:" + data + "/bucket"}
	if code, _, stderr := skein(t, nil, append([]string{"fsck"}, urls...)...); code != exitFailed || !strings.Contains(stderr, "in use") {
		t.Errorf("beside a running dev: exit %d, %s", code, stderr)
	}
	if code := s.end(t, syscall.SIGTERM); code != exitOK {
		t.Fatalf("SIGTERM: exit %d", code)
	}
	code, report, stderr := runFsck(t, nil, urls...)
	if code != exitOK || report.Records != 3000 || report.ProblemCount != 0 || stderr != "" {
		t.Fatalf("exit %d, %+v, %q", code, report, stderr)
	}
	orphan := filepath.Join(data, "bucket", "seg", "00", "orphan")
	if err := os.MkdirAll(filepath.Dir(orphan), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(orphan, make([]byte, 77), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, report, _ = runFsck(t, nil, urls...); code != exitOK || report.Waiting != 1 {
		t.Errorf("a young orphan: exit %d, %+v", code, report)
	}
	age := func(d time.Duration) {
		t.Helper()
		at := time.Now().Add(-d)
		if err := os.Chtimes(orphan, at, at); err != nil {
			t.Fatal(err)
		}
	}
	age(time.Hour)
	if code, report, _ = runFsck(t, nil, urls...); code != exitOK || report.Uncommitted != 1 || report.UncommittedBytes != 77 {
		t.Errorf("what a dead agent left behind: exit %d, %+v", code, report)
	}
	age(24 * time.Hour)
	named := objectsIn(t, data+"/bucket/seg")
	named = slices.DeleteFunc(named, func(key string) bool { return key == "00/orphan" })
	if err := os.Remove(filepath.Join(data, "bucket", "seg", named[0])); err != nil {
		t.Fatal(err)
	}
	byKind := func(args ...string) map[compactor.Kind]compactor.Problem {
		t.Helper()
		code, report, stderr := runFsck(t, nil, append(args, urls...)...)
		if code != exitFailed || strings.Count(stderr, "\n") != 1 || report.Unrepaired == 0 {
			t.Errorf("exit %d, %q, %+v", code, stderr, report)
		}
		found := map[compactor.Kind]compactor.Problem{}
		for _, p := range report.Problems {
			found[p.Kind] = p
		}
		return found
	}
	found := byKind()
	if p := found[compactor.KindOrphan]; len(found) != 2 || p.Bytes != 77 || p.Where != "seg/00/orphan" || p.Repaired != "" {
		t.Errorf("%+v", found)
	}
	if p := found[compactor.KindMissing]; p.Bytes == 0 {
		t.Errorf("%+v", found)
	}
	if p := byKind("--repair")[compactor.KindOrphan]; p.Repaired == "" {
		t.Errorf("repaired %+v", p)
	}
	if found = byKind(); len(found) != 1 || found[compactor.KindMissing].Bytes == 0 {
		t.Errorf("after the repair %+v", found)
	}
	if out := mustFail(t, append([]string{"fsck"}, urls...)...); !strings.Contains(out, "missing") || !strings.Contains(out, "not mended") {
		t.Errorf("as a table: %s", out)
	}
}

func mustFail(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, _ := skein(t, nil, args...)
	if code != exitFailed {
		t.Errorf("skein %v: exit %d", args, code)
	}
	return stdout
}

// TestFsckBesideAgents runs fsck over and over, with --repair, beside two agents that merge and delete all the time while a
// producer writes.
func TestFsckBesideAgents(t *testing.T) {
	database, store := testenv.PostgresDatabase(t), testenv.MinIO(t)
	bucket := store.S3URL(store.BucketName())
	busy := []string{"--compaction-interval=100ms", "--gc-grace=1s"}
	first := agentOn(t, store.Env(), database, bucket, append(busy, "--create-bucket", "--inline-max-bytes=0", "--put-budget=0")...)
	agentOn(t, store.Env(), database, bucket, busy...)
	w := startWriter(t, "load", 2000, first.kafka)
	for range 5 {
		w.awaitEnough(t)
		code, report, stderr := runFsck(t, store.Env(), "--repair", "--metadata", database, "--bucket", bucket)
		if code != exitOK || report.ProblemCount > 0 {
			t.Errorf("exit %d, %s, %+v", code, stderr, report)
		}
		t.Logf("%d records read, %d things changed meanwhile", report.Records, report.Moving)
		w.more(2000)
	}
	w.stop()
}
