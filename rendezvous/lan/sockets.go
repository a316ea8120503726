package lan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/kithproject/kith/internal/netmon"
)

// hops is how far own-group multicast may travel, in hops: a home or office
// network with a multicast router between two segments.
const hops = 2

// sockets are the UDP sockets of one Exchange: one per family to send from and
// take unicast on, and one per family that shares the groups' port.
type sockets struct {
	port       uint16
	send4      *net.UDPConn // nil if the family is not there
	send6      *net.UDPConn
	group4     *net.UDPConn
	group6     *net.UDPConn
	pc4        *ipv4.PacketConn // of send4; guarded by mu, as the interface is a socket option
	joined4    *ipv4.PacketConn
	joined6    *ipv6.PacketConn
	openErrors []string

	mu     sync.Mutex // guards the fields below and pc4's interface
	use    []netmon.Interface
	joined map[joinKey]bool
	failed map[string]string // by interface and family: why the group was not joined
}

type joinKey struct {
	index int
	six   bool
}

func listen(network, address string, reuse bool) (*net.UDPConn, error) {
	lc := net.ListenConfig{}
	if reuse {
		lc.Control = shareAddress
	}
	pc, err := lc.ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

func openSockets(cfg Config) (*sockets, error) {
	s := &sockets{port: cfg.Port, joined: make(map[joinKey]bool), failed: make(map[string]string)}
	var err4, err6 error
	if s.send4, err4 = listen("udp4", ":0", false); err4 == nil {
		s.pc4 = ipv4.NewPacketConn(s.send4)
		_ = s.pc4.SetMulticastTTL(hops)
		_ = s.pc4.SetMulticastLoopback(true)
	}
	if s.send6, err6 = listen("udp6", "[::]:0", false); err6 == nil {
		pc6 := ipv6.NewPacketConn(s.send6)
		_ = pc6.SetMulticastHopLimit(hops)
		_ = pc6.SetMulticastLoopback(true)
	}
	if err4 != nil && err6 != nil {
		return nil, fmt.Errorf("lan: no UDP socket: %w", errors.Join(err4, err6))
	}
	if cfg.DisableMulticast {
		return s, nil
	}
	port := strconv.Itoa(int(cfg.Port))
	var err error
	if s.send4 != nil {
		if s.group4, err = listen("udp4", ":"+port, true); err == nil {
			s.joined4 = ipv4.NewPacketConn(s.group4)
		} else {
			s.openErrors = append(s.openErrors, err.Error())
		}
	}
	if s.send6 != nil {
		if s.group6, err = listen("udp6", "[::]:"+port, true); err == nil {
			s.joined6 = ipv6.NewPacketConn(s.group6)
		} else {
			s.openErrors = append(s.openErrors, err.Error())
		}
	}
	return s, nil
}

func (s *sockets) all() []*net.UDPConn {
	return slices.DeleteFunc([]*net.UDPConn{s.send4, s.send6, s.group4, s.group6}, func(c *net.UDPConn) bool { return c == nil })
}

func (s *sockets) close() {
	for _, c := range s.all() {
		c.Close()
	}
}

// receive reads every socket until it is closed. The buffer that take gets is
// valid during the call.
func (s *sockets) receive(wg *sync.WaitGroup, take func(b []byte, from netip.AddrPort)) {
	for _, c := range s.all() {
		wg.Go(func() {
			buf := make([]byte, datagramSize+1)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					continue // an ICMP error of a datagram sent earlier, or one that was too long
				}
				take(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
			}
		})
	}
}

func has4(i netmon.Interface) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

func has6(i netmon.Interface) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// setInterfaces joins the groups on new interfaces and leaves those that have
// gone.
func (s *sockets) setInterfaces(use []netmon.Interface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use = use
	s.failed = make(map[string]string)
	here := make(map[joinKey]bool)
	for _, i := range use {
		ifi := &net.Interface{Index: i.Index, Name: i.Name}
		if s.joined4 != nil && has4(i) {
			s.join(joinKey{i.Index, false}, i.Name, here, func() error {
				return s.joined4.JoinGroup(ifi, &net.UDPAddr{IP: Group4().AsSlice()})
			})
		}
		if s.joined6 != nil && has6(i) {
			s.join(joinKey{i.Index, true}, i.Name, here, func() error {
				return s.joined6.JoinGroup(ifi, &net.UDPAddr{IP: Group6().AsSlice()})
			})
		}
	}
	for key := range s.joined {
		if !here[key] {
			delete(s.joined, key) // the system dropped the membership with the address
		}
	}
}

func (s *sockets) join(key joinKey, name string, here map[joinKey]bool, join func() error) {
	here[key] = true
	if s.joined[key] {
		// A membership does not survive all that can happen to an interface;
		// joining twice is refused and harms nothing.
		_ = join()
		return
	}
	if err := join(); err != nil && !alreadyJoined(err) {
		family := "IPv4"
		if key.six {
			family = "IPv6"
		}
		s.failed[name+family] = fmt.Sprintf("%s %s multicast: %v", name, family, err)
		return
	}
	s.joined[key] = true
}

// multicast sends a datagram to the groups on every interface, and returns on
// how many it went out.
func (s *sockets) multicast(d []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := 0
	var errs []error
	for _, i := range s.use {
		if s.pc4 != nil && has4(i) {
			err := s.pc4.SetMulticastInterface(&net.Interface{Index: i.Index, Name: i.Name})
			if err == nil {
				_, err = s.send4.WriteToUDPAddrPort(d, netip.AddrPortFrom(Group4(), s.port))
			}
			if err == nil {
				sent++
			} else {
				errs = append(errs, err)
			}
		}
		if s.send6 != nil && has6(i) {
			_, err := s.send6.WriteToUDPAddrPort(d, netip.AddrPortFrom(Group6().WithZone(i.Name), s.port))
			if err == nil {
				sent++
			} else {
				errs = append(errs, err)
			}
		}
	}
	return sent, errors.Join(errs...)
}

// unicast sends a datagram to one address.
func (s *sockets) unicast(d []byte, to netip.AddrPort) error {
	conn := s.send4
	if to.Addr().Is6() {
		conn = s.send6
	}
	if conn == nil {
		return fmt.Errorf("lan: no socket for %s", to)
	}
	if _, err := conn.WriteToUDPAddrPort(d, to); err != nil {
		return fmt.Errorf("lan: %w", err)
	}
	return nil
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
	s.mu.Lock()
	use := s.use
	s.mu.Unlock()
	sent := 0
	var errs []error
	for _, i := range use {
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

func portOf(c *net.UDPConn) uint16 {
	if c == nil {
		return 0
	}
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// own reports whether an address is this Exchange's.
func (s *sockets) own(ap netip.AddrPort) bool {
	port := portOf(s.send4)
	if ap.Addr().Is6() {
		port = portOf(s.send6)
	}
	if ap.Port() != port {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.use {
		for _, p := range i.Addrs {
			if p.Addr() == ap.Addr().WithZone("") {
				return true
			}
		}
	}
	return false
}

var sharedRange = netip.MustParsePrefix("100.64.0.0/10") //nolint:gochecknoglobals // a constant, RFC 6598

// local reports whether an address belongs to a local network.
func local(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || (a.Is4() && sharedRange.Contains(a))
}

// endpoints are the local-network addresses with the unicast ports.
func (s *sockets) endpoints() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out, linkLocal []netip.AddrPort
	for _, i := range s.use {
		for _, p := range i.Addrs {
			a := p.Addr()
			port := portOf(s.send4)
			if a.Is6() {
				port = portOf(s.send6)
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

// state returns the interfaces in use and what does not work.
func (s *sockets) state() (names, failed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.use {
		names = append(names, i.Name)
	}
	failed = append(failed, s.openErrors...)
	for _, why := range s.failed {
		failed = append(failed, why)
	}
	slices.Sort(failed)
	return names, failed
}
