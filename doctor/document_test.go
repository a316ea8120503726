package doctor

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentLinks: each link within docs/doctor.md leads to a heading of it, and each
// group has one at the top of the table.
func TestDocumentLinks(t *testing.T) {
	raw, err := os.ReadFile("../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(raw), -1) {
		headings[anchor(m[1])] = true
	}
	links := regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(string(raw), -1)
	for _, m := range links {
		if !headings[m[1]] {
			t.Errorf("#%s is no heading", m[1])
		}
	}
	for _, g := range Groups() {
		if !strings.Contains(string(raw), "["+groupTitles[g]+"](#"+anchor(groupTitles[g])+")") {
			t.Errorf("no link leads to %s", groupTitles[g])
		}
	}
	if len(links) < len(Groups())+12 {
		t.Errorf("%d links", len(links))
	}
}

// TestDocumentTells: a check that finds no fault says what else it is for, and what only
// the program needs is left out.
func TestDocumentTells(t *testing.T) {
	table := Table()
	for _, c := range table {
		if (c.Tells == "") != (len(c.Findings) > 0) {
			t.Errorf("%s finds no fault, and nothing says what it tells, or it does find one", c.Code)
		}
	}
	text := Document(append(table, Check{Code: "nat.x", Asks: "Is it so?"}))
	if strings.Contains(text, "Explains") || !strings.Contains(text, "### nat.x\n\nIs it so?\n\nIt finds no fault") {
		t.Error("the document has what it must not, or has nothing of what a check tells")
	}
}
