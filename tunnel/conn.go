package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/kithproject/kith/identity"
)

// A connection without a path keeps trying for about as long: TCP repeats
// unacknowledged data for 15 minutes, and an idle one is asked after 5 minutes,
// then each minute. Both survive a sleeping laptop or a change of networks.
const (
	keepaliveIdle     = 5 * time.Minute
	keepaliveInterval = time.Minute
	keepaliveCount    = 10 // unanswered ones before the connection ends
)

// maxConns is how many connections one peer may have at once, in both directions.
const maxConns = 4096

// ErrTooMany reports that a peer has as many connections as it may have.
var ErrTooMany = errors.New("tunnel: too many connections with this peer")

// tracked is a connection that ends with its peer and with the tunnel.
type tracked struct {
	*gonet.TCPConn
	local, remote netip.AddrPort // the stack forgets them when the connection is reset
	t             *Tunnel
	ep            tcpip.Endpoint
	peer          identity.DeviceID
	once          sync.Once
	over          atomic.Bool // Close was called
	cause         atomic.Pointer[error]
}

// track makes a connection of an endpoint. It errs, and ends the endpoint, if the
// peer was removed in the meantime or has too many.
func (t *Tunnel) track(q *waiter.Queue, ep tcpip.Endpoint, peer identity.DeviceID, local, remote netip.AddrPort) (*tracked, error) {
	c := &tracked{TCPConn: gonet.NewTCPConn(q, ep), t: t, ep: ep, peer: peer, local: local, remote: remote}
	t.mu.Lock()
	err := t.room(peer, len(t.conns[peer]), maxConns)
	if err == nil {
		if t.conns[peer] == nil {
			t.conns[peer] = make(map[*tracked]struct{})
		}
		t.conns[peer][c] = struct{}{}
	}
	t.mu.Unlock()
	if err != nil {
		ep.Abort()
		return nil, err
	}
	setKeepalive(ep)
	return c, nil
}

// room errs if a peer may not have one more of what it has some of; t.mu is held.
func (t *Tunnel) room(peer identity.DeviceID, have, most int) error {
	_, known := t.peers[peer]
	switch {
	case t.closed:
		return net.ErrClosed
	case !known:
		return ErrPeer
	case have >= most:
		return ErrTooMany
	}
	return nil
}

func setKeepalive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	// None of these can fail for a TCP endpoint and values in range.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}

// InUse reports whether a connection with a peer is open, or datagrams are passed on, other
// than from or to ports for which service holds.
func (t *Tunnel) InUse(id identity.DeviceID, service func(port uint16) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns[id] {
		if !service(c.local.Port()) && !service(c.remote.Port()) {
			return true
		}
	}
	return len(t.datagrams[id]) > 0
}

// abort ends the connection at once with a reset; calls on it err with cause.
func (c *tracked) abort(cause error) {
	c.cause.CompareAndSwap(nil, &cause)
	c.ep.Abort()
}

// Abort ends the connection at once with a reset; what was written and has not
// arrived is lost.
func (c *tracked) Abort() {
	c.abort(net.ErrClosed)
	_ = c.Close() // always nil
}

// Close closes the connection. What was written is still delivered.
func (c *tracked) Close() error {
	c.once.Do(func() {
		c.over.Store(true)
		c.t.mu.Lock()
		delete(c.t.conns[c.peer], c)
		c.t.mu.Unlock()
	})
	return c.TCPConn.Close()
}

// LocalAddr returns this device's address and port, also after the end.
func (c *tracked) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the peer's address and port, also after the end.
func (c *tracked) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// Read reads what has come, as net.Conn says.
func (c *tracked) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

// Write writes all of b, as net.Conn says.
func (c *tracked) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

// CloseWrite ends our stream; the other direction stays. It errs if the connection
// has ended.
func (c *tracked) CloseWrite() error { return c.explain(c.TCPConn.CloseWrite()) }

// CloseRead drops what comes from now on. It errs if the connection has ended.
func (c *tracked) CloseRead() error { return c.explain(c.TCPConn.CloseRead()) }

// explain gives an error of the stack the value that programs test for.
func (c *tracked) explain(err error) error {
	if err == nil {
		return nil
	}
	cause := c.cause.Load()
	var op *net.OpError
	switch {
	case c.over.Load():
		return &net.OpError{Op: "use", Net: "tcp", Err: net.ErrClosed}
	case cause != nil:
		return &net.OpError{Op: "use", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: *cause}
	case errors.As(err, &op):
		op.Err = plain(op.Err)
	}
	return err
}

// plain translates the stack's own errors.
func plain(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return os.ErrDeadlineExceeded
	}
	for _, known := range []struct {
		stack tcpip.Error
		errno syscall.Errno
	}{
		{&tcpip.ErrConnectionRefused{}, syscall.ECONNREFUSED},
		{&tcpip.ErrConnectionReset{}, syscall.ECONNRESET},
		{&tcpip.ErrConnectionAborted{}, syscall.ECONNABORTED},
		{&tcpip.ErrTimeout{}, syscall.ETIMEDOUT},
		{&tcpip.ErrHostUnreachable{}, syscall.EHOSTUNREACH},
		{&tcpip.ErrNetworkUnreachable{}, syscall.ENETUNREACH},
		{&tcpip.ErrPortInUse{}, syscall.EADDRINUSE},
		{&tcpip.ErrClosedForSend{}, syscall.EPIPE},
	} {
		if err != nil && err.Error() == known.stack.String() {
			return known.errno
		}
	}
	return err
}

// addrPort is an address of the stack, which has IPv6 alone.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.As16()), port)
}

func fullAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom16(ap.Addr().As16()), Port: ap.Port()}
}

// DialContext connects to a TCP port of a device's address. It errs with ErrPeer
// if the address is no peer's or the peer is removed meanwhile, with ErrTooMany,
// with syscall.ECONNREFUSED if the port is closed, with net.ErrClosed, and with the
// context's error.
func (t *Tunnel) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network != "tcp" && network != "tcp6" {
		return nil, fmt.Errorf("tunnel: dial: %w", net.UnknownNetworkError(network))
	}
	peer, ok := t.Peer(to.Addr())
	if !ok {
		return nil, fmt.Errorf("tunnel: dial %s: %w", to, ErrPeer)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("tunnel: dial %s: %w", to, err)
	}
	c, err := t.dial(ctx, peer, to)
	if err != nil {
		return nil, fmt.Errorf("tunnel: dial %s: %w", to, err)
	}
	return c, nil
}

// Ports of connections that this device opens are those that RFC 6335 section 6 leaves
// for it.
const (
	firstPort = 49152
	lastPort  = 65535
)

// bindNext gives an endpoint the port after that of the last one. The other device may
// remember a connection for timeWait after its end, and drops a new one with the same
// ports until then: a port chosen by chance, as the stack does it, would meet that soon.
func (t *Tunnel) bindNext(ep tcpip.Endpoint) (at netip.AddrPort, terr tcpip.Error) {
	const count = lastPort - firstPort + 1
	for range count {
		at = netip.AddrPortFrom(t.id.ID().Addr(), firstPort+uint16(t.nextPort.Add(1)%count))
		terr = ep.Bind(fullAddress(at))
		if _, taken := terr.(*tcpip.ErrPortInUse); !taken {
			break
		}
	}
	return at, terr
}

func (t *Tunnel) dial(ctx context.Context, peer identity.DeviceID, to netip.AddrPort) (*tracked, error) {
	q := &waiter.Queue{}
	ep, terr := t.nic.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, q)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	local, terr := t.bindNext(ep)
	if terr != nil {
		ep.Close()
		return nil, plain(errors.New(terr.String()))
	}
	c, err := t.track(q, ep, peer, local, to)
	if err != nil {
		return nil, err
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	q.EventRegister(&entry)
	defer q.EventUnregister(&entry)
	terr = ep.Connect(fullAddress(to))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			c.Close()
			return nil, ctx.Err()
		}
	}
	if cause := c.cause.Load(); cause != nil {
		c.Close()
		return nil, *cause
	}
	if terr != nil {
		c.Close()
		return nil, plain(errors.New(terr.String()))
	}
	return c, nil
}
