package link

import (
	"testing"
	"time"

	"github.com/kithproject/kith/signaling"
)

// punches makes the two devices' NATs let in only who was sent something in the last
// 30 s; out says whether what a sends straight gets out at all.
func punches(n *simNet, out *bool) {
	sent := make(map[[2]string]time.Time)
	n.pass = func(p simPacket) (time.Duration, bool) {
		if !straight(p) {
			return 20 * time.Millisecond, true
		}
		if !*out {
			return 0, false
		}
		sent[[2]string{p.src.String(), p.dst.String()}] = n.now
		last, ok := sent[[2]string{p.dst.String(), p.src.String()}]
		return 8 * time.Millisecond, ok && n.now.Sub(last) < 30*time.Second
	}
}

// TestRelayedBecomesStraight: two devices that have nothing to say leave the relay within
// a minute after UDP gets out of a's home again, of which nothing tells them.
func TestRelayedBecomesStraight(t *testing.T) {
	for _, blocked := range []time.Duration{time.Second, 20 * time.Second, 5 * time.Minute, 3 * time.Hour} {
		t.Run(blocked.String(), func(t *testing.T) {
			var out bool
			n, a, b := twoRelayed(t, new(bool))
			punches(n, &out)
			n.run(blocked)
			if a.selected == nil || a.selected.kind != Relay || b.selected == nil || b.selected.kind != Relay {
				t.Fatalf("a uses %s, b uses %s, want relays", a.selectedAddr(), b.selectedAddr())
			}
			out = true
			n.run(35 * time.Second)
			for _, node := range []*simNode{a, b} {
				if sel := node.selected; sel == nil || sel.kind != Punched {
					t.Errorf("%s uses %s: %v", node.name, node.selectedAddr(), node.events)
				}
			}
		})
	}
}

// TestRelayedCost: what an idle pair spends on that while it is in vain.
func TestRelayedCost(t *testing.T) {
	const watch = 10 * time.Minute
	n, a, b := twoRelayed(t, new(bool))
	for _, node := range []*simNode{a, b} { // as many more addresses as a laptop has
		var list []namedAddr
		for _, addr := range []string{"203.0.113.77:1", "203.0.113.77:2", "192.0.2.10:1", "192.0.2.11:1"} {
			list = append(list, namedAs(signaling.Host, addr))
		}
		node.setRemote(n.now, append(list, node.named...))
	}
	n.run(time.Minute)
	looks := 0
	bytes, straight := a.bytes, 0
	pass := n.pass
	n.pass = func(p simPacket) (time.Duration, bool) {
		if p.src == a.addrs[0] {
			straight++
		}
		return pass(p)
	}
	for end := n.now.Add(watch); n.now.Before(end); {
		n.run(time.Second)
		if a.looks() {
			looks++
		}
	}
	if rounds := int(watch / seekGap); looks > rounds || looks < rounds/2 || straight > 5*rounds {
		t.Errorf("%d looks and %d pings straight in %s, want at most one in %s and one to each of 5 addresses", looks, straight, watch, seekGap)
	}
	if rate := float64(a.bytes-bytes) / watch.Seconds(); rate > 100 {
		t.Errorf("%.0f bytes per second", rate)
	}
}

// TestRelayedSeeksNoMore: nothing goes straight where relays alone are wanted, and nothing
// at all while lazy links sleep.
func TestRelayedSeeksNoMore(t *testing.T) {
	for name, set := range map[string]func(n *simNet, node *simNode){
		"relays alone": func(n *simNet, node *simNode) { node.relayOnly(n.now, true) },
		"lazy":         func(n *simNet, node *simNode) { node.setLazy(n.now, true) },
	} {
		t.Run(name, func(t *testing.T) {
			n, a, b := twoRelayed(t, new(bool))
			set(n, a)
			set(n, b)
			n.run(2 * time.Minute)
			a.looks()
			b.looks()
			pass := n.pass
			n.pass = func(p simPacket) (time.Duration, bool) {
				if straight(p) {
					t.Errorf("%v: %s is asked straight", n.now.Sub(simStart), p.dst)
				}
				return pass(p)
			}
			n.run(10 * time.Minute)
			if a.looks() || b.looks() {
				t.Error("the outside address is looked at")
			}
		})
	}
}
