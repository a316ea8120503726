package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// TestServerKilled: what the system can tell is told at once.
func TestServerKilled(t *testing.T) {
	for _, via := range transports {
		t.Run(via.String(), func(t *testing.T) {
			s := newServer(t, "127.0.0.1", nil)
			r, _ := open(t, s.config(via), nil)
			s.kill()
			if via == overUDP {
				r.Check() // as the next packet would: the port is closed, nothing tells us so unasked
			}
			took := await(t, r, 5*time.Second)
			if !errors.Is(r.Err(), ErrLost) || took > 3*time.Second {
				t.Errorf("after %v: %v", took, r.Err())
			}
		})
	}
}

// TestServerKilledInUse: the first refused packet leads to the check.
func TestServerKilledInUse(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	r, _ := open(t, s.config(overUDP), func(tm *timing) { tm.gap = 0 })
	to := netip.MustParseAddrPort("127.0.0.1:9")
	opened(t, r, to)
	s.kill()
	if err := r.Send([][]byte{{1}}, to); err != nil {
		t.Fatalf("the first packet: %v", err)
	}
	if took := await(t, r, 5*time.Second); took > 3*time.Second || !errors.Is(r.Err(), ErrLost) {
		t.Errorf("after %v: %v", took, r.Err())
	}
	if err := r.Send([][]byte{{1}}, to); !errors.Is(err, ErrLost) {
		t.Errorf("Send then: %v", err)
	}
}

// TestSilence: everything is lost, and the system says nothing. These are the
// real times: 5 s and what asking takes.
func TestSilence(t *testing.T) {
	t.Parallel()
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	r, _ := open(t, cfg, nil)
	to := netip.MustParseAddrPort("127.0.0.1:9")
	opened(t, r, to)
	p.filter(func([]byte, bool) bool { return true })
	send(t, r, to, []byte("into the void"))
	took := await(t, r, 10*time.Second)
	if !errors.Is(r.Err(), ErrLost) || took < 4*time.Second || took > 9*time.Second {
		t.Errorf("after %v: %v", took, r.Err())
	}
}

// TestSilenceIdle: the same without traffic, with shorter times.
func TestSilenceIdle(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	asked := make(chan struct{}, 100)
	p.filter(func(b []byte, up bool) bool {
		if up && is(b, stun.MethodRefresh) {
			asked <- struct{}{}
		}
		return false
	})
	r, _ := open(t, cfg, fast)
	for range 3 { // it is asked, answers, and is asked again
		select {
		case <-asked:
		case <-r.Done():
			t.Fatal(r.Err())
		}
	}
	p.filter(func([]byte, bool) bool { return true })
	await(t, r, 5*time.Second)
	if !errors.Is(r.Err(), ErrLost) {
		t.Error(r.Err())
	}
}

// fast makes the keeper's times short.
func fast(tm *timing) {
	tm.idle, tm.busy, tm.tick, tm.gap = 50*time.Millisecond, 50*time.Millisecond, 10*time.Millisecond, 0
	tm.check = pace{tries: 3, wait: 50 * time.Millisecond}
}

// TestRestarted: a server that was started again answers, but does not know us.
func TestRestarted(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	r, _ := open(t, s.config(overUDP), fast)
	s.kill()
	again := newServerAt(t, "127.0.0.1", s.ports[overUDP], nil)
	await(t, r, 5*time.Second)
	if !errors.Is(r.Err(), ErrLost) {
		t.Error(r.Err())
	}
	if r, _ := open(t, again.config(overUDP), nil); r.Addr().Port() == 0 {
		t.Error("no relay after dialing again")
	}
}

// TestLossIsNotTheEnd: two of three checks get lost, over and over.
func TestLossIsNotTheEnd(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	n, answered := 0, make(chan struct{}, 1000) // n: of the proxy's one goroutine
	p.filter(func(b []byte, up bool) bool {
		if !up || !is(b, stun.MethodRefresh) {
			return false
		}
		if n++; n%3 == 0 {
			answered <- struct{}{}
		}
		return n%3 != 0
	})
	r, _ := open(t, cfg, fast)
	for range 4 {
		select {
		case <-answered:
		case <-r.Done():
			t.Fatal(r.Err())
		}
	}
}

// TestPacketsAreProof: while packets come, a lost refresh is not the end.
func TestPacketsAreProof(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	got := make(chan struct{}, 1)
	cfg.Receive = func(netip.AddrPort, []byte) { poke(got) }
	r, _ := open(t, cfg, fast)
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	opened(t, r, peer.LocalAddr().(*net.UDPAddr).AddrPort())
	p.filter(func(b []byte, _ bool) bool { return is(b, stun.MethodRefresh) })
	end := time.Now().Add(time.Second)
	for time.Now().Before(end) {
		r.Check()
		if _, err := peer.WriteToUDPAddrPort([]byte("alive"), r.Addr()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got:
		case <-r.Done():
			t.Fatal(r.Err())
		}
	}
	p.filter(func([]byte, bool) bool { return true })
	await(t, r, 5*time.Second)
}

// TestCloseInTime: a server that is gone does not hold Close up.
func TestCloseInTime(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	r, _ := open(t, cfg, nil)
	p.filter(func([]byte, bool) bool { return true })
	send(t, r, netip.MustParseAddrPort("127.0.0.1:9"), []byte("waits for a channel for ever"))
	start := time.Now()
	if err := r.Close(); err != nil || time.Since(start) > 2*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// TestUnreachable: nobody there, no such name, somebody else, or ctx ends.
func TestUnreachable(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-something\r\n"))
			_ = c.(*net.TCPConn).CloseWrite()
			buf := make([]byte, 4096)
			for err == nil {
				_, err = c.Read(buf)
			}
			_ = c.Close()
		}
	}()
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().(*net.TCPAddr).Port
	free.Close()
	for name, url := range map[string]string{
		"udp, closed":    "turn:127.0.0.1:" + strconv.Itoa(closed),
		"tcp, closed":    "turn:127.0.0.1:" + strconv.Itoa(closed) + "?transport=tcp",
		"udp, silent":    "turn:" + silent.LocalAddr().String(),
		"tcp, not TURN":  "turn:" + other.Addr().String() + "?transport=tcp",
		"tls, not TLS":   "turns:" + other.Addr().String(),
		"no such name":   "turn:relay.invalid",
		"a name, silent": "turn:relay.test:" + strconv.Itoa(silent.LocalAddr().(*net.UDPAddr).Port),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			look := func(_ context.Context, host string) ([]netip.Addr, error) {
				if host == "relay.test" {
					return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
				}
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
			s, err := parseURL(url)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			r, err := dial(ctx, Config{URL: url, User: "u", Password: "p"}, s, timingOf(s.via), look)
			if err == nil {
				_ = r.Close()
			}
			if !errors.Is(err, ErrUnreachable) || time.Since(start) > 3*time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	}
	other.Close()
	<-served
}

// TestAbandoned: an allocation whose answer got lost is given back.
func TestAbandoned(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.filter(func(b []byte, up bool) bool {
		if up || !is(b, stun.MethodAllocate) || s.turn.AllocationCount() == 0 {
			return false
		}
		cancel()
		return true
	})
	r, err := Dial(ctx, cfg)
	if err == nil {
		_ = r.Close()
	}
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnreachable) {
		t.Fatal(err)
	}
	until(t, "given back", func() bool { return s.turn.AllocationCount() == 0 })
}
