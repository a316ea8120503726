package paper_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/paper"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func frame(fill byte) []byte { return bytes.Repeat([]byte{fill}, rendezvous.FrameSize) }

func join(t *testing.T, e *paper.Exchange, p rendezvous.Point) rendezvous.Session {
	t.Helper()
	s, err := e.Join(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func publish(t *testing.T, s rendezvous.Session, fills ...byte) {
	t.Helper()
	for _, f := range fills {
		if err := s.Publish(t.Context(), frame(f)); err != nil {
			t.Fatal(err)
		}
	}
}

func take(t *testing.T, e *paper.Exchange) paper.Note {
	t.Helper()
	n, err := e.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fills returns the frames of a note by their first bytes.
func fills(n paper.Note) string {
	var out []byte
	for _, f := range n.Frames {
		out = append(out, f.Data[0])
	}
	return string(out)
}

// TestTurns holds that what is said in one go is one note, that what is said again
// meanwhile is no new one, and that the other side's note makes room for the next.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := paper.New(), paper.New()
		point := rendezvous.Point{Topic: rendezvous.Topic{7}}
		sa, sb := join(t, a, point), join(t, b, point)
		publish(t, sa, 'a', 'b')
		first := take(t, a)
		if fills(first) != "ab" {
			t.Fatalf("first note %q", fills(first))
		}
		publish(t, sa, 'a') // a retransmission
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if n, err := a.Take(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a note %q, %v before the other side's", fills(n), err)
		}
		if err := a.Give(first); !errors.Is(err, paper.ErrOwn) {
			t.Fatalf("its own note: %v", err)
		}
		if err := b.Give(first); err != nil {
			t.Fatal(err)
		}
		for _, want := range "ab" {
			m, err := sb.Receive(t.Context())
			if err != nil || m.Frame[0] != byte(want) || m.Exchange != "paper" {
				t.Fatalf("got %v, %v", m, err)
			}
		}
		publish(t, sb, 'c')
		if err := a.Give(take(t, b)); err != nil {
			t.Fatal(err)
		}
		publish(t, sa, '1', '2', '3', '4', '5')
		if got := fills(take(t, a)); got != "2345" {
			t.Errorf("note %q, want the newest four", got)
		}
	})
}

func TestForms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := paper.New()
		s := join(t, e, rendezvous.Point{Topic: rendezvous.Topic{7}})
		publish(t, s, 'x', 'y')
		n := take(t, e)
		text := n.Text()
		for name, form := range map[string]string{
			"as it is": text, "in a mail": "Hi,\n\n" + strings.ReplaceAll(text, "\n", "\r\n") + "\nBye\n",
			"after another block": "-----BEGIN X-----\nAAAA\n-----END X-----\n" + text,
		} {
			got, err := paper.Parse(form)
			if err != nil || fills(got) != "xy" || got.Frames[0].Tag != n.Frames[0].Tag {
				t.Errorf("%s: %q, %v", name, fills(got), err)
			}
		}
		for i, code := range n.QR() {
			got, err := paper.Parse(strings.ToLower(code[:40]) + "\n" + code[40:])
			if err != nil || fills(got) != "xy"[i:i+1] {
				t.Errorf("code %d: %q, %v", i, fills(got), err)
			}
		}
		for name, bad := range map[string]string{
			"nothing": "", "a word": "hello", "half": text[:len(text)/2], "half a code": n.QR()[0][:200],
			"changed":  strings.Replace(text, "eHh4", "eHh5", 1),
			"too long": strings.Repeat("x", paper.MaxText+1),
		} {
			if _, err := paper.Parse(bad); !errors.Is(err, paper.ErrNote) {
				t.Errorf("%s: %v, want ErrNote", name, err)
			}
		}
	})
}

func TestOtherPairing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := paper.New(), paper.New()
		sa := join(t, a, rendezvous.Point{Topic: rendezvous.Topic{1}})
		sb := join(t, b, rendezvous.Point{Topic: rendezvous.Topic{2}})
		publish(t, sa, 'a')
		publish(t, sb, 'b')
		n := take(t, a)
		if bytes.Contains([]byte(n.Text()), n.Frames[0].Tag[:]) || n.Frames[0].Tag == (rendezvous.Topic{1}).Tag() {
			t.Error("the topic stands on the note")
		}
		if err := b.Give(n); !errors.Is(err, paper.ErrOther) {
			t.Errorf("give: %v, want ErrOther", err)
		}
		if got := fills(take(t, b)); got != "b" {
			t.Errorf("the wrong note took %q away", got)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Take(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("take: %v", err)
		}
		if err := a.Give(n); !errors.Is(err, net.ErrClosed) {
			t.Errorf("give: %v", err)
		}
		if err := sa.Publish(t.Context(), frame(1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("publish: %v", err)
		}
		if _, err := a.Join(t.Context(), rendezvous.Point{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("join: %v", err)
		}
	})
}

func FuzzParse(f *testing.F) {
	e := paper.New()
	s, err := e.Join(f.Context(), rendezvous.Point{})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Publish(f.Context(), frame('z')); err != nil {
		f.Fatal(err)
	}
	n, err := e.Take(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(n.Text())
	f.Add(n.QR()[0])
	f.Add("KITH:NOTE/")
	f.Add("-----BEGIN KITH NOTE-----\n\n-----END KITH NOTE-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := paper.Parse(text)
		if err != nil {
			return
		}
		if again, err := paper.Parse(n.Text()); err != nil || len(again.Frames) != len(n.Frames) {
			t.Errorf("not the same after Text: %v", err)
		}
	})
}
