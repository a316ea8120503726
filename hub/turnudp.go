package hub

import (
	"errors"
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
	oob   []byte
	asked question

	mu      sync.Mutex // guards clients
	clients map[netip.AddrPort]udpClient
}

// udpClient is a client with an allocation.
type udpClient struct {
	to   netip.Addr // the address of ours that it knows
	user *user
}

func newTURNPackets(t *turnServer, u *udpSocket) *turnPackets {
	return &turnPackets{udpSocket: u, t: t, oob: make([]byte, controlSize), clients: make(map[netip.AddrPort]udpClient)}
}

func (t *turnPackets) question() *question { return &t.asked }

func (t *turnPackets) allocated(client netip.AddrPort) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.clients[client]
	return ok
}

func (t *turnPackets) reply(p []byte, to netip.AddrPort) {
	from, _ := t.asked.cameTo(to)
	_ = t.write(p, from, to) // whoever asked repeats what is lost
}

// ReadFrom returns the next packet that is for the TURN server.
func (t *turnPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, src, to, err := t.read(p, t.oob)
		if err != nil {
			return 0, nil, err
		}
		switch kind := classify(p[:n]); {
		case kind == datagramBinding:
			t.answer(p[:n], src, to)
		case kind != datagramTURN:
			t.fam.all.m.drop("datagram")
		case t.admit(p[:n], src, to):
			return n, net.UDPAddrFromAddrPort(src), nil
		}
	}
}

// admit decides whether the library sees a packet. Data needs an allocation;
// requests that need not be answered by an allocation's right are bounded.
func (t *turnPackets) admit(p []byte, src netip.AddrPort, to netip.Addr) bool {
	known := t.allocated(src)
	if p[0] >= channelFirst || isSendIndication(p) {
		if !known {
			t.unknown(p, src, to)
		}
		t.asked.begin(src, to, nil, nil)
		return known
	}
	var counted *sources
	if !known || !signed(p) {
		if !t.t.logins.allow(time.Now(), src.Addr()) {
			t.fam.all.m.drop("turn_rate")
			return false
		}
		counted = t.t.logins
	}
	t.asked.begin(src, to, p[:min(len(p), stunHeader)], counted)
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
	t.mu.Lock()
	c, ok := t.clients[dst]
	t.mu.Unlock()
	if !ok {
		c.to, _ = t.asked.cameTo(dst)
	}
	t.asked.wrote(dst, p)
	if !c.user.deliver(p, t.fam.all.m) {
		return len(p), nil
	}
	if err := t.write(p, c.to, dst); err != nil {
		return 0, err
	}
	return len(p), nil
}

// remember notes how a client with a new allocation is reached; it is called
// while its packet is handled.
func (t *turnPackets) remember(src netip.AddrPort, u *user) {
	to, ok := t.asked.cameTo(src)
	if !ok {
		to = t.local.Addr()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clients[src] = udpClient{to: to, user: u}
}

func (t *turnPackets) forget(src netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.clients, src)
}

// Close ends ReadFrom, so that all allocations end, and tells their clients. The
// socket stays open for that; whoever opened it closes it.
func (t *turnPackets) Close() error {
	t.mu.Lock()
	clients := make(map[netip.AddrPort]udpClient, len(t.clients))
	for src, c := range t.clients {
		clients[src] = c
	}
	t.mu.Unlock()
	err := t.conn.SetReadDeadline(time.Unix(1, 0))
	for src, c := range clients {
		_ = t.write(t.t.gone, c.to, src) // they would find out by silence, too
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
