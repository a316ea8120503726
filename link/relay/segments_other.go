//go:build !linux

package relay

import "net"

// segments carries one datagram per system call: there is no other way here.
type segments struct{ conn net.Conn }

func newSegments(c net.Conn) *segments { return &segments{conn: c} }

func (s *segments) possible() bool { return false }

func (s *segments) write(all []byte, size int) error { return apart(s.conn, all, size) }

func (s *segments) read(buf []byte) ([]byte, error) {
	n, err := s.conn.Read(buf)
	return buf[:n], err
}
