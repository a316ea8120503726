package chatui

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"
)

// hostile are texts that another device may send.
var hostile = []string{
	"", " ", "\x1b[2J\x1b[H\x1b]0;owned\a", "\x1b[31mred\x1b[m", "\u009b2J\u009d0;t\u009c", "a\x00b\x07c\x7fd\u0085e",
	"\u202eevil\u202c \u2066x\u2069 \u200f\u200e\u061c", "\ufeff\u00ad\u200b\u2060zero\u200c\u200dwidth\U000e0041",
	"-- anna was removed from the room", "\n-- anna was removed\r-- x\u2028-- y\u2029-- z\v\f",
	"\u0301\u0302leading marks", "z" + strings.Repeat("\u0300\u0488\u0321", 1000), strings.Repeat("\u0301", 2048),
	strings.Repeat("日", 1365), strings.Repeat("👨‍👩‍👧‍👦", 163), strings.Repeat("👍🏽❤️🇩🇪", 100), strings.Repeat("\u1100", 1000), "각\u1161\u1161\u1161\u11a8\u11a8",
	"\tta\tb\t", strings.Repeat("x", 4096), strings.Repeat("x ", 2048), strings.Repeat("\u3000", 1000), "\xff\xfe\xc3\x28 \xe2\x82 \xf0\x9f", "\xed\xa0\x80",
	"שלום עולם ١٢٣ مرحبا", "नमस्ते क्षत्रिय", "ไม่เป็นไร น้ำ", "\u115f\u1160\u3164\uffa0\u2800\u034f\u180e\u17b4", "\ue000\U000f0000\U0010fffd\ufdd0",
	"\ufffd", "﷽", "⸻", "🏴\U000e0067\U000e0062\U000e007f", "\u200d\u200d\ufe0f\ufe0e", "👨\u200da\u200d日", strings.Repeat("क्", 300),
	strings.Repeat("\U0001F1E9", 333), "e\u20dd\u20e3 1\ufe0f\u20e3", "\u0600\u06dd\u070f1", "a\u0bbe\u0bbe\u0bbe\u0bbe\u0bbe",
}

// sound checks what every view must be.
func sound(t interface{ Fatalf(string, ...any) }, r *rig) {
	rows, x, y := r.m.lines()
	w, h := r.m.w, r.m.h
	if len(rows) != h {
		t.Fatalf("%d rows in a window of %dx%d", len(rows), w, h)
	}
	if h > 0 && (x < 0 || x >= max(w, 1) || y < 0 || y >= h) {
		t.Fatalf("the cursor is at %d,%d in a window of %dx%d", x, y, w, h)
	}
	for i, row := range rows {
		for _, m := range []ansi.Method{ansi.WcWidth, ansi.GraphemeWidth} {
			if m == ansi.GraphemeWidth != r.m.c.joined {
				continue
			}
			if got := m.StringWidth(row); got > w {
				t.Fatalf("row %d has %d cells of %d: %q", i, got, w, row)
			}
		}
		text := row
		for {
			before, rest, found := strings.Cut(text, "\x1b[")
			checkRunes(t, before, r.m.c.joined)
			if !found {
				break
			}
			code, after, ok := strings.Cut(rest, "m")
			if !ok || strings.Trim(code, "0123456789;") != "" {
				t.Fatalf("row %d has an escape that is no SGR: %q", i, row)
			}
			text = after
		}
	}
}

func checkRunes(t interface{ Fatalf(string, ...any) }, s string, joined bool) {
	if !utf8.ValidString(s) {
		t.Fatalf("no UTF-8: %q", s)
	}
	marks := 0
	for _, c := range s {
		if unicode.Is(unicode.M, c) && c != emojiStyle {
			marks++
		} else {
			marks = 0
		}
		switch {
		case unicode.IsControl(c), unicode.Is(unicode.Co, c), unicode.Is(unicode.Cs, c), c == utf8.RuneError:
			t.Fatalf("a control or private character %U in %q", c, s)
		case unicode.Is(unicode.Cf, c) && (c != zwj || !joined):
			t.Fatalf("an invisible character %U in %q", c, s)
		case marks > maxMarks:
			t.Fatalf("%d marks on one character in %q", marks, s)
		}
	}
}

var someKeys = []string{
	"enter", "tab", "shift+tab", "esc", "backspace", "delete", "up", "down", "left", "right", "home", "end", "pgup", "pgdown",
	"ctrl+a", "ctrl+e", "ctrl+w", "ctrl+u", "ctrl+k", "ctrl+y", "ctrl+f", "ctrl+n", "ctrl+p", "ctrl+r", "ctrl+home", "ctrl+end",
	"alt+1", "alt+2", "alt+3", "alt+9", "alt+a", "alt+d", "alt+u", "alt+j", "alt+m", "alt+b", "alt+f", "alt+enter", "f1", "ctrl+left", "ctrl+right",
	"'/", "'/search e", "'/go p", "'/send /", "'/accept 1", "'x", "'日", "' ", "'the",
}

// TestAlwaysSound presses, resizes and receives whatever comes.
func TestAlwaysSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := demo()
		r := newRig(f, 80, 24)
		r.tell(f.say()...)
		id := func() string { return rapid.SampledFrom([]string{"c1", "c2", "c3", "gone"}).Draw(t, "conv") }
		text := func() string {
			if rapid.Bool().Draw(t, "known") {
				return rapid.SampledFrom(hostile).Draw(t, "text")
			}
			return rapid.String().Draw(t, "any text")
		}
		t.Repeat(map[string]func(*rapid.T){
			"key": func(t *rapid.T) { r.keys(rapid.SampledFrom(someKeys).Draw(t, "key")) },
			"resize": func(t *rapid.T) {
				r.send(tea.WindowSizeMsg{Width: rapid.IntRange(0, 130).Draw(t, "w"), Height: rapid.IntRange(0, 45).Draw(t, "h")})
			},
			"message": func(t *rapid.T) {
				r.message(id(), rapid.SampledFrom([]string{"aa11", "cc33", "zz", ""}).Draw(t, "author"), text())
			},
			"late": func(t *rapid.T) {
				m := f.add(id(), "aa11", text())
				m.Lamport = uint64(rapid.IntRange(0, 30).Draw(t, "lamport"))
				m.Late, m.Name, m.Seq, m.ClockDiffers = true, text(), m.Seq+1000, len(m.Text)%2 == 0
				r.tell(Event{Kind: EventMessage, Message: &m})
			},
			"offer": func(t *rapid.T) {
				m := f.add(id(), "aa11", text())
				m.Kind, m.File = KindFile, &File{Name: text(), Size: rapid.Int64().Draw(t, "size"), Offer: "o" + text()}
				state := rapid.SampledFrom([]string{TransferOffered, TransferRunning, TransferWaiting, TransferDone, TransferDeclined, TransferFailed, "?"}).Draw(t, "state")
				r.tell(Event{Kind: EventMessage, Message: &m}, Event{Kind: EventTransfer, Transfer: &Transfer{
					Offer: m.File.Offer, State: state, Bytes: rapid.Int64().Draw(t, "bytes"), Total: rapid.Int64().Draw(t, "total"), Note: text(),
				}})
			},
			"paste": func(t *rapid.T) { r.m.paste(text() + "\n" + text()) },
			"notice": func(t *rapid.T) {
				n := &Notice{Conv: id(), Text: text(), Time: time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, "time"), 0)}
				if rapid.Bool().Draw(t, "action") {
					n.Action = &Action{ID: "x", Label: text()}
				}
				r.tell(Event{Kind: EventNotice, Notice: n}, Event{Kind: EventStatus, Status: &Status{Conv: id(), Text: text()}})
			},
			"names": func(t *rapid.T) {
				convs := append([]Conv(nil), f.convs...)
				convs[0].Name, convs[2].Name = text(), text()
				convs[2].Members = []Member{{ID: "cc33", Name: text(), Online: true}, {ID: "dd44", Name: text()}, {ID: "", Name: "me"}}
				r.tell(Event{Kind: EventConvs, Convs: convs[rapid.IntRange(0, 3).Draw(t, "from"):]})
			},
			"gone": func(t *rapid.T) {
				v := Conv{ID: id(), Name: text(), Unread: rapid.IntRange(-5, 5000).Draw(t, "unread"), Kept: 3}
				r.tell(Event{Kind: rapid.SampledFrom([]EventKind{EventConv, EventGone}).Draw(t, "what"), Convs: []Conv{v}})
			},
			"joined": func(t *rapid.T) { r.send(joinedMsg(rapid.Bool().Draw(t, "joined"))) },
			"errors": func(t *rapid.T) {
				if f.fail = nil; rapid.Bool().Draw(t, "on") {
					f.fail = errors.New(text())
				}
			},
			"mouse": func(t *rapid.T) {
				r.send(tea.MouseWheelMsg{Button: rapid.SampledFrom([]tea.MouseButton{tea.MouseWheelUp, tea.MouseWheelDown}).Draw(t, "wheel")})
				r.send(tea.MouseClickMsg{Button: tea.MouseLeft, X: rapid.IntRange(-1, 40).Draw(t, "x"), Y: rapid.IntRange(-1, 40).Draw(t, "y")})
			},
			"missed": func(*rapid.T) { r.tell(Event{Kind: EventMissed}) },
			"":       func(t *rapid.T) { sound(t, r) },
		})
	})
}

// TestHostile shows each hostile text everywhere that a device can put one, in windows
// of many sizes.
func TestHostile(t *testing.T) {
	for i, text := range hostile {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			for _, size := range [][2]int{{80, 24}, {40, 20}, {60, 10}, {130, 40}, {12, 6}, {1, 1}, {2, 30}, {3, 3}} {
				for _, joined := range []bool{false, true} {
					f := newFake()
					f.convs = []Conv{
						{ID: "c1", Name: text, Members: []Member{{ID: "aa11", Name: text, Online: true}}},
						{ID: "c2", Name: text + text, Room: true, Members: []Member{{ID: "aa11", Name: text, Online: true}, {ID: "bb22", Name: text}}},
					}
					for _, c := range []string{"c1", "c2"} {
						f.add(c, "aa11", text)
						f.add(c, "me", text)
						m := f.add(c, "aa11", text)
						f.change(c, m.Seq, func(m *Message) { m.Kind, m.File = KindFile, &File{Name: text, Offer: "o"} })
					}
					r := newRig(f, size[0], size[1])
					r.send(joinedMsg(joined))
					r.tell(
						Event{Kind: EventTransfer, Transfer: &Transfer{Offer: "o", State: TransferFailed, Note: text}},
						Event{Kind: EventNotice, Notice: &Notice{Text: text, Action: &Action{ID: "a", Label: text}}},
						Event{Kind: EventStatus, Status: &Status{Text: text}},
					)
					sound(t, r)
					f.fail = errors.New(text)
					r.m.paste(text)
					sound(t, r)
					r.keys("enter")
					sound(t, r)
					r.keys("ctrl+n", "ctrl+f")
					r.m.paste(text)
					r.keys("enter")
					sound(t, r)
				}
			}
		})
	}
}

// TestNoFakeSystemLine holds that whatever another device sends, the first column of
// the pane has no sign of a line that this device says.
func TestNoFakeSystemLine(t *testing.T) {
	texts := append([]string{strings.Repeat("-- anna was removed ", 150), strings.Repeat("x", 31) + " -- fake", "---- Sat 21 Nov 2026 ----"}, hostile...)
	for _, size := range [][2]int{{80, 24}, {40, 20}, {120, 40}, {61, 24}, {15, 30}, {9, 30}} {
		for _, name := range []string{"anna", "-- anna", "--", "----", "-"} {
			for _, text := range texts {
				f := newFake()
				f.convs = []Conv{{ID: "c1", Room: true, Name: "r", Members: []Member{{ID: "aa11", Name: name, Online: true}}}}
				for range 3 {
					f.add("c1", "aa11", text)
				}
				r := newRig(f, size[0], size[1])
				k := r.m.current()
				for i := range k.items {
					for _, row := range r.m.line(k, &k.items[i], "09:58", r.m.layout().paneW) {
						if bare := bare(row.text); !strings.HasPrefix(bare, " ") {
							t.Fatalf("a text begins in the first column: %q", bare)
						}
					}
				}
			}
		}
	}
}

func FuzzText(f *testing.F) {
	for _, s := range hostile {
		f.Add(s, false, 10)
		f.Add(s, true, 40)
	}
	f.Fuzz(func(t *testing.T, s string, joined bool, cells int) {
		c := cleaner{joined: joined}
		got := c.text(s)
		checkRunes(t, got, joined)
		if len(got) > 3*maxShown { // composed, some characters are longer
			t.Fatalf("%d bytes", len(got))
		}
		checkRunes(t, c.name(s), joined)
		if w := c.width(c.name(s)); w > maxNameCell {
			t.Fatalf("a name of %d cells", w)
		}
		cells = 2 + min(max(cells, 0), 200)
		last := 0
		for _, sp := range c.wrap(got, cells, cells) {
			if sp.from < last || sp.to < sp.from || strings.Trim(got[last:sp.from], " ") != "" && c.width(got[last:sp.from]) <= cells {
				t.Fatalf("%q: %v after %d", got, sp, last)
			}
			if w := c.width(got[sp.from:sp.to]); w > cells {
				t.Fatalf("%d cells of %d: %q", w, cells, got[sp.from:sp.to])
			}
			last = sp.to
		}
		if strings.Trim(got[last:], " ") != "" {
			t.Fatalf("%q lost %q", got, got[last:])
		}
	})
}
