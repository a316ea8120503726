package room

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
)

func FuzzRoster(f *testing.F) {
	r := mustAdmit(f, found(f, "host", Approve), "ann", "bob")
	for _, r := range []*Roster{r, mustSign(f, r.Rename("x"), "host")} {
		raw, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := DecodeRoster(raw)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(raw, again) {
			t.Errorf("a roster has two forms: %v", err)
		}
		_ = r.Verify(nil, r.Room)
		for _, m := range r.Members {
			if pairing.CleanName(m.Name) != m.Name {
				t.Error("a name is not clean")
			}
		}
	})
}

// FuzzRosterBody signs whatever is there, so that the parser behind the
// signature is reached.
func FuzzRosterBody(f *testing.F) {
	r := mustAdmit(f, found(f, "host", Approve), "ann", "bob")
	n, err := r.Remove(device(f, "bob").ID(), true, nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range []*Roster{r, mustSign(f, n, "host")} {
		body, err := r.body()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	host := device(f, "host")
	f.Fuzz(func(t *testing.T, body []byte) {
		sig := host.Sign(rosterProof(body))
		r, err := DecodeRoster(append(sig, body...))
		if err != nil {
			return
		}
		_ = r.Verify(nil, r.Room)
		if len(r.Members) > MaxMembers || len(r.Bans) > MaxBans || len(r.Hosts) > MaxHosts {
			t.Error("out of bounds")
		}
		for _, m := range r.Members {
			if m.Number >= r.Next {
				t.Error("a number would be given again")
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	raw, err := encodeRecord(fullRecord(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRecord(raw)
		if err != nil {
			return
		}
		if _, err := encodeRecord(r); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	ann := device(f, "ann")
	raw, err := encodeRequest(ann, infoOf("ann"), 20000)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRequest(ann.ID(), raw)
		if err == nil && (r.Info.Name == "" || pairing.CleanName(r.Info.Name) != r.Info.Name || r.WireGuard != ann.WireGuardPublic()) {
			t.Error("a request that is not clean, or with another's key")
		}
	})
}

func FuzzAnswer(f *testing.F) {
	r := found(f, "host", Open)
	wg := [32]byte{1}
	raw, err := encodeCBOR(answerWire{
		Status: uint8(Admitted), Room: r.Room[:], Cred: credentials{Salt: r.Salt[:]}, WireGuard: wg[:], RoomName: "r", Name: "n", Number: 2, Day: 3,
	}, maxAnswer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := decodeAnswer(raw)
		if err == nil {
			_, _ = a.Cred.check(ID(a.Room), r.Founder(), 1)
			_ = decodeEndpoints(a.Endpoints)
		}
	})
}

// FuzzFrames gives a host and a joiner frames under the right key with any type
// and body, in the middle of a handshake.
func FuzzFrames(f *testing.F) {
	r := found(f, "host", Password)
	c, err := code.NewRoom(r.Room, code.RoomOptions{})
	if err != nil {
		f.Fatal(err)
	}
	for typ := byte(frameJ1); typ <= frameProof; typ++ {
		f.Add(typ, make([]byte, 1233), true)
		f.Add(typ, []byte{1}, false)
	}
	f.Fuzz(func(t *testing.T, typ byte, body []byte, own bool) {
		if len(body) > wire.MaxBody {
			return
		}
		n := newNetwork(t)
		h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "p"})
		j := n.addJoiner("ann", JoinerConfig{Code: c, Password: "p"})
		frame := wire.Frame{Type: typ, Body: body, SID: j.joiner.start.sid}
		if !own && len(body) > 1 {
			frame.SID = sidOf(body[1:])
		}
		seal := func() []byte {
			raw, err := h.host.sealers[0].Seal(rand.Reader, frame)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		n.deliver(h, packet{nil, 0, seal()})
		n.deliver(j, packet{nil, 0, seal()})
		n.drop = func(p packet) bool {
			return p.from == nil
		}
		n.settle()
		n.deliver(h, packet{nil, 0, seal()})
		n.deliver(j, packet{nil, 0, seal()})
		n.join(j)
		agreed(t, h, j)
		if len(h.notices) > 0 || h.admitted[device(t, "ann").ID()] != 1 {
			t.Error("a stranger's frame had an effect")
		}
	})
}
