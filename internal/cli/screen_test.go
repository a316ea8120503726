package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/internal/tmuxtest"
)

// screensEnv names docs/chat-screen.md: TestChatScreen then puts into it what it has seen.
const screensEnv = "KITH_CHAT_SCREENS"

// A household is three devices on this machine, each with a home of its own and kith up.
type household struct {
	t    *testing.T
	dir  string
	kith string
}

func newHousehold(t *testing.T) *household {
	t.Helper()
	kith, err := exec.LookPath("kith") // TestMain puts it there
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kith") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &household{t, dir, kith}
	for _, name := range []string{"desk", "laptop", "phone"} {
		s := settings{Name: name, Loopback: true, NoDHT: true}
		if err := s.save(h.state(name)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, name, "Downloads"), 0o700); err != nil {
			t.Fatal(err)
		}
		up := h.command(name, "up")
		var said bytes.Buffer
		up.Stdout, up.Stderr = &said, &said
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = up.Process.Signal(os.Interrupt)
			if err := up.Wait(); err != nil {
				t.Errorf("kith up on %s: %v: %s", name, err, &said)
			}
		})
		h.await(name+" is up", func() bool {
			_, err := control.Connect(t.Context(), h.state(name))
			return err == nil
		})
	}
	return h
}

func (h *household) home(name string) string  { return filepath.Join(h.dir, name) }
func (h *household) state(name string) string { return filepath.Join(h.dir, name, ".kith") }

// command is kith on a device.
func (h *household) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(h.kith, append([]string{"--home", h.state(name)}, args...)...)
	cmd.Dir = h.home(name)
	cmd.Env = append(os.Environ(), "HOME="+h.home(name), "TZ=UTC")
	return cmd
}

// run is kith on a device, to its end.
func (h *household) run(name, input string, args ...string) string {
	h.t.Helper()
	cmd := h.command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("%s: kith %q: %v: %s", name, args, err, &said)
	}
	return out.String()
}

func (h *household) await(what string, holds func() bool) {
	h.t.Helper()
	end := time.After(scriptWait)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-end:
			h.t.Fatal("never: " + what)
		case <-look.C:
		}
	}
}

// room has all three meet in a room that desk hosts.
func (h *household) room(name string) {
	h.t.Helper()
	var code struct {
		Words string `json:"words"`
	}
	for line := range strings.Lines(h.run("desk", "", "room", "create", name, "--admit", "open", "--json")) {
		if strings.Contains(line, `"code"`) {
			if err := json.Unmarshal([]byte(line), &code); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	for _, guest := range []string{"laptop", "phone"} {
		file := filepath.Join(h.home(guest), "code.txt")
		if err := os.WriteFile(file, []byte(code.Words+"\n"), 0o600); err != nil {
			h.t.Fatal(err)
		}
		h.run(guest, "", "room", "join", "--code-file", file)
	}
	for _, other := range []string{"desk", "phone"} {
		h.run("laptop", "", "ping", "-c", "1", other+"@"+name)
	}
}

// TestChatScreen drives the real program on a real terminal: a room of three devices, a file
// that is offered and taken, search, a paste, small windows and no colour.
func TestChatScreen(t *testing.T) {
	x := tmuxtest.New(t, 80, 24)
	h := newHousehold(t)
	h.room("hiking")
	shots := make(map[string]string)
	shot := func(name string) { shots[name] = x.Screen() }
	say := func(who, text string) { h.run(who, text+"\n", "chat", "hiking") }

	say("desk", "the hut at the lake is booked, two nights from Friday")
	say("phone", "who brings the map, and who brings the tea?")
	chat := fmt.Sprintf("cd %s; HOME=%s TZ=UTC %s --home %s chat hiking", h.home("laptop"), h.home("laptop"), h.kith, h.state("laptop"))
	x.Keys("clear; "+chat, "Enter")
	x.Awaits("#hiking - 2 of 2 here: desk, phone", "the map, and who", "F1 help")
	x.Types("I bring both; 天野 brings the stove 🔥")
	x.Keys("Enter")
	x.Awaits("✓") // both have it
	say("phone", "then I carry the bread")
	say("desk", "and I the rope")
	x.Awaits("I carry the bread", "and I the rope", "✓✓") // and have read it
	shot("room-80x24")

	// A file is offered to all: one takes it, one does not.
	photo := filepath.Join(h.home("desk"), "route.jpg")
	if err := os.WriteFile(photo, bytes.Repeat([]byte("a picture of the route "), 50_000), 0o600); err != nil {
		t.Fatal(err)
	}
	send := h.command("desk", "send", photo, "hiking")
	var sent bytes.Buffer
	send.Stdout, send.Stderr = &sent, &sent
	if err := send.Start(); err != nil {
		t.Fatal(err)
	}
	over := sync.OnceValue(send.Wait)
	t.Cleanup(func() { _ = send.Process.Kill(); _ = over() })
	x.Awaits("file route.jpg (1.15 MB)", "[1: Alt-A takes it, Alt-D declines]")
	shot("offered-80x24")
	x.Keys("M-a")
	x.Awaits("[done: in ~/Downloads]")
	shot("taken-80x24")
	number := regexp.MustCompile(`(?m)^(\d+)\s+desk\S* offers\s+route.jpg`)
	var found []string
	h.await("the offer waits at phone", func() bool {
		found = number.FindStringSubmatch(h.run("phone", "", "inbox"))
		return found != nil
	})
	h.run("phone", "", "inbox", "decline", found[1])
	if err := over(); err == nil || !strings.Contains(sent.String(), "1 of 2 members of hiking does not have it: phone") {
		t.Errorf("kith send: %v: %s", err, &sent)
	}
	if got, err := os.ReadFile(filepath.Join(h.home("laptop"), "Downloads", "route.jpg")); err != nil || len(got) != 23*50_000 {
		t.Errorf("laptop has %d bytes, %v", len(got), err)
	}
	// And one by the screen's own command.
	if err := os.WriteFile(filepath.Join(h.home("laptop"), "list.txt"), []byte("map\ntea\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x.Types("/send ~/li")
	x.Keys("Tab")
	x.Awaits("> /send ~/list.txt")
	x.Keys("Enter")
	x.Awaits("file list.txt (8 B)", "[waits for an answer]")

	x.Resize(40, 20)
	x.Until("a folded list", func(s string) bool { return strings.Contains(s, "waits for an answer") && !strings.Contains(s, "│") })
	shot("room-40x20")

	x.Resize(120, 40)
	x.Until("a wide window", func(s string) bool { return strings.Contains(s, "│") && strings.Contains(s, "the hut at the lake") })
	x.Keys("C-f")
	x.Types("brings")
	x.Keys("Enter")
	x.Awaits("search: brings", "1 of 2")
	shot("search-120x40")
	x.Keys("Escape")
	x.Until("no search", func(s string) bool { return !strings.Contains(s, "search: brings") })
	x.Paste("Friday: train at 16:10\nSaturday: the ridge\nSunday: home by the valley")
	x.Awaits("3 lines: Enter sends each as a message", "> Friday: train")
	shot("paste-120x40")
	x.Keys("Enter")
	x.Until("the lines arrive", func(s string) bool { return strings.Count(s, "✓") >= 5 && strings.Contains(s, "me     Sunday: home") })
	x.Keys("C-d")
	x.Until("the shell", func(s string) bool { return strings.HasPrefix(s, "$") })

	x.Resize(80, 24)
	x.Keys("clear; export NO_COLOR=1 LC_ALL=C LANG=C; "+chat, "Enter")
	x.Awaits("#hiking - 2 of 2 here: desk, phone", "F1 help", "Sunday: home by the valley")
	shot("plain-80x24")
	if s := shots["plain-80x24"]; strings.ContainsAny(s, "│●✓") {
		t.Errorf("a terminal that knows ASCII alone is given more:\n%s", s)
	}
	if s := x.Tmux("capture-pane", "-p", "-e"); regexp.MustCompile(`\x1b\[[0-9;]*(3[0-8]|4[0-8]|9[0-7])[;m]`).MatchString(s) {
		t.Errorf("colours with NO_COLOR:\n%q", s)
	}
	x.Keys("C-c")
	x.Until("the shell", func(s string) bool { return strings.HasPrefix(s, "$") })
	for name, s := range shots {
		if strings.Contains(s, h.dir) {
			t.Errorf("%s names a folder of this test:\n%s", name, s)
		}
	}
	if file := os.Getenv(screensEnv); file != "" && !t.Failed() {
		writeShots(t, file, shots)
	}
}

// writeShots puts screens into a document, each into the block that is marked with its name.
func writeShots(t *testing.T, file string, shots map[string]string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)(<!-- ([a-z0-9-]+) -->\n```text\n).*?(```\n)")
	var put []string
	out := block.ReplaceAllStringFunc(string(raw), func(old string) string {
		m := block.FindStringSubmatch(old)
		put = append(put, m[2])
		var rows []string
		for row := range strings.Lines(shots[m[2]]) {
			rows = append(rows, strings.TrimRight(row, " \n"))
		}
		return m[1] + strings.TrimRight(strings.Join(rows, "\n"), "\n") + "\n" + m[3]
	})
	var want []string
	for name := range shots {
		want = append(want, name)
	}
	slices.Sort(want)
	slices.Sort(put)
	if !slices.Equal(put, want) {
		t.Fatalf("the document has blocks for %q; there are %q", put, want)
	}
	if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
}
