package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	socketBuffer  = 4 << 20 // bytes asked of the system
	bindAttempts  = 20      // to find one port for TCP and UDP
	maxReadErrors = 100     // in a row, until a socket counts as lost
	controlSize   = 64      // bytes of control messages
)

func familyOf(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}

func udpNetwork(family int) string { return [2]string{"udp4", "udp6"}[family] }

// sockets are all that a hub listens on.
type sockets struct {
	tcp           net.Listener
	port, altPort uint16
	families      [2]*family // IPv4 and IPv6; nil where there is none
	limit         *sources
	m             *meters
	buffers       *buffers
}

// family is the UDP sockets of one address family, by address and port.
type family struct {
	all   *sockets
	socks [2][2]*udpSocket
}

// udpSocket is one UDP socket. A socket for all addresses notes to which address
// each packet came, and answers from there, as clients drop answers from another.
type udpSocket struct {
	fam   *family
	at    place
	conn  *net.UDPConn
	local netip.AddrPort
	notes bool // whether it tells the addresses packets came to
}

// bindAll opens the TCP and UDP port, the second UDP port and both again at the
// second address. It errs with ErrListen.
func bindAll(ctx context.Context, host string, port uint16, alt int, altIP netip.Addr) (*sockets, error) {
	ip, _ := netip.ParseAddr(host) // splitListen has checked it
	altIP = altIP.Unmap()
	if altIP.IsValid() && (!ip.IsValid() || ip.IsUnspecified() || familyOf(ip) != familyOf(altIP) || ip.Unmap() == altIP || alt < 0) {
		return nil, fmt.Errorf("%w: a second address needs a first one of the same family to listen on, not all of them, and a second port", ErrConfig)
	}
	attempts := 1
	if port == 0 {
		attempts = bindAttempts
	}
	var err error
	for range attempts {
		var s *sockets
		if s, err = bindOnce(ctx, host, ip, port, alt, altIP); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrListen, err)
}

func bindOnce(ctx context.Context, host string, ip netip.Addr, port uint16, alt int, altIP netip.Addr) (_ *sockets, err error) {
	s := &sockets{limit: newSources(bindingRate, bindingBurst), buffers: newBuffers()}
	defer func() {
		if err != nil {
			s.close()
			if s.tcp != nil {
				_ = s.tcp.Close()
			}
		}
	}()
	var lc net.ListenConfig
	if s.tcp, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port))); err != nil {
		return s, err
	}
	s.port = addrOf(s.tcp.Addr()).Port()
	wanted := [2]uint16{s.port, 0}
	switch {
	case alt > 0:
		wanted[1] = uint16(alt)
	case alt == 0 && port != 0:
		wanted[1] = port + 1
	}
	all := !ip.IsValid() || ip.IsUnspecified()
	for f, any := range [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		own := ip
		if all {
			own = any
		}
		if familyOf(own) != f || all && host != "" && familyOf(ip) == 0 && f == 1 {
			continue
		}
		fam := &family{all: s}
		for p := range 2 {
			if p == 1 && alt < 0 {
				continue
			}
			for i, a := range [2]netip.Addr{own, altIP} {
				if !a.IsValid() {
					continue
				}
				u, err := bindUDP(ctx, fam, place{i, p}, netip.AddrPortFrom(a, wanted[p]))
				if err != nil {
					if all && f == 1 && fam.socks[0][0] == nil && s.families[0] != nil {
						break // no IPv6 on this machine
					}
					return s, err
				}
				fam.socks[i][p] = u
				wanted[p] = u.local.Port()
			}
		}
		if fam.socks[0][0] != nil {
			s.families[f] = fam
		}
	}
	if s.families[0] == nil && s.families[1] == nil {
		return s, errors.New("no address to listen on")
	}
	if alt >= 0 {
		s.altPort = wanted[1]
	}
	return s, nil
}

func bindUDP(ctx context.Context, fam *family, at place, ap netip.AddrPort) (*udpSocket, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, udpNetwork(familyOf(ap.Addr())), ap.String())
	if err != nil {
		return nil, err
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("not a UDP socket"), pc.Close())
	}
	// The system gives what it allows; a small buffer only loses packets earlier.
	_ = conn.SetReadBuffer(socketBuffer)
	_ = conn.SetWriteBuffer(socketBuffer)
	u := &udpSocket{fam: fam, at: at, conn: conn, local: addrOf(conn.LocalAddr())}
	if ap.Addr().IsUnspecified() {
		// Where the system cannot tell (Windows), answers come from its first address.
		if ap.Addr().Is4() {
			u.notes = ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true) == nil
		} else {
			u.notes = ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst, true) == nil
		}
	}
	return u, nil
}

// each calls f for every socket.
func (s *sockets) each(f func(*udpSocket)) {
	for _, fam := range s.families {
		if fam == nil {
			continue
		}
		for _, row := range fam.socks {
			for _, u := range row {
				if u != nil {
					f(u)
				}
			}
		}
	}
}

// main returns the sockets that also carry TURN, alternates the others.
func (s *sockets) main() (out []*udpSocket) {
	s.each(func(u *udpSocket) {
		if u.at == (place{}) {
			out = append(out, u)
		}
	})
	return out
}

func (s *sockets) alternates() (out []*udpSocket) {
	s.each(func(u *udpSocket) {
		if u.at != (place{}) {
			out = append(out, u)
		}
	})
	return out
}

// has reports whether there is a socket of a family.
func (s *sockets) has(family int) bool { return s.families[family] != nil }

// bound returns the first address of a family.
func (s *sockets) bound(family int) netip.Addr {
	if !s.has(family) {
		return netip.Addr{}
	}
	return s.families[family].socks[0][0].local.Addr()
}

func (s *sockets) close() {
	s.each(func(u *udpSocket) { _ = u.conn.Close() })
}

// control returns the control message that has a packet go out from one of this
// machine's addresses, or nil where that is not needed.
func (u *udpSocket) control(from netip.Addr) []byte {
	switch {
	case !u.notes || !from.IsValid() || from.IsUnspecified():
		return nil
	case from.Is4():
		return (&ipv4.ControlMessage{Src: from.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: from.AsSlice()}).Marshal()
}

// write sends a packet from one of this machine's addresses.
func (u *udpSocket) write(p []byte, from netip.Addr, to netip.AddrPort) error {
	oob := u.control(from)
	_, _, err := u.conn.WriteMsgUDPAddrPort(p, oob, to)
	if err != nil && oob != nil && !errors.Is(err, net.ErrClosed) {
		_, err = u.conn.WriteToUDPAddrPort(p, to) // the address is gone, or cannot be chosen
	}
	return err
}

// origin returns the address of another place of a family, for a packet that came
// to the address to of this one.
func (u *udpSocket) origin(to netip.Addr) func(place) (netip.AddrPort, bool) {
	return func(p place) (netip.AddrPort, bool) {
		other := u.fam.socks[p.ip][p.port]
		if other == nil {
			return netip.AddrPort{}, false
		}
		if p.ip == u.at.ip {
			return netip.AddrPortFrom(to, other.local.Port()), true
		}
		return other.local, true
	}
}

// answer answers a binding request.
func (u *udpSocket) answer(req []byte, src netip.AddrPort, to netip.Addr) {
	if !u.fam.all.limit.allow(time.Now(), src.Addr()) {
		u.fam.all.m.drop("stun_rate")
		return
	}
	resp, from, dst := binding(req, src, u.at, u.origin(to))
	if resp == nil {
		u.fam.all.m.drop("stun")
		return
	}
	out := u.fam.socks[from.ip][from.port]
	if from.ip != u.at.ip {
		to = out.local.Addr()
	}
	if out.write(resp, to, dst) == nil { // whoever asked repeats what is lost
		u.fam.all.m.bindings.Inc()
	}
}

// serveBinding answers binding requests until the socket is closed.
func (u *udpSocket) serveBinding() {
	in, err := newReader(u.conn, u.fam.all.buffers)
	if err != nil {
		return // it is closed
	}
	defer in.release()
	for {
		m, err := in.get()
		if err != nil {
			return
		}
		if classify(m.data) == datagramBinding {
			u.answer(m.data, m.src, m.to)
		} else {
			u.fam.all.m.drop("datagram")
		}
	}
}
