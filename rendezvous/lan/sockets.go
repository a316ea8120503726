package lan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/kithproject/kith/internal/netmon"
)

// sockets are the UDP sockets of one Exchange that are its own: one per family,
// to send from and to take unicast on.
type sockets struct {
	conns  [2]*conn // IPv4, IPv6; nil: a family that is not there
	chosen bool     // only some interfaces are to be used

	mu  sync.Mutex // guards use
	use []netmon.Interface
}

// openSockets opens a socket of each family, on the same port if it can. It errs
// if there is none.
func openSockets(cfg Config) (*sockets, error) {
	s := &sockets{chosen: len(cfg.Interfaces) > 0}
	var err4, err6 error
	s.conns[0], err4 = openConn(false, 0, false)
	if s.conns[1], err6 = openConn(true, s.conns[0].port(), false); err6 != nil {
		s.conns[1], err6 = openConn(true, 0, false)
	}
	if err4 != nil && err6 != nil {
		return nil, fmt.Errorf("lan: no UDP socket: %w", errors.Join(err4, err6))
	}
	for _, c := range s.all() {
		c.setHops(cfg.HopLimit)
		c.setLinkHops()
	}
	return s, nil
}

func (s *sockets) all() []*conn {
	return slices.DeleteFunc(slices.Clone(s.conns[:]), func(c *conn) bool { return c == nil })
}

func (s *sockets) close() {
	for _, c := range s.all() {
		c.udp.Close()
	}
}

// receive reads both sockets until they are closed.
func (s *sockets) receive(wg *sync.WaitGroup, take func(b []byte, in arrival)) {
	for _, c := range s.all() {
		c.serve(wg, datagramSize, func(b []byte, in arrival) {
			if s.takes(in.index) {
				take(b, in)
			}
		})
	}
}

// takes reports whether datagrams of an interface are wanted.
func (s *sockets) takes(index int) bool {
	if !s.chosen || index == 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.use, func(i netmon.Interface) bool { return i.Index == index })
}

func (s *sockets) setInterfaces(use []netmon.Interface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use = use
}

func (s *sockets) interfaces() []netmon.Interface {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use
}

// unicast sends a datagram to one address. If interfaces were chosen, only the
// networks of those are sent to: which way others go is the routing table's.
func (s *sockets) unicast(d []byte, to netip.AddrPort) error {
	c := s.conns[0]
	if to.Addr().Is6() {
		c = s.conns[1]
	}
	if c == nil {
		return fmt.Errorf("lan: no socket for %s", to)
	}
	if s.chosen && !s.reaches(to.Addr()) {
		return fmt.Errorf("lan: %s is not on a chosen interface", to)
	}
	if _, err := c.udp.WriteToUDPAddrPort(d, to); err != nil {
		return fmt.Errorf("lan: %w", err)
	}
	return nil
}

func (s *sockets) reaches(a netip.Addr) bool {
	use := s.interfaces()
	if a.Zone() != "" {
		return slices.ContainsFunc(use, func(i netmon.Interface) bool { return i.Name == a.Zone() })
	}
	return onLink(use, 0, a)
}

// unicastAny sends to an address of which the interface may not be known: a
// link-local one in a QR code. It returns to how many it went out.
func (s *sockets) unicastAny(d []byte, to netip.AddrPort) (int, error) {
	if !to.Addr().IsLinkLocalUnicast() || !to.Addr().Is6() || to.Addr().Zone() != "" {
		if err := s.unicast(d, to); err != nil {
			return 0, err
		}
		return 1, nil
	}
	sent := 0
	var errs []error
	for _, i := range s.interfaces() {
		if !has6(i) {
			continue
		}
		if err := s.unicast(d, netip.AddrPortFrom(to.Addr().WithZone(i.Name), to.Port())); err != nil {
			errs = append(errs, err)
			continue
		}
		sent++
	}
	return sent, errors.Join(errs...)
}

// own reports whether an address is this Exchange's.
func (s *sockets) own(ap netip.AddrPort) bool {
	c := s.conns[0]
	if ap.Addr().Is6() {
		c = s.conns[1]
	}
	return ap.Port() == c.port() && hasAddr(s.interfaces(), ap.Addr())
}

var sharedRange = netip.MustParsePrefix("100.64.0.0/10") //nolint:gochecknoglobals // a constant, RFC 6598

// local reports whether an address belongs to a local network.
func local(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || (a.Is4() && sharedRange.Contains(a))
}

// endpoints are the local-network addresses with the unicast ports.
func (s *sockets) endpoints() []netip.AddrPort {
	var out, linkLocal []netip.AddrPort
	for _, i := range s.interfaces() {
		for _, p := range i.Addrs {
			a := p.Addr()
			port := s.conns[0].port()
			if a.Is6() {
				port = s.conns[1].port()
			}
			switch {
			case port == 0 || !local(a):
			case a.IsLinkLocalUnicast():
				linkLocal = append(linkLocal, netip.AddrPortFrom(a, port))
			default:
				out = append(out, netip.AddrPortFrom(a, port))
			}
		}
	}
	return append(out, linkLocal...)
}

func names(use []netmon.Interface) []string {
	var out []string
	for _, i := range use {
		out = append(out, i.Name)
	}
	return out
}
