package link

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/signaling"
)

// A testRelay joins ports by the addresses at which they are reached.
type testRelay struct {
	mu    sync.Mutex
	ports map[netip.AddrPort]*Port
	data  atomic.Int64 // WireGuard packets that went through
}

// A seat is one client's end of a testRelay.
type seat struct {
	relay *testRelay
	addr  netip.AddrPort
}

func (s seat) Send(bufs [][]byte, to netip.AddrPort) error {
	s.relay.mu.Lock()
	p := s.relay.ports[to]
	s.relay.mu.Unlock()
	if p == nil {
		return nil // lost like any datagram
	}
	for _, b := range bufs {
		if isWireGuard(b) {
			s.relay.data.Add(1)
		}
		p.Deliver(s.addr, b)
	}
	return nil
}

// attach gives a socket an address on the relay.
func (r *testRelay) attach(s *Socket, addr string) *Port {
	at := netip.MustParseAddrPort(addr)
	p := s.AttachRelay(seat{relay: r, addr: at}, "relay "+addr, at)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ports == nil {
		r.ports = make(map[netip.AddrPort]*Port)
	}
	r.ports[at] = p
	return p
}

func relayedAt(addr string) signaling.Candidate {
	return signaling.Candidate{Kind: signaling.Relayed, Addr: netip.MustParseAddrPort(addr)}
}

func (n *node) exchange(t *testing.T, other *node, word string) {
	t.Helper()
	for _, way := range [][2]*node{{n, other}, {other, n}} {
		if err := way[0].say(word); err != nil {
			t.Fatal(err)
		}
		way[1].hear(t, word)
	}
}

func TestPathThroughARelay(t *testing.T) {
	a, b := pair(t)
	relay := &testRelay{}
	pa, pb := relay.attach(a.socket, relayA), relay.attach(b.socket, relayB)
	found := false
	for _, c := range a.socket.Local() {
		found = found || c.Kind == signaling.Relayed && c.Addr.String() == relayA
	}
	if !found {
		t.Errorf("the relay's address is not offered: %v", a.socket.Local())
	}
	a.SetRemote([]signaling.Candidate{relayedAt(relayB)})
	up := a.wait(t, Up, 5*time.Second)
	if up.Path.Kind != Relay || up.Path.Via != "relay "+relayA || up.Path.Observed.String() != relayA {
		t.Errorf("path %+v", up.Path)
	}
	b.wait(t, Up, 5*time.Second)
	a.exchange(t, b, "relayed")
	if relay.data.Load() < 2 {
		t.Errorf("%d packets went through the relay", relay.data.Load())
	}
	// Who is no peer is not heard through it, and its STUN is nobody's.
	stranger := netip.MustParseAddrPort("198.51.100.99:1")
	before := b.socket.Stats()
	pb.Deliver(stranger, data("hello"))
	pb.Deliver(netip.MustParseAddrPort(relayA), make([]byte, 5000))
	raw, _, err := bindingRequest()
	if err != nil {
		t.Fatal(err)
	}
	pb.Deliver(stranger, raw)
	if now := b.socket.Stats(); now.UnknownSource != before.UnknownSource+1 || now.Other != before.Other+2 {
		t.Errorf("counted %+v, before %+v", now, before)
	}
	// A straight path is better; the relay's end does nothing to it.
	a.SetRemote(append(loopback(b.socket, "127.0.0.1"), relayedAt(relayB)))
	for a.wait(t, Changed, 5*time.Second).Path.Kind != Loopback { //nolint:revive // the condition does the work
	}
	for b.wait(t, Changed, 5*time.Second).Path.Kind != Loopback { //nolint:revive // the condition does the work
	}
	through := relay.data.Load()
	a.exchange(t, b, "straight")
	if got := relay.data.Load(); got != through {
		t.Errorf("%d packets through the relay", got-through)
	}
	pa.Detach()
	pa.Detach()
	pb.Detach()
	await(t, "one path", func() bool { return len(a.Paths()) == 1 && len(b.Paths()) == 1 })
	a.exchange(t, b, "still straight")
	for _, c := range a.socket.Local() {
		if c.Kind == signaling.Relayed {
			t.Errorf("a relay that is gone is offered: %v", c)
		}
	}
	for at := range a.socket.table.Load().sources {
		if at.carrier != 0 {
			t.Errorf("%v is left", at)
		}
	}
	if err := pa.carry([][]byte{data("x")}, &conn.StdNetEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("carry to another endpoint: %v", err)
	}
	if _, err := a.socket.carrier(pa.info.id); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a carrier that is gone: %v", err)
	}
}

func TestRelayDetachedWhileSelected(t *testing.T) {
	a, b := pair(t)
	relay := &testRelay{}
	one := relay.attach(a.socket, relayA)
	relay.attach(b.socket, relayB)
	a.SetRemote([]signaling.Candidate{relayedAt(relayB)})
	if up := a.wait(t, Up, 5*time.Second); up.Path.Via != "relay "+relayA {
		t.Fatalf("path %+v", up.Path)
	}
	relay.attach(a.socket, relayA2)
	await(t, "two paths", func() bool { return len(a.Paths()) == 2 })
	one.Detach()
	await(t, "the other relay", func() bool { p, ok := a.Path(); return ok && p.Via == "relay "+relayA2 })
	// Nobody told b, and nothing answers it on the old way.
	await(t, "the other relay at b", func() bool { p, ok := b.Path(); return ok && p.Remote.String() == relayA2 })
	a.exchange(t, b, "other relay")
	for id, p := range a.socket.table.Load().ports {
		if p.info.addr.String() != relayA2 {
			t.Errorf("port %d at %s is left", id, p.info.addr)
		}
		p.Detach()
	}
	a.wait(t, Down, 5*time.Second)
	if err := a.say("x"); !errors.Is(err, ErrNoPath) {
		t.Errorf("send without a path: %v", err)
	}
	// A new relay is used without being told.
	relay.attach(a.socket, relayA)
	if up := a.wait(t, Up, 5*time.Second); up.Path.Via != "relay "+relayA {
		t.Fatalf("path %+v", up.Path)
	}
	await(t, "the first relay at b", func() bool { p, ok := b.Path(); return ok && p.Remote.String() == relayA })
	a.exchange(t, b, "again")
}

// countingBind counts probes that leave by the shared socket.
type countingBind struct {
	conn.Bind
	probes atomic.Int64
}

func (c *countingBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		if isProbe(b) {
			c.probes.Add(1)
		}
	}
	return c.Bind.Send(bufs, ep)
}

func TestRelayOnlyLink(t *testing.T) {
	bind := &countingBind{Bind: new(udpBind)}
	a := newNode(t, SocketConfig{Bind: bind}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	relay := &testRelay{}
	a.SetRelayOnly(true)
	relay.attach(a.socket, relayA)
	relay.attach(b.socket, relayB)
	a.SetRemote(append(loopback(b.socket, "127.0.0.1", "127.0.0.2"), relayedAt(relayB)))
	a.wait(t, Up, 5*time.Second) // it knows that relays alone are wanted before it is asked
	b.SetRemote(append(loopback(a.socket, "127.0.0.1"), relayedAt(relayA)))
	b.wait(t, Up, 5*time.Second)
	a.exchange(t, b, "relayed")
	for range 20 {
		a.Probe()
		b.Probe()
		a.exchange(t, b, "relayed")
	}
	if n := bind.probes.Load(); n != 0 {
		t.Errorf("%d probes left by the shared socket", n)
	}
	if pa, _ := a.Path(); pa.Kind != Relay || len(a.Paths()) != 1 {
		t.Errorf("paths %v", a.Paths())
	}
	a.SetRelayOnly(false)
	await(t, "a straight path", func() bool { p, _ := a.Path(); return p.Kind == Loopback })
}

// TestDeliverAllocatesNothing is the way of a data packet from a relay to
// WireGuard.
func TestDeliverAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools forget")
	}
	s, l := NewSocket(SocketConfig{}), &Link{}
	from := netip.MustParseAddrPort(relayB)
	p := s.AttachRelay(seat{}, "relay", netip.MustParseAddrPort(relayA))
	s.admit(place{addr: from, carrier: p.info.id}, l, true)
	r, packet, over := newReader(64), append(data("hello"), make([]byte, 1300)...), make(chan struct{})
	n := testing.AllocsPerRun(200, func() {
		for range r.bufs {
			p.Deliver(from, packet)
		}
		if n, err := s.aside.receive(over, r.bufs, r.sizes, r.eps); n != len(r.bufs) || err != nil {
			t.Fatalf("%d packets, %v", n, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per 64 packets, want none", n)
	}
	for range 2 * asideLength {
		p.Deliver(from, packet)
	}
	if lost := s.Stats().LostProbe; lost != asideLength {
		t.Errorf("%d packets lost, want %d", lost, asideLength)
	}
}
