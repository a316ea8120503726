package link

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"

	"context"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// socketBuffer is the size asked of the system for what goes out, in bytes:
	// 7 MiB is the most that macOS grants by default. With the usual 208 KiB a
	// burst of segmented packets is dropped by the sender's own socket.
	socketBuffer = 7 << 20
	// receiveBuffer is the size asked for what comes in through the tunnel's socket, in
	// bytes. In a larger one so much waits, when this device is the slowest on the way,
	// that TCP hears of it too late, and then loses much at once.
	receiveBuffer = 1 << 20
	// openTries is how often a free port is sought that is free for IPv4 and IPv6.
	openTries = 100
)

// A udpEndpoint is an address of a peer and, where the system tells, the one of
// ours to which its packets came. It is never changed.
type udpEndpoint struct {
	remote netip.AddrPort
	local  netip.Addr
	sys    sysEndpoint
}

// ClearSrc does nothing: endpoints do not change.
func (e *udpEndpoint) ClearSrc() {}

// SrcToString returns our address, or "".
func (e *udpEndpoint) SrcToString() string {
	if !e.local.IsValid() {
		return ""
	}
	return e.local.String()
}

// DstToString returns the peer's address and port.
func (e *udpEndpoint) DstToString() string { return e.remote.String() }

// DstToBytes returns the peer's address and port in netip's binary form.
func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.remote.MarshalBinary() // it never fails
	return b
}

// DstIP returns the peer's address.
func (e *udpEndpoint) DstIP() netip.Addr { return e.remote.Addr() }

// SrcIP returns our address, or the zero Addr.
func (e *udpEndpoint) SrcIP() netip.Addr { return e.local }

// A udpBind is the default conn.Bind: one UDP socket per address family, on the
// same port. Compared with WireGuard's own it does not allocate per packet,
// answers from the address that was asked, knows zones, and reads more than two
// messages per system call (Linux).
type udpBind struct {
	open atomic.Pointer[udpConns]
}

type udpConns struct{ v4, v6 *udpConn }

// Open opens both families, or the one that the system has. It errs if the port
// is taken in either, or there is none.
func (b *udpBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if b.open.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for try := 1; ; try++ {
		v4, err4 := listenUDP("udp4", port)
		got := port
		if v4 != nil {
			got = v4.port()
		}
		v6, err6 := listenUDP("udp6", got)
		if v4 == nil && v6 == nil {
			return nil, 0, errors.Join(err4, err6)
		}
		if v6 != nil {
			got = v6.port()
		}
		if taken := errors.Is(err4, syscall.EADDRINUSE) || errors.Is(err6, syscall.EADDRINUSE); taken {
			// One family alone would answer only half of the peers.
			_ = closeBoth(v4, v6) // nothing was to be written
			if port == 0 && try < openTries {
				continue
			}
			return nil, 0, errors.Join(err4, err6)
		}
		var fns []conn.ReceiveFunc
		for _, c := range []*udpConn{v4, v6} {
			if c != nil {
				fns = append(fns, c.receive)
			}
		}
		b.open.Store(&udpConns{v4: v4, v6: v6})
		return fns, got, nil
	}
}

func closeBoth(v4, v6 *udpConn) error {
	var err4, err6 error
	if v4 != nil {
		err4 = v4.conn.Close()
	}
	if v6 != nil {
		err6 = v6.conn.Close()
	}
	return errors.Join(err4, err6)
}

// Close closes the sockets; what Open returned ends with net.ErrClosed. It errs
// if the system does.
func (b *udpBind) Close() error {
	c := b.open.Swap(nil)
	if c == nil {
		return nil
	}
	return closeBoth(c.v4, c.v6)
}

// Send sends packets to one endpoint. It errs with net.ErrClosed, or with what
// the system says of the first packet that it refused.
func (b *udpBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	c := b.open.Load()
	if c == nil {
		return net.ErrClosed
	}
	to := c.v4
	if e.remote.Addr().Is6() {
		to = c.v6
	}
	if to == nil {
		return syscall.EAFNOSUPPORT
	}
	return to.send(bufs, e)
}

// ParseEndpoint returns the endpoint of an address and port; the system chooses
// our address when sending to it. It errs for any other text.
func (b *udpBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	addr, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newEndpoint(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), netip.Addr{}), nil
}

// BatchSize returns the number of packets per receive and send at most.
func (b *udpBind) BatchSize() int { return udpBatch }

// SetMark sets the mark of packets that are sent, where the system has one. It
// errs without the right to do so.
func (b *udpBind) SetMark(mark uint32) error {
	c := b.open.Load()
	if c == nil {
		return nil
	}
	var errs []error
	for _, one := range []*udpConn{c.v4, c.v6} {
		if one != nil {
			errs = append(errs, setMark(one.conn, mark))
		}
	}
	return errors.Join(errs...)
}

func listenUDP(network string, port uint16) (*udpConn, error) {
	lc := net.ListenConfig{Control: control}
	pc, err := lc.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	c := pc.(*net.UDPConn)
	// Best effort: the system may grant less.
	_ = c.SetReadBuffer(receiveBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
	return newUDPConn(c, network == "udp6"), nil
}

func (c *udpConn) port() uint16 {
	return c.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// An endpointCache gives the same endpoint for the same addresses, so that
// packets of few peers cost no memory each. It is not safe for concurrent use.
type endpointCache [8]*udpEndpoint

func (c *endpointCache) get(remote netip.AddrPort, local netip.Addr) *udpEndpoint {
	slot := &c[remote.Port()%uint16(len(c))]
	if e := *slot; e != nil && e.remote == remote && e.local == local {
		return e
	}
	*slot = newEndpoint(remote, local)
	return *slot
}
