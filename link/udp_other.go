//go:build !linux

package link

import (
	"net"
	"net/netip"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

// udpBatch is 1: this system reads and writes one packet per call.
const udpBatch = 1

// sysEndpoint is empty: the system chooses our address.
type sysEndpoint struct{}

func newEndpoint(remote netip.AddrPort, local netip.Addr) *udpEndpoint {
	return &udpEndpoint{remote: remote, local: local}
}

// A udpConn is one UDP socket.
type udpConn struct {
	conn  *net.UDPConn
	cache endpointCache // owned by receive
}

func newUDPConn(c *net.UDPConn, _ bool) *udpConn { return &udpConn{conn: c} }

func control(string, string, syscall.RawConn) error { return nil }

// setMark does nothing: this system has no packet marks.
func setMark(*net.UDPConn, uint32) error { return nil }

// receive is a conn.ReceiveFunc.
func (u *udpConn) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	n, from, err := u.conn.ReadFromUDPAddrPort(bufs[0])
	if err != nil {
		return 0, err
	}
	sizes[0] = n
	eps[0] = u.cache.get(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), netip.Addr{})
	return 1, nil
}

func (u *udpConn) send(bufs [][]byte, e *udpEndpoint) error {
	for _, b := range bufs {
		if _, err := u.conn.WriteToUDPAddrPort(b, e.remote); err != nil {
			return err
		}
	}
	return nil
}
