package relay

import (
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// Linux's UDP socket options (udp(7)), which package syscall does not name.
const (
	solUDP     = 17
	udpSegment = 103 // since Linux 4.18
	udpGRO     = 104 // since Linux 5.0
)

// segments lets one system call carry many datagrams of a connected UDP socket, in
// both directions.
type segments struct {
	any  net.Conn
	conn *net.UDPConn // nil: any is of another kind
	off  atomic.Bool  // the kernel, or the interface, cannot send them

	oob  []byte // of read
	rest []byte // of what was read last
	size int    // of the datagrams in it, in bytes
}

func newSegments(c net.Conn) *segments {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return &segments{any: c}
	}
	setOption(u, solUDP, udpGRO, 1)
	return &segments{any: c, conn: u, oob: make([]byte, syscall.CmsgSpace(4))}
}

// possible reports whether write takes more than one datagram.
func (s *segments) possible() bool { return s.conn != nil && !s.off.Load() }

// write sends datagrams of a size, the last of which may be shorter.
func (s *segments) write(all []byte, size int) error {
	oob := make([]byte, syscall.CmsgSpace(2))
	h := (*syscall.Cmsghdr)(unsafe.Pointer(&oob[0])) //nolint:gosec // as package syscall reads them
	h.Level, h.Type = solUDP, udpSegment
	h.SetLen(syscall.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[syscall.CmsgLen(0):], uint16(size))
	_, _, err := s.conn.WriteMsgUDP(all, oob, nil)
	// EIO: the interface does no checksums. EINVAL: an old kernel, or the path has a
	// smaller MTU.
	if errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EMSGSIZE) {
		s.off.Store(!errors.Is(err, syscall.EMSGSIZE))
		return apart(s.conn, all, size)
	}
	return err
}

// read returns the next datagram. It is valid until the next call.
func (s *segments) read(buf []byte) ([]byte, error) {
	if s.conn == nil {
		n, err := s.any.Read(buf)
		return buf[:n], err
	}
	if len(s.rest) == 0 {
		n, oobn, _, _, err := s.conn.ReadMsgUDP(buf, s.oob)
		if err != nil {
			return nil, err
		}
		s.rest, s.size = buf[:n], n
		if msgs, err := syscall.ParseSocketControlMessage(s.oob[:oobn]); err == nil {
			for _, m := range msgs {
				if m.Header.Level == solUDP && m.Header.Type == udpGRO && len(m.Data) >= 2 {
					s.size = int(binary.NativeEndian.Uint16(m.Data))
				}
			}
		}
	}
	n := len(s.rest)
	if s.size > 0 {
		n = min(n, s.size)
	}
	out := s.rest[:n]
	s.rest = s.rest[n:]
	return out, nil
}
