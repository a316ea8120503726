package hub

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/kithproject/kith/internal/train"
)

const (
	batchMessages = 16      // datagrams or trains that one system call reads
	batchSize     = 1 << 16 // bytes of the longest train
	batchControl  = 128     // bytes of control messages: where to, and the size of a packet
)

// joinReads has the kernel hand out trains.
func joinReads(conn *net.UDPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(train.Join)
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	syscall.Msghdr
	n uint32
}

// batch is what one system call read: 1 MB.
type batch struct {
	heads [batchMessages]mmsghdr
	iovs  [batchMessages]syscall.Iovec
	names [batchMessages]syscall.RawSockaddrInet6 // or IPv4, which is shorter
	oobs  [batchMessages][batchControl]byte
	bufs  [batchMessages][batchSize]byte
}

func newBatch() *batch {
	b := new(batch)
	for i := range b.heads {
		b.iovs[i].Base = &b.bufs[i][0]
		b.iovs[i].SetLen(batchSize)
		h := &b.heads[i]
		h.Iov, h.Iovlen = &b.iovs[i], 1
		h.Name = (*byte)(unsafe.Pointer(&b.names[i])) //nolint:gosec // as recvmsg(2) has it
		h.Control = &b.oobs[i][0]
	}
	return b
}

// reader reads a UDP socket. It is not safe for concurrent use.
type reader struct {
	raw     syscall.RawConn
	pool    *buffers
	local   netip.Addr // what a packet came to where the socket does not tell
	batch   *batch     // nil while nothing is held
	read    func(fd uintptr) bool
	n, next int // messages in batch
	err     error
}

// newReader makes a reader; without buffers to share it keeps a batch for itself.
func newReader(conn *net.UDPConn, pool *buffers) (*reader, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &reader{raw: raw, pool: pool, local: addrOf(conn.LocalAddr()).Addr()}
	r.read = r.try
	return r, nil
}

// try reads what there is, or reports false if there is nothing. Then nothing is
// held while the socket is waited for.
func (r *reader) try(fd uintptr) bool {
	if r.batch == nil {
		if r.pool == nil {
			r.batch = newBatch()
		} else {
			r.batch = r.pool.take()
		}
	}
	for i := range r.batch.heads {
		h := &r.batch.heads[i]
		h.Namelen = syscall.SizeofSockaddrInet6
		h.SetControllen(batchControl)
	}
	n, _, errno := syscall.Syscall6(syscall.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.batch.heads)), batchMessages, syscall.MSG_DONTWAIT, 0, 0) //nolint:gosec // as recvmmsg(2) has it
	switch errno {
	case 0:
		r.n, r.next = int(n), 0
		return true
	case syscall.EAGAIN:
		r.release()
		return false
	}
	r.release()
	r.err = errno
	return true
}

func (r *reader) release() {
	r.n, r.next = 0, 0
	if r.batch != nil && r.pool != nil {
		r.pool.in <- r.batch
		r.batch = nil
	}
}

// more reports whether get returns a message without waiting.
func (r *reader) more() bool { return r.next < r.n }

// get returns the next message; it is good until the next call of get that has
// none. It errs when the socket is closed or lost.
func (r *reader) get() (message, error) {
	for failures := 0; !r.more(); failures++ {
		r.release()
		r.err = nil
		err := r.raw.Read(r.read)
		if err == nil && r.err == nil {
			continue
		}
		if err == nil {
			err = r.err
		}
		// A packet that could not be delivered is told to the socket on some systems;
		// that is no reason to stop.
		if ended(err) || failures >= maxReadErrors {
			return message{}, err
		}
	}
	i := r.next
	r.next++
	h := &r.batch.heads[i]
	m := message{data: r.batch.bufs[i][:min(int(h.n), batchSize)], src: sockaddr(&r.batch.names[i]), to: r.local}
	m.size = len(m.data)
	if h.Flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		m.data = nil // no datagram is as long
	}
	control(r.batch.oobs[i][:min(int(h.Controllen), batchControl)], &m)
	return m, nil
}

// sockaddr reads an address of the kernel.
func sockaddr(name *syscall.RawSockaddrInet6) netip.AddrPort {
	raw := (*[syscall.SizeofSockaddrInet6]byte)(unsafe.Pointer(name)) //nolint:gosec // as ip(7) and ipv6(7) have it
	port := binary.BigEndian.Uint16(raw[2:])
	if name.Family == syscall.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[4:])), port)
	}
	a := netip.AddrFrom16(name.Addr).Unmap()
	if name.Scope_id != 0 && a.Is6() {
		a = a.WithZone(strconv.Itoa(int(name.Scope_id)))
	}
	return netip.AddrPortFrom(a, port)
}

// control takes from control messages the address that a packet came to, and the
// size of the packets of a train.
func control(oob []byte, m *message) {
	c := train.ParseControl(oob)
	if c.Size > 0 {
		m.size = c.Size
	}
	if c.To.IsValid() {
		m.to = c.To.Unmap()
	}
}

// ipv4.Message and ipv6.Message are the same type.
type batchConn interface {
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

// outlet writes to a UDP socket. It is safe for concurrent use.
type outlet struct {
	batch batchConn
	pool  *buffers
	joins atomic.Bool // cleared where the network device cannot cut trains
}

func newOutlet(conn *net.UDPConn, pool *buffers) *outlet {
	o := &outlet{pool: pool}
	if addrOf(conn.LocalAddr()).Addr().Is4() {
		o.batch = ipv4.NewPacketConn(conn)
	} else {
		o.batch = ipv6.NewPacketConn(conn)
	}
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			o.joins.Store(train.Possible(fd))
		})
	}
	return o
}

// outgoing is what one system call writes.
type outgoing struct {
	ms    [maxPackets]ipv4.Message
	count [maxPackets]int // packets of each
	parts [2 * maxPackets][]byte
	heads [maxPackets][channelHeader]byte
	oobs  [maxPackets][batchControl]byte
}

func newOutgoing() *outgoing { return new(outgoing) }

// fill makes messages of up to maxPackets packets, and returns how many.
func (g *outgoing) fill(packets [][]byte, number uint16, to *net.UDPAddr, oob []byte, join bool) (n int) {
	packets = packets[:min(len(packets), maxPackets)]
	head := 0
	if number != 0 {
		head = channelHeader
	}
	part, at := 0, 0
	for len(packets) > 0 {
		count := 1
		if join {
			count = train.Length(packets, head)
		}
		first := part
		for _, p := range packets[:count] {
			if number != 0 {
				binary.BigEndian.PutUint16(g.heads[at][:], number)
				binary.BigEndian.PutUint16(g.heads[at][2:], uint16(len(p)))
				g.parts[part] = g.heads[at][:]
				part++
			}
			g.parts[part] = p
			part++
			at++
		}
		m := &g.ms[n]
		m.Addr, m.Buffers = to, g.parts[first:part]
		m.OOB = append(g.oobs[n][:0], oob...)
		if count > 1 {
			m.OOB = train.AppendSize(m.OOB, uint16(len(packets[0])+head))
		}
		g.count[n] = count
		packets = packets[count:]
		n++
	}
	return n
}

// send sends packets in their order, each in a ChannelData message if number is
// not 0; oob chooses the address that they come from. What cannot be sent is lost,
// as on any way. It returns the bytes of what was sent, without headers.
func (o *outlet) send(packets [][]byte, number uint16, to *net.UDPAddr, oob []byte) (bytes int) {
	g, _ := o.pool.out.Get().(*outgoing)
	defer o.pool.out.Put(g)
	join := o.joins.Load()
	for len(packets) > 0 {
		n := g.fill(packets, number, to, oob, join)
		for i := 0; i < n; {
			sent, err := o.batch.WriteBatch(g.ms[i:n], 0)
			for ; sent > 0; sent, i = sent-1, i+1 {
				for _, p := range packets[:g.count[i]] {
					bytes += len(p)
				}
				packets = packets[g.count[i]:]
			}
			if err == nil {
				continue
			}
			if ended(err) {
				return bytes
			}
			if g.count[i] > 1 && (errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EMSGSIZE)) {
				// The device cannot compute checksums, which cutting trains needs; or the
				// packets are longer than the way's MTU, and have to be cut one by one.
				if errors.Is(err, syscall.EIO) {
					o.joins.Store(false)
				}
				join = false
				break // again, one by one
			}
			if oob != nil {
				oob = nil // the address is gone, or cannot be chosen
				break
			}
			packets = packets[g.count[i]:]
			i++
		}
		clear(g.ms[:n])
	}
	clear(g.parts[:])
	return bytes
}
