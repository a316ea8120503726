package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/internal/control"
)

// terminalWidth is how many characters a line of a terminal has; 0 is no terminal.
func terminalWidth(w io.Writer) int {
	out, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(out.Fd()))
	if err != nil || width <= 0 {
		return 80
	}
	return width
}

// A pace is how fast one transfer has been in the last seconds.
type pace struct {
	at    time.Time
	bytes int64
	rate  float64 // bytes/s; 0 is not known
}

func (p *pace) measure(t control.Transfer, now time.Time) {
	d := now.Sub(p.at)
	switch {
	case p.at.IsZero() || t.Bytes < p.bytes || t.State != files.StateRunning: // it begins, or again
		*p = pace{at: now, bytes: t.Bytes}
	case d > time.Second/2:
		fresh := float64(t.Bytes-p.bytes) / d.Seconds()
		if p.rate == 0 {
			p.rate = fresh
		}
		p.rate += (fresh - p.rate) / 3
		p.at, p.bytes = now, t.Bytes
	}
}

// barMost is how long the bar in a line is at most, in characters, and barLeast how
// short it may get before it is left out; nameLeast is how much of a name is shown.
const (
	barMost   = 20
	barLeast  = 6
	nameLeast = 12
)

// line is what is known of a transfer, in one line of at most width characters.
func (p *pace) line(t control.Transfer, width int) string {
	if t.State == files.StateWaiting || t.State == files.StateBroken {
		return cut(waitingFor(t), width)
	}
	var parts []string
	share := -1.0
	switch {
	case t.TotalKnown && t.TotalBytes > 0:
		share = min(float64(t.Bytes)/float64(t.TotalBytes), 1)
		parts = append(parts, fmt.Sprintf("%3.0f %%", 100*share-0.5+1e-9), control.Bytes(t.Bytes)+" of "+control.Bytes(t.TotalBytes))
	default:
		parts = append(parts, control.Bytes(t.Bytes))
	}
	if p.rate > 0 {
		parts = append(parts, control.Bytes(int64(p.rate))+"/s")
		if left := float64(t.TotalBytes-t.Bytes) / p.rate; share >= 0 && left >= 0 {
			parts = append(parts, shortly(left)+" left")
		}
	}
	rest := strings.Join(parts, "  ")
	name := files.ShowName(t.Name)
	room := width - utf8.RuneCountInString(rest) - 2 // for the name, and the bar
	name = shorten(name, max(room-(barLeast+4), nameLeast))
	if n := min(room-utf8.RuneCountInString(name)-4, barMost); share >= 0 && n >= barLeast {
		full := int(share * float64(n))
		name += "  [" + strings.Repeat("=", full) + strings.Repeat(" ", n-full) + "]"
	}
	return cut(name+"  "+rest, width)
}

// shortly is a time in seconds for a person, to two units.
func shortly(seconds float64) string {
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch s := int64(seconds + 0.5); {
	case s < minute:
		return fmt.Sprintf("%d s", s)
	case s < hour:
		return fmt.Sprintf("%d min %d s", s/minute, s%minute)
	case s < day:
		return fmt.Sprintf("%d h %d min", s/hour, s%hour/minute)
	case s < 1000*day:
		return fmt.Sprintf("%d days", s/day)
	}
	return "years"
}

// shorten leaves out the middle of a name that is too long.
func shorten(name string, width int) string {
	r := []rune(name)
	if len(r) <= width {
		return name
	}
	end := (width - 1) / 2
	return string(r[:width-1-end]) + "…" + string(r[len(r)-end:])
}

func cut(s string, width int) string {
	if r := []rune(s); len(r) > width && width > 0 {
		return string(r[:width])
	}
	return s
}

func waitingFor(t control.Transfer) string {
	if t.State == files.StateBroken {
		return fmt.Sprintf("no connection to %s; it goes on when there is one", t.Device)
	}
	return fmt.Sprintf("waiting for %s to take it: there, kith inbox", t.Device)
}

// A bar is one line that says how far a transfer is: written over on a terminal, and
// elsewhere only when it changes what it waits for.
type bar struct {
	e     *env
	json  bool
	shown bool
	state files.State
	any   bool
	pace  pace
}

func (b *bar) show(t control.Transfer) error {
	if b.json {
		return b.e.printJSON(struct {
			Event string `json:"event"`
			control.Transfer
		}{"progress", t})
	}
	b.pace.measure(t, time.Now())
	width := terminalWidth(b.e.err)
	if width == 0 {
		if b.any && b.state == t.State {
			return nil
		}
		b.any, b.state = true, t.State
		if t.State == files.StateWaiting || t.State == files.StateBroken {
			fmt.Fprintln(b.e.err, waitingFor(t))
		}
		return nil
	}
	b.shown = true
	fmt.Fprintf(b.e.err, "\r\x1b[K%s", b.pace.line(t, width-1))
	return nil
}

func (b *bar) clear() {
	if b.shown {
		fmt.Fprint(b.e.err, "\r\x1b[K")
		b.shown = false
	}
}
