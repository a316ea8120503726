package hub

import (
	"crypto/rand"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/turn/v5"
)

const (
	portAttempts = 64               // to find a free relay port
	relayBuffer  = 1 << 20          // bytes asked of the system, for bursts of one client's peers
	ownEvery     = 10 * time.Second // how long this machine's addresses are believed
)

var (
	errRelayFamily = errors.New("hub: no relayed address of this family")
	errRelayKind   = errors.New("hub: only UDP is relayed, on a port of the hub's choice")
	errRelayPorts  = errors.New("hub: no relay port is free")
)

// denied are the networks besides those that netip knows by name which a relay
// on the internet must not send to: they are this machine's, its provider's, or
// lead there by translation (RFC 6890 and RFC 8656 section 21.1.4).
var denied = []netip.Prefix{ //nolint:gochecknoglobals // never changed
	netip.MustParsePrefix("0.0.0.0/8"),      // this network
	netip.MustParsePrefix("100.64.0.0/10"),  // shared address space
	netip.MustParsePrefix("192.0.0.0/24"),   // protocol assignments
	netip.MustParsePrefix("192.88.99.0/24"), // 6to4 relays
	netip.MustParsePrefix("240.0.0.0/4"),    // reserved, and broadcast
	netip.MustParsePrefix("::/96"),          // IPv4 in IPv6
	netip.MustParsePrefix("64:ff9b::/96"),   // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64
	netip.MustParsePrefix("100::/64"),       // discarded
	netip.MustParsePrefix("2001::/32"),      // Teredo
	netip.MustParsePrefix("2002::/16"),      // 6to4
	netip.MustParsePrefix("fec0::/10"),      // site-local
	netip.MustParsePrefix("fd00:ec2::/32"),  // metadata of a cloud
	netip.MustParsePrefix("169.254.0.0/16"), // link-local, and metadata of clouds
	netip.MustParsePrefix("255.255.255.255/32"),
}

// mayRelay reports whether the relay may send to an address that is not its own.
func mayRelay(a netip.Addr, private bool) bool {
	if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	if private {
		return true
	}
	if a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range denied {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// relays makes the relayed addresses. It is the library's generator of them, and
// decides where they may send.
type relays struct {
	ip       [2]netip.Addr // as peers see them
	bind     [2]netip.Addr // where their sockets are
	min, max uint16
	private  bool
	// outside says that only others see ip, as behind a NAT that maps a whole
	// address. Then allocations of this hub reach each other by inside.
	outside [2]bool
	m       *meters
	quota   *quota
	buffers *buffers
	wg      sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	own   map[netip.Addr]bool
	owned time.Time                // when own was asked
	live  [2]map[uint16]*relayConn // by port
}

var _ turn.RelayAddressGenerator = (*relays)(nil)

func newRelays(cfg Config, m *meters, q *quota, socks *sockets, ip [2]netip.Addr) *relays {
	r := &relays{ip: ip, min: cfg.RelayMin, max: cfg.RelayMax, private: cfg.AllowPrivate, m: m, quota: q, buffers: socks.buffers}
	for f := range 2 {
		r.live[f] = make(map[uint16]*relayConn)
		switch {
		case r.isOwn(ip[f], time.Now()):
			r.bind[f] = ip[f]
		case socks.has(f):
			r.bind[f], r.outside[f] = socks.bound(f), true
		}
	}
	return r
}

// isOwn reports whether a is an address of this machine.
func (r *relays) isOwn(a netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own == nil || now.Sub(r.owned) > ownEvery {
		if addrs, err := net.InterfaceAddrs(); err == nil {
			r.own, r.owned = make(map[netip.Addr]bool, len(addrs)), now
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil {
					r.own[p.Addr().WithZone("").Unmap()] = true
				}
			}
		}
	}
	return r.own[a]
}

// isSelf reports whether a is an address of this machine, or one by which others see it.
func (r *relays) isSelf(a netip.Addr) bool {
	return a == r.ip[0] || a == r.ip[1] || r.isOwn(a, time.Now())
}

// permit decides whether a client may exchange packets with an address: with
// other allocations of this hub always, with anything else of this machine or a
// private network never, unless private is set.
func (r *relays) permit(_ net.Addr, ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	if ok && a.IsValid() && (a == r.ip[0] || a == r.ip[1]) {
		return true // WriteTo lets it reach allocations only
	}
	if !ok || !mayRelay(a, r.private) || !r.private && r.isOwn(a, time.Now()) {
		r.m.drop("peer")
		return false
	}
	return true
}

// Validate returns nil.
func (r *relays) Validate() error { return nil }

// AllocatePacketConn opens the socket of an allocation.
func (r *relays) AllocatePacketConn(conf turn.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	f := 0
	if conf.Network == udpNetwork(1) {
		f = 1
	}
	if !r.ip[f].IsValid() || !r.bind[f].IsValid() {
		return nil, nil, errRelayFamily
	}
	u := r.quota.client(conf.UserID)
	if conf.RequestedPort != 0 || u == nil {
		return nil, nil, errRelayKind
	}
	for range portAttempts {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(r.max)-int64(r.min)+1))
		if err != nil {
			return nil, nil, err
		}
		port := r.min + uint16(n.Int64())
		conn, err := net.ListenUDP(udpNetwork(f), net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.bind[f], port)))
		if err != nil {
			continue
		}
		_ = conn.SetReadBuffer(relayBuffer) // the system gives what it allows
		_ = conn.SetWriteBuffer(relayBuffer)
		c := &relayConn{UDPConn: conn, r: r, family: f, port: port, user: u, out: newOutlet(conn, r.buffers)}
		if c.in, err = newReader(conn, r.buffers); err != nil {
			return nil, nil, errors.Join(err, conn.Close())
		}
		r.mu.Lock()
		r.live[f][port] = c
		r.mu.Unlock()
		r.wg.Add(1)
		return c, net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.ip[f], port)), nil
	}
	return nil, nil, errRelayPorts
}

// AllocateListener refuses: kith relays UDP only.
func (r *relays) AllocateListener(turn.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	return nil, nil, errRelayKind
}

// AllocateConn refuses: kith relays UDP only.
func (r *relays) AllocateConn(turn.AllocateConnConfig) (net.Conn, error) { return nil, errRelayKind }

func (r *relays) isLive(family int, port uint16) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[family][port] != nil
}

// conn returns the socket of a relayed address.
func (r *relays) conn(addr net.Addr) *relayConn {
	ap := addrOf(addr)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[familyOf(ap.Addr())][ap.Port()]
}

// inside is where another allocation is reached.
func (r *relays) inside(f int) netip.Addr {
	switch {
	case !r.bind[f].IsUnspecified():
		return r.bind[f]
	case f == 0:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// relayConn is the socket of one allocation.
type relayConn struct {
	*net.UDPConn
	r      *relays
	family int
	port   uint16
	user   *user
	out    *outlet
	once   sync.Once

	// Of a client over UDP, and of the goroutine that reads.
	alloc *allocation
	in    *reader
	rest  message // what is for the library
}

// ReadFrom returns the next packet of a peer that is for the library: for a client
// over TCP, or of a peer without a channel.
func (c *relayConn) ReadFrom(p []byte) (int, net.Addr, error) {
	if c.alloc == nil {
		return c.readOne(p)
	}
	for {
		if len(c.rest.data) > 0 {
			return copy(p, c.rest.next()), net.UDPAddrFromAddrPort(c.rest.src), nil
		}
		if !c.in.more() {
			c.alloc.flushDown()
		}
		m, err := c.in.get()
		if err != nil {
			c.in.release()
			return 0, nil, err
		}
		m.src = c.seen(m.src)
		switch channel, ok := c.alloc.from(m.src); {
		case m.size > maxDatagram:
			c.r.m.drop("datagram")
		case channel != nil:
			c.alloc.sendDown(m, channel)
		case ok:
			c.alloc.flushDown()
			c.rest = m
		default:
			c.r.m.drop("permission")
		}
	}
}

// readOne reads a packet where nothing but the library passes packets on.
func (c *relayConn) readOne(p []byte) (int, net.Addr, error) {
	for failures := 0; ; failures++ {
		n, src, err := c.ReadFromUDPAddrPort(p)
		if err == nil {
			return n, net.UDPAddrFromAddrPort(c.seen(src)), nil
		}
		if ended(err) || failures >= maxReadErrors {
			return 0, nil, err
		} // else an earlier packet could not be delivered
	}
}

// seen returns a peer's address as the client knows it.
func (c *relayConn) seen(src netip.AddrPort) netip.AddrPort {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	if c.r.outside[c.family] && src.Addr() == c.r.inside(c.family) && c.r.isLive(c.family, src.Port()) {
		src = netip.AddrPortFrom(c.r.ip[c.family], src.Port())
	}
	return src
}

// route returns where packets for a peer are sent, or false if they must not.
func (c *relayConn) route(peer netip.AddrPort) (netip.AddrPort, bool) {
	if peer.Addr() != c.r.ip[c.family] {
		return peer, true
	}
	if !c.r.isLive(c.family, peer.Port()) {
		if !c.r.private {
			c.r.m.drop("peer")
		}
		return peer, c.r.private
	}
	if c.r.outside[c.family] {
		peer = netip.AddrPortFrom(c.r.inside(c.family), peer.Port())
	}
	return peer, true
}

// WriteTo sends to a peer. What may not be sent, or exceeds the client's
// bandwidth, is dropped.
func (c *relayConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	dst, ok := c.route(addrOf(addr))
	if !ok {
		return len(p), nil
	}
	if !c.user.spend(&c.user.up, len(p)) {
		c.r.m.drop("bandwidth")
		return len(p), nil
	}
	n, err := c.WriteToUDPAddrPort(p, dst)
	if err == nil {
		c.r.m.toPeer.Add(n)
	}
	return n, err
}

// Close ends the allocation.
func (c *relayConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.UDPConn.Close()
		c.r.mu.Lock()
		delete(c.r.live[c.family], c.port)
		c.r.mu.Unlock()
		c.r.wg.Done()
	})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
