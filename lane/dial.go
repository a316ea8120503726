package lane

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

const (
	stagger  = 30 * time.Millisecond // between dials: the better ones first, but no waiting
	dialTime = 3 * time.Second       // for one connection and its handshake
	minPort  = 1024                  // of what another device may make this one dial
)

// usable reports whether an address may be offered, and dialed because another
// device offers it.
func (s *Service) usable(a netip.Addr) bool {
	switch {
	case a.IsLoopback():
		return s.cfg.Loopback
	case !a.IsValid(), a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case identity.Prefix().Contains(a): // with an interface for the tunnel, that would be the tunnel again
		return false
	}
	return true
}

// endpoints returns what this device offers: its own addresses and what is mapped.
func (s *Service) endpoints(port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(to netip.AddrPort) {
		to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
		if len(out) < maxEndpoints && to.Port() >= minPort && s.usable(to.Addr()) && !slices.Contains(out, to) {
			out = append(out, to)
		}
	}
	if s.cfg.Mapped != nil {
		for _, to := range s.cfg.Mapped(port) {
			add(to)
		}
	}
	for _, a := range s.cfg.Addrs() {
		add(netip.AddrPortFrom(a, port))
	}
	return out
}

// near reports whether two addresses are likely to be of one network.
func near(a, b netip.Addr) bool {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	return err == nil && p.Contains(b)
}

// order returns the indexes of endpoints, those in a network of ours first.
func (s *Service) order(to []netip.AddrPort) []int {
	ours := s.cfg.Addrs()
	var first, then []int
	for i, t := range to {
		if slices.ContainsFunc(ours, func(a netip.Addr) bool { return near(a.Unmap(), t.Addr()) }) {
			first = append(first, i)
		} else {
			then = append(then, i)
		}
	}
	return append(first, then...)
}

// attempt is what came of one endpoint.
type attempt struct {
	index  int
	s      *session // nil if it failed
	reason Reason
}

// dialAll dials all endpoints of an invitation, and gives each result to out until
// ctx ends. It returns when nothing of it runs any more.
func (s *Service) dialAll(ctx context.Context, to []netip.AddrPort, cfg *tls.Config, out chan<- attempt) {
	var wg sync.WaitGroup
	defer wg.Wait()
	give := func(a attempt) {
		select {
		case out <- a:
		case <-ctx.Done():
			if a.s != nil {
				a.s.close()
			}
		}
	}
	for _, i := range s.order(to) {
		failed := make(chan struct{})
		wg.Go(func() {
			a := attempt{index: i}
			a.s, a.reason = s.dialOne(ctx, to[i], cfg)
			if a.s == nil {
				close(failed)
			}
			give(a)
		})
		t := time.NewTimer(stagger)
		select {
		case <-t.C:
		case <-failed:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *Service) dialOne(ctx context.Context, to netip.AddrPort, cfg *tls.Config) (*session, Reason) {
	if !s.usable(to.Addr()) || to.Port() < minPort {
		return nil, ReasonNotUsable
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := s.cfg.DialTCP(ctx, to)
	if err != nil {
		return nil, dialReason(err)
	}
	sess, err := clientSession(ctx, &base{Conn: conn}, cfg)
	if err != nil {
		return nil, handshakeReason(err)
	}
	return sess, 0
}

// clientConfig is for dialing an invitation.
func clientConfig(ours *invite, theirs offered) *tls.Config {
	cfg := ours.config()
	cfg.ServerName = nameOf(theirs.token)
	return cfg
}
