package agent

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the generated parts of the documentation")

const (
	protocolPage  = "../docs/PROTOCOL.md"
	protocolBegin = "<!-- made from agent/table.go by: go test ./agent -run TestProtocolPage -update -->\n"
	protocolEnd   = "<!-- end of what is made from agent/table.go -->\n"
)

// protocolTable is the table of APIs as docs/PROTOCOL.md shows it.
func protocolTable(s *Server) string {
	var b strings.Builder
	b.WriteString("| key | API | versions | flexible from | differs from Kafka |\n| --- | --- | --- | --- | --- |\n")
	table := s.apis()
	slices.SortFunc(table, func(x, y api) int { return int(x.key - y.key) })
	for i := range table {
		a := s.table[table[i].key]
		flexible := "–"
		for v := a.min; v <= a.max; v++ {
			if a.flexible(v) {
				flexible = fmt.Sprint(v)
				break
			}
		}
		versions := fmt.Sprintf("%d–%d", max(a.min, a.refuseBelow), a.max)
		if a.min == a.max {
			versions = fmt.Sprint(a.max)
		}
		note := a.note
		if note == "" {
			note = "–"
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", a.key, a.name, versions, flexible, note)
	}
	return b.String()
}

func TestProtocolPage(t *testing.T) {
	s, err := New(Config{Listen: "none"}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), protocolBegin)
	have, after, ok2 := strings.Cut(rest, protocolEnd)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines %q and %q", protocolPage, protocolBegin, protocolEnd)
	}
	want := "\n" + protocolTable(s) + "\n"
	if have == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the table says; run: go test ./agent -run TestProtocolPage -update", protocolPage)
	}
	if err := os.WriteFile(protocolPage, []byte(before+protocolBegin+want+protocolEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
