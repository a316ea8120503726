package tun

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/kithproject/kith/app/forward"
)

// connections are those of TCP. They are guarded by the mutex of the Tun.
type connections struct {
	waiting map[flow]*waiting  // to be answered
	open    map[flow]struct{}  // carried
	dials   map[netip.Addr]int // how many of waiting there are for an address
}

// A waiting is a connection that a program begins, until its dial has worked: the
// stack does not know of it before.
type waiting struct {
	syn    []byte // the packet that begins it, the last copy
	cancel context.CancelFunc

	offered bool // the stack is being given the packet
	claimed bool // it has taken it for a new connection
	request chan *tcp.ForwarderRequest
}

// receiveTCP takes a segment of this machine's.
func (t *Tun) receiveTCP(p packet) {
	if len(p.body) < header.TCPMinimumSize {
		return
	}
	f := flow{binary.BigEndian.Uint16(p.body), netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(p.body[2:]))}
	switch flags := header.TCPFlags(p.body[13]); {
	case flags&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) == header.TCPFlagSyn:
		if t.begin(f, p.raw) {
			return
		}
	case flags&header.TCPFlagRst != 0:
		t.mu.Lock()
		if w := t.tcp.waiting[f]; w != nil && !w.offered {
			w.cancel() // the program waits no longer
		}
		t.mu.Unlock()
	}
	t.nic.deliver(p.raw, ipHeader+int(p.body[12]>>4)*4)
}

// begin takes a packet that begins a connection. It reports false if the stack is to
// see it now: it is part of a connection already, or there are too many, and the stack
// refuses what it does not know.
func (t *Tun) begin(f flow, syn []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.tcp.waiting[f]; w != nil {
		if !w.offered {
			w.syn = append(w.syn[:0], syn...)
		}
		return true
	}
	_, open := t.tcp.open[f]
	if open || t.over || len(t.tcp.open)+len(t.tcp.waiting) >= t.cfg.MaxConns || t.tcp.dials[f.dst.Addr()] >= maxDialsPerPeer {
		return false
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.DialTimeout)
	w := &waiting{syn: bytes.Clone(syn), cancel: cancel, request: make(chan *tcp.ForwarderRequest, 1)}
	t.tcp.waiting[f] = w
	t.tcp.dials[f.dst.Addr()]++
	t.wg.Go(func() {
		defer cancel()
		t.connect(ctx, f, w)
	})
	return true
}

// settle ends the wait of a connection, which goes on if it is open.
func (t *Tun) settle(f flow, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tcp.waiting, f)
	if t.tcp.dials[f.dst.Addr()]--; t.tcp.dials[f.dst.Addr()] == 0 {
		delete(t.tcp.dials, f.dst.Addr())
	}
	if open {
		t.tcp.open[f] = struct{}{}
	}
}

// connect is the life of a connection.
func (t *Tun) connect(ctx context.Context, f flow, w *waiting) {
	carry, end, err := t.dialTCP(ctx, f)
	if err != nil {
		t.settle(f, false)
		t.refuse(ctx, f, w, err)
		return
	}
	conn, err := t.accept(ctx, w)
	t.settle(f, err == nil)
	if err != nil {
		end()
		t.cfg.Logger.Debug("program has gone", "to", f.dst, "err", err)
		return
	}
	carry(conn)
	t.mu.Lock()
	delete(t.tcp.open, f)
	t.mu.Unlock()
}

// dialTCP finds what answers a connection: carry is called with it, or else end.
func (t *Tun) dialTCP(ctx context.Context, f flow) (carry func(net.Conn), end func(), err error) {
	if f.dst.Addr() == t.cfg.Resolver {
		if f.dst.Port() != dnsPort || !t.streams.take(struct{}{}) {
			return nil, nil, syscall.ECONNREFUSED
		}
		end = func() { t.streams.give(struct{}{}) }
		return func(conn net.Conn) { defer end(); t.serveStream(conn) }, end, nil
	}
	peer, err := t.peer(f.dst.Addr())
	if err != nil {
		return nil, nil, err
	}
	far, err := t.cfg.Dial(ctx, forward.TCP, peer, f.dst.Port())
	if err != nil {
		return nil, nil, err
	}
	return func(conn net.Conn) { forward.Splice(t.ctx, conn, far) }, func() { forward.Abort(far) }, nil
}

// errGone reports that the program waits no longer.
var errGone = errors.New("tun: the stack does not take the connection")

// accept answers the program: it has the stack make its end of the connection.
func (t *Tun) accept(ctx context.Context, w *waiting) (net.Conn, error) {
	t.mu.Lock()
	w.offered = ctx.Err() == nil
	offered := w.offered
	t.mu.Unlock()
	if !offered {
		return nil, ctx.Err()
	}
	t.nic.deliver(w.syn, len(w.syn)) // unclaimed is called meanwhile
	t.mu.Lock()
	claimed := w.claimed
	t.mu.Unlock()
	if !claimed { // an earlier connection of the same ports has not ended yet
		return nil, errGone
	}
	request := <-w.request
	q := &waiter.Queue{}
	ep, terr := request.CreateEndpoint(q) // waits for the program's kernel
	request.Complete(terr != nil)
	if terr != nil {
		return nil, fmt.Errorf("tun: %s", terr)
	}
	t.keepAlive(ep)
	return &conn{TCPConn: gonet.NewTCPConn(q, ep), ep: ep}, nil
}

// keepAlive has an idle connection ask the kernel whether it is there still: the reset
// that said it is not is lost while the interface is down or its queue is full.
func (t *Tun) keepAlive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(t.idle), tcpip.KeepaliveIntervalOption(t.idle/4)
	_, _ = ep.SetSockOpt(&idle), ep.SetSockOpt(&interval) // they fail of no endpoint of TCP
	ep.SocketOptions().SetKeepAlive(true)
}

// unclaimed is called by the stack for a packet of no connection that it knows. What
// it reports false for is answered by a reset.
func (t *Tun) unclaimed(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	t.mu.Lock()
	w := t.tcp.waiting[flowOf(id)]
	ours := w != nil && w.offered && !w.claimed
	if ours {
		w.claimed = true
	}
	t.mu.Unlock()
	if !ours {
		return false
	}
	if t.forwarder.HandlePacket(id, pkt) {
		return true
	}
	t.mu.Lock()
	w.claimed = false
	t.mu.Unlock()
	return false
}

// requested is called by the stack, on a goroutine, for a packet that unclaimed took.
func (t *Tun) requested(r *tcp.ForwarderRequest) {
	t.mu.Lock()
	w := t.tcp.waiting[flowOf(r.ID())]
	t.mu.Unlock()
	if w == nil {
		r.Complete(true)
		return
	}
	w.request <- r // there is room: it is claimed once
}

func flowOf(id stack.TransportEndpointID) flow {
	return flow{id.RemotePort, netip.AddrPortFrom(netip.AddrFrom16(id.LocalAddress.As16()), id.LocalPort)}
}

// refuse tells the program why there is no connection.
func (t *Tun) refuse(ctx context.Context, f flow, w *waiting, err error) {
	if errors.Is(ctx.Err(), context.Canceled) && t.ctx.Err() == nil {
		return // it waits no longer
	}
	t.cfg.Logger.Debug("connection refused", "to", f.dst, "err", err)
	if code := codeOf(err); code != portUnreachable {
		t.unreachable(w.syn, code)
		return
	}
	t.nic.deliver(w.syn, len(w.syn)) // the stack resets what it does not know
}

// codeOf is what an error of a dial is for ICMPv6.
func codeOf(err error) header.ICMPv6Code {
	switch {
	case errors.Is(err, errNoDevice):
		return noRoute
	case errors.Is(err, ErrBlocked):
		return prohibited
	case errors.Is(err, ErrNotConnected), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH):
		return addrUnreachable
	}
	return portUnreachable
}

// conn is a connection with the kernel that can be reset.
type conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Abort ends the connection at once with a reset.
func (c *conn) Abort() {
	c.ep.Abort()
	_ = c.Close()
}
