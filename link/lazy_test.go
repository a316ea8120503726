package link

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// idlers are two nodes with several ways to each other, and some that lead
// nowhere, connected for long enough that all is measured.
func idlers(t *testing.T, lazy bool) (*simNet, *simNode, *simNode) {
	net := newSim(t)
	a := net.add("a", []string{"192.168.1.1:41641", "203.0.113.1:41641"}, iface("eth0", "192.168.1.1/24"))
	b := net.add("b", []string{"192.168.1.2:41641", "203.0.113.2:41641"}, iface("eth0", "192.168.1.2/24"))
	net.pass = func(p simPacket) (time.Duration, bool) {
		// Data does not fit the second way.
		return 5 * time.Millisecond, p.size < DefaultDataSize || p.dst.Addr().Is4() && p.dst.Addr().As4()[0] == 192
	}
	for _, n := range net.nodes {
		n.setCarriers(net.now, []carrierInfo{relayInfo(1, "relay "+n.name, map[string]string{"a": relayA, "b": relayB}[n.name])})
		n.setLazy(net.now, lazy)
	}
	a.remotes("192.168.1.2:41641", "203.0.113.2:41641", relayB, "10.9.9.9:41641")
	b.remotes("192.168.1.1:41641", "203.0.113.1:41641", relayA, "10.9.9.8:41641")
	net.run(5 * time.Minute)
	if a.selectedAddr() != "192.168.1.2:41641" || b.selectedAddr() != "192.168.1.1:41641" {
		t.Fatalf("a uses %s, b %s", a.selectedAddr(), b.selectedAddr())
	}
	return net, a, b
}

// TestIdleCost: without data, a link sends one ping per 25 s, and answers its peer's.
func TestIdleCost(t *testing.T) {
	net, a, b := idlers(t, false)
	pings, pongs := [2]int{a.pings, b.pings}, [2]int{a.pongs, b.pongs}
	const period = 10 * time.Minute
	net.run(period)
	for i, n := range net.nodes {
		sent, answered := n.pings-pings[i], n.pongs-pongs[i]
		t.Logf("%s sends %d pings and %d pongs in %s", n.name, sent, answered, period)
		if most := int(period / idlePing); sent > most || answered > most || sent < most*9/10-1 {
			t.Errorf("%s sends %d pings and %d pongs in %s", n.name, sent, answered, period)
		}
	}
}

func TestLazySleeps(t *testing.T) {
	net, a, b := idlers(t, true)
	if !a.dormant || !b.dormant {
		t.Fatal("awake after five minutes without data")
	}
	packets, events := a.pings+a.pongs+b.pings+b.pongs, len(a.events)
	net.run(time.Hour)
	if sent := a.pings + a.pongs + b.pings + b.pongs - packets; sent != 0 {
		t.Errorf("%d packets in an hour of idleness", sent)
	}
	if len(a.events) != events || !a.up || !b.up {
		t.Errorf("events %v", a.events)
	}
	for _, n := range net.nodes {
		if at := n.next(net.now); !at.IsZero() {
			t.Errorf("%s wants to be called at %s", n.name, at.Sub(net.now))
		}
	}
}

// TestLazyAnswers: a peer that is not lazy keeps its path to one that is, and costs
// it nothing but answers.
func TestLazyAnswers(t *testing.T) {
	net, a, b := idlers(t, true)
	b.setLazy(net.now, false)
	net.run(time.Minute) // what that stirred
	pings, pongs := a.pings, a.pongs
	net.run(10 * time.Minute)
	if sent := a.pings - pings; sent != 0 || a.pongs-pongs < 20 || !a.dormant || !b.up {
		t.Errorf("%d pings, %d pongs, asleep %v", sent, a.pongs-pongs, a.dormant)
	}
}

func TestLazyWakes(t *testing.T) {
	const elsewhere = "203.0.113.77:52000"
	for _, tc := range []struct {
		name  string
		event func(net *simNet, a, b *simNode)
		awake bool
		told  EventKind
	}{
		{"data is sent", func(_ *simNet, a, _ *simNode) { a.dataSent() }, true, Waking},
		{"data comes", func(net *simNet, a, _ *simNode) { a.received(net.now) }, true, 0},
		{"news of the peer", func(_ *simNet, a, _ *simNode) { a.remotes("192.168.1.2:41641") }, true, 0},
		{"a ping of the known path", func(net *simNet, a, b *simNode) {
			a.onPing(net.now, b.ownPlace(0), nil, b.nextPing())
		}, false, 0},
		{"a ping from elsewhere", func(net *simNet, a, b *simNode) {
			a.onPing(net.now, onSocket(netip.MustParseAddrPort(elsewhere)), nil, b.nextPing())
		}, true, 0},
		{"a ping says that the peer uses another path", func(net *simNet, a, b *simNode) {
			p := b.nextPing()
			p.flags = flagSelected
			a.onPing(net.now, b.ownPlace(1), nil, p)
		}, true, 0},
		{"a relay came", func(net *simNet, a, _ *simNode) {
			a.setCarriers(net.now, append(slices.Clone(a.carriers), relayInfo(2, "another", "198.51.100.9:50000")))
		}, false, 0},
		{"a relay that is not in use went", func(net *simNet, a, _ *simNode) { a.setCarriers(net.now, nil) }, false, 0},
		{"interfaces are listed again", func(net *simNet, a, _ *simNode) { a.setNetworks(net.now, a.networks) }, false, 0},
		{"no longer lazy", func(net *simNet, a, _ *simNode) { a.setLazy(net.now, false) }, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			net, a, b := idlers(t, true)
			net.run(time.Hour)
			events, pings, pongs := len(a.events), a.pings, a.pongs
			tc.event(net, a, b)
			a.tick(net.now)
			if a.dormant == tc.awake {
				t.Errorf("dormant %v", a.dormant)
			}
			net.run(200 * time.Millisecond)
			if asked := a.pings > pings; asked != tc.awake {
				t.Errorf("%d pings", a.pings-pings)
			}
			if answers := len(tc.name) > 6 && tc.name[:6] == "a ping"; answers != (a.pongs > pongs) && !tc.awake {
				t.Errorf("%d pongs", a.pongs-pongs)
			}
			var kind EventKind
			if len(a.events) > events {
				kind = a.events[events].kind
			}
			if kind != tc.told {
				t.Errorf("events %v", a.events[events:])
			}
			if tc.name == "no longer lazy" {
				return
			}
			net.run(2 * time.Minute)
			if !a.dormant || !a.up {
				t.Errorf("two minutes later: dormant %v, up %v", a.dormant, a.up)
			}
		})
	}
}

func (n *simNode) ownPlace(i int) place { return onSocket(n.addrs[i]) }

func (n *simNode) nextPing() probe {
	n.seq++
	return probe{kind: ping, session: n.session, seq: n.seq, tx: txid{byte(n.seq), 99}}
}

// TestWakingKeepsAPathThatWorks: nothing is delayed, and nothing changes.
func TestWakingKeepsAPathThatWorks(t *testing.T) {
	net, a, b := idlers(t, true)
	net.run(10 * time.Hour)
	before := a.data.place
	a.dataSent()
	if a.data == nil || a.data.place != before {
		t.Fatalf("data goes to %v", a.data)
	}
	if a.last().kind != Waking || a.last().path.Remote != before.addr {
		t.Errorf("event %+v", a.last())
	}
	net.run(15 * time.Second)
	if a.data.place != before || !a.up || !b.up || a.last().kind != Waking {
		t.Errorf("events %v", a.events)
	}
}

// forgetful are NATs that let in only what was sent out to, and that forget.
type forgetful struct {
	open map[[2]netip.AddrPort]bool
}

func (f *forgetful) pass(p simPacket) (time.Duration, bool) {
	f.open[[2]netip.AddrPort{p.src, p.dst}] = true
	return 20 * time.Millisecond, f.open[[2]netip.AddrPort{p.dst, p.src}]
}

// TestWakingAfterTheNATsForgot: both have new ports, which only rendezvous can
// tell, and let in nothing that was not asked from inside.
func TestWakingAfterTheNATsForgot(t *testing.T) {
	net := newSim(t)
	nats := &forgetful{open: make(map[[2]netip.AddrPort]bool)}
	net.pass = nats.pass
	a, b := net.add("a", []string{"203.0.113.1:1000"}), net.add("b", []string{"203.0.113.2:1000"})
	for _, n := range net.nodes {
		n.setLazy(net.now, true)
	}
	a.remotes("203.0.113.2:1000")
	b.remotes("203.0.113.1:1000")
	net.run(time.Hour)
	if !a.up || !b.up || !a.dormant || !b.dormant {
		t.Fatalf("a up %v dormant %v, b up %v dormant %v", a.up, a.dormant, b.up, b.dormant)
	}
	clear(nats.open)
	a.addrs, b.addrs = addrPorts("203.0.113.1:2000"), addrPorts("203.0.113.2:2000")
	woken := net.now
	a.dataSent()
	if a.last().kind != Waking {
		t.Fatalf("events %v", a.events)
	}
	net.run(100 * time.Millisecond) // rendezvous: b hears of a, and announces itself
	b.remotes("203.0.113.1:2000")
	net.run(100 * time.Millisecond)
	a.remotes("203.0.113.2:2000")
	for a.selectedAddr() != "203.0.113.2:2000" || b.selectedAddr() != "203.0.113.1:2000" {
		net.run(10 * time.Millisecond)
		a.dataSent()
		if net.now.Sub(woken) > 5*time.Second {
			t.Fatalf("a uses %s, b %s; events %v", a.selectedAddr(), b.selectedAddr(), a.events)
		}
	}
	took := net.now.Sub(woken)
	t.Logf("data can go again %s after the first packet", took)
	if took > time.Second {
		t.Errorf("%s", took)
	}
}

// TestLazyGivesUpQuietly: a peer that is gone is not asked for ever, and is asked
// again when there is data.
func TestLazyGivesUpQuietly(t *testing.T) {
	net, a, _ := idlers(t, true)
	net.pass = func(simPacket) (time.Duration, bool) { return 0, false }
	a.dataSent()
	net.run(10 * time.Second)
	if a.up || a.last().kind != Down {
		t.Fatalf("events %v", a.events)
	}
	net.run(time.Minute)
	pings := a.pings
	net.run(time.Hour)
	if a.pings != pings || !a.dormant {
		t.Errorf("%d pings to nobody in an hour", a.pings-pings)
	}
	a.traffic(net.now, true, time.Time{})
	if a.last().kind != Waking || a.last().path != (Path{}) {
		t.Errorf("events %v", a.events)
	}
	net.run(time.Second)
	if a.pings == pings {
		t.Error("nobody is asked")
	}
}

// TestLazyLosesItsRelay: the relay of a path in use closes while it sleeps.
func TestLazyLosesItsRelay(t *testing.T) {
	net := newSim(t)
	a, b := net.add("a", []string{"203.0.113.1:1"}), net.add("b", []string{"203.0.113.2:1"})
	a.setCarriers(net.now, []carrierInfo{relayInfo(1, "relay", relayA)})
	net.pass = func(p simPacket) (time.Duration, bool) {
		relayed := p.src.String() == relayA || p.dst.String() == relayA
		return 10 * time.Millisecond, relayed
	}
	a.setLazy(net.now, true)
	a.remotes("203.0.113.2:1")
	b.remotes(relayA)
	net.run(5 * time.Minute)
	if !a.up || a.selected.kind != Relay || !a.dormant {
		t.Fatalf("a uses %s, dormant %v", a.selectedAddr(), a.dormant)
	}
	pings := a.pings
	a.setCarriers(net.now, nil)
	net.run(time.Hour)
	if a.up || !a.dormant || a.pings != pings || a.last().kind != Down {
		t.Errorf("up %v, dormant %v, %d pings, events %v", a.up, a.dormant, a.pings-pings, a.events)
	}
}

// TestTwoWaysStayTwo: two ends that selected different paths do not ask each other about
// them without an end, and sleep as others do.
func TestTwoWaysStayTwo(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		n, a, b := twoRelayed(t, new(bool))
		n.run(time.Minute)
		if a.selected == nil || b.selected == nil || a.selected.place.carrier == 0 || b.selected.place.carrier == 0 {
			t.Fatalf("a uses %s, b uses %s, want relays of their own", a.selectedAddr(), b.selectedAddr())
		}
		a.setLazy(n.now, lazy)
		b.setLazy(n.now, lazy)
		n.run(time.Minute)
		relayed := 0
		n.pass = func(p simPacket) (time.Duration, bool) {
			if p.p.kind == ping && !straight(p) {
				relayed++
			}
			return 20 * time.Millisecond, !straight(p)
		}
		n.run(10 * time.Minute)
		if most := 2 * int(10*time.Minute/idlePing); relayed > most || lazy && (relayed > 0 || !a.dormant || !b.dormant) {
			t.Errorf("lazy %v: %d pings in ten idle minutes, asleep %v and %v", lazy, relayed, a.dormant, b.dormant)
		}
	}
}
