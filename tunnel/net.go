package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/kithproject/kith/identity"
)

// maxInFlight is how many connections to unclaimed ports are decided on at once.
const maxInFlight = 256

// A Fallback decides on a TCP connection to a port that nobody listens on. It
// returns false to refuse it (the caller gets a reset), or true after it has
// arranged that accept is called exactly once; accept errs if the caller has gone.
// It runs on a goroutine of its own.
type Fallback func(from identity.DeviceID, port uint16, accept func() (net.Conn, error)) bool

// SetFallback sets what decides on connections to ports that nobody listens on.
// Without one they are refused.
func (t *Tunnel) SetFallback(f Fallback) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fallback = f
}

// incoming is called by the stack for a connection to an unclaimed port.
func (t *Tunnel) incoming(r *tcp.ForwarderRequest) {
	id := r.ID()
	from, ok := t.Peer(netip.AddrFrom16(id.RemoteAddress.As16()))
	t.mu.Lock()
	fallback := t.fallback
	t.mu.Unlock()
	accept := func() (net.Conn, error) {
		var q waiter.Queue
		ep, err := r.CreateEndpoint(&q)
		r.Complete(err != nil)
		if err != nil {
			return nil, fmt.Errorf("tunnel: accept: %s", err)
		}
		return t.track(gonet.NewTCPConn(&q, ep), from), nil
	}
	if !ok || fallback == nil || !fallback(from, id.LocalPort, accept) {
		r.Complete(true)
	}
}

// tracked is a connection that ends with its peer.
type tracked struct {
	*gonet.TCPConn
	t    *Tunnel
	peer identity.DeviceID
	once sync.Once
}

func (t *Tunnel) track(c *gonet.TCPConn, peer identity.DeviceID) net.Conn {
	tc := &tracked{TCPConn: c, t: t, peer: peer}
	t.mu.Lock()
	_, known := t.peers[peer]
	if known {
		if t.conns[peer] == nil {
			t.conns[peer] = make(map[io.Closer]struct{})
		}
		t.conns[peer][tc] = struct{}{}
	}
	t.mu.Unlock()
	if !known {
		c.Close() // removed in the meantime
	}
	return tc
}

// Close closes the connection.
func (c *tracked) Close() error {
	c.once.Do(func() {
		c.t.mu.Lock()
		defer c.t.mu.Unlock()
		delete(c.t.conns[c.peer], c)
	})
	return c.TCPConn.Close()
}

func fullAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom16(ap.Addr().As16()), Port: ap.Port()}
}

// DialContext connects to a TCP port of a device's address. It errs with ErrPeer
// if the address is no peer's, as refused if the port is closed, and with the
// context's error.
func (t *Tunnel) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network != "tcp" && network != "tcp6" {
		return nil, fmt.Errorf("tunnel: dial: %w", net.UnknownNetworkError(network))
	}
	peer, ok := t.Peer(to.Addr())
	if !ok {
		return nil, fmt.Errorf("tunnel: dial %s: %w", to, ErrPeer)
	}
	c, err := gonet.DialContextTCP(ctx, t.nic.stack, fullAddress(to), ipv6.ProtocolNumber)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, plain(err)
	}
	return t.track(c, peer), nil
}

// plain gives the stack's errors the values that programs test for.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil && op.Err.Error() == (&tcpip.ErrConnectionRefused{}).String() {
		op.Err = syscall.ECONNREFUSED
	}
	return err
}

// Listen accepts TCP connections on a port of this device's address. It errs if
// the port is taken.
func (t *Tunnel) Listen(network string, port uint16) (net.Listener, error) {
	if network != "tcp" && network != "tcp6" {
		return nil, fmt.Errorf("tunnel: listen: %w", net.UnknownNetworkError(network))
	}
	ln, err := gonet.ListenTCP(t.nic.stack, fullAddress(netip.AddrPortFrom(t.id.ID().Addr(), port)), ipv6.ProtocolNumber)
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	return &listener{ln, t}, nil
}

type listener struct {
	*gonet.TCPListener
	t *Tunnel
}

// Accept returns the next connection of a peer.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.TCPListener.Accept()
		if err != nil {
			return nil, err
		}
		tc, ok := c.(*gonet.TCPConn)
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if !ok || err != nil {
			c.Close()
			continue
		}
		peer, ok := l.t.Peer(from.Addr())
		if !ok {
			c.Close() // removed in the meantime
			continue
		}
		return l.t.track(tc, peer), nil
	}
}

// Ping sends an ICMPv6 echo request through the tunnel and returns the time until
// its reply. It errs with ErrPeer if the address is no peer's, and with the
// context's error if no reply came.
func (t *Tunnel) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	if _, ok := t.Peer(to); !ok {
		return 0, fmt.Errorf("tunnel: ping %s: %w", to, ErrPeer)
	}
	var q waiter.Queue
	ep, terr := t.nic.stack.NewEndpoint(icmp.ProtocolNumber6, ipv6.ProtocolNumber, &q)
	if terr != nil {
		return 0, fmt.Errorf("tunnel: ping: %s", terr)
	}
	defer ep.Close()
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	q.EventRegister(&entry)
	defer q.EventUnregister(&entry)
	if terr := ep.Connect(fullAddress(netip.AddrPortFrom(to, 0))); terr != nil {
		return 0, fmt.Errorf("tunnel: ping: %s", terr)
	}
	start := time.Now()
	request := make([]byte, header.ICMPv6EchoMinimumSize+8)
	request[0] = byte(header.ICMPv6EchoRequest)
	binary.BigEndian.PutUint64(request[header.ICMPv6EchoMinimumSize:], uint64(start.UnixNano()))
	if _, terr := ep.Write(bytes.NewReader(request), tcpip.WriteOptions{}); terr != nil {
		return 0, fmt.Errorf("tunnel: ping: %s", terr)
	}
	for {
		select {
		case <-readable:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		var reply bytes.Buffer
		if _, terr := ep.Read(&reply, tcpip.ReadOptions{}); terr != nil {
			continue // nothing to read after all
		}
		if b := reply.Bytes(); len(b) == len(request) && b[0] == byte(header.ICMPv6EchoReply) &&
			bytes.Equal(b[header.ICMPv6EchoMinimumSize:], request[header.ICMPv6EchoMinimumSize:]) {
			return time.Since(start), nil
		}
	}
}
