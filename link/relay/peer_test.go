package relay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// TestManyPeers talks to more peers than may be new at once.
func TestManyPeers(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	for _, via := range transports {
		t.Run(via.String(), func(t *testing.T) {
			r, in := open(t, s.config(via), nil)
			const n = 100
			want := make(map[netip.AddrPort]bool)
			for range n {
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				to := c.LocalAddr().(*net.UDPAddr).AddrPort()
				want[to] = true
				until(t, "sent", func() bool {
					err := r.Send([][]byte{[]byte("hello")}, to)
					if err != nil && !errors.Is(err, ErrBusy) {
						t.Fatal(err)
					}
					return err == nil
				})
				buf := make([]byte, 10)
				if k, from, err := c.ReadFromUDPAddrPort(buf); err != nil || from != r.Addr() || string(buf[:k]) != "hello" {
					t.Fatalf("%q from %v: %v", buf[:k], from, err)
				}
				if _, err := c.WriteToUDPAddrPort([]byte("hello back"), r.Addr()); err != nil {
					t.Fatal(err)
				}
			}
			for range n {
				got := in.next(t)
				if !want[got.from] || string(got.packet) != "hello back" {
					t.Fatalf("%q from %v", got.packet, got.from)
				}
				delete(want, got.from)
			}
		})
	}
}

// TestQueue: while nothing is answered, 16 peers have 8 packets each waiting, in
// no time; then they go out in order.
func TestQueue(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	r, _ := open(t, cfg, nil)
	p.filter(func(b []byte, _ bool) bool { return is(b, stun.MethodChannelBind) })
	var peers [maxBinding]*net.UDPConn
	start := time.Now()
	for i := range peers {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		peers[i] = c
		packet := make([]byte, 1)
		for n := range maxQueue + 5 {
			packet[0] = byte(n) // the buffer is the caller's again after each Send
			send(t, r, c.LocalAddr().(*net.UDPAddr).AddrPort(), packet)
		}
	}
	if err := r.Send(nil, netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, ErrBusy) {
		t.Errorf("one more peer: %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Send waited: %v", took)
	}
	p.filter(nil)
	for _, c := range peers {
		at := r.peers.find(c.LocalAddr().(*net.UDPAddr).AddrPort())
		until(t, "bound", func() bool { return at.way.Load() == wayChannel })
		send(t, r, at.addr, []byte{maxQueue})
		for n := range maxQueue + 1 {
			buf := make([]byte, 10)
			if k, err := c.Read(buf); err != nil || !bytes.Equal(buf[:k], []byte{byte(n)}) {
				t.Fatalf("%v instead of packet %d: %v", buf[:k], n, err)
			}
		}
		if n := at.dropped.Load(); n != 5 {
			t.Errorf("%d dropped", n)
		}
	}
}

// TestTooManyPeers: the table has an end.
func TestTooManyPeers(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	r, _ := open(t, s.config(overUDP), nil)
	for i := range maxPeers {
		if r.peers.add(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(i+1))) == nil {
			t.Fatalf("peer %d refused", i)
		}
	}
	if err := r.Send(nil, netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
}

// TestIndications: without channels it works as well, both ways, both families.
func TestIndications(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		for _, via := range []transport{overUDP, overTCP} {
			t.Run(fmt.Sprint(ip, " ", via), func(t *testing.T) {
				s := newServer(t, ip, nil)
				a, inA := open(t, s.config(via), nil)
				b, inB := open(t, s.config(via), nil)
				for _, r := range []*Relay{a, b} {
					other := b
					if r == b {
						other = a
					}
					// The number is taken: the server answers 400 to the bind.
					taken := netip.AddrPortFrom(s.ip, 9)
					opened(t, r, taken)
					r.peers.mu.Lock()
					r.peers.addrs[other.Addr()] = &peer{addr: other.Addr(), number: r.peers.addrs[taken].number}
					r.peers.mu.Unlock()
					if p := opened(t, r, other.Addr()); p.way.Load() != wayIndication {
						t.Fatalf("way %d", p.way.Load())
					}
				}
				for _, way := range []struct {
					from, to *Relay
					in       inbox
				}{{a, b, inB}, {b, a, inA}} {
					for _, n := range []int{1, 2, 3, 4, 1200} {
						packet := bytes.Repeat([]byte{'x'}, n)
						send(t, way.from, way.to.Addr(), packet)
						if got := way.in.next(t); got.from != way.from.Addr() || !bytes.Equal(got.packet, packet) {
							t.Fatalf("%d bytes from %v", len(got.packet), got.from)
						}
					}
				}
			})
		}
	}
}

// TestRenewal: a binding in use is renewed, one out of use is let go, its peer
// forgotten, and bound anew when it is needed.
func TestRenewal(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	p := newProxy(t, s)
	cfg := s.config(overUDP)
	cfg.URL = p.url()
	binds := make(chan struct{}, 1000)
	p.filter(func(b []byte, up bool) bool {
		if up && is(b, stun.MethodChannelBind) {
			poke(binds)
		}
		return false
	})
	r, _ := open(t, cfg, func(tm *timing) {
		tm.sweep, tm.rebind, tm.unused, tm.forget = 5*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond, 300*time.Millisecond
	})
	to := netip.MustParseAddrPort("127.0.0.1:9")
	at := opened(t, r, to)
	<-binds
	for n := 0; n < 5; {
		send(t, r, to, []byte("in use"))
		select {
		case <-binds:
			n++
		case <-r.Done():
			t.Fatal(r.Err())
		case <-time.After(time.Millisecond):
		}
	}
	until(t, "let go", func() bool { return at.way.Load() == wayNone })
	until(t, "forgotten", func() bool { return r.peers.find(to) == nil })
	if again := opened(t, r, to); again == at {
		t.Error("it is the old peer")
	}
}

// TestNumbers: channel numbers go round, and never mean two peers.
func TestNumbers(t *testing.T) {
	var ps peers
	ps.init()
	seen := make(map[uint16]bool)
	const keep = 10
	var last []*peer
	for i := range 3 * (lastNumber - firstNumber + 1) {
		p := ps.add(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 16), byte(i >> 8)}), uint16(i)|1<<15|uint16(i&1)))
		if p == nil || p.number < firstNumber || p.number > lastNumber {
			t.Fatalf("%d: %+v", i, p)
		}
		for _, q := range last {
			if q != p && q.number == p.number {
				t.Fatalf("%d: channel %#x means %v and %v", i, p.number, p.addr, q.addr)
			}
		}
		seen[p.number] = true
		if last = append(last, p); len(last) > keep {
			ps.remove(last[0])
			last = last[1:]
		}
	}
	if len(seen) != lastNumber-firstNumber+1 {
		t.Errorf("%d numbers used", len(seen))
	}
}
