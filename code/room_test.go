package code

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func roomID(n int) [RoomIDSize]byte {
	sum := sha256.Sum256([]byte(fmt.Sprint("room ", n)))
	return [RoomIDSize]byte(sum[:])
}

func mustRoom(t testing.TB, id [RoomIDSize]byte, opts RoomOptions) Room {
	t.Helper()
	r, err := NewRoom(id, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRoomForms(t *testing.T) {
	opts := RoomOptions{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.168.1.2:4000"), netip.MustParseAddrPort("8.8.8.8:53")}, Hints: []string{"hub=hub.example"}}
	id := roomID(1)
	r := mustRoom(t, id, opts)
	keys, err := r.Keys()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{r.Words(), strings.ToUpper(r.Words()), r.URI(), strings.ToLower(r.URI()), "<" + r.URI() + ">"} {
		got, err := ParseRoom(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		gotID, ok := got.ID()
		if !ok || gotID != id || !got.Equal(r) {
			t.Errorf("%q is another room", text)
		}
		k, err := got.Keys()
		if err != nil || k.Topic != keys.Topic || k.Frame != keys.Frame || k.PSK != keys.PSK {
			t.Errorf("%q has other keys: %v", text, err)
		}
	}
	uri, err := ParseRoom(r.URI())
	if err != nil {
		t.Fatal(err)
	}
	if uri.Method() != RoomURI || len(uri.Endpoints()) != 1 || len(uri.Hints()) != 1 || r.Short() != "" {
		t.Errorf("the URI says %v %v %v", uri.Method(), uri.Endpoints(), uri.Hints())
	}
	b64 := "kith:r1#" + base64Text.EncodeToString(r.get().encode())
	if got, err := ParseRoom(b64); err != nil || !got.Equal(r) {
		t.Errorf("base64url: %v", err)
	}
	if _, err := r.QR(); err != nil {
		t.Error(err)
	}
	if _, err := (Room{}).Keys(); !errors.Is(err, ErrNone) {
		t.Errorf("no room has keys: %v", err)
	}
	if _, err := NewRoom(id, RoomOptions{Hints: []string{"http://x"}}); err == nil {
		t.Error("a web link was taken as a hint")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, r); got != redacted {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func TestRoomShort(t *testing.T) {
	seen := make(map[string]bool)
	for range 50 {
		r, err := NewRoomShort(nil)
		if err != nil {
			t.Fatal(err)
		}
		seen[r.Short()] = true
		got, err := ParseRoom(r.Short())
		if err != nil || !got.Equal(r) || got.Method() != RoomShort || len(got.Nameplate()) != 7 {
			t.Fatalf("%q: %v", r.Short(), err)
		}
		if _, ok := got.ID(); ok || got.Words() != "" || got.URI() != "" {
			t.Error("a short code says which room it is")
		}
		plate := []byte(r.Nameplate())
		for i := range plate { // every single wrong digit
			wrong := bytes.Clone(plate)
			wrong[i] = '0' + (wrong[i]-'0'+1)%10
			if _, err := ParseRoom(string(wrong)); kindOf(err) != KindDigitSum {
				t.Errorf("%s for %s: %v", wrong, plate, err)
			}
		}
	}
	if len(seen) < 45 {
		t.Errorf("only %d different codes of 50", len(seen))
	}
	if _, err := NewRoomShort(bytes.NewReader(bytes.Repeat([]byte{255}, 2000))); err == nil {
		t.Error("a broken source was taken")
	}
	a, b := mustShort(t), mustShort(t)
	ka, err := a.Keys()
	if err != nil {
		t.Fatal(err)
	}
	kb, err := b.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if !a.Equal(b) && ka.Topic == kb.Topic {
		t.Error("two codes share a topic")
	}
	if a.Equal(mustRoom(t, roomID(1), RoomOptions{})) {
		t.Error("a short code equals a long one")
	}
}

func mustShort(t testing.TB) Room {
	t.Helper()
	r, err := NewRoomShort(nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func kindOf(err error) Kind {
	var e *ParseError
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

// TestRoomIsNoPairing: each kind of code, given where the other is wanted, is
// told apart with a hint that names the command.
func TestRoomIsNoPairing(t *testing.T) {
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	unclear := 0
	for i := range 200 {
		id := roomID(i)
		if RoomWordsUnclear(id) {
			unclear++
			continue
		}
		_, err := Parse(mustRoom(t, id, RoomOptions{}).Words(), now)
		if kindOf(err) != KindRoom {
			t.Fatalf("a room's words as a pairing's: %v", err)
		}
	}
	if unclear == 0 || unclear > 40 {
		t.Errorf("%d of 200 ids have unclear words, about 12 expected", unclear)
	}
	pairing, err := New(MethodWords, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	number, err := New(MethodNumber, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	id := roomID(0)
	for RoomWordsUnclear(id) {
		id[0]++
	}
	room := mustRoom(t, id, RoomOptions{})
	parseRoom := func(s string) error { _, err := ParseRoom(s); return err }
	parsePair := func(s string) error { _, err := Parse(s, now); return err }
	for name, c := range map[string]struct {
		parse func(string) error
		text  string
		want  Kind
		hint  string
	}{
		"room's words":      {parsePair, room.Words(), KindRoom, "kith room join"},
		"room's URI":        {parsePair, room.URI(), KindRoom, "kith room join"},
		"room's base64":     {parsePair, "kith:r1#" + base64Text.EncodeToString(room.get().encode()), KindRoom, "kith room join"},
		"room's cut URI":    {parsePair, room.URI()[:20], KindRoom, "kith room join"},
		"room's short code": {parsePair, mustShort(t).Short(), KindRoom, "kith room join"},
		"pairing's URI":     {parseRoom, pairing.URI(), KindPairing, "kith join"},
		"pairing's number":  {parseRoom, number.Number(), KindPairing, "kith join"},
		"later room":        {parseRoom, "KITH:R2/AAAA", KindVersion, "update"},
		"later pairing":     {parseRoom, "KITH:2/AAAA", KindVersion, "update"},
		"a web link":        {parseRoom, "https://example.com/x", KindLink, "7 digits"},
		"nothing":           {parseRoom, "  ", KindEmpty, "7 digits"},
		"six digits":        {parseRoom, "123456", KindDigitCount, "7 digits"},
		"a long text":       {parseRoom, strings.Repeat("x", maxText+1), KindTooLong, "7 digits"},
	} {
		err := c.parse(c.text)
		var e *ParseError
		if !errors.As(err, &e) || e.Kind != c.want || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 100 { // words of a pairing that are not by chance also a room's
		p, err := New(MethodWords, Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		if RoomWordsUnclear(p.get().secret) {
			continue
		}
		if err := parseRoom(p.Words()); kindOf(err) != KindPairing || !strings.Contains(err.(*ParseError).Hint, "kith join") {
			t.Errorf("a pairing's words as a room's: %v", err)
		}
	}
	expiring := (&payload{secret: id, expiry: now}).encode()
	if err := parseRoom("kith:r1#" + base64Text.EncodeToString(expiring)); kindOf(err) != KindURI {
		t.Errorf("a room's URI with an expiry: %v", err)
	}
}

func FuzzParseRoom(f *testing.F) {
	r := mustRoom(f, roomID(3), RoomOptions{Hints: []string{"hub=x"}})
	for _, s := range []string{r.Words(), r.URI(), mustShort(f).Short(), "kith:r1#", "KITH:R1/", "1. abandon"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRoom(text)
		if err != nil {
			if kindOf(err) == 0 || !r.IsZero() {
				t.Errorf("%v with a room, or no ParseError", err)
			}
			return
		}
		back := r.URI()
		if r.Method() == RoomShort {
			back = r.Short()
		}
		again, err := ParseRoom(back)
		if err != nil || !again.Equal(r) {
			t.Errorf("%q does not come back: %v", back, err)
		}
		if _, err := Parse(back, time.Time{}); kindOf(err) != KindRoom {
			t.Errorf("%q is also a pairing's: %v", back, err)
		}
	})
}
