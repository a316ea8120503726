package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith/rendezvous/waku"
)

const (
	maxSniffing   = 2048                  // connections whose protocol is not told yet
	acceptBackoff = 20 * time.Millisecond // after a failed accept, times the failures
	maxAcceptErrs = 50                    // failures in a row until the hub gives up
)

// mux accepts TCP connections, bounds them, tells what they speak and hands them
// to the one who speaks it.
type mux struct {
	log    *slog.Logger
	m      *meters
	tls    *tls.Config
	broker *broker
	web    *web
	turn   *turnServer
	waku   *waku.Service // nil if the hub is no node
	mail   *mailbox      // nil if the hub keeps none
	dialer *dialer

	max, perIP int
	wg         sync.WaitGroup
	sniffing   chan struct{}
	farewell   atomic.Int64 // UnixNano until which writes may last, 0 before stop
	stopped    chan struct{}

	mu    sync.Mutex // guards the fields below
	ended bool
	conns map[*tcpConn]struct{}
	ips   map[netip.Addr]int
}

func newMux(cfg Config, m *meters, tlsConfig *tls.Config) *mux {
	return &mux{
		log: cfg.Logger, m: m, tls: tlsConfig, max: cfg.MaxConns, perIP: cfg.MaxConnsPerIP,
		sniffing: make(chan struct{}, maxSniffing), stopped: make(chan struct{}),
		conns: make(map[*tcpConn]struct{}), ips: make(map[netip.Addr]int),
	}
}

// tcpConn is one accepted connection. Its deadlines for writing are its own, so
// that a client that does not read cannot hold up anybody for long; whoever
// speaks over it sets the deadline for reading.
type tcpConn struct {
	net.Conn
	mux  *mux
	ip   netip.Addr
	once sync.Once
}

// Write writes with a deadline. After a failure nobody could make sense of more,
// so that the connection ends.
func (c *tcpConn) Write(p []byte) (int, error) {
	until := time.Now().Add(writeTimeout)
	if end := c.mux.farewell.Load(); end != 0 && end < until.UnixNano() {
		until = time.Unix(0, end)
	}
	_ = c.Conn.SetWriteDeadline(until)
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// SetDeadline sets the deadline for reading.
func (c *tcpConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing; see Write.
func (c *tcpConn) SetWriteDeadline(time.Time) error { return nil }

// Close closes the connection and gives its place to another.
func (c *tcpConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		c.mux.forget(c)
		err = c.Conn.Close()
	})
	return err
}

// ipKey is what counts as one client: an IPv4 address, or an IPv6 /64.
func ipKey(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// addrOf returns the address and port of a net.Addr of this program.
func addrOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// admit takes a connection in, or returns nil and the reason.
func (x *mux) admit(c net.Conn) (*tcpConn, string) {
	t := &tcpConn{Conn: c, mux: x, ip: ipKey(addrOf(c.RemoteAddr()).Addr())}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.ended:
		return nil, "closing"
	case len(x.conns) >= x.max:
		return nil, "full"
	case x.ips[t.ip] >= x.perIP:
		return nil, "per_ip"
	}
	x.conns[t] = struct{}{}
	x.ips[t.ip]++
	x.wg.Add(1) // until handle returns
	return t, ""
}

func (x *mux) forget(c *tcpConn) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, c)
	if x.ips[c.ip]--; x.ips[c.ip] <= 0 {
		delete(x.ips, c.ip)
	}
}

func (x *mux) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.conns)
}

// serve accepts until the listener is closed. It errs if accepting fails for
// long.
func (x *mux) serve(ln net.Listener) error {
	failures := 0
	for {
		c, err := ln.Accept()
		if err != nil {
			select {
			case <-x.stopped:
				return nil
			default:
			}
			if failures++; errors.Is(err, net.ErrClosed) || failures > maxAcceptErrs {
				return err
			}
			x.m.drop("accept")
			x.log.Warn("connection not accepted", "err", err) // most likely no file is left
			pause := time.NewTimer(time.Duration(failures) * acceptBackoff)
			select {
			case <-pause.C:
			case <-x.stopped:
			}
			pause.Stop()
			continue
		}
		failures = 0
		t, why := x.admit(c)
		if t == nil {
			x.m.drop(why)
			_ = c.Close()
			continue
		}
		go func() {
			defer x.wg.Done()
			x.handle(t)
		}()
	}
}

// handle tells the protocol and hands the connection on; it returns when the
// connection is done with or somebody else reads it.
func (x *mux) handle(c *tcpConn) {
	s, p := x.identify(c)
	via := "tcp"
	if _, ok := s.Conn.(*tls.Conn); ok {
		via = "tls"
	}
	// For its first message the client has as long again.
	_ = c.SetReadDeadline(time.Now().Add(sniffTimeout))
	if p == protoWaku && x.waku == nil {
		p = protoUnknown
	}
	switch p {
	case protoWaku:
		x.m.connect("waku", via)
		x.serveWaku(s)
	case protoMail:
		x.m.connect("mail", via)
		x.serveMail(s)
	case protoDialBack:
		x.m.connect("dialback", via)
		x.serveDialBack(s)
	case protoMQTT:
		x.m.connect("mqtt", via)
		x.broker.serve(s)
	case protoSTUN:
		x.m.connect("turn", via)
		x.turn.accept(s)
	case protoHTTP:
		x.m.connect("http", via)
		x.web.accept(s)
	case protoSilent:
		x.m.drop("timeout")
		_ = c.Close()
	case protoBusy:
		x.m.drop("busy")
		_ = c.Close()
	default:
		x.m.drop("garbage")
		_ = c.Close()
	}
}

// identify tells the protocol of a connection, inside TLS if there is TLS. It
// takes sniffTimeout at most, and only so many are waited for at a time.
func (x *mux) identify(c *tcpConn) (*stream, protocol) {
	s := &stream{Conn: c}
	select {
	case x.sniffing <- struct{}{}:
		defer func() { <-x.sniffing }()
	default:
		return s, protoBusy
	}
	_ = c.SetReadDeadline(time.Now().Add(sniffTimeout))
	p := s.sniff()
	if p != protoTLS {
		return s, p
	}
	t := tls.Server(s, x.tls)
	ctx, cancel := context.WithTimeout(context.Background(), sniffTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		x.log.Debug("tls failed", "client", c.ip, "err", err)
		return s, protoSilent
	}
	inner := &stream{Conn: t}
	if p = inner.sniff(); p == protoTLS {
		p = protoUnknown
	}
	return inner, p
}

// stop refuses new connections and bounds what is written to the others.
func (x *mux) stop(until time.Time) {
	x.farewell.Store(until.UnixNano())
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.ended {
		x.ended = true
		close(x.stopped)
	}
}

// closeAll closes every connection, without farewell.
func (x *mux) closeAll() {
	x.mu.Lock()
	all := make([]*tcpConn, 0, len(x.conns))
	for c := range x.conns {
		all = append(all, c)
	}
	x.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// handoff is a listener whose connections come from the mux.
type handoff struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
	addr net.Addr
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{ch: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

// offer hands a connection on, or closes it if nobody accepts any more.
func (l *handoff) offer(c net.Conn) {
	select {
	case l.ch <- c:
	case <-l.done:
		_ = c.Close()
	}
}

// Accept returns the next connection.
func (l *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr returns the address of the TCP listener.
func (l *handoff) Addr() net.Addr { return l.addr }

// Close ends Accept.
func (l *handoff) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}
