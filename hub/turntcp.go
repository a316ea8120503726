package hub

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

var (
	errFrame  = errors.New("hub: not a TURN frame")
	errLogins = errors.New("hub: too many TURN requests that are not signed well")
)

// turnConn is a TCP client of the relay. It reads whole frames of a sane length,
// as the library must not see others: a length that wraps around in its 16 bits
// would keep it busy for ever.
type turnConn struct {
	net.Conn
	t     *turnServer
	key   netip.AddrPort
	once  sync.Once
	asked question

	head   [stunHeader]byte // of the frame being read
	off, n int              // what of head is still to be returned
	left   int              // bytes of the frame after head

	mu    sync.Mutex  // guards alloc
	alloc *allocation // nil without one
}

// frameLength returns the length of the frame that begins with head (RFC 8656
// section 12.5 and RFC 8489 section 5).
func frameLength(head [4]byte) (int, bool) {
	n := int(binary.BigEndian.Uint16(head[2:]))
	switch {
	case head[0] < channelFirst: // STUN
		if n%4 != 0 {
			return 0, false
		}
		n += stunHeader
	case head[0] >= channelFirst && head[0] <= channelLast: // padded to four bytes
		n = 4 + (n+3)&^3
	default:
		return 0, false
	}
	return n, n < maxDatagram
}

// Read returns bytes of one frame.
func (c *turnConn) Read(p []byte) (int, error) {
	if c.off == c.n && c.left == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if c.off < c.n {
		n := copy(p, c.head[c.off:c.n])
		c.off += n
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// next reads the header of the next frame. It errs with errFrame for what is none,
// with errLogins, and with what the connection says.
func (c *turnConn) next() error {
	known := c.allocation(c.key) != nil
	if known {
		_ = c.SetReadDeadline(time.Now().Add(turnIdle))
	}
	if _, err := io.ReadFull(c.Conn, c.head[:4]); err != nil {
		return err
	}
	length, ok := frameLength([4]byte(c.head[:]))
	if !ok {
		c.t.m.drop("frame")
		return errFrame
	}
	c.off, c.n = 0, 4
	var counted *sources
	if c.head[0] < channelFirst {
		if _, err := io.ReadFull(c.Conn, c.head[4:]); err != nil {
			return err
		}
		c.n = stunHeader
		if !known {
			if counted = c.t.tcpLogins; !counted.allow(time.Now(), c.key.Addr()) {
				c.t.m.drop("turn_rate")
				return errLogins
			}
		}
	}
	c.left = length - c.n
	c.asked.begin(c.key, netip.Addr{}, c.head[:c.n], counted)
	return nil
}

func (c *turnConn) question() *question { return &c.asked }

func (c *turnConn) allocation(netip.AddrPort) *allocation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alloc
}

func (c *turnConn) reply(p []byte, _ netip.AddrPort) {
	_, _ = c.Conn.Write(p) // a failure ends the connection
}

// Write sends to the client; relayed data beyond its bandwidth is dropped.
func (c *turnConn) Write(p []byte) (int, error) {
	c.asked.wrote(c.key, p)
	if a := c.allocation(c.key); a != nil && !a.user.deliver(p, c.t.m) {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// given notes that an allocation was made, or with nil that it ended.
func (c *turnConn) given(a *allocation) {
	c.mu.Lock()
	c.alloc = a
	c.mu.Unlock()
	if a == nil {
		_ = c.SetReadDeadline(time.Now().Add(turnFirst))
	}
}

// Close closes the connection.
func (c *turnConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.t.mu.Lock()
		if c.t.tcp[c.key] == c {
			delete(c.t.tcp, c.key)
		}
		c.t.mu.Unlock()
		c.t.wg.Done()
	})
	return err
}
