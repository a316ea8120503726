package chatui

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
)

// A rig runs a model without a terminal: every command at once, in order.
type rig struct {
	m    *model
	f    *fake
	quit bool
	held []tea.Cmd // commands that are held back, if hold
	hold bool
}

// newRig opens a window of a size on a fake.
func newRig(f *fake, w, h int, env ...string) *rig {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // the command that waits for events ends; the fake does not look
	r := &rig{f: f}
	r.m = newModel(f, Options{Env: append([]string{"LANG=C.UTF-8"}, env...), Zone: time.UTC}, func(do func(context.Context) tea.Msg) tea.Cmd {
		return func() tea.Msg { return do(ctx) }
	})
	r.send(tea.WindowSizeMsg{Width: w, Height: h})
	r.do(r.m.init())
	return r
}

func (r *rig) do(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	if r.hold {
		r.held = append(r.held, cmd)
		return
	}
	switch msg := cmd().(type) {
	case nil:
	case tea.BatchMsg:
		for _, c := range msg {
			r.do(c)
		}
	case tea.QuitMsg:
		r.quit = true
	default:
		if reflect.TypeOf(msg).PkgPath() == reflect.TypeFor[tea.QuitMsg]().PkgPath() {
			return // for bubbletea itself
		}
		r.send(msg)
	}
}

func (r *rig) release() {
	r.hold = false
	for len(r.held) > 0 {
		cmd := r.held[0]
		r.held = r.held[1:]
		r.do(cmd)
	}
}

func (r *rig) send(msg tea.Msg) {
	r.do(r.m.update(msg))
	for _, ch := range r.f.events {
		for len(ch) > 0 {
			r.tell(<-ch)
		}
	}
}

func (r *rig) tell(events ...Event) {
	r.do(tea.Batch(func() tea.Msg { return eventsMsg{events: events} }))
}

// message is a line that another device writes.
func (r *rig) message(conv, author, text string) {
	m := r.f.add(conv, author, text)
	r.tell(Event{Kind: EventMessage, Message: &m}, r.f.unread(conv))
}

// keys presses keys: names as Keystroke gives them, or text in quotes.
func (r *rig) keys(keys ...string) {
	for _, k := range keys {
		if text, ok := strings.CutPrefix(k, "'"); ok {
			for _, c := range text {
				r.send(tea.KeyPressMsg{Code: c, Text: string(c)})
			}
			continue
		}
		r.send(press(k))
	}
}

var codes = map[string]rune{
	"enter": tea.KeyEnter, "tab": tea.KeyTab, "esc": tea.KeyEscape, "backspace": tea.KeyBackspace, "delete": tea.KeyDelete,
	"up": tea.KeyUp, "down": tea.KeyDown, "left": tea.KeyLeft, "right": tea.KeyRight, "home": tea.KeyHome, "end": tea.KeyEnd,
	"pgup": tea.KeyPgUp, "pgdown": tea.KeyPgDown, "f1": tea.KeyF1,
}

func press(k string) tea.KeyPressMsg {
	var msg tea.KeyPressMsg
	for name, mod := range map[string]tea.KeyMod{"ctrl+": tea.ModCtrl, "alt+": tea.ModAlt, "shift+": tea.ModShift} {
		if rest, ok := strings.CutPrefix(k, name); ok {
			msg.Mod |= mod
			k = rest
		}
	}
	if c, ok := codes[k]; ok {
		msg.Code = c
	} else {
		msg.Code = []rune(k)[0]
	}
	return msg
}

// screen is what is seen, without attributes and spaces at the end.
func (r *rig) screen() string {
	rows, _, _ := r.m.lines()
	for i := range rows {
		rows[i] = strings.TrimRight(bare(rows[i]), " ")
	}
	return strings.Join(rows, "\n") + "\n"
}

// bare takes away the program's own SGR.
func bare(s string) string {
	var b strings.Builder
	for {
		head, rest, found := strings.Cut(s, "\x1b[")
		b.WriteString(head)
		if !found {
			return b.String()
		}
		_, s, _ = strings.Cut(rest, "m")
	}
}

func (r *rig) wants(t *testing.T, parts ...string) {
	t.Helper()
	screen := r.screen()
	for _, p := range parts {
		if !strings.Contains(screen, p) {
			t.Errorf("%q is not on the screen:\n%s", p, screen)
		}
	}
}

func (r *rig) lacks(t *testing.T, parts ...string) {
	t.Helper()
	screen := r.screen()
	for _, p := range parts {
		if strings.Contains(screen, p) {
			t.Errorf("%q is on the screen:\n%s", p, screen)
		}
	}
}

func (r *rig) called(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, c := range r.f.calls {
		if !strings.HasPrefix(c, "read ") {
			got = append(got, c)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the backend was asked %q, want %q", got, want)
	}
}
