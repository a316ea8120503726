package hub

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// turnPackets is a main socket as the TURN server sees it: binding requests, and
// what belongs to no allocation, are dealt with before it reads, and what it
// writes goes out from the address that the client knows.
type turnPackets struct {
	*udpSocket
	t     *turnServer
	out   *outlet
	asked question

	// Of the goroutine that reads.
	in    *reader
	rest  message       // what is not looked at yet
	alloc *allocation   // that it belongs to
	dirty []*allocation // with packets to pass on

	mu      sync.RWMutex // guards clients
	clients map[netip.AddrPort]*allocation
}

func newTURNPackets(t *turnServer, u *udpSocket) (*turnPackets, error) {
	in, err := newReader(u.conn, nil) // everything comes in here: it need not wait
	joinReads(u.conn)
	return &turnPackets{
		udpSocket: u, t: t, in: in, out: newOutlet(u.conn, u.fam.all.buffers), clients: make(map[netip.AddrPort]*allocation),
	}, err
}

func (t *turnPackets) question() *question { return &t.asked }

func (t *turnPackets) allocation(client netip.AddrPort) *allocation {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.clients[client]
}

func (t *turnPackets) reply(p []byte, to netip.AddrPort) {
	from, _ := t.asked.cameTo(to)
	_ = t.write(p, from, to) // whoever asked repeats what is lost
}

// ReadFrom returns the next packet that is for the TURN server.
func (t *turnPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	t.alloc = t.allocation(t.rest.src) // it may be new, or gone
	for {
		for len(t.rest.data) > 0 {
			if packet := t.rest.next(); t.mine(packet) {
				t.flush()
				return copy(p, packet), net.UDPAddrFromAddrPort(t.rest.src), nil
			}
		}
		if !t.in.more() {
			t.flush()
		}
		var err error
		if t.rest, err = t.in.get(); err != nil {
			t.in.release()
			return 0, nil, err
		}
		if len(t.rest.data) == 0 || t.rest.size > maxDatagram {
			t.rest.data = nil
			t.fam.all.m.drop("datagram")
			continue
		}
		t.alloc = t.allocation(t.rest.src)
	}
}

// flush passes on what came in channels.
func (t *turnPackets) flush() {
	for _, a := range t.dirty {
		a.flushUp()
	}
	clear(t.dirty)
	t.dirty = t.dirty[:0]
}

// mine deals with a packet, or reports that it is for the library. Data needs an
// allocation; requests that nobody has to send who has one are bounded.
func (t *turnPackets) mine(p []byte) bool {
	src, to := t.rest.src, t.rest.to
	switch kind := classify(p); {
	case kind == datagramBinding:
		t.answer(p, src, to)
		return false
	case kind != datagramTURN:
		t.fam.all.m.drop("datagram")
		return false
	case t.alloc == nil && (p[0] >= channelFirst || isSendIndication(p)):
		t.unknown(p, src, to)
		return false
	case p[0] >= channelFirst:
		if len(t.alloc.up.packets) == 0 {
			t.dirty = append(t.dirty, t.alloc)
		}
		t.alloc.sendUp(p)
		return false
	}
	var counted *sources
	if !isSendIndication(p) && (t.alloc == nil || !signed(p)) {
		if !t.t.logins.allow(time.Now(), src.Addr()) {
			t.fam.all.m.drop("turn_rate")
			return false
		}
		counted = t.t.logins
	}
	t.asked.begin(src, to, p[:stunHeader], counted)
	return true
}

// unknown tells a sender of data that there is no allocation for it; see goneHint.
// It is never told more than it sent, nor more often than binding requests are
// answered.
func (t *turnPackets) unknown(p []byte, src netip.AddrPort, to netip.Addr) {
	t.fam.all.m.drop("allocation")
	if len(p) >= len(t.t.gone) && t.t.hints.allow(time.Now(), src.Addr()) {
		_ = t.write(t.t.gone, to, src) // the next packet is another chance
	}
}

func isSendIndication(p []byte) bool { return p[0] == 0x00 && p[1] == 0x16 }

// WriteTo sends to a client; relayed data beyond its bandwidth is dropped.
func (t *turnPackets) WriteTo(p []byte, addr net.Addr) (int, error) {
	dst := addrOf(addr)
	var from netip.Addr
	if a := t.allocation(dst); a == nil {
		from, _ = t.asked.cameTo(dst)
	} else if from = a.to; !a.user.deliver(p, t.fam.all.m) {
		return len(p), nil
	}
	t.asked.wrote(dst, p)
	if err := t.write(p, from, dst); err != nil {
		return 0, err
	}
	return len(p), nil
}

// remember notes a new allocation; it is called while its client's packet is
// handled.
func (t *turnPackets) remember(src netip.AddrPort, a *allocation) {
	to, ok := t.asked.cameTo(src)
	if !ok {
		to = t.local.Addr()
	}
	a.home, a.client, a.to, a.oob = t, net.UDPAddrFromAddrPort(src), to, t.control(to)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clients[src] = a
}

func (t *turnPackets) forget(src netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.clients, src)
}

// Close ends ReadFrom, so that all allocations end, and tells their clients. The
// socket stays open for that; whoever opened it closes it.
func (t *turnPackets) Close() error {
	t.mu.RLock()
	clients := maps.Clone(t.clients)
	t.mu.RUnlock()
	err := t.conn.SetReadDeadline(time.Unix(1, 0))
	for src, a := range clients {
		_ = t.write(t.t.gone, a.to, src) // they would find out by silence, too
	}
	return err
}

// ended reports whether an error of reading means that there is nothing more.
func ended(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}

// LocalAddr returns the address of the socket.
func (t *turnPackets) LocalAddr() net.Addr { return t.conn.LocalAddr() }

// SetDeadline does nothing: it is the library's to ask for, and it never does.
func (t *turnPackets) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (t *turnPackets) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (t *turnPackets) SetWriteDeadline(time.Time) error { return nil }
