package punch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/ipv4"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opener is a way to make the sockets; each is tested where it can run.
type opener struct {
	name string
	open func(int, control) (sockets, error)
}

func ways() []opener {
	all := []opener{{"net", openNet}}
	if runtime.GOOS == "linux" {
		all = append(all, opener{"epoll", openSockets})
	}
	return all
}

// An arrival is what Receive was called with.
type arrival struct {
	socket int
	from   netip.AddrPort
	packet string
}

// openTestPool opens a pool that puts what it receives into a channel.
func openTestPool(t testing.TB, o opener, n int) (*Pool, chan arrival) {
	t.Helper()
	in := make(chan arrival, 1024)
	p, err := openPool(PoolConfig{Sockets: n, Receive: func(i int, from netip.AddrPort, b []byte) {
		in <- arrival{i, from, string(b)}
	}}, o.open)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, in
}

func peerSocket(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came within 20 s")
	}
	panic("unreachable")
}

func loopback(p *Pool, i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.LocalAddr(i).Port())
}

func TestPool(t *testing.T) {
	for _, o := range ways() {
		t.Run(o.name, func(t *testing.T) {
			p, in := openTestPool(t, o, 256)
			if p.Len() != 256 || p.Limit() != nil {
				t.Fatalf("%d sockets, %v", p.Len(), p.Limit())
			}
			peer, peerAddr := peerSocket(t)
			buf := make([]byte, 100)
			seen := map[uint16]bool{}
			for i := range p.Len() {
				if err := p.SendTTL(i, [][]byte{[]byte("open")}, peerAddr, 4*(i%2)); err != nil {
					t.Fatal(err)
				}
				n, from, err := peer.ReadFromUDPAddrPort(buf)
				if err != nil || string(buf[:n]) != "open" || from != loopback(p, i) || seen[from.Port()] {
					t.Fatalf("socket %d: %q from %v, %v", i, buf[:n], from, err)
				}
				seen[from.Port()] = true
			}
			for _, i := range []int{0, 17, 255} {
				if _, err := peer.WriteToUDPAddrPort([]byte("hit"), loopback(p, i)); err != nil {
					t.Fatal(err)
				}
				if got, want := receive(t, in), (arrival{i, peerAddr, "hit"}); got != want {
					t.Fatalf("got %+v, want %+v", got, want)
				}
			}
			// A datagram of any size does no harm; too large ones are not delivered.
			for _, size := range []int{maxPacket + 1, 0, maxPacket} {
				if _, err := peer.WriteToUDPAddrPort(make([]byte, size), loopback(p, 5)); err != nil {
					t.Fatal(err)
				}
			}
			if a, b := receive(t, in), receive(t, in); len(a.packet) != 0 || len(b.packet) != maxPacket {
				t.Errorf("%d and %d bytes", len(a.packet), len(b.packet))
			}
			two := [][]byte{[]byte("one"), []byte("two")}
			if err := p.SendFrom(9, two, peerAddr); err != nil {
				t.Fatal(err)
			}
			for _, want := range two {
				if n, _, err := peer.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != string(want) {
					t.Fatalf("%q, %v", buf[:n], err)
				}
			}
			for _, i := range []int{-1, 256} {
				if p.SendFrom(i, two, peerAddr) == nil {
					t.Errorf("sent from socket %d", i)
				}
				if _, err := p.Keep(i); err == nil {
					t.Errorf("kept socket %d", i)
				}
			}
			if p.SendFrom(0, two, netip.MustParseAddrPort("[::1]:5")) == nil {
				t.Error("sent to IPv6")
			}
			if err := p.SendFrom(0, [][]byte{make([]byte, 70000)}, peerAddr); err == nil {
				t.Error("sent 70000 bytes")
			}
		})
	}
}

// TestPoolKeep hands out the winner from within Receive, as a link does, and
// proves that no packet is lost on the way.
func TestPoolKeep(t *testing.T) {
	for _, o := range ways() {
		t.Run(o.name, func(t *testing.T) {
			peer, peerAddr := peerSocket(t)
			type result struct {
				conn *net.UDPConn
				err  error
			}
			var p *Pool
			ready := make(chan struct{})
			won := make(chan result, 1)
			var mu sync.Mutex
			taken := 0 // packets that Receive got
			p, err := openPool(PoolConfig{Sockets: 40, Receive: func(i int, _ netip.AddrPort, _ []byte) {
				<-ready
				mu.Lock()
				taken++
				mu.Unlock()
				if c, err := p.Keep(i); !errors.Is(err, ErrClosed) {
					won <- result{c, err}
				}
			}}, o.open)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			const packets = 8
			for range packets {
				if _, err := peer.WriteToUDPAddrPort([]byte("data"), loopback(p, 7)); err != nil {
					t.Fatal(err)
				}
			}
			others := loopback(p, 8)
			close(ready)
			w := receive(t, won)
			if w.err != nil {
				t.Fatal(w.err)
			}
			defer w.conn.Close()
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if err := w.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			for range packets - taken {
				n, from, err := w.conn.ReadFromUDPAddrPort(buf)
				if err != nil || string(buf[:n]) != "data" || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != peerAddr {
					t.Fatalf("%d of %d were delivered, then %q from %v: %v", taken, packets, buf[:n], from, err)
				}
			}
			if _, err := w.conn.WriteToUDPAddrPort([]byte("back"), peerAddr); err != nil {
				t.Fatal(err)
			}
			if n, from, err := peer.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "back" || from != loopback(p, 7) {
				t.Fatalf("%q from %v: %v", buf[:n], from, err)
			}
			if err := p.SendFrom(7, [][]byte{buf}, peerAddr); !errors.Is(err, ErrClosed) {
				t.Errorf("sent after Keep: %v", err)
			}
			free, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(others))
			if err != nil {
				t.Fatalf("the other sockets are not closed: %v", err)
			}
			_ = free.Close()
		})
	}
}

// TestPoolRun opens, is probed at random sockets by a prober, and keeps one.
func TestPoolRun(t *testing.T) {
	for _, o := range ways() {
		t.Run(o.name, func(t *testing.T) {
			p, in := openTestPool(t, o, 32)
			peer, peerAddr := peerSocket(t)
			raw := ipv4.NewPacketConn(peer)
			ttls := raw.SetControlMessage(ipv4.FlagTTL, true) == nil
			plan := Plan{Role: RoleOpener, Sockets: p.Len(), Target: peerAddr}
			a, err := NewAttempt(plan, nil, 1, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- p.Run(ctx, a, &Pacer{}, []byte("probe"), 4) }()
			buf := make([]byte, 100)
			from := map[string]int{}
			for i := range 2 * p.Len() {
				n, cm, addr, err := raw.ReadFrom(buf)
				if err != nil || string(buf[:n]) != "probe" {
					t.Fatal(string(buf[:n]), err)
				}
				from[addr.String()]++
				if low := i < p.Len(); ttls && cm != nil && (cm.TTL == 4) != low {
					t.Fatalf("packet %d has TTL %d", i, cm.TTL)
				}
			}
			if len(from) != p.Len() {
				t.Errorf("%d sockets sent", len(from))
			}
			if _, err := peer.WriteToUDPAddrPort([]byte("hit"), loopback(p, 3)); err != nil {
				t.Fatal(err)
			}
			got := receive(t, in)
			for got.from != peerAddr { // other programs of this machine send to ports that were theirs
				got = receive(t, in)
			}
			if got.socket != 3 || got.packet != "hit" {
				t.Errorf("socket %d received %q", got.socket, got.packet)
			}
			cancel()
			if err := receive(t, ended); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

func TestPoolClosesWhileUsed(t *testing.T) {
	for _, o := range ways() {
		t.Run(o.name, func(t *testing.T) {
			p, _ := openTestPool(t, o, 32)
			_, peerAddr := peerSocket(t)
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for {
						if err := p.SendTTL(i, [][]byte{[]byte("x")}, peerAddr, i%2); err != nil {
							if !errors.Is(err, ErrClosed) {
								t.Error(err)
							}
							return
						}
						// Each to itself as well, so that the readers have work.
						if err := p.SendFrom(i, [][]byte{[]byte("x")}, loopback(p, i)); err != nil && !errors.Is(err, ErrClosed) {
							t.Error(err)
						}
						runtime.Gosched()
					}
				})
			}
			for range 2 {
				wg.Go(func() { _ = p.Close() })
			}
			wg.Wait()
			if _, err := p.Keep(0); !errors.Is(err, ErrClosed) {
				t.Errorf("Keep after Close: %v", err)
			}
		})
	}
}

func TestPoolControl(t *testing.T) {
	for _, o := range ways() {
		t.Run(o.name, func(t *testing.T) {
			calls := 0
			count := func(network, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					if calls++; network != "udp4" || fd == 0 {
						t.Errorf("%s, descriptor %d", network, fd)
					}
				})
			}
			cfg := PoolConfig{Sockets: 33, Receive: func(int, netip.AddrPort, []byte) {}, Control: count}
			p, err := openPool(cfg, o.open)
			if err != nil {
				t.Fatal(err)
			}
			_ = p.Close()
			if calls != 33 {
				t.Errorf("%d calls for 33 sockets", calls)
			}
			refused := errors.New("no VPN, no socket")
			cfg.Control = func(string, string, syscall.RawConn) error { return refused }
			if _, err := openPool(cfg, o.open); !errors.Is(err, refused) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := OpenPool(PoolConfig{}); err == nil {
		t.Error("a pool without Receive was opened")
	}
}
