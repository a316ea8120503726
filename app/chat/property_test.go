package chat

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// A deed is one thing that happens to devices.
type deed struct {
	what string
	a, b int
	n    int
}

func (d deed) String() string { return fmt.Sprintf("%s(%d,%d,%d)", d.what, d.a, d.b, d.n) }

// TestProperty has devices write, move, be cut off, lose their power at any write, and
// never be online all at the same time until the end. Then every line that was kept is
// everywhere, once, in its author's order, and in the same order on every side.
func TestProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		devices := rapid.IntRange(2, 5).Draw(rt, "devices")
		deeds := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) deed {
			return deed{
				what: rapid.SampledFrom([]string{"send", "send", "send", "up", "up", "down", "move", "break", "kill", "power", "read", "rest", "stop"}).Draw(rt, "what"),
				a:    rapid.IntRange(0, devices-1).Draw(rt, "a"), b: rapid.IntRange(0, devices-1).Draw(rt, "b"),
				n: rapid.IntRange(1, 12).Draw(rt, "n"),
			}
		}), 1, 60).Draw(rt, "deeds")
		all := rapid.Bool().Draw(rt, "all")
		bad := ""
		synctest.Test(t, func(t *testing.T) {
			bad = play(t, devices, deeds, all)
		})
		if bad != "" {
			rt.Fatal(bad)
		}
	})
}

// play does the deeds, and then connects all with all, or each with the next alone.
func play(t *testing.T, devices int, deeds []deed, all bool) string {
	l := newLab(t, devices)
	defer l.stopAll()
	c := l.room()
	l.startAll()
	kept := make([][]string, devices) // that Send has said yes to
	number := 0
	for _, d := range deeds {
		n := l.nodes[d.a]
		switch d.what {
		case "send":
			for range d.n {
				text := fmt.Sprintf("line %d of %d", number, d.a)
				number++
				if _, err := n.svc.Send(t.Context(), c, text); err == nil {
					kept[d.a] = append(kept[d.a], text)
				} else {
					n.kill() // its disk has no power
				}
			}
		case "up", "down", "move":
			if d.a == d.b {
				continue
			}
			if d.what == "move" {
				l.move(d.a, d.b)
			} else {
				l.connect(d.a, d.b, d.what == "up")
			}
		case "break":
			l.breakOff(d.a, d.b)
		case "kill":
			n.kill()
		case "stop":
			n.stop()
			n.start()
		case "power": // goes at the nth write
			n.disk.mu.Lock()
			n.disk.left = d.n
			n.disk.mu.Unlock()
		case "read":
			if page, err := n.svc.History(c, nil, d.n); err == nil && len(page) > 0 {
				_ = n.svc.MarkRead(c, page[0]) // its disk may have no power
			}
		case "rest":
			pass(time.Duration(d.n) * 100 * time.Millisecond)
		}
	}
	for _, n := range l.nodes {
		n.kill()
	}
	for a := range l.nodes {
		for b := range a {
			l.connect(a, b, all || a == b+1)
		}
	}
	diff := ""
	for range 20 { // some minutes
		pass(10 * time.Second)
		if diff = l.difference(t, c); diff == "" {
			break
		}
	}
	if diff != "" {
		return diff
	}
	shown := l.nodes[0].all(t, c)
	texts := make(map[string]int)
	for _, m := range shown {
		texts[m.Text]++
	}
	for a, want := range kept {
		var got []string
		for _, m := range shown {
			if m.Author == l.nodes[a].id.ID() && slices.Contains(want, m.Text) {
				got = append(got, m.Text)
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("of device %d: got %q, want %q", a, got, want)
		}
	}
	for text, n := range texts {
		if n > 1 {
			return fmt.Sprintf("%q is there %d times", text, n)
		}
	}
	for _, n := range l.nodes { // and all know that all have them
		for _, m := range n.all(t, c) {
			if m.Mine && m.Delivered != devices-1 {
				return fmt.Sprintf("%q is said to be at %d others", m.Text, m.Delivered)
			}
		}
	}
	return ""
}

// TestTenThousandLines has two devices write 10,000 lines through about 200 power cuts and 5
// moves. What a cut takes before it was kept is written again, as a person would.
func TestTenThousandLines(t *testing.T) {
	lines := 10_000
	if testing.Short() {
		lines = 1000
	}
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.pair(0, 1)
		l.startAll()
		l.connectAll()
		rnd := l.nodes[0].disk.rnd
		kept := make([][]string, 2)
		cuts := 0
		for i := range lines {
			n := rnd.IntN(2)
			text := fmt.Sprintf("line %d", i)
			if i%(lines/200) == 7 { // at some write soon, of either's
				d := l.nodes[rnd.IntN(2)].disk
				d.mu.Lock()
				d.left = 1 + rnd.IntN(8)
				d.mu.Unlock()
			}
			if i%(lines/5) == 11 {
				l.move(0, 1)
			}
			for try := 0; ; try++ {
				if _, err := l.nodes[n].svc.Send(t.Context(), c, fmt.Sprint(text, " ", try)); err == nil {
					kept[n] = append(kept[n], fmt.Sprint(text, " ", try))
					break
				}
				l.nodes[n].kill()
				cuts++
			}
			if i%10 == 0 {
				synctest.Wait()
			}
		}
		for _, n := range l.nodes {
			n.kill()
		}
		pass(5 * time.Minute)
		if diff := l.difference(t, c); diff != "" {
			t.Fatal(diff[:min(len(diff), 2000)])
		}
		shown := l.nodes[1].all(t, c)
		times := make(map[string]int, len(shown))
		for _, m := range shown {
			times[m.Text]++
		}
		for n, want := range kept {
			at := 0
			for _, m := range shown {
				if m.Author == l.nodes[n].id.ID() && at < len(want) && m.Text == want[at] {
					at++
				}
			}
			if at != len(want) {
				t.Errorf("of device %d, %q is out of order or lost", n, want[at])
			}
		}
		for text, n := range times {
			if n != 1 {
				t.Errorf("%q is there %d times", text, n)
			}
		}
		if cuts < 150 && !testing.Short() {
			t.Errorf("only %d power cuts", cuts)
		}
		t.Logf("%d lines are there, after %d power cuts; %d and %d writes", len(shown), cuts, l.nodes[0].disk.ops, l.nodes[1].disk.ops)
	})
}
