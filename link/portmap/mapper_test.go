package portmap

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func fixed(gw, self netip.Addr) func() (netip.Addr, netip.Addr, bool) {
	return func() (netip.Addr, netip.Addr, bool) { return gw, self, true }
}

// runMapper runs a Mapper and returns what it reports, and how to end it.
func runMapper(t *testing.T, m *Mapper) (reports chan notice, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reports = make(chan notice, 100)
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, ourPort, func(m Mapping, ok bool) { reports <- notice{m, ok} }) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v, want the context's error", err)
			}
		})
	}
	t.Cleanup(stop)
	return reports, stop
}

func next(t *testing.T, reports chan notice) notice {
	t.Helper()
	select {
	case n := <-reports:
		return n
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was reported")
		return notice{}
	}
}

// serve is the fakeGateway on a real socket.
func (g *fakeGateway) serve(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if a := g.packet(time.Now(), buf[:n]); a != nil {
				_, _ = pc.WriteTo(a, from)
			}
		}
	})
	t.Cleanup(func() { _ = pc.Close(); wg.Wait() })
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// onLoopback returns a Mapper for gateways on loopback; the zero port is nobody.
func onLoopback(udp netip.AddrPort, ssdp netip.AddrPort) *Mapper {
	m := New(Config{Gateway: fixed(loopback, loopback)})
	m.udpPort = udp.Port()
	m.discover = func(ctx context.Context, gw, self netip.Addr) (control, error) {
		if !ssdp.IsValid() {
			return nil, errNoIGD
		}
		return discoverIGD(ctx, gw, self, ssdp)
	}
	return m
}

func TestLoopback(t *testing.T) {
	for name, g := range map[string]*fakeGateway{"pcp": {pcp: true, pmp: true}, "nat-pmp": {pmp: true, pmpReject: true}} {
		t.Run(name, func(t *testing.T) {
			g.external, g.boot = netip.MustParseAddr("100.64.0.9"), time.Now()
			reports, stop := runMapper(t, onLoopback(g.serve(t), netip.AddrPort{}))
			n := next(t, reports)
			want := Mapping{
				Protocol: name, Internal: ourPort, External: netip.AddrPortFrom(g.external, ourPort), Gateway: loopback,
				Expires: n.mapping.Expires, DoubleNAT: true,
			}
			if !n.ok || n.mapping != want {
				t.Fatalf("reported %+v, want %+v", n, want)
			}
			if left := time.Until(n.mapping.Expires); left > DefaultLifetime || left < DefaultLifetime-time.Minute {
				t.Errorf("expires in %v", left)
			}
			stop()
			if port, _ := g.state(); port != 0 {
				t.Errorf("external port %d is left behind", port)
			}
		})
	}
	t.Run("upnp", func(t *testing.T) {
		f := newFakeIGD(t, func(f *fakeIGD) {
			f.permanent = true
			f.table["41641"] = tableEntry{"127.0.0.9", "1", "x", "0"}
		})
		// A port where nobody listens.
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		nobody := netip.MustParseAddrPort(pc.LocalAddr().String())
		_ = pc.Close()
		reports, stop := runMapper(t, onLoopback(nobody, f.ssdp))
		n := next(t, reports)
		if !n.ok || n.mapping.Protocol != "upnp" || n.mapping.External.Addr() != public || n.mapping.External.Port() == ourPort || !n.mapping.Expires.IsZero() {
			t.Fatalf("reported %+v", n)
		}
		if e := f.entries(); len(e) != 2 {
			t.Errorf("the gateway has %v", e)
		}
		stop()
		if e := f.entries(); len(e) != 1 || e["41641"].client != "127.0.0.9" {
			t.Errorf("the gateway has %v in the end", e)
		}
	})
}

// TestRealStranger sends right answers from another socket than the gateway's.
func TestRealStranger(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	stranger, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	reports, stop := runMapper(t, onLoopback(netip.MustParseAddrPort(server.LocalAddr().String()), netip.AddrPort{}))
	good := &fakeGateway{pcp: true, external: public, boot: time.Now()}
	buf := make([]byte, 2048)
	for range 2 * 3 { // three tries of two protocols: the answers of the first were there
		n, from, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if a := good.packet(time.Now(), buf[:n]); a != nil {
			_, _ = stranger.WriteTo(a, from)
		}
	}
	stop()
	select {
	case n := <-reports:
		t.Errorf("reported %+v", n)
	default:
	}
	if good.maps != 0 {
		t.Error("a mapping was asked for")
	}
}

// A pipe is a socket to a fakeGateway inside a synctest bubble.
func (g *fakeGateway) pipe() io.ReadWriteCloser {
	ours, theirs := net.Pipe()
	answers := make(chan []byte, 64)
	go func() {
		defer close(answers)
		buf := make([]byte, 2048)
		for {
			n, err := theirs.Read(buf)
			if err != nil {
				return
			}
			if a := g.packet(time.Now(), buf[:n]); a != nil {
				answers <- a
			}
		}
	}()
	go func() {
		for a := range answers {
			if _, err := theirs.Write(a); err != nil {
				return
			}
		}
	}()
	return ours
}

// A fakeControl is the fakeGateway's UPnP side.
type fakeControl struct{ g *fakeGateway }

func (f fakeControl) add(_ context.Context, external, _ uint16, lease time.Duration) (netip.Addr, error) {
	r := f.g.job(job{purpose: toMap, port: external, lease: lease})
	return r.external, r.err
}

func (f fakeControl) check(_ context.Context, external, _ uint16) (netip.Addr, bool, error) {
	r := f.g.job(job{purpose: toCheck, port: external})
	return r.external, r.gone, r.err
}

func (f fakeControl) carry(Transport) {}

func (f fakeControl) remove(ctx context.Context, external, _ uint16) error {
	if f.g.muted() {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.g.job(job{purpose: toRemove, port: external}).err
}

func inBubble(g *fakeGateway, cfg Config) *Mapper {
	m := New(cfg)
	m.dial = func(netip.Addr, netip.Addr) (io.ReadWriteCloser, error) { return g.pipe(), nil }
	m.discover = func(ctx context.Context, _, _ netip.Addr) (control, error) {
		if !g.upnp {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return fakeControl{g}, g.job(job{purpose: toProbe}).err
	}
	return m
}

// TestOneDay is a day of the real runner.
func TestOneDay(t *testing.T) {
	for name, g := range map[string]*fakeGateway{"pcp": {pcp: true}, "nat-pmp": {pmp: true}, "upnp": {upnp: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g.external, g.boot = public, time.Now()
				gw := gwAddr
				var mu sync.Mutex
				m := inBubble(g, Config{Gateway: func() (netip.Addr, netip.Addr, bool) {
					mu.Lock()
					defer mu.Unlock()
					return gw, selfAddr, gw.IsValid()
				}})
				reports, stop := runMapper(t, m)
				if n := next(t, reports); !n.ok || n.mapping.Protocol != name {
					t.Fatalf("reported %+v", n)
				}
				<-time.After(24 * time.Hour) // of the bubble
				synctest.Wait()
				if _, maps := g.state(); len(reports) != 0 || maps < 24 || maps > 26 {
					t.Fatalf("%d reports and %d requests in a day, want none and about 24", len(reports), maps)
				}
				g.reboot(time.Now())
				<-time.After(checkUPnP + time.Second)
				synctest.Wait()
				if port, _ := g.state(); port != ourPort {
					t.Fatal("not mapped again after a restart of the gateway")
				}
				mu.Lock()
				gw = netip.Addr{}
				mu.Unlock()
				m.Refresh()
				if n := next(t, reports); n.ok {
					t.Fatalf("reported %+v", n)
				}
				mu.Lock()
				gw = netip.MustParseAddr("192.168.1.2")
				mu.Unlock()
				g.reboot(time.Now())
				m.Refresh()
				m.Refresh() // as many as one likes
				if n := next(t, reports); !n.ok || n.mapping.Gateway != gw {
					t.Fatalf("reported %+v", n)
				}
				start := time.Now()
				stop()
				if port, _ := g.state(); port != 0 || time.Since(start) != 0 {
					t.Errorf("external port %d is left behind, after %v", port, time.Since(start))
				}
			})
		})
	}
}

// TestEndIsBounded ends beside a gateway that does not answer any more.
func TestEndIsBounded(t *testing.T) {
	for name, g := range map[string]*fakeGateway{"pcp": {pcp: true}, "nat-pmp": {pmp: true}, "upnp": {upnp: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g.external, g.boot = public, time.Now()
				reports, stop := runMapper(t, inBubble(g, Config{Gateway: fixed(gwAddr, selfAddr)}))
				next(t, reports)
				g.mu.Lock()
				g.mute = true
				g.mu.Unlock()
				start := time.Now()
				stop()
				if d := time.Since(start); d != time.Second {
					t.Errorf("ended after %v, want a second", d)
				}
			})
		})
	}
	t.Run("while searching", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, stop := runMapper(t, inBubble(&fakeGateway{}, Config{Gateway: fixed(gwAddr, selfAddr)}))
			<-time.After(time.Second)
			start := time.Now()
			stop()
			if d := time.Since(start); d != 0 {
				t.Errorf("ended after %v", d)
			}
		})
	})
}

// A deadSocket errs all the time, as sockets do on an interface that is gone.
type deadSocket struct{ closed chan struct{} }

func (d deadSocket) Read([]byte) (int, error)  { return 0, errors.New("network is down") }
func (d deadSocket) Write([]byte) (int, error) { return 0, errors.New("network is down") }
func (d deadSocket) Close() error              { close(d.closed); return nil }

func TestDeadSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &fakeGateway{pcp: true, external: public, boot: time.Now()}
		m := inBubble(g, Config{Gateway: fixed(gwAddr, selfAddr)})
		working, dials := m.dial, 0
		dead := deadSocket{make(chan struct{})}
		m.dial = func(gw, self netip.Addr) (io.ReadWriteCloser, error) {
			switch dials++; dials {
			case 1:
				return dead, nil
			case 2:
				return nil, errors.New("address not available")
			}
			return working(gw, self)
		}
		reports, _ := runMapper(t, m)
		<-dead.closed // given up after some errors
		<-time.After(21 * time.Minute)
		synctest.Wait()
		if len(reports) != 0 || dials != 2 {
			t.Fatalf("%d reports, %d sockets", len(reports), dials)
		}
		m.Refresh()
		if n := next(t, reports); !n.ok {
			t.Fatalf("reported %+v", n)
		}
	})
}

func TestRunErrs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := New(Config{}).Run(ctx, 1, nil); !errors.Is(err, ErrConfig) {
			t.Errorf("without a gateway: %v", err)
		}
		none := func() (gw, self netip.Addr, ok bool) { return }
		m := New(Config{Gateway: none})
		if err := m.Run(ctx, 0, nil); !errors.Is(err, ErrConfig) {
			t.Errorf("without a port: %v", err)
		}
		done := make(chan error)
		go func() { done <- m.Run(ctx, 1, nil) }()
		synctest.Wait()
		if err := m.Run(ctx, 1, nil); !errors.Is(err, ErrRunning) {
			t.Errorf("twice: %v", err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("in the end: %v", err)
		}
	})
}

func TestNonce(t *testing.T) {
	other := netip.MustParseAddr("192.168.1.2")
	a, b := New(Config{NonceKey: []byte("secret")}), New(Config{NonceKey: []byte("secret")})
	if a.nonce(1)(gwAddr, selfAddr) != b.nonce(1)(gwAddr, selfAddr) {
		t.Error("another one after a restart")
	}
	seen := map[[nonceSize]byte]bool{}
	for _, n := range [][nonceSize]byte{
		a.nonce(1)(gwAddr, selfAddr), a.nonce(2)(gwAddr, selfAddr), a.nonce(1)(other, selfAddr), a.nonce(1)(gwAddr, other),
		New(Config{}).nonce(1)(gwAddr, selfAddr), New(Config{}).nonce(1)(gwAddr, selfAddr), New(Config{NonceKey: []byte("x")}).nonce(1)(gwAddr, selfAddr),
	} {
		if seen[n] {
			t.Error("the same one twice")
		}
		seen[n] = true
	}
}

func TestLifetime(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{
		0: DefaultLifetime, time.Second: 2 * time.Minute, -1: 2 * time.Minute, time.Hour: time.Hour, 1000 * time.Hour: 24 * time.Hour,
	} {
		if got := New(Config{Lifetime: in}).cfg.Lifetime; got != want {
			t.Errorf("%v: %v, want %v", in, got, want)
		}
	}
}
