package nettest

import (
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
)

const (
	maxUplinks = 254 // of one Internet: uplink k has the addresses 11.k.0.0/16
	maxHosts   = 150 // of one site
)

// An Internet connects public hosts and homes behind NATs. Its router keeps no
// connection state, and what has no destination vanishes without an answer.
//
// Addresses look public to every program, but never leave the lab: uplink k has
// 11.k.0.0/16 and 2a0e:fade:k::/48. An Internet and what is part of it must be
// changed by one goroutine at a time.
type Internet struct {
	Router *Host
	lab    *Lab
	n      int // uplinks made
}

// A place is where an Internet has connected a host.
type place struct {
	site  *Site // nil for a server
	n     int   // number of the host in its site
	ifi   string
	port  string // of the switch
	addrs []netip.Addr
}

// A Site is a home: a router with a NAT, a LAN behind it and hosts there.
type Site struct {
	Name   string
	NAT    NAT
	Router *Host   // eth0 is its uplink, eth1 its LAN
	LAN    *Bridge // hosts and the router's eth1
	Uplink *Bridge // the public side: of the carrier where there is one

	inet    *Internet
	k       int        // number of the uplink
	gen     int        // how often the public address has changed
	far     string     // the Internet router's interface to Uplink
	port    string     // its port at the switch
	gws     []*gateway // the home's, then the carrier's
	hosts   []*Host
	hostsN  int // hosts ever here
	daemons []*Process
	dead    atomic.Bool // the uplink is cut
}

// Internet returns the lab's Internet, which it makes at the first call.
func (l *Lab) Internet() *Internet {
	l.t.Helper()
	if l.inet != nil {
		return l.inet
	}
	i := &Internet{lab: l, Router: l.Host("inet").Router()}
	i.Router.sysctl("net/ipv4/icmp_ratelimit", "0")
	i.Router.Addr("lo", gatewayV4+"/32")
	// An address that nobody has, or has no more, does not answer.
	i.Router.IP("route", "add", "blackhole", "default")
	i.Router.IP("-6", "route", "add", "blackhole", "default")
	l.inet = i
	return i
}

// gatewayV4 is the Internet router's address on each of its links.
const gatewayV4 = "11.0.0.1"

func v4(k, c, d int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(k), byte(c), byte(d)}) }

func v6(k, subnet, d int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x2a, 1: 0x0e, 2: 0xfa, 3: 0xde, 5: byte(k), 7: byte(subnet), 14: byte(d >> 8), 15: byte(d)})
}

// uplink connects a router or server to the Internet's router by a link of its
// own and returns its number, the Internet router's interface and its port.
func (i *Internet) uplink(h *Host) (b *Bridge, k int, far, port string) {
	i.lab.t.Helper()
	if i.n == maxUplinks {
		i.lab.t.Fatalf("an Internet has at most %d uplinks", maxUplinks)
	}
	i.n++
	b = i.lab.Bridge("wan" + strconv.Itoa(i.n))
	far, port = i.Router.attach(b)
	h.Attach(b)
	return b, i.n, far, port
}

// attach is Attach; it returns the names of the interface and its port.
func (h *Host) attach(b *Bridge) (ifi, port string) {
	h.lab.t.Helper()
	h.Attach(b)
	return fmt.Sprintf("eth%d", h.next-1), fmt.Sprintf("p%d", h.lab.n)
}

// publicV4 gives h the address a on eth0, an end of an uplink.
func (i *Internet) publicV4(h *Host, far string, a netip.Addr) {
	i.lab.t.Helper()
	i.Router.IP("route", "add", a.String()+"/32", "dev", far)
	h.Addr("eth0", a.String()+"/32")
	h.IP("route", "replace", gatewayV4+"/32", "dev", "eth0")
	h.IP("route", "replace", "default", "via", gatewayV4, "dev", "eth0")
}

func (i *Internet) publicV6(h *Host, k int, far string) netip.Addr {
	i.lab.t.Helper()
	i.Router.Addr(far, v6(k, 0, 1).String()+"/64")
	h.Addr("eth0", v6(k, 0, 2).String()+"/64")
	h.Route("default", "via", v6(k, 0, 1).String())
	return v6(k, 0, 2)
}

// Server makes a public host with two IPv4 addresses and one IPv6 address; see
// [Host.Addrs].
func (i *Internet) Server(name string) *Host {
	i.lab.t.Helper()
	h := i.lab.Host(name)
	_, k, far, port := i.uplink(h)
	h.at = &place{ifi: "eth0", port: port}
	for _, a := range []netip.Addr{v4(k, 0, 2), v4(k, 1, 2)} {
		i.publicV4(h, far, a)
		h.at.addrs = append(h.at.addrs, a)
	}
	h.at.addrs = append(h.at.addrs, i.publicV6(h, k, far))
	return h
}

// Addrs returns the addresses that an Internet has given to a host: a Server's
// two IPv4 addresses and its IPv6 address, or the one address of a host at a
// Site. It has none for other hosts.
func (h *Host) Addrs() []netip.Addr {
	if h.at == nil {
		return nil
	}
	return append([]netip.Addr(nil), h.at.addrs...)
}

// Cut makes a server's uplink or a host's cable dead, or alive again: what is sent
// into it vanishes. Nobody sees a loss of carrier.
func (i *Internet) Cut(h *Host, cut bool) {
	i.lab.t.Helper()
	if h.at == nil {
		i.lab.t.Fatalf("%s is not connected to an Internet", h.Name)
	}
	i.lab.cut(h.at.port, cut)
}

func (l *Lab) cut(port string, cut bool) {
	l.t.Helper()
	state := "3" // forwarding
	if cut {
		state = "0" // disabled
	}
	// The same by ip has no effect.
	l.run("bridge", "-n", l.sw.ns, "link", "set", "dev", port, "state", state)
}

// Site makes a home with a router and nobody in it. Its name has no meaning but
// for people: the router's host is called "r-" and the name, a carrier's "c-" and
// the name. It skips the test where the kind needs a program that is missing.
func (i *Internet) Site(name string, nat NAT) *Site {
	l := i.lab
	l.t.Helper()
	home, carrier := nat.kinds(l.t)
	s := &Site{Name: name, NAT: nat, inet: i, Router: l.Host("r-" + name).Router()}
	edge := s.Router
	if carrier != "" {
		edge = l.Host("c-" + name).Router()
	}
	s.Uplink, s.k, s.far, s.port = i.uplink(edge)
	s.gws = []*gateway{{host: s.Router, kind: home, web: nat == NATUDPBlocked, upnp: nat.upnp()}}
	if home == natV6 {
		i.publicV6(edge, s.k, s.far)
	} else {
		i.publicV4(edge, s.far, s.Public())
	}
	if carrier != "" {
		s.gws = append(s.gws, &gateway{host: edge, kind: carrier})
		b, net := l.Bridge("cgn"+strconv.Itoa(s.k)), netip.AddrFrom4([4]byte{100, 64, byte(s.k), 0})
		edge.Attach(b, nth(net, 1).String()+"/24")
		s.Router.Attach(b, nth(net, 2).String()+"/24").Route("default", "via", nth(net, 1).String())
	}
	s.LAN = l.Bridge("lan" + strconv.Itoa(s.k))
	s.Router.Attach(s.LAN)
	s.openLAN()
	for _, g := range s.gws {
		g.load()
		g.wake()
	}
	s.startDaemons()
	return s
}

// Public returns the address that others see: the carrier's where there is one,
// else the router's. Behind a router without NAT ([NATNone], [NATv6Firewall]) each
// host has an address of its own, and this one is the router's alone.
func (s *Site) Public() netip.Addr {
	if s.NAT == NATv6Firewall {
		return v6(s.k, 0, 2)
	}
	return v4(s.k, 0, 2+s.gen)
}

// Gateway returns the router's address in the LAN, to which the hosts' default
// routes lead.
func (s *Site) Gateway() netip.Addr {
	net, _ := s.lan()
	return nth(net, 1)
}

// lan returns the network address of the LAN and its prefix length in bits.
func (s *Site) lan() (netip.Addr, int) {
	switch s.NAT {
	case NATv6Firewall:
		return v6(s.k, 1+s.gen, 0), 64
	case NATNone:
		return v4(s.k, 16+s.gen, 0), 24
	default:
		return netip.AddrFrom4([4]byte{192, 168, byte(s.k), 0}), 24
	}
}

// nth returns the n-th address after a network's; n is less than 256.
func nth(net netip.Addr, n int) netip.Addr {
	b := net.AsSlice()
	b[len(b)-1] += byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// openLAN gives the LAN its network, and the route to it where it is public.
func (s *Site) openLAN() {
	s.inet.lab.t.Helper()
	net, bits := s.lan()
	s.Router.Addr("eth1", fmt.Sprintf("%v/%d", s.Gateway(), bits))
	if s.ownAddresses() {
		s.inet.Router.Route(fmt.Sprintf("%v/%d", net, bits), "via", s.Public().String(), "dev", s.far, "onlink")
	}
}

// ownAddresses says whether hosts of the site have public addresses.
func (s *Site) ownAddresses() bool { return s.NAT == NATNone || s.NAT == NATv6Firewall }

// Host makes a host in the site's LAN, with an address and a default route.
func (s *Site) Host(name string) *Host {
	s.inet.lab.t.Helper()
	h := s.inet.lab.Host(name)
	s.plug(h)
	return h
}

// Move takes a host out of its LAN, if it is in one, and connects it to this
// site's: its interface with addresses and routes is gone, and then there is a new
// one with another name and another address. Sockets stay open.
func (s *Site) Move(h *Host) {
	s.inet.lab.t.Helper()
	if h.at != nil {
		h.IP("link", "del", h.at.ifi)
		if from := h.at.site; from != nil {
			for k, x := range from.hosts {
				if x == h {
					from.hosts = append(from.hosts[:k], from.hosts[k+1:]...)
					break
				}
			}
		}
	}
	s.plug(h)
}

func (s *Site) plug(h *Host) {
	s.inet.lab.t.Helper()
	if s.hostsN == maxHosts {
		s.inet.lab.t.Fatalf("a site has at most %d hosts", maxHosts)
	}
	h.at = &place{site: s, n: s.hostsN}
	s.hostsN++
	s.hosts = append(s.hosts, h)
	h.at.ifi, h.at.port = h.attach(s.LAN)
	s.configure(h)
}

// configure does what DHCP or a router advertisement would do.
func (s *Site) configure(h *Host) {
	s.inet.lab.t.Helper()
	net, bits := s.lan()
	a := nth(net, 100+h.at.n)
	h.Addr(h.at.ifi, fmt.Sprintf("%v/%d", a, bits))
	family := "-4"
	if a.Is6() {
		family = "-6"
	}
	h.IP(family, "route", "replace", "default", "via", s.Gateway().String(), "dev", h.at.ifi)
	h.at.addrs = []netip.Addr{a}
}

// Cut makes the site's uplink dead, or alive again: what is sent into it vanishes,
// while hosts and router see no loss of carrier.
func (s *Site) Cut(cut bool) {
	s.inet.lab.t.Helper()
	s.dead.Store(cut)
	s.inet.lab.cut(s.port, cut)
}

// renumber gives the site another public address, and other addresses to its
// hosts where these are public.
func (s *Site) renumber() {
	t := s.inet.lab.t
	t.Helper()
	if s.gen == maxHosts {
		t.Fatalf("a site changes its address at most %d times", maxHosts)
	}
	old, edge := s.Public(), s.gws[len(s.gws)-1].host
	oldLAN, bits := s.lan()
	s.gen++
	if old.Is4() {
		// The new one comes first: with its last address a device loses its routes.
		s.inet.publicV4(edge, s.far, s.Public())
	}
	if s.ownAddresses() {
		s.openLAN()
		for _, h := range s.hosts {
			was := h.at.addrs[0]
			s.configure(h)
			h.IP("addr", "del", fmt.Sprintf("%v/%d", was, bits), "dev", h.at.ifi)
		}
		s.Router.IP("addr", "del", fmt.Sprintf("%v/%d", nth(oldLAN, 1), bits), "dev", "eth1")
		s.inet.Router.IP("route", "del", fmt.Sprintf("%v/%d", oldLAN, bits), "dev", s.far)
	}
	if old.Is4() {
		edge.IP("addr", "del", old.String()+"/32", "dev", "eth0")
		s.inet.Router.IP("route", "del", old.String()+"/32", "dev", s.far)
	}
}
