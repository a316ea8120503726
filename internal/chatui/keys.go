package chatui

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// key is what a key does: first what is the same everywhere, then what the mode says.
func (m *model) key(msg tea.KeyPressMsg) tea.Cmd {
	k := msg.Keystroke()
	leaving := m.leaving
	m.leaving = false
	switch k {
	case "ctrl+c":
		return m.quit(leaving)
	case "ctrl+z":
		return tea.Suspend
	case "ctrl+l":
		return tea.ClearScreen
	case "ctrl+r":
		m.alert, m.said = "", ""
		if m.lost {
			return tea.Batch(m.followEvents(), m.reload())
		}
		return m.reload()
	case "ctrl+n":
		return m.step(1)
	case "ctrl+p":
		return m.step(-1)
	case "alt+u":
		return m.act()
	case "alt+a":
		return m.answer("", true)
	case "alt+d":
		return m.answer("", false)
	case "alt+m":
		m.mouseOff = !m.mouseOff
		m.said = "the mouse scrolls"
		if m.mouseOff {
			m.said = "the mouse selects text; Alt-M: it scrolls"
		}
		return nil
	case "f1":
		return m.help(m.mode != modeHelp)
	}
	if n, ok := strings.CutPrefix(k, "alt+"); ok && len(n) == 1 && n[0] >= '1' && n[0] <= '9' {
		i, _ := strconv.Atoi(n)
		return m.open(i - 1)
	}
	switch k {
	case "pgup", "pgdown", "ctrl+home", "ctrl+end":
		return m.move(k)
	}
	switch m.mode {
	case modeHelp:
		return m.helpKey(k)
	case modeSearch:
		return m.searchKey(msg, k)
	}
	return m.chatKey(msg, k)
}

// quit leaves, unless lines would be lost that the user believes to be sent: then it
// says so, and Ctrl-C after that leaves.
func (m *model) quit(sure bool) tea.Cmd {
	n := 0
	for _, k := range m.convs {
		n += len(k.outbox)
	}
	if n == 0 || sure {
		return tea.Quit
	}
	m.leaving = true
	m.alert = fmt.Sprintf("%d of your lines are not sent; Ctrl-C once more leaves without them", n)
	return nil
}

// typed is the text that a key enters; empty is none.
func typed(msg tea.KeyPressMsg) string {
	switch msg.Mod & (tea.ModCtrl | tea.ModAlt | tea.ModMeta | tea.ModSuper | tea.ModHyper) {
	case 0, tea.ModCtrl | tea.ModAlt: // both together are AltGr on some systems
	default:
		return ""
	}
	return strings.ReplaceAll(msg.Text, "\n", " ")
}

func (m *model) chatKey(msg tea.KeyPressMsg, key string) tea.Cmd {
	k := m.current()
	if key == "ctrl+d" && (k == nil || k.ed.text == "") {
		return m.quit(false)
	}
	if k == nil {
		return nil
	}
	switch key {
	case "enter", "kpenter":
		return m.enter(k)
	case "esc":
		return m.escape(k)
	case "tab", "shift+tab":
		return m.tabKey(k, key == "tab")
	case "ctrl+f":
		return m.enterSearch("")
	case "alt+j":
		k.ed.set(strings.Join(messages(k.ed.text), " "))
		return nil
	case "up":
		switch {
		case k.ed.text == "" && k.failed != "":
			k.takeBack()
		case !k.ed.up():
			k.recall(-1)
		}
		return nil
	case "down":
		if !k.ed.down() {
			k.recall(1)
		}
		return nil
	case "home", "end":
		if k.ed.text == "" {
			return m.move("ctrl+" + key)
		}
	}
	if text := typed(msg); text != "" {
		m.enterText(k, text)
		return nil
	}
	k.ed.key(key)
	return nil
}

func (m *model) enterText(k *conversation, text string) {
	if !k.ed.insert(text) {
		m.alert = fmt.Sprintf("that is too much for the input, which takes %d KiB; a file goes with /send PATH", maxInput>>10)
	}
}

func (m *model) paste(text string) tea.Cmd {
	switch k := m.current(); {
	case m.mode == modeSearch:
		m.find.ed.insert(strings.ReplaceAll(insertable(text), "\n", " "))
	case m.mode == modeChat && k != nil:
		m.enterText(k, strings.TrimRight(text, "\r\n"))
	}
	return nil
}

// enter sends what is in the input, or does what it commands.
func (m *model) enter(k *conversation) tea.Cmd {
	text := k.ed.text
	if strings.TrimSpace(text) == "" {
		if k.failed != "" {
			return m.send(k)
		}
		return nil
	}
	if cmd, ok := m.slash(k, text); ok {
		return cmd
	}
	lines := messages(unslash(text))
	k.remember(text)
	k.ed.set("")
	k.outbox = append(k.outbox, lines...)
	k.follow, k.marked = true, false
	m.alert, m.said = "", ""
	return tea.Batch(m.send(k), m.read())
}

// escape takes away what is shown above the input, one thing at a time.
func (m *model) escape(k *conversation) tea.Cmd {
	switch {
	case m.alert != "" || m.said != "":
		m.alert, m.said = "", ""
	case k.failed != "":
		k.takeBack()
	case len(m.actions) > 0:
		m.actions = m.actions[1:]
	case !k.follow:
		k.follow = true
		return m.read()
	}
	return nil
}

// step opens the next conversation, or the one before.
func (m *model) step(by int) tea.Cmd {
	if n := len(m.convs); n > 0 {
		return m.open(((m.cur+by)%n + n) % n)
	}
	return nil
}

// tabKey completes a command; else it goes to the next conversation, and first to
// those with something new.
func (m *model) tabKey(k *conversation, forward bool) tea.Cmd {
	if strings.HasPrefix(k.ed.text, "/") {
		return m.complete(k)
	}
	if !forward {
		return m.step(-1)
	}
	for i := 1; i < len(m.convs); i++ {
		at := (m.cur + i) % len(m.convs)
		if o := m.convs[at]; o.conv.Unread > 0 && !o.conv.Muted {
			return m.open(at)
		}
	}
	return m.step(1)
}

func (m *model) help(on bool) tea.Cmd {
	m.leaveSearch()
	m.helpTop = 0
	if on {
		m.mode = modeHelp
		return nil
	}
	m.mode = modeChat
	return m.read()
}

func (m *model) helpKey(k string) tea.Cmd {
	switch k {
	case "up":
		m.helpTop = max(m.helpTop-1, 0)
	case "down":
		m.helpTop++
	default:
		return m.help(false)
	}
	return nil
}

// move scrolls by what is seen.
func (m *model) move(key string) tea.Cmd {
	k := m.current()
	switch page := max(m.layout().paneH-1, 1); {
	case m.mode == modeHelp && key == "pgup":
		m.helpTop = max(m.helpTop-page, 0)
	case m.mode == modeHelp:
		m.helpTop += page
	case k == nil:
	case key == "pgup":
		return m.scroll(-page)
	case key == "pgdown":
		return m.scroll(page)
	case key == "ctrl+home":
		k.follow = false
		if len(k.items) > 0 {
			k.top = place{k.items[0].key, firstRow}
		}
		return m.load(k)
	default:
		k.follow = true
		return m.read()
	}
	return nil
}

// act does what the notice above the input offers: the oldest, which does not change
// while a finger is on its way to the key.
func (m *model) act() tea.Cmd {
	if len(m.actions) == 0 {
		return nil
	}
	n := m.actions[0]
	m.actions = slices.Clone(m.actions[1:])
	return m.ask(func(ctx context.Context) tea.Msg {
		err := m.backend.Act(ctx, n.Action.ID)
		return doneMsg{said: "done: " + m.c.text(n.Action.Label), err: err, notice: &n}
	})
}

func (m *model) click(msg tea.MouseClickMsg) tea.Cmd {
	l := m.layout()
	if msg.Button != tea.MouseLeft || msg.X >= l.listW || msg.Y < 0 || msg.Y >= l.paneH+1 {
		return nil
	}
	return m.open(m.listTop(l) + msg.Y)
}
