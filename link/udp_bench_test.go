package link

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// BenchmarkBind measures one bind against another of its kind over loopback,
// per packet of data size: allocations of both ends, and what arrived.
func BenchmarkBind(b *testing.B) {
	for name, open := range map[string]func() conn.Bind{
		"ours":     func() conn.Bind { return new(udpBind) },
		"upstream": conn.NewStdNetBind,
	} {
		for _, burst := range []int{1, 45} {
			b.Run(fmt.Sprintf("%s/%d", name, burst), func(b *testing.B) { benchBind(b, open(), open(), burst) })
		}
	}
}

func benchBind(b *testing.B, from, to conn.Bind, burst int) {
	if _, _, err := from.Open(0); err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	fns, port, err := to.Open(0)
	if err != nil {
		b.Fatal(err)
	}
	var got, calls atomic.Int64
	done := make(chan struct{}, len(fns))
	for _, fn := range fns {
		go func() {
			defer func() { done <- struct{}{} }()
			bufs, sizes, eps := make([][]byte, to.BatchSize()), make([]int, to.BatchSize()), make([]conn.Endpoint, to.BatchSize())
			for i := range bufs {
				bufs[i] = make([]byte, 65535)
			}
			for {
				n, err := fn(bufs, sizes, eps)
				if err != nil {
					return
				}
				got.Add(int64(n))
				calls.Add(1)
			}
		}()
	}
	ep, err := from.ParseEndpoint(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String())
	if err != nil {
		b.Fatal(err)
	}
	store := make([][]byte, burst)
	for i := range store {
		store[i] = make([]byte, DefaultDataSize, 65535)
	}
	bufs := make([][]byte, burst)
	b.SetBytes(DefaultDataSize)
	b.ReportAllocs()
	for sent := int64(0); b.Loop(); sent++ {
		if sent%int64(burst) != 0 {
			continue // one loop is one packet
		}
		copy(bufs, store)
		if err := from.Send(bufs, ep); err != nil {
			b.Fatal(err)
		}
		for sent-got.Load() > 256 { // no more in flight than the socket holds
			runtime.Gosched()
		}
	}
	b.ReportMetric(float64(got.Load())/float64(max(calls.Load(), 1)), "batch")
	b.ReportMetric(100*float64(got.Load())/float64(b.N), "%arrived")
	to.Close()
	for range fns {
		<-done
	}
}

// BenchmarkReceive measures what the Socket adds to a received packet: telling
// WireGuard apart, and finding the link of its source.
func BenchmarkReceive(b *testing.B) {
	const batch = 128
	for _, peers := range []int{1, 2, 1000} {
		b.Run(fmt.Sprintf("%d peers in turn", peers), func(b *testing.B) {
			s := NewSocket(SocketConfig{})
			from := make([]*udpEndpoint, peers)
			for i := range from {
				addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 41641)
				from[i] = newEndpoint(addr, netip.Addr{})
				s.admit(onSocket(addr), &Link{}, true)
			}
			r := &receiver{socket: s}
			bufs, sizes, eps := make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)
			for i := range bufs {
				bufs[i] = data("0123456789")
			}
			b.ReportAllocs()
			next := 0
			for n := 0; b.Loop(); n++ {
				if n%batch != 0 {
					continue // one loop is one packet
				}
				for i := range bufs {
					sizes[i], eps[i] = len(bufs[i]), from[next%peers]
					next++
				}
				r.sort(bufs, sizes, eps)
			}
		})
	}
}

// BenchmarkStranger measures what a packet costs that is dropped.
func BenchmarkStranger(b *testing.B) {
	s := NewSocket(SocketConfig{})
	l := &Link{inbox: make(chan *datagram)} // full at once
	sl := newSealer([32]byte{1})
	s.setKeys(l, []*sealer{sl})
	known, err := sl.seal(rand.Reader, probe{kind: ping, seq: 1}, smallProbe)
	if err != nil {
		b.Fatal(err)
	}
	other, err := newSealer([32]byte{2}).seal(rand.Reader, probe{kind: ping, seq: 1}, smallProbe)
	if err != nil {
		b.Fatal(err)
	}
	for name, raw := range map[string][]byte{"WireGuard": data("x"), "known tag, link busy": known, "unknown tag": other, "garbage": make([]byte, 100)} {
		b.Run(name, func(b *testing.B) {
			r := &receiver{socket: s}
			bufs, sizes, eps := [][]byte{raw}, []int{0}, []conn.Endpoint{nil}
			ep := newEndpoint(netip.MustParseAddrPort("10.0.0.1:1"), netip.Addr{})
			b.ReportAllocs()
			for b.Loop() {
				sizes[0], eps[0] = len(raw), ep
				r.sort(bufs, sizes, eps)
			}
		})
	}
}

func BenchmarkProbe(b *testing.B) {
	s := newSealer([32]byte{1})
	for _, size := range []int{smallProbe, DefaultDataSize} {
		b.Run(fmt.Sprintf("seal and open %d bytes", size), func(b *testing.B) {
			for b.Loop() {
				raw, err := s.seal(rand.Reader, probe{kind: ping, seq: 1}, size)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.open(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
