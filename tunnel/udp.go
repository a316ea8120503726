package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/kithproject/kith/identity"
)

// maxDatagrams is how many UDP associations one peer may have at once, in both
// directions.
const maxDatagrams = 512

// A UDPFallback decides on the first datagram to a UDP port of this device that nothing
// else holds. may must not block. If it says yes, serve is called on a goroutine of its
// own with the association, and closes it; datagrams are read and written one by one.
type UDPFallback struct {
	May   func(from identity.DeviceID, port uint16) bool
	Serve func(from identity.DeviceID, port uint16, conn net.Conn)
}

// SetUDPFallback sets what decides on datagrams to unclaimed ports; before, and with the
// zero value, all are refused. Close waits for what serves.
func (t *Tunnel) SetUDPFallback(f UDPFallback) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.udpFallback = f
}

// datagrams is a UDP association that ends with its peer and with the tunnel.
type datagrams struct {
	*gonet.UDPConn
	local, remote net.Addr // the stack forgets them at the end
	t             *Tunnel
	peer          identity.DeviceID
	once          sync.Once
	cause         atomic.Pointer[error]
}

// associate makes an association of a connected endpoint. It errs, and ends the
// connection, if the peer was removed in the meantime or has too many.
func (t *Tunnel) associate(conn *gonet.UDPConn, peer identity.DeviceID) (*datagrams, error) {
	d := &datagrams{UDPConn: conn, t: t, peer: peer, local: conn.LocalAddr(), remote: conn.RemoteAddr()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.room(peer, len(t.datagrams[peer]), maxDatagrams); err != nil {
		_ = conn.Close() // always nil
		return nil, err
	}
	if t.datagrams[peer] == nil {
		t.datagrams[peer] = make(map[*datagrams]struct{})
	}
	t.datagrams[peer][d] = struct{}{}
	return d, nil
}

// abort ends the association; calls on it err with cause.
func (d *datagrams) abort(cause error) {
	d.cause.CompareAndSwap(nil, &cause)
	_ = d.UDPConn.Close() // always nil
}

// Close ends the association. Its error is always nil.
func (d *datagrams) Close() error {
	d.once.Do(func() {
		d.t.mu.Lock()
		delete(d.t.datagrams[d.peer], d)
		d.t.mu.Unlock()
		d.abort(net.ErrClosed)
	})
	return nil
}

// LocalAddr returns this device's address and port, also after the end.
func (d *datagrams) LocalAddr() net.Addr { return d.local }

// RemoteAddr returns the peer's address and port, also after the end.
func (d *datagrams) RemoteAddr() net.Addr { return d.remote }

// Read reads one datagram; what b has no room for is lost.
func (d *datagrams) Read(b []byte) (int, error) {
	n, err := d.UDPConn.Read(b)
	return n, d.explain("read", err)
}

// Write sends b as one datagram, at most 65507 bytes.
func (d *datagrams) Write(b []byte) (int, error) {
	n, err := d.UDPConn.Write(b)
	return n, d.explain("write", err)
}

func (d *datagrams) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	if cause := d.cause.Load(); cause != nil {
		return &net.OpError{Op: op, Net: "udp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: *cause}
	}
	var on *net.OpError
	if errors.As(err, &on) {
		on.Err = plain(on.Err)
	}
	return err
}

// DialUDP returns a UDP association with a port of a device's address. It errs with
// ErrPeer if the address is no peer's, with ErrTooMany, with net.ErrClosed, and with the
// context's error. That nothing listens there shows after datagrams were sent: a later
// write or read errs with syscall.ECONNREFUSED.
func (t *Tunnel) DialUDP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	peer, ok := t.Peer(to.Addr())
	if !ok {
		return nil, fmt.Errorf("tunnel: dial udp %s: %w", to, ErrPeer)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("tunnel: dial udp %s: %w", to, err)
	}
	far := fullAddress(to)
	conn, err := gonet.DialUDP(t.nic.stack, nil, &far, ipv6.ProtocolNumber)
	if err != nil {
		return nil, fmt.Errorf("tunnel: dial udp %s: %w", to, plain(err))
	}
	d, err := t.associate(conn, peer)
	if err != nil {
		return nil, fmt.Errorf("tunnel: dial udp %s: %w", to, err)
	}
	return d, nil
}

// incomingUDP is called by the stack for a datagram to an unclaimed port; it must not
// block. It reports whether somebody takes it; if not, the sender is told.
func (t *Tunnel) incomingUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	from, known := t.Peer(netip.AddrFrom16(id.RemoteAddress.As16()))
	t.mu.Lock()
	f, closed := t.udpFallback, t.closed
	t.mu.Unlock()
	if !known || closed || f.May == nil || !f.May(from, id.LocalPort) {
		return false
	}
	q := &waiter.Queue{}
	ep, terr := r.CreateEndpoint(q)
	if terr != nil {
		return false // of the same four numbers there is one already, or there is no memory
	}
	d, err := t.associate(gonet.NewUDPConn(q, ep), from)
	if err != nil {
		return false
	}
	t.mu.Lock()
	if closed = t.closed; !closed {
		t.asked.Add(1)
	}
	t.mu.Unlock()
	if closed {
		d.Close()
		return false
	}
	go func() { // Close waits for it
		defer t.asked.Done()
		defer d.Close()
		f.Serve(from, id.LocalPort, d)
	}()
	return true
}
