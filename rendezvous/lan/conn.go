package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A conn is one UDP socket of one family.
type conn struct {
	udp *net.UDPConn
	p4  *ipv4.PacketConn // one of both is nil
	p6  *ipv6.PacketConn
	// tells says that the platform tells on which interface and to which group a
	// datagram came.
	tells bool
	full  bool // it takes no more memberships; guarded by the owner's lock
}

// An arrival is where a datagram came from, and how. What the platform does not
// tell is zero.
type arrival struct {
	from  netip.AddrPort
	to    netip.Addr // the destination: a group, or one of ours
	index int        // the interface
	hops  int        // the hop limit that was left
}

// unicast reports whether the datagram was certainly not sent to a group.
func (a arrival) unicast() bool { return a.to.IsValid() && !a.to.IsMulticast() }

// openConn opens a socket. With shared it shares its port with other programs and
// gets only the groups that it joined itself.
func openConn(six bool, port uint16, shared bool) (*conn, error) {
	lc := net.ListenConfig{}
	if shared {
		lc.Control = shareAddress
	}
	network, address := "udp4", ":"+strconv.Itoa(int(port))
	if six {
		network, address = "udp6", "[::]"+address
	}
	pc, err := lc.ListenPacket(context.Background(), network, address)
	switch {
	case inUse(err):
		return nil, &PortError{port, six, err}
	case err != nil:
		return nil, err
	}
	c := &conn{udp: pc.(*net.UDPConn)}
	if six {
		c.p6 = ipv6.NewPacketConn(c.udp)
		_ = c.p6.SetMulticastLoopback(true)
		c.tells = c.p6.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface|ipv6.FlagDst, true) == nil
	} else {
		c.p4 = ipv4.NewPacketConn(c.udp)
		_ = c.p4.SetMulticastLoopback(true)
		c.tells = c.p4.SetControlMessage(ipv4.FlagTTL|ipv4.FlagInterface|ipv4.FlagDst, true) == nil
	}
	return c, nil
}

// linkHops is the hop limit of what is sent to single hosts and networks: whoever gets
// it with as much left knows that no router has passed it on (RFC 5082).
const linkHops = 255

// setHops sets how far multicast goes.
func (c *conn) setHops(hops int) {
	if c.p6 != nil {
		_ = c.p6.SetMulticastHopLimit(hops)
	} else {
		_ = c.p4.SetMulticastTTL(hops)
	}
}

// setLinkHops has what is sent to single hosts and networks start with linkHops.
func (c *conn) setLinkHops() {
	if c.p6 != nil {
		_ = c.p6.SetHopLimit(linkHops)
	} else {
		_ = c.p4.SetTTL(linkHops)
	}
}

func (c *conn) read(b []byte) (int, arrival, error) {
	var in arrival
	var from net.Addr
	var n int
	var err error
	if c.p6 != nil {
		var m *ipv6.ControlMessage
		if n, m, from, err = c.p6.ReadFrom(b); m != nil {
			in.index, in.hops = m.IfIndex, m.HopLimit
			in.to, _ = netip.AddrFromSlice(m.Dst)
		}
	} else {
		var m *ipv4.ControlMessage
		if n, m, from, err = c.p4.ReadFrom(b); m != nil {
			in.index, in.hops = m.IfIndex, m.TTL
			in.to, _ = netip.AddrFromSlice(m.Dst)
		}
	}
	if err != nil {
		return 0, arrival{}, err
	}
	in.to = in.to.Unmap()
	if u, ok := from.(*net.UDPAddr); ok {
		ap := u.AddrPort()
		in.from = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return n, in, nil
}

// serve reads datagrams of at most size bytes until the socket is closed; longer
// ones come cut, one byte longer than size. What take gets is valid during the
// call.
func (c *conn) serve(wg *sync.WaitGroup, size int, take func([]byte, arrival)) {
	wg.Go(func() {
		buf := make([]byte, size+1)
		for {
			n, in, err := c.read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error of a datagram sent earlier, or one that was too long
			}
			take(buf[:n], in)
		}
	})
}

func (c *conn) join(index int, group netip.Addr) error {
	ifi, addr := &net.Interface{Index: index}, &net.UDPAddr{IP: group.AsSlice()}
	if c.p6 != nil {
		return c.p6.JoinGroup(ifi, addr)
	}
	return c.p4.JoinGroup(ifi, addr)
}

func (c *conn) leave(index int, group netip.Addr) error {
	ifi, addr := &net.Interface{Index: index}, &net.UDPAddr{IP: group.AsSlice()}
	if c.p6 != nil {
		return c.p6.LeaveGroup(ifi, addr)
	}
	return c.p4.LeaveGroup(ifi, addr)
}

// sendTo sends to a group on an interface. The interface is an option of the
// socket: one caller at a time.
func (c *conn) sendTo(b []byte, index int, group netip.AddrPort) error {
	ifi := &net.Interface{Index: index}
	var err error
	if c.p6 != nil {
		err = c.p6.SetMulticastInterface(ifi)
	} else {
		err = c.p4.SetMulticastInterface(ifi)
	}
	if err == nil {
		_, err = c.udp.WriteToUDPAddrPort(b, group)
	}
	return err
}

func (c *conn) port() uint16 {
	if c == nil {
		return 0
	}
	return uint16(c.udp.LocalAddr().(*net.UDPAddr).Port)
}
