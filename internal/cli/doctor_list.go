package cli

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kithproject/kith/doctor"
)

const (
	// textWidth is how long lines are at most, in characters; and leastWidth where the
	// terminal is narrower.
	textWidth, leastWidth = 79, 40
	// shownEvidence is how many lines of evidence a finding has without --all, a count.
	shownEvidence = 6
)

type reportOptions struct {
	all    bool
	device string // that it was about, or ""
	width  int    // of the terminal, in characters; 0 is none
}

// room is how long lines may be, in characters.
func (o reportOptions) room() int {
	if o.width == 0 {
		return textWidth
	}
	return max(leastWidth, min(textWidth, o.width-1))
}

// A reportWriter writes a report for a person.
type reportWriter struct {
	out *bufio.Writer
	r   doctor.Report
	o   reportOptions
}

// writeReport writes a report for a person: a line for each group and what is wrong in
// it, or, with all, every check; and what it comes to.
func writeReport(out io.Writer, r doctor.Report, o reportOptions) error {
	w := &reportWriter{out: bufio.NewWriter(out), r: r, o: o}
	for _, g := range doctor.Groups() {
		if t := tally(r.Results, g); t.total() > 0 {
			w.group(g, t)
		}
	}
	w.verdict()
	w.also()
	w.rest()
	return w.out.Flush()
}

func (w *reportWriter) group(g doctor.Group, t counts) {
	if !w.o.all {
		fmt.Fprintln(w.out, groupLine(g, t))
	} else {
		fmt.Fprintln(w.out, groupTitle(g))
	}
	for _, r := range w.r.Results {
		switch {
		case r.Code.Group() != g:
		case w.o.all:
			w.check(r)
		case isCause(r) && r.Severity > doctor.Note:
			w.finding(r)
		}
	}
}

// finding shows something that is wrong, and what was seen of it; what it means stands at
// the end.
func (w *reportWriter) finding(r doctor.Result) {
	w.wrapped(fmt.Sprintf("  %-5s  ", mark(r)), "         ", checkName(r))
	for i, line := range r.Evidence {
		if i == shownEvidence && len(r.Evidence) > shownEvidence+1 {
			w.wrapped("         ", "", fmt.Sprintf("and %d lines more: --all", len(r.Evidence)-i))
			return
		}
		w.wrapped("         ", "           ", line)
	}
}

// check shows a check in one line, and all that was seen.
func (w *reportWriter) check(r doctor.Result) {
	what := strings.TrimPrefix(string(r.Code), string(r.Code.Group())+".")
	if r.Subject != "" && r.Subject != what {
		what += " " + clean(r.Subject)
	}
	head, hang := fmt.Sprintf("  %-5s  %-18s ", mark(r), what), strings.Repeat(" ", 28)
	if w.o.room() < 60 {
		hang = "         "
	}
	if utf8.RuneCountInString(head) > len(hang) {
		fmt.Fprintln(w.out, strings.TrimRight(head, " "))
		head = hang
	}
	w.wrapped(head, hang+"  ", saying(r))
	rest := r.Evidence
	if len(rest) > 0 && strings.HasSuffix(saying(r), rest[0]) {
		rest = rest[1:]
	}
	for _, line := range rest {
		w.wrapped(hang, hang+"  ", line)
	}
}

// verdict shows what it comes to, set off.
func (w *reportWriter) verdict() {
	v := w.r.Verdict
	fmt.Fprintln(w.out)
	for _, text := range []string{v.State, v.Cause, v.Fix} {
		if text != "" {
			w.wrapped("", "", text)
		}
	}
}

// also shows the causes behind the first one.
func (w *reportWriter) also() {
	title := "\nAlso:"
	for _, c := range w.r.Causes[min(1, len(w.r.Causes)):] {
		if c.Severity <= doctor.Note {
			continue
		}
		if title != "" {
			fmt.Fprintln(w.out, title)
			title = ""
		}
		w.wrapped("  ", "    ", checkName(c)+": "+c.Cause+" "+c.Fix)
	}
}

// rest says what else there is to know.
func (w *reportWriter) rest() {
	var t counts
	for _, g := range doctor.Groups() {
		t.add(tally(w.r.Results, g))
	}
	if line := w.folded(t); line != "" {
		fmt.Fprintf(w.out, "\n%s\n", line)
	}
	if root := w.rootAdds(); len(root) > 0 {
		fmt.Fprintln(w.out)
		w.wrapped("", "", "As root it could also say "+strings.Join(root, ", and ")+".")
	}
}

// folded says what stands behind the counts, and how to see it.
func (w *reportWriter) folded(t counts) string {
	if w.o.all || t.unknown+t.notes == 0 {
		return ""
	}
	var parts []string
	switch {
	case t.unknown == 0:
	case strings.Contains(w.r.Verdict.State, "could not be found out"):
		parts = append(parts, "To see which")
	default:
		parts = append(parts, fmt.Sprintf("%d could not be found out", t.unknown))
	}
	if t.notes > 0 {
		parts = append(parts, plural(t.notes, "note", "notes"))
	}
	return strings.Join(parts, ", and ") + ": " + w.command("--all")
}

// command is how this was asked, with a flag: in front of a name that looks like one.
func (w *reportWriter) command(flag string) string {
	name := doctor.Word(clean(w.o.device))
	switch {
	case w.o.device == "":
		return "kith doctor " + flag
	case strings.HasPrefix(name, "-"):
		return "kith doctor " + flag + " " + name
	}
	return "kith doctor " + name + " " + flag
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// rootAdds is what root could add where a check has not said yes.
func (w *reportWriter) rootAdds() (out []string) {
	if w.r.Root {
		return nil
	}
	for _, c := range doctor.Table() {
		open := slices.ContainsFunc(w.r.Results, func(r doctor.Result) bool {
			return r.Code == c.Code && (r.State == doctor.Unknown || isCause(r))
		})
		if open && c.RootAdds != "" {
			out = append(out, c.RootAdds)
		}
	}
	return out
}

// wrapped writes a text of others in lines that fit: first stands before it, and next
// before what follows.
func (w *reportWriter) wrapped(first, next, text string) {
	line := first
	empty := true // nothing of the text is in the line
	for word := range strings.FieldsSeq(clean(text)) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > w.o.room() {
			fmt.Fprintln(w.out, line)
			line, empty = next, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(w.out, strings.TrimRight(line, " "))
}

// counts are how many checks of a group said what.
type counts struct{ ok, faults, limits, notes, unknown, out, pending int }

func (c counts) total() int {
	return c.ok + c.faults + c.limits + c.notes + c.unknown + c.out + c.pending
}

func (c *counts) add(o counts) {
	c.ok, c.faults, c.limits, c.notes = c.ok+o.ok, c.faults+o.faults, c.limits+o.limits, c.notes+o.notes
	c.unknown, c.out, c.pending = c.unknown+o.unknown, c.out+o.out, c.pending+o.pending
}

// tally counts the checks of a group. What was not asked for (--slow) does not count.
func tally(results []doctor.Result, g doctor.Group) (c counts) {
	for _, r := range results {
		if r.Code.Group() != g {
			continue
		}
		switch {
		case r.State == doctor.Yes:
			c.ok++
		case r.State == doctor.Unknown:
			c.unknown++
		case r.State == doctor.Pending:
			c.pending++
		case r.State == doctor.Skipped && r.Because == "":
		case !isCause(r):
			c.out++
		case r.Severity == doctor.Fault:
			c.faults++
		case r.Severity == doctor.Limit:
			c.limits++
		default:
			c.notes++
		}
	}
	return c
}

// isCause reports whether a check says no, and nothing else explains it.
func isCause(r doctor.Result) bool { return r.State == doctor.No && r.Because == "" }

// groupLine is a group in one line.
func groupLine(g doctor.Group, c counts) string {
	text := fmt.Sprintf("%-15s %3d ok", groupTitle(g), c.ok)
	for _, part := range []struct {
		n         int
		one, many string
	}{
		{c.faults, "fault", "faults"},
		{c.limits, "limit", "limits"},
		{c.notes, "note", "notes"},
		{c.unknown, "unknown", "unknown"},
		{c.out, "left out", "left out"},
		{c.pending, "under way", "under way"},
	} {
		if part.n > 0 {
			text += ", " + plural(part.n, part.one, part.many)
		}
	}
	return text
}

// groupTitle is a group for people.
func groupTitle(g doctor.Group) string {
	switch g {
	case doctor.DeviceGroup:
		return "This device"
	case doctor.AddressGroup:
		return "Its own address"
	case doctor.NATGroup:
		return "NAT"
	case doctor.MeetingGroup:
		return "Meeting"
	case doctor.RelayGroup:
		return "Relays"
	}
	return "Paired devices"
}

// checkName is the code of a check, and its subject.
func checkName(r doctor.Result) string {
	if r.Subject == "" {
		return string(r.Code)
	}
	return string(r.Code) + " " + clean(r.Subject)
}

// mark is the first column.
func mark(r doctor.Result) string {
	switch {
	case r.State == doctor.Yes:
		return "ok"
	case isCause(r):
		return r.Severity.String()
	case r.State == doctor.Unknown:
		return "?"
	}
	return "-"
}

// saying is what a check says, in a few words.
func saying(r doctor.Result) string {
	first := r.Asks
	if len(r.Evidence) > 0 {
		first = r.Evidence[0]
	}
	switch {
	case r.Because != "":
		return "follows from " + r.Because
	case r.State == doctor.Yes && len(r.Evidence) == 0:
		return "as it should be"
	case r.State == doctor.No:
		return r.Cause
	case r.State == doctor.Unknown:
		return "could not find out: " + first
	}
	return first
}
