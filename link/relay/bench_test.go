package relay

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkRelay sends 1400-byte packets from one relay to another through pion's
// server in this process; what arrives per second is reported. The server's work
// is in it, and its allocations.
func BenchmarkRelay(b *testing.B) {
	for _, via := range transports {
		b.Run(via.String(), func(b *testing.B) {
			s := newServer(b, "127.0.0.1", nil)
			cfg := s.config(via)
			from, _ := open(b, cfg, nil)
			var got atomic.Uint64
			come := make(chan struct{}, 1)
			cfg.Receive = func(netip.AddrPort, []byte) {
				got.Add(1)
				poke(come)
			}
			to, _ := open(b, cfg, nil)
			opened(b, to, from.Addr())
			opened(b, from, to.Addr())
			packet := make([]byte, 1400)
			bufs := [][]byte{packet, packet, packet, packet, packet, packet, packet, packet}
			const window = 128 // packets on the way: as a tunnel's congestion control would
			b.SetBytes(int64(len(packet)))
			b.ResetTimer()
			lost := uint64(0)
			patience := time.NewTimer(time.Hour)
			defer patience.Stop()
			for sent := uint64(0); sent < uint64(b.N); sent += uint64(len(bufs)) {
				for sent-lost > got.Load()+window {
					patience.Reset(20 * time.Millisecond)
					select {
					case <-come:
					case <-patience.C:
						lost = sent - got.Load()
					}
				}
				if err := from.Send(bufs, to.Addr()); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(lost), "lost")
		})
	}
}

// BenchmarkSend is our own part of it: a packet of 1400 bytes to a bound peer, as
// fast as Send takes them. Over streams most are dropped, as nothing waits here:
// that is the price of a Send, not a rate. The allocations shown are the
// server's; see TestAllocations.
func BenchmarkSend(b *testing.B) {
	for _, via := range transports {
		b.Run(via.String(), func(b *testing.B) {
			r, to := bound(b, via)
			bufs := [][]byte{make([]byte, 1400)}
			b.SetBytes(1400)
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Send(bufs, to); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReceive is the other half: a frame that was read, up to Receive.
func BenchmarkReceive(b *testing.B) {
	for _, kind := range []string{"channel", "indication"} {
		b.Run(kind, func(b *testing.B) {
			r, to := bound(b, overUDP)
			frame := frameOf(r, to, kind)
			b.SetBytes(1400)
			b.ReportAllocs()
			for b.Loop() {
				r.handle(frame)
			}
		})
	}
}

func bound(t testing.TB, via transport) (*Relay, netip.AddrPort) {
	s := newServer(t, "127.0.0.1", nil)
	cfg := s.config(via)
	cfg.Receive = func(netip.AddrPort, []byte) {}
	r, _ := open(t, cfg, nil)
	to := netip.MustParseAddrPort("127.0.0.1:9")
	opened(t, r, to)
	return r, to
}

func frameOf(r *Relay, to netip.AddrPort, kind string) []byte {
	packet := make([]byte, 1400)
	if kind == "channel" {
		return appendChannel(nil, r.peers.find(to).number, packet, false)
	}
	frame := appendIndication(nil, to, packet, transactionID{1})
	frame[1] = dataIndication
	return frame
}

// TestAllocations: neither way allocates. (The server, in the same process, does:
// hence the tables here, which do without its answers.)
func TestAllocations(t *testing.T) {
	for _, kind := range []string{"channel", "indication"} {
		t.Run("receive "+fmt.Sprint(kind), func(t *testing.T) {
			r, to := bound(t, overUDP)
			frame := frameOf(r, to, kind)
			if n := testing.AllocsPerRun(1000, func() { r.handle(frame) }); n != 0 {
				t.Errorf("%v allocations per packet", n)
			}
		})
	}
	t.Run("send", func(t *testing.T) {
		r := &Relay{conn: &discard{}, woken: make(chan struct{}, 1)}
		r.peers.init()
		to := netip.MustParseAddrPort("192.0.2.1:9")
		r.peers.add(to).way.Store(wayChannel)
		bufs := [][]byte{make([]byte, 1400)}
		if n := testing.AllocsPerRun(1000, func() {
			if err := r.Send(bufs, to); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per packet", n)
		}
	})
}

// discard is a carrier that builds frames and forgets them.
type discard struct {
	carrier
	f frames
}

func (d *discard) packets(bufs [][]byte, to *peer, channel uint16) error {
	for _, packet := range bufs {
		d.f.buf = d.f.buf[:0]
		d.f.packet(packet, to, channel, true)
	}
	return nil
}
