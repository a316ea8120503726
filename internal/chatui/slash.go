package chatui

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// slashes are the commands, as help lists them.
var slashes = []struct{ name, args, what string }{
	{"help", "", "what keys and commands there are (F1)"},
	{"send", "PATH", "offer a file; Tab completes"},
	{"accept", "[N]", "take an offered file (Alt-A the first)"},
	{"decline", "[N]", "refuse an offered file (Alt-D the first)"},
	{"search", "[TEXT]", "search in this conversation (Ctrl-F)"},
	{"who", "", "who is here, and who is away"},
	{"go", "NAME", "open another conversation; Tab completes"},
	{"quit", "", "leave (Ctrl-C, or Ctrl-D in an empty line)"},
}

// unslash is the text of an input that begins with two slashes to be no command.
func unslash(text string) string {
	if strings.HasPrefix(text, "//") {
		return text[1:]
	}
	return text
}

// slash does a command; false is that the text is none.
func (m *model) slash(k *conversation, text string) (tea.Cmd, bool) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//") || strings.Contains(text, "\n") {
		return nil, false
	}
	name, arg, _ := strings.Cut(text[1:], " ")
	arg = strings.TrimSpace(arg)
	taken := func(cmd tea.Cmd) (tea.Cmd, bool) {
		k.remember(text)
		k.ed.set("")
		m.alert = ""
		return cmd, true
	}
	switch strings.ToLower(name) {
	case "help", "h", "?":
		return taken(m.help(true))
	case "quit", "q", "exit":
		k.ed.set("")
		return m.quit(false), true
	case "search", "":
		return taken(m.enterSearch(arg))
	case "who":
		m.said = k.who()
		return taken(nil)
	case "go":
		at := slices.IndexFunc(m.convs, func(o *conversation) bool { return strings.EqualFold(o.name, arg) })
		if at < 0 {
			m.alert = "there is no conversation " + m.c.name(arg)
			return nil, true
		}
		return taken(m.open(at))
	case "send":
		if arg == "" {
			m.alert = "which file? /send PATH"
			return nil, true
		}
		return taken(m.sendFile(k, text, arg))
	case "accept", "decline":
		m.alert = ""
		cmd := m.answer(arg, strings.EqualFold(name, "accept"))
		if cmd == nil {
			return nil, true
		}
		k.remember(text)
		k.ed.set("")
		return cmd, true
	}
	m.alert = "there is no command /" + m.c.name(name) + " (/help lists them; to send it as text, begin with //)"
	return nil, true
}

// who says which members are here, in clean text.
func (k *conversation) who() string {
	var here, away []string
	for _, v := range k.conv.Members {
		if v.Online {
			here = append(here, k.names[v.ID])
		} else {
			away = append(away, k.names[v.ID])
		}
	}
	var out []string
	if len(here) > 0 {
		out = append(out, "here: "+strings.Join(here, ", "))
	}
	if len(away) > 0 {
		out = append(out, "away: "+strings.Join(away, ", "))
	}
	if len(out) == 0 {
		return "nobody else"
	}
	return strings.Join(out, "; ")
}

// hint says what a command that is being typed does; empty is nothing.
func hint(text string) string {
	if !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//") || strings.Contains(text, "\n") {
		return ""
	}
	name, _, whole := strings.Cut(text[1:], " ")
	var names []string
	for _, s := range slashes {
		if s.name == name || !whole && strings.HasPrefix(s.name, name) {
			names = append(names, "/"+s.name)
			if s.name == name {
				return strings.TrimSpace("/"+s.name+" "+s.args) + ": " + s.what
			}
		}
	}
	return strings.Join(names, "  ")
}

// absolute is a path as the backend takes it: from the home directory for "~".
func absolute(path string) (string, error) {
	if n := len(path); n > 1 && (path[0] == '"' || path[0] == '\'') && path[n-1] == path[0] {
		path = path[1 : n-1]
	}
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || os.IsPathSeparator(rest[0])) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		path = home + rest
	}
	return filepath.Abs(path)
}

func (m *model) sendFile(k *conversation, typed, path string) tea.Cmd {
	id := k.conv.ID
	said := "offered: " + m.c.text(path)
	return m.run(func(ctx context.Context) tea.Msg {
		path, err := absolute(path)
		if err == nil {
			err = m.backend.SendFile(ctx, id, path)
		}
		return doneMsg{said: said, err: err, conv: id, typed: typed}
	})
}

// open1 is the number of the first offer of a conversation that waits for an answer;
// 0 is none.
func (m *model) open1(k *conversation) int {
	for i, o := range k.offers {
		if m.moved[o].State == TransferOffered {
			return i + 1
		}
	}
	return 0
}

// answer takes or refuses an offer, by its number; without one the first that is open.
func (m *model) answer(number string, yes bool) tea.Cmd {
	k := m.current()
	if k == nil {
		return nil
	}
	n := m.open1(k)
	if number != "" {
		var err error
		if n, err = strconv.Atoi(number); err != nil || n < 1 || n > len(k.offers) || m.moved[k.offers[n-1]].State != TransferOffered {
			m.alert = "there is no open offer " + m.c.name(number)
			return nil
		}
	}
	if n == 0 {
		m.alert = "no file waits for an answer here"
		return nil
	}
	offer := k.offers[n-1]
	m.alert = ""
	return m.ask(func(ctx context.Context) tea.Msg {
		if yes {
			return doneMsg{said: fmt.Sprintf("taking file %d", n), err: m.backend.Accept(ctx, offer)}
		}
		return doneMsg{said: fmt.Sprintf("declined file %d", n), err: m.backend.Decline(ctx, offer)}
	})
}

// completeMsg is what a started input may become.
type completeMsg struct {
	conv, typed string
	keep        string   // of typed
	options     []string // what may come after it
}

// complete completes a command, a name or a path.
func (m *model) complete(k *conversation) tea.Cmd {
	text := k.ed.text
	name, arg, has := strings.Cut(text, " ")
	out := completeMsg{conv: k.conv.ID, typed: text}
	switch {
	case !has:
		out.keep = "/"
		for _, s := range slashes {
			if strings.HasPrefix(s.name, text[1:]) {
				out.options = append(out.options, s.name+" ")
			}
		}
	case name == "/go":
		out.keep = name + " "
		for _, o := range m.convs {
			if len(o.name) >= len(arg) && strings.EqualFold(o.name[:len(arg)], arg) {
				out.options = append(out.options, o.name)
			}
		}
	case name == "/send":
		return m.ask(func(ctx context.Context) tea.Msg {
			out.keep, out.options = paths(name+" ", arg)
			return out
		})
	}
	m.completed(out)
	return nil
}

// mostPaths is how many files of a directory are looked at.
const mostPaths = 10000

// paths lists what a path may be completed to: keep is its directory as it was typed.
func paths(keep, typed string) (string, []string) {
	cut := strings.LastIndexByte(typed, '/') + 1
	if i := strings.LastIndexByte(typed, filepath.Separator) + 1; i > cut {
		cut = i
	}
	dir, base := typed[:cut], typed[cut:]
	where, err := absolute(dir + ".")
	if err != nil {
		return keep + dir, nil
	}
	f, err := os.Open(where)
	if err != nil {
		return keep + dir, nil
	}
	defer f.Close()
	entries, _ := f.ReadDir(mostPaths) // what could not be read is not offered
	var out []string
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, base) || base == "" && name[0] == '.' || insertable(name) != name || strings.Contains(name, "\n") {
			continue
		}
		if e.IsDir() {
			name += "/"
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return keep + dir, out
}

// completed puts in what all options begin with; several are shown.
func (m *model) completed(msg completeMsg) {
	k := m.byID(msg.conv)
	if k == nil || k.ed.text != msg.typed { // it was written on
		return
	}
	if len(msg.options) == 0 {
		m.said = "nothing begins like that"
		return
	}
	common := msg.options[0]
	for _, o := range msg.options[1:] {
		for !strings.HasPrefix(o, common) {
			_, cut := lastRune(common)
			common = common[:len(common)-cut]
		}
	}
	if full := msg.keep + common; len(full) >= len(msg.typed) {
		k.ed.set(full)
	}
	if m.said = ""; len(msg.options) > 1 {
		m.said = m.c.text(strings.Join(msg.options[:min(len(msg.options), 50)], "  "))
	}
}
