package chat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// noteTo sends notes straight to another device.
func noteTo(t *testing.T, from, to *node) func(context.Context, []byte) error {
	return func(_ context.Context, note []byte) error {
		if len(note) == 0 || len(note) > MaxPart {
			t.Errorf("a note of %d bytes", len(note))
		}
		if !to.svc.TakeNote(from.id.ID(), note) {
			return errors.New("not taken")
		}
		return nil
	}
}

// TestNotesCarryLines sends lines of all lengths as notes. They are the same entries
// when the two are connected.
func TestNotesCarryLines(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, b, c := l.nodes[0], l.nodes[1], l.pair(0, 1)
		l.startAll()
		want := []string{"kept before", "hello", strings.Repeat("x", MaxPart-noteHeader), strings.Repeat("x", MaxPart), strings.Repeat("é", MaxText/2)}
		a.send(t, c, want[0])
		for i, text := range want[1:] {
			m, err := a.svc.SendNotes(t.Context(), c, text, noteTo(t, a, b))
			if err != nil || m.State != StateDelivered || m.Text != text {
				t.Fatalf("%+v, %v", m, err)
			}
			if got := b.texts(t, c); !slices.Equal(got, want[:i+2]) {
				t.Errorf("got %.40q", got)
			}
			b.kill() // nothing is lost
			if got := b.texts(t, c); !slices.Equal(got, want[:i+2]) {
				t.Errorf("after a kill: got %.40q", got)
			}
		}
		for _, text := range []string{"", " ", "\x1b", strings.Repeat("x", MaxText+1), "\xff"} {
			if _, err := a.svc.SendNotes(t.Context(), c, text, noteTo(t, a, b)); !errors.Is(err, ErrText) {
				t.Errorf("%.10q: %v", text, err)
			}
		}
		failed := errors.New("nobody there")
		if _, err := a.svc.SendNotes(t.Context(), c, "kept after", func(context.Context, []byte) error { return failed }); !errors.Is(err, failed) {
			t.Errorf("not sent: %v", err)
		}
		l.connectAll()
		pass(time.Second)
		if got := b.texts(t, c); !slices.Equal(got, append(want, "kept after")) {
			t.Errorf("got %.40q", got)
		}
		s := b.svc
		b.stop()
		if s.TakeNote(a.id.ID(), []byte{noteKind}) {
			t.Error("a note was taken after Close")
		}
	})
}

// TestNotesOfRooms refuses to send a room's lines so.
func TestNotesOfRooms(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c := l.room()
		l.startAll()
		if _, err := l.nodes[0].svc.SendNotes(t.Context(), c, "x", noteTo(t, l.nodes[0], l.nodes[1])); !errors.Is(err, ErrNoConv) {
			t.Errorf("got %v", err)
		}
		if got := l.nodes[0].texts(t, c); len(got) != 0 {
			t.Errorf("it is kept all the same: %q", got)
		}
	})
}

// TestPartsThatDoNotFit takes parts of which some are missing or made up.
func TestPartsThatDoNotFit(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		c := l.pair(0, 1)
		f := &foe{n: l.nodes[1]}
		parts := func(e *entry) [][]byte { return split(e.encode()) }
		long, next := strings.Repeat("long ", 400), "next"
		one, two := parts(f.entry(c, 1, 1, 1, long)), parts(f.entry(c, 1, 1, 1, next))
		forged := f.entry(c, 1, 1, 1, "forged")
		forged.body = []byte("jorged")
		other := f.entry(c, 1, 1, 1, "of another")
		other.author = l.nodes[2].id.ID()
		for name, c := range map[string]struct {
			notes [][]byte
			want  []string
			left  bool // the last is to come again
		}{
			"whole":                {one, []string{strings.TrimSpace(long)}, false},
			"twice":                {slices.Concat(one, one), []string{strings.TrimSpace(long)}, false},
			"the end is missing":   {slices.Concat(one[:1], two), []string{next}, false},
			"no start":             {slices.Concat(one[1:], two), []string{next}, false},
			"the middle is out":    {[][]byte{one[0], one[2], one[1]}, nil, false},
			"of another line":      {[][]byte{one[0], two[0]}, []string{next}, false},
			"another kind":         {[][]byte{append([]byte{9}, two[0][1:]...)}, nil, false},
			"of the first version": {[][]byte{append([]byte{1}, two[0][1:]...)}, nil, false},
			"short":                {[][]byte{nil, {noteKind}}, nil, false},
			"another name":         {[][]byte{slices.Concat(two[0][:3], make([]byte, 8), two[0][noteHeader:])}, nil, false},
			"nothing signed":       {parts(forged), nil, false},
			"of another device":    {parts(other), nil, false},
			"after a gap":          {parts(f.entry(c, 1, 2, 2, "two")), nil, true},
		} {
			a := l.nodes[0]
			a.disk = newMemDisk(1)
			a.start()
			for i, n := range c.notes {
				last := i == len(c.notes)-1
				if taken := a.svc.TakeNote(f.n.id.ID(), n); taken == (c.left && last) {
					t.Errorf("%s: note %d was dealt with: %v", name, i, taken)
				}
			}
			if got := a.texts(t, l.pair(0, 1)); !slices.Equal(got, c.want) {
				t.Errorf("%s: got %.40q, want %.40q", name, got, c.want)
			}
			a.stop()
		}
	})
}

func FuzzTakeNote(f *testing.F) {
	for _, n := range split(bytes.Repeat([]byte("x"), 1500)) {
		f.Add(n, n)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var p pendingNote
		for _, n := range [][]byte{first, second, second} {
			raw := p.add(n)
			if len(p.raw) > maxParts*MaxPart || p.raw != nil && p.next > p.parts {
				t.Fatalf("%+v waits", p)
			}
			if sum := sha256.Sum256(raw); raw != nil && !bytes.Equal(sum[:8], p.name[:]) {
				t.Fatalf("an entry of %d bytes by another name", len(raw))
			}
		}
	})
}
