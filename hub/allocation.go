package hub

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
)

const maxPeers = 1024 // addresses that an allocation may have permissions for, and channels to

// allocation is what the hub knows of one of the TURN library's allocations. The
// library keeps its state and tells it here: permissions, channels, and their end.
// What comes in a channel over UDP, the most of what a relay carries, is passed on
// by what is here and never gets to the library.
type allocation struct {
	user  *user
	relay *relayConn

	// Of a client over UDP, else nil.
	home   *turnPackets
	client *net.UDPAddr
	to     netip.Addr // the address of ours that it knows
	oob    []byte     // that chooses it

	mu          sync.RWMutex // guards the fields below
	permissions map[netip.Addr]struct{}
	numbers     map[uint16]*channel
	peers       map[netip.AddrPort]*channel

	up, down run // each of the one goroutine that reads there
}

// run is packets for one channel, in one direction, that are sent together as soon
// as all that the socket had is looked at.
type run struct {
	channel *channel
	packets [][]byte
}

func (r *run) reset() {
	clear(r.packets)
	r.channel, r.packets = nil, r.packets[:0]
}

// channel is a channel that is bound now (RFC 8656 section 12).
type channel struct {
	number uint16
	peer   netip.AddrPort
}

func newAllocation(u *user, relay *relayConn) *allocation {
	if u == nil {
		u = new(user)
	}
	return &allocation{
		user: u, relay: relay,
		permissions: make(map[netip.Addr]struct{}), numbers: make(map[uint16]*channel), peers: make(map[netip.AddrPort]*channel),
	}
}

// permit notes a permission, and forbid its end.
func (a *allocation) permit(ip net.IP) {
	if addr, ok := netip.AddrFromSlice(ip); ok {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.permissions[addr.Unmap()] = struct{}{}
	}
}

func (a *allocation) forbid(ip net.IP) {
	if addr, ok := netip.AddrFromSlice(ip); ok {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.permissions, addr.Unmap())
	}
}

// full reports whether there may be no permission for one more address.
func (a *allocation) full(ip netip.Addr) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, has := a.permissions[ip]
	return !has && len(a.permissions) >= maxPeers || len(a.numbers) >= 2*maxPeers
}

// bind notes a channel, and unbind its end.
func (a *allocation) bind(number uint16, peer net.Addr) {
	c := &channel{number: number, peer: addrOf(peer)}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.numbers[number], a.peers[c.peer] = c, c
}

func (a *allocation) unbind(number uint16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.numbers[number]; c != nil {
		delete(a.numbers, number)
		if a.peers[c.peer] == c {
			delete(a.peers, c.peer)
		}
	}
}

func (a *allocation) byNumber(number uint16) *channel {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.numbers[number]
}

// from returns the channel of a peer, if there is one, and whether packets of it
// are let through at all.
func (a *allocation) from(peer netip.AddrPort) (*channel, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if c := a.peers[peer]; c != nil {
		return c, true
	}
	_, ok := a.permissions[peer.Addr()]
	return nil, ok
}

// sendUp takes a ChannelData message of the client, which flushUp passes on.
func (a *allocation) sendUp(p []byte) {
	n := int(binary.BigEndian.Uint16(p[2:]))
	if n > len(p)-channelHeader {
		return
	}
	if number := binary.BigEndian.Uint16(p); a.up.channel == nil || a.up.channel.number != number {
		a.flushUp()
		if a.up.channel = a.byNumber(number); a.up.channel == nil {
			return
		}
	}
	if !a.user.spend(&a.user.up, n) {
		a.relay.r.m.drop("bandwidth")
		return
	}
	a.up.packets = append(a.up.packets, p[channelHeader:channelHeader+n])
}

func (a *allocation) flushUp() {
	if len(a.up.packets) > 0 {
		if dst, ok := a.relay.route(a.up.channel.peer); ok {
			a.relay.r.m.toPeer.Add(a.relay.out.send(a.up.packets, 0, net.UDPAddrFromAddrPort(dst), nil))
		}
	}
	a.up.reset()
}

// sendDown takes what a peer with a channel sent, which flushDown passes on.
func (a *allocation) sendDown(m message, c *channel) {
	if a.down.channel != c {
		a.flushDown()
		a.down.channel = c
	}
	for len(m.data) > 0 {
		if p := m.next(); a.user.spend(&a.user.down, channelHeader+len(p)) {
			a.down.packets = append(a.down.packets, p)
		} else {
			a.relay.r.m.drop("bandwidth")
		}
	}
}

func (a *allocation) flushDown() {
	if len(a.down.packets) > 0 {
		a.relay.r.m.toClient.Add(a.home.out.send(a.down.packets, a.down.channel.number, a.client, a.oob))
	}
	a.down.reset()
}
