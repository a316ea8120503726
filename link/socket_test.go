package link

import (
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/signaling"
)

// A firewall is a bind that loses what it is told to.
type firewall struct {
	conn.Bind
	drop atomic.Pointer[func(b []byte, remote netip.AddrPort) bool]
}

func (f *firewall) rule(drop func(b []byte, remote netip.AddrPort) bool) { f.drop.Store(&drop) }

func (f *firewall) drops(b []byte, ep conn.Endpoint) bool {
	drop := f.drop.Load()
	return drop != nil && (*drop)(b, sourceOf(ep))
}

func (f *firewall) Send(bufs [][]byte, ep conn.Endpoint) error {
	var pass [][]byte
	for _, b := range bufs {
		if !f.drops(b, ep) {
			pass = append(pass, b)
		}
	}
	if len(pass) == 0 {
		return nil
	}
	return f.Bind.Send(pass, ep)
}

func (f *firewall) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := f.Bind.Open(port)
	for i, fn := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(bufs, sizes, eps)
			for j := range n {
				if f.drops(bufs[j][:sizes[j]], eps[j]) {
					sizes[j] = 0
				}
			}
			return n, err
		}
	}
	return fns, port, err
}

// await waits until cond holds; every check is made after an event of the link
// or a millisecond.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// stranger is a plain socket on loopback.
func stranger(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (n *node) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.socket.Port())
}

func connected(t *testing.T) (a, b *node) {
	t.Helper()
	a, b = pair(t)
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	a.wait(t, Up, 5*time.Second)
	b.wait(t, Up, 5*time.Second)
	return a, b
}

func TestStrangersAreNotAnswered(t *testing.T) {
	a, b := connected(t)
	c := stranger(t)
	_, theirs, err := testKeys("pair", false)(wire.Day(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	own := newSealer(theirs) // seals what b accepts
	seal := func(s *sealer, p probe) []byte {
		raw, err := s.seal(rand.Reader, p, smallProbe)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	genuine := seal(own, probe{kind: ping, session: 99, seq: 1})
	forged := append([]byte(nil), genuine...)
	forged[60] ^= 1
	otherKey := seal(newSealer([32]byte{1}), probe{kind: ping, session: 99, seq: 1})
	unasked := seal(own, probe{kind: pong, tx: txid{1, 2, 3}})
	for _, tc := range []struct {
		name  string
		raw   []byte
		count func(Stats) uint64
	}{
		{"WireGuard data", data("hello"), func(s Stats) uint64 { return s.UnknownSource }},
		{"garbage", []byte("garbage, and nothing else"), func(s Stats) uint64 { return s.Other }},
		{"STUN", append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 120)...), func(s Stats) uint64 { return s.Other }},
		{"a probe of another key", otherKey, func(s Stats) uint64 { return s.UnknownProbe }},
		{"a probe with one bit changed", forged, func(s Stats) uint64 { return s.ForgedProbe }},
		{"a probe that is cut", genuine[:100], func(s Stats) uint64 { return s.Other }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tc.count(b.socket.Stats())
			if _, err := c.WriteToUDPAddrPort(tc.raw, b.addr()); err != nil {
				t.Fatal(err)
			}
			await(t, "the counter", func() bool { return tc.count(b.socket.Stats()) > before })
		})
	}
	// A pong that nobody asked for does nothing; the ping behind it is answered
	// with no more bytes than it had, and b asks back.
	for _, raw := range [][]byte{unasked, genuine} {
		if _, err := c.WriteToUDPAddrPort(raw, b.addr()); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	send, _, _ := testKeys("pair", false)(wire.Day(time.Now()))
	for p := (probe{}); p.kind != pong; {
		n, err := c.Read(buf)
		if err != nil || n > len(genuine) {
			t.Fatalf("answer of %d bytes to a ping of %d, %v", n, len(genuine), err)
		}
		if p, err = newSealer(send).open(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if p.kind == pong && p.observed != c.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("observed %v", p.observed)
		}
	}
	// The ping was genuine, its sender never answers: no data goes there.
	if path, ok := b.Path(); !ok || path.Remote != a.addr() {
		t.Errorf("path moved to %v", path)
	}
	if len(b.Paths()) != 1 {
		t.Errorf("paths %v", b.Paths())
	}
}

func TestDaysOfKeys(t *testing.T) {
	day := func(d int) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(d) * 24 * time.Hour) }
	}
	for _, tc := range []struct {
		name string
		days int // b's clock minus a's
		told bool
		want bool
	}{
		{"same day", 0, false, true},
		{"b is a day ahead", 1, false, true},
		{"b is a day behind", -1, false, true},
		{"b is three days ahead", 3, false, false},
		{"b is three days ahead, and both know", 3, true, true},
		{"b is a year behind, and both know", -365, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
			b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false), Now: day(tc.days)})
			if tc.told {
				a.SetPeerDay(wire.Day(time.Now()) + int64(tc.days))
				b.SetPeerDay(wire.Day(time.Now()))
			}
			a.SetRemote(loopback(b.socket, "127.0.0.1"))
			if tc.want {
				a.wait(t, Up, 5*time.Second)
				return
			}
			await(t, "refused probes", func() bool { return b.socket.Stats().UnknownProbe >= 2 })
			if len(a.Paths()) != 0 {
				t.Errorf("paths %v", a.Paths())
			}
		})
	}
}

func TestWrongPairFindsNothing(t *testing.T) {
	a := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("another pair", false)})
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	b.SetRemote(loopback(a.socket, "127.0.0.1"))
	await(t, "refused probes", func() bool { return a.socket.Stats().UnknownProbe >= 2 && b.socket.Stats().UnknownProbe >= 2 })
	if len(a.Paths())+len(b.Paths()) != 0 {
		t.Errorf("paths %v, %v", a.Paths(), b.Paths())
	}
	if err := a.say("x"); !errors.Is(err, ErrNoPath) {
		t.Errorf("send without a path: %v", err)
	}
}

func TestFailover(t *testing.T) {
	fw := &firewall{Bind: new(udpBind)}
	a := newNode(t, SocketConfig{Bind: fw}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	remote := loopback(b.socket, "127.0.0.1", "127.0.0.2", "::1")
	a.SetRemote(remote)
	await(t, "three paths", func() bool { return len(a.Paths()) == 3 })
	first, _ := a.Path()
	fw.rule(func(_ []byte, remote netip.AddrPort) bool { return remote == first.Remote })
	start := time.Now()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
			select {
			case <-stop:
				tick.Stop()
				return
			default:
				_ = a.say("data")
			}
		}
	})
	for {
		if ev := a.wait(t, Changed, 10*time.Second); ev.Path.Remote != first.Remote {
			t.Logf("from %s to %s in %s", first, ev.Path, time.Since(start))
			break
		}
	}
	if took := time.Since(start); took > 3500*time.Millisecond {
		t.Errorf("took %s", took)
	}
	close(stop)
	wg.Wait()
	if err := a.say("after"); err != nil {
		t.Fatal(err)
	}
	b.hear(t, "after")
	fw.rule(func([]byte, netip.AddrPort) bool { return true })
	_ = a.say("lost")
	a.wait(t, Down, 10*time.Second)
	if err := a.say("x"); !errors.Is(err, ErrNoPath) {
		t.Errorf("send without a path: %v", err)
	}
	fw.rule(func([]byte, netip.AddrPort) bool { return false })
	a.Probe()
	a.wait(t, Up, 5*time.Second)
}

func TestLargePacketsLost(t *testing.T) {
	fw := &firewall{Bind: new(udpBind)}
	fw.rule(func(b []byte, remote netip.AddrPort) bool {
		return len(b) > 1000 && remote.Addr() == netip.MustParseAddr("127.0.0.1")
	})
	a := newNode(t, SocketConfig{Bind: fw}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	a.wait(t, Up, 5*time.Second) // the handshake need not wait
	a.SetRemote(loopback(b.socket, "127.0.0.1", "127.0.0.2"))
	await(t, "the path that carries data", func() bool {
		p, _ := a.Path()
		return p.Remote.Addr() == netip.MustParseAddr("127.0.0.2") && p.Size == DefaultDataSize
	})
}

// TestPeerCannotDrawAnothersPackets is the case of a paired but hostile device
// that claims the address of another one.
func TestPeerCannotDrawAnothersPackets(t *testing.T) {
	s := NewSocket(SocketConfig{})
	one, two := &Link{}, &Link{}
	x := onSocket(netip.MustParseAddrPort("198.51.100.7:1"))
	owner := func() *Link { return s.table.Load().sources[x].link }
	s.admit(x, one, false)
	s.admit(x, two, false)
	if owner() != one {
		t.Error("a claim displaced an older one")
	}
	s.admit(x, two, true)
	if owner() != two {
		t.Error("a proof did not displace a claim")
	}
	s.admit(x, one, true)
	s.admit(x, one, false)
	if owner() != two {
		t.Error("an address that is proven was taken away")
	}
	s.forget(x, one)
	if owner() != two {
		t.Error("another link's address was forgotten")
	}
	s.forget(x, two)
	if owner() != nil {
		t.Error("not forgotten")
	}
}

func TestConfigIsChecked(t *testing.T) {
	s := NewSocket(SocketConfig{})
	ok := Config{Peer: identity.DeviceID{1}, Keys: testKeys("x", true)}
	for name, edit := range map[string]func(*Config){
		"no keys":        func(c *Config) { c.Keys = nil },
		"no peer":        func(c *Config) { c.Peer = identity.DeviceID{} },
		"size too small": func(c *Config) { c.DataSize = 100 },
		"size too large": func(c *Config) { c.DataSize = 5000 },
		"no keys today":  func(c *Config) { c.Now = func() time.Time { return time.Unix(-1e6, 0) } },
	} {
		cfg := ok
		edit(&cfg)
		if l, err := s.NewLink(cfg); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if got := s.Local(); got != nil {
		t.Errorf("candidates without a port: %v", got)
	}
	if _, err := s.ParseEndpoint("127.0.0.1:1"); err == nil {
		t.Error("an address was taken for an endpoint")
	}
	if err := s.Send([][]byte{data("x")}, &udpEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("Send to an address: %v", err)
	}
}

func TestInterfacesThatCannotBeListed(t *testing.T) {
	s := NewSocket(SocketConfig{Port: 7})
	s.look = func() ([]netmon.Interface, error) { return []netmon.Interface{iface("eth0", "192.168.1.5/24")}, nil }
	want := s.Local()
	s.asked = time.Time{}
	s.look = func() ([]netmon.Interface, error) { return nil, errors.New("permission denied") }
	if got := s.Local(); len(want) != 1 || len(got) != 1 || got[0] != want[0] {
		t.Errorf("got %v, want the last list %v", got, want)
	}
}

func TestEndpointOfWireGuard(t *testing.T) {
	a, b := connected(t)
	if a.DstToString() != b.addr().String() || a.DstIP() != a.Peer().Addr() || len(a.DstToBytes()) != identity.IDSize {
		t.Errorf("%s %s %x", a.DstToString(), a.DstIP(), a.DstToBytes())
	}
	if udpBatch > 1 && a.SrcIP() != netip.MustParseAddr("127.0.0.1") { // Linux tells our address
		t.Errorf("our address is %v", a.SrcIP())
	}
	a.ClearSrc()
	a.Close()
	if a.DstToString() == "" {
		t.Error("empty text")
	}
}

func TestManyPeersOnOneSocket(t *testing.T) {
	const peers = 20
	hub := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{200}, Keys: testKeys("nobody", true)})
	for i := range peers {
		secret := string(rune('a' + i))
		ups := make(chan Event, 64)
		l, err := hub.socket.NewLink(Config{
			Peer: identity.DeviceID{byte(i + 1)}, Keys: testKeys(secret, true), Events: func(ev Event) { ups <- ev },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{99}, Keys: testKeys(secret, false)})
		n.SetRemote([]signaling.Candidate{{Kind: signaling.Host, Addr: hub.addr()}})
		n.wait(t, Up, 5*time.Second)
		if ev := <-ups; ev.Kind != Up || ev.Link != l || ev.Path.Remote != n.addr() {
			t.Errorf("event %+v", ev)
		}
	}
}

func TestSlowListOfInterfacesDelaysNothing(t *testing.T) {
	release := make(chan struct{})
	n := &node{socket: NewSocket(SocketConfig{Loopback: true}), events: make(chan Event, 256), data: make(chan string, 1)}
	n.socket.look = func() ([]netmon.Interface, error) {
		<-release
		return []netmon.Interface{iface("tun0", "127.0.0.1/8")}, nil
	}
	var err error
	n.Link, err = n.socket.NewLink(Config{
		Peer: identity.DeviceID{2}, Keys: testKeys("pair", true), Events: func(ev Event) { n.events <- ev },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	n.open(t)
	b := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false)})
	n.SetRemote(loopback(b.socket, "127.0.0.1"))
	n.wait(t, Up, 5*time.Second)
	close(release)
	await(t, "the list", func() bool { return len(n.socket.Local()) > 0 })
}

func TestHandshakeWaitsForThePath(t *testing.T) {
	a, b := pair(t)
	initiation := append([]byte{1, 0, 0, 0}, make([]byte, 144)...)
	copy(initiation[32:], "handshake")
	for range 2 { // the last one counts
		if err := a.socket.Send([][]byte{initiation}, a.Link); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.say("data"); !errors.Is(err, ErrNoPath) {
		t.Errorf("data without a path: %v", err)
	}
	a.SetRemote(loopback(b.socket, "127.0.0.1"))
	b.hear(t, string(initiation[32:]))
	a.wait(t, Up, 5*time.Second)
	a.Close()
	if err := a.socket.Send([][]byte{initiation}, a.Link); !errors.Is(err, ErrNoPath) {
		t.Errorf("handshake on a closed link: %v", err)
	}
}
