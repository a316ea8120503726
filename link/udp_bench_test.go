package link

import (
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
