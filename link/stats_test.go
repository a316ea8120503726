package link

import (
	"testing"
	"time"
)

// seen returns what a node says of one of the peer's addresses.
func (n *simNode) seen(t *testing.T, addr string) Candidate {
	t.Helper()
	for _, c := range n.candidates() {
		if c.Remote.String() == addr && c.Via == "" {
			return c
		}
	}
	t.Fatalf("no candidate %s among %+v", addr, n.candidates())
	return Candidate{}
}

// TestCandidates holds what is told of addresses: that answer, that do not, from which
// alone something comes, and whose answers come too late.
func TestCandidates(t *testing.T) {
	t.Run("one answers", func(t *testing.T) {
		n, a, b := twoHomes(t)
		n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, isLAN(p) }
		a.remotes(lanB, netB)
		b.remotes(lanA, netA)
		n.run(3 * time.Second)
		if c := a.seen(t, lanB); !c.Selected || !c.Usable || c.Answered == 0 || c.Sent < c.Answered || c.Received == 0 || c.Kind != LAN || c.Size != DefaultDataSize {
			t.Errorf("the one that answers: %+v", c)
		}
		if c := a.seen(t, netB); c.Usable || c.Answered != 0 || c.Sent == 0 || c.Received != 0 {
			t.Errorf("the one that is silent: %+v", c)
		}
		if all := a.candidates(); !all[0].Selected {
			t.Errorf("the selected one is not the first: %+v", all)
		}
	})
	t.Run("nothing gets in", func(t *testing.T) {
		n, a, b := twoHomes(t)
		toA := func(p simPacket) bool { return p.dst.Port() == 1111 }
		n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, !toA(p) }
		a.remotes(lanB)
		b.remotes(lanA)
		n.run(3 * time.Second)
		if c := a.seen(t, lanB); c.Sent == 0 || c.Received != 0 || c.Answered != 0 {
			t.Errorf("at the side that hears nothing: %+v", c)
		}
		if c := b.seen(t, lanA); c.Sent == 0 || c.Received == 0 || c.Answered != 0 {
			t.Errorf("at the side that is not heard: %+v", c)
		}
	})
	t.Run("too late", func(t *testing.T) {
		n, a, b := twoHomes(t)
		n.pass = func(simPacket) (time.Duration, bool) { return 2 * time.Second, true }
		a.remotes(lanB)
		b.remotes(lanA)
		n.run(20 * time.Second)
		if c := a.seen(t, lanB); c.Usable || c.Answered != 0 || c.Late == 0 || c.RTT != 4*time.Second {
			t.Errorf("%+v", c)
		}
	})
}

// TestForce has a link keep to the sort of path that is wanted, as long as there is one,
// and no longer than it is told; without one nothing changes.
func TestForce(t *testing.T) {
	for _, end := range []string{"by hand", "by itself"} {
		t.Run(end, func(t *testing.T) {
			open := true
			n, a, _ := twoRelayed(t, &open)
			n.run(20 * time.Second)
			kind := func() PathKind { return a.selected.kind }
			if kind() == Relay {
				t.Fatal("not straight to begin with")
			}
			before := kind()
			a.setForce(n.now, forcing{ForceRelay, n.now.Add(maxForce)})
			n.run(3 * time.Second)
			if kind() != Relay {
				t.Fatalf("forced to a relay, it uses %s", kind())
			}
			sendEvery(n, a, 100*time.Millisecond, 10*time.Second)
			if kind() != Relay {
				t.Errorf("data moved it to %s", kind())
			}
			if end == "by hand" {
				a.setForce(n.now, forcing{})
				n.run(3 * time.Second)
			} else {
				n.run(maxForce)
			}
			if kind() != before {
				t.Errorf("afterwards it uses %s, before %s", kind(), before)
			}
			for _, ev := range a.events {
				if ev.kind == Down {
					t.Error("the path was lost")
				}
			}
			events := len(a.events)
			a.setForce(n.now, forcing{ForceLAN, n.now.Add(maxForce)})
			n.run(5 * time.Second)
			if kind() != before || len(a.events) != events {
				t.Errorf("without such a path it went to %s: %+v", kind(), a.events[events:])
			}
		})
	}
}

func TestForceDiesWithItsPath(t *testing.T) {
	open := true
	n, a, _ := twoRelayed(t, &open)
	n.run(20 * time.Second)
	a.setForce(n.now, forcing{ForceRelay, n.now.Add(maxForce)})
	n.run(3 * time.Second)
	if a.selected.kind != Relay {
		t.Fatal("not relayed")
	}
	n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, straight(p) }
	sendEvery(n, a, 100*time.Millisecond, 5*time.Second)
	if a.selected == nil || a.selected.kind == Relay {
		t.Error("it holds on to a path that is dead")
	}
}

func TestForceNames(t *testing.T) {
	for f, name := range map[Force]string{ForceNone: "", ForceRelay: "relay", ForceDirect: "direct", ForceLAN: "lan"} {
		if got, ok := ParseForce(name); f.String() != name || got != f || !ok {
			t.Errorf("%d is %q, and %q is %d", f, f, name, got)
		}
	}
	if _, ok := ParseForce("unknown"); ok {
		t.Error("took a word that is none")
	}
}

// TestCandidatesOfALink asks a Link at work, and one that is closed.
func TestCandidatesOfALink(t *testing.T) {
	a, b := pair(t)
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	a.wait(t, Up, 5*time.Second)
	b.wait(t, Up, 5*time.Second)
	all, err := a.Link.Candidates(t.Context())
	if err != nil || len(all) == 0 || !all[0].Selected || all[0].Answered == 0 {
		t.Errorf("%+v, %v", all, err)
	}
	a.Link.Force(ForceRelay, time.Minute)
	a.Link.Reset()
	if _, err := a.Link.Candidates(t.Context()); err != nil {
		t.Error(err)
	}
	a.Link.Close()
	if _, err := a.Link.Candidates(t.Context()); err == nil {
		t.Error("a closed link tells")
	}
}
