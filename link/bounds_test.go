package link

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

func TestReplaysAndFloods(t *testing.T) {
	n, a, _ := twoHomes(t)
	a.remotes(lanB)
	n.run(time.Second)
	elsewhere := func(i int) place {
		return onSocket(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 999))
	}
	old := probe{kind: ping, session: 77, seq: 5}
	a.onPing(n.now, elsewhere(0), nil, old)
	pongs, size := a.pongs, len(a.all)
	for i := range 1000 {
		a.onPing(n.now, elsewhere(i), nil, old)
	}
	if a.pongs != pongs || len(a.all) != size {
		t.Errorf("a replayed ping was answered: %d pongs, %d candidates", a.pongs-pongs, len(a.all)-size)
	}
	// New pings, as only the peer can make them, from ever new addresses.
	pings := a.pings
	for i := range 10000 {
		a.onPing(n.now, elsewhere(i), nil, probe{kind: ping, session: 77, seq: uint64(10 + i)})
		a.check(t)
	}
	if got := a.pongs - pongs; got > pongBurst {
		t.Errorf("%d pongs at once, at most %d", got, pongBurst)
	}
	if got := a.pings - pings; got > pongBurst {
		t.Errorf("%d pings sent, at most one per answered ping", got)
	}
	n.run(10 * time.Second)
	if a.selectedAddr() != lanB || a.last().kind == Down {
		t.Errorf("path moved: %v", a.events)
	}
	if a.fresh(a.session, 1) {
		t.Error("our own ping was taken for the peer's")
	}
}

func TestPeerThatRoamsOftenIsStillHeard(t *testing.T) {
	n, a, b := twoHomes(t)
	a.remotes(lanB)
	n.run(time.Second)
	for i := range 3 * maxLearned {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)}), 2222)
		b.addrs = []netip.AddrPort{addr}
		b.probe(n.now)
		n.run(5 * time.Second)
		if a.selectedAddr() != addr.String() {
			t.Fatalf("move %d: path %s, want %s", i, a.selectedAddr(), addr)
		}
		a.traffic(n.now, true, time.Time{})
		b.remotes(netA)
	}
}

func TestManyCandidatesAreBoundedAndPaced(t *testing.T) {
	n, a, _ := twoHomes(t)
	var list []namedAddr
	for i := range 5000 {
		list = append(list, namedAddr{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 7), priority: uint32(i)})
	}
	for range 10 {
		a.setRemote(n.now, list)
		a.probe(n.now)
	}
	n.run(0)
	if a.pings > 1 {
		t.Errorf("%d pings at once", a.pings)
	}
	n.run(maxRemote * pingPace)
	if a.pings != maxRemote || len(a.all) != maxRemote {
		t.Errorf("%d pings to %d candidates", a.pings, len(a.all))
	}
	if a.all[onSocket(list[4999].addr)] == nil || a.all[onSocket(list[0].addr)] != nil {
		t.Error("not the candidates of highest priority were kept")
	}
}

func TestAddressesThatCannotBePeers(t *testing.T) {
	n, a, _ := twoHomes(t)
	for _, s := range []string{"0.0.0.0:1", "[::]:1", "192.168.1.2:0", "224.0.0.1:5", "[ff02::1]:5", "[fe80::1]:5", "255.255.255.255:5", "[fd6b:6974:6800::1]:5"} {
		a.remotes(s)
		if len(a.all) != 0 {
			t.Errorf("%s became a candidate", s)
		}
	}
	a.setRemote(n.now, []namedAddr{{}})
	a.remotes("[::ffff:192.168.1.2]:2222")
	if len(a.all) != 1 || a.all[onSocket(netip.MustParseAddrPort(lanB))] == nil {
		t.Errorf("IPv4-mapped address: %v", a.all)
	}
}

func TestLinkLocalOnEachInterface(t *testing.T) {
	n := newSim(t)
	a := n.add("a", []string{netA})
	a.setNetworks(n.now, networks{
		iface("eth0", "fe80::5/64"), iface("wlan0", "fe80::6/64"), iface("lo", "::1/128"),
		{Name: "docker0", Up: true, Virtual: true, Addrs: []netip.Prefix{netip.MustParsePrefix("fe80::7/64")}},
	})
	a.remotes("[fe80::1]:9")
	if len(a.all) != 2 || a.all[onSocket(netip.MustParseAddrPort("[fe80::1%wlan0]:9"))] == nil {
		t.Errorf("candidates %v", a.all)
	}
	a.setNetworks(n.now, networks{iface("eth0", "fe80::5/64")})
	if len(a.all) != 1 || a.all[onSocket(netip.MustParseAddrPort("[fe80::1%eth0]:9"))] == nil {
		t.Errorf("after wlan0 went away: %v", a.all)
	}
}

func TestSourceAddressThatIsGone(t *testing.T) {
	for name, notice := range map[string]func(a *simNode){
		"data shows it":   func(a *simNode) { a.sendFailed(a.net.now) },
		"a ping shows it": func(a *simNode) { a.probe(a.net.now); a.tick(a.net.now) },
	} {
		t.Run(name, func(t *testing.T) {
			n, a, _ := twoHomes(t)
			a.remotes(lanB)
			n.run(time.Second)
			if a.data.via == nil {
				t.Fatal("no source address after a pong")
			}
			gone := a.data.via
			a.sendErr = func(_ place, via conn.Endpoint) error {
				if via == gone {
					return errors.New("cannot assign requested address")
				}
				return nil
			}
			notice(a)
			if a.data.via != nil {
				t.Error("data still goes out from the address that is gone")
			}
			n.run(100 * time.Millisecond)
			if a.data.via == nil || a.last().kind == Down {
				t.Errorf("the path was not proven anew: %v", a.events)
			}
		})
	}
}
