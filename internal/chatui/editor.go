package chatui

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// maxInput is how much may be typed or pasted at once, in bytes.
const maxInput = 64 << 10

// An editor is text that is being written: lines with a cursor.
type editor struct {
	text   string
	at     int    // of the cursor, in bytes
	killed string // what the last Ctrl-K, Ctrl-U or Ctrl-W took away
}

// insertable is text as an editor takes it: UTF-8 with line ends and tabs made one kind,
// without other control characters and bidirectional controls.
func insertable(s string) string {
	s = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u2028", "\n", "\u2029", "\n", "\t", "    ").Replace(s)
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == zwj, r == '\u200c':
			return r
		case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r), unicode.Is(unicode.Cs, r):
			return -1
		}
		return r
	}, s)
}

// insert puts text where the cursor is; false is that it is too much.
func (e *editor) insert(s string) bool {
	s = insertable(s)
	if len(e.text)+len(s) > maxInput {
		return false
	}
	e.text = e.text[:e.at] + s + e.text[e.at:]
	e.at += len(s)
	return true
}

func (e *editor) set(s string) { e.text, e.at = s, len(s) }

func (e *editor) lines() int { return strings.Count(e.text, "\n") + 1 }

// next and before are where the neighbouring characters begin.
func (e *editor) next(at int) int {
	if at >= len(e.text) {
		return at
	}
	ch, _ := ansi.FirstGraphemeCluster(e.text[at:], ansi.GraphemeWidth)
	return at + max(len(ch), 1)
}

func (e *editor) before(at int) int {
	if at <= 0 {
		return 0
	}
	// Characters are found from a place where surely one begins: a line, or ASCII.
	from := at - 1
	for from > 0 && at-from < 256 && (e.text[from] >= utf8.RuneSelf || from+1 < len(e.text) && from+1 < at && e.text[from+1] >= utf8.RuneSelf) {
		from--
	}
	for from < at && !utf8.RuneStart(e.text[from]) {
		from++
	}
	for {
		n := e.next(from)
		if n >= at {
			return from
		}
		from = n
	}
}

func (e *editor) lineStart() int { return strings.LastIndexByte(e.text[:e.at], '\n') + 1 }

func (e *editor) lineEnd() int {
	if i := strings.IndexByte(e.text[e.at:], '\n'); i >= 0 {
		return e.at + i
	}
	return len(e.text)
}

func (e *editor) wordBefore() int {
	head := strings.TrimRight(e.text[:e.at], " \n")
	return strings.LastIndexAny(head, " \n") + 1
}

func (e *editor) wordAfter() int {
	skip := len(e.text[e.at:]) - len(strings.TrimLeft(e.text[e.at:], " \n"))
	if i := strings.IndexAny(e.text[e.at+skip:], " \n"); i >= 0 {
		return e.at + skip + i
	}
	return len(e.text)
}

// kill takes away what is between two places, and remembers it for Ctrl-Y.
func (e *editor) kill(from, to int) {
	if from == to {
		return
	}
	e.killed = e.text[from:to]
	e.drop(from, to)
}

func (e *editor) drop(from, to int) {
	e.text = e.text[:from] + e.text[to:]
	e.at = from
}

// up and down move between lines; false is that there is none.
func (e *editor) up() bool {
	start := e.lineStart()
	if start == 0 {
		return false
	}
	col := utf8.RuneCountInString(e.text[start:e.at])
	e.at = start - 1
	e.toColumn(e.lineStart(), col)
	return true
}

func (e *editor) down() bool {
	end := e.lineEnd()
	if end == len(e.text) {
		return false
	}
	col := utf8.RuneCountInString(e.text[e.lineStart():e.at])
	e.at = end + 1
	e.toColumn(end+1, col)
	return true
}

func (e *editor) toColumn(start, col int) {
	e.at = start
	end := e.lineEnd()
	for e.at = start; e.at < end && col > 0; col-- {
		e.at = min(e.next(e.at), end)
	}
}

// key does what an editing key means; false is that it means nothing here.
func (e *editor) key(k string) bool {
	switch k {
	case "left", "ctrl+b":
		e.at = e.before(e.at)
	case "right":
		e.at = e.next(e.at)
	case "ctrl+a", "home":
		e.at = e.lineStart()
	case "ctrl+e", "end":
		e.at = e.lineEnd()
	case "ctrl+left", "alt+left", "alt+b":
		e.at = e.wordBefore()
	case "ctrl+right", "alt+right", "alt+f":
		e.at = e.wordAfter()
	case "backspace", "ctrl+h":
		e.drop(e.before(e.at), e.at)
	case "delete", "ctrl+d":
		e.drop(e.at, e.next(e.at))
	case "ctrl+w", "alt+backspace", "ctrl+backspace":
		e.kill(e.wordBefore(), e.at)
	case "ctrl+u":
		e.kill(e.lineStart(), e.at)
	case "ctrl+k":
		at := e.at
		e.kill(at, e.lineEnd())
		e.at = at
	case "ctrl+y":
		e.insert(e.killed)
	case "alt+enter", "shift+enter", "ctrl+j":
		e.insert("\n")
	default:
		return false
	}
	return true
}

// view lays the text out in rows of so many cells, of which it returns at most rows
// around the cursor, and where the cursor is in them.
func (e *editor) view(c cleaner, cells, rows int) (out []string, x, y int) {
	cells, rows = max(cells, 2), max(rows, 1)
	var all []string
	at := 0
	for i, line := range strings.Split(e.text, "\n") {
		if i > 0 {
			at++
		}
		here := e.at >= at && e.at <= at+len(line)
		var cursor int // in the clean line, bytes
		clean := c.text(line)
		if here {
			cursor = min(len(c.text(line[:e.at-at])), len(clean))
		}
		at += len(line)
		for first := true; first || clean != ""; first = false {
			head, rest := c.take(clean, cells)
			if head == "" && rest != "" { // wider than a row
				_, size := utf8.DecodeRuneInString(rest)
				clean, cursor = rest[size:], max(cursor-size, 0)
				continue
			}
			if here && cursor <= len(head) {
				x, y, here = c.width(head[:cursor]), len(all), false
			}
			cursor -= len(head)
			all = append(all, head)
			clean = rest
		}
	}
	if x >= cells { // the cursor stands after a full row
		all = append(all[:y+1], append([]string{""}, all[y+1:]...)...)
		x, y = 0, y+1
	}
	if len(all) == 0 {
		all = []string{""}
	}
	from := min(max(y-rows+1, 0), max(len(all)-rows, 0))
	if y < from {
		from = y
	}
	return all[from:min(from+rows, len(all))], x, y - from
}

// messages are the lines that are sent for a text: without empty ones, each at most
// MaxText bytes, broken between words where that can be.
func messages(text string) []string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		for len(line) > MaxText {
			at := MaxText
			for !utf8.RuneStart(line[at]) {
				at--
			}
			if i := strings.LastIndexByte(line[:at], ' '); i > MaxText/2 {
				at = i
			}
			out = append(out, strings.TrimSpace(line[:at]))
			line = strings.TrimSpace(line[at:])
		}
		if line != "" {
			out = append(out, line)
		}
	}
	return out
}
