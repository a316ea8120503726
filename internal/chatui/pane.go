package chatui

import (
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// Rows of an item before its text.
const (
	firstRow = -9 // whichever is first
	dayRow   = -2
	freshRow = -1
)

// A row is one line of the pane.
type row struct {
	off  int // in the item's text
	text string
}

// A wrapKey names a text that was broken into lines.
type wrapKey struct {
	key
	first, rest int
}

// mostWraps is how many broken texts are kept: a screen is never more.
const mostWraps = 1024

func (m *model) wrapped(it *item, first, rest int) []span {
	at := wrapKey{it.key, first, rest}
	if w, ok := m.wraps[at]; ok && len(w) > 0 && w[len(w)-1].to == len(it.text) {
		return w
	}
	if len(m.wraps) >= mostWraps {
		clear(m.wraps)
	}
	w := m.c.wrap(it.text, first, rest)
	m.wraps[at] = w
	return w
}

// gutter columns: what a row begins with. No text of a person is in the first column.
const (
	gutterNone   = " "
	gutterLate   = "~"
	gutterHit    = ">"
	gutterSystem = "-- "
)

// block lays out one item. The cost is that of one line, however long the history.
func (m *model) block(k *conversation, i, width int) []row {
	it := &k.items[i]
	var out []row
	clock := "??:??"
	if !it.m.ClockDiffers {
		clock = it.m.Time.In(m.zone).Format("15:04")
	}
	if day := m.newDay(k, i); day != "" {
		out = append(out, row{dayRow, m.rule(day, width, lookDim)})
	}
	if k.marked && k.fresh == it.key {
		out = append(out, row{freshRow, m.rule("new", width, lookNew)})
	}
	if it.local > 0 {
		return append(out, m.system(it, width)...)
	}
	return append(out, m.line(k, it, clock, width)...)
}

// newDay is the day of an item, if those before it are of another.
func (m *model) newDay(k *conversation, i int) string {
	const layout, back = "Mon 2 Jan 2006", 20
	if k.items[i].m.ClockDiffers {
		return ""
	}
	day := k.items[i].m.Time.In(m.zone).Format(layout)
	for j := i - 1; j >= 0 && j >= i-back; j-- {
		if before := &k.items[j].m; !before.ClockDiffers {
			if before.Time.In(m.zone).Format(layout) == day {
				return ""
			}
			return day
		}
	}
	if i == 0 && !k.whole {
		return ""
	}
	return day
}

func (m *model) rule(text string, width int, l look) string {
	return m.s.paint(l, m.c.cut("---- "+text+" "+strings.Repeat("-", max(width-6-len(text), 0)), width))
}

// system lays out a line that was made here.
func (m *model) system(it *item, width int) []row {
	var out []row
	for i, s := range m.wrapped(it, width-len(gutterSystem), width-len(gutterSystem)) {
		lead := gutterSystem
		if i > 0 {
			lead = "   "
		}
		out = append(out, row{s.from, m.s.paint(lookSystem, m.c.cut(lead+it.text[s.from:s.to], width))})
	}
	return out
}

// columns says where names and texts are.
type columns struct {
	name   int  // cells of a name
	indent int  // of every row of text
	inline bool // the first row of text stands beside the name, without a column for it
}

func (k *conversation) columns(width int) columns {
	if width >= 50 {
		name := min(k.widest, 14)
		return columns{name: name, indent: 1 + 5 + 1 + name + 2}
	}
	return columns{name: min(k.widest, max(width/3, 4)), indent: 2, inline: true}
}

// line lays out a line that a person wrote.
func (m *model) line(k *conversation, it *item, at string, width int) []row {
	col := k.columns(width)
	name := m.c.cut(it.name, col.name)
	gutter := gutterNone
	if it.m.Late {
		gutter = gutterLate
	}
	if m.mode == modeSearch && m.find.ready && m.find.at < len(m.find.hits) && m.find.hits[m.find.at] == it.key {
		gutter = gutterHit
	}
	head := gutter + m.s.paint(lookDim, at) + " " + m.s.author(it.m.Author, it.m.Mine, name)
	used := 7 + m.c.width(name)
	mark := ""
	right := 0
	if it.m.Mine {
		mark = m.s.mark(&it.m, len(k.conv.Members))
		right = m.c.width(mark) + 1
	}
	var out []row
	first := width - col.indent - right
	switch {
	case !col.inline:
		head += strings.Repeat(" ", max(col.indent-used, 0))
		used = max(col.indent, used)
	case width-used-2-right >= 8:
		head, used = head+": ", used+2
		first = width - used - right
	default: // the name fills the row
		out = append(out, row{0, m.trimmed(head+":", gutter+at+" "+name+":", width)})
		head, used = strings.Repeat(" ", col.indent), col.indent
	}
	spans := m.wrapped(it, first, width-col.indent-right)
	found := m.highlights(it.text)
	for i, s := range spans {
		if i > 0 {
			head, used = strings.Repeat(" ", col.indent), col.indent
		}
		text := it.text[s.from:s.to]
		w := m.c.width(text)
		if used+w+right > width { // a pane too narrow for anything
			out = append(out, row{s.from, m.c.cut(gutter+at, width)})
			continue
		}
		line := head + m.marked(text, s, found)
		if i == len(spans)-1 && mark != "" {
			line += strings.Repeat(" ", width-used-w-m.c.width(mark)) + m.s.paint(lookDim, mark)
		}
		out = append(out, row{s.from, line})
	}
	if it.m.File != nil && it.m.Kind == KindFile {
		if t := m.transfer(k, it, width-col.indent); t != "" {
			out = append(out, row{len(it.text) + 1, strings.Repeat(" ", col.indent) + t})
		}
	}
	return out
}

// trimmed is a drawn row if it fits, or else its plain text, cut.
func (m *model) trimmed(drawn, plain string, width int) string {
	if m.c.width(plain) <= width {
		return drawn
	}
	return m.c.cut(plain, width)
}

// highlights are the places of what is searched for.
func (m *model) highlights(text string) []span {
	if m.mode != modeSearch {
		return nil
	}
	return matches(text, strings.TrimSpace(m.c.text(m.find.ed.text)))
}

// marked draws a part of a text with what was found in it.
func (m *model) marked(text string, at span, found []span) string {
	if len(found) == 0 {
		return text
	}
	var b strings.Builder
	from, on := 0, false
	flush := func(to int) {
		l := lookPlain
		if on {
			l = lookMarked
		}
		b.WriteString(m.s.paint(l, text[from:to]))
		from = to
	}
	for i := 0; i < len(text); {
		for len(found) > 0 && found[0].to <= at.from+i {
			found = found[1:]
		}
		if is := len(found) > 0 && found[0].from <= at.from+i; is != on {
			flush(i)
			on = is
		}
		ch, _ := m.c.first(text[i:])
		i += len(ch)
	}
	flush(len(text))
	return b.String()
}

// transfer says how far a file is, in one row.
func (m *model) transfer(k *conversation, it *item, width int) string {
	offer := it.m.File.Offer
	t, ok := m.moved[offer]
	if !ok {
		return ""
	}
	number := 0
	for i, o := range k.offers {
		if o == offer {
			number = i + 1
		}
	}
	note := m.c.text(t.Note)
	if note != "" {
		note = ": " + note
	}
	var text string
	l := lookSystem
	switch t.State {
	case TransferOffered:
		switch {
		case it.m.Mine:
			text = "[waits for an answer" + note + "]"
		case number == m.open1(k):
			text, l = fmt.Sprintf("[%d: %sAlt-A takes it, Alt-D declines]", number, m.truth(it.m.File, t)), lookNew
		default:
			text = fmt.Sprintf("[%d: %s/accept %d or /decline %d]", number, m.truth(it.m.File, t), number, number)
		}
	case TransferAccepted:
		text = "[accepted]"
	case TransferRunning:
		text = bar(t, width) + note
	case TransferExpired:
		text = "[expired: not offered any more]"
	case TransferUnknown:
		if text = "[not offered here, or not yet]"; it.m.Mine {
			text = "[not known any more]"
		}
	case TransferWaiting:
		text = "[waits for a connection" + note + "]"
	case TransferDone:
		text = "[done" + note + "]"
	case TransferDeclined:
		text = "[declined]"
	default:
		text, l = "[failed"+note+"]", lookError
	}
	return m.s.paint(l, m.c.cut(text, width))
}

// truth says what an offer is of, if that is not what its line says: one takes the offer.
func (m *model) truth(f *File, t Transfer) string {
	if t.Name == "" || m.c.file(t.Name) == m.c.file(f.Name) && (t.Total <= 0 || f.Size < 0 || t.Total == f.Size) {
		return ""
	}
	const room = 30 // a name is not to push the size away
	return fmt.Sprintf("in truth %s (%s); ", m.c.cut(m.c.file(t.Name), room), bytesText(t.Total))
}

// bar is a progress bar with numbers.
func bar(t Transfer, width int) string {
	done := max(t.Bytes, 0)
	if t.Total <= 0 {
		return "[" + bytesText(done) + "]"
	}
	share := min(float64(done)/float64(t.Total), 1)
	n := min(20, max(width-30, 4))
	full := int(share * float64(n))
	return fmt.Sprintf("[%s%s] %d %%, %s of %s", strings.Repeat("=", full), strings.Repeat(" ", n-full), int(share*100), bytesText(done), bytesText(t.Total))
}

// tail are the rows after all items: what is being sent.
func (m *model) tail(k *conversation, width int) []string {
	var out []string
	box := k.outbox
	if k.hidden && len(box) > 0 {
		box = box[1:]
	}
	const shown = 5
	for i, text := range box {
		if i == shown {
			out = append(out, m.s.paint(lookSystem, m.c.cut(fmt.Sprintf("%s%d more lines to send", gutterSystem, len(box)-shown), width)))
			break
		}
		sign := "  ... me: "
		if k.failed != "" {
			sign = "  !!! me: "
		}
		out = append(out, m.s.paint(lookDim, m.c.cut(sign+m.c.text(text), width)))
	}
	return out
}

// A cursor is a row of the pane by number: of an item, and in its block.
type cursor struct{ item, row int }

// fromEnd is where the pane begins that shows the last rows, and how many there are.
func (m *model) fromEnd(k *conversation, width, rows int) (cursor, int) {
	have := 0
	for i := len(k.items) - 1; i >= 0; i-- {
		n := len(m.block(k, i, width))
		if have += n; have >= rows {
			return cursor{i, have - rows}, rows
		}
	}
	return cursor{}, have
}

// begin is the first row that is shown.
func (m *model) begin(k *conversation, width, rows int) cursor {
	rows = max(rows, 0)
	end, _ := m.fromEnd(k, width, rows)
	if k.follow || len(k.items) == 0 {
		return end
	}
	i, have := k.find(k.top.key)
	i = min(i, len(k.items)-1)
	at := cursor{i, 0}
	if have {
		for r, b := range m.block(k, i, width) {
			if b.off <= k.top.off {
				at.row = r
			}
		}
	}
	if end.item < at.item || end.item == at.item && end.row < at.row {
		return end
	}
	return at
}

// scroll moves the pane by rows; below 0 is towards what is older.
func (m *model) scroll(by int) tea.Cmd {
	k, l := m.current(), m.layout()
	if m.mode == modeHelp {
		m.helpTop = max(m.helpTop+by, 0)
		return nil
	}
	if k == nil || len(k.items) == 0 || l.paneH == 0 {
		return nil
	}
	rows := max(l.paneH-len(m.tail(k, l.paneW)), 0)
	return m.settle(k, m.walk(k, m.begin(k, l.paneW, rows), by, l.paneW), rows, l.paneW)
}

// walk is the row that is by rows further, or the last one on the way.
func (m *model) walk(k *conversation, at cursor, by, width int) cursor {
	for ; by < 0 && (at.item > 0 || at.row > 0); by++ {
		if at.row--; at.row < 0 {
			at.item--
			at.row = len(m.block(k, at.item, width)) - 1
		}
	}
	for ; by > 0; by-- {
		if at.row++; at.row >= len(m.block(k, at.item, width)) {
			if at.item == len(k.items)-1 {
				break
			}
			at = cursor{at.item + 1, 0}
		}
	}
	return at
}

// settle makes a row the first of the pane, if there are as many rows below it.
func (m *model) settle(k *conversation, at cursor, rows, width int) tea.Cmd {
	end, _ := m.fromEnd(k, width, rows)
	if k.follow = at.item > end.item || at.item == end.item && at.row >= end.row; k.follow {
		return tea.Batch(m.read(), m.fill())
	}
	k.top = place{k.items[at.item].key, m.block(k, at.item, width)[at.row].off}
	if at.item < pageLines/4 {
		return m.load(k)
	}
	return nil
}

// pane returns exactly so many rows.
func (m *model) pane(k *conversation, width, height int) []string {
	tail := m.tail(k, width)
	if len(tail) > height {
		tail = tail[len(tail)-height:]
	}
	at := m.begin(k, width, height-len(tail))
	out := make([]string, 0, height)
	for i := at.item; i < len(k.items) && len(out) < height; i++ {
		for r, b := range m.block(k, i, width) {
			if (i > at.item || r >= at.row) && len(out) < height {
				out = append(out, b.text)
			}
		}
	}
	for _, t := range tail {
		if len(out) < height {
			out = append(out, t)
		}
	}
	if len(out) == 0 && height > 0 {
		text := "nothing written yet"
		if !k.loaded {
			text = "loading"
		}
		out = append(out, m.s.paint(lookSystem, m.c.cut(gutterSystem+text, width)))
	}
	return append(make([]string, max(height-len(out), 0), height), out...)
}
