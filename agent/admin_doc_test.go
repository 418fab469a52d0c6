package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/skeinio/skein/metadata/topicconf"
)

const (
	configsBegin = "<!-- made from metadata/topicconf by: go test ./agent -run TestConfigsPage -update -->\n"
	configsEnd   = "<!-- end of what is made from metadata/topicconf -->\n"
)

// configsTable is the table of topic configs as docs/PROTOCOL.md shows it.
func configsTable() string {
	var b strings.Builder
	b.WriteString("| topic config | default | use | what it says |\n| --- | --- | --- | --- |\n")
	for _, d := range topicconf.Defs() {
		use := map[topicconf.Use]string{
			topicconf.Honoured: "honoured", topicconf.Echoed: "shown",
		}[d.Use]
		def := d.Default
		if def == "" {
			def = "(empty)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", d.Name, def, use, d.Doc)
	}
	return b.String()
}

func TestConfigsPage(t *testing.T) {
	page, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), configsBegin)
	have, after, ok2 := strings.Cut(rest, configsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines %q and %q", protocolPage, configsBegin, configsEnd)
	}
	want := "\n" + configsTable() + "\n"
	if have == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what metadata/topicconf says; run: go test ./agent -run TestConfigsPage -update", protocolPage)
	}
	if err := os.WriteFile(protocolPage, []byte(before+configsBegin+want+configsEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
