package expose

import (
	"context"
	"net"
	"time"

	"github.com/kithproject/kith/app/forward"
)

const (
	maxDatagram = 65535
	// maxPayload is the largest datagram of a program that is carried, in bytes: one of
	// the tunnel less the token.
	maxPayload = 65507 - tokenSize
)

// associate opens an association with the device for a flow of a program.
func (l *hosted) associate(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	conn, err := l.s.cfg.Dial(ctx, forward.UDP, l.peer)
	if err != nil {
		return nil, err
	}
	return &tokened{Conn: conn, token: l.token}, nil
}

// A tokened is an association on which the token goes before each datagram that is
// written. One goroutine writes.
type tokened struct {
	net.Conn
	token token
	buf   []byte
}

func (t *tokened) Write(b []byte) (int, error) {
	if len(b) > maxPayload {
		return len(b), nil // lost, as what is too large is
	}
	t.buf = append(append(t.buf[:0], t.token[:]...), b...)
	n, err := t.Conn.Write(t.buf)
	return max(n-tokenSize, 0), err
}

// ServeUDP carries an association that a device has made to Port, and closes it when it
// returns: when what it belongs to ends, or after two minutes without a datagram.
func (s *Service) ServeUDP(peer string, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()
	if !s.pend(peer, 1) {
		return
	}
	first, err := readFirst(conn)
	s.pend(peer, -1)
	if err != nil || len(first) < tokenSize {
		return
	}
	udp := func(key exposedKey) bool { return key.protocol == forward.UDP }
	a, done, st := s.find(peer, udp, first[:tokenSize])
	if st != statusOK {
		return
	}
	defer done()
	local, err := a.dial(a.ctx)
	if err != nil {
		a.fail(err)
		return
	}
	a.Counters.SpliceUDP(a.ctx, &untokened{Conn: conn, token: a.token, first: first[tokenSize:]}, local, 0)
}

// readFirst returns a copy of the first datagram: there is room for the largest only
// while it is awaited.
func readFirst(conn net.Conn) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(helloWait)); err != nil {
		return nil, err
	}
	b := make([]byte, maxDatagram)
	n, err := conn.Read(b)
	if err != nil {
		return nil, err
	}
	return append(make([]byte, 0, n), b[:n]...), conn.SetReadDeadline(time.Time{})
}

// An untokened is an association on which each datagram that is read had the token
// before it. One goroutine reads.
type untokened struct {
	net.Conn
	token token
	first []byte // was read already; nil when it has been given
}

func (u *untokened) Read(b []byte) (int, error) {
	if u.first != nil {
		n := copy(b, u.first)
		u.first = nil
		return n, nil
	}
	for {
		n, err := u.Conn.Read(b)
		if err != nil {
			return 0, err
		}
		if n >= tokenSize && u.token.is(b[:tokenSize]) {
			return copy(b, b[tokenSize:n]), nil
		}
	}
}
