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
