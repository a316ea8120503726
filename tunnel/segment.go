package tunnel

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segments returns into how many packets a packet of the stack is split.
func segments(p *stack.PacketBuffer) int {
	mss := int(p.GSOOptions.MSS)
	size := p.Data().Size()
	if p.GSOOptions.Type == stack.GSONone || mss == 0 || size <= mss {
		return 1
	}
	return (size + mss - 1) / mss
}

// A cursor reads a packet that lies in several slices.
type cursor struct {
	slices [][]byte
	offset int
}

func (c *cursor) read(dst []byte) {
	for len(dst) > 0 && len(c.slices) > 0 {
		n := copy(dst, c.slices[0][c.offset:])
		dst = dst[n:]
		c.offset += n
		if c.offset == len(c.slices[0]) {
			c.slices, c.offset = c.slices[1:], 0
		}
	}
}

// Offsets in the TCP header (RFC 9293 section 3.1), in bytes.
const (
	tcpSeq   = 4
	tcpFlags = 13
)

// split writes an IPv6 packet to as many buffers as segments said, from offset
// on, as a network card with TCP segmentation offload would: each with the
// headers, its length and its sequence number; FIN and PSH only on the last.
func split(p *stack.PacketBuffer, bufs [][]byte, sizes []int, offset int) {
	c := cursor{slices: p.AsSlices()}
	if len(bufs) == 1 {
		sizes[0] = p.Size()
		c.read(bufs[0][offset : offset+sizes[0]])
		return
	}
	network, transport := len(p.NetworkHeader().Slice()), len(p.TransportHeader().Slice())
	headers := network + transport
	var h [header.IPv6MinimumSize + header.TCPHeaderMaximumSize]byte
	c.read(h[:headers])
	mss, left := int(p.GSOOptions.MSS), p.Data().Size()
	seq := binary.BigEndian.Uint32(h[network+tcpSeq:])
	for i := range bufs {
		size := min(mss, left)
		left -= size
		out := bufs[i][offset : offset+headers+size]
		copy(out, h[:headers])
		c.read(out[headers:])
		sizes[i] = headers + size
		binary.BigEndian.PutUint16(out[4:], uint16(transport+size)) // payload length, RFC 8200 section 3
		binary.BigEndian.PutUint32(out[network+tcpSeq:], seq)
		seq += uint32(size)
		if left > 0 {
			out[network+tcpFlags] &^= byte(header.TCPFlagFin | header.TCPFlagPsh)
		}
	}
}
