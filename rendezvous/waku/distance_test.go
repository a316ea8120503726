package waku

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// farAway forwards connections to a node and holds every byte back for half of a
// round trip. It returns the node's address through it.
func farAway(t testing.TB, s *Service, node string, rtt time.Duration) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, err := parseAddress(node)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := []io.Closer{ln}
	keep := func(c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
	}
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target.host)
			if err != nil {
				in.Close()
				return
			}
			keep(in)
			keep(out)
			wg.Go(func() { late(&wg, in, out, rtt/2) })
			wg.Go(func() { late(&wg, out, in, rtt/2) })
		}
	})
	t.Cleanup(func() {
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s.Multiaddr("127.0.0.1", addrPort(ln.Addr()).Port(), "")
}

// late copies with a delay.
func late(wg *sync.WaitGroup, from, to net.Conn, delay time.Duration) {
	type piece struct {
		at time.Time
		b  []byte
	}
	pieces := make(chan piece, 1000)
	wg.Go(func() {
		for p := range pieces {
			<-time.After(time.Until(p.at))
			if _, err := to.Write(p.b); err != nil {
				from.Close()
			}
		}
		to.Close()
	})
	for {
		b := make([]byte, 4096)
		n, err := from.Read(b)
		if n > 0 {
			pieces <- piece{time.Now().Add(delay), b[:n]}
		}
		if err != nil {
			close(pieces)
			return
		}
	}
}

// TestAtDistance measures what a start costs at 50 ms of round trip: from New to
// the first frame across, and one frame afterwards. TCP's own round trip is not in
// it.
func TestAtDistance(t *testing.T) {
	const rtt = 50 * time.Millisecond
	s, near := startService(t, ServiceConfig{})
	far := farAway(t, s, near, rtt)
	start := time.Now()
	a, b := open(t, fastConfig(far)), open(t, fastConfig(far))
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	publish(t.Context(), t, sa, frameOf(1)) // waits for the connection
	awaitFrame(t.Context(), t, sb, frameOf(1))
	first := time.Since(start)
	start = time.Now()
	publish(t.Context(), t, sb, frameOf(2))
	awaitFrame(t.Context(), t, sa, frameOf(2))
	next := time.Since(start)
	t.Logf("first frame after %v, another in %v", first, next)
	if first > 20*rtt || next > 6*rtt {
		t.Errorf("first frame after %v, another in %v: too many round trips", first, next)
	}
}
