package portmap

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A sim runs a core against a fakeGateway in its own time.
type sim struct {
	t       testing.TB
	c       *core
	g       *fakeGateway
	now     time.Time
	start   time.Time
	queue   []event
	gw      netip.Addr
	self    netip.Addr
	ok      bool
	delay   [kinds]time.Duration // of answers
	lose    func(b []byte) bool  // requests that get lost
	notices []notice
	at      []time.Duration // of notices
	sent    int             // datagrams
	lookups int
	steps   int
}

type event struct {
	at time.Time
	do func()
}

func newSim(t testing.TB, g *fakeGateway) *sim {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := &sim{t: t, g: g, now: start, start: start, gw: gwAddr, self: selfAddr, ok: true}
	if g.boot.IsZero() {
		g.boot = start.Add(-1000 * time.Hour)
	}
	next := uint16(50000)
	s.c = &core{
		port: ourPort, lifetime: DefaultLifetime, udpPort: serverPort,
		nonce:  func(gw, self netip.Addr) [12]byte { return [12]byte{1, gw.As16()[15], self.As16()[15]} },
		random: func() uint16 { next++; return next },
	}
	return s
}

// network is Refresh.
func (s *sim) network() {
	s.c.network(s.now, s.gw, s.self, s.ok, true)
	s.apply()
}

func (s *sim) apply() {
	for {
		e := s.c.take()
		for _, n := range e.notices {
			s.notices, s.at = append(s.notices, n), append(s.at, s.now.Sub(s.start))
		}
		for _, p := range e.packets {
			s.sent++
			if s.lose != nil && s.lose(p) {
				continue
			}
			k := kindPCP
			if p[0] == 0 {
				k = kindPMP
			}
			if a := s.g.packet(s.now, p); a != nil {
				from := netip.AddrPortFrom(s.gw, serverPort)
				s.after(s.delay[k], func() { s.c.packet(s.now, from, a) })
			}
		}
		if e.job != nil {
			r := s.g.job(*e.job)
			d := s.delay[kindUPnP]
			if r.err != nil && upnpCode(r.err) == 0 {
				d = ssdpFor
			}
			s.after(d, func() { s.c.done(s.now, r) })
		}
		if !e.lookup {
			return
		}
		s.lookups++
		s.c.network(s.now, s.gw, s.self, s.ok, false)
	}
}

func (s *sim) after(d time.Duration, do func()) {
	s.queue = append(s.queue, event{s.now.Add(d), do})
	slices.SortStableFunc(s.queue, func(a, b event) int { return a.at.Compare(b.at) })
}

// run lets time go on.
func (s *sim) run(d time.Duration) {
	s.t.Helper()
	end := s.now.Add(d)
	for limit := s.steps + 2000 + int(d/time.Second); ; s.steps++ {
		if s.steps > limit {
			s.t.Fatalf("a busy loop: phase %d, deadline %v, now %v", s.c.phase, s.c.deadline(), s.now)
		}
		next, do := s.c.deadline(), func() { s.c.tick(s.now) }
		if len(s.queue) > 0 && (next.IsZero() || !s.queue[0].at.After(next)) {
			next, do = s.queue[0].at, s.queue[0].do
			if next.After(end) {
				break
			}
			s.queue = s.queue[1:]
		}
		if next.IsZero() || next.After(end) {
			break
		}
		if next.After(s.now) {
			s.now = next
		}
		do()
		s.apply()
	}
	s.now = end
}

func (s *sim) last() notice {
	s.t.Helper()
	if len(s.notices) == 0 {
		s.t.Fatal("nothing was reported")
	}
	return s.notices[len(s.notices)-1]
}

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
		"none":                     {g: &fakeGateway{}},
		"all refuse":               {g: &fakeGateway{pcp: true, pmp: true, upnp: true, pcpError: 2, pmpError: 2, addCode: 606}},
		"mute":                     {g: &fakeGateway{pcp: true, pmp: true, upnp: true, mute: true}},
		"answers come after hours": {g: &fakeGateway{pcp: true}, delay: [kinds]time.Duration{forever, forever, forever}},
	} {
		t.Run(name, func(t *testing.T) {
			g := c.g
			g.external = public
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
		"another nonce": pcpMapRequest(selfAddr, [12]byte{9}, ourPort, netip.AddrPort{}, time.Hour),
		"another port":  pcpMapRequest(selfAddr, s.c.nonce(gwAddr, selfAddr), ourPort+1, netip.AddrPort{}, time.Hour),
		"nat-pmp":       pmpMapRequest(ourPort, ourPort, time.Hour),
	} {
		g := &fakeGateway{pcp: true, pmp: true, external: public, boot: s.g.boot}
		s.c.packet(s.now, s.c.server, g.packet(s.now, req))
		if s.c.phase != phaseMapping || len(s.c.take().notices) != 0 {
			t.Errorf("%s was taken for the answer", name)
		}
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
