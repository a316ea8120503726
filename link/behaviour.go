package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/link/punch"
)

const (
	// furtherCount is how many sockets show in which order, and from which block,
	// a hard NAT gives its ports.
	furtherCount = 5
	furtherWait  = 500 * time.Millisecond
	filterWait   = 300 * time.Millisecond
)

// local is our address and port towards a server: the address only if it is one
// of ours that the server is reached from.
func (g *gatherer) local(server netip.AddrPort) netip.AddrPort {
	port := g.socket.Port()
	if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server)); err == nil { // asks the routing table, sends nothing
		defer c.Close()
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), port)
		}
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port)
}

// filter asks servers that have a second address (RFC 5780 section 4.4) to answer
// from there: what arrives shows what our NAT lets in.
func (g *gatherer) filter(ctx context.Context, servers, others []netip.AddrPort) []punch.Sample {
	if len(others) == 0 {
		return nil
	}
	const changeIP, changePort = 4, 2
	type request struct{ server netip.AddrPort }
	open := make(map[txid]request)
	for _, server := range servers {
		for _, flags := range []byte{changeIP | changePort, changePort} {
			raw, tx, err := bindingRequest(stun.RawAttribute{Type: stun.AttrChangeRequest, Value: []byte{0, 0, 0, flags}})
			if err != nil {
				return nil
			}
			open[tx] = request{server}
			g.socket.sendRaw(raw, server)
		}
	}
	var out []punch.Sample
	timer := time.NewTimer(filterWait)
	defer timer.Stop()
	for len(open) > 0 {
		select {
		case <-ctx.Done():
			return out
		case <-timer.C:
			return out
		case a := <-g.answers:
			if r, ok := open[a.tx]; ok {
				delete(open, a.tx)
				out = append(out, punch.Sample{
					Local: g.local(r.server), Server: r.server, From: onSocket(a.from).addr, Mapped: a.mapped, At: a.at,
				})
			}
		}
	}
	return out
}

// furtherSockets asks a server from sockets of their own, one after another.
func furtherSockets(ctx context.Context, server netip.AddrPort) []punch.Sample {
	var out []punch.Sample
	var conns []*net.UDPConn
	defer func() {
		for _, c := range conns {
			_ = c.Close() // nothing was to be written
		}
	}()
	until := time.Now().Add(furtherWait)
	asked := make(map[txid]punch.Sample)
	for range furtherCount {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
		if err != nil {
			break
		}
		conns = append(conns, c)
		raw, tx, err := bindingRequest()
		if err != nil || c.SetReadDeadline(until) != nil {
			break
		}
		asked[tx] = punch.Sample{Local: c.LocalAddr().(*net.UDPAddr).AddrPort(), Server: server, At: time.Now()}
		_, _ = c.Write(raw) // lost like any datagram
	}
	for _, c := range conns {
		if s, err := readSample(ctx, c, asked); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// readSample reads the answer on a socket.
func readSample(ctx context.Context, c *net.UDPConn, asked map[txid]punch.Sample) (punch.Sample, error) {
	buf := make([]byte, maxSTUN)
	for ctx.Err() == nil {
		n, err := c.Read(buf)
		if err != nil {
			return punch.Sample{}, err
		}
		a, ok := parseAnswer(buf[:n])
		if !ok {
			continue
		}
		if s, known := asked[a.tx]; known && s.Local == c.LocalAddr().(*net.UDPAddr).AddrPort() {
			s.Mapped = a.mapped
			return s, nil
		}
	}
	return punch.Sample{}, errors.Join(ctx.Err())
}
