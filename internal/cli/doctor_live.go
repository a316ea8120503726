package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/kithproject/kith/doctor"
)

// A live list shows on a terminal, while the doctor looks, how far each group is, what was
// found by now, and what is still under way. It goes when the report comes. On what is no
// terminal it shows nothing.
type live struct {
	out           io.Writer
	width, height int
	until         time.Time // when the run ends at the latest

	mu    sync.Mutex
	all   []doctor.Result // in the order of the table
	index map[string]int
	lines int // how many are on the screen
	ended bool
	done  chan struct{}
	wg    sync.WaitGroup
}

// newLive shows a list on standard error, if that is a terminal.
func newLive(out io.Writer, slow bool) *live {
	width, height := terminalSize(out)
	return startLive(out, width, height, slow)
}

// startLive shows a list of such a size, in characters and lines; width 0 is no terminal.
func startLive(out io.Writer, width, height int, slow bool) *live {
	total := doctor.DefaultTotal
	if slow {
		total = doctor.SlowTotal
	}
	l := &live{out: out, width: width, height: height, until: time.Now().Add(total), index: make(map[string]int), done: make(chan struct{})}
	if width == 0 {
		return l
	}
	l.draw()
	l.wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.draw()
			case <-l.done:
				return
			}
		}
	})
	return l
}

// terminalSize is how many characters and lines a terminal has that takes what moves the
// cursor; 0, 0 if it is none.
func terminalSize(w io.Writer) (width, height int) {
	width = terminalWidth(w)
	if width == 0 || os.Getenv("TERM") == "dumb" {
		return 0, 0
	}
	height = 24
	if f, ok := w.(*os.File); ok {
		if _, h, err := term.GetSize(int(f.Fd())); err == nil && h > 0 {
			height = h
		}
	}
	return width, height
}

// take is told of each check twice: while it is pending, and when it has ended.
func (l *live) take(r doctor.Result) {
	l.mu.Lock()
	id := string(r.Code) + " " + r.Subject
	i, ok := l.index[id]
	if !ok {
		i = len(l.all)
		l.index[id] = i
		l.all = append(l.all, r)
	}
	l.all[i] = r
	l.mu.Unlock()
	if r.State != doctor.Pending { // these come all at once, at the begin
		l.draw()
	}
}

// end takes the list away.
func (l *live) end() {
	l.mu.Lock()
	if !l.ended {
		l.ended = true
		close(l.done)
		l.rewrite(nil)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *live) draw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.width > 0 && !l.ended {
		l.rewrite(l.text())
	}
}

// rewrite puts lines in place of those that are on the screen.
func (l *live) rewrite(lines []string) {
	if l.lines == 0 && len(lines) == 0 {
		return
	}
	var b strings.Builder
	if l.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", l.lines)
	}
	b.WriteByte('\r')
	for _, line := range lines {
		b.WriteString(cut(line, l.width-1) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	_, _ = io.WriteString(l.out, b.String()) // a terminal that is gone shows nothing
	l.lines = len(lines)
}

// text is what the list shows now: no more lines than the terminal has.
func (l *live) text() []string {
	var groups, found []string
	for _, g := range doctor.Groups() {
		t := tally(l.all, g)
		if t.total() == 0 {
			continue
		}
		groups = append(groups, groupLine(g, t))
	}
	for _, r := range l.all {
		if r.State == doctor.No && r.Severity > doctor.Note {
			found = append(found, fmt.Sprintf("  %-5s  %s  %s", mark(r), checkName(r), clean(r.Cause)))
		}
	}
	switch room := l.height - 3 - len(groups); { // of the last two lines, and that of the cursor
	case room < 0:
		return []string{l.running()}
	case len(found) > room:
		found = found[:room]
	}
	lines := append(groups, found...)
	if len(lines) > 0 {
		lines = append(lines, "")
	}
	return append(lines, l.running())
}

// running says what is under way, and for how long at most.
func (l *live) running() string {
	left := max(time.Until(l.until).Round(time.Second), 0)
	head := fmt.Sprintf("looking, %d s at most", int(left.Seconds()))
	var names []string
	for _, r := range l.all {
		if r.State == doctor.Pending {
			names = append(names, checkName(r))
		}
	}
	switch {
	case len(l.all) == 0:
		return head
	case len(names) == 0:
		return "putting it together"
	}
	line := head + ": " + names[0]
	for i, name := range names[1:] {
		more := fmt.Sprintf(" and %d more", len(names)-1-i)
		if utf8.RuneCountInString(line+", "+name+more) > l.width-1 {
			return line + more
		}
		line += ", " + name
	}
	return line
}
