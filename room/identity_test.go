package room

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

// openHandshake is one without a password between a host and whoever holds the
// joiner's secrets, up to where j3 is due.
func openHandshake(t *testing.T) (n *network, h *side, s *secrets, sid wire.SID) {
	t.Helper()
	n = newNetwork(t)
	r := found(t, "host", Open)
	h = n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	j := n.addJoiner("eve", JoinerConfig{Code: longCode(t, r.Room)})
	n.drop = func(p packet) bool {
		f, err := h.host.sealers[0].Open(p.frame)
		return err == nil && f.Type == frameJ3
	}
	n.run(time.Second, func() bool { return len(j.joiner.claims) > 0 && j.joiner.claims[0].j3 != nil })
	return n, h, j.joiner.claims[0].s, j.joiner.start.sid
}

// ask sends a host a request made by hand.
func ask(t *testing.T, n *network, h *side, s *secrets, sid wire.SID, claimed identity.DeviceID, signer *identity.Identity, body []byte) {
	t.Helper()
	yJ := noPoint[:]
	plain := bytes.Join([][]byte{claimed[:], signer.Sign(s.requestProof(yJ, claimed, body)), body}, nil)
	sealed, err := once(wire.Expand(s.key, "room k joiner->host"), s.requestAD(yJ), plain, true)
	if err != nil {
		t.Fatal(err)
	}
	j3 := append(bytes.Clone(yJ), sealed...)
	raw, err := h.host.sealers[0].Seal(rand.Reader, wire.Frame{Type: frameJ3, SID: sid, Body: append(j3, s.tag(j3)...)})
	if err != nil {
		t.Fatal(err)
	}
	n.deliver(h, packet{nil, TopicLong, raw})
}

func requestOf(t *testing.T, name string) []byte {
	t.Helper()
	body, err := encodeRequest(device(t, name), infoOf(name), wire.Day(start))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestBorrowedIdentity: a device asks under another's id, with another's
// WireGuard key, or for two in one handshake.
func TestBorrowedIdentity(t *testing.T) {
	eve, bob := device(t, "eve"), device(t, "bob")
	t.Run("another's id", func(t *testing.T) {
		n, h, s, sid := openHandshake(t)
		ask(t, n, h, s, sid, bob.ID(), eve, requestOf(t, "bob"))
		if h.admission != 0 {
			t.Error("it was let in")
		}
	})
	t.Run("another's WireGuard key", func(t *testing.T) {
		n, h, s, sid := openHandshake(t)
		ask(t, n, h, s, sid, eve.ID(), eve, requestOf(t, "bob"))
		if h.admission != 0 {
			t.Error("it was let in")
		}
		if _, err := decodeRequest(eve.ID(), requestOf(t, "bob")); err == nil {
			t.Error("a key that another has signed was read")
		}
	})
	t.Run("two in one handshake", func(t *testing.T) {
		n, h, s, sid := openHandshake(t)
		ask(t, n, h, s, sid, eve.ID(), eve, requestOf(t, "eve"))
		ask(t, n, h, s, sid, bob.ID(), bob, requestOf(t, "bob"))
		if h.admission != 1 || h.admitted[eve.ID()] != 1 {
			t.Errorf("%d were let in", h.admission)
		}
	})
}

// TestBorrowedHost: an answer under the founder's id that the founder has not
// signed, for this joiner and this handshake.
func TestBorrowedHost(t *testing.T) {
	_, _, s, _ := openHandshake(t)
	host, eve, bob := device(t, "host"), device(t, "eve"), device(t, "bob")
	body := []byte("answer")
	hostID := host.ID()
	seal := func(signature []byte) []byte {
		sealed, err := wire.SealMessage(wire.Expand(s.key, "room k host->joiner"), s.h, bytes.Join([][]byte{hostID[:], signature, body}, nil), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	if _, _, err := s.readJ4(seal(host.Sign(s.answerProof(eve.ID(), body))), eve.ID()); err != nil {
		t.Fatalf("the host's own answer: %v", err)
	}
	other := *s
	other.h = bytes.Repeat([]byte{1}, 32)
	for name, sig := range map[string][]byte{
		"signed by another":     bob.Sign(s.answerProof(eve.ID(), body)),
		"for another joiner":    host.Sign(s.answerProof(bob.ID(), body)),
		"for another handshake": host.Sign(other.answerProof(eve.ID(), body)),
		"another answer":        host.Sign(s.answerProof(eve.ID(), []byte("other"))),
	} {
		if _, _, err := s.readJ4(seal(sig), eve.ID()); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestShortCodeHidesHost: who has only the nameplate does not learn the host's
// key, neither by a wrong password nor from a void code.
func TestShortCodeHidesHost(t *testing.T) {
	n := newNetwork(t)
	short := shortCode(t)
	r := found(t, "host", Password)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "right", Short: short})
	id := device(t, "host").ID()
	opened := 0
	for range 4 {
		j := n.addJoiner("eve", JoinerConfig{Code: short, Password: "wrong"})
		var claims []*claim
		n.alter = func(s *side, p packet) {
			f, err := h.host.sealers[1].Open(p.frame)
			if err != nil {
				t.Fatal(err)
			}
			if len(j.joiner.claims) > 0 {
				claims = j.joiner.claims
			}
			for _, c := range claims {
				for _, body := range [][]byte{f.Body, f.Body[1:]} {
					if plain, err := c.s.openPlain(body); err == nil {
						opened++
						if bytes.Contains(plain, id[:]) || bytes.Contains(plain, r.Salt[:]) {
							t.Error("eve learns the host's key")
						}
					}
				}
			}
			n.deliver(s, p)
		}
		n.run(time.Minute, func() bool { return len(j.events) >= 2 })
		j.joiner.Stop()
	}
	if opened < ShortGuesses {
		t.Errorf("eve opened %d answers: the test looks at the wrong thing", opened)
	}
}
