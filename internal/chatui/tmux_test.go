package chatui

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/tmuxtest"
)

// capturesEnv names a directory that the test with a real terminal writes what was seen
// to, as text.
const capturesEnv = "KITH_CHATUI_CAPTURES"

// A terminal is one with the demo in it.
type terminal struct {
	*tmuxtest.Terminal
	t *testing.T
}

func newTerminal(t *testing.T, w, h int) *terminal {
	t.Helper()
	return &terminal{tmuxtest.New(t, w, h), t}
}

// starts runs the demo.
func (x *terminal) starts(mode string) {
	x.t.Helper()
	self, err := os.Executable()
	if err != nil {
		x.t.Fatal(err)
	}
	x.Keys(demoEnv+"="+mode+" "+self, "Enter")
	x.Awaits("F1 help", "three")
}

// capture keeps what is seen.
func (x *terminal) capture(name string) {
	x.t.Helper()
	if dir := os.Getenv(capturesEnv); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte(x.Screen()), 0o644); err != nil {
			x.t.Fatal(err)
		}
	}
}

// restored checks that the shell has the terminal as it was.
func (x *terminal) restored() {
	x.t.Helper()
	x.Keys("clear; stty -a | tr ' ;' '\\n\\n' | grep -cx -e icanon -e echo -e isig", "Enter")
	x.Until("a terminal with echo and lines", func(s string) bool { return strings.HasPrefix(s, "3\n") })
	state := x.Tmux("display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag} #{keypad_cursor_flag}")
	if strings.TrimSpace(state) != "0 0 1 0" {
		x.t.Errorf("other screen, mouse, cursor, keypad: %s", state)
	}
}

func TestTerminal(t *testing.T) {
	x := newTerminal(t, 80, 24)
	x.Keys("echo before", "Enter")
	x.Awaits("\nbefore")
	x.starts("1")
	x.Awaits("laptop - here", "日本語の文章は", "Alt-A takes it", "direct, 12 ms | 1 kept")
	x.capture("1-chat-80x24")

	x.Types("echo hello from a terminal")
	x.Keys("Enter")
	x.Awaits("laptop  hello from a terminal", "me      echo hello from a terminal")
	x.Keys("M-a")
	x.Awaits("40 %, 1.3 MB of 3.2 MB")
	x.Types("pair")
	x.Keys("Enter")
	x.Awaits("!! [Alt-U: undo the pairing, Esc: keep] a new pairing on desk: tablet")
	x.capture("2-file-and-notice-80x24")
	x.Keys("M-u")
	x.Awaits("done: undo the pairing")

	x.Resize(40, 20)
	x.Until("a folded list", func(s string) bool { return strings.Contains(s, "1/3") && !strings.Contains(s, "│") })
	x.Keys("Tab")
	x.Awaits("phone - away", "2/3", "lines are kept and")
	x.capture("3-away-40x20")
	x.Resize(120, 40)
	x.Keys("M-3")
	x.Awaits("#hiking - 2 of 3 here: anna, Bob the builder", "天野", "2/3")
	x.capture("4-room-120x40")

	x.Keys("M-1", "C-f")
	x.Types("hello")
	x.Keys("Enter")
	x.Awaits("search: hello", "1 of 3")
	x.Keys("Up")
	x.Awaits("2 of 3")
	x.capture("5-search-120x40")
	x.Keys("Escape")
	x.Until("no search", func(s string) bool { return !strings.Contains(s, "search: hello") })

	x.Paste("first\nsecond\nthird")
	x.Awaits("3 lines: Enter sends each as a message", "> first")
	x.capture("6-paste-120x40")
	x.Keys("Enter")
	x.Awaits("me      first", "me      second", "me      third")

	x.Keys("C-z")
	x.Awaits("before", "Stopped")
	x.restored()
	x.Keys("fg", "Enter")
	x.Awaits("F1 help", "me      third")
	x.Types("after it")
	x.Awaits("> after it")
	x.Keys("C-u", "C-d")
	x.Awaits("left: <nil>")
	x.restored()
}

func TestTerminalScroll(t *testing.T) {
	x := newTerminal(t, 60, 16)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x.Keys(demoEnv+"=long "+self, "Enter")
	x.Awaits("old line 4999")
	number := regexp.MustCompile(`old line\s+(\d+)`)
	first := func(s string) string {
		if m := number.FindStringSubmatch(s); m != nil {
			return m[1]
		}
		return ""
	}
	// A terminal may show one page's first lines above another page's last ones.
	whole := func(s string) bool {
		all := number.FindAllStringSubmatch(s, -1)
		for i := range all {
			from, _ := strconv.Atoi(all[0][1])
			if n, _ := strconv.Atoi(all[i][1]); n != from+i {
				return false
			}
		}
		return len(all) > 10
	}
	before := first(x.Screen())
	for range 2 {
		last := before
		x.Keys("PPage")
		x.Until("an older page", func(s string) bool {
			before = first(s)
			return strings.Contains(s, "scrolled back") && before != last && whole(s)
		})
	}
	for _, size := range []string{"40", "100", "25", "60"} {
		x.Tmux("resize-window", "-x", size, "-y", "16")
		x.Until("the same place", func(s string) bool { return first(s) == before && len(strings.Split(s, "\n")) == 17 })
	}
	x.Types("\x1b[<64;30;5M") // the wheel
	x.Until("an older line", func(s string) bool { f := first(s); return f != "" && f != before })
	x.Keys("Home")
	x.Until("the oldest lines that are there", func(s string) bool { return strings.Contains(s, "old line 4800") })
	x.Keys("End")
	x.Awaits("old line 4999")
	x.Keys("C-f")
	x.Types("good morning")
	x.Keys("Enter")
	x.Awaits(">09:59 laptop", "1 of 1")
	x.Keys("C-c")
	x.Awaits("left: <nil>")
	x.restored()
}

// TestTerminalCrash holds that a failure of the program leaves the terminal usable.
func TestTerminalCrash(t *testing.T) {
	x := newTerminal(t, 80, 24)
	x.starts("panic")
	x.Types("x")
	x.Keys("Enter")
	x.Awaits("left: chatui: a failure of the program: on purpose")
	x.restored()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x.Keys(demoEnv+"=update "+self, "Enter")
	x.Awaits("left: chatui: a failure of the program: an error that panics")
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
	x.Keys(demoEnv+"=1 exec "+self, "Enter")
	x.Awaits("F1 help", "three")
	pid := strings.TrimSpace(x.Tmux("display-message", "-p", "#{pane_pid}"))
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
	x.Types("echo awake")
	x.Keys("Enter")
	x.Awaits("laptop  awake")
}
