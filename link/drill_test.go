package link

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link/punch"
)

// ownIPv4 is an address of this machine that is no loopback address: package
// punch probes no others. What is sent there does not leave the machine.
func ownIPv4(t *testing.T) netip.Addr {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr()
		}
	}
	t.Skip("this machine has no IPv4 address but loopback")
	return netip.Addr{}
}

// An easyNAT lets in only who was written to, address and port.
type easyNAT struct {
	conn.Bind
	mu   sync.Mutex
	open map[netip.AddrPort]bool
}

func (n *easyNAT) Send(bufs [][]byte, ep conn.Endpoint) error {
	n.mu.Lock()
	if n.open == nil {
		n.open = make(map[netip.AddrPort]bool)
	}
	n.open[sourceOf(ep)] = true
	n.mu.Unlock()
	return n.Bind.Send(bufs, ep)
}

func (n *easyNAT) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := n.Bind.Open(port)
	for i, fn := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			got, err := fn(bufs, sizes, eps)
			n.mu.Lock()
			defer n.mu.Unlock()
			for j := range got {
				if !n.open[sourceOf(eps[j])] {
					sizes[j] = 0
				}
			}
			return got, err
		}
	}
	return fns, port, err
}

// A logWatch is a log handler that hands messages about attempts to a test.
type logWatch struct{ lines chan slog.Record }

func newLogWatch() *logWatch                               { return &logWatch{make(chan slog.Record, 256)} }
func (*logWatch) Enabled(context.Context, slog.Level) bool { return true }
func (w *logWatch) WithAttrs([]slog.Attr) slog.Handler     { return w }
func (w *logWatch) WithGroup(string) slog.Handler          { return w }
func (w *logWatch) Handle(_ context.Context, r slog.Record) error {
	select {
	case w.lines <- r:
	default:
	}
	return nil
}

// await returns the next record with a message, and its attribute "err".
func (w *logWatch) await(t *testing.T, message string) (failure string) {
	t.Helper()
	timeout := time.After(15 * time.Second)
	for {
		select {
		case r := <-w.lines:
			if r.Message != message {
				continue
			}
			r.Attrs(func(a slog.Attr) bool {
				if a.Key == "err" {
					failure = a.Value.String()
				}
				return true
			})
			return failure
		case <-timeout:
			t.Fatalf("%q was not logged", message)
		}
	}
}

const (
	begun, over = "hole punching", "hole punching ended"
)

func hardAt(ip netip.Addr) punch.Behaviour {
	return punch.Behaviour{
		Mapping: punch.AddressAndPortDependent, Filtering: punch.AddressAndPortDependent, Public: ip, LastPort: 9, SampledPorts: 5,
	}
}

func easyAt(addr netip.AddrPort) punch.Behaviour {
	return punch.Behaviour{
		Mapping: punch.EndpointIndependent, Filtering: punch.AddressAndPortDependent, Public: addr.Addr(), LastPort: addr.Port(), SampledPorts: 1,
	}
}

// drillers are two devices, the first behind a hard NAT, the second behind an
// easy one: it does not know where the first one's packets come from.
func drillers(t *testing.T) (a, b *node, logA, logB *logWatch) {
	t.Helper()
	ip := ownIPv4(t)
	logA, logB = newLogWatch(), newLogWatch()
	a = newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true), Logger: slog.New(logA)})
	b = newNode(t, SocketConfig{Bind: &easyNAT{Bind: new(udpBind)}}, Config{Peer: identity.DeviceID{1}, Keys: testKeys("pair", false), Logger: slog.New(logB)})
	hard, easy := hardAt(ip), easyAt(netip.AddrPortFrom(ip, b.socket.Port()))
	a.SetNAT(hard, easy)
	b.SetNAT(easy, hard)
	return a, b, logA, logB
}

// ports are the carriers of a socket.
func (s *Socket) testPorts() []*Port {
	var out []*Port
	for _, p := range s.table.Load().ports {
		out = append(out, p)
	}
	return out
}

func TestHoleThroughAHardNAT(t *testing.T) {
	a, b, logA, logB := drillers(t)
	up := a.wait(t, Up, 10*time.Second)
	if up.Path.Remote.Port() != b.socket.Port() || up.Path.Kind != Punched || up.Path.Via != "" {
		t.Errorf("path %+v", up.Path)
	}
	b.wait(t, Up, 10*time.Second)
	logA.await(t, over)
	logB.await(t, over)
	a.exchange(t, b, "through the hole")
	await(t, "one hole", func() bool { return len(a.socket.testPorts()) == 1 })
	if len(b.socket.testPorts()) != 0 {
		t.Errorf("the prober has %d carriers", len(b.socket.testPorts()))
	}
	h := a.socket.testPorts()[0].carrier.(*hole)
	kept := h.own.Load()
	if kept == nil {
		t.Fatal("the hole has no socket of its own")
	}
	path, _ := b.Path()
	if path.Remote.Port() != kept.port() {
		t.Errorf("the peer's path leads to %v, the kept socket has port %d", path.Remote, kept.port())
	}
	for i := range 200 {
		a.exchange(t, b, "data "+strconv.Itoa(i))
	}
	for a.wait(t, Changed, 5*time.Second).Path.Size != DefaultDataSize { //nolint:revive // the condition does the work
	}
	a.Probe()
	b.Probe()
	a.exchange(t, b, "after a probe")
	a.Close()
	select {
	case <-h.done:
	default:
		t.Error("the kept socket is still read")
	}
	if err := kept.conn.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the kept socket is open: %v", err)
	}
	if len(a.socket.testPorts()) != 0 {
		t.Errorf("%d carriers are left", len(a.socket.testPorts()))
	}
	if err := h.Send([][]byte{data("x")}, path.Remote); err == nil {
		t.Error("a closed hole sends")
	}
}

func TestHoleEndsWithAReset(t *testing.T) {
	a, b, logA, _ := drillers(t)
	a.wait(t, Up, 10*time.Second)
	b.wait(t, Up, 10*time.Second)
	logA.await(t, over)
	await(t, "one hole", func() bool { return len(a.socket.testPorts()) == 1 })
	h := a.socket.testPorts()[0].carrier.(*hole)
	a.Reset()
	b.Reset()
	await(t, "its end", func() bool {
		select {
		case <-h.done:
			return len(a.socket.testPorts()) == 0
		default:
			return false
		}
	})
	if err := h.own.Load().conn.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the kept socket is open: %v", err)
	}
	// Another hole is made, without being told of the NATs anew.
	for a.wait(t, Up, 10*time.Second).Round != 1 { //nolint:revive // the condition does the work
	}
	await(t, "b's path", func() bool { _, ok := b.Path(); return ok })
	logA.await(t, over)
	a.exchange(t, b, "a new hole")
}

// TestAttemptStopsInTheMiddle has nobody at the other end.
func TestAttemptStopsInTheMiddle(t *testing.T) {
	ip := ownIPv4(t)
	nobody := stranger(t).LocalAddr().(*net.UDPAddr).AddrPort().Port() // on loopback alone
	hard, easy := hardAt(ip), easyAt(netip.AddrPortFrom(ip, nobody))
	for _, tc := range []struct {
		name       string
		self, peer punch.Behaviour
		stop       func(n *node)
		closed     bool
	}{
		{"an opener is closed", hard, easy, func(n *node) { n.Close() }, true},
		{"a prober is closed", easy, hard, func(n *node) { n.Close() }, true},
		{"an opener is reset", hard, easy, func(n *node) { n.Reset() }, false},
		{"a prober is reset", easy, hard, func(n *node) { n.Reset() }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := newLogWatch()
			n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true), Logger: slog.New(log)})
			n.SetNAT(tc.self, tc.peer)
			log.await(t, begun)
			tc.stop(n)
			start := time.Now()
			if got := log.await(t, over); got != context.Canceled.Error() {
				t.Errorf("ended with %q", got)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %s", took)
			}
			if !tc.closed {
				log.await(t, begun) // at once: the peer is another run of itself
				n.Close()
				log.await(t, over)
			}
			if len(n.socket.testPorts()) != 0 {
				t.Errorf("%d carriers are left", len(n.socket.testPorts()))
			}
		})
	}
}

// TestAttemptsTakeTurns has two links of one socket: the second one waits, and
// its end does not wait for the first.
func TestAttemptsTakeTurns(t *testing.T) {
	ip := ownIPv4(t)
	nobody := stranger(t).LocalAddr().(*net.UDPAddr).AddrPort().Port()
	log := newLogWatch()
	n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true), Logger: slog.New(log)})
	second := newLogWatch()
	l, err := n.socket.NewLink(Config{Peer: identity.DeviceID{3}, Keys: testKeys("another", true), Logger: slog.New(second)})
	if err != nil {
		t.Fatal(err)
	}
	n.SetNAT(hardAt(ip), easyAt(netip.AddrPortFrom(ip, nobody)))
	log.await(t, begun)
	l.SetNAT(hardAt(ip), easyAt(netip.AddrPortFrom(ip, nobody)))
	second.await(t, begun)
	l.Close()
	if got := second.await(t, over); got != context.Canceled.Error() {
		t.Errorf("the one in the queue ended with %q", got)
	}
	select {
	case r := <-log.lines:
		if r.Message == over {
			t.Error("the first one ended with it")
		}
	default:
	}
	n.Close()
	log.await(t, over)
}

// An openPool is an attempt with its sockets, without the schedule.
func openPool(t *testing.T, l *Link) *attempt {
	t.Helper()
	at := &attempt{link: l, holes: make(map[int]*hole), proven: make(chan *hole, 1)}
	pool, err := punch.OpenPool(punch.PoolConfig{Sockets: 32, Receive: at.receive})
	if err != nil {
		t.Fatal(err)
	}
	at.mu.Lock()
	at.pool = pool
	at.mu.Unlock()
	t.Cleanup(at.end)
	return at
}

// sealed is a probe as the peer of a link of testKeys("pair", true) seals it.
func sealed(t *testing.T, p probe) []byte {
	t.Helper()
	_, receive, err := testKeys("pair", true)(wire.Day(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := newSealer(receive).seal(rand.Reader, p, smallProbe)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (a *attempt) holesNow() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.holes)
}

func TestForgedPacketsMakeNoHole(t *testing.T) {
	n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	other, err := n.socket.NewLink(Config{Peer: identity.DeviceID{3}, Keys: testKeys("another", true)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	_, theirs, err := testKeys("another", true)(wire.Day(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := newSealer(theirs).seal(rand.Reader, probe{kind: ping, session: 3, seq: 1}, smallProbe)
	if err != nil {
		t.Fatal(err)
	}
	own, err := n.keys.send.seal(rand.Reader, probe{kind: ping, session: 3, seq: 1}, smallProbe)
	if err != nil {
		t.Fatal(err)
	}
	genuine := sealed(t, probe{kind: ping, session: 4, seq: 1})
	at := openPool(t, n.Link)
	from := netip.MustParseAddrPort("127.0.0.1:9")
	flip := func(i int) []byte {
		raw := append([]byte(nil), genuine...)
		raw[i] ^= 1
		return raw
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "WireGuard data": data("hello"), "cut": genuine[:127],
		"longer": append(append([]byte(nil), genuine...), 0), "another tag": flip(5), "another nonce": flip(20), "another text": flip(100),
		"of another pair": foreign, "our own": own,
	} {
		for i := range 3 {
			at.receive(i, from, raw)
		}
		if at.holesNow() != 0 || len(n.socket.testPorts()) != 0 {
			t.Fatalf("%s made %d holes", name, at.holesNow())
		}
	}
	for i := range 20 {
		at.receive(i, from, sealed(t, probe{kind: ping, session: 4, seq: uint64(i + 1), tx: txid{byte(i)}}))
	}
	if at.holesNow() != maxHits || len(n.socket.testPorts()) != maxHits {
		t.Errorf("%d holes, want %d", at.holesNow(), maxHits)
	}
	at.end()
	if at.holesNow() != 0 || len(n.socket.testPorts()) != 0 {
		t.Errorf("%d holes after the end", at.holesNow())
	}
	at.receive(30, from, sealed(t, probe{kind: ping, session: 4, seq: 50}))
	if at.holesNow() != 0 {
		t.Error("a hole after the end")
	}
}

// TestHoleAnswersWhoCameThroughIt has the peer's ping come to a socket of the
// pool: the way back is asked from that very socket, and data of strangers does
// not get in by it.
func TestHoleAnswersWhoCameThroughIt(t *testing.T) {
	n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	at := openPool(t, n.Link)
	peer, other := stranger(t), stranger(t)
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.pool.LocalAddr(7).Port())
	if _, err := peer.WriteToUDPAddrPort(sealed(t, probe{kind: ping, session: 4, seq: 1}), to); err != nil {
		t.Fatal(err)
	}
	send, _, err := testKeys("pair", true)(wire.Day(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if err := peer.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	asked, answered := probe{}, false
	for asked.kind == 0 || !answered {
		size, from, err := peer.ReadFromUDPAddrPort(buf)
		if err != nil || from != to {
			t.Fatalf("from %v: %v", from, err)
		}
		p, err := newSealer(send).open(buf[:size])
		if err != nil {
			t.Fatal(err)
		}
		if p.kind == ping {
			asked = p
		} else {
			answered = true
		}
	}
	if _, ok := n.Path(); ok {
		t.Error("a path before the answer")
	}
	if _, err := peer.WriteToUDPAddrPort(sealed(t, probe{kind: pong, tx: asked.tx}), to); err != nil {
		t.Fatal(err)
	}
	if up := n.wait(t, Up, 5*time.Second); up.Path.Remote != peer.LocalAddr().(*net.UDPAddr).AddrPort() {
		t.Errorf("path %+v", up.Path)
	}
	before := n.socket.Stats().UnknownSource
	if _, err := other.WriteToUDPAddrPort(data("stranger"), to); err != nil {
		t.Fatal(err)
	}
	await(t, "the stranger's packet", func() bool { return n.socket.Stats().UnknownSource > before })
	if _, err := peer.WriteToUDPAddrPort(data("peer"), to); err != nil {
		t.Fatal(err)
	}
	n.hear(t, "peer")
	if err := n.say("back"); err != nil {
		t.Fatal(err)
	}
	for {
		size, _, err := peer.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if isWireGuard(buf[:size]) && string(buf[32:size]) == "back" {
			break
		}
	}
	at.end() // it was not kept
	n.wait(t, Down, 5*time.Second)
}
