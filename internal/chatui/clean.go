package chatui

import (
	"cmp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/text/unicode/norm"
)

// Bounds of what is shown of foreign text: an honest text has fewer.
const (
	maxMarks    = 4       // combining marks on one character
	maxCluster  = 10      // runes of one character, as with emoji of a family
	maxNameCell = 32      // cells of a name
	maxFileCell = 60      // cells of the name of a file
	maxShown    = MaxText // bytes of a text
)

func compare[T cmp.Ordered](a, b T) int { return cmp.Compare(a, b) }

// A cleaner makes text of other devices fit for the terminal. Terminals differ in how
// wide they draw characters that are made of several: those that draw them as one cell
// or two say so (mode 2027, joined); for others such characters are taken apart, so that
// every terminal and this program agree where a line ends.
type cleaner struct{ joined bool }

// width is how many cells a clean text takes.
func (c cleaner) width(s string) int {
	if c.joined {
		return ansi.StringWidth(s)
	}
	return ansi.StringWidthWc(s)
}

// first returns the first character of a clean text, and how many cells it takes.
func (c cleaner) first(s string) (string, int) {
	if len(s) == 1 || s != "" && s[0] < utf8.RuneSelf && s[1] < utf8.RuneSelf {
		return s[:1], 1
	}
	if c.joined {
		return ansi.FirstGraphemeCluster(s, ansi.GraphemeWidth)
	}
	return ansi.FirstGraphemeCluster(s, ansi.WcWidth)
}

// text makes one line of a text: without control characters, bidirectional controls and
// whatever else is not seen, tabs and line breaks as spaces, what is no UTF-8 as "?".
func (c cleaner) text(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		s = strings.TrimRightFunc(s, func(r rune) bool { return r == utf8.RuneError })
	}
	if plain(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	rest := strings.Map(c.rune, s)
	for rest != "" {
		var cluster string
		cluster, _ = ansi.FirstGraphemeCluster(rest, ansi.GraphemeWidth)
		rest = rest[len(cluster):]
		c.cluster(&b, cluster)
	}
	// Terminals are given letters with their marks as one where there is one.
	return norm.NFC.String(b.String())
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// rune is what one rune is shown as; below 0 is not at all.
func (c cleaner) rune(r rune) rune {
	switch {
	case r == '\t', r == '\n', r == '\r', unicode.IsSpace(r), r == '\u2028', r == '\u2029', r == '\u2800':
		return ' '
	case r == utf8.RuneError:
		return '?'
	case r == zwj, r == emojiStyle:
		if c.joined {
			return r
		}
		return -1
	case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Cs, r),
		unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r), unicode.Is(unicode.Variation_Selector, r):
		return -1
	case !unicode.IsGraphic(r): // private, or not known
		return '?'
	case !c.joined && r >= flagA && r <= flagZ:
		return 'A' + r - flagA
	case !c.joined && r >= skinLight && r <= skinDark:
		return -1
	}
	return r
}

const (
	zwj        = '\u200d'
	emojiStyle = '\ufe0f'
	flagA      = '\U0001F1E6'
	flagZ      = '\U0001F1FF'
	skinLight  = '\U0001F3FB'
	skinDark   = '\U0001F3FF'
)

// cluster writes one character with no more parts than honest ones have.
func (c cleaner) cluster(b *strings.Builder, s string) {
	if len(s) == 1 {
		b.WriteString(s)
		return
	}
	marks, jamo := 0, 0
	var before rune
	for i, r := range s {
		mark := unicode.Is(unicode.M, r) && r != emojiStyle
		switch {
		case mark && before == 0: // nothing that it belongs to
			continue
		case mark:
			if marks++; marks > maxMarks {
				continue
			}
		case r == zwj && !pictured(before), r == emojiStyle && !pictured(before) && !strings.ContainsRune("0123456789#*", before):
			continue
		case unicode.Is(unicode.Hangul, r) && i > 0:
			if jamo++; jamo > 2 || r >= 0x1100 && r < 0x115f || r >= 0xa960 && r < 0xa97d {
				continue
			}
		case i > 0 && utf8.RuneCountInString(s[:i]) >= maxCluster:
			continue
		}
		before = r
		b.WriteRune(r)
	}
}

// pictured reports whether a joiner after a rune makes sense: it joins pictures.
func pictured(r rune) bool {
	return unicode.Is(unicode.So, r) || unicode.Is(unicode.Sk, r) || r == emojiStyle || r >= 0x1F000
}

// name makes a name fit for a list: as text, single spaces, not longer than a list is
// wide, and never empty.
func (c cleaner) name(s string) string {
	if len(s) > 4*4*maxNameCell {
		s = s[:4*4*maxNameCell]
	}
	s = c.cut(strings.Join(strings.Fields(c.text(s)), " "), maxNameCell)
	if s == "" {
		return "(no name)"
	}
	return s
}

// file makes the name of a file fit for a line. Its end stays: it says what the file is.
func (c cleaner) file(s string) string {
	s = strings.Join(strings.Fields(c.text(s)), " ")
	if s == "" {
		return "(no name)"
	}
	if c.width(s) <= maxFileCell {
		return s
	}
	head, rest := c.take(s, maxFileCell/2)
	for left := c.width(rest); left > maxFileCell/2-2; {
		ch, w := c.first(rest)
		rest = rest[len(ch):]
		left -= w
	}
	return head + ".." + rest
}

// cut leaves out the end of a clean text that takes more cells than there are.
func (c cleaner) cut(s string, cells int) string {
	if len(s) <= cells && plain(s) {
		return s
	}
	if c.width(s) <= cells {
		return s
	}
	if cells < 3 {
		return strings.Repeat(".", max(cells, 0))
	}
	head, _ := c.take(s, cells-2)
	return head + ".."
}

// take splits a clean text after the characters that fit into cells.
func (c cleaner) take(s string, cells int) (head, rest string) {
	at, used := 0, 0
	for at < len(s) {
		ch, w := c.first(s[at:])
		if used+w > cells {
			break
		}
		used += w
		at += len(ch)
	}
	return s[:at], s[at:]
}

// fit cuts or fills a clean text to exactly so many cells.
func (c cleaner) fit(s string, cells int) string {
	s = c.cut(s, cells)
	return s + strings.Repeat(" ", max(cells-c.width(s), 0))
}

// A span is a part of a text, in bytes.
type span struct{ from, to int }

// wrap breaks a clean text into lines of at most first cells, then rest cells: between
// words where it can, inside them where it must. There is at least one line.
func (c cleaner) wrap(s string, first, rest int) []span {
	cells, rest := max(first, 1), max(rest, 1)
	var out []span
	start, used := 0, 0   // of this line
	brk, brkUsed := -1, 0 // after the last space in it
	end := func(to, next int) {
		out = append(out, span{start, to})
		start, brk, cells = next, -1, rest
	}
	for at := 0; at < len(s); {
		ch, w := c.first(s[at:])
		switch {
		case used+w <= cells:
			at += len(ch)
			used += w
			if ch == " " {
				brk, brkUsed = at, used
			}
		case at == start: // wider than the whole line: left out
			at += len(ch)
			start = at
		case ch == " ": // not seen at the end of a line
			to := at
			for at < len(s) && s[at] == ' ' {
				at++
			}
			end(to, at)
			used = 0
		case brk > start:
			left := used - brkUsed
			end(brk, brk)
			used = left
		default:
			end(at, at)
			used = 0
		}
	}
	if start < len(s) || len(out) == 0 {
		out = append(out, span{min(start, len(s)), len(s)})
	}
	return out
}
