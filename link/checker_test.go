package link

import (
	"net/netip"
	"testing"
	"time"
)

// twoHomes are two devices on one LAN that also reach each other over the
// Internet: 192.168.1/24 and 203.0.113/24.
func twoHomes(t *testing.T) (n *simNet, a, b *simNode) {
	n = newSim(t)
	a = n.add("a", []string{"192.168.1.1:1111", "203.0.113.1:1111"}, iface("eth0", "192.168.1.1/24"), iface("ppp9", "203.0.113.1/32"))
	b = n.add("b", []string{"192.168.1.2:2222", "203.0.113.2:2222"}, iface("eth0", "192.168.1.2/24"), iface("ppp9", "203.0.113.2/32"))
	return n, a, b
}

const (
	lanB, netB = "192.168.1.2:2222", "203.0.113.2:2222"
	lanA, netA = "192.168.1.1:1111", "203.0.113.1:1111"
)

func isLAN(p simPacket) bool { return p.dst.Addr().AsSlice()[0] == 192 }

func TestPathComesUpInOneRoundTrip(t *testing.T) {
	n, a, b := twoHomes(t)
	a.remotes(netB)
	n.run(9 * time.Millisecond)
	if len(a.events) != 0 {
		t.Fatalf("up before the pong: %v", a.events)
	}
	n.run(time.Millisecond)
	if ev := a.last(); ev.kind != Up || ev.at != 10*time.Millisecond || ev.path.RTT != 10*time.Millisecond || ev.path.Observed.String() != netA {
		t.Fatalf("event %+v", ev)
	}
	n.run(5 * time.Millisecond) // b pinged back as soon as a's ping came
	if ev := b.last(); ev.kind != Up || ev.at != 15*time.Millisecond || ev.path.Remote.String() != netA {
		t.Fatalf("b's event %+v", ev)
	}
	n.run(time.Second)
	if a.selected.size != DefaultDataSize || b.selected.size != DefaultDataSize {
		t.Errorf("sizes %d, %d", a.selected.size, b.selected.size)
	}
}

func TestLANWinsAlthoughSlower(t *testing.T) {
	n, a, b := twoHomes(t)
	n.pass = func(p simPacket) (time.Duration, bool) {
		if isLAN(p) {
			return 20 * time.Millisecond, true
		}
		return time.Millisecond, true
	}
	a.remotes(netB, lanB)
	n.run(time.Second)
	if a.selectedAddr() != lanB || a.last().path.Kind != LAN || b.selectedAddr() != lanA {
		t.Errorf("a uses %s, b uses %s", a.selectedAddr(), b.selectedAddr())
	}
	if a.events[0].kind != Up || a.events[0].at != 4*time.Millisecond && a.events[0].at != 2*time.Millisecond {
		t.Errorf("first path came up at %s, want it not to wait for the better one", a.events[0].at)
	}
}

// sendEvery lets the simulation run with data sent every step that nothing answers.
func sendEvery(n *simNet, node *simNode, step, d time.Duration) {
	for end := n.now.Add(d); n.now.Before(end); {
		node.dataSent()
		n.run(step)
	}
}

func TestDeadPathIsLeft(t *testing.T) {
	for _, tc := range []struct {
		name   string
		other  bool // another path is there
		data   bool // data flows
		within time.Duration
	}{
		{"data flows, another path", true, true, 2 * time.Second},
		{"data flows, no other path", false, true, 3100 * time.Millisecond},
		{"idle, another path", true, false, idlePing + 3*time.Second},
		{"idle, no other path", false, false, idlePing + idlePing/20 + 3100*time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, a, b := twoHomes(t)
			a.remotes(lanB, netB)
			b.remotes(lanA, netA)
			n.run(10 * time.Second)
			died := n.now.Sub(simStart)
			n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, tc.other && !isLAN(p) }
			if tc.data {
				sendEvery(n, a, 20*time.Millisecond, 5*time.Second)
			} else {
				n.run(tc.within)
			}
			ev := a.last()
			took := ev.at - died
			t.Logf("%s %s after %s", ev.kind, ev.path.Remote, took)
			if took <= 0 || took > tc.within {
				t.Fatalf("took %s, at most %s", took, tc.within)
			}
			if tc.other && (ev.kind != Changed || a.selectedAddr() != netB) {
				t.Errorf("event %+v, path %s", ev, a.selectedAddr())
			}
			if !tc.other && (ev.kind != Down || a.selected != nil) {
				t.Errorf("event %+v, path %s", ev, a.selectedAddr())
			}
		})
	}
}

func TestOneWayDataKeepsAPathThatAnswers(t *testing.T) {
	n, a, _ := twoHomes(t)
	a.remotes(lanB, netB)
	n.run(time.Second)
	sendEvery(n, a, 50*time.Millisecond, time.Minute)
	if a.selectedAddr() != lanB || len(a.events) > 3 {
		t.Errorf("path %s, events %v", a.selectedAddr(), a.events)
	}
	if a.answers < 50 {
		t.Errorf("the path was proven %d times in a minute of unanswered data, want about once per second", a.answers)
	}
}

func TestPathThatDiesUnderOneWayDataIsLeftInTime(t *testing.T) {
	for _, after := range []time.Duration{100 * time.Millisecond, 777 * time.Millisecond, 1300 * time.Millisecond, 4444 * time.Millisecond} {
		n, a, _ := twoHomes(t)
		a.remotes(lanB, netB)
		n.run(time.Second)
		sendEvery(n, a, 10*time.Millisecond, after)
		died := n.now.Sub(simStart)
		n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, !isLAN(p) }
		sendEvery(n, a, 10*time.Millisecond, 4*time.Second)
		if took := a.last().at - died; took > pathLimit || a.selectedAddr() != netB {
			t.Errorf("after %s: took %s, path %s", after, took, a.selectedAddr())
		}
	}
}

func TestBetterPathIsFoundAgain(t *testing.T) {
	n, a, _ := twoHomes(t)
	n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, !isLAN(p) }
	a.remotes(lanB, netB)
	n.run(20 * time.Second)
	if a.selectedAddr() != netB {
		t.Fatalf("path %s", a.selectedAddr())
	}
	n.pass = func(simPacket) (time.Duration, bool) { return 5 * time.Millisecond, true }
	for range 70 {
		a.traffic(n.now, true, time.Time{})
		n.run(time.Second)
	}
	if a.selectedAddr() != lanB {
		t.Errorf("path %s, want the LAN to be found within a minute of traffic", a.selectedAddr())
	}
}

func TestBlackHoleForLargePackets(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit int // of the LAN
		other bool
		want  string
		size  int
	}{
		{"another path carries data", 1000, true, netB, DefaultDataSize},
		{"no other path", 1000, false, lanB, smallProbe},
		{"no other path, 1312 bytes fit", 1400, false, lanB, 1312},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, a, _ := twoHomes(t)
			n.pass = func(p simPacket) (time.Duration, bool) {
				return 5 * time.Millisecond, isLAN(p) && p.size <= tc.limit || !isLAN(p) && tc.other
			}
			a.remotes(lanB, netB)
			n.run(3 * time.Second)
			if a.selectedAddr() != tc.want {
				t.Errorf("path %s, want %s: %v", a.selectedAddr(), tc.want, a.events)
			}
			n.run(7 * time.Second)
			if a.selected.size != tc.size {
				t.Errorf("size %d, want %d", a.selected.size, tc.size)
			}
			n.pass = func(simPacket) (time.Duration, bool) { return 5 * time.Millisecond, true }
			n.run(2 * time.Minute)
			if !tc.other && a.selected.size != tc.size {
				t.Errorf("without data it is asked for its size")
			}
			a.traffic(n.now, true, time.Time{})
			n.run(time.Second)
			if p := a.path(a.selected); !tc.other && p.Size != DefaultDataSize {
				t.Errorf("after the path was mended, with data: %+v", p)
			}
		})
	}
}

func TestPathNeedsBothWays(t *testing.T) {
	for name, broken := range map[string]func(p simPacket) bool{
		"nothing arrives at b": func(p simPacket) bool { return p.dst.String() == netB },
		"nothing arrives at a": func(p simPacket) bool { return p.dst.String() == netA },
	} {
		t.Run(name, func(t *testing.T) {
			n, a, b := twoHomes(t)
			n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, !broken(p) }
			a.remotes(netB)
			b.remotes(netA)
			n.run(time.Minute)
			if len(a.events)+len(b.events) != 0 || a.data != nil || b.data != nil {
				t.Errorf("events %v, %v", a.events, b.events)
			}
		})
	}
}

func TestPongFromElsewhereProvesNothing(t *testing.T) {
	n, a, _ := twoHomes(t)
	n.mangle = func(p *simPacket) {
		if p.p.kind == pong {
			p.src = netip.MustParseAddrPort("203.0.113.66:2222")
		}
	}
	a.remotes(netB)
	n.run(10 * time.Second)
	if len(a.events) != 0 {
		t.Errorf("events %v", a.events)
	}
}

func TestIdleLinkIsQuiet(t *testing.T) {
	n, a, b := twoHomes(t)
	a.remotes(lanB, netB)
	b.remotes(lanA, netA)
	n.run(time.Minute)
	pings, events := a.pings, len(a.events)
	n.run(10 * time.Minute)
	if got := a.pings - pings; got < 22 || got > 27 {
		t.Errorf("%d pings in ten idle minutes, want one per 25 s", got)
	}
	if len(a.events) != events || a.selectedAddr() != lanB {
		t.Errorf("events %v", a.events)
	}
}

func TestDownBacksOffAndComesBack(t *testing.T) {
	n, a, b := twoHomes(t)
	a.remotes(lanB, netB)
	n.run(time.Second)
	n.pass = func(simPacket) (time.Duration, bool) { return 0, false }
	n.run(time.Minute)
	soon := a.pings
	n.run(30 * time.Second)
	if got := a.pings - soon; got < 2*25 || got > 2*35 {
		t.Errorf("%d pings to two addresses in half a minute soon after the loss, want one per second each", got)
	}
	n.run(15 * time.Minute)
	if a.last().kind != Down {
		t.Fatalf("events %v", a.events)
	}
	pings := a.pings
	n.run(time.Hour)
	if got := a.pings - pings; got < 100 || got > 2*70 {
		t.Errorf("%d pings to two addresses in an hour, want one per minute each", got)
	}
	n.pass = func(simPacket) (time.Duration, bool) { return time.Millisecond, true }
	n.run(70 * time.Second)
	if a.last().kind != Changed && a.last().kind != Up || b.selected == nil {
		t.Errorf("did not come back: %v", a.events)
	}
	// Asked for, it is at once.
	n.pass = func(simPacket) (time.Duration, bool) { return 0, false }
	n.run(5 * time.Minute)
	n.pass = func(simPacket) (time.Duration, bool) { return time.Millisecond, true }
	at := n.now.Sub(simStart)
	a.probe(n.now)
	n.run(100 * time.Millisecond)
	if a.selected == nil || a.last().at-at > 20*time.Millisecond {
		t.Errorf("events %v", a.events)
	}
}

func TestRoundTripHysteresis(t *testing.T) {
	for _, tc := range []struct {
		name   string
		first  time.Duration // one way, of the path in use
		second time.Duration
		want   string
	}{
		{"a little better is not enough", 10 * time.Millisecond, 9 * time.Millisecond, netB},
		{"better by far", 30 * time.Millisecond, 5 * time.Millisecond, "198.51.100.2:2222"},
		{"better by far in parts, not in time", time.Millisecond, 200 * time.Microsecond, netB},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newSim(t)
			a := n.add("a", []string{netA, "198.51.100.1:1111"})
			n.add("b", []string{netB, "198.51.100.2:2222"})
			slow := true
			n.pass = func(p simPacket) (time.Duration, bool) {
				if p.dst.Addr().AsSlice()[0] == 203 {
					return tc.first, true
				}
				return tc.second, !slow
			}
			a.remotes(netB, "198.51.100.2:2222")
			n.run(30 * time.Second)
			slow = false
			for range 200 {
				a.traffic(n.now, true, time.Time{})
				n.run(time.Second)
			}
			if a.selectedAddr() != tc.want {
				t.Errorf("path %s, want %s", a.selectedAddr(), tc.want)
			}
			changes := 0
			for _, ev := range a.events {
				if ev.kind == Changed && ev.path.Remote != a.events[0].path.Remote {
					changes++
				}
			}
			if changes > 1 {
				t.Errorf("flapping: %v", a.events)
			}
		})
	}
}

func TestPeerThatMovedIsFollowed(t *testing.T) {
	n, a, b := twoHomes(t)
	a.remotes(lanB)
	b.remotes(lanA)
	n.run(10 * time.Second)
	// b leaves the LAN and comes back on the Internet: only it knows.
	n.pass = func(p simPacket) (time.Duration, bool) { return 5 * time.Millisecond, !isLAN(p) }
	left := n.now.Sub(simStart)
	b.remotes(netA)
	b.probe(n.now)
	n.run(2 * time.Second)
	if a.selectedAddr() != netB || b.selectedAddr() != netA {
		t.Fatalf("a uses %s, b uses %s", a.selectedAddr(), b.selectedAddr())
	}
	t.Logf("b after %s, a after %s", b.last().at-left, a.last().at-left)
}

func TestLossyPathDoesNotFlap(t *testing.T) {
	n, a, _ := twoHomes(t)
	count := 0
	n.pass = func(p simPacket) (time.Duration, bool) {
		count++
		return 5 * time.Millisecond, !isLAN(p) || count%3 == 0 // the LAN loses two of three
	}
	a.remotes(lanB, netB)
	moves := 0
	for range 120 {
		before := a.selectedAddr()
		sendEvery(n, a, 100*time.Millisecond, time.Second)
		if a.selectedAddr() != before {
			moves++
		}
	}
	if moves > 24 {
		t.Errorf("%d moves in two minutes", moves)
	}
	if a.selected == nil {
		t.Error("no path although one is clean")
	}
}

// TestFarPath: a path with a long round trip comes up as soon as its first answer can be
// there, and is not taken for a dead one, with and without data.
func TestFarPath(t *testing.T) {
	for _, rtt := range []time.Duration{600 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second, 2800 * time.Millisecond} {
		for _, data := range []string{"idle", "answered", "unanswered"} {
			t.Run(rtt.String()+" "+data, func(t *testing.T) {
				n, a, b := twoHomes(t)
				n.pass = func(simPacket) (time.Duration, bool) { return rtt / 2, true }
				a.remotes(lanB, netB)
				n.run(300 * time.Millisecond) // they do not hear of each other at once
				b.remotes(lanA, netA)
				n.run(2*rtt + time.Second)
				for _, node := range []*simNode{a, b} {
					if !node.up || node.events[0].at > rtt+400*time.Millisecond {
						t.Errorf("%s: %v", node.name, node.events)
					}
				}
				for end := n.now.Add(5 * time.Minute); n.now.Before(end); {
					switch data {
					case "unanswered":
						a.dataSent()
					case "answered":
						a.traffic(n.now, true, time.Time{})
					}
					n.run(100 * time.Millisecond)
				}
				for _, node := range []*simNode{a, b} {
					for _, ev := range node.events {
						if ev.kind == Silent || ev.kind == Down {
							t.Errorf("%s: %s after %s", node.name, ev.kind, ev.at)
						}
					}
					if node.selectedAddr() != map[*simNode]string{a: lanB, b: lanA}[node] || node.selected.small {
						t.Errorf("%s: path %s, too small for data: %v", node.name, node.selectedAddr(), node.selected.small)
					}
				}
			})
		}
	}
}
