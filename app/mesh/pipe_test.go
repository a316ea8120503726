package mesh

import (
	"context"
	"net"
	"sync"

	"github.com/kithproject/kith/identity"
)

// pipeAddr names the device at the other end.
type pipeAddr identity.DeviceID

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return identity.DeviceID(a).Short() }

// pipeListener takes connections over loopback TCP under the names of devices.
type pipeListener struct {
	in   chan net.Conn
	once sync.Once
	done chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{in: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

// named is a connection of a device.
type named struct {
	*net.TCPConn
	from identity.DeviceID
}

func (c named) RemoteAddr() net.Addr { return pipeAddr(c.from) }

func (l *pipeListener) dial(ctx context.Context, from identity.DeviceID) (net.Conn, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	mine, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := ln.Accept()
	if err != nil {
		mine.Close()
		return nil, err
	}
	select {
	case l.in <- named{theirs.(*net.TCPConn), from}:
		return mine, nil
	case <-l.done:
	case <-ctx.Done():
	}
	mine.Close()
	theirs.Close()
	return nil, net.ErrClosed
}
