package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/objstore"
)

// update rewrites the generated parts of docs/OPERATIONS.md: go test ./cmd/skein -run TestOperations -update
var update = flag.Bool("update", false, "rewrite the generated parts of docs/OPERATIONS.md")

const operations = "../../docs/OPERATIONS.md"

func TestOperationsHasTheOptions(t *testing.T) { checkGenerated(t, "options", optionsMarkdown()) }

func TestOperationsHasTheMetrics(t *testing.T) { checkGenerated(t, "metrics", metricsMarkdown(t)) }

// checkGenerated compares the part of the document between two markers with what it should be.
func checkGenerated(t *testing.T, part, want string) {
	t.Helper()
	data, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- begin "+part+" (generated) -->\n", "<!-- end "+part+" -->\n"
	before, rest, ok := strings.Cut(string(data), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no part %q", operations, part)
	}
	if got == want {
		return
	}
	if *update {
		if err := os.WriteFile(operations, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the %s in %s are not the program's; run: go test ./cmd/skein -run TestOperations -update\nwant:\n%s", part, operations, want)
}

// optionsMarkdown is the table of options.
func optionsMarkdown() string {
	var b strings.Builder
	b.WriteString("| option | type | default | commands | what it does |\n|---|---|---|---|---|\n")
	for _, o := range optionTable() {
		if o.scope&(inServers|inMigrate) == 0 {
			continue
		}
		def := o.byDef
		if def != "" {
			def = "`" + def + "`"
		}
		if o.devDef != "" && o.devDef != o.byDef {
			def = strings.TrimSpace(def + " `dev`: `" + o.devDef + "`")
		}
		if o.required && o.scope&inAgent != 0 {
			def = strings.TrimSpace("required " + def)
		}
		var commands []string
		for _, c := range []struct {
			s    scope
			name string
		}{{inDev, "dev"}, {inAgent, "agent"}, {inMigrate, "migrate"}} {
			if o.scope&c.s != 0 {
				commands = append(commands, c.name)
			}
		}
		help := o.help
		if len(o.choices) > 0 {
			help += " (" + strings.Join(o.choices, ", ") + ")"
		}
		switch {
		case o.flagOnly && !o.envToo:
			help += "; a flag only"
		case o.flagOnly:
			help += "; not a key of the file"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", o.name, strings.ReplaceAll(string(o.kind), "|", `\|`), def,
			strings.Join(commands, ", "), help)
	}
	return b.String()
}

// describeLine is what a prometheus.Desc prints.
var describeLine = regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]*)", (?:unit: "[^"]*", )?constLabels: \{[^}]*\}, variableLabels: \{([^}]*)\}`)

// metricsMarkdown is the table of all metrics that an agent registers.
func metricsMarkdown(t *testing.T) string {
	t.Helper()
	var rows []string
	for d := range descriptions(t) {
		m := describeLine.FindStringSubmatch(d)
		if m == nil {
			t.Fatalf("cannot read the description %s", d)
		}
		if !strings.HasPrefix(m[1], "skein_") {
			continue
		}
		labels := strings.Join(strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' || r == ' ' }), ", ")
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", m[1], labels, m[2]))
	}
	slices.Sort(rows)
	return "| metric | labels | what it is |\n|---|---|---|\n" + strings.Join(slices.Compact(rows), "")
}

// descriptions gives the descriptions of the metrics of a whole agent.
func descriptions(t *testing.T) func(func(string) bool) {
	t.Helper()
	s, err := settingsOf(t, inDev, "--listen=127.0.0.1:0", "--data", t.TempDir(), "--cache-dir", t.TempDir(), "--cache-disk-bytes=1GiB")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := newServerConfig(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := devPlaces(s, cfg); err != nil {
		t.Fatal(err)
	}
	cfg.bucket = objstore.URL{Scheme: objstore.SchemeMemory}.String()
	x := &stack{
		cfg: cfg, log: slog.New(slog.NewTextHandler(io.Discard, nil)), ready: &readiness{}, metrics: prometheus.NewRegistry(),
	}
	defer func() {
		if err := x.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := x.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := x.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := make(chan *prometheus.Desc, 1024)
	x.metrics.Describe(c)
	close(c)
	return func(yield func(string) bool) {
		for d := range c {
			if !yield(d.String()) {
				return
			}
		}
	}
}
