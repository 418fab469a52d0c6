// Package testenv gives tests real servers, Postgres and MinIO, and finds kcat and HAProxy. A server comes, in this order, from
// environment variables that name one that runs, from a local binary that is started on a loopback
// port, or from a container when a Docker engine answers. When there is none the test fails and says
// how to get one: a test that needs a server is never skipped.
//
// Postgres and MinIO give the server that the whole test process shares; each test makes its own
// database or bucket in it. NewPostgres and NewMinIO start a server that one test may stop, freeze and
// kill. Nothing outlives the test process, whatever ends it: a watchdog (see watchdog.go) stops the
// servers and removes their folders.
//
// The package talks to servers through their own command-line tools and plain HTTP; it imports no
// database driver and no S3 client, and nothing but tests and development tools may import it.
package testenv

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Environment variables that point at servers and binaries.
const (
	EnvPostgresURL    = "SKEIN_TEST_POSTGRES_URL"     // a running server; its user may create databases
	EnvPostgresBin    = "SKEIN_TEST_POSTGRES_BIN"     // folder with initdb, postgres and psql
	EnvMinIOEndpoint  = "SKEIN_TEST_MINIO_ENDPOINT"   // host:port of a running server, plain HTTP
	EnvMinIOAccessKey = "SKEIN_TEST_MINIO_ACCESS_KEY" // with EnvMinIOEndpoint
	EnvMinIOSecretKey = "SKEIN_TEST_MINIO_SECRET_KEY" // with EnvMinIOEndpoint
	EnvMinIOBin       = "SKEIN_MINIO_BIN"             // path of the minio binary
	EnvKcatBin        = "SKEIN_TEST_KCAT_BIN"         // path of the kcat binary
	EnvHAProxyBin     = "SKEIN_TEST_HAPROXY_BIN"      // path of the haproxy binary
)

// finder looks for binaries. Its fields are the outside world, so that a test can empty it.
type finder struct {
	getenv   func(string) string
	lookPath func(string) (string, error)
	glob     func(string) ([]string, error)
}

func systemFinder() finder {
	return finder{getenv: os.Getenv, lookPath: exec.LookPath, glob: filepath.Glob}
}

// postgresFolders are where packages put the server's binaries, which are rarely on the PATH.
func (f finder) postgresFolders() []string {
	return []string{
		filepath.Join(f.toolsCache(), "postgres", "bin"),
		"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
		"/usr/pgsql-*/bin",                  // Red Hat
		"/opt/homebrew/opt/postgresql*/bin", // macOS
		"/usr/local/opt/postgresql*/bin",
	}
}

// postgresBin finds the folder with initdb, postgres and psql; the newest version where there are several.
func (f finder) postgresBin() (string, error) {
	if dir := f.getenv(EnvPostgresBin); dir != "" {
		if !f.isPostgresBin(dir) {
			return "", fmt.Errorf("%s=%s: no initdb, postgres and psql there", EnvPostgresBin, dir)
		}
		return dir, nil
	}
	if initdb, err := f.lookPath("initdb"); err == nil {
		if dir := filepath.Dir(initdb); f.isPostgresBin(dir) {
			return dir, nil
		}
	}
	for _, pattern := range f.postgresFolders() {
		dirs, err := f.glob(pattern)
		if err != nil {
			return "", fmt.Errorf("look for Postgres in %s: %w", pattern, err)
		}
		slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(versionIn(b), versionIn(a)) })
		for _, dir := range dirs {
			if f.isPostgresBin(dir) {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("no Postgres for tests: %s names no server, and initdb is neither in %s, nor on the PATH, nor in %s; "+
		"run `make tools`, install the postgresql server package, or set one of these variables",
		EnvPostgresURL, EnvPostgresBin, strings.Join(f.postgresFolders(), ", "))
}

func (f finder) isPostgresBin(dir string) bool {
	for _, name := range []string{"initdb", "postgres", "psql"} {
		if _, err := f.lookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// versionIn is the last number in a path, 0 without one.
func versionIn(path string) int {
	fields := strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) == 0 {
		return 0
	}
	n, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		return 0
	}
	return n
}

// psql finds the client alone, for a server that runs elsewhere.
func (f finder) psql() (string, error) {
	if dir, err := f.postgresBin(); err == nil {
		return filepath.Join(dir, "psql"), nil
	}
	path, err := f.lookPath("psql")
	if err != nil {
		return "", fmt.Errorf("%s names a server, but there is no psql to make databases with; "+
			"run `make tools` or install the postgresql client package", EnvPostgresURL)
	}
	return path, nil
}

// minioBin finds the minio binary.
func (f finder) minioBin() (string, error) {
	if path := f.getenv(EnvMinIOBin); path != "" {
		if _, err := f.lookPath(path); err != nil {
			return "", fmt.Errorf("%s=%s: %w", EnvMinIOBin, path, err)
		}
		return path, nil
	}
	if path, err := f.lookPath("minio"); err == nil {
		return path, nil
	}
	cached := filepath.Join(f.toolsCache(), "bin", "minio")
	if _, err := f.lookPath(cached); err == nil {
		return cached, nil
	}
	return "", fmt.Errorf("no MinIO for tests: %s names no server, and there is no binary in %s, on the PATH or at %s; "+
		"run `make tools` or set one of these variables", EnvMinIOEndpoint, EnvMinIOBin, cached)
}

// kcatBin finds kcat, which Debian once called kafkacat.
func (f finder) kcatBin() (string, error) { return f.toolBin(EnvKcatBin, "kcat", "kcat", "kafkacat") }

// haproxyBin finds HAProxy, which Debian puts where only root's PATH looks.
func (f finder) haproxyBin() (string, error) {
	return f.toolBin(EnvHAProxyBin, "haproxy", "haproxy", "/usr/sbin/haproxy")
}

// toolBin finds the program of a package: where its variable says, else under the first of the names that there is.
func (f finder) toolBin(env, pkg string, names ...string) (string, error) {
	if path := f.getenv(env); path != "" {
		if _, err := f.lookPath(path); err != nil {
			return "", fmt.Errorf("%s=%s: %w", env, path, err)
		}
		return path, nil
	}
	for _, name := range names {
		if path, err := f.lookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s for tests: %s is not on the PATH; run `make tools`, install the %s package, or set %s",
		pkg, strings.Join(names, " or "), pkg, env)
}

// Kcat gives the path of kcat, the command-line client of librdkafka.
func Kcat(t testing.TB) string {
	t.Helper()
	path, err := systemFinder().kcatBin()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// HAProxy gives the path of the load balancer.
func HAProxy(t testing.TB) string {
	t.Helper()
	path, err := systemFinder().haproxyBin()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// toolsCache is where `make tools` puts what it downloads.
func (f finder) toolsCache() string {
	cache := f.getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(f.getenv("HOME"), ".cache")
	}
	return filepath.Join(cache, "skein-tools")
}
