package portmap

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestChoice(t *testing.T) {
	ms := time.Millisecond
	const forever = time.Hour
	for name, c := range map[string]struct {
		g     *fakeGateway
		delay [kinds]time.Duration
		want  string // protocol; "" none
		at    time.Duration
		maps  int
	}{
		"all":                      {g: &fakeGateway{pcp: true, pmp: true, upnp: true}, delay: [kinds]time.Duration{ms, ms, ms}, want: "pcp", at: 2 * ms, maps: 1},
		"pcp within the grace":     {g: &fakeGateway{pcp: true, pmp: true, upnp: true}, delay: [kinds]time.Duration{200 * ms, ms, ms}, want: "pcp", at: 400 * ms, maps: 1},
		"pcp after the grace":      {g: &fakeGateway{pcp: true, pmp: true, upnp: true}, delay: [kinds]time.Duration{300 * ms, ms, ms}, want: "nat-pmp", at: 252 * ms, maps: 1},
		"both after the grace":     {g: &fakeGateway{pcp: true, pmp: true, upnp: true}, delay: [kinds]time.Duration{400 * ms, 400 * ms, 2 * ms}, want: "upnp", at: 254 * ms, maps: 1},
		"nat-pmp alone":            {g: &fakeGateway{pmp: true}, delay: [kinds]time.Duration{ms, ms, ms}, want: "nat-pmp", at: 252 * ms, maps: 1},
		"nat-pmp that says so":     {g: &fakeGateway{pmp: true, pmpReject: true}, delay: [kinds]time.Duration{ms, ms, ms}, want: "nat-pmp", at: 2 * ms, maps: 1},
		"upnp alone":               {g: &fakeGateway{upnp: true}, delay: [kinds]time.Duration{0, 0, 900 * ms}, want: "upnp", at: (900 + 250 + 900) * ms, maps: 1},
		"upnp late":                {g: &fakeGateway{upnp: true}, delay: [kinds]time.Duration{0, 0, 10 * time.Second}, want: "upnp", at: 20 * time.Second, maps: 1},
		"pcp without announce":     {g: &fakeGateway{pcp: true, noAnnounce: true}, want: "pcp", maps: 1},
		"pcp refuses":              {g: &fakeGateway{pcp: true, pmp: true, pcpError: 2, pcpErrorLife: 600}, want: "nat-pmp", maps: 1},
		"pcp and nat-pmp refuse":   {g: &fakeGateway{pcp: true, pmp: true, upnp: true, pcpError: 8, pmpError: 2}, want: "upnp", maps: 1},
		"refused, upnp late":       {g: &fakeGateway{pcp: true, upnp: true, pcpError: 2}, delay: [kinds]time.Duration{ms, 0, 2 * time.Second}, want: "upnp", at: 4250 * ms, maps: 1},
		"wrong nonce":              {g: &fakeGateway{pcp: true, upnp: true, badNonce: true}, want: "upnp", at: 3750 * ms, maps: maxSends + 1},
		"a lifetime of nothing":    {g: &fakeGateway{pcp: true, granted: 3 * time.Second}},
		"another family":           {g: &fakeGateway{pcp: true, external: netip.MustParseAddr("2001:db8::1")}},
		"none":                     {g: &fakeGateway{}},
		"all refuse":               {g: &fakeGateway{pcp: true, pmp: true, upnp: true, pcpError: 2, pmpError: 2, addCode: 606}},
		"mute":                     {g: &fakeGateway{pcp: true, pmp: true, upnp: true, mute: true}},
		"answers come after hours": {g: &fakeGateway{pcp: true}, delay: [kinds]time.Duration{forever, forever, forever}},
	} {
		t.Run(name, func(t *testing.T) {
			g := c.g
			if !g.external.IsValid() {
				g.external = public
			}
			s := newSim(t, g)
			s.delay = c.delay
			s.network()
			s.run(25 * time.Second)
			if c.want == "" {
				if len(s.notices) != 0 || s.c.phase != phaseQuiet {
					t.Fatalf("reported %v in phase %d, want silence", s.notices, s.c.phase)
				}
				return
			}
			if len(s.notices) != 1 || !s.notices[0].ok || s.notices[0].mapping.Protocol != c.want {
				t.Fatalf("reported %+v, want one mapping by %s", s.notices, c.want)
			}
			if c.at != 0 && s.at[0] != c.at {
				t.Errorf("after %v, want %v", s.at[0], c.at)
			}
			m := s.notices[0].mapping
			want := Mapping{
				Protocol: c.want, Internal: ourPort, External: netip.AddrPortFrom(public, ourPort),
				Gateway: gwAddr, Expires: s.start.Add(s.at[0] + DefaultLifetime),
			}
			if m != want {
				t.Errorf("reported %+v, want %+v", m, want)
			}
			if g.maps != c.maps || g.mapped != ourPort || g.internal != ourPort {
				t.Errorf("%d requests mapped %d to %d, want %d for one mapping of our port", g.maps, g.mapped, g.internal, c.maps)
			}
		})
	}
}

// TestRetransmission loses what is lost most annoyingly: the first packets.
func TestRetransmission(t *testing.T) {
	g := &fakeGateway{pcp: true, external: public}
	s := newSim(t, g)
	n := 0
	s.lose = func(b []byte) bool { n++; return b[0] == 2 && n <= 4 }
	s.network()
	s.run(5 * time.Second)
	if len(s.notices) != 1 || s.at[0] != 750*time.Millisecond {
		t.Fatalf("reported %v at %v, want one mapping after 750ms", s.notices, s.at)
	}
}

func TestQuiet(t *testing.T) {
	t.Run("asked again after 20 minutes", func(t *testing.T) {
		g := &fakeGateway{external: public}
		s := newSim(t, g)
		s.network()
		s.run(19 * time.Minute)
		if s.sent != 2*maxSends || s.lookups != 0 {
			t.Fatalf("%d datagrams and %d lookups in 19 minutes, want %d and none", s.sent, s.lookups, 2*maxSends)
		}
		g.pcp = true
		s.run(2 * time.Minute)
		if len(s.notices) != 1 {
			t.Fatal("not asked again")
		}
	})
	t.Run("asked again on Refresh", func(t *testing.T) {
		g := &fakeGateway{external: public}
		s := newSim(t, g)
		s.network()
		s.run(5 * time.Minute)
		g.pmp = true
		s.network()
		s.run(time.Second)
		if len(s.notices) != 1 {
			t.Fatal("not asked again")
		}
	})
	for name, c := range map[string]struct {
		g    *fakeGateway
		from time.Duration // asked again after
	}{
		"an error for a minute":  {&fakeGateway{pcp: true, pcpError: 8, pcpErrorLife: 60}, time.Minute},
		"an error for a second":  {&fakeGateway{pcp: true, pcpError: 8, pcpErrorLife: 1}, minRetry},
		"an error for a year":    {&fakeGateway{pcp: true, pcpError: 8, pcpErrorLife: 1 << 25}, quietFor},
		"no uplink yet":          {&fakeGateway{pmp: true, pmpError: 3}, minRetry},
		"out of resources":       {&fakeGateway{pmp: true, pmpError: 4}, minRetry},
		"not authorized for now": {&fakeGateway{pmp: true, pmpError: 2}, quietFor},
	} {
		t.Run(name, func(t *testing.T) {
			g := c.g
			g.external = public
			s := newSim(t, g)
			s.network()
			s.run(5 * time.Second) // everybody has answered or not
			g.pcpError, g.pmpError = 0, 0
			s.run(c.from - 6*time.Second)
			if len(s.notices) != 0 {
				t.Fatalf("asked again after %v", s.at[0])
			}
			s.run(12 * time.Second)
			if len(s.notices) != 1 {
				t.Fatal("not asked again")
			}
		})
	}
}

func TestRenew(t *testing.T) {
	for name, g := range map[string]*fakeGateway{
		"pcp": {pcp: true}, "nat-pmp": {pmp: true}, "upnp": {upnp: true}, "upnp without leases": {upnp: true, onlyPermanent: true},
	} {
		t.Run(name, func(t *testing.T) {
			g.external = public
			s := newSim(t, g)
			s.network()
			s.run(59 * time.Minute)
			if g.maps != 1 {
				t.Fatalf("%d requests before half of the life", g.maps)
			}
			s.run(2 * time.Minute)
			if g.maps != 2 {
				t.Fatalf("%d requests after half of the life, want 2", g.maps)
			}
			s.run(240 * time.Hour)
			if g.maps < 240 || g.maps > 243 {
				t.Errorf("%d requests in ten days", g.maps)
			}
			if len(s.notices) != 1 {
				t.Errorf("%d reports, but nothing changed", len(s.notices))
			}
			if s.c.permanent != s.notices[0].mapping.Expires.IsZero() {
				t.Errorf("expires %v", s.notices[0].mapping.Expires)
			}
		})
	}
	t.Run("unanswered", func(t *testing.T) {
		g := &fakeGateway{pcp: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(time.Minute)
		g.mute = true
		s.run(DefaultLifetime - time.Minute - time.Second)
		if len(s.notices) != 1 {
			t.Fatal("given up before the end of its life")
		}
		s.run(2 * time.Second)
		if len(s.notices) != 2 || s.last().ok {
			t.Fatal("not reported lost at the end of its life")
		}
		g.mute = false
		s.run(21 * time.Minute)
		if len(s.notices) != 3 || !s.last().ok {
			t.Fatal("not mapped again")
		}
	})
	t.Run("refused", func(t *testing.T) {
		g := &fakeGateway{pcp: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(time.Minute)
		g.pcpError, g.pcpErrorLife = 8, 60
		s.run(time.Hour)
		if len(s.notices) != 2 || s.last().ok {
			t.Fatalf("reported %v, want it lost", s.notices)
		}
		g.pcpError = 0
		s.run(21 * time.Minute)
		if !s.last().ok {
			t.Fatal("not mapped again")
		}
	})
}

func TestReboot(t *testing.T) {
	for name, g := range map[string]*fakeGateway{"pcp": {pcp: true}, "nat-pmp": {pmp: true}, "upnp": {upnp: true}} {
		t.Run(name, func(t *testing.T) {
			g.external = public
			s := newSim(t, g)
			s.network()
			s.run(10 * time.Minute)
			g.reboot(s.now)
			s.run(checkUPnP + time.Second)
			if g.mapped != ourPort || g.maps != 2 {
				t.Fatalf("external port %d after %d requests, want it mapped again", g.mapped, g.maps)
			}
			if len(s.notices) != 1 {
				t.Errorf("reported %v, but the address is the same", s.notices[1:])
			}
			// With the next uplink address the same.
			g.reboot(s.now)
			g.external = netip.MustParseAddr("198.51.100.9")
			s.run(checkUPnP + time.Second)
			if len(s.notices) != 2 || s.last().mapping.External != netip.AddrPortFrom(g.external, ourPort) {
				t.Errorf("reported %+v, want the new address", s.last())
			}
		})
	}
	t.Run("the address alone", func(t *testing.T) {
		for name, g := range map[string]*fakeGateway{"nat-pmp": {pmp: true}, "upnp": {upnp: true}} {
			g.external = public
			s := newSim(t, g)
			s.network()
			s.run(10 * time.Minute)
			g.external = netip.MustParseAddr("100.64.3.4")
			s.run(checkUPnP + time.Second)
			if m := s.last().mapping; len(s.notices) != 2 || !s.last().ok || m.External.Addr() != g.external || !m.DoubleNAT {
				t.Errorf("%s: reported %+v, want the new address behind a second NAT", name, s.last())
			}
		}
	})
}

func TestUPnPCodes(t *testing.T) {
	for name, c := range map[string]struct {
		g      *fakeGateway
		port   uint16 // 0: none mapped
		leases []time.Duration
	}{
		"free":               {&fakeGateway{}, ourPort, []time.Duration{DefaultLifetime}},
		"taken":              {&fakeGateway{taken: map[uint16]bool{ourPort: true, 50001: true}}, 50002, []time.Duration{DefaultLifetime, DefaultLifetime, DefaultLifetime}},
		"no leases":          {&fakeGateway{onlyPermanent: true}, ourPort, []time.Duration{DefaultLifetime, 0}},
		"taken, no leases":   {&fakeGateway{onlyPermanent: true, taken: map[uint16]bool{ourPort: true}}, 50001, []time.Duration{DefaultLifetime, DefaultLifetime, 0}},
		"failed":             {&fakeGateway{addCode: upnpActionFailed}, 0, []time.Duration{DefaultLifetime, 0}},
		"invalid":            {&fakeGateway{addCode: upnpInvalidArgs}, 0, []time.Duration{DefaultLifetime, 0}},
		"same port required": {&fakeGateway{addCode: upnpSamePort}, 0, []time.Duration{DefaultLifetime}},
		"not authorized":     {&fakeGateway{addCode: 606}, 0, []time.Duration{DefaultLifetime}},
		"all taken":          {&fakeGateway{addCode: upnpConflict}, 0, slices.Repeat([]time.Duration{DefaultLifetime}, maxTries)},
	} {
		t.Run(name, func(t *testing.T) {
			g := c.g
			g.upnp, g.external = true, public
			s := newSim(t, g)
			s.network()
			s.run(time.Minute)
			if !slices.Equal(g.leases, c.leases) {
				t.Errorf("asked with leases %v, want %v", g.leases, c.leases)
			}
			if c.port == 0 {
				if len(s.notices) != 0 {
					t.Errorf("reported %v", s.notices)
				}
				return
			}
			if m := s.last().mapping; m.External.Port() != c.port || m.Internal != ourPort || g.mapped != c.port {
				t.Errorf("mapped %+v, want port %d", m, c.port)
			}
		})
	}
}

// TestChecks holds what the question in between is for.
func TestChecks(t *testing.T) {
	t.Run("somebody removed it", func(t *testing.T) {
		g := &fakeGateway{upnp: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(10*time.Minute + time.Second)
		g.mapped = 0
		s.run(checkUPnP)
		if g.mapped != ourPort || len(s.notices) != 1 {
			t.Errorf("external port %d, %d reports", g.mapped, len(s.notices))
		}
	})
	t.Run("no answers", func(t *testing.T) {
		g := &fakeGateway{pcp: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(time.Second)
		s.lose = func(b []byte) bool { return b[1] == pcpAnnounce }
		s.run(2*checkEvery + 30*time.Second)
		if g.maps != 1 {
			t.Fatalf("%d requests after two checks", g.maps)
		}
		s.run(checkEvery)
		if g.maps != 2 {
			t.Fatalf("%d requests after three checks, want it renewed", g.maps)
		}
	})
	t.Run("the address changes before a renewal", func(t *testing.T) {
		g := &fakeGateway{pmp: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(DefaultLifetime/2 + grace - time.Millisecond) // it was mapped after the grace
		g.external = netip.MustParseAddr("198.51.100.9")
		s.run(time.Second)
		if g.maps != 3 || s.last().mapping.External.Addr() != g.external {
			t.Errorf("%d requests, reported %+v", g.maps, s.last())
		}
	})
	t.Run("two uplinks in turn", func(t *testing.T) {
		for _, g := range []*fakeGateway{{pmp: true}, {upnp: true}, {pcp: true}} {
			g.external, g.other = public, netip.MustParseAddr("198.51.100.9")
			s := newSim(t, g)
			s.network()
			s.run(time.Hour)
			if len(s.notices) > 62 || s.sent > 250 {
				t.Errorf("%s: %d reports and %d datagrams in an hour", s.last().mapping.Protocol, len(s.notices), s.sent)
			}
		}
	})
	t.Run("the gateway starts anew before a renewal", func(t *testing.T) {
		for _, permanent := range []bool{false, true} {
			g := &fakeGateway{upnp: true, onlyPermanent: permanent, external: public}
			s := newSim(t, g)
			s.network()
			s.run(DefaultLifetime/2 - 10*time.Second)
			g.reboot(s.now)
			s.run(time.Minute)
			if g.mapped != ourPort || len(s.notices) != 1 {
				t.Errorf("permanent %v: external port %d, %d reports", permanent, g.mapped, len(s.notices))
			}
		}
	})
	t.Run("the gateway stays away", func(t *testing.T) {
		g := &fakeGateway{upnp: true, onlyPermanent: true, external: public}
		s := newSim(t, g)
		s.network()
		s.run(time.Minute)
		g.mute = true
		s.run(3*checkUPnP + time.Minute)
		if len(s.notices) != 2 || s.last().ok {
			t.Errorf("reported %v, want a mapping without end lost", s.notices)
		}
	})
}
