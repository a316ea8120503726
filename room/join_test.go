package room

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
)

// TestJoin lets one device in, in every mode and with every form of code.
func TestJoin(t *testing.T) {
	for _, c := range []struct {
		name     string
		mode     Mode
		password string
		given    string
		short    bool
		list     bool
		asked    int
	}{
		{name: "open", mode: Open},
		{name: "approve", mode: Approve, asked: 1},
		{name: "list", mode: List, list: true},
		{name: "password", mode: Password, password: "correct horse", given: "correct horse"},
		{name: "password by the short code", mode: Password, password: "correct horse", given: "correct horse", short: true},
		{name: "password in another form", mode: Password, password: "café ﬁ", given: "cafe\u0301 fi"},
		{name: "approve behind a password", mode: Approve, password: "p", given: "p", asked: 1},
		{name: "a password nobody asks for", mode: Open, given: "p"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNetwork(t)
			r := found(t, "host", c.mode)
			cfg := HostConfig{Identity: device(t, "host"), Roster: r, Password: c.password}
			jcode := longCode(t, r.Room)
			if c.short {
				cfg.Short = shortCode(t)
				jcode = cfg.Short
			}
			if c.list {
				cfg.List = []identity.DeviceID{device(t, "ann").ID()}
			}
			h := n.addHost(cfg)
			h.decide = func(Request) (bool, bool) { return true, true }
			j := n.addJoiner("ann", JoinerConfig{Code: jcode, Password: c.given})
			n.join(j)
			agreed(t, h, j)
			if len(h.asked) != c.asked {
				t.Errorf("the user was asked %d times, want %d", len(h.asked), c.asked)
			}
			if j.grant.Number != 2 || j.grant.Name != "ann" || j.grant.RoomName != "the room" || j.grant.HostInfo.Name != "host" {
				t.Errorf("grant: %d %q %q %q", j.grant.Number, j.grant.Name, j.grant.RoomName, j.grant.HostInfo.Name)
			}
			if j.grant.Founder != r.Founder() || NewID(j.grant.Founder, j.grant.Salt) != r.Room {
				t.Error("the grant does not bind the founder")
			}
			if took := n.now.Sub(start); took > time.Second {
				t.Errorf("it took %v without any loss", took)
			}
		})
	}
}

// TestRefused: who is not to be let in is told why, and is not in the roster.
func TestRefused(t *testing.T) {
	ann := device(t, "ann").ID()
	banned := func(t *testing.T, r *Roster) *Roster {
		t.Helper()
		n, err := r.Remove(ann, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Sign(device(t, "host")); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, mode := range []Mode{Approve, Password, List, Open} {
		t.Run("banned, "+mode.String(), func(t *testing.T) {
			n := newNetwork(t)
			r := banned(t, found(t, "host", mode))
			h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "p", List: []identity.DeviceID{ann}})
			h.decide = func(Request) (bool, bool) { return true, true }
			j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: "p"})
			n.join(j)
			if j.failed != Banned || h.admission != 0 {
				t.Errorf("failed with %q, %d admissions", j.failed, h.admission)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		n := newNetwork(t)
		r, err := found(t, "host", Open).Close(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Sign(device(t, "host")); err != nil {
			t.Fatal(err)
		}
		n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
		j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
		n.join(j)
		if j.failed != Closed {
			t.Errorf("failed with %q", j.failed)
		}
	})
	t.Run("not listed", func(t *testing.T) {
		n := newNetwork(t)
		r := found(t, "host", List)
		n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, List: []identity.DeviceID{device(t, "bob").ID()}})
		j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
		n.join(j)
		if j.failed != NotListed {
			t.Errorf("failed with %q", j.failed)
		}
	})
	t.Run("declined, and not asked again at once", func(t *testing.T) {
		n := newNetwork(t)
		r := found(t, "host", Approve)
		h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
		h.decide = func(Request) (bool, bool) { return false, true }
		for range 3 {
			j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
			n.join(j)
			if j.failed != Declined {
				t.Errorf("failed with %q", j.failed)
			}
		}
		if len(h.asked) != 1 {
			t.Errorf("the user was asked %d times", len(h.asked))
		}
		n.now = n.now.Add(declineLife)
		n.join(n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)}))
		if len(h.asked) != 2 {
			t.Errorf("after a while the user was not asked again")
		}
	})
	t.Run("itself", func(t *testing.T) {
		for _, password := range []string{"", "p"} {
			n := newNetwork(t)
			r := found(t, "host", Open)
			n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: password})
			j := n.addJoiner("host", JoinerConfig{Code: longCode(t, r.Room), Password: password})
			n.join(j)
			if j.failed != Self {
				t.Errorf("password %q: failed with %q", password, j.failed)
			}
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		n := newNetwork(t)
		j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, ID{1})})
		n.join(j)
		if j.failed != NobodyThere || n.now.Sub(start) != defaultLifetime {
			t.Errorf("failed with %q after %v", j.failed, n.now.Sub(start))
		}
	})
}

// TestAgain: a member that joins again keeps number and name and gets new keys;
// two that join at once get two numbers, and equal names are told apart.
func TestAgain(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	c := longCode(t, r.Room)
	ann := n.addJoiner("ann", JoinerConfig{Code: c})
	bob := n.addJoiner("bob", JoinerConfig{Code: c, Info: infoOf("ANN")})
	n.run(time.Minute, func() bool { return ann.grant != nil && bob.grant != nil })
	agreed(t, h, ann)
	agreed(t, h, bob)
	if ann.grant.Number == bob.grant.Number || strings.EqualFold(ann.grant.Name, bob.grant.Name) {
		t.Errorf("two members are %d %q and %d %q", ann.grant.Number, ann.grant.Name, bob.grant.Number, bob.grant.Name)
	}
	version := h.host.Roster().Version
	again := n.addJoiner("ann", JoinerConfig{Code: c, Info: infoOf("another name")})
	n.join(again)
	agreed(t, h, again)
	if again.grant.Number != ann.grant.Number || again.grant.Name != ann.grant.Name || h.host.Roster().Version != version {
		t.Errorf("a member that came again is %d %q, was %d %q", again.grant.Number, again.grant.Name, ann.grant.Number, ann.grant.Name)
	}
	if again.grant.Chain == ann.grant.Chain {
		t.Error("the second join gave the keys of the first")
	}
}

// TestLateRequest: a request of an earlier handshake that comes after a later
// one was let in must not change the keys under the member.
func TestLateRequest(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	c := longCode(t, r.Room)
	first := n.addJoiner("ann", JoinerConfig{Code: c})
	var held []packet
	n.drop = func(p packet) bool {
		f, err := h.host.sealers[0].Open(p.frame)
		if err == nil && f.Type == frameJ3 && p.from == first {
			held = append(held, p)
			return true
		}
		return false
	}
	n.run(time.Second, func() bool { return len(held) > 0 })
	first.joiner.Stop()
	second := n.addJoiner("ann", JoinerConfig{Code: c})
	n.join(second)
	agreed(t, h, second)
	for _, p := range held {
		n.deliver(h, p)
	}
	n.settle()
	agreed(t, h, second)
}

// TestDurableFirst: nobody is told that it is in before that is durable, and a
// full disk is only a delay.
func TestDurableFirst(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	fails := 3
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
	h.store = func(Admission) error {
		if j.grant != nil {
			t.Error("the member knew before the disk did")
		}
		if fails--; fails >= 0 {
			return errDisk
		}
		return nil
	}
	n.join(j)
	agreed(t, h, j)
	if h.admission != 4 || h.admitted[device(t, "ann").ID()] != 1 {
		t.Errorf("%d tries, %d admissions", h.admission, h.admitted[device(t, "ann").ID()])
	}
}

// TestHostRestarts in the middle of a join: from what is durable the same room
// goes on, and whoever was let in has its number.
func TestHostRestarts(t *testing.T) {
	for _, mode := range []Mode{Open, Approve} {
		t.Run(mode.String(), func(t *testing.T) {
			dir := t.TempDir()
			store, err := OpenStore(dir)
			if err != nil {
				t.Fatal(err)
			}
			r := found(t, "host", mode)
			if err := store.Put(Record{Room: r.Room, Roster: r, Host: true}); err != nil {
				t.Fatal(err)
			}
			n := newNetwork(t)
			j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
			for range 4 { // each host dies right after the next admission or question is durable
				store, err := OpenStore(dir)
				if err != nil {
					t.Fatal(err)
				}
				rec, ok := store.Get(r.Room)
				if !ok {
					t.Fatal("the room is gone")
				}
				h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: rec.Roster, Waiting: rec.Waiting, Guard: rec.Guard})
				dead := false
				h.store = func(a Admission) error {
					dead = true
					return store.Update(r.Room, func(rec *Record) error {
						rec.Roster = a.Roster
						return nil
					})
				}
				h.decide = func(q Request) (bool, bool) {
					dead = true
					err := store.Update(r.Room, func(rec *Record) error {
						rec.Waiting = append(rec.Waiting, q)
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					return false, false
				}
				if len(rec.Waiting) > 0 { // the user says yes after the restart, the device is away
					if err := h.host.Decide(n.now, rec.Waiting[0].ID, true); err != nil {
						t.Fatal(err)
					}
					n.drain(h)
					if err := store.Update(r.Room, func(rec *Record) error { rec.Waiting = nil; return nil }); err != nil {
						t.Fatal(err)
					}
				}
				n.drop = func(p packet) bool { return dead && p.from == h } // dead devices say nothing
				n.run(2*time.Minute, func() bool { return dead })
				n.sides = slices.DeleteFunc(n.sides, func(s *side) bool { return s == h })
			}
			n.drop = nil
			store, err = OpenStore(dir)
			if err != nil {
				t.Fatal(err)
			}
			rec, _ := store.Get(r.Room)
			h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: rec.Roster, Waiting: rec.Waiting})
			n.join(j)
			agreed(t, h, j)
			if len(rec.Roster.Members) != 2 || j.grant.Number != 2 {
				t.Errorf("%d members, number %d", len(rec.Roster.Members), j.grant.Number)
			}
		})
	}
}

// TestFull: the room holds MaxMembers and says so to the next.
func TestFull(t *testing.T) {
	r := found(t, "host", Open)
	for i := 2; i <= MaxMembers; i++ {
		d := device(t, strings.Repeat("x", i))
		next, err := r.Admit(Member{ID: d.ID(), WireGuard: d.WireGuardPublic(), WGSig: SignWireGuard(d), Name: "m", Added: start})
		if err != nil {
			t.Fatal(err)
		}
		r = next
	}
	if err := r.Sign(device(t, "host")); err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t)
	n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)})
	n.join(j)
	if j.failed != Full {
		t.Errorf("failed with %q", j.failed)
	}
	member := n.addJoiner("xx", JoinerConfig{Identity: device(t, "xx"), Code: longCode(t, r.Room)})
	n.join(member)
	if member.grant == nil || member.grant.Number != 2 {
		t.Error("a member of a full room was not let in again")
	}
}

func TestHostConfig(t *testing.T) {
	r := found(t, "host", Open)
	for name, cfg := range map[string]HostConfig{
		"nothing":                       {},
		"no host":                       {Identity: device(t, "ann"), Roster: r},
		"a short code without password": {Identity: device(t, "host"), Roster: r, Short: shortCode(t)},
		"a long code as the short one":  {Identity: device(t, "host"), Roster: r, Password: "p", Short: longCode(t, r.Room)},
		"a password that is none":       {Identity: device(t, "host"), Roster: r, Password: "\xff"},
		"a long password":               {Identity: device(t, "host"), Roster: r, Password: strings.Repeat("x", MaxPassword+1)},
	} {
		if _, err := NewHost(cfg); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for name, cfg := range map[string]JoinerConfig{
		"nothing":     {},
		"no code":     {Identity: device(t, "ann")},
		"a long info": {Identity: device(t, "ann"), Code: longCode(t, r.Room), Info: pairing.Info{OS: strings.Repeat("x", 99)}},
		"no password": {Identity: device(t, "ann"), Code: longCode(t, r.Room), Password: "\xff"},
	} {
		if _, err := NewJoiner(cfg, start); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestPasswordModeWithout: a host that does not have the password asks its user, and is not
// hindered when the mode changes.
func TestPasswordModeWithout(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Open)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r})
	next, err := r.SetMode(Password)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Sign(device(t, "host")); err != nil {
		t.Fatal(err)
	}
	if err := h.host.SetRoster(n.now, next); err != nil {
		t.Fatal(err)
	}
	n.join(n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room)}))
	if len(h.asked) != 1 || len(h.host.Roster().Members) != 1 {
		t.Errorf("asked about %d, %d members", len(h.asked), len(h.host.Roster().Members))
	}
}
