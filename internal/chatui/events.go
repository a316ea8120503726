package chatui

import (
	"context"
	"slices"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// mostEvents are taken together: a flood is drawn once for many lines.
const mostEvents = 256

func (m *model) nextEvents(ch <-chan Event) tea.Cmd {
	return m.run(func(ctx context.Context) tea.Msg {
		out := eventsMsg{from: ch}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-ch:
			if !ok {
				out.closed = true
				return out
			}
			out.events = append(out.events, e)
		}
		for len(out.events) < mostEvents {
			select {
			case e, ok := <-ch:
				if !ok {
					out.closed = true
					return out
				}
				out.events = append(out.events, e)
			default:
				return out
			}
		}
		return out
	})
}

// events takes what happened, many at once.
func (m *model) events(msg eventsMsg) tea.Cmd {
	var cmds []tea.Cmd
	for _, e := range msg.events {
		cmds = append(cmds, m.event(e))
	}
	if k := m.current(); k != nil {
		k.trim()
	}
	cmds = append(cmds, m.read())
	if msg.closed {
		m.lost = true
	} else {
		cmds = append(cmds, m.nextEvents(msg.from))
	}
	return tea.Batch(cmds...)
}

func (m *model) event(e Event) tea.Cmd {
	switch {
	case e.Kind == EventMessage && e.Message != nil:
		return m.message(*e.Message)
	case e.Kind == EventConvs && e.Convs != nil:
		return m.setConvs(e.Convs)
	case e.Kind == EventConvs:
		return m.loadConvs()
	case e.Kind == EventConv:
		var cmds []tea.Cmd
		for _, v := range e.Convs {
			cmds = append(cmds, m.setConv(v))
		}
		return tea.Batch(cmds...)
	case e.Kind == EventGone:
		return m.gone(e.Convs)
	case e.Kind == EventPresence:
		for _, k := range m.convs {
			k.presence(e.Device, e.Online)
		}
	case e.Kind == EventTransfer && e.Transfer != nil:
		m.learn(*e.Transfer)
	case e.Kind == EventNotice && e.Notice != nil:
		m.notice(*e.Notice)
	case e.Kind == EventStatus && e.Status != nil:
		m.status[e.Status.Conv] = *e.Status
	case e.Kind == EventMissed:
		return m.reload()
	}
	return nil
}

// learn takes how far a file is.
func (m *model) learn(t Transfer) {
	if _, have := m.moved[t.Offer]; !have && len(m.moved) >= mostLines {
		clear(m.moved) // only what is told again is shown again
	}
	m.moved[t.Offer] = t
}

// learnFrom takes how far files were when lines were read: less than what was told since.
func (m *model) learnFrom(lines ...Message) {
	for i := range lines {
		if f := lines[i].File; f != nil && f.Now != nil {
			if _, have := m.moved[f.Offer]; !have {
				m.learn(*f.Now)
			}
		}
	}
}

// reload asks for everything again: something was left out.
func (m *model) reload() tea.Cmd {
	clear(m.moved)
	for _, k := range m.convs {
		k.first, k.loaded, k.whole = false, false, false
		k.items = slices.DeleteFunc(k.items, func(it item) bool { return it.local == 0 })
	}
	return m.loadConvs()
}

func (m *model) message(v Message) tea.Cmd {
	m.learnFrom(v)
	k := m.byID(v.Conv)
	if k == nil {
		return m.loadConvs()
	}
	fresh := !v.Mine
	if k.loaded || k.loading {
		fresh = k.put(m.c, v) && !v.Mine
	}
	if v.Mine && k.sending && len(k.outbox) > 0 && !k.hidden && strings.TrimSpace(v.Text) == k.outbox[0] {
		k.hidden = true
	}
	if fresh && m.blurred && !m.rang && !k.conv.Muted {
		m.rang = true
		return tea.Raw("\a")
	}
	return nil
}

// mostActions are notices that wait for a key.
const mostActions = 50

func (m *model) notice(n Notice) {
	k := m.byID(n.Conv)
	if k == nil {
		k = m.current()
	}
	if k != nil {
		k.say(m.c, n)
	}
	if n.Action != nil && len(m.actions) < mostActions {
		m.actions = append(m.actions, n)
	} else if k == nil {
		m.said = m.c.text(n.Text)
	}
}
