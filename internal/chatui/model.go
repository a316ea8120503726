package chatui

import (
	"context"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
)

// What the keys do at the moment.
const (
	modeChat = iota
	modeSearch
	modeHelp
)

// askTimeout is how long the backend may take for an answer. Offering a file has no
// such bound: a large one is read first.
const askTimeout = 30 * time.Second

// A model is the whole state of the window.
type model struct {
	c        cleaner
	s        signs
	w, h     int
	convs    []*conversation
	cur      int // which of convs is shown
	mode     int
	helpTop  int // first line of the help that is shown
	find     finder
	alert    string   // what went wrong last, clean
	said     string   // what was answered last, clean
	actions  []Notice // with an action, the oldest first
	moved    map[string]Transfer
	status   map[string]Status
	blurred  bool          // the terminal says that it is not looked at
	leaving  bool          // Ctrl-C has warned
	rang     bool          // since the terminal was looked at
	opened   *conversation // the one that was shown last
	lost     bool          // no more events come
	mouseOff bool          // left to the terminal, to select text
	asked    bool          // the list of conversations is on its way
	known    bool          // it has come
	start    string
	wraps    map[wrapKey][]span
	zone     *time.Location
	commands
}

// commands makes commands of calls to the backend. Each ends with the context.
type commands struct {
	backend Backend
	run     func(func(context.Context) tea.Msg) tea.Cmd
}

// ask is run with a bound on the time.
func (c commands) ask(f func(context.Context) tea.Msg) tea.Cmd {
	return c.run(func(ctx context.Context) tea.Msg {
		ctx, end := context.WithTimeout(ctx, askTimeout)
		defer end()
		return f(ctx)
	})
}

// What commands come back with.
type (
	followMsg struct {
		events <-chan Event
		err    error
	}
	eventsMsg struct {
		from   <-chan Event
		events []Event
		closed bool
	}
	convsMsg struct {
		convs []Conv
		err   error
	}
	historyMsg struct {
		conv  string
		first bool
		lines []Message
		whole bool
		err   error
	}
	sentMsg struct {
		conv string
		m    Message
		err  error
	}
	doneMsg struct {
		said   string
		err    error
		conv   string  // where the command was given
		typed  string  // and how: given back when it failed
		notice *Notice // what it was about: shown again when it failed
	}
	readMsg struct{ err error }
)

// init is the first command: what happens, and then what there is.
func (m *model) init() tea.Cmd { return m.followEvents() }

func (m *model) followEvents() tea.Cmd {
	return m.run(func(ctx context.Context) tea.Msg {
		ch, err := m.backend.Events(ctx)
		return followMsg{ch, err}
	})
}

func (m *model) loadConvs() tea.Cmd {
	if m.asked {
		return nil
	}
	m.asked = true
	return m.ask(func(ctx context.Context) tea.Msg {
		convs, err := m.backend.Convs(ctx)
		return convsMsg{convs, err}
	})
}

// load asks for lines before those that are there.
func (m *model) load(k *conversation) tea.Cmd {
	if k.loading || k.whole {
		return nil
	}
	k.loading = true
	var before *Message
	if o := k.oldest(); o != nil && k.loaded {
		b := *o
		before = &b
	}
	id, first, n := k.conv.ID, !k.first, min(max(pageLines, len(k.items)/2), mostPage)
	k.first = true
	return m.ask(func(ctx context.Context) tea.Msg {
		lines, err := m.backend.History(ctx, id, before, n)
		return historyMsg{id, first, lines, err == nil && len(lines) == 0, err}
	})
}

// current is the conversation that is shown; nil when there is none.
func (m *model) current() *conversation {
	if m.cur < 0 || m.cur >= len(m.convs) {
		return nil
	}
	return m.convs[m.cur]
}

func (m *model) byID(id string) *conversation {
	if i := slices.IndexFunc(m.convs, func(k *conversation) bool { return k.conv.ID == id }); i >= 0 {
		return m.convs[i]
	}
	return nil
}

// open shows another conversation.
func (m *model) open(i int) tea.Cmd {
	if i < 0 || i >= len(m.convs) {
		return nil
	}
	if k := m.current(); k != nil && i != m.cur {
		k.marked = false
		k.trim()
		m.leaveSearch()
	}
	m.cur, m.said = i, ""
	k := m.convs[i]
	if k != m.opened && k.loaded {
		k.markFresh()
	}
	m.opened = k
	if k.loaded {
		return m.read()
	}
	return m.load(k)
}

// read tells the backend what was seen, once for each new line.
func (m *model) read() tea.Cmd {
	k := m.current()
	if k == nil || m.blurred || !k.follow || !k.loaded || m.mode == modeHelp {
		return nil
	}
	k.conv.Unread = 0
	it := k.newest()
	if it == nil || it.key == k.seen {
		return nil
	}
	k.seen = it.key
	id, upTo := k.conv.ID, it.m
	return m.ask(func(ctx context.Context) tea.Msg { return readMsg{m.backend.Read(ctx, id, upTo)} })
}

// fail shows what went wrong, in one line.
func (m *model) fail(err error) { m.alert = m.c.text(err.Error()) }

// update is what a message changes.
func (m *model) update(msg tea.Msg) tea.Cmd {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.w, m.h = max(msg.Width, 0), max(msg.Height, 0)
		clear(m.wraps)
		// What a terminal makes of wide characters when it is resized is not what the
		// renderer remembers: everything is drawn anew.
		return tea.Batch(tea.ClearScreen, m.fill())
	case tea.KeyPressMsg:
		return m.key(msg)
	case tea.PasteMsg:
		return m.paste(msg.Content)
	case tea.MouseWheelMsg:
		switch msg.Button {
		case tea.MouseWheelUp:
			return m.scroll(-3)
		case tea.MouseWheelDown:
			return m.scroll(3)
		}
	case tea.MouseClickMsg:
		return m.click(msg)
	case tea.FocusMsg:
		m.blurred, m.rang = false, false
		return m.read()
	case tea.BlurMsg:
		m.blurred = true
	case joinedMsg:
		m.c.joined = bool(msg)
		m.reclean()
	case followMsg:
		if msg.err != nil {
			m.lost = true
			m.fail(msg.err)
			return m.loadConvs()
		}
		m.lost = false
		return tea.Batch(m.nextEvents(msg.events), m.loadConvs())
	case eventsMsg:
		return m.events(msg)
	case convsMsg:
		m.asked = false
		if msg.err != nil {
			m.fail(msg.err)
			return nil
		}
		return m.setConvs(msg.convs)
	case historyMsg:
		return m.history(msg)
	case sentMsg:
		return m.sent(msg)
	case foundMsg:
		return m.found(msg)
	case completeMsg:
		m.completed(msg)
	case doneMsg:
		m.done(msg)
	case readMsg:
		if msg.err != nil {
			m.fail(msg.err)
		}
	}
	return nil
}

// done says how a command went. What failed is given back to be tried again.
func (m *model) done(msg doneMsg) {
	if msg.err == nil {
		m.said = msg.said
		return
	}
	m.fail(msg.err)
	if k := m.byID(msg.conv); k != nil && k.ed.text == "" {
		k.ed.set(msg.typed)
	}
	if msg.notice != nil {
		m.actions = append([]Notice{*msg.notice}, m.actions...)
	}
}

// joinedMsg says how the terminal draws characters made of several.
type joinedMsg bool

func (m *model) reclean() {
	clear(m.wraps)
	for _, k := range m.convs {
		k.update(m.c, k.conv)
		k.reclean(m.c)
	}
}

// setConv takes one conversation that is new or changed.
func (m *model) setConv(v Conv) tea.Cmd {
	k := m.byID(v.ID)
	if k == nil {
		m.convs = append(m.convs, newConversation(m.c, v))
		if len(m.convs) == 1 {
			return m.open(0)
		}
		return nil
	}
	if k == m.current() && k.follow && !m.blurred {
		v.Unread = 0 // it is being looked at
	}
	k.update(m.c, v)
	return nil
}

// gone takes that conversations are no more.
func (m *model) gone(convs []Conv) tea.Cmd {
	var left []Conv
	for _, k := range m.convs {
		if !slices.ContainsFunc(convs, func(v Conv) bool { return v.ID == k.conv.ID }) {
			left = append(left, k.conv)
		}
	}
	return m.setConvs(left)
}

// setConvs takes the list of conversations; what is shown stays.
func (m *model) setConvs(convs []Conv) tea.Cmd {
	was := m.current()
	var out []*conversation
	for _, v := range convs {
		if slices.ContainsFunc(out, func(k *conversation) bool { return k.conv.ID == v.ID }) {
			continue
		}
		k := m.byID(v.ID)
		if k == nil {
			k = newConversation(m.c, v)
		} else {
			if k == was && k.follow && !m.blurred {
				v.Unread = 0
			}
			k.update(m.c, v)
		}
		out = append(out, k)
	}
	if was != nil && !slices.Contains(out, was) && (was.ed.text != "" || len(was.outbox) > 0) {
		out = append(out, was) // what is being written there is not thrown away
	}
	m.convs, m.known = out, true
	clear(m.wraps)
	at := slices.Index(out, was)
	if was == nil && m.start != "" {
		at = slices.IndexFunc(out, func(k *conversation) bool { return k.conv.ID == m.start })
	}
	return m.open(max(at, 0))
}

func (m *model) history(msg historyMsg) tea.Cmd {
	k := m.byID(msg.conv)
	if k == nil {
		return nil
	}
	k.loading = false
	if msg.err != nil {
		k.first = k.loaded
		m.fail(msg.err)
		m.find.want = nil
		return nil
	}
	m.learnFrom(msg.lines...)
	k.page(m.c, msg.lines, msg.whole)
	if msg.first {
		k.markFresh()
	}
	if k != m.current() {
		return nil
	}
	return tea.Batch(m.read(), m.chase(), m.fill())
}

// fill asks for more lines while those that are there do not fill the pane.
func (m *model) fill() tea.Cmd {
	k := m.current()
	if k == nil || !k.loaded || k.whole || k.loading || len(k.items) > 2*m.h {
		return nil
	}
	return m.load(k)
}

// send sends the first of what is to be sent.
func (m *model) send(k *conversation) tea.Cmd {
	if k.sending || len(k.outbox) == 0 {
		return nil
	}
	k.sending, k.failed, k.hidden = true, "", false
	id, text := k.conv.ID, k.outbox[0]
	return m.ask(func(ctx context.Context) tea.Msg {
		got, err := m.backend.Send(ctx, id, text)
		return sentMsg{id, got, err}
	})
}

func (m *model) sent(msg sentMsg) tea.Cmd {
	k := m.byID(msg.conv)
	if k == nil || !k.sending {
		return nil
	}
	k.sending = false
	if msg.err != nil {
		k.failed = m.c.text(msg.err.Error())
		return nil
	}
	if len(k.outbox) > 0 {
		k.outbox = k.outbox[1:]
	}
	if msg.m.Conv == msg.conv && (k.loaded || k.loading) {
		if _, have := k.find(msg.m.key()); !have { // an event may already have told more
			k.put(m.c, msg.m)
		}
	}
	return m.send(k)
}
