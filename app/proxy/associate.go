package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/kithproject/kith/app/forward"
)

// Bounds of UDP ASSOCIATE: how many of them there are at once, and how many ports
// each reaches at once.
const (
	maxAssociations = 64
	maxTargets      = 32
)

// maxDatagram is the largest datagram of UDP, in bytes.
const maxDatagram = 65535

// associate carries datagrams for a client as long as its connection lasts (RFC 1928
// section 7). It errs, before anything was answered, if it cannot.
func (s *server) associate(ctx context.Context, conn net.Conn, hint address) error {
	select {
	case s.associations <- struct{}{}:
		defer func() { <-s.associations }()
	default:
		return fmt.Errorf("proxy: %w", forward.ErrTooMany)
	}
	local, err1 := netip.ParseAddrPort(conn.LocalAddr().String())
	client, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err1 != nil || err2 != nil {
		return refuse(repFailure, 0, "", "UDP ASSOCIATE needs a proxy on an IP address")
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	defer pc.Close()
	if !reply(conn, repSucceeded, pc.LocalAddr()) {
		return nil
	}
	a := &association{server: s, pc: pc, client: client.Addr().Unmap(), port: hint.port}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer pc.Close()
	wg.Go(func() { a.run(ctx) })
	buf := make([]byte, 256)
	for { // until the client ends it, or ctx closes conn
		if _, err := conn.Read(buf); err != nil {
			return nil
		}
	}
}

// An association is one client's datagrams.
type association struct {
	server *server
	pc     *net.UDPConn
	client netip.Addr // whose datagrams alone are taken
	port   uint16     // likewise, if the client said it; 0 is the first one's

	from atomic.Pointer[netip.AddrPort] // where replies go
}

// run carries until the socket is closed.
func (a *association) run(ctx context.Context) {
	flows := forward.NewFlows(ctx, forward.FlowsConfig[address]{
		Dial: func(ctx context.Context, to address) (net.Conn, error) {
			return a.server.dial(ctx, forward.UDP, to.host, to.port)
		},
		Reply:   a.reply,
		Options: forward.Options{MaxConns: maxTargets, Counters: a.server.cfg.Counters},
	})
	defer flows.Close()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := a.pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		to, data, err := readDatagram(buf[:n])
		if err != nil || !a.ours(from) {
			continue
		}
		if _, err := a.server.resolve(to.host); err != nil {
			continue // RFC 1928: it drops silently what it will not relay
		}
		flows.Send(to, data)
	}
}

// ours reports whether a datagram is the client's: it comes from its address, and from
// one port throughout.
func (a *association) ours(from netip.AddrPort) bool {
	if known := a.from.Load(); known != nil {
		return *known == from
	}
	if from.Addr().Unmap() != a.client || a.port != 0 && a.port != from.Port() {
		return false
	}
	a.from.Store(&from)
	return true
}

// reply sends a datagram back under the name by which the client knows its sender.
func (a *association) reply(to address, data []byte) {
	known := a.from.Load()
	if known == nil {
		return
	}
	b := to.append(make([]byte, 3, 3+4+len(to.host)+len(data)))
	_, _ = a.pc.WriteToUDPAddrPort(append(b, data...), *known)
}
