package portmap

import (
	"net/netip"
	"testing"
	"time"
)

func TestNetworkChanges(t *testing.T) {
	g := &fakeGateway{pcp: true, external: public}
	s := newSim(t, g)
	s.ok = false
	s.network()
	s.run(10 * time.Minute)
	if s.sent != 0 || s.lookups < 9 || s.lookups > 11 {
		t.Fatalf("%d datagrams and %d lookups without a gateway", s.sent, s.lookups)
	}
	s.ok = true
	s.run(time.Minute)
	if len(s.notices) != 1 {
		t.Fatal("a gateway that came up without Refresh was not asked")
	}
	s.network() // a Refresh that changed nothing
	s.run(time.Second)
	if len(s.notices) != 1 || g.maps != 2 {
		t.Fatalf("%d reports, %d requests, want the mapping renewed and no report", len(s.notices), g.maps)
	}
	g.reboot(s.now) // the other network has a gateway of its own
	s.gw, s.self = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	s.network()
	s.run(time.Second)
	if len(s.notices) != 3 || s.notices[1].ok || s.notices[1].mapping.Gateway != gwAddr || s.last().mapping.Gateway != s.gw {
		t.Fatalf("reported %+v, want one lost and one gained", s.notices)
	}
	g.reboot(s.now)
	s.gw = netip.MustParseAddr("10.0.0.9") // nobody says so
	s.run(checkEvery + time.Second)
	if len(s.notices) != 5 || s.last().mapping.Gateway != s.gw {
		t.Fatalf("reported %+v, want the change noticed", s.notices[3:])
	}
	s.ok = false
	s.network()
	if len(s.notices) != 6 || s.last().ok {
		t.Fatal("not reported lost with the network")
	}
}

func TestStop(t *testing.T) {
	for name, g := range map[string]*fakeGateway{"pcp": {pcp: true}, "nat-pmp": {pmp: true}, "upnp": {upnp: true}, "upnp without leases": {upnp: true, onlyPermanent: true}} {
		t.Run(name, func(t *testing.T) {
			g.external = public
			s := newSim(t, g)
			s.network()
			s.run(time.Minute)
			s.c.stop(s.now)
			s.apply()
			s.run(0)
			if s.c.phase != phaseDone || g.mapped != 0 || g.removed != 1 {
				t.Fatalf("phase %d, external port %d, removed %d times", s.c.phase, g.mapped, g.removed)
			}
			if len(s.notices) != 1 {
				t.Error("reported after the end")
			}
			s.network()
			if s.c.phase != phaseDone {
				t.Error("came back to life")
			}
		})
	}
	t.Run("mute", func(t *testing.T) {
		g := &fakeGateway{pcp: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(time.Minute)
		g.mute = true
		sent := s.sent
		s.c.stop(s.now)
		s.apply()
		s.run(removeIn - 1)
		if s.c.phase != phaseRemoving || s.sent != sent+3 {
			t.Fatalf("phase %d after %d datagrams, want 3", s.c.phase, s.sent-sent)
		}
		s.run(1)
		if s.c.phase != phaseDone {
			t.Fatal("not done after a second")
		}
	})
	t.Run("nothing mapped", func(t *testing.T) {
		s := newSim(t, &fakeGateway{})
		s.network()
		s.run(time.Second)
		s.c.stop(s.now)
		if s.c.phase != phaseDone {
			t.Fatal("not done at once")
		}
	})
	t.Run("while mapping", func(t *testing.T) {
		g := &fakeGateway{pcp: true, external: public}
		s := newSim(t, g)
		s.delay[kindPCP] = 100 * time.Millisecond
		s.network()
		s.run(150 * time.Millisecond) // granted, but we do not know it yet
		if g.mapped == 0 || len(s.notices) != 0 {
			t.Fatal("not in the middle")
		}
		s.c.stop(s.now)
		s.apply()
		s.run(time.Second)
		if g.mapped != 0 {
			t.Fatal("left behind")
		}
	})
}

// TestForeignAnswers gives the core answers that are right but for one thing.
func TestForeignAnswers(t *testing.T) {
	held := func() *sim {
		s := newSim(t, &fakeGateway{pcp: true, external: public})
		s.network()
		return s
	}
	for name, from := range map[string]netip.AddrPort{
		"another host": netip.AddrPortFrom(selfAddr, serverPort), "another port": netip.AddrPortFrom(gwAddr, 53),
	} {
		s := held()
		s.c.packet(s.now, from, s.g.packet(s.now, pcpAnnounceRequest(selfAddr)))
		if s.c.phase != phaseAsking {
			t.Errorf("%s was listened to", name)
		}
	}
	s := held()
	s.c.packet(s.now, s.c.server, s.g.packet(s.now, pcpAnnounceRequest(selfAddr)))
	if s.c.phase != phaseMapping {
		t.Fatal("the gateway was not listened to")
	}
	for name, req := range map[string][]byte{
		"another nonce": pcpMapRequest(UDP, selfAddr, [12]byte{9}, ourPort, netip.AddrPort{}, time.Hour),
		"another port":  pcpMapRequest(UDP, selfAddr, s.c.nonce(gwAddr, selfAddr), ourPort+1, netip.AddrPort{}, time.Hour),
		"nat-pmp":       pmpMapRequest(UDP, ourPort, ourPort, time.Hour),
	} {
		g := &fakeGateway{pcp: true, pmp: true, external: public, boot: s.g.boot}
		s.c.packet(s.now, s.c.server, g.packet(s.now, req))
		if s.c.phase != phaseMapping || len(s.c.take().notices) != 0 {
			t.Errorf("%s was taken for the answer", name)
		}
	}
}

// TestForeignPort is the same for NAT-PMP, where the port is all there is.
func TestForeignPort(t *testing.T) {
	g := &fakeGateway{pmp: true, pmpReject: true, external: public}
	s := newSim(t, g)
	s.lose = func(b []byte) bool { return b[1] == pmpMapUDP }
	s.network()
	s.run(0)
	if s.c.phase != phaseMapping {
		t.Fatalf("phase %d", s.c.phase)
	}
	s.c.packet(s.now, s.c.server, g.packet(s.now, pmpMapRequest(UDP, ourPort+1, ourPort, time.Hour)))
	if s.c.phase != phaseMapping {
		t.Error("another port was taken for ours")
	}
	s.c.packet(s.now, s.c.server, g.packet(s.now, pmpMapRequest(UDP, ourPort, ourPort, time.Hour)))
	if s.c.phase != phaseHeld {
		t.Error("our port was not taken")
	}
}

func TestIPv6Pinhole(t *testing.T) {
	g := &fakeGateway{pcp: true, pmp: true, upnp: true, external: netip.MustParseAddr("2001:db8::23")}
	s := newSim(t, g)
	s.gw, s.self = netip.MustParseAddr("fe80::1%eth0"), g.external
	s.network()
	s.run(time.Second)
	want := netip.AddrPortFrom(g.external, ourPort)
	if m := s.last().mapping; m.Protocol != "pcp" || m.External != want || m.DoubleNAT {
		t.Fatalf("mapped %+v, want %v by pcp", m, want)
	}
	if s.sent != 2 {
		t.Errorf("%d datagrams, want PCP's two alone", s.sent)
	}
}

func TestBadNetwork(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::1")
	for name, a := range map[string][2]netip.Addr{
		"mixed": {gwAddr, v6}, "no self": {gwAddr, {}}, "no gateway": {{}, selfAddr},
		"unspecified": {netip.IPv4Unspecified(), selfAddr}, "multicast": {netip.MustParseAddr("224.0.0.1"), selfAddr},
	} {
		s := newSim(t, &fakeGateway{pcp: true})
		s.gw, s.self = a[0], a[1]
		s.network()
		if s.sent != 0 || s.c.phase != phaseOff {
			t.Errorf("%s: %d datagrams", name, s.sent)
		}
	}
}

func TestUnreachable(t *testing.T) {
	g := &fakeGateway{upnp: true, external: public}
	s := newSim(t, g)
	s.delay[kindUPnP] = 300 * time.Millisecond
	s.network()
	s.c.unreachable(s.now)
	s.apply()
	if s.c.protocols[kindPCP].state != unknown {
		t.Fatal("given up after one try")
	}
	s.run(260 * time.Millisecond)
	s.c.unreachable(s.now)
	s.apply()
	s.run(time.Second)
	if len(s.notices) != 1 || s.at[0] != 600*time.Millisecond {
		t.Fatalf("mapped at %v, want without the grace", s.at)
	}
}

func TestNatted(t *testing.T) {
	for a, want := range map[string]bool{
		"8.8.8.8": false, "203.0.113.7": false, "100.63.255.255": false, "100.64.0.0": true, "100.127.255.255": true, "100.128.0.0": false,
		"10.0.0.1": true, "172.16.0.1": true, "172.32.0.1": false, "192.168.0.1": true, "192.0.0.2": true, "192.0.2.1": false, "0.0.0.0": true,
		"0.1.2.3": true, "127.0.0.1": true, "169.254.1.1": true, "224.0.0.1": true, "255.255.255.255": true,
		"::": true, "::1": true, "fe80::1": true, "fd00::1": true, "2001:db8::1": false, "::ffff:10.0.0.1": true, "::ffff:8.8.8.8": false,
	} {
		if got := natted(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v, want %v", a, got, want)
		}
	}
	if !natted(netip.Addr{}) {
		t.Error("an unknown address counts as one of the internet")
	}
}
