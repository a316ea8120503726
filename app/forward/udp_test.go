package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

func listenUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc
}

func portOfUDP(pc *net.UDPConn) uint16 { return pc.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// echoUDP sends each datagram back, with its sender's address before it.
func echoUDP(t testing.TB) uint16 {
	t.Helper()
	pc := listenUDP(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return portOfUDP(pc)
}

// serveUDP runs ServeUDP until the test ends, and returns where.
func serveUDP(t testing.TB, pc net.PacketConn, dial DialFunc, o Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeUDP(ctx, pc, dial, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeUDP: %v", err)
		}
	})
}

func dialUDP(t testing.TB, to net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(t testing.TB, c net.Conn, datagram []byte) []byte {
	t.Helper()
	if _, err := c.Write(datagram); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxDatagram)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// An opaquePacketConn is not the kernel's, as far as ServeUDP can see.
type opaquePacketConn struct{ net.PacketConn }

func TestServeUDP(t *testing.T) {
	for _, kind := range []string{"kernel", "other"} {
		t.Run(kind, func(t *testing.T) {
			service, near := echoUDP(t), listenUDP(t)
			pc := net.PacketConn(near)
			if kind == "other" {
				pc = opaquePacketConn{near}
			}
			var dials atomic.Int64
			var counters Counters
			serveUDP(t, pc, func(ctx context.Context) (net.Conn, error) {
				dials.Add(1)
				return DialLocalUDP(ctx, service)
			}, Options{Counters: &counters})
			const clients = 8
			var wg sync.WaitGroup
			for i := range clients {
				c := dialUDP(t, near.LocalAddr())
				wg.Go(func() {
					for round, size := range []int{0, 1, 100, 1400, 2048, 2049, 9000} {
						want := bytes.Repeat([]byte{byte(i), byte(round)}, size)[:size]
						if got := ask(t, c, want); !bytes.Equal(got, want) {
							t.Errorf("client %d got %d bytes of %d", i, len(got), size)
						}
					}
				})
			}
			wg.Wait()
			// Alone, since a system's buffer may not have room for many of these.
			want := bytes.Repeat([]byte("z"), 60000)
			if got := ask(t, dialUDP(t, near.LocalAddr()), want); !bytes.Equal(got, want) {
				t.Errorf("got %d bytes of %d", len(got), len(want))
			}
			tr := counters.Traffic()
			if dials.Load() != clients+1 || tr.Open != clients+1 || tr.Total != clients+1 {
				t.Errorf("%d dials, %+v; want a flow for each of %d clients", dials.Load(), tr, clients)
			}
			if tr.Sent != tr.Received || tr.Sent < clients*9000+60000 || tr.Dropped != 0 {
				t.Errorf("counted %+v", tr)
			}
		})
	}
}

// A pipe of datagrams for bubbles, where no socket may be.
type packetPipe struct {
	net.Conn
	in, out chan []byte
	once    sync.Once
	closed  chan struct{}
}

func newPacketPipe() (near, far *packetPipe) {
	x, y := make(chan []byte), make(chan []byte)
	return &packetPipe{in: x, out: y, closed: make(chan struct{})}, &packetPipe{in: y, out: x, closed: make(chan struct{})}
}

func (p *packetPipe) Read(b []byte) (int, error) {
	select {
	case d := <-p.in:
		return copy(b, d), nil
	case <-p.closed:
		return 0, net.ErrClosed
	}
}

func (p *packetPipe) Write(b []byte) (int, error) {
	select {
	case p.out <- bytes.Clone(b):
		return len(b), nil
	case <-p.closed:
		return 0, net.ErrClosed
	}
}

func (p *packetPipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// TestFlowsExpire holds by the clock that a flow lives as long as datagrams go either
// way, and two minutes more.
func TestFlowsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newPacketPipe()
		var counters Counters
		flows := NewFlows(t.Context(), FlowsConfig[int]{
			Dial:    func(context.Context, int) (net.Conn, error) { return near, nil },
			Reply:   func(int, []byte) {},
			Options: Options{Counters: &counters},
		})
		buf := make([]byte, 10)
		for range 5 {
			flows.Send(7, []byte("x"))
			if _, err := far.Read(buf); err != nil {
				t.Fatal(err)
			}
			time.Sleep(defaultIdle - time.Second)
		}
		if _, err := far.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(defaultIdle - time.Second)
		synctest.Wait()
		if tr := counters.Traffic(); tr.Open != 1 || tr.Total != 1 {
			t.Errorf("a flow that is used did not stay: %+v", tr)
		}
		time.Sleep(defaultIdle / 2)
		synctest.Wait()
		if tr := counters.Traffic(); tr.Open != 0 || tr.Dropped != 0 {
			t.Errorf("an idle flow stays: %+v", tr)
		}
		if err := flows.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestSpliceUDPExpires is the same on the other side.
func TestSpliceUDPExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPacketPipe()
		c, d := newPacketPipe()
		var counters Counters
		done := make(chan time.Time)
		go func() { counters.SpliceUDP(t.Context(), b, c, time.Minute); done <- time.Now() }()
		buf := make([]byte, 10)
		var last time.Time
		for range 3 {
			for _, way := range [][2]*packetPipe{{a, d}, {d, a}} {
				if _, err := way[0].Write([]byte("datagram")); err != nil {
					t.Fatal(err)
				}
				if n, err := way[1].Read(buf); err != nil || string(buf[:n]) != "datagram" {
					t.Fatalf("%q, %v", buf[:n], err)
				}
				last = time.Now()
				time.Sleep(50 * time.Second)
			}
		}
		if got := (<-done).Sub(last); got != time.Minute {
			t.Errorf("ended %v after the last datagram, want a minute", got)
		}
		if tr := counters.Traffic(); tr.Sent != 24 || tr.Received != 24 {
			t.Errorf("counted %+v", tr)
		}
	})
}

// TestFlowsAreBounded floods with senders and with datagrams that nobody takes.
func TestFlowsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open, most atomic.Int64
		var counters Counters
		flows := NewFlows(t.Context(), FlowsConfig[int]{
			Dial: func(ctx context.Context, _ int) (net.Conn, error) {
				most.Store(max(most.Load(), open.Add(1)))
				defer open.Add(-1)
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Reply:   func(int, []byte) {},
			Options: Options{Counters: &counters, MaxConns: 10},
		})
		for i := range 1000 {
			flows.Send(i, []byte("x"))
			synctest.Wait()
		}
		if n := open.Load(); n != 10 {
			t.Errorf("%d flows, want 10", n)
		}
		if n := most.Load(); n > 11 { // the one that ends, and the one that takes its place
			t.Errorf("%d flows at once, want 10", n)
		}
		for range 10 * maxQueued {
			flows.Send(999, make([]byte, maxDatagram))
		}
		if q := flows.queued.Load(); q > maxQueued*maxDatagram+20 {
			t.Errorf("one flow holds %d bytes", q)
		}
		for i := 990; i < 999; i++ {
			for range maxQueued {
				flows.Send(i, make([]byte, maxDatagram))
			}
		}
		if q := flows.queued.Load(); q > maxQueuedBytes {
			t.Errorf("all flows hold %d bytes, want at most %d", q, maxQueuedBytes)
		}
		if err := flows.Close(); err != nil {
			t.Error(err)
		}
		if q := flows.queued.Load(); q != 0 {
			t.Errorf("%d bytes are held after Close", q)
		}
		flows.Send(1, []byte("x")) // nothing happens
		if q := flows.queued.Load(); q != 0 {
			t.Errorf("%d bytes are held by a datagram after Close", q)
		}
	})
}

// TestFailedDialPauses lets a flood of datagrams dial once a second.
func TestFailedDialPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials, told int
		flows := NewFlows(t.Context(), FlowsConfig[int]{
			Dial: func(context.Context, int) (net.Conn, error) {
				dials++
				return nil, errors.New("no way there")
			},
			Reply:   func(int, []byte) {},
			Options: Options{Failed: func(error) { told++ }},
		})
		for range 1000 {
			flows.Send(1, []byte("x"))
			time.Sleep(10 * time.Millisecond)
		}
		flows.Close()
		if dials < 9 || dials > 11 || told != dials {
			t.Errorf("%d dials in 10 s, %d told; want one a second", dials, told)
		}
	})
}

// TestUDPServiceComesLater holds that a refused datagram does not end a flow.
func TestUDPServiceComesLater(t *testing.T) {
	later := listenUDP(t)
	port := portOfUDP(later)
	later.Close()
	near := listenUDP(t)
	var counters Counters
	serveUDP(t, near, func(ctx context.Context) (net.Conn, error) { return DialLocalUDP(ctx, port) }, Options{Counters: &counters})
	c := dialUDP(t, near.LocalAddr())
	for range 3 { // refused by the kernel
		if _, err := c.Write([]byte("too early")); err != nil {
			t.Fatal(err)
		}
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)))
	if err != nil {
		t.Skipf("the port was taken in the meantime: %v", err)
	}
	defer pc.Close()
	if _, err := c.Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if err := pc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) != "now" {
			continue // one of those before, which came late
		}
		if _, err := pc.WriteToUDPAddrPort([]byte("yes"), from); err != nil {
			t.Fatal(err)
		}
		break
	}
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "yes" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if tr := counters.Traffic(); tr.Total != 1 {
		t.Errorf("the flow ended: %+v", tr)
	}
}

// TestUDPRightsWithdrawn ends a flow and refuses the next one.
func TestUDPRightsWithdrawn(t *testing.T) {
	service, near := echoUDP(t), listenUDP(t)
	live := NewLive[string](0)
	var allowed atomic.Bool
	allowed.Store(true)
	refused := make(chan error, 10)
	serveUDP(t, near, func(ctx context.Context) (net.Conn, error) { return DialLocalUDP(ctx, service) }, Options{
		Failed: func(err error) { refused <- err },
		Admit: func(from net.Addr, c io.Closer) (func(), error) {
			return live.Add(Key[string]{from.(*net.UDPAddr).IP.String(), UDP, service}, c, allowed.Load)
		},
	})
	c := dialUDP(t, near.LocalAddr())
	if got := ask(t, c, []byte("hello")); string(got) != "hello" {
		t.Fatalf("got %q", got)
	}
	allowed.Store(false)
	if n := live.CloseWhere(func(k Key[string]) bool { return k.Device == "127.0.0.1" && k.Protocol == UDP }); n != 1 {
		t.Errorf("%d flows were closed, want 1", n)
	}
	for { // the flow may take the first ones with it as it ends
		if _, err := c.Write([]byte("again")); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !errors.Is(err, ErrDenied) {
				t.Errorf("got %v", err)
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func BenchmarkUDP(b *testing.B) {
	for _, size := range []int{100, 1300} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			service, near := echoUDP(b), listenUDP(b)
			serveUDP(b, near, func(ctx context.Context) (net.Conn, error) { return DialLocalUDP(ctx, service) }, Options{})
			c := dialUDP(b, near.LocalAddr())
			buf, want := make([]byte, maxDatagram), make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(want); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
