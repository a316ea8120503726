//go:build !linux

package hub

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Packets are read and written one by one here.

func joinReads(*net.UDPConn) {}

// batch holds one packet.
type batch struct {
	data [maxDatagram]byte
	oob  [controlSize]byte
}

func newBatch() *batch { return new(batch) }

// reader reads a UDP socket. It is not safe for concurrent use.
type reader struct {
	conn  *net.UDPConn
	local netip.Addr // what a packet came to where the socket does not tell
	batch *batch
}

// newReader makes a reader.
func newReader(conn *net.UDPConn, _ *buffers) (*reader, error) {
	return &reader{conn: conn, local: addrOf(conn.LocalAddr()).Addr(), batch: newBatch()}, nil
}

func (*reader) release() {}

// more reports whether get returns a message without waiting.
func (*reader) more() bool { return false }

// get returns the next message; it is good until the next call. It errs when the
// socket is closed or lost.
func (r *reader) get() (message, error) {
	for failures := 0; ; failures++ {
		n, noob, _, src, err := r.conn.ReadMsgUDPAddrPort(r.batch.data[:], r.batch.oob[:])
		if err == nil {
			m := message{data: r.batch.data[:n], size: n, src: netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), to: r.local}
			control(r.batch.oob[:noob], &m)
			return m, nil
		}
		// A packet that could not be delivered is told to the socket on some systems;
		// that is no reason to stop.
		if ended(err) || failures >= maxReadErrors {
			return message{}, err
		}
	}
}

// control reads the address that a packet came to.
func control(oob []byte, m *message) {
	if len(oob) == 0 {
		return
	}
	var ip net.IP
	if m.to.Is4() {
		var cm ipv4.ControlMessage
		if cm.Parse(oob) == nil {
			ip = cm.Dst
		}
	} else {
		var cm ipv6.ControlMessage
		if cm.Parse(oob) == nil {
			ip = cm.Dst
		}
	}
	if a, ok := netip.AddrFromSlice(ip); ok {
		m.to = a.Unmap()
	}
}

// outlet writes to a UDP socket. It is safe for concurrent use.
type outlet struct {
	conn *net.UDPConn
	pool *buffers
}

func newOutlet(conn *net.UDPConn, pool *buffers) *outlet { return &outlet{conn: conn, pool: pool} }

// outgoing is one packet with its header.
type outgoing struct {
	data [channelHeader + maxDatagram]byte
}

func newOutgoing() *outgoing { return new(outgoing) }

// send sends packets in their order, each in a ChannelData message if number is
// not 0; oob chooses the address that they come from. What cannot be sent is lost,
// as on any way. It returns the bytes of what was sent, without headers.
func (o *outlet) send(packets [][]byte, number uint16, to *net.UDPAddr, oob []byte) (bytes int) {
	g, _ := o.pool.out.Get().(*outgoing)
	defer o.pool.out.Put(g)
	for _, p := range packets {
		out := p
		if number != 0 {
			binary.BigEndian.PutUint16(g.data[:], number)
			binary.BigEndian.PutUint16(g.data[2:], uint16(len(p)))
			out = g.data[:channelHeader+copy(g.data[channelHeader:], p)]
		}
		_, _, err := o.conn.WriteMsgUDP(out, oob, to)
		if err != nil && oob != nil && !ended(err) {
			_, err = o.conn.WriteToUDP(out, to) // the address is gone, or cannot be chosen
		}
		if err == nil {
			bytes += len(p)
		}
	}
	return bytes
}
