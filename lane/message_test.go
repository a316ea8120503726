package lane

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

func sampleOffer() offered {
	o := offered{to: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("[2001:db8::1]:1")}}
	for i := range o.key {
		o.key[i], o.token[i] = byte(i), byte(255-i)
	}
	return o
}

func seeds(f *testing.F, message []byte) {
	f.Add(message)
	f.Add(message[:len(message)-1])
	f.Add(append(bytes.Clone(message), 0))
	f.Add([]byte{})
}

func FuzzAsk(f *testing.F) {
	a := ask{kind: "forward:8080", invite: sampleOffer()}
	seeds(f, a.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAsk(b)
		if err != nil {
			return
		}
		if !validKind(a.kind) || len(a.invite.to) > maxEndpoints {
			t.Errorf("kind %q, %d endpoints", a.kind, len(a.invite.to))
		}
		if got := a.encode(); !bytes.Equal(got, b) || len(got) > maxMessage {
			t.Errorf("%x is read as %x", b, got)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	a := answer{invite: sampleOffer()}
	seeds(f, a.encode())
	refused := answer{status: statusRefused}
	seeds(f, refused.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err == nil && !bytes.Equal(a.encode(), b) {
			t.Errorf("%x is read as %x", b, a.encode())
		}
	})
}

func FuzzReport(f *testing.F) {
	r := report{{0, ReasonTimeout}, {7, ReasonRefused}}
	seeds(f, r.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReport(b)
		if err == nil && (!bytes.Equal(r.encode(), b) || len(r) > maxEndpoints) {
			t.Errorf("%x is read as %x", b, r.encode())
		}
		for _, f := range r {
			if f.reason.String() == "" {
				t.Errorf("reason %d has no name", f.reason)
			}
		}
	})
}

// FuzzReadMessage holds that a length is believed only up to maxMessage.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 2, 1, 2, 3})
	f.Add([]byte{4, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeMessage(&out, m); err != nil || !bytes.HasPrefix(b, out.Bytes()) {
			t.Errorf("%x is read as %x", b, m)
		}
	})
}

func TestMessages(t *testing.T) {
	a := ask{kind: "files", invite: sampleOffer()}
	got, err := parseAsk(a.encode())
	if err != nil || got.kind != a.kind || got.invite.token != a.invite.token || got.invite.key != a.invite.key || len(got.invite.to) != 2 || got.invite.to[1] != a.invite.to[1] {
		t.Errorf("%v, %v", got, err)
	}
	for name, spoil := range map[string]func(*ask){
		"no kind":          func(a *ask) { a.kind = "" },
		"a long kind":      func(a *ask) { a.kind = string(bytes.Repeat([]byte("x"), MaxKind+1)) },
		"an escape":        func(a *ask) { a.kind = "a\x1b[2J" },
		"many endpoints":   func(a *ask) { a.invite.to = make([]netip.AddrPort, maxEndpoints+1) },
		"no address":       func(a *ask) { a.invite.to = []netip.AddrPort{{}} },
		"port zero":        func(a *ask) { a.invite.to = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:0")} },
		"a mapped address": func(a *ask) { a.invite.to = []netip.AddrPort{netip.MustParseAddrPort("[::ffff:192.0.2.1]:9")} },
	} {
		bad := ask{kind: "files", invite: sampleOffer()}
		spoil(&bad)
		if _, err := parseAsk(bad.encode()); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

// TestLedger holds the life of an invitation, by a clock of its own.
func TestLedger(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var l ledger
	add := func() *invite {
		i, err := newInvite(now)
		if err != nil {
			t.Fatal(err)
		}
		l.add(i)
		return i
	}
	a, b, c := add(), add(), add()
	if a.name == b.name || a.token == b.token {
		t.Error("two invitations are the same")
	}
	just := now.Add(inviteLife - 1)
	if l.call(a.name, just) != a || l.call(a.name, now.Add(inviteLife)) != nil || l.call("", now) != nil {
		t.Error("an invitation does not last as long as it should")
	}
	if !l.spend(a, just) || l.spend(a, just) || l.call(a.name, now) != nil {
		t.Error("an invitation can be used twice, or never")
	}
	if l.spend(b, now.Add(inviteLife)) {
		t.Error("an expired invitation was used")
	}
	for range maxCalls {
		if l.call(c.name, now) != c {
			t.Fatal("an invitation was called too seldom")
		}
	}
	if l.call(c.name, now) != nil {
		t.Error("an invitation was called too often")
	}
	l.remove(c)
	if l.spend(c, now) {
		t.Error("a removed invitation was used")
	}
}
