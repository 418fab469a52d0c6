package segment

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// docs/SEGMENT.md must say what the code does.
func TestDocumentIsTrue(t *testing.T) {
	b, err := os.ReadFile("../../docs/SEGMENT.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	for _, name := range []string{"v1-level0-zstd", "v1-level1-stored"} {
		dump, err := os.ReadFile(filepath.Join(goldenDir, name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(doc, "```\n"+string(dump)+"```") {
			t.Errorf("the dump of %s is another", name)
		}
	}
	seg, err := os.ReadFile(filepath.Join(goldenDir, "v1-level0-zstd.seg"))
	if err != nil {
		t.Fatal(err)
	}
	at := len(seg) - TrailerBytes
	trailer := fmt.Sprintf("%08x  % x  % x\n%08x  % x\n", at, seg[at:at+8], seg[at+8:at+16], at+16, seg[at+16:])
	for _, want := range []string{
		trailer,
		fmt.Sprintf("## Header, %d bytes", HeaderBytes),
		fmt.Sprintf("### Prefix, %d bytes", FooterPrefixBytes),
		fmt.Sprintf("### Extent entry, %d bytes", ExtentEntryBytes),
		fmt.Sprintf("### Chunk entry, %d bytes", ChunkEntryBytes),
		fmt.Sprintf("## Trailer, %d bytes", TrailerBytes),
		fmt.Sprintf("%d + %d *e* + %d *c* bytes", FooterPrefixBytes, ExtentEntryBytes, ChunkEntryBytes),
		fmt.Sprintf("`% x`", magic),
		fmt.Sprintf("%d MiB, %d,%03d extents without chunks", MaxFooterBytes>>20, MaxExtents/1000, MaxExtents%1000),
		fmt.Sprintf("| %d MiB, stored and raw |", MaxBlobBytes>>20),
		fmt.Sprintf("(%d KiB; a second read", tailBytes>>10),
	} {
		if !strings.Contains(doc, want) {
			t.Errorf("does not say %q", want)
		}
	}
}
