package link

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link/punch"
)

// A stunServer is a server on loopback.
type stunServer struct {
	conn *net.UDPConn
	mu   sync.Mutex
	from []netip.AddrPort // who asked
}

// serveSTUN answers requests with what answer gives; nil: nothing.
func serveSTUN(t *testing.T, addr string, answer func(m *stun.Message, from netip.AddrPort) []byte) *stunServer {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Skipf("no server on %s: %v", addr, err)
	}
	s := &stunServer{conn: c}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			m := &stun.Message{Raw: slices.Clone(buf[:n])}
			if m.Decode() != nil {
				continue
			}
			s.mu.Lock()
			s.from = append(s.from, from)
			s.mu.Unlock()
			if raw := answer(m, from); raw != nil {
				_, _ = c.WriteToUDPAddrPort(raw, from) // lost like any datagram
			}
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return s
}

func (s *stunServer) addr() netip.AddrPort {
	return s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (s *stunServer) askers() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.from)
}

// TestSTUNOverLoopback asks servers that play a hard NAT: each sees another port.
func TestSTUNOverLoopback(t *testing.T) {
	var next atomic.Int32
	next.Store(30000)
	public := netip.MustParseAddr("203.0.113.7")
	answer := func(m *stun.Message, _ netip.AddrPort) []byte {
		return success(m, netip.AddrPortFrom(public, uint16(next.Add(2))).String())
	}
	one, two := serveSTUN(t, "127.0.0.1:0", answer), serveSTUN(t, "127.0.0.2:0", answer)
	changed := make(chan struct{}, 100)
	n := newNode(t, SocketConfig{Changed: func() { changed <- struct{}{} }}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	var wg sync.WaitGroup
	wg.Go(func() { _ = n.socket.Run(t.Context()) })
	t.Cleanup(wg.Wait)
	n.socket.SetServers([]netip.AddrPort{one.addr(), two.addr()})
	for !n.socket.NAT().Hard() || n.socket.NAT().SampledPorts < 5 {
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("NAT %+v", n.socket.NAT())
		}
	}
	nat := n.socket.NAT()
	if nat.Public != public || nat.Delta != 2 || nat.Mapping != punch.AddressAndPortDependent || nat.LastPort != uint16(next.Load()) {
		t.Errorf("NAT %+v, last port %d", nat, next.Load())
	}
	if got := n.socket.stun.reflexive(); len(got) != 2 {
		t.Errorf("seen at %v", got)
	}
	own, further := 0, make(map[netip.AddrPort]bool)
	for _, from := range append(one.askers(), two.askers()...) {
		if from.Port() == n.socket.Port() {
			own++
		} else {
			further[from] = true
		}
	}
	if own != 2 || len(further) != furtherCount {
		t.Errorf("asked %d times, and from %d further sockets", own, len(further))
	}
}

// TestSTUNEasyOpensNoSockets has both servers see the same port.
func TestSTUNEasyOpensNoSockets(t *testing.T) {
	answer := func(m *stun.Message, _ netip.AddrPort) []byte { return success(m, usElse) }
	one, two := serveSTUN(t, "127.0.0.1:0", answer), serveSTUN(t, "127.0.0.2:0", answer)
	n := newNode(t, SocketConfig{}, Config{Peer: identity.DeviceID{2}, Keys: testKeys("pair", true)})
	n.socket.stun.servers = []netip.AddrPort{one.addr(), two.addr()}
	n.socket.stun.round(t.Context())
	if nat := n.socket.NAT(); nat.Hard() || nat.Mapping != punch.EndpointIndependent || nat.LastPort != 52000 {
		t.Errorf("NAT %+v", nat)
	}
	for _, from := range append(one.askers(), two.askers()...) {
		if from.Port() != n.socket.Port() {
			t.Errorf("asked from %v", from)
		}
	}
}

// TestFurtherSocketsEnd has the server answer none of them, or wrongly.
func TestFurtherSocketsEnd(t *testing.T) {
	var first atomic.Bool
	for name, answer := range map[string]func(m *stun.Message, from netip.AddrPort) []byte{
		"silent": func(*stun.Message, netip.AddrPort) []byte { return nil },
		"wrong":  func(m *stun.Message, _ netip.AddrPort) []byte { m.TransactionID[3]++; return success(m, usOutside) },
		"one only": func(m *stun.Message, _ netip.AddrPort) []byte {
			if first.Swap(true) {
				return nil
			}
			return success(m, usOutside)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serveSTUN(t, "127.0.0.1:0", answer)
			start := time.Now()
			got := furtherSockets(t.Context(), s.addr())
			if took := time.Since(start); took > furtherWait+2*time.Second {
				t.Errorf("took %s", took)
			}
			if want := map[string]int{"one only": 1}[name]; len(got) != want {
				t.Errorf("%d samples", len(got))
			}
		})
	}
}
