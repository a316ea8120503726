package tunnel

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
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

// A cursor reads a packet that lies in several views.
type cursor struct {
	view   *buffer.View
	offset int
}

func newCursor(p *stack.PacketBuffer) cursor {
	views, offset := p.AsViewList()
	c := cursor{view: views.Front(), offset: offset}
	for c.view != nil && c.offset >= c.view.Size() {
		c.offset -= c.view.Size()
		c.view = c.view.Next()
	}
	return c
}

func (c *cursor) read(dst []byte) {
	for len(dst) > 0 && c.view != nil {
		src := c.view.AsSlice()
		n := copy(dst, src[c.offset:])
		dst = dst[n:]
		if c.offset += n; c.offset == len(src) {
			c.view, c.offset = c.view.Next(), 0
		}
	}
}

// split writes an IPv6 packet to as many buffers as segments said, from offset
// on, as a network card with TCP segmentation offload would: each with the
// headers, its length and its sequence number; FIN and PSH only on the last.
func split(p *stack.PacketBuffer, bufs [][]byte, sizes []int, offset int) {
	c := newCursor(p)
	if len(bufs) == 1 {
		sizes[0] = p.Size()
		c.read(bufs[0][offset : offset+sizes[0]])
		return
	}
	mss, left := int(p.GSOOptions.MSS), p.Data().Size()
	headers := p.Size() - left
	first := bufs[0][offset : offset+headers+mss]
	c.read(first)
	sizes[0] = len(first)
	left -= mss
	last := first[tcpFlags]
	const notBefore = byte(header.TCPFlagFin | header.TCPFlagPsh)
	first[tcpFlags] &^= notBefore
	binary.BigEndian.PutUint16(first[ipLength:], uint16(len(first)-ipHeader))
	seq := binary.BigEndian.Uint32(first[tcpSeq:])
	for i := 1; i < len(bufs); i++ {
		size := min(mss, left)
		left -= size
		out := bufs[i][offset : offset+headers+size]
		copy(out, first[:headers])
		c.read(out[headers:])
		sizes[i] = len(out)
		seq += uint32(mss)
		binary.BigEndian.PutUint32(out[tcpSeq:], seq)
		if left == 0 {
			out[tcpFlags] = last
			binary.BigEndian.PutUint16(out[ipLength:], uint16(len(out)-ipHeader))
		}
	}
}
