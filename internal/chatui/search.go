package chatui

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
)

// mostHits is how many lines a search returns.
const mostHits = 500

// A finder is a search in one conversation.
type finder struct {
	ed     editor
	asked  string // the query whose hits these are
	asking bool
	ready  bool  // hits are those of asked
	hits   []key // oldest first
	at     int   // which one is shown
	want   *key  // the hit that is being gone to: lines are loaded until it is there
}

type foundMsg struct {
	conv, query string
	hits        []Message
	err         error
}

func (m *model) enterSearch(query string) tea.Cmd {
	m.mode = modeSearch
	m.find = finder{}
	m.find.ed.set(query)
	if strings.TrimSpace(query) != "" {
		return m.search()
	}
	return nil
}

func (m *model) leaveSearch() {
	if m.mode == modeSearch {
		m.mode = modeChat
	}
	m.find = finder{}
}

func (m *model) searchKey(msg tea.KeyPressMsg, key string) tea.Cmd {
	f := &m.find
	switch key {
	case "esc", "ctrl+f":
		m.leaveSearch()
		return nil
	case "ctrl+d":
		if f.ed.text == "" {
			return m.quit(false)
		}
	case "enter", "kpenter", "up", "tab":
		if f.ready && f.asked == f.ed.text {
			return m.hit(f.at - 1)
		}
		return m.search()
	case "down", "shift+tab":
		if f.ready {
			return m.hit(f.at + 1)
		}
		return nil
	case "alt+enter", "shift+enter", "ctrl+j":
		return nil
	}
	if text := typed(msg); text != "" {
		f.ed.insert(text)
		return nil
	}
	f.ed.key(key)
	return nil
}

func (m *model) search() tea.Cmd {
	k, query := m.current(), m.find.ed.text
	if k == nil || strings.TrimSpace(query) == "" || m.find.asking {
		return nil
	}
	m.find.asking = true
	id := k.conv.ID
	return m.ask(func(ctx context.Context) tea.Msg {
		hits, err := m.backend.Search(ctx, id, strings.TrimSpace(query), mostHits)
		return foundMsg{id, query, hits, err}
	})
}

func (m *model) found(msg foundMsg) tea.Cmd {
	k, f := m.current(), &m.find
	if m.mode != modeSearch || k == nil || k.conv.ID != msg.conv || !f.asking {
		return nil
	}
	f.asking = false
	if msg.err != nil {
		m.fail(msg.err)
		return nil
	}
	f.asked, f.ready, f.hits = msg.query, true, nil
	for i := range msg.hits {
		f.hits = append(f.hits, msg.hits[i].key())
	}
	return m.hit(len(f.hits) - 1)
}

// hit goes to one of the hits.
func (m *model) hit(i int) tea.Cmd {
	f := &m.find
	if i < 0 || i >= len(f.hits) {
		return nil
	}
	f.at = i
	want := f.hits[i]
	f.want = &want
	return m.chase()
}

// chase goes to the wanted line, or loads lines until it is there.
func (m *model) chase() tea.Cmd {
	k := m.current()
	if m.find.want == nil || k == nil {
		return nil
	}
	i, have := k.find(*m.find.want)
	switch {
	case have:
		m.find.want = nil
		l := m.layout()
		rows := max(l.paneH-len(m.tail(k, l.paneW)), 0)
		return m.settle(k, m.walk(k, cursor{i, 0}, -rows/3, l.paneW), rows, l.paneW)
	case k.whole || len(k.items) > 0 && i > 0: // it is not in the history that there is
		m.find.want = nil
		return nil
	}
	return m.load(k)
}

// state says how the search is going.
func (f *finder) state() string {
	switch {
	case f.asking:
		return "searching"
	case f.want != nil:
		return "going back"
	case f.ready && f.asked == f.ed.text && len(f.hits) == 0:
		return "nothing found"
	case f.ready && f.asked == f.ed.text:
		return fmt.Sprintf("%d of %d", len(f.hits)-f.at, len(f.hits))
	}
	return "Enter searches"
}

// matches are the places of a query in a text, whatever the case of letters.
func matches(text, query string) []span {
	if query == "" {
		return nil
	}
	var out []span
	for at := 0; at < len(text); {
		if n := foldPrefix(text[at:], query); n > 0 {
			out = append(out, span{at, at + n})
			at += n
			continue
		}
		_, size := utf8.DecodeRuneInString(text[at:])
		at += size
	}
	return out
}

// foldPrefix is how many bytes of a text are a query at its beginning; 0 is none.
func foldPrefix(text, query string) int {
	n := 0
	for _, q := range query {
		r, size := utf8.DecodeRuneInString(text[n:])
		if size == 0 || unicode.ToLower(r) != unicode.ToLower(q) && unicode.ToUpper(r) != unicode.ToUpper(q) {
			return 0
		}
		n += size
	}
	return n
}

func lastRune(s string) (rune, int) { return utf8.DecodeLastRuneInString(s) }
