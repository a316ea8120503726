package link

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	udpBatch = conn.IdealBatchSize
	// readMessages is how many datagrams, or trains of datagrams that the kernel
	// has joined (UDP_GRO), one system call reads.
	readMessages = 8
	// maxSegments is the kernel's limit for one segmented send (UDP_MAX_SEGMENTS).
	maxSegments = 64
	// maxTrain is the most bytes in one segmented send. With headers it stays
	// below the 65536 bytes of a network device's segmentation: above, the kernel
	// segments in software, at a tenth of the receiver's batch (measured).
	maxTrain = 65000
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
			_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			u.gso.Store(err == nil)
		})
	}
	return u
}

// control sets the options that have to be there before the first packet. Only
// IPV6_V6ONLY matters, and package net sets that one: the rest is speed.
func control(network, _ string, raw syscall.RawConn) error {
	return raw.Control(func(f uintptr) {
		fd := int(f)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) // needs CAP_NET_ADMIN
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // since Linux 5.0
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
		local, size := parseControl(m.OOB[:m.NN])
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

// parseControl reads our address and the size of the parts of a train; 0: it is
// one datagram.
func parseControl(oob []byte) (local netip.Addr, size int) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return local, size
		}
		oob = rest
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2:
			size = int(binary.NativeEndian.Uint16(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			local = netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			local = netip.AddrFrom16([16]byte(data[:16]))
		}
	}
	return local, size
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
		size, total, count := len(bufs[0]), len(bufs[0]), 1
		for gso && count < len(bufs) && count < maxSegments && size > 0 {
			next := len(bufs[count])
			if next == 0 || next > size || total+next > maxTrain {
				break
			}
			total += next
			count++
			if next < size {
				break // only the last part may be shorter
			}
		}
		m := &ms[n]
		m.Addr, m.Buffers = e.sys.addr, bufs[:count]
		m.OOB = append(m.OOB[:0], e.sys.oob...)
		if count > 1 {
			m.OOB = appendSegmentSize(m.OOB, uint16(size))
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

// appendSegmentSize appends a UDP_SEGMENT control message. The space is there.
func appendSegmentSize(oob []byte, size uint16) []byte {
	start := len(oob)
	oob = oob[:start+unix.CmsgSpace(2)]
	clear(oob[start:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[start])) //nolint:gosec // the kernel's layout, aligned by CmsgSpace
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[start+unix.CmsgLen(0):], size)
	return oob
}
