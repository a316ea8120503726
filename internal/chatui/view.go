package chatui

import (
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// foldBelow is from how many columns on the list of conversations is shown.
const foldBelow = 60

// tiny is a window, in columns, that nothing is laid out for: rows are cut.
const tiny = 16

// A layout says where things are.
type layout struct {
	listW        int // 0: folded away; the bar between takes one more
	paneX, paneW int
	paneH        int // without the header
	header       bool
	bars         []string
	input        []string
	curX, curY   int // of the cursor
	status       bool
}

func (m *model) layout() layout {
	l := layout{paneW: m.w, header: m.h >= 5, status: m.h >= 3}
	switch {
	case m.w >= 110:
		l.listW = 26
	case m.w >= 80:
		l.listW = 20
	case m.w >= foldBelow:
		l.listW = 16
	}
	if l.listW > 0 {
		l.paneX = l.listW + 1
		l.paneW = m.w - l.paneX
	}
	left := m.h
	if l.header {
		left--
	}
	if l.status {
		left--
	}
	l.input, l.curX, l.curY = m.inputRows(min(5, max(left/3, 1)))
	left -= len(l.input)
	l.bars = m.bars()
	if most := max(left-3, 0); len(l.bars) > most {
		l.bars = l.bars[:most]
	}
	l.paneH = max(left-len(l.bars), 0)
	return l
}

// prompt is what the input begins with.
func (m *model) prompt() string {
	switch m.mode {
	case modeSearch:
		return "search: "
	case modeHelp:
		return "(any key leaves) "
	}
	return "> "
}

func (m *model) inputRows(most int) (rows []string, x, y int) {
	prompt := m.c.cut(m.prompt(), max(m.w-4, 0))
	ed := &editor{}
	switch k := m.current(); {
	case m.mode == modeSearch:
		ed = &m.find.ed
	case m.mode == modeChat && k != nil:
		ed = &k.ed
	}
	text, x, y := ed.view(m.c, m.w-len(prompt)-1, most)
	for i, t := range text {
		lead := prompt
		if i > 0 {
			lead = strings.Repeat(" ", len(prompt))
		}
		rows = append(rows, m.s.paint(lookBold, lead)+t)
	}
	return rows, min(x+len(prompt), max(m.w-1, 0)), y
}

// bars are the rows above the input, the most urgent first.
func (m *model) bars() []string {
	var out []string
	add := func(l look, lead, text string, most int) {
		for i, s := range m.c.wrap(text, m.w-len(lead), m.w-len(lead)) {
			if i == most {
				break
			}
			if i > 0 {
				lead = strings.Repeat(" ", len(lead))
			}
			out = append(out, m.s.paint(l, m.c.cut(lead+text[s.from:s.to], m.w)))
		}
	}
	k := m.current()
	if m.alert != "" {
		add(lookError, "! ", m.alert, 2)
	}
	if len(m.actions) > 0 {
		n := m.actions[0]
		more := ""
		if len(m.actions) > 1 {
			more = fmt.Sprintf(" (and %d more)", len(m.actions)-1)
		}
		add(lookNew, "!! ", fmt.Sprintf("[Alt-U: %s, Esc: keep] %s%s", m.c.cut(m.c.text(n.Action.Label), 40), m.c.text(n.Text), more), 3)
	}
	if m.lost {
		add(lookError, "! ", "nothing new comes here any more: Ctrl-R tries again", 2)
	}
	if k == nil {
		return out
	}
	if k.failed != "" {
		add(lookError, "! ", "not sent: "+k.failed+" (Enter tries again, Esc takes it back)", 2)
	}
	if m.said != "" {
		add(lookSystem, gutterSystem, m.said, 3)
	}
	if h := hint(k.ed.text); h != "" && m.said == "" && m.mode == modeChat {
		add(lookSystem, gutterSystem, h, 2)
	}
	if n := len(messages(k.ed.text)); n > 1 && m.mode == modeChat {
		add(lookSystem, gutterSystem, fmt.Sprintf("%d lines: Enter sends each as a message, Alt-J makes them one", n), 2)
	}
	if !k.follow && k.conv.Unread > 0 {
		add(lookNew, gutterSystem, fmt.Sprintf("%d new below (Ctrl-End shows)", k.conv.Unread), 1)
	}
	if len(k.conv.Members) > 0 && k.online() == 0 {
		who := k.name + " is"
		if k.conv.Room {
			who = "all others are"
		}
		add(lookSystem, gutterSystem, who+" away; lines are kept and delivered later", 2)
	}
	return out
}

// header is the row above the pane.
func (m *model) header(k *conversation, width int, folded bool) string {
	if k == nil {
		return m.s.paint(lookBold, m.c.cut(" kith chat", width))
	}
	title := k.name
	state := "away"
	switch {
	case k.conv.Room:
		title = "#" + k.name
		state = fmt.Sprintf("%d of %d here", k.online(), len(k.conv.Members))
		names := ""
		for _, v := range k.conv.Members[:min(len(k.conv.Members), 12)] {
			if v.Online {
				names += ", " + k.names[v.ID]
			}
		}
		if names != "" && width >= 50 {
			state += ": " + names[2:]
		}
	case k.online() > 0:
		state = "here"
	}
	others := 0
	for i, o := range m.convs {
		if i != m.cur && !o.conv.Muted {
			others += o.conv.Unread
		}
	}
	right := ""
	if folded && len(m.convs) > 1 {
		right = fmt.Sprintf(" %d/%d", m.cur+1, len(m.convs))
		if others > 0 {
			right += fmt.Sprintf(" +%d", min(others, 999))
		}
	}
	left := m.c.fit(" "+title+" - "+state, max(width-len(right), 0))
	return m.s.paint(lookBold, m.c.cut(left+right, width))
}

// listTop is which conversation is first in the list.
func (m *model) listTop(l layout) int {
	return max(min(m.cur-(l.paneH+1)/2, len(m.convs)-l.paneH-1), 0)
}

// listRow is one row of the list.
func (m *model) listRow(i, width int) string {
	if i >= len(m.convs) {
		return strings.Repeat(" ", width)
	}
	k := m.convs[i]
	sign := m.s.away
	if k.online() > 0 {
		sign = m.s.here
	}
	name := k.name
	if k.conv.Room {
		name = "#" + name
	}
	count := ""
	if k.conv.Unread > 0 {
		count = fmt.Sprintf(" %d", min(k.conv.Unread, 999))
	}
	text := m.c.fit(sign+" "+name, max(width-1-len(count), 0))
	switch {
	case i == m.cur:
		return m.s.paint(lookMarked, ">"+text+count)
	case k.conv.Unread > 0 && !k.conv.Muted:
		return m.s.paint(lookNew, " "+text+count)
	}
	return " " + text + m.s.paint(lookDim, count)
}

// statusRow is the last row.
func (m *model) statusRow() string {
	var parts []string
	k := m.current()
	if k != nil {
		st, ok := m.status[k.conv.ID]
		if !ok {
			st = m.status[""]
		}
		if !k.follow {
			parts = append(parts, "scrolled back")
		}
		if st.Text != "" {
			parts = append(parts, m.c.text(st.Text))
		}
		if k.conv.Kept > 0 {
			parts = append(parts, fmt.Sprintf("%d kept", k.conv.Kept))
		}
		if k.loading && k.loaded {
			parts = append(parts, "loading")
		}
	}
	right := "F1 help"
	if m.mode == modeSearch {
		right = m.find.state() + " (Up, Down, Esc)"
	}
	right = m.c.cut(right, m.w)
	left := m.c.fit(strings.Join(parts, " | "), max(m.w-m.c.width(right)-1, 0))
	if m.w > m.c.width(right) {
		left += " "
	}
	return m.s.paint(lookDim, m.c.cut(left+right, m.w))
}

// lines is what is seen: exactly m.h rows of at most m.w cells, and where the cursor is.
func (m *model) lines() (out []string, x, y int) {
	l := m.layout()
	k := m.current()
	var body []string
	if l.header {
		body = append(body, m.header(k, l.paneW, l.listW == 0))
	}
	switch {
	case m.mode == modeHelp:
		body = append(body, m.helpRows(l.paneW, l.paneH)...)
	case k != nil:
		body = append(body, m.pane(k, l.paneW, l.paneH)...)
	default:
		text := "loading"
		if m.known {
			text = "no conversations yet: pair a device (kith pair) or join a room"
		}
		rows := make([]string, l.paneH)
		for i, s := range m.c.wrap(text, l.paneW-3, l.paneW-3) {
			if i < len(rows) {
				rows[i] = m.s.paint(lookSystem, m.c.cut(gutterSystem+text[s.from:s.to], l.paneW))
			}
		}
		body = append(body, rows...)
	}
	top := m.listTop(l)
	for i, row := range body {
		if l.listW > 0 {
			row = m.listRow(top+i, l.listW) + m.s.paint(lookDim, m.s.bar) + row
		}
		out = append(out, row)
	}
	out = append(out, l.bars...)
	x, y = l.curX, len(out)+l.curY
	out = append(out, l.input...)
	if l.status {
		out = append(out, m.statusRow())
	}
	if len(out) > m.h { // a terminal of one row or none
		out = out[len(out)-m.h:]
	}
	if m.w < tiny {
		for i := range out {
			out[i] = m.c.cut(ansi.Strip(out[i]), m.w)
		}
	}
	return out, x, min(y, max(m.h-1, 0))
}

// view is what the terminal is to show.
func (m *model) view() tea.View {
	rows, x, y := m.lines()
	v := tea.NewView(strings.Join(rows, "\n"))
	v.AltScreen = true
	if !m.mouseOff {
		v.MouseMode = tea.MouseModeCellMotion
	}
	v.ReportFocus = true
	if m.mode != modeHelp {
		v.Cursor = tea.NewCursor(x, y)
		v.Cursor.Blink = false
	}
	return v
}
