package relay

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"

	"github.com/kithproject/kith/internal/train"
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
	if raw, err := u.SyscallConn(); err == nil {
		_ = raw.Control(train.Join)
	}
	return &segments{any: c, conn: u, oob: make([]byte, syscall.CmsgSpace(4))}
}

// possible reports whether write takes more than one datagram.
func (s *segments) possible() bool { return s.conn != nil && !s.off.Load() }

// write sends datagrams of a size, the last of which may be shorter.
func (s *segments) write(all []byte, size int) error {
	oob := train.AppendSize(make([]byte, 0, train.Space()), uint16(size))
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
		if size := train.ParseControl(s.oob[:oobn]).Size; size > 0 {
			s.size = size
		}
	}
	n := min(len(s.rest), s.size)
	out := s.rest[:n]
	s.rest = s.rest[n:]
	return out, nil
}
