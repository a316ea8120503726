package link

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// Two relays that go at once, as a hub's do: the one is not moved to the other.
func TestRelaysDetachedTogether(t *testing.T) {
	for range 20 { // it depends on the order of a map
		open := false
		n, a, b := twoRelayed(t, &open)
		b.setCarriers(n.now, nil)
		a.setRemote(n.now, []namedAddr{namedAs(signaling.Reflexive, netB)})
		a.setCarriers(n.now, []carrierInfo{relayInfo(7, "one", relayA), relayInfo(8, "two", relayA2)})
		n.run(3 * time.Second)
		if a.selected == nil || len(a.paths()) != 2 {
			t.Fatalf("paths %v", a.paths())
		}
		events := len(a.events)
		a.setCarriers(n.now, nil)
		if got := a.events[events:]; len(got) != 1 || got[0].kind != Down {
			t.Fatalf("events %v, want down alone", got)
		}
	}
}

// With a proven path through a relay, the switch to relays alone loses nothing.
func TestRelayOnlyTakesTheRelayAtOnce(t *testing.T) {
	open := true
	n, a, _ := twoRelayed(t, &open)
	n.run(time.Second)
	if len(a.paths()) < 2 || a.selected.kind == Relay {
		t.Fatalf("paths %v", a.paths())
	}
	events := len(a.events)
	a.relayOnly(n.now, true)
	if got := a.events[events:]; len(got) != 1 || got[0].kind != Changed || got[0].path.Kind != Relay {
		t.Errorf("events %v, want one change to the relay", got)
	}
}

// A guess that was on its way when relays alone became wanted.
func TestRelayOnlyIgnoresGuesses(t *testing.T) {
	n, a, sent := guesser(t)
	hit := port(5077)
	a.guess(n.now, hit)
	n.run(10 * time.Millisecond)
	a.relayOnly(n.now, true)
	a.onPong(n.now, onSocket(hit), nil, probe{kind: pong, tx: sent[hit].tx})
	if a.selected != nil || len(a.all) != 0 {
		t.Errorf("straight path %s", a.selectedAddr())
	}
	pings := a.pings
	a.guess(n.now, port(6000))
	a.tryPlaces(n.now, []place{onSocket(port(6001)), {addr: port(6002), carrier: 5}})
	n.run(time.Minute)
	if a.pings != pings || len(a.all) != 0 {
		t.Errorf("%d straight pings, %d candidates", a.pings-pings, len(a.all))
	}
}

// An attempt at hole punching ends when relays alone are wanted.
func TestRelayOnlyEndsAnAttempt(t *testing.T) {
	a, _ := pair(t)
	cancelled := make(chan struct{})
	d := newDrill(a.Link)
	d.attempt = &attempt{link: a.Link, cancel: func() { close(cancelled) }}
	// The drill of a Link is owned by its goroutine: this one has a core of its own.
	d.l = &Link{socket: a.socket, cfg: a.cfg, core: a.newCore()}
	d.l.core.relayed = true
	d.step(time.Now())
	select {
	case <-cancelled:
	default:
		t.Error("the attempt goes on")
	}
}

// stillLink is a Link whose goroutine does not run: the test plays its part.
func stillLink(t *testing.T) *Link {
	t.Helper()
	s := NewSocket(SocketConfig{})
	l := &Link{
		socket: s, cfg: Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", true), Now: time.Now, DataSize: DefaultDataSize, Events: func(Event) {}},
		inbox: make(chan *datagram, 64), wake: make(chan struct{}, 1), listed: make(chan networks, 1), stop: make(chan struct{}),
	}
	l.core, l.drill = l.newCore(), newDrill(l)
	if err := l.renewKeys(); err != nil {
		t.Fatal(err)
	}
	s.addLink(l)
	t.Cleanup(func() { s.removeLink(l) })
	return l
}

// What was ordered right before a Reset and is not about the peer's run stays.
func TestResetKeepsOrdersThatAreOurs(t *testing.T) {
	l := stillLink(t)
	l.socket.AttachRelay(seat{}, "relay", netip.MustParseAddrPort(relayA))
	l.SetRelayOnly(true)
	nat := punch.Behaviour{Mapping: punch.EndpointIndependent, Public: netip.MustParseAddr("203.0.113.1"), LastPort: 9}
	l.SetNAT(nat, nat)
	l.Reset()
	l.obey()
	if !l.core.relayed {
		t.Error("straight paths are used again")
	}
	if len(l.core.carriers) != 1 {
		t.Error("the relay is not known")
	}
	if l.drill.self != nat {
		t.Error("our NAT's behaviour is not known")
	}
}

// What came before a relay's end and is looked at after it makes no candidate:
// nobody would ever remove it.
func TestPingThatOutlivesItsCarrier(t *testing.T) {
	l := stillLink(t)
	p := l.socket.AttachRelay(seat{relay: &testRelay{}}, "relay", netip.MustParseAddrPort(relayA))
	l.obey()
	p.Deliver(netip.MustParseAddrPort(relayB), sealed(t, probe{kind: ping, session: 5, seq: 1}))
	p.Detach()
	l.obey()
	l.handle(<-l.inbox)
	if len(l.core.all) != 0 || len(l.socket.table.Load().sources) != 0 {
		t.Errorf("%d candidates, sources %v", len(l.core.all), l.socket.table.Load().sources)
	}
}

// TestRelaysDieTogether: the server of both sides' relays restarts. Our relay is
// known to be lost; the peer's is as dead, and must not be waited for once there is
// a new one.
func TestRelaysDieTogether(t *testing.T) {
	n := newSim(t)
	a, b := n.add("a", []string{netA}), n.add("b", []string{netB})
	a.setCarriers(n.now, []carrierInfo{relayInfo(1, "relay", relayA)})
	b.setCarriers(n.now, []carrierInfo{relayInfo(1, "relay", relayB)})
	dead := map[string]bool{}
	n.pass = func(p simPacket) (time.Duration, bool) {
		src, dst := p.src.String(), p.dst.String()
		relayed := slices.ContainsFunc([]string{relayA, relayA2, relayB}, func(r string) bool { return r == src || r == dst })
		delay := 5 * time.Millisecond
		if src == relayB || dst == relayB {
			delay *= 2
		}
		return delay, relayed && !dead[src] && !dead[dst]
	}
	name := func(node *simNode, addrs ...string) {
		var list []namedAddr
		for _, addr := range addrs {
			list = append(list, namedAddr{addr: netip.MustParseAddrPort(addr), kind: signaling.Relayed, priority: 1})
		}
		node.setRemote(n.now, list)
	}
	name(a, relayB, netB)
	name(b, relayA)
	n.run(10 * time.Second)
	if a.selected == nil || a.selected.place.carrier != 1 || len(a.paths()) < 2 {
		t.Fatalf("paths %v", a.paths())
	}
	dead[relayA], dead[relayB] = true, true
	a.dataSent()
	for a.last().kind != Silent {
		n.run(10 * time.Millisecond)
	}
	start := n.now
	a.setCarriers(n.now, nil) // its loss is known, too
	if a.selectedAddr() != relayB {
		t.Fatalf("path %s", a.selectedAddr())
	}
	a.setCarriers(n.now, []carrierInfo{relayInfo(2, "relay", relayA2)})
	b.setCarriers(n.now, nil)
	n.run(20 * time.Millisecond)
	name(b, relayA2)
	for a.selected == nil || a.selected.place.carrier != 2 {
		n.run(5 * time.Millisecond)
		a.dataSent()
		if n.now.Sub(start) > 2*time.Second {
			t.Fatalf("no path over the new relay: %v", a.events)
		}
	}
	took := n.now.Sub(start)
	t.Logf("data goes over the new relay after %s", took)
	if took > 150*time.Millisecond {
		t.Errorf("%s", took)
	}
}
