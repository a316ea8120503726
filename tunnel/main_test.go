package tunnel

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/kithproject/kith/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// impatience is how long a test waits for what must not happen.
const impatience = 400 * time.Millisecond

// A portBind remembers its port, and loses packets when told to.
type portBind struct {
	conn.Bind
	port   atomic.Uint32
	lose   uint32       // message type to lose; 0: none
	losses atomic.Int32 // how many may still get lost
}

func newBind() *portBind { return &portBind{Bind: conn.NewDefaultBind()} }

func (b *portBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	b.port.Store(uint32(actual))
	return fns, actual, err
}

func (b *portBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 1 && b.lose != 0 && messageType(bufs[0]) == b.lose && b.losses.Add(-1) >= 0 {
		return nil
	}
	return b.Bind.Send(bufs, ep)
}

// A side is one end of a test's tunnel.
type side struct {
	*Tunnel
	id   *identity.Identity
	bind *portBind
}

func newSide(t *testing.T, bind *portBind) *side {
	t.Helper()
	id, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	tun, err := New(Config{Identity: id, Bind: bind})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tun.Close(); err != nil {
			t.Error(err)
		}
	})
	return &side{Tunnel: tun, id: id, bind: bind}
}

func (s *side) addr(port uint16) netip.AddrPort { return netip.AddrPortFrom(s.id.ID().Addr(), port) }

// peerOf is how others add s.
func peerOf(t *testing.T, s *side, psk byte) Peer {
	t.Helper()
	ep, err := s.bind.ParseEndpoint(net.JoinHostPort("127.0.0.1", strconv.Itoa(int(s.bind.port.Load()))))
	if err != nil {
		t.Fatal(err)
	}
	return Peer{ID: s.id.ID(), WireGuard: s.id.WireGuardPublic(), PSK: [32]byte{psk}, Endpoint: ep}
}

func introduce(t *testing.T, a, b *side) {
	t.Helper()
	addPeer(t, a, peerOf(t, b, 1))
	addPeer(t, b, peerOf(t, a, 1))
}

func addPeer(t *testing.T, s *side, p Peer) {
	t.Helper()
	if err := s.AddPeer(p); err != nil {
		t.Fatal(err)
	}
}

// newPair returns two tunnels that know each other.
func newPair(t *testing.T) (a, b *side) {
	t.Helper()
	a, b = newSide(t, newBind()), newSide(t, newBind())
	introduce(t, a, b)
	return a, b
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func impatient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), impatience)
	t.Cleanup(cancel)
	return ctx
}

// serve accepts connections on a port, each for a goroutine of its own, until the
// test ends.
func serve(t *testing.T, s *side, port uint16, handle func(net.Conn)) {
	t.Helper()
	ln, err := s.Listen("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
}

func dial(t *testing.T, from *side, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := from.DialContext(patient(t), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}
