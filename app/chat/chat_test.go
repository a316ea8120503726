package chat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
)

// inBubble runs a test with devices on a clock of its own.
func inBubble(t *testing.T, n int, f func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, n)
		defer l.stopAll()
		f(t, l)
	})
}

func TestLinesArriveInOrder(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		l.connectAll()
		var want []string
		var last Message
		for i := range 50 { // nobody reads yet
			want = append(want, fmt.Sprint("line ", i))
			last = a.send(t, c, want[i])
		}
		if last.State != StateKept || !last.Mine || last.Seq != 50 {
			t.Errorf("just written: %+v", last)
		}
		a.await(t, last, StateDelivered)
		if got := b.texts(t, c); !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		convs, err := b.svc.Convs()
		if err != nil || convs[0].Unread != 50 {
			t.Errorf("%+v, %v: want 50 unread", convs, err)
		}
		unread, err := b.svc.Unread(c, 20)
		if err != nil || len(unread) != 20 || unread[0].Text != "line 0" || unread[0].State != StateDelivered {
			t.Fatalf("unread: %+v, %v", unread, err)
		}
		if err := b.svc.MarkRead(c, unread[19]); err != nil {
			t.Fatal(err)
		}
		if convs, err = b.svc.Convs(); err != nil || convs[0].Unread != 30 {
			t.Errorf("%+v, %v: want 30 unread", convs, err)
		}
		page, err := a.svc.History(c, nil, 50)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.await(t, page[19], StateRead); got.Read != 1 || got.Delivered != 1 {
			t.Errorf("%+v", got)
		}
		synctest.Wait()
		if page, err = a.svc.History(c, nil, 50); err != nil || page[19].State != StateRead || page[20].State != StateDelivered {
			t.Errorf("line 19 is %s, line 20 is %s, %v", page[19].State, page[20].State, err)
		}
		answer := b.send(t, c, "answer")
		b.await(t, answer, StateDelivered)
		if diff := l.difference(t, c); diff != "" {
			t.Error(diff)
		}
		if err := b.svc.MarkRead(c, Message{Seq: 7}); !errors.Is(err, ErrNotKept) {
			t.Errorf("up to nothing: %v", err)
		}
	})
}

// TestAwayAndBack writes to a device that is away, through restarts of both.
func TestAwayAndBack(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		a.start()
		a.send(t, c, "one")
		a.kill()
		two := a.send(t, c, "two")
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := a.svc.Wait(short, two, StateSent); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("delivered to nobody: %v", err)
		}
		if convs, err := a.svc.Convs(); err != nil || convs[0].Kept != 2 {
			t.Errorf("%+v, %v: want 2 kept", convs, err)
		}
		b.start()
		l.connectAll()
		a.await(t, two, StateDelivered)
		if got := b.texts(t, c); !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("got %q", got)
		}
		if convs, err := a.svc.Convs(); err != nil || convs[0].Kept != 0 {
			t.Errorf("%+v, %v: want none kept", convs, err)
		}
		l.connect(0, 1, false)
		a.stop()
		a.start() // it still knows what has been delivered
		if page, err := a.svc.History(c, nil, 10); err != nil || page[1].State != StateDelivered {
			t.Errorf("after a restart: %+v, %v", page, err)
		}
	})
}

// TestBreaks has connections break of which nobody says so.
func TestBreaks(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		l.connectAll()
		for i := range 20 {
			m, answer := a.send(t, c, fmt.Sprint("a ", i)), b.send(t, c, fmt.Sprint("b ", i))
			if i%2 == 0 {
				synctest.Wait()
			}
			l.breakOff(0, 1)
			a.await(t, m, StateDelivered)
			b.await(t, answer, StateDelivered)
		}
		if diff := l.difference(t, c); diff != "" {
			t.Error(diff)
		}
	})
}

// TestLostStore has a device lose its store, or get an old one back. It writes a new log,
// and is given back what the other one has.
func TestLostStore(t *testing.T) {
	for name, keep := range map[string]int{"lost": 0, "old": 3} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, l *lab) {
				a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
				l.startAll()
				l.connectAll()
				old := newMemDisk(9)
				var last Message
				for i := range 6 {
					if i == keep {
						synctest.Wait()
						old = a.disk.copyOf()
					}
					last = a.send(t, c, fmt.Sprint("before ", i))
				}
				a.await(t, last, StateDelivered)
				l.connect(0, 1, false)
				a.stop()
				a.disk = old
				a.start()
				m := a.send(t, c, "after") // not knowing better
				if m.Log == last.Log {
					t.Fatal("an old log goes on")
				}
				l.connect(0, 1, true)
				a.await(t, m, StateDelivered)
				b.await(t, b.send(t, c, "answer"), StateDelivered)
				pass(time.Second)
				if diff := l.difference(t, c); diff != "" {
					t.Error(diff)
				}
				got := a.texts(t, c)
				if len(got) != 8 {
					t.Errorf("%d lines: %q", len(got), got)
				}
				for i := range 6 {
					if !slices.Contains(got, fmt.Sprint("before ", i)) {
						t.Errorf("line %d is lost: %q", i, got)
					}
				}
			})
		})
	}
}

func TestErrors(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, c := l.nodes[0], l.pair(0, 1)
		a.start()
		for _, bad := range []string{"", "  \t", strings.Repeat("x", MaxText+1), "\x1b\x07", string([]byte{0xff, 0xfe})} {
			if _, err := a.svc.Send(t.Context(), c, bad); !errors.Is(err, ErrText) {
				t.Errorf("%q: %v, want ErrText", bad, err)
			}
		}
		for _, bad := range []FileRef{{}, {Name: strings.Repeat("x", 256)}, {Name: "x", Size: -2}, {Name: "x", Offer: strings.Repeat("x", 65)}} {
			if _, err := a.svc.SendFile(t.Context(), c, bad); err == nil {
				t.Errorf("%+v was offered", bad)
			}
		}
		if _, err := a.svc.Send(t.Context(), ConvID{9}, "hello"); !errors.Is(err, ErrNoConv) {
			t.Errorf("no conversation: %v", err)
		}
		a.disk.full = true
		if m, err := a.svc.Send(t.Context(), c, "hello"); err == nil {
			t.Errorf("a full disk took %+v", m)
		}
		a.disk.full = false
		if m := a.send(t, c, "hello"); m.Seq != 1 {
			t.Errorf("after a full disk: %+v", m)
		}
		s := a.svc
		a.stop()
		if _, err := s.Send(t.Context(), c, "late"); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"hello":                      "hello",
		"\x1b[31mred\x1b[0m":         "[31mred[0m",
		"a\nb\rc\td":                 "a b c d",
		"abc\u202egnp.exe":           "abcgnp.exe",
		"zero\u200bwidth":            "zerowidth",
		"👩\u200d🚀 family":            "👩\u200d🚀 family",
		"  trimmed  ":                "trimmed",
		"\u2066isolated\u2069":       "isolated",
		"\x00\x07\x7f\u0085":         "",
		"bell\a and \x9bcsi":         "bell and csi",
		strings.Repeat("é", MaxText): strings.Repeat("é", MaxText/2),
	} {
		if got := CleanText(in); got != want {
			t.Errorf("%.30q became %.30q, want %.30q", in, got, want)
		}
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("hello\x1b[2J")
	f.Fuzz(func(t *testing.T, in string) {
		got := CleanText(in)
		if len(got) > MaxText || strings.ContainsFunc(got, func(r rune) bool { return unicode.IsControl(r) }) || CleanText(got) != got {
			t.Fatalf("%q became %q", in, got)
		}
	})
}
