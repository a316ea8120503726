package doctor

import (
	"cmp"
	"fmt"
	"strings"
)

// Document writes a table as Markdown, a section for each check; docs/doctor.md
// holds that of Table.
func Document(table []Check) string {
	var b strings.Builder
	b.WriteString("\n")
	for i, g := range Groups() {
		fmt.Fprintf(&b, "%s[%s](#%s)", map[bool]string{true: " · "}[i > 0], groupTitles[g], anchor(groupTitles[g]))
	}
	b.WriteString("\n")
	for _, g := range Groups() {
		fmt.Fprintf(&b, "\n## %s\n", groupTitles[g])
		for _, c := range table {
			if c.Code.Group() == g {
				document(&b, c)
			}
		}
	}
	return b.String()
}

var groupTitles = map[Group]string{
	DeviceGroup: "This device", AddressGroup: "Its own address", NATGroup: "NAT",
	MeetingGroup: "Meeting", RelayGroup: "Relays", PeerGroup: "Paired devices",
}

// anchor is how Markdown names a heading in a link.
func anchor(heading string) string {
	return strings.NewReplacer(" ", "-", ".", "").Replace(strings.ToLower(heading))
}

func document(b *strings.Builder, c Check) {
	fmt.Fprintf(b, "\n### %s\n\n%s", c.Code, c.Asks)
	if len(c.Needs) > 0 {
		fmt.Fprintf(b, " Needs")
		for i, n := range c.Needs {
			fmt.Fprintf(b, "%s `%s`", map[bool]string{true: ",", false: ""}[i > 0], n)
		}
		b.WriteByte('.')
	}
	if c.Slow {
		b.WriteString(" Only with `--slow`.")
	}
	if c.RootAdds != "" {
		fmt.Fprintf(b, " As root also: %s.", c.RootAdds)
	}
	b.WriteByte('\n')
	for _, f := range c.Findings {
		fmt.Fprintf(b, "\n- `%s` (%s): %s %s", f.ID, f.Severity, f.Cause, f.Fix)
	}
	if len(c.Findings) == 0 {
		fmt.Fprint(b, "\nIt finds no fault: ", cmp.Or(c.Tells, "it only tells what it saw."))
	}
	b.WriteByte('\n')
}
