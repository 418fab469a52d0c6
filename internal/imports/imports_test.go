// Package imports holds no code: its test enforces who may import whom.
package imports

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/skeinio/skein/"

// allowed says which of our packages a package's own code (not its tests) may import. A trailing "/..." takes what is
// below too. A package that is not listed here fails the test: decide first, then write.
var allowed = map[string][]string{
	"internal/record":       {},
	"internal/segment":      {"internal/record"},
	"internal/pgproxy":      {},
	"internal/testenv":      {"internal/pgproxy"},
	"objstore":              {},
	"objstore/s3":           {"objstore"},
	"objstore/minio":        {"objstore"},
	"objstore/open":         {"objstore", "objstore/s3", "objstore/minio"},
	"objstore/objstoretest": {"objstore"},
	"migrations":            {},
	"metadata":              {},
	"metadata/topicconf":    {},
	"metadata/sqlite":       {"metadata", "migrations"},
	"metadata/postgres":     {"metadata", "migrations"},
	"metadata/metadatatest": {"metadata"},
	"metadata/commitbench":  {"metadata"},
	"cache":                 {"objstore"},
	"batcher":               {"internal/record", "internal/segment", "objstore", "metadata"},
	"compactor":             {"internal/record", "internal/segment", "objstore", "metadata", "metadata/topicconf"},
	"agent":                 {"agent/...", "batcher", "cache", "internal/record", "internal/segment", "objstore", "metadata", "metadata/topicconf"},
	"agent/admin":           {},
	"agent/group":           {"metadata"},
	"agent/txn":             {"metadata"},
	"cmd/skein":             {"..."},
	"internal/imports":      {},
	"internal/chaos":        {"internal/pgproxy"},
}

// only says which packages alone may import a module, tests included.
var only = map[string][]string{
	"github.com/jackc/pgx/v5":           {"metadata/postgres"},
	"github.com/aws/aws-sdk-go-v2":      {"objstore/s3"},
	"github.com/aws/smithy-go":          {"objstore/s3"},
	"github.com/minio/minio-go/v7":      {"objstore/minio"},
	"modernc.org/sqlite":                {"metadata/sqlite"},
	"github.com/spf13/viper":            {"cmd/skein"},
	"github.com/spf13/cobra":            {"cmd/skein"},
	"github.com/twmb/franz-go/pkg/kmsg": {"agent", "cmd/skein"},
	"github.com/testcontainers":         {"internal/testenv"},
}

func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" || rel == "skein-data") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		seen++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(rel))
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			check(t, rel, pkg, imported)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Fatal("no Go file found")
	}
}

func check(t *testing.T, file, pkg, imported string) {
	t.Helper()
	for prefix, owners := range only {
		if (imported == prefix || strings.HasPrefix(imported, prefix+"/")) && !slices.Contains(owners, pkg) &&
			!(strings.HasSuffix(file, "_test.go") && prefix == "github.com/twmb/franz-go/pkg/kmsg") {
			t.Errorf("%s imports %s: only %v may", file, imported, owners)
		}
	}
	ours, ok := strings.CutPrefix(imported, module)
	if !ok || strings.HasSuffix(file, "_test.go") {
		return
	}
	rules, known := allowed[pkg]
	if !known {
		t.Errorf("%s: package %s has no import rule", file, pkg)
		return
	}
	for _, r := range rules {
		if r == ours || r == "..." || strings.HasSuffix(r, "/...") && strings.HasPrefix(ours, strings.TrimSuffix(r, "...")) {
			return
		}
	}
	t.Errorf("%s: package %s may not import %s", file, pkg, ours)
}
