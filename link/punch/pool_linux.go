package punch

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// readsPerWake bounds how long one flooded socket keeps the others waiting.
	readsPerWake = 16
	// wakeIndex marks the event that ends the reader.
	wakeIndex = -1
)

// An epollSockets is many plain descriptors with one reader: a quarter of the
// memory of as many net.UDPConns, and 1 goroutine instead of 256.
type epollSockets struct {
	epoll, wake int

	// mu is held for reading to use a descriptor, and for writing to take the
	// next packet from one or to close them: so no packet is taken after keep.
	mu      sync.RWMutex
	fds     []int // nil when closed
	ports   []uint16
	started bool
	done    chan struct{}
}

func openSockets(n int, c control) (sockets, error) {
	s := &epollSockets{done: make(chan struct{})}
	var err error
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(s.epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err := s.watch(s.wake, wakeIndex); err != nil {
		return s, err
	}
	for range n {
		if err := s.open(c); err != nil {
			return s, err
		}
	}
	return s, nil
}

// open adds one socket.
func (s *epollSockets) open(c control) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	port, err := setUp(fd, c)
	if err == nil {
		err = s.watch(fd, len(s.fds))
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	s.fds, s.ports = append(s.fds, fd), append(s.ports, port)
	return nil
}

// setUp prepares a descriptor and binds it.
func setUp(fd int, c control) (port uint16, err error) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // a larger one is only less thrifty
	if c != nil {
		if err := c("udp4", "0.0.0.0:0", rawConn(fd)); err != nil {
			return 0, err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return uint16(name.(*unix.SockaddrInet4).Port), nil
}

func (s *epollSockets) watch(fd, index int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &e))
}

func (s *epollSockets) len() int { return len(s.ports) }

func (s *epollSockets) local(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), s.ports[i])
}

func (s *epollSockets) drop(n int) {
	keep := len(s.fds) - n
	for _, fd := range s.fds[keep:] {
		_ = unix.Close(fd)
	}
	s.fds, s.ports = s.fds[:keep], s.ports[:keep]
}

func (s *epollSockets) start(receive func(int, netip.AddrPort, []byte)) {
	s.started = true
	go s.read(receive)
}

// read delivers until the pool is closed. It owns the epoll descriptors.
func (s *epollSockets) read(receive func(int, netip.AddrPort, []byte)) {
	defer close(s.done)
	defer s.closeEpoll()
	events := make([]unix.EpollEvent, 64)
	buf := make([]byte, maxPacket)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // only a bad descriptor: ours has been closed
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == wakeIndex {
				return
			}
			for range readsPerWake {
				size, from, ok := s.take(int(e.Fd), buf)
				if !ok {
					break
				}
				if size <= maxPacket {
					receive(int(e.Fd), from, buf[:size])
				}
			}
		}
	}
}

// take takes one packet from a socket, if there is one and it is still ours.
func (s *epollSockets) take(i int, buf []byte) (size int, from netip.AddrPort, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fds == nil {
		return 0, from, false
	}
	size, name, err := unix.Recvfrom(s.fds[i], buf, unix.MSG_TRUNC)
	if err != nil {
		return 0, from, false
	}
	if a, ok := name.(*unix.SockaddrInet4); ok {
		from = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	}
	return size, from, true
}

func (s *epollSockets) closeEpoll() {
	_ = unix.Close(s.epoll)
	_ = unix.Close(s.wake)
}

func (s *epollSockets) send(i int, packets [][]byte, to netip.AddrPort, ttl int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fds == nil {
		return net.ErrClosed
	}
	var oob []byte
	if ttl > 0 {
		oob = ttlMessage(ttl)
	}
	name := unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	for _, p := range packets {
		if err := unix.Sendmsg(s.fds[i], p, oob, &name, 0); err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
	}
	return nil
}

// ttlMessage is the control message that sets the TTL of one datagram (Linux 3.13).
func ttlMessage(ttl int) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0])) //nolint:gosec // the kernel's layout, aligned as a fresh allocation of its size is
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TTL
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(ttl))
	return b
}

func (s *epollSockets) keep(i int) (*net.UDPConn, error) {
	fds := s.stop()
	kept := fds[i]
	// The socket lives on in a copy of the descriptor: epoll would not forget it.
	_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, kept, nil)
	for k, fd := range fds {
		if k != i {
			_ = unix.Close(fd)
		}
	}
	f := os.NewFile(uintptr(kept), "punch")
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// stop takes the descriptors out of use and ends the reader.
func (s *epollSockets) stop() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	fds := s.fds
	s.fds = nil
	if s.started {
		one := binary.NativeEndian.AppendUint64(nil, 1)
		_, _ = unix.Write(s.wake, one) // it was zero: there is room
	}
	return fds
}

func (s *epollSockets) close() {
	for _, fd := range s.stop() {
		_ = unix.Close(fd)
	}
	if !s.started {
		s.closeEpoll()
		return
	}
	s.wait()
}

func (s *epollSockets) wait() { <-s.done }

// A rawConn shows a descriptor to a control function.
type rawConn int

func (r rawConn) Control(f func(fd uintptr)) error {
	f(uintptr(r))
	return nil
}

func (rawConn) Read(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
func (rawConn) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }
