package link

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/internal/train"
)

const (
	udpBatch = conn.IdealBatchSize / 2
	// readMessages is how many datagrams, or trains of datagrams that the kernel
	// has joined (UDP_GRO), one system call reads.
	readMessages = 8
	// controlSpace holds a packet-info and a segment-size control message, in bytes.
	controlSpace = 128
)

// sysEndpoint is what sending to an endpoint takes on Linux.
type sysEndpoint struct {
	addr *net.UDPAddr
	oob  []byte // control message that names our address; nil: the kernel chooses
}

func newEndpoint(remote netip.AddrPort, local netip.Addr) *udpEndpoint {
	e := &udpEndpoint{remote: remote, local: local}
	e.sys.addr = net.UDPAddrFromAddrPort(remote)
	switch {
	case !local.IsValid():
	case local.Is4():
		e.sys.oob = (&ipv4.ControlMessage{Src: local.AsSlice()}).Marshal()
	default:
		// The zone of the remote address names the interface where one is needed.
		e.sys.oob = (&ipv6.ControlMessage{Src: local.AsSlice()}).Marshal()
	}
	return e
}

// ipv4.Message and ipv6.Message are the same type, so one interface serves both.
type batchConn interface {
	ReadBatch(ms []ipv6.Message, flags int) (int, error)
	WriteBatch(ms []ipv6.Message, flags int) (int, error)
}

// A udpConn is one UDP socket.
type udpConn struct {
	conn  *net.UDPConn
	batch batchConn
	is6   bool
	gso   atomic.Bool // cleared when the network device cannot do it
	pool  sync.Pool   // of *[]ipv6.Message, for send

	// Owned by receive: what was read and not delivered yet.
	msgs  []ipv6.Message
	next  int // message
	end   int // messages read
	off   int // in the next message, in bytes
	cache endpointCache
}

func newUDPConn(c *net.UDPConn, is6 bool) *udpConn {
	u := &udpConn{conn: c, is6: is6, msgs: make([]ipv6.Message, readMessages)}
	if is6 {
		u.batch = ipv6.NewPacketConn(c)
	} else {
		u.batch = ipv4.NewPacketConn(c)
	}
	size := 1<<16 - 1
	for i := range u.msgs {
		u.msgs[i].Buffers = [][]byte{make([]byte, size)}
		u.msgs[i].OOB = make([]byte, controlSpace)
	}
	u.pool.New = func() any {
		ms := make([]ipv6.Message, udpBatch)
		for i := range ms {
			ms[i].OOB = make([]byte, 0, controlSpace)
		}
		return &ms
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			u.gso.Store(train.Possible(fd))
		})
	}
	return u
}

// control sets the options that have to be there before the first packet. Only
// IPV6_V6ONLY matters, and package net sets that one: the rest is speed.
func control(network, _ string, raw syscall.RawConn) error {
	return raw.Control(func(f uintptr) {
		fd := int(f)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) // needs CAP_NET_ADMIN
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		train.Join(f)
		if runtime.GOOS == "android" {
			return // it moves between networks by rules of its own: no fixed source
		}
		if network == "udp6" {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
}

func setMark(c *net.UDPConn, mark uint32) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sys error
	if err := raw.Control(func(fd uintptr) {
		sys = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); err != nil {
		return err
	}
	return sys
}

// receive is a conn.ReceiveFunc. It reads trains of datagrams into buffers of
// its own and hands out their parts; what does not fit the batch waits for the
// next call.
func (u *udpConn) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if u.next == u.end {
		for i := range u.msgs {
			u.msgs[i].OOB = u.msgs[i].OOB[:controlSpace]
		}
		n, err := u.batch.ReadBatch(u.msgs, 0)
		if err != nil {
			return 0, err
		}
		u.next, u.end, u.off = 0, n, 0
	}
	n := 0
	for u.next < u.end && n < len(bufs) {
		m := &u.msgs[u.next]
		c := train.ParseControl(m.OOB[:m.NN])
		local, size := c.Local, c.Size
		ep := u.cache.get(remoteOf(m.Addr), local)
		b := m.Buffers[0][:m.N]
		if size <= 0 {
			size = max(m.N, 1)
		}
		for u.off < len(b) && n < len(bufs) {
			stop := min(u.off+size, len(b))
			sizes[n], eps[n] = copy(bufs[n], b[u.off:stop]), ep
			u.off = stop
			n++
		}
		if u.off >= len(b) {
			u.next, u.off = u.next+1, 0
		}
	}
	return n, nil
}

func remoteOf(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	addr := u.AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// send sends packets, joined to trains of equal size where the kernel cuts them
// again (UDP_SEGMENT).
func (u *udpConn) send(bufs [][]byte, e *udpEndpoint) error {
	ms := u.pool.Get().(*[]ipv6.Message)
	defer u.pool.Put(ms)
	gso := u.gso.Load()
	for len(bufs) > 0 {
		n := fill(*ms, bufs, e, gso)
		sent, err := u.writeAll((*ms)[:n])
		for _, m := range (*ms)[:sent] {
			bufs = bufs[len(m.Buffers):]
		}
		train := sent < n && len((*ms)[sent].Buffers) > 1
		wipe(*ms, n)
		switch {
		case err == nil:
		case train && errors.Is(err, unix.EIO):
			// The device has no checksum offload, which segmentation needs.
			u.gso.Store(false)
			gso = false
		case train && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)):
			// The packets are larger than the path's MTU: one by one the kernel
			// fragments them, or tells which is too large.
			gso = false
		default:
			return err
		}
	}
	return nil
}

func (u *udpConn) writeAll(ms []ipv6.Message) (int, error) {
	sent := 0
	for sent < len(ms) {
		n, err := u.batch.WriteBatch(ms[sent:], 0)
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// fill makes messages of packets and returns how many. It copies nothing.
func fill(ms []ipv6.Message, bufs [][]byte, e *udpEndpoint, gso bool) int {
	n := 0
	for len(bufs) > 0 && n < len(ms) {
		count := 1
		if gso {
			count = train.Length(bufs, 0)
		}
		m := &ms[n]
		m.Addr, m.Buffers = e.sys.addr, bufs[:count]
		m.OOB = append(m.OOB[:0], e.sys.oob...)
		if count > 1 {
			m.OOB = train.AppendSize(m.OOB, uint16(len(bufs[0])))
		}
		bufs = bufs[count:]
		n++
	}
	return n
}

func wipe(ms []ipv6.Message, n int) {
	for i := range ms[:n] {
		ms[i] = ipv6.Message{OOB: ms[i].OOB[:0]}
	}
}
