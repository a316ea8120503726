package punch

import (
	"net/netip"
	"runtime"
	"testing"
)

// BenchmarkOpenPool opens and closes 256 sockets. Heap and stack are Go's, for
// one pool that is open; the kernel's share comes on top.
func BenchmarkOpenPool(b *testing.B) {
	for _, o := range ways() {
		b.Run(o.name, func(b *testing.B) {
			cfg := PoolConfig{Receive: func(int, netip.AddrPort, []byte) {}}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			p, err := openPool(cfg, o.open)
			if err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			_ = p.Close()
			for b.Loop() {
				p, err := openPool(cfg, o.open)
				if err != nil {
					b.Fatal(err)
				}
				_ = p.Close()
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1024, "heap-KiB")
			b.ReportMetric(float64(after.StackInuse)/1024-float64(before.StackInuse)/1024, "stack-KiB")
		})
	}
}

// BenchmarkProbe sends one probe over loopback, from socket after socket, to a
// port at which nobody reads.
func BenchmarkProbe(b *testing.B) {
	for _, ttl := range []int{0, 4} {
		for _, o := range ways() {
			b.Run(o.name+map[int]string{0: "", 4: " low TTL"}[ttl], func(b *testing.B) {
				p, _ := openTestPool(b, o, 256)
				_, to := peerSocket(b)
				packets := [][]byte{make([]byte, 64)}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if err := p.SendTTL(i%256, packets, to, ttl); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}
