package waku

import (
	"encoding/binary"
	"net"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/kithproject/kith/rendezvous"
)

// A countingListener counts the bytes of its connections, both ways.
type countingListener struct {
	net.Listener
	bytes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l.bytes}, nil
}

type countingConn struct {
	net.Conn
	bytes *atomic.Int64
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.bytes.Add(int64(n))
	return n, err
}

func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

// TestIdleCost holds what an idle client costs: once in pingInterval it asks the
// node whether it has the subscriptions, and the node's Yamux pings once in
// keepAlive. The headers of TCP and IP are not counted.
func TestIdleCost(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var bytes atomic.Int64
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(countingListener{ln, &bytes})
	}()
	e := open(t, fastConfig(s.Multiaddr("127.0.0.1", addrPort(ln.Addr()).Port(), "")))
	for i := range 20 {
		join(t, e, rendezvous.Point{Topic: rendezvous.Topic{byte(i)}})
	}
	awaitStats(t, s, func(st Stats) bool { return st.Subscriptions == 20 })
	u := e.nodes[0]
	l, err := u.state()
	if err != nil {
		t.Fatal(err)
	}
	settled := func() int64 {
		before := int64(-1)
		await(t, "nothing moves", func() bool {
			now := bytes.Load()
			quiet := now == before
			before = now
			return quiet
		})
		return before
	}
	start := settled()
	const pings = 10
	for range pings {
		if forgot, err := u.ping(t.Context(), l, true); forgot || err != nil {
			t.Fatal(forgot, err)
		}
	}
	each := (settled() - start) / pings
	perSecond := float64(each) / pingInterval.Seconds()
	t.Logf("starting with 20 topics %d bytes; one ping %d bytes: %.1f bytes/s", start, each, perSecond)
	if perSecond > 50 {
		t.Errorf("%.1f bytes/s, want at most 50 of a node", perSecond)
	}
	s.Close()
	<-served
}

func BenchmarkLatency(b *testing.B) {
	_, node := startService(b, ServiceConfig{})
	cfg := fastConfig(node)
	cfg.Burst = 1 << 30 // no limit
	from, to := join(b, open(b, cfg), rendezvous.Point{Mode: rendezvous.SendOnly}), join(b, open(b, cfg), rendezvous.Point{})
	untilArrives(b, from, to, frameOf(1))
	frame, n := frameOf(2), uint64(0)
	for b.Loop() {
		n++ // nodes drop what is the same in all, the random part of the time as well
		binary.BigEndian.PutUint64(frame, n)
		if err := from.Publish(b.Context(), frame); err != nil {
			b.Fatal(err)
		}
		awaitFrame(b.Context(), b, to, frame)
	}
}

// BenchmarkIdleMemory reports the heap and the goroutines of one idle client with
// 20 topics at one node, whose share is counted, too.
func BenchmarkIdleMemory(b *testing.B) {
	s, node := startService(b, ServiceConfig{PerAddress: 10_000, Clients: 10_000})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	var open []*Exchange
	n := 0
	for b.Loop() {
		e, err := New(fastConfig(node))
		if err != nil {
			b.Fatal(err)
		}
		open = append(open, e)
		for i := range 20 {
			join(b, e, rendezvous.Point{Topic: rendezvous.Topic{byte(i), byte(n), byte(n >> 8)}, Mode: rendezvous.ReceiveOnly})
		}
		n++
		awaitStats(b, s, func(st Stats) bool { return st.Subscriptions == 20*n })
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/float64(n), "B/client")
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/float64(n), "goroutines/client")
	for _, e := range open {
		e.Close()
	}
}
