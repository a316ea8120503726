package chatui

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// capturesEnv names a directory that the test with a real terminal writes what was seen
// to, as text.
const capturesEnv = "KITH_CHATUI_CAPTURES"

// A terminal is a tmux of its own with a shell in it.
type terminal struct {
	t      *testing.T
	socket string
}

func newTerminal(t *testing.T, w, h int) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("there is no tmux, the terminal of this test: ", err)
	}
	dir, err := os.MkdirTemp("", "kith") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	x := &terminal{t, filepath.Join(dir, "s")}
	x.tmux("-f", os.DevNull, "new-session", "-d", "-x", strconv.Itoa(w), "-y", strconv.Itoa(h), "env LANG=C.UTF-8 LC_ALL=C.UTF-8 PS1='$ ' sh")
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", x.socket, "kill-server").Run() })
	x.awaits("$")
	return x
}

func (x *terminal) tmux(args ...string) string {
	x.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-u", "-S", x.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		x.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// starts runs the demo.
func (x *terminal) starts(mode string) {
	x.t.Helper()
	self, err := os.Executable()
	if err != nil {
		x.t.Fatal(err)
	}
	x.keys(demoEnv+"="+mode+" "+self, "Enter")
	x.awaits("F1 help", "three")
}

func (x *terminal) keys(keys ...string) {
	x.t.Helper()
	x.tmux(append([]string{"send-keys", "--"}, keys...)...)
}

func (x *terminal) types(text string) {
	x.t.Helper()
	x.tmux("send-keys", "-l", "--", text)
}

func (x *terminal) screen() string { return x.tmux("capture-pane", "-p") }

// until looks at the screen until a condition holds.
func (x *terminal) until(what string, holds func(screen string) bool) string {
	x.t.Helper()
	end := time.After(20 * time.Second)
	look := time.NewTicker(15 * time.Millisecond)
	defer look.Stop()
	for {
		screen := x.screen()
		if holds(screen) {
			return screen
		}
		select {
		case <-end:
			x.t.Fatalf("never: %s. The screen:\n%s", what, screen)
		case <-look.C:
		}
	}
}

// awaits waits until all of some parts are on the screen.
func (x *terminal) awaits(parts ...string) string {
	x.t.Helper()
	return x.until(fmt.Sprintf("%q", parts), func(screen string) bool {
		for _, p := range parts {
			if !strings.Contains(screen, p) {
				return false
			}
		}
		return true
	})
}

// capture keeps what is seen.
func (x *terminal) capture(name string) {
	x.t.Helper()
	if dir := os.Getenv(capturesEnv); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte(x.screen()), 0o644); err != nil {
			x.t.Fatal(err)
		}
	}
}

// restored checks that the shell has the terminal as it was.
func (x *terminal) restored() {
	x.t.Helper()
	x.keys("clear; stty -a | tr ' ;' '\\n\\n' | grep -cx -e icanon -e echo -e isig", "Enter")
	x.until("a terminal with echo and lines", func(s string) bool { return strings.HasPrefix(s, "3\n") })
	state := x.tmux("display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag} #{keypad_cursor_flag}")
	if strings.TrimSpace(state) != "0 0 1 0" {
		x.t.Errorf("other screen, mouse, cursor, keypad: %s", state)
	}
}

func TestTerminal(t *testing.T) {
	x := newTerminal(t, 80, 24)
	x.keys("echo before", "Enter")
	x.awaits("\nbefore")
	x.starts("1")
	x.awaits("laptop - here", "日本語の文章は", "Alt-A takes it", "direct, 12 ms | 1 kept")
	x.capture("1-chat-80x24")

	x.types("echo hello from a terminal")
	x.keys("Enter")
	x.awaits("laptop  hello from a terminal", "me      echo hello from a terminal")
	x.keys("M-a")
	x.awaits("40 %, 1.3 MB of 3.2 MB")
	x.types("pair")
	x.keys("Enter")
	x.awaits("!! [Alt-U: undo the pairing, Esc: keep] a new pairing on desk: tablet")
	x.capture("2-file-and-notice-80x24")
	x.keys("M-u")
	x.awaits("done: undo the pairing")

	x.tmux("resize-window", "-x", "40", "-y", "20")
	x.until("a folded list", func(s string) bool { return strings.Contains(s, "1/3") && !strings.Contains(s, "│") })
	x.keys("Tab")
	x.awaits("phone - away", "2/3", "lines are kept and")
	x.capture("3-away-40x20")
	x.tmux("resize-window", "-x", "120", "-y", "40")
	x.keys("M-3")
	x.awaits("#hiking - 2 of 3 here: anna, Bob the builder", "天野", "2/3")
	x.capture("4-room-120x40")

	x.keys("M-1", "C-f")
	x.types("hello")
	x.keys("Enter")
	x.awaits("search: hello", "1 of 3")
	x.keys("Up")
	x.awaits("2 of 3")
	x.capture("5-search-120x40")
	x.keys("Escape")
	x.until("no search", func(s string) bool { return !strings.Contains(s, "search: hello") })

	x.tmux("set-buffer", "first\nsecond\nthird")
	x.tmux("paste-buffer", "-p")
	x.awaits("3 lines: Enter sends each as a message", "> first")
	x.capture("6-paste-120x40")
	x.keys("Enter")
	x.awaits("me      first", "me      second", "me      third")

	x.keys("C-z")
	x.awaits("before", "Stopped")
	x.restored()
	x.keys("fg", "Enter")
	x.awaits("F1 help", "me      third")
	x.types("after it")
	x.awaits("> after it")
	x.keys("C-u", "C-d")
	x.awaits("left: <nil>")
	x.restored()
}

func TestTerminalScroll(t *testing.T) {
	x := newTerminal(t, 60, 16)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x.keys(demoEnv+"=long "+self, "Enter")
	x.awaits("old line 4999")
	x.keys("PPage", "PPage")
	number := regexp.MustCompile(`old line\s+(\d+)`)
	first := func(s string) string {
		if m := number.FindStringSubmatch(s); m != nil {
			return m[1]
		}
		return ""
	}
	before := first(x.awaits("scrolled back"))
	for _, size := range []string{"40", "100", "25", "60"} {
		x.tmux("resize-window", "-x", size, "-y", "16")
		x.until("the same place", func(s string) bool { return first(s) == before && len(strings.Split(s, "\n")) == 17 })
	}
	x.types("\x1b[<64;30;5M") // the wheel
	x.until("an older line", func(s string) bool { f := first(s); return f != "" && f != before })
	x.keys("Home")
	x.keys("End")
	x.awaits("old line 4999")
	x.keys("C-f")
	x.types("good morning")
	x.keys("Enter")
	x.awaits(">09:59 laptop", "1 of 1")
	x.keys("C-c")
	x.awaits("left: <nil>")
	x.restored()
}

// TestTerminalCrash holds that a failure of the program leaves the terminal usable.
func TestTerminalCrash(t *testing.T) {
	x := newTerminal(t, 80, 24)
	x.starts("panic")
	x.types("x")
	x.keys("Enter")
	x.awaits("left: chatui: a failure of the program: on purpose")
	x.restored()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x.keys(demoEnv+"=update "+self, "Enter")
	x.awaits("left: chatui: a failure of the program: an error that panics")
	x.restored()
}

// TestTerminalIdle holds that nothing runs while nothing happens.
func TestTerminalIdle(t *testing.T) {
	if _, err := os.Stat("/proc/self/task"); err != nil {
		t.Skip("this system does not tell how often a process ran: ", err)
	}
	x := newTerminal(t, 80, 24)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x.keys(demoEnv+"=1 exec "+self, "Enter")
	x.awaits("F1 help", "three")
	pid := strings.TrimSpace(x.tmux("display-message", "-p", "#{pane_pid}"))
	switches := func() int {
		n := 0
		files, _ := filepath.Glob("/proc/" + pid + "/task/*/status")
		for _, f := range files {
			raw, _ := os.ReadFile(f)
			for _, m := range regexp.MustCompile(`ctxt_switches:\s+(\d+)`).FindAllSubmatch(raw, -1) {
				v, _ := strconv.Atoi(string(m[1]))
				n += v
			}
		}
		return n
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	best := 1 << 30
	for range 8 { // the first seconds are of the start
		before := switches()
		<-look.C
		if best = min(best, switches()-before); best == 0 {
			break
		}
	}
	if best > 5 || switches() == 0 {
		t.Errorf("at least %d switches in a second in which nothing happens", best)
	}
	x.types("echo awake")
	x.keys("Enter")
	x.awaits("laptop  awake")
}
