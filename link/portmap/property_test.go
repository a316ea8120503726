package portmap

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestAnyDay lets a gateway and a network do whatever they like. The core never
// spins, reports in turn, and has the mapping again when all is well.
func TestAnyDay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := &fakeGateway{external: public}
		s := newSim(t, g)
		s.network()
		flip := func(b *bool) func(*rapid.T) { return func(*rapid.T) { *b = !*b } }
		rt.Repeat(map[string]func(*rapid.T){
			"pcp": flip(&g.pcp), "pmp": flip(&g.pmp), "upnp": flip(&g.upnp), "mute": flip(&g.mute),
			"leases": flip(&g.onlyPermanent), "announce": flip(&g.noAnnounce), "nonce": flip(&g.badNonce),
			"errors": func(rt *rapid.T) {
				g.pcpError = rapid.SampledFrom([]byte{0, 1, 2, 7, 8, 12}).Draw(rt, "pcp")
				g.pcpErrorLife = rapid.Uint32().Draw(rt, "life")
				g.pmpError = rapid.SampledFrom([]uint16{0, 1, 2, 3, 4}).Draw(rt, "pmp")
				g.addCode = rapid.SampledFrom([]int{0, 402, 501, 606, 718, 724, 725, 729}).Draw(rt, "upnp")
				g.granted = time.Duration(rapid.SampledFrom([]int{0, 1, 29, 30, 31, 86400, 1 << 30}).Draw(rt, "granted")) * time.Second
			},
			"lose": func(rt *rapid.T) {
				n := rapid.IntRange(0, 5).Draw(rt, "every")
				i := 0
				s.lose = func([]byte) bool { i++; return n > 0 && i%n == 0 }
			},
			"delay": func(rt *rapid.T) {
				for k := range s.delay {
					s.delay[k] = time.Duration(rapid.IntRange(0, 5000).Draw(rt, "delay")) * time.Millisecond
				}
			},
			"reboot":  func(*rapid.T) { g.reboot(s.now) },
			"network": func(rt *rapid.T) { s.ok = rapid.Bool().Draw(rt, "ok") },
			"self": func(rt *rapid.T) {
				s.self = rapid.SampledFrom([]netip.Addr{selfAddr, netip.MustParseAddr("192.168.1.99")}).Draw(rt, "self")
			},
			"refresh": func(*rapid.T) { s.network() },
			"time": func(rt *rapid.T) {
				s.run(time.Duration(rapid.IntRange(1, 7200_000).Draw(rt, "ms")) * time.Millisecond)
			},
			"": func(rt *rapid.T) {
				have := false
				for i, n := range s.notices {
					if !n.ok && !have {
						rt.Fatalf("notice %d: lost what was never there", i)
					}
					if have = n.ok; n.ok && (n.mapping.Internal != ourPort || n.mapping.External.Port() == 0) {
						rt.Fatalf("notice %d: %+v", i, n.mapping)
					}
				}
				if have != (s.c.phase == phaseHeld) {
					rt.Fatalf("phase %d, but the last report was %v", s.c.phase, have)
				}
			},
		})
		// All is well again.
		g = &fakeGateway{pcp: true, external: public, boot: s.now}
		s.g = g
		s.ok, s.lose, s.delay = true, nil, [kinds]time.Duration{}
		s.run(26 * time.Hour)
		if !s.last().ok || g.mapped != s.last().mapping.External.Port() {
			rt.Fatalf("reported %+v, the gateway has %d, phase %d", s.last(), g.mapped, s.c.phase)
		}
	})
}
