package chatui

import (
	"fmt"
	"hash/fnv"
	"strconv"
)

// A look is how a piece of text is drawn.
type look int

// The looks there are.
const (
	lookPlain look = iota
	lookDim
	lookBold
	lookMarked // the current conversation, a hit of a search
	lookSystem
	lookError
	lookNew
)

// signs are the program's own characters and colours.
type signs struct {
	sgr   bool // attributes at all
	color bool
	bar, here, away,
	delivered, read string
}

// newSigns returns those for a terminal: ascii is that it shows no others, sgr that it
// knows bold and reverse, color that colours are wanted.
func newSigns(ascii, sgr, color bool) signs {
	if ascii {
		return signs{sgr, color, "|", "*", "-", "+", "++"}
	}
	return signs{sgr, color, "│", "●", "○", "✓", "✓✓"}
}

// paint draws a piece of text that is clean.
func (s signs) paint(l look, text string) string {
	if !s.sgr || text == "" {
		return text
	}
	var code string
	switch {
	case l == lookDim:
		code = "2"
	case l == lookBold:
		code = "1"
	case l == lookMarked:
		code = "7"
	case l == lookSystem && s.color:
		code = "36"
	case l == lookSystem:
		code = "2"
	case l == lookError && s.color:
		code = "1;31"
	case l == lookNew && s.color:
		code = "1;33"
	case l == lookError, l == lookNew:
		code = "1"
	default:
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[m"
}

// authorColors are colours of 256 that are read on black and on white.
var authorColors = [...]int{31, 35, 64, 67, 97, 98, 130, 132, 134, 136, 161, 166, 168, 172, 37, 71}

// author draws a name in the colour that its device always has.
func (s signs) author(id string, mine bool, text string) string {
	if !s.sgr {
		return text
	}
	if !s.color || mine {
		return s.paint(lookBold, text)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return "\x1b[1;38;5;" + strconv.Itoa(authorColors[h.Sum32()%uint32(len(authorColors))]) + "m" + text + "\x1b[m"
}

// mark says where an own line is.
func (s signs) mark(m *Message, others int) string {
	switch {
	case m.State == StateRead:
		return s.read
	case m.State == StateDelivered:
		return s.delivered
	case m.Delivered > 0 && others > 1:
		return fmt.Sprintf("%d/%d", min(m.Delivered, 999), min(others, 999))
	case m.State == StateSent:
		return ">"
	}
	return "-"
}

// bytesText is a size for a person.
func bytesText(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), 0
	for ; f >= 999.5 && unit < 6; unit++ {
		f /= 1000
	}
	return fmt.Sprintf("%.3g %cB", f, " kMGTPE"[unit])
}
