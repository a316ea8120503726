package relay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

var transports = []transport{overUDP, overTCP, overTLS}

// TestRelayToRelay sends both ways between two allocations, over every pair of
// transports and both IP versions.
func TestRelayToRelay(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		for i, via := range transports {
			t.Run(fmt.Sprint(ip, " ", via), func(t *testing.T) {
				s := newServer(t, ip, nil)
				a, inA := open(t, s.config(via), nil)
				b, inB := open(t, s.config(transports[(i+1)%len(transports)]), nil)
				if a.Addr() == b.Addr() || a.Addr().Addr() != s.ip || a.Mapped().Addr() != s.ip {
					t.Fatalf("relayed %v and %v, mapped %v", a.Addr(), b.Addr(), a.Mapped())
				}
				opened(t, b, a.Addr())
				// The first packets wait for the channel, in order, and all sizes fit.
				sizes := []int{0, 1, 2, 3, 4, 1200, 1500}
				var packets [][]byte
				for i, n := range sizes {
					packets = append(packets, bytes.Repeat([]byte{byte('a' + i)}, n))
				}
				for _, way := range []struct {
					from, to *Relay
					in       inbox
				}{{a, b, inB}, {b, a, inA}} {
					send(t, way.from, way.to.Addr(), packets...)
					for i := range packets {
						got := way.in.next(t)
						if got.from != way.from.Addr() || !bytes.Equal(got.packet, packets[i]) {
							t.Fatalf("packet %d: %d bytes %.3q from %v", i, len(got.packet), got.packet, got.from)
						}
					}
				}
				if p := opened(t, a, b.Addr()); p.way.Load() != wayChannel {
					t.Error("no channel was bound")
				}
				want := uint64(0 + 1 + 2 + 3 + 4 + 1200 + 1500)
				if tx, rx := a.Stats(); tx != want || rx != want {
					t.Errorf("stats %d and %d, want %d", tx, rx, want)
				}
			})
		}
	}
}

// TestPlainPeer talks to a socket that knows nothing of TURN, and lets through
// what it sends from another port.
func TestPlainPeer(t *testing.T) {
	s := newServer(t, "127.0.0.1", nil)
	for _, via := range transports {
		t.Run(via.String(), func(t *testing.T) {
			r, in := open(t, s.config(via), nil)
			var peers [2]*net.UDPConn
			for i := range peers {
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				peers[i] = c
			}
			at := func(i int) netip.AddrPort { return peers[i].LocalAddr().(*net.UDPAddr).AddrPort() }
			// Five bytes at least: over streams pion's server waits for more behind fewer.
			send(t, r, at(0), []byte("hello"))
			buf := make([]byte, 100)
			n, from, err := peers[0].ReadFromUDPAddrPort(buf)
			if err != nil || string(buf[:n]) != "hello" || from != r.Addr() {
				t.Fatalf("%q from %v: %v", buf[:n], from, err)
			}
			for i, p := range peers {
				if _, err := p.WriteToUDPAddrPort([]byte{byte(i)}, r.Addr()); err != nil {
					t.Fatal(err)
				}
				if got := in.next(t); got.from != at(i) || !bytes.Equal(got.packet, []byte{byte(i)}) {
					t.Fatalf("%q from %v, want it from %v", got.packet, got.from, at(i))
				}
			}
		})
	}
}

// TestClose gives the allocation back.
func TestClose(t *testing.T) {
	for _, via := range transports {
		t.Run(via.String(), func(t *testing.T) {
			s := newServer(t, "127.0.0.1", nil)
			r, _ := open(t, s.config(via), nil)
			if n := s.turn.AllocationCount(); n != 1 {
				t.Fatalf("%d allocations", n)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if n := s.turn.AllocationCount(); n != 0 {
				t.Errorf("%d allocations after Close", n)
			}
			await(t, r, time.Second)
			for range 2 {
				if err := r.Send([][]byte{{1}}, netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, ErrClosed) {
					t.Errorf("Send after Close: %v", err)
				}
			}
			if err := r.Close(); err != nil || !errors.Is(r.Err(), ErrClosed) {
				t.Errorf("second Close: %v, Err: %v", err, r.Err())
			}
		})
	}
}
