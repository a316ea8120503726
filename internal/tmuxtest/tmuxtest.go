// Package tmuxtest gives tests a real terminal: a tmux of its own with a shell in it. Keys
// go in, and what is seen comes out as text. A test that finds no tmux is skipped.
package tmuxtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A Terminal is a tmux with one window. It ends with its test.
type Terminal struct {
	t      *testing.T
	socket string
}

// New opens a terminal of a size in cells, with a shell whose prompt is "$ ".
func New(t *testing.T, w, h int) *Terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("there is no tmux, the terminal of this test: ", err)
	}
	dir, err := os.MkdirTemp("", "kith") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	x := &Terminal{t, filepath.Join(dir, "s")}
	x.Tmux("-f", os.DevNull, "new-session", "-d", "-x", strconv.Itoa(w), "-y", strconv.Itoa(h), "env LANG=C.UTF-8 LC_ALL=C.UTF-8 PS1='$ ' sh")
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", x.socket, "kill-server").Run() })
	x.Awaits("$")
	return x
}

// Tmux runs a command of tmux and returns what it prints.
func (x *Terminal) Tmux(args ...string) string {
	x.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-u", "-S", x.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		x.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// Keys presses keys, by tmux's names or as text.
func (x *Terminal) Keys(keys ...string) {
	x.t.Helper()
	x.Tmux(append([]string{"send-keys", "--"}, keys...)...)
}

// Types types a text.
func (x *Terminal) Types(text string) {
	x.t.Helper()
	x.Tmux("send-keys", "-l", "--", text)
}

// Resize gives the window another size, in cells.
func (x *Terminal) Resize(w, h int) {
	x.t.Helper()
	x.Tmux("resize-window", "-x", strconv.Itoa(w), "-y", strconv.Itoa(h))
}

// Paste pastes a text, as a terminal does that tells a paste from keys.
func (x *Terminal) Paste(text string) {
	x.t.Helper()
	x.Tmux("set-buffer", text)
	x.Tmux("paste-buffer", "-p")
}

// Screen is what is seen, as text.
func (x *Terminal) Screen() string { return x.Tmux("capture-pane", "-p") }

// Until looks at the screen until a condition holds, at most 20 s.
func (x *Terminal) Until(what string, holds func(screen string) bool) string {
	x.t.Helper()
	end := time.After(20 * time.Second)
	look := time.NewTicker(15 * time.Millisecond)
	defer look.Stop()
	for {
		screen := x.Screen()
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

// Awaits waits until all of some parts are on the screen.
func (x *Terminal) Awaits(parts ...string) string {
	x.t.Helper()
	return x.Until(fmt.Sprintf("%q", parts), func(screen string) bool {
		for _, p := range parts {
			if !strings.Contains(screen, p) {
				return false
			}
		}
		return true
	})
}
