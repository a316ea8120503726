package room

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

// evilHost is a host of another key that says it hosts the room: it has the
// code, and the right salt.
func evilHost(t testing.TB, n *network, room *Roster, key *identity.Identity, password string) *side {
	t.Helper()
	fake, err := Found(key, "the room", "host", Open, start, nil)
	if err != nil {
		t.Fatal(err)
	}
	fake.Room, fake.Salt = room.Room, room.Salt
	if err := fake.Sign(key); err != nil {
		t.Fatal(err)
	}
	h := n.addHost(HostConfig{Identity: key, Roster: fake, Password: password})
	h.name = "evil"
	return h
}

// TestShortIDIsForged forges a room name of 6 hexadecimal digits somewhere in a
// hash of the host's key: 24 bits that another key fits in a second or two (4 digits
// with -short). The
// forger then says that it hosts a room here, with everything but the key: a
// joiner refuses it, and tells it nothing.
func TestShortIDIsForged(t *testing.T) {
	host := device(t, "host")
	name := func(id identity.DeviceID) string {
		sum := sha512.Sum512(id[:])
		return hex.EncodeToString(sum[:])
	}
	digits := 6
	if testing.Short() {
		digits = 4
	}
	short := name(host.ID())[:digits]
	begin := time.Now()
	var seed [32]byte
	tries := 0
	for {
		tries++
		binary.BigEndian.PutUint64(seed[:], uint64(tries))
		id := identity.DeviceID(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
		if strings.Contains(name(id), short) {
			break
		}
	}
	forger, err := identity.FromSeeds(seed, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(name(forger.ID()), short) || forger.ID() == host.ID() {
		t.Fatal("nothing was forged")
	}
	t.Logf("the %d digits %s fit another key after %d tries, %v", digits, short, tries, time.Since(begin))

	for _, password := range []string{"", "the password"} {
		n := newNetwork(t)
		room := found(t, "host", Open)
		evil := evilHost(t, n, room, forger, password)
		j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, room.Room), Password: password})
		n.run(2*time.Minute, func() bool { return j.grant != nil || j.failed != 0 })
		if j.grant != nil {
			t.Fatal("the joiner took another host")
		}
		if password == "" && evil.admission > 0 {
			t.Error("the forger learned who wants to join")
		}
		if password != "" && j.failed != WrongHost && j.failed != TooManyHosts {
			t.Errorf("failed with %q", j.failed)
		}
		// Beside the forger the host lets it in.
		h := n.addHost(HostConfig{Identity: host, Roster: room, Password: password})
		j = n.addJoiner("ann", JoinerConfig{Code: longCode(t, room.Room), Password: password})
		n.join(j)
		agreed(t, h, j)
	}
}

// TestIDBindsKey: no part of what makes the id can be another.
func TestIDBindsKey(t *testing.T) {
	r := found(t, "host", Open)
	cred := credentials{Salt: r.Salt[:]}
	host, ann := device(t, "host").ID(), device(t, "ann")
	if _, ok := cred.check(r.Room, host, 0); !ok {
		t.Fatal("the founder was refused")
	}
	if _, ok := cred.check(r.Room, ann.ID(), 0); ok {
		t.Error("another key was taken")
	}
	for i := range r.Salt {
		other := bytes.Clone(r.Salt[:])
		other[i] ^= 1
		if _, ok := (credentials{Salt: other}).check(r.Room, host, 0); ok {
			t.Error("another salt was taken")
		}
	}
	until := wire.Day(start) + 3
	sig := device(t, "host").Sign(hostProof(r.Room, ann.ID(), until))
	named := credentials{Salt: r.Salt[:], Founder: host[:], Until: until, Sig: sig}
	if _, ok := named.check(r.Room, ann.ID(), until); !ok {
		t.Error("a named host was refused")
	}
	for name, bad := range map[string]struct {
		id  identity.DeviceID
		day int64
		c   credentials
	}{
		"too late":        {ann.ID(), until + 1, named},
		"another device":  {device(t, "bob").ID(), until, named},
		"another day":     {ann.ID(), until, credentials{Salt: named.Salt, Founder: named.Founder, Until: until + 1, Sig: sig}},
		"named by itself": {ann.ID(), until, credentials{Salt: named.Salt, Founder: named.Founder, Until: until, Sig: ann.Sign(hostProof(r.Room, ann.ID(), until))}},
		"no salt":         {ann.ID(), until, credentials{Founder: named.Founder, Until: until, Sig: sig}},
	} {
		if _, ok := bad.c.check(r.Room, bad.id, bad.day); ok {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestNamedHostAdmits: a host that the founder has named lets devices in while
// the founder is away.
func TestNamedHostAdmits(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	bob := device(t, "bob")
	r = mustAdmit(t, r, "bob")
	r, err := r.AddHost(device(t, "host"), bob.ID(), wire.Day(start), wire.Day(start)+30)
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, r, "host")
	h := n.addHost(HostConfig{Identity: bob, Roster: r})
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
	n.join(j)
	agreed(t, h, j)
	if j.grant.Founder != device(t, "host").ID() {
		t.Error("the founder is another")
	}
	n.now = n.now.AddDate(0, 0, 31)
	late := n.addJoiner("late", JoinerConfig{Code: longCode(t, r.Room)})
	n.run(2*time.Minute, func() bool { return late.grant != nil || late.failed != 0 })
	if late.grant != nil {
		t.Error("a host whose time is over let somebody in")
	}
}

// tamper runs a join in which an attacker who has the code changes a byte of the
// first message of a type, on its way, and holds back the true one. It reports
// how it went.
func tamper(t *testing.T, typ byte, at int, bit byte, password string) (n *network, h, j *side, size int) {
	t.Helper()
	n = newNetwork(t)
	r := found(t, "host", Open)
	h = n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: password})
	j = n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: password})
	sealer := h.host.sealers[0]
	done := false
	n.alter = func(s *side, p packet) {
		f, err := sealer.Open(p.frame)
		if err != nil || f.Type != typ || s == p.from || done {
			n.deliver(s, p)
			return
		}
		done, size = true, len(f.Body)
		if at < len(f.Body) {
			f.Body[at] ^= bit
		}
		raw, err := sealer.Seal(rand.Reader, f)
		if err != nil {
			t.Fatal(err)
		}
		n.deliver(s, packet{p.from, p.topic, raw})
	}
	n.run(10*time.Second, func() bool { return j.grant != nil || j.failed != 0 })
	return n, h, j, size
}

// TestEveryByte flips a bit of every byte of j1 to j4 and of the proof: the
// changed message is never taken, it counts as no guess, and the true one that
// follows lets the joiner in.
func TestEveryByte(t *testing.T) {
	for _, m := range []struct {
		name     string
		typ      byte
		password string
	}{
		{"j1", frameJ1, "p"}, {"j2", frameJ2, "p"}, {"j3", frameJ3, "p"}, {"j4", frameJ4, "p"},
		{"j2 without a password", frameJ2, ""}, {"proof", frameProof, ""}, {"j3 without a password", frameJ3, ""},
	} {
		t.Run(m.name, func(t *testing.T) {
			_, _, _, size := tamper(t, m.typ, 1<<20, 0, m.password)
			if size < 32 {
				t.Fatalf("%d bytes", size)
			}
			step := 1
			if size > 400 {
				step = 7 // most of it is one ML-KEM value
			}
			if testing.Short() {
				step *= 5
			}
			for at := 0; at < size; at += step {
				n, h, j, _ := tamper(t, m.typ, at, 1<<(at%8), m.password)
				if h.guard != (Guard{}) || len(h.notices) > 0 {
					t.Fatalf("byte %d: the host counted a wrong password", at)
				}
				if j.grant != nil && h.admitted[device(t, "ann").ID()] == 0 {
					t.Fatalf("byte %d: in without an admission", at)
				}
				if j.grant == nil {
					n.alter = nil
					n.join(j)
				}
				agreed(t, h, j)
			}
		})
	}
}

// TestReplay gives a host everything that ever was on the topic in an earlier
// join, sealed anew, and a joiner too: nothing follows.
func TestReplay(t *testing.T) {
	for _, password := range []string{"", "p"} {
		n := newNetwork(t)
		r := found(t, "host", Open)
		h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: password})
		j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: password})
		n.join(j)
		agreed(t, h, j)
		old := n.seen
		keys := h.host.sealers[0]
		reseal := func(p packet) packet {
			f, err := keys.Open(p.frame)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := keys.Seal(rand.Reader, f)
			if err != nil {
				t.Fatal(err)
			}
			return packet{nil, 0, raw}
		}
		// Another host of the same room (after a restart), and a new joiner, hear
		// the old join, twice and backwards, too.
		kicked, err := h.host.Roster().Remove(device(t, "ann").ID(), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		mustSign(t, kicked, "host")
		n2 := newNetwork(t)
		h2 := n2.addHost(HostConfig{Identity: device(t, "host"), Roster: kicked, Password: password})
		j2 := n2.addJoiner("bob", JoinerConfig{Code: longCode(t, r.Room), Password: password})
		n2.drop = func(p packet) bool { return p.from != nil } // the attacker is all there is
		for range 2 {
			for i := range old {
				for _, p := range []packet{reseal(old[i]), reseal(old[len(old)-1-i])} {
					n2.deliver(h2, p)
					n2.deliver(j2, p)
				}
			}
			n2.settle()
		}
		if h2.admission != 0 || len(h2.asked) != 0 || len(h2.notices) != 0 || j2.grant != nil {
			t.Errorf("password %q: a replay had an effect", password)
		}
		if _, in := h2.host.Roster().Member(device(t, "ann").ID()); in {
			t.Error("a replay brought a kicked member back")
		}
	}
}

// TestOtherSession mixes two joins: requests and answers of one in the other,
// under its session id.
func TestOtherSession(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "p"})
	ann := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: "p"})
	bob := n.addJoiner("bob", JoinerConfig{Code: longCode(t, r.Room), Password: "p"})
	keys := h.host.sealers[0]
	swapped := 0
	n.alter = func(s *side, p packet) {
		f, err := keys.Open(p.frame)
		if err != nil {
			t.Fatal(err)
		}
		switch f.SID { // every message goes to the other's session, and then where it belongs
		case ann.joiner.start.sid:
			f.SID = bob.joiner.start.sid
		case bob.joiner.start.sid:
			f.SID = ann.joiner.start.sid
		}
		raw, err := keys.Seal(rand.Reader, f)
		if err != nil {
			t.Fatal(err)
		}
		swapped++
		n.deliver(s, packet{p.from, p.topic, raw})
		n.deliver(s, p)
	}
	n.run(time.Minute, func() bool { return ann.grant != nil && bob.grant != nil })
	agreed(t, h, ann)
	agreed(t, h, bob)
	if swapped < 6 || len(h.notices) > 0 || ann.grant.Chain == bob.grant.Chain {
		t.Errorf("%d swapped, %d wrong passwords counted", swapped, len(h.notices))
	}
}

// TestReflected sends each side its own messages back, under every type.
func TestReflected(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "p"})
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: "p"})
	keys := h.host.sealers[0]
	n.alter = func(s *side, p packet) {
		f, err := keys.Open(p.frame)
		if err != nil {
			t.Fatal(err)
		}
		for typ := byte(frameJ1); typ <= frameProof; typ++ {
			f.Type = typ
			raw, err := keys.Seal(rand.Reader, f)
			if err != nil {
				t.Fatal(err)
			}
			if s == p.from {
				n.deliver(s, packet{nil, p.topic, raw})
			}
		}
		n.deliver(s, p)
	}
	n.run(time.Minute, func() bool { return j.grant != nil })
	agreed(t, h, j)
	if len(h.notices) > 0 || h.admitted[device(t, "ann").ID()] != 1 {
		t.Error("a reflection had an effect")
	}
}
