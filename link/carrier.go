package link

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/signaling"
)

// A Carrier takes datagrams to peers another way than the shared socket: through
// a relay, or through a socket of its own that has a hole in a NAT. It must be
// safe for concurrent use.
type Carrier interface {
	// Send sends datagrams to an address. It must not block for a round trip, and
	// errs only if none can be sent.
	Send(bufs [][]byte, to netip.AddrPort) error
}

// A carrierInfo is what a checker knows of a carrier.
type carrierInfo struct {
	id   int
	name string         // of a relay, for people
	addr netip.AddrPort // of a relay: where peers reach us through it
}

// relay reports whether the carrier is one for all peers.
func (i carrierInfo) relay() bool { return i.addr.IsValid() }

// places are where the carrier may try an address that the peer named. A relay
// stands on the internet: it is not asked for private addresses, except those of
// another relay of its own kind of network.
func (i carrierInfo) places(n namedAddr) []place {
	p := onSocket(n.addr)
	ip := p.addr.Addr()
	if !i.relay() || p.addr.Port() == 0 || !ip.IsGlobalUnicast() || ip.Is4() != i.addr.Addr().Is4() {
		return nil
	}
	if outside(ip) || n.kind != signaling.Host && !outside(i.addr.Addr()) {
		return []place{{addr: p.addr, carrier: i.id}}
	}
	return nil
}

// sharedRange is that of carrier NATs (RFC 6598).
var sharedRange = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10) //nolint:gochecknoglobals // never changed

// outside reports whether an address is one of the internet.
func outside(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !sharedRange.Contains(ip)
}

// A Port is a Carrier in use by a Socket. Its methods are safe for concurrent use.
type Port struct {
	socket  *Socket
	carrier Carrier
	info    carrierInfo
	link    *Link // who uses it; nil: all
}

// AttachRelay adds a relay as a way to every peer. name is for people; addr is
// where peers reach us through it.
func (s *Socket) AttachRelay(c Carrier, name string, addr netip.AddrPort) *Port {
	return s.attach(&Port{socket: s, carrier: c, info: carrierInfo{name: name, addr: addr}})
}

func (s *Socket) attach(p *Port) *Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastPort++
	p.info.id = s.lastPort
	s.changeLocked(func(t *table) { t.ports[p.info.id] = p })
	s.tellPortsLocked()
	return p
}

// Detach takes the carrier away from all links; paths over it are left at once.
func (p *Port) Detach() {
	s := p.socket
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changeLocked(func(t *table) {
		delete(t.ports, p.info.id)
		maps.DeleteFunc(t.sources, func(at place, _ source) bool { return at.carrier == p.info.id })
	})
	s.tellPortsLocked()
}

func (s *Socket) tellPortsLocked() {
	for l := range s.links {
		l.order(func(o *orders) { o.ports = true })
	}
}

// ports are the carriers that a link may use, by number.
func (s *Socket) carriersOf(l *Link) []carrierInfo {
	var out []carrierInfo
	for _, p := range s.table.Load().ports {
		if p.link == nil || p.link == l {
			out = append(out, p.info)
		}
	}
	slices.SortFunc(out, func(a, b carrierInfo) int { return a.id - b.id })
	return out
}

// Deliver takes a datagram that came to the carrier. It keeps no reference to it
// and does not block; what comes too fast is lost.
func (p *Port) Deliver(from netip.AddrPort, packet []byte) {
	s := p.socket
	t := s.table.Load()
	at := onSocket(from)
	at.carrier = p.info.id
	if !isWireGuard(packet) {
		s.divert(t, packet, at, nil)
		return
	}
	l := t.sources[at].link
	if l == nil {
		s.stats.unknownSource.Add(1)
		return
	}
	var got tally
	got.add(packet)
	l.received(&got)
	if !s.aside.push(packet, l) {
		s.stats.lost.Add(1)
	}
}

// carry sends datagrams to a place of this carrier.
func (p *Port) carry(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	return p.carrier.Send(bufs, e.remote)
}

// carrier returns what takes packets to places of a number.
func (s *Socket) carrier(number int) (carrier, error) {
	if number == 0 {
		return s, nil
	}
	if p := s.table.Load().ports[number]; p != nil {
		return p, nil
	}
	return nil, net.ErrClosed
}

var _ carrier = (*Port)(nil)

// setCarriers tells the checker which carriers there are besides the socket.
func (c *checker) setCarriers(now time.Time, list []carrierInfo) {
	gone := func(p place) bool {
		return p.carrier != 0 && !slices.ContainsFunc(list, func(i carrierInfo) bool { return i.id == p.carrier })
	}
	c.carriers = list
	c.leave(now, gone)
	c.expand(now)
}

// leave gives up all candidates at some places, and moves to the best other one
// if the selected one is among them.
func (c *checker) leave(now time.Time, gone func(place) bool) {
	for _, cand := range c.all {
		if gone(cand.place) {
			c.lose(now, cand)
		}
	}
	if sel := c.selected; sel != nil && gone(sel.place) {
		other := c.bestBut(sel)
		c.selectPath(now, other)
		if other != nil {
			c.unsure = now // what took away the one may have taken the other
		}
		c.probe(now)
	}
	if c.dormant {
		c.hush() // data, or news of the peer, will ask
	}
	for p, cand := range c.all {
		if gone(p) {
			c.remove(cand)
		}
	}
}

// bestBut returns the best usable candidate other than one, or nil.
func (c *checker) bestBut(one *candidate) *candidate {
	var best *candidate
	for _, cand := range c.all {
		if cand != one && cand.usable && (best == nil || c.compare(cand, best) > 0) {
			best = cand
		}
	}
	return best
}

// kindOf says which sort of path a candidate would be, with our address on it or
// the zero Addr.
func (c *checker) kindOf(cand *candidate, local netip.Addr) PathKind {
	if n := cand.place.carrier; n != 0 {
		if c.relays(n) {
			return Relay
		}
		return Punched
	}
	kind := c.networks.kind(cand.place.addr.Addr(), local)
	switch {
	case kind != Direct:
	case cand.origin == signaling.Relayed:
		return Relay // the peer's
	case cand.origin == signaling.Mapped:
		return Mapped
	case cand.origin != signaling.Host && cand.place.addr.Addr().Is4():
		return Punched
	}
	return kind
}

// relayOnly begins or ends to use relays alone.
func (c *checker) relayOnly(now time.Time, only bool) {
	c.relayed = only
	c.stir(now)
	c.leave(now, func(p place) bool { return only && !c.relays(p.carrier) })
	c.expand(now)
	c.probe(now)
}

// noRelays begins or ends to use no relay, also none of the peer's.
func (c *checker) noRelays(now time.Time, none bool) {
	c.direct = none
	c.stir(now)
	c.leaveRelays(now)
	c.expand(now)
	c.probe(now)
}

// leaveRelays gives up the addresses that the peer has at relays, if none is
// wanted: it may have been heard from there before it said what they are.
func (c *checker) leaveRelays(now time.Time) {
	if c.direct {
		c.leave(now, c.ofRelay)
	}
}

// ofRelay reports whether a place is one that the peer has at a relay, and none is
// wanted.
func (c *checker) ofRelay(p place) bool {
	return c.direct && slices.ContainsFunc(c.named, func(n namedAddr) bool {
		return n.kind == signaling.Relayed && onSocket(n.addr).addr == p.addr
	})
}

// relays reports whether a number is that of a relay.
func (c *checker) relays(number int) bool {
	return slices.ContainsFunc(c.carriers, func(i carrierInfo) bool { return i.id == number && i.relay() })
}

// via is the name of the relay with a number, or "".
func (c *checker) via(number int) string {
	for _, i := range c.carriers {
		if i.id == number {
			return i.name
		}
	}
	return ""
}

// warm asks the next best path now and then while data flows, so that its NAT
// keeps the way open.
func (c *checker) warm(now time.Time) {
	at := c.warmAt(now)
	if at.IsZero() || now.Before(at) {
		return
	}
	c.warmed = now
	c.bestBut(c.selected).next = now
}

// warmAt is when warm has something to do; zero: never.
func (c *checker) warmAt(now time.Time) time.Time {
	if c.selected == nil || !now.Before(c.activeUntil) {
		return time.Time{}
	}
	other := c.bestBut(c.selected)
	if other == nil {
		return time.Time{}
	}
	at := other.lastPing.Add(warmPing)
	if later := c.warmed.Add(warmPing); later.After(at) {
		return later
	}
	return at
}
