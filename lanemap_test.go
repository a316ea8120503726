package kith

import (
	"net/netip"
	"testing"

	"github.com/kithproject/kith/link/portmap"
)

// TestLaneMapOffers is about what is offered of what the router does: the latest of its
// IPv4 ports, and no IPv6 address of before, of whose end nothing tells.
func TestLaneMapOffers(t *testing.T) {
	n := new(Node)
	m := &n.laneMap
	m.port = 40000
	at := netip.MustParseAddrPort
	note := func(to string, ok, double bool) {
		m.note(n, 40000, portmap.Mapping{External: at(to), DoubleNAT: double}, ok)
	}
	check := func(want ...string) {
		t.Helper()
		got := m.endpoints(40000)
		if len(got) != len(want) || len(got) == 1 && got[0] != at(want[0]) {
			t.Errorf("%v is offered, want %v", got, want)
		}
	}
	check()
	for _, old := range []string{"[2001:db8:1::1]:40000", "[2001:db8:2::1]:40000", "[2001:db8:3::1]:40000"} {
		note(old, true, false)
	}
	check()
	note("192.0.2.1:41000", true, false)
	check("192.0.2.1:41000")
	note("192.0.2.1:42000", true, false)
	note("[2001:db8:3::1]:40000", false, false)
	check("192.0.2.1:42000")
	m.note(n, 39999, portmap.Mapping{External: at("192.0.2.1:43000")}, true) // of a listener of before
	check("192.0.2.1:42000")
	if got := m.endpoints(39999); got != nil {
		t.Errorf("%v is offered for another port", got)
	}
	note("10.0.0.1:42000", true, true)
	check()
	note("192.0.2.1:42000", true, false)
	note("192.0.2.1:42000", false, false)
	check()
}
