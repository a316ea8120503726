package kith_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A mailLab is two devices that are never there at once, and who keeps letters for them:
// the hub, or the third device.
type mailLab struct {
	*kinLab
	hubArgs []string // nil: the third device keeps mail
	said    []string // all lines, in order
	ids     []string // of desk and laptop
}

// TestNetworkMail has two devices write to each other that are never there at once. Who
// has written is killed as soon as the command has said that the line is kept or sent, and
// so is who keeps the letters: each line is there exactly once and in order.
func TestNetworkMail(t *testing.T) {
	t.Parallel()
	for name, hub := range map[string][]string{"hub": {"--mail", "--mail-per-client", "128KiB"}, "device": nil} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			l := &mailLab{kinLab: newKinLab(ctx, t, "shelf", hub...), hubArgs: hub}
			if hub == nil {
				pairStations(ctx, t, l.desk, l.third, "words")
				pairStations(ctx, t, l.laptop, l.third, "words")
				l.third.run(ctx, "config", "mail", "on")
				l.restartKeeper(ctx)
			}
			for _, s := range []*station{l.desk, l.laptop} {
				d, _ := l.other(s).device(ctx, s.host.Name)
				l.ids = append(l.ids, d.ID.String())
			}
			if hub == nil {
				l.laptop.kill(ctx) // which desk has to notice
			} else {
				l.laptop.up.Stop()
			}
			l.desk.until(ctx, "sees that laptop is away", func(out string) bool { return !strings.Contains(out, "laptop  connected") }, "status")

			l.leave(ctx, t, l.desk, "attack at dawn", "no, at noon", "bring sandwiches")
			l.desk.kill(ctx)
			l.restartKeeper(ctx)
			l.laptop.daemon(ctx)
			l.has(ctx, t, l.laptop)

			l.leave(ctx, t, l.laptop, "with cheese")
			l.laptop.kill(ctx)
			l.desk.daemon(ctx)
			l.has(ctx, t, l.desk)

			// The line is on desk's disk alone when desk is killed.
			l.said = append(l.said, "and a tent")
			if status, out := l.desk.try(ctx, "and a tent\n", "chat", "--wait", "1ms", "laptop"); status != 5 || !strings.Contains(out, "the line is kept here, and not delivered yet: laptop is away") {
				t.Errorf("chat: exit status %d: %s", status, out)
			}
			l.desk.kill(ctx)
			l.desk.daemon(ctx)
			l.desk.until(ctx, "has left it", func(out string) bool { return strings.Contains(out, " 1 letter of this device, 0 letters for it") }, "status")
			l.desk.kill(ctx)
			l.restartKeeper(ctx)
			l.sealed(t)
			l.laptop.daemon(ctx)
			l.has(ctx, t, l.laptop)

			if hub != nil {
				l.overQuota(ctx, t)
			}
			l.desk.daemon(ctx)
			l.desk.run(ctx, "ping", "-c", "1", "--wait", "30s", "laptop")
			l.has(ctx, t, l.desk)
			l.has(ctx, t, l.laptop)
		})
	}
}

// restartKeeper kills who keeps the letters, and starts it again.
func (l *mailLab) restartKeeper(ctx context.Context) {
	if l.hubArgs == nil {
		l.third.kill(ctx)
		l.third.daemon(ctx)
		return
	}
	l.up.Kill()
	l.up.Wait(ctx)
	l.startHub(ctx, l.hubArgs...)
}

// other is the one to whom a device writes.
func (l *mailLab) other(s *station) *station {
	if s == l.desk {
		return l.laptop
	}
	return l.desk
}

// leave writes lines, and holds that the command says that they are sent.
func (l *mailLab) leave(ctx context.Context, t *testing.T, from *station, lines ...string) {
	t.Helper()
	start := time.Now()
	l.said = append(l.said, lines...)
	if status, out := from.try(ctx, strings.Join(lines, "\n")+"\n", "chat", "--wait", "30s", l.other(from).host.Name); status != 0 {
		t.Fatalf("%s leaves letters: exit status %d: %s", from.host.Name, status, out)
	}
	t.Logf("%s left %d lines in %v", from.host.Name, len(lines), time.Since(start).Round(time.Millisecond))
}

// has waits until a device has all lines, and holds that it has each once and in order.
func (l *mailLab) has(ctx context.Context, t *testing.T, s *station) {
	t.Helper()
	var got []string
	s.until(ctx, fmt.Sprintf("has all %d lines", len(l.said)), func(out string) bool {
		got = nil
		for line := range strings.Lines(out) {
			var ev struct{ Text string }
			if err := json.Unmarshal([]byte(line), &ev); err != nil {
				t.Fatal(err)
			}
			got = append(got, ev.Text)
		}
		return len(got) >= len(l.said)
	}, "chat", "--json", "--history", "1000", l.other(s).host.Name)
	if !slices.Equal(got, l.said) {
		t.Errorf("%s has %d lines: %.1000q", s.host.Name, len(got), got)
	}
}

// sealed holds that who keeps a letter has it on its disk, and neither a line nor, among
// the letters, a name or an ID.
func (l *mailLab) sealed(t *testing.T) {
	t.Helper()
	home, folder, letters := l.third.home, "mail", 0
	if l.hubArgs != nil {
		home, folder = l.hub.home, filepath.Join("hub", "mail")
	}
	err := filepath.WalkDir(home, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		secrets := slices.Clone(l.said)
		if strings.HasPrefix(path, filepath.Join(home, folder)) {
			secrets = append(append(secrets, "desk", "laptop"), l.ids...)
			if len(raw) >= 1024 {
				letters++
			}
		}
		for _, secret := range secrets {
			if bytes.Contains(raw, []byte(secret)) || strings.Contains(path, secret) {
				t.Errorf("%q stands in %s", secret, path)
			}
		}
		return nil
	})
	if err != nil || letters != 1 {
		t.Errorf("%d letters on the disk, %v", letters, err)
	}
}

// overQuota has laptop write more than the hub takes of one address: that is said in one
// line, and what the hub did not take waits here.
func (l *mailLab) overQuota(ctx context.Context, t *testing.T) {
	var lines []string
	for i := range 60 {
		lines = append(lines, fmt.Sprintf("%02d %s", i, strings.Repeat("so much to say, ", 200)+"but not now"))
	}
	status, out := l.laptop.try(ctx, strings.Join(lines, "\n")+"\n", "chat", "--wait", "6s", "desk")
	l.said = append(l.said, lines...)
	var kept int
	if _, err := fmt.Sscanf(out[strings.LastIndex(out, "error:"):], "error: %d lines are kept here, and not delivered yet: desk is away", &kept); status != 5 || err != nil ||
		kept < 20 || kept >= len(lines) || !strings.Contains(out, "; not taken as mail by hub 11.1.0.2:443: the keeper has no room left for letters of this device\n") {
		t.Errorf("over the quota: exit status %d, %d kept: %s", status, kept, out)
	}
	if out := l.laptop.run(ctx, "status"); !strings.Contains(out, "2 letters of this device, 0 letters for it; the last was not taken: the keeper has no room left for letters of this device\n") {
		t.Errorf("over the quota: %s", out)
	}
}
