package chat

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// noteTo sends notes straight to another service.
func noteTo(t *testing.T, s *Service) func(context.Context, []byte) error {
	return func(_ context.Context, note []byte) error {
		if len(note) == 0 || len(note) > MaxPart {
			t.Errorf("a note of %d bytes", len(note))
		}
		if !s.TakeNote("desk", note) {
			return errors.New("not taken")
		}
		return nil
	}
}

func newNoteService(t *testing.T) *Service {
	t.Helper()
	s, _ := serve(t, nil)
	return s
}

// TestNotesCarryLines sends lines of all lengths as notes, and reads them as others.
func TestNotesCarryLines(t *testing.T) {
	s := newNoteService(t)
	r := s.Read("desk")
	defer r.Close()
	before := time.Now()
	for _, text := range []string{"hello", strings.Repeat("x", MaxPart-noteHeader), strings.Repeat("x", MaxPart-noteHeader+1), strings.Repeat("é", MaxText/2)} {
		m, err := s.SendNotes(t.Context(), "laptop", text, noteTo(t, s))
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Text != text || got.Peer != "desk" || got.Mine || !got.Time.Equal(m.Time) || m.Time.Before(before.Add(-time.Second)) || !m.Mine {
			t.Errorf("sent %+v, got %+v", m, got)
		}
	}
	for _, text := range []string{"", " ", "\x1b", strings.Repeat("x", MaxText+1), "\xff"} {
		if _, err := s.SendNotes(t.Context(), "laptop", text, noteTo(t, s)); !errors.Is(err, ErrText) {
			t.Errorf("%.10q: %v", text, err)
		}
	}
	failed := errors.New("nobody there")
	if _, err := s.SendNotes(t.Context(), "laptop", "x", func(context.Context, []byte) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("not sent: %v", err)
	}
}

// TestPartsThatDoNotFit takes parts of which some are missing or made up.
func TestPartsThatDoNotFit(t *testing.T) {
	part := func(i, of byte, stamp uint64, text string) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{noteKind, i, of}, stamp), text...)
	}
	for name, c := range map[string]struct {
		notes [][]byte
		want  []string
	}{
		"whole":              {[][]byte{part(0, 2, 1, "a"), part(1, 2, 1, "b")}, []string{"ab"}},
		"the end is missing": {[][]byte{part(0, 2, 1, "a"), part(0, 1, 2, "next")}, []string{"next"}},
		"no start":           {[][]byte{part(1, 2, 1, "b"), part(0, 1, 2, "next")}, []string{"next"}},
		"the middle is out":  {[][]byte{part(0, 3, 1, "a"), part(2, 3, 1, "c"), part(1, 3, 1, "b")}, nil},
		"of another line":    {[][]byte{part(0, 2, 1, "a"), part(1, 2, 2, "b")}, nil},
		"of another length":  {[][]byte{part(0, 3, 1, "a"), part(1, 2, 1, "b")}, nil},
		"too many":           {[][]byte{part(0, maxParts+1, 1, "a")}, nil},
		"of none":            {[][]byte{part(0, 0, 1, "a")}, nil},
		"no text":            {[][]byte{part(0, 1, 1, "")}, nil},
		"another kind":       {[][]byte{append([]byte{9}, part(0, 1, 1, "a")[1:]...)}, nil},
		"short":              {[][]byte{nil, {noteKind}}, nil},
		"controls":           {[][]byte{part(0, 1, 1, "a\x1b[31mb\u202e")}, []string{"a[31mb"}},
		"in no year":         {[][]byte{part(0, 1, 1<<64-1, "a")}, []string{"a"}},
	} {
		s := newNoteService(t)
		r := s.Read("desk")
		for _, n := range c.notes {
			if !s.TakeNote("desk", n) {
				t.Errorf("%s: a note was not dealt with", name)
			}
		}
		var got []string
		for _, m := range r.Drain() {
			got = append(got, m.Text)
			if _, err := m.Time.MarshalJSON(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		r.Close()
		s.Close()
		if s.TakeNote("desk", part(0, 1, 1, "late")) {
			t.Errorf("%s: a note was taken after Close", name)
		}
	}
}

func FuzzTakeNote(f *testing.F) {
	for _, n := range split(Line{Text: strings.Repeat("x", 1500), Time: time.Unix(1e9, 0)}) {
		f.Add(n, n)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var p pending
		for _, n := range [][]byte{first, second} {
			text, _, done := p.add(n)
			if !done && (p.text == nil || len(p.text) > maxParts*MaxPart || p.next >= p.parts) {
				t.Fatalf("%+v waits", p)
			}
			if len(text) > maxParts*MaxPart {
				t.Fatalf("a line of %d bytes", len(text))
			}
		}
	})
}
