package link

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/signaling"
)

// TestStaleReflexiveAddresses: what STUN servers said is forgotten when they are
// silent for long, or on another network.
func TestStaleReflexiveAddresses(t *testing.T) {
	here := netmon.Interface{Name: "eth0", Up: true, Addrs: iface("", "192.168.1.2/24").Addrs}
	there := netmon.Interface{Name: "eth0", Up: true, Addrs: iface("", "10.1.2.3/24").Addrs}
	vpn := netmon.Interface{Name: "tun0", Up: true, Virtual: true, Addrs: iface("", "10.9.0.1/24").Addrs}
	type step struct {
		wait    time.Duration
		answers bool
		on      []netmon.Interface
		offered bool
	}
	home := []netmon.Interface{here}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"silent for moments", []step{{0, true, home, true}, {time.Second, false, home, true}, {time.Second, false, home, true}, {time.Second, false, home, true}, {time.Second, false, home, true}}},
		{"silent for minutes, but asked twice only", []step{{0, true, home, true}, {time.Second, false, home, true}, {time.Hour, false, home, true}}},
		{"silent for minutes", []step{
			{0, true, home, true}, {time.Second, false, home, true}, {time.Minute, false, home, true},
			{time.Minute, false, home, true}, {time.Minute, false, home, false}, {time.Minute, false, home, false},
		}},
		{"an answer in between", []step{
			{0, true, home, true}, {time.Second, false, home, true}, {time.Minute, false, home, true},
			{time.Minute, true, home, true}, {time.Minute, false, home, true}, {time.Minute, false, home, true},
		}},
		{"another network without UDP", []step{{0, true, home, true}, {time.Second, false, []netmon.Interface{there}, false}}},
		{"a VPN comes up", []step{{0, true, home, true}, {time.Second, false, []netmon.Interface{here, vpn}, true}}},
		{"no network", []step{{0, true, home, true}, {time.Second, false, nil, false}}},
		{"forgotten, and back", []step{{0, true, home, true}, {time.Second, false, nil, false}, {time.Second, true, home, true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now step
				a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: func(m *stun.Message) []airPacket {
					if !now.answers {
						return nil
					}
					return sees(usOutside, 20*time.Millisecond)(m)
				}})
				defer a.close()
				a.look = func() ([]netmon.Interface, error) { return now.on, nil }
				offered := false
				for i, s := range tc.steps {
					pass(s.wait)
					now = s
					told := len(a.told())
					a.ask(t, goodSTUN)
					pass(listAge)
					got := slices.ContainsFunc(a.Local(), func(c signaling.Candidate) bool { return c.Kind == signaling.Reflexive })
					if got != s.offered {
						t.Errorf("step %d: the address from outside is offered: %v", i, got)
					}
					if known := a.NAT() != (punch.Behaviour{}); known != s.offered {
						t.Errorf("step %d: the NAT is known: %v", i, known)
					}
					if news := len(a.told()) > told; news != (got != offered) {
						t.Errorf("step %d: told %v, offered before %v, now %v", i, news, offered, got)
					}
					offered = got
				}
			})
		})
	}
}
