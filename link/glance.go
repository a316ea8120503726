package link

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/link/punch"
)

const (
	// glanceGap is the least time between two glances, however many links want one.
	glanceGap   = 15 * time.Second
	glanceTries = 3 // 150, 300, 600 ms
	// portNews is how often another port at the same address calls for a round: a NAT
	// that forgets a mapping between two glances has one each time.
	portNews = time.Minute
)

// Glance looks, at little cost, whether STUN servers see this Socket elsewhere than
// before, or at all by now, and has them asked in full only if so. It is for while a
// path goes through a relay. It does not block.
func (s *Socket) Glance() {
	g := s.stun
	g.mu.Lock()
	now := time.Now()
	early := now.Sub(g.glanced) < glanceGap || now.Sub(g.asked) < glanceGap
	if !early {
		g.glanced = now
	}
	g.mu.Unlock()
	if early {
		return
	}
	select {
	case g.peek <- struct{}{}:
	default:
	}
}

// Outside returns the addresses at which servers see this Socket, the most frequent
// first. In vain reports that there are none since no server that was asked answered.
func (s *Socket) Outside() (seen []netip.AddrPort, inVain bool) {
	seen = s.stun.reflexive()
	s.stun.mu.Lock()
	defer s.stun.mu.Unlock()
	return seen, len(seen) == 0 && s.stun.failed > 0
}

// glance asks each server with few requests, and reports whether a round is called for.
func (g *gatherer) glance(ctx context.Context) bool {
	g.mu.Lock()
	servers, before, hard := slices.Clone(g.servers), slices.Clone(g.samples), g.nat.Hard()
	var nodes []netip.AddrPort
	if len(servers) == 0 {
		nodes = slices.Clone(g.nodes)
	}
	g.mu.Unlock()
	if len(servers)+len(nodes) == 0 {
		return false
	}
	home := g.socket.networks().home()
	var samples []punch.Sample
	g.ask(ctx, servers, nodes, glanceTries, func(s punch.Sample, _ netip.AddrPort) { samples = append(samples, s) })
	if ctx.Err() != nil {
		return false
	}
	if len(samples) == 0 {
		if g.unanswered(time.Now(), home) {
			g.socket.changed()
		}
		return false
	}
	known := func(s punch.Sample, same func(a, b netip.AddrPort) bool) bool {
		return slices.ContainsFunc(before, func(o punch.Sample) bool { return same(o.Mapped, s.Mapped) })
	}
	moved := slices.ContainsFunc(samples, func(s punch.Sample) bool {
		return !known(s, func(a, b netip.AddrPort) bool { return a.Addr() == b.Addr() })
	})
	// A hard NAT has a port for each server, and tells nothing by it.
	port := !hard && slices.ContainsFunc(samples, func(s punch.Sample) bool {
		return !known(s, func(a, b netip.AddrPort) bool { return a == b })
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if moved || port && now.Sub(g.ported) >= portNews {
		g.ported = now
		return true
	}
	g.home, g.failed = home, 0
	if !port {
		g.asked = now // what they said then is true
	}
	return false
}
