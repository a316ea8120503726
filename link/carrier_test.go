package link

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/signaling"
)

const (
	relayA, relayA2, relayB = "198.51.100.1:5001", "198.51.100.11:5011", "198.51.100.2:5002"
)

func namedAs(kind signaling.Kind, addr string) namedAddr {
	return namedAddr{addr: netip.MustParseAddrPort(addr), kind: kind, priority: 500 - uint32(kind)}
}

func relayInfo(id int, name, addr string) carrierInfo {
	return carrierInfo{id: id, name: name, addr: netip.MustParseAddrPort(addr)}
}

func isRelay(a netip.AddrPort) bool { return a.Addr().AsSlice()[0] == 198 }

// straight reports whether no relay takes part in a packet's way.
func straight(p simPacket) bool { return !isRelay(p.src) && !isRelay(p.dst) }

// twoRelayed are two devices that know each other's public and relayed
// addresses. Packets that go straight arrive if open says so.
func twoRelayed(t *testing.T, open *bool) (n *simNet, a, b *simNode) {
	n = newSim(t)
	n.pass = func(p simPacket) (time.Duration, bool) {
		if straight(p) {
			return 8 * time.Millisecond, *open
		}
		return 20 * time.Millisecond, true
	}
	a, b = n.add("a", []string{netA}), n.add("b", []string{netB})
	a.setCarriers(n.now, []carrierInfo{relayInfo(7, "one", relayA)})
	b.setCarriers(n.now, []carrierInfo{relayInfo(3, "two", relayB)})
	a.setRemote(n.now, []namedAddr{namedAs(signaling.Reflexive, netB), namedAs(signaling.Relayed, relayB)})
	b.setRemote(n.now, []namedAddr{namedAs(signaling.Reflexive, netA), namedAs(signaling.Relayed, relayA)})
	return n, a, b
}

// moves counts how often data changed its way after a time.
func (n *simNode) movesSince(at time.Duration) int {
	moves := 0
	var last string
	for _, ev := range n.events {
		way := ev.path.Remote.String() + ev.path.Via
		if ev.kind != Changed || way != last {
			if ev.at >= at && last != "" {
				moves++
			}
		}
		last = way
	}
	return moves
}

func TestRelayFirstThenStraight(t *testing.T) {
	for _, opens := range []time.Duration{0, 50 * time.Millisecond, 700 * time.Millisecond, 5 * time.Second, 90 * time.Second} {
		t.Run(opens.String(), func(t *testing.T) {
			open := opens == 0
			n, a, b := twoRelayed(t, &open)
			talk := func(d time.Duration) {
				for end := n.now.Add(d); n.now.Before(end); {
					a.traffic(n.now, true, time.Time{})
					b.traffic(n.now, true, time.Time{})
					n.run(min(250*time.Millisecond, end.Sub(n.now)))
				}
			}
			talk(opens)
			if !open && opens > time.Second {
				if a.selected == nil || a.selected.kind != Relay || b.selected == nil || b.selected.kind != Relay {
					t.Fatalf("a uses %s, b uses %s, want relays", a.selectedAddr(), b.selectedAddr())
				}
			}
			open = true
			talk(refreshPing + 10*time.Second) // unproven addresses are asked once a minute
			for _, node := range []*simNode{a, b} {
				if sel := node.selected; sel == nil || sel.kind != Punched || sel.place.carrier != 0 || node.last().path.Via != "" {
					t.Fatalf("%s uses %s: %v", node.name, node.selectedAddr(), node.events)
				}
			}
			settled := n.now.Sub(simStart)
			talk(10 * time.Minute)
			n.run(10 * time.Minute)
			for _, node := range []*simNode{a, b} {
				if moves := node.movesSince(0); moves > 3 || node.movesSince(settled) != 0 {
					t.Errorf("%s flaps, %d moves: %v", node.name, moves, node.events)
				}
				for _, ev := range node.events {
					if ev.kind == Down {
						t.Errorf("%s was down: %v", node.name, node.events)
					}
				}
			}
		})
	}
}

func TestRelayCarriesWhenTheStraightPathDies(t *testing.T) {
	open := true
	n, a, _ := twoRelayed(t, &open)
	n.run(10 * time.Second)
	if a.selected == nil || a.selected.kind != Punched {
		t.Fatalf("path %s", a.selectedAddr())
	}
	open = false
	died := n.now.Sub(simStart)
	sendEvery(n, a, 20*time.Millisecond, 4*time.Second)
	if ev := a.last(); a.selected == nil || a.selected.kind != Relay || ev.kind != Changed || ev.at-died > pathLimit {
		t.Errorf("path %s, events %v", a.selectedAddr(), a.events)
	}
}

func TestNextBestPathIsKeptWarm(t *testing.T) {
	open := true
	n, a, _ := twoRelayed(t, &open)
	n.run(5 * time.Second)
	last := n.now
	pass := n.pass
	n.pass = func(p simPacket) (time.Duration, bool) {
		if !straight(p) && p.p.kind == ping && !p.dst.Addr().IsPrivate() && slices.Contains(a.addrs, p.src) {
			if gap := n.now.Sub(last); gap > warmPing+time.Second {
				t.Fatalf("the next best path was not asked for %s", gap)
			}
			last = n.now
		}
		return pass(p)
	}
	for range 300 {
		a.traffic(n.now, true, time.Time{})
		n.run(time.Second)
	}
	if n.now.Sub(last) > warmPing+time.Second {
		t.Errorf("the next best path was last asked at %s", last.Sub(simStart))
	}
	before := a.pings
	n.run(10 * time.Minute) // no data: its NAT may forget
	if got := a.pings - before; got > 35 {
		t.Errorf("%d pings in ten idle minutes", got)
	}
}

func TestCarrierDetached(t *testing.T) {
	one, two := relayInfo(7, "one", relayA), relayInfo(8, "two", relayA2)
	for _, tc := range []struct {
		name  string
		have  []carrierInfo
		left  []carrierInfo
		moved string // Via of the path after it; "-": down
	}{
		{"the only relay", []carrierInfo{one}, nil, "-"},
		{"one of two", []carrierInfo{one, two}, []carrierInfo{two}, "two"},
		{"the other one of two", []carrierInfo{one, two}, []carrierInfo{one}, "one"},
		{"one that is replaced", []carrierInfo{one}, []carrierInfo{two}, "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			open := false
			n, a, b := twoRelayed(t, &open)
			b.setCarriers(n.now, nil) // b is reached at its public address alone
			a.setRemote(n.now, []namedAddr{namedAs(signaling.Reflexive, netB)})
			a.setCarriers(n.now, tc.have)
			n.run(3 * time.Second)
			gone := func(id int) bool {
				return id != 0 && !slices.ContainsFunc(tc.left, func(i carrierInfo) bool { return i.id == id })
			}
			if a.selected == nil {
				t.Fatalf("no path: %v", a.events)
			}
			if !gone(a.selected.place.carrier) { // have the one selected that goes
				for _, cand := range a.all {
					if gone(cand.place.carrier) && cand.usable {
						a.selectPath(n.now, cand)
					}
				}
			}
			events := len(a.events)
			a.setCarriers(n.now, tc.left)
			a.check(t)
			via := "-"
			if a.selected != nil {
				via = a.path(a.selected).Via
			}
			if via != tc.moved {
				t.Errorf("at once: via %q, want %q", via, tc.moved)
			}
			if got := len(a.events) - events; got != 1 {
				t.Errorf("%d events: %v", got, a.events[events:])
			}
			for p := range a.all {
				if gone(p.carrier) {
					t.Errorf("%v is still a candidate", p)
				}
			}
			n.run(time.Second)
			if len(tc.left) > 0 && a.selected == nil {
				t.Errorf("no path through what is left: %v", a.events)
			}
		})
	}
}

func TestDetachedFromUnderStraightPath(t *testing.T) {
	open := true
	n, a, _ := twoRelayed(t, &open)
	n.run(10 * time.Second)
	events := len(a.events)
	a.setCarriers(n.now, nil)
	n.run(time.Minute)
	if a.selectedAddr() != netB || a.selected.place.carrier != 0 {
		t.Errorf("path %s", a.selectedAddr())
	}
	for _, ev := range a.events[events:] {
		if ev.kind == Down {
			t.Errorf("events %v", a.events[events:])
		}
	}
	// It was selected: the relay's end moves it to the straight path at once.
	a.setCarriers(n.now, []carrierInfo{relayInfo(9, "nine", relayA)})
	n.run(time.Second)
	relayed := a.all[place{addr: netip.MustParseAddrPort(netB), carrier: 9}]
	if relayed == nil || !relayed.usable {
		t.Fatal("the relay is no path")
	}
	a.selectPath(n.now, relayed)
	a.setCarriers(n.now, nil)
	if a.selectedAddr() != netB || a.selected.place.carrier != 0 || a.last().kind != Changed {
		t.Errorf("path %s, events %v", a.selectedAddr(), a.last())
	}
}

// watchStraight fails the test for every packet of a node that goes past relays
// of its own.
func watchStraight(t *testing.T, n *simNet, node *simNode) {
	pass := n.pass
	n.pass = func(p simPacket) (time.Duration, bool) {
		if slices.Contains(node.addrs, p.src) {
			t.Errorf("%s sent a packet of type %d from %s to %s", node.name, p.p.kind, p.src, p.dst)
		}
		return pass(p)
	}
}

func TestRelayOnlySendsNothingStraight(t *testing.T) {
	open := true
	n, a, b := twoRelayed(t, &open)
	n.run(time.Second)
	if a.selected == nil || a.selected.kind != Punched {
		t.Fatalf("path %s", a.selectedAddr())
	}
	a.relayOnly(n.now, true)
	a.check(t)
	watchStraight(t, n, a)
	for range 20 {
		a.setRemote(n.now, []namedAddr{
			namedAs(signaling.Reflexive, netB), namedAs(signaling.Host, lanB), namedAs(signaling.Relayed, relayB), namedAs(signaling.Mapped, netB),
		})
		a.probe(n.now)
		a.traffic(n.now, true, time.Time{})
		b.probe(n.now) // b pings straight, and through its relay
		a.setNetworks(n.now, networks{iface("eth0", "192.168.1.1/24")})
		n.run(5 * time.Second)
		for p := range a.all {
			if p.carrier == 0 {
				t.Fatalf("%v is a candidate", p)
			}
		}
		if a.selected == nil || a.selected.kind != Relay || a.last().path.Via != "one" {
			t.Fatalf("path %s: %v", a.selectedAddr(), a.events)
		}
	}
	pongs := a.pongs
	a.onPing(n.now, onSocket(netip.MustParseAddrPort(netB)), nil, probe{kind: ping, session: 4711, seq: 1})
	if a.pongs != pongs {
		t.Error("a straight ping was answered")
	}
	// Back again: straight paths are found.
	n.pass = func(simPacket) (time.Duration, bool) { return time.Millisecond, true }
	a.relayOnly(n.now, false)
	n.run(time.Second)
	if a.selectedAddr() != netB || a.selected.place.carrier != 0 {
		t.Errorf("path %s", a.selectedAddr())
	}
}

// TestNoRelay holds that who refuses relays is not reached through the peer's either,
// whether it was heard from there before it said what the address is or after, and
// that straight paths are as ever.
func TestNoRelay(t *testing.T) {
	for _, first := range []string{"heard", "named"} {
		t.Run(first, func(t *testing.T) {
			open := false
			n, a, b := twoRelayed(t, &open)
			a.setCarriers(n.now, nil)
			a.noRelays(n.now, true)
			if first == "heard" {
				a.setRemote(n.now, []namedAddr{namedAs(signaling.Reflexive, netB)})
				// That b's relay is one, a cannot know.
				n.run(2 * time.Second)
				if a.selectedAddr() != relayB {
					t.Fatalf("path %q before b has named its relay", a.selectedAddr())
				}
			}
			a.setRemote(n.now, []namedAddr{namedAs(signaling.Reflexive, netB), namedAs(signaling.Relayed, relayB)})
			pings, pongs := a.pings, a.pongs
			for range 20 {
				b.probe(n.now)
				n.run(5 * time.Second)
			}
			if a.selected != nil || b.selected != nil {
				t.Fatalf("paths %q and %q", a.selectedAddr(), b.selectedAddr())
			}
			if a.pongs != pongs || a.all[onSocket(netip.MustParseAddrPort(relayB))] != nil {
				t.Errorf("%d answers to b's relay after %d pings", a.pongs-pongs, a.pings-pings)
			}
			open = true
			a.probe(n.now)
			n.run(2 * time.Second)
			if a.selectedAddr() != netB {
				t.Errorf("path %q, want the straight one", a.selectedAddr())
			}
		})
	}
}

func TestRelayOnlyWithoutRelayIsDown(t *testing.T) {
	n, a, _ := twoHomes(t)
	a.remotes(lanB, netB)
	n.run(time.Second)
	a.relayOnly(n.now, true)
	pings := a.pings
	n.run(time.Hour)
	if a.last().kind != Down || a.selected != nil || a.pings != pings {
		t.Errorf("%d pings, events %v", a.pings-pings, a.events)
	}
}

func TestWhatARelayIsAskedFor(t *testing.T) {
	public, public6 := relayInfo(1, "one", relayA), relayInfo(2, "six", "[2001:db8::1]:5")
	private := relayInfo(3, "home", "192.168.1.9:5001")
	for _, tc := range []struct {
		relay carrierInfo
		kind  signaling.Kind
		addr  string
		want  bool
	}{
		{public, signaling.Reflexive, netB, true},
		{public, signaling.Host, netB, true},
		{public, signaling.Relayed, relayB, true},
		{public, signaling.Mapped, "[::ffff:203.0.113.2]:2222", true},
		{public, signaling.Host, lanB, false},
		{public, signaling.Relayed, lanB, false}, // the kind is the peer's word alone
		{public, signaling.Reflexive, "10.0.0.1:1", false},
		{public, signaling.Mapped, "172.16.0.1:1", false},
		{public, signaling.Relayed, "100.64.0.1:1", false},
		{public, signaling.Relayed, "127.0.0.1:1", false},
		{public, signaling.Relayed, "169.254.0.1:1", false},
		{public, signaling.Relayed, "0.0.0.0:1", false},
		{public, signaling.Relayed, "224.0.0.1:1", false},
		{public, signaling.Relayed, "255.255.255.255:1", false},
		{public, signaling.Relayed, "203.0.113.2:0", false},
		{public, signaling.Relayed, "[::ffff:192.168.1.2]:1", false},
		{public, signaling.Host, "[2001:db8::2]:1", false}, // of the other family
		{public6, signaling.Host, "[2001:db8::2]:1", true},
		{public6, signaling.Relayed, "[fd00::2]:1", false},
		{public6, signaling.Relayed, "[fe80::2]:1", false},
		{public6, signaling.Relayed, "[::1]:1", false},
		{public6, signaling.Host, netB, false},
		{private, signaling.Host, lanB, false},
		{private, signaling.Relayed, "192.168.1.7:5", true}, // another relay at home
		{private, signaling.Relayed, relayB, true},
		{carrierInfo{id: 4}, signaling.Reflexive, netB, false}, // a hole is for one peer's address
	} {
		t.Run(fmt.Sprintf("%s %s via %s", tc.kind, tc.addr, tc.relay.addr), func(t *testing.T) {
			n, a, _ := twoHomes(t)
			a.loopback = true
			a.setCarriers(n.now, []carrierInfo{tc.relay})
			asked := false
			n.pass = func(p simPacket) (time.Duration, bool) {
				asked = asked || p.src == tc.relay.addr
				return time.Millisecond, true
			}
			a.setRemote(n.now, []namedAddr{namedAs(tc.kind, tc.addr)})
			n.run(time.Second)
			if asked != tc.want {
				t.Errorf("asked: %v", asked)
			}
		})
	}
}

func TestThroughEachRelayOnlyTheBest(t *testing.T) {
	n := newSim(t)
	a := n.add("a", []string{netA})
	var relays []carrierInfo
	for i := range 3 {
		relays = append(relays, relayInfo(i+1, "r", fmt.Sprintf("198.51.100.%d:5", i+1)))
	}
	a.setCarriers(n.now, relays)
	asked := make(map[int]map[netip.AddrPort]bool)
	var list []namedAddr
	for i := range 100 {
		list = append(list, namedAddr{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 1, byte(i)}), 9), kind: signaling.Host, priority: uint32(i)})
	}
	n.pass = func(p simPacket) (time.Duration, bool) {
		which := slices.IndexFunc(relays, func(i carrierInfo) bool { return i.addr == p.src }) // -1: the socket
		if asked[which] == nil {
			asked[which] = make(map[netip.AddrPort]bool)
		}
		asked[which][p.dst] = true
		return 0, false
	}
	a.setRemote(n.now, list)
	n.run(time.Hour)
	for which, addrs := range asked {
		want := maxThrough
		if which < 0 {
			want = maxRemote
		}
		if len(addrs) != want || !addrs[list[99].addr] {
			t.Errorf("carrier %d: %d addresses, want %d", which, len(addrs), want)
		}
	}
	if len(asked) != 4 {
		t.Errorf("%d carriers used", len(asked))
	}
}
