package code

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// FuzzParse: whatever is read as a code is read as the same code from the
// canonical text of its form, and not as another form.
func FuzzParse(f *testing.F) {
	offer := mustNew(f, MethodQR, Options{Commit: [16]byte{1}, Endpoints: endpoints("10.0.0.1:1"), Hints: []string{"a"}})
	for _, text := range []string{
		someWords, someNumber, offer.URI(), "kith:1#" + base64Text.EncodeToString(offer.get().encode()), "",
		"1. legal 2. winner", "1234-legal-winner-thank", "https://example.org", "ﬁ ｌ ١", "kith:2/A", strings.ToUpper(someWords),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text, time.Time{})
		if (err == nil) == c.IsZero() {
			t.Fatalf("a code of method %v and error %v", c.Method(), err)
		}
		if err != nil {
			e, ok := errors.AsType[*ParseError](err)
			if !ok || e.Hint == "" || e.Kind == 0 || e.Kind > KindRoom || len(e.Suggestions) > 4 || len(e.Word) > 32 {
				t.Fatalf("not a whole ParseError: %v", err)
			}
			return
		}
		set := 0
		for m, form := range map[Method]string{MethodWords: c.Words(), MethodQR: c.URI(), MethodNumber: c.Number()} {
			if form == "" {
				continue
			}
			set++
			again, err := Parse(form, time.Time{})
			if err != nil || again.Method() != m || !again.Equal(c) {
				t.Fatalf("%v: %v, %v", m, again.Method(), err)
			}
		}
		if want := map[Method]int{MethodWords: 2, MethodQR: 2, MethodNumber: 1}[c.Method()]; set != want {
			t.Fatalf("method %v has %d forms", c.Method(), set)
		}
	})
}

// FuzzPayload: what is read from the bytes of a URI is written back as bytes
// that say the same.
func FuzzPayload(f *testing.F) {
	offer := mustNew(f, MethodQR, Options{Commit: [16]byte{1}, Endpoints: endpoints("10.0.0.1:1", "[fd00::1]:2"), Hints: []string{"a", "b"}})
	f.Add(offer.get().encode())
	f.Add([]byte("\x01\x10" + secret16))
	f.Add([]byte("\x01\x10" + secret16 + "\x06\x00\x80\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := decode(raw)
		if err != nil {
			return
		}
		if len(p.endpoints) > MaxEndpoints || len(p.hints) > MaxHints {
			t.Fatalf("%d endpoints, %d hints", len(p.endpoints), len(p.hints))
		}
		for _, e := range p.endpoints {
			if !LocalEndpoint(e) {
				t.Fatalf("endpoint %v", e)
			}
		}
		again, err := decode(p.encode())
		if err != nil || string(again.encode()) != string(p.encode()) || again.secret != p.secret {
			t.Fatalf("does not come back: %v", err)
		}
	})
}
