package nettest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Distance forwards connections that ln takes to what dial opens, until the end of
// the test, and holds every byte back for half of a round trip. The round trip of
// opening the connection is not in it. It closes ln.
func Distance(t testing.TB, ln net.Listener, dial func() (net.Conn, error), roundTrip time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards conns
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
			out, err := dial()
			if err != nil {
				in.Close()
				continue
			}
			keep(in)
			keep(out)
			wg.Go(func() { late(&wg, in, out, roundTrip/2) })
			wg.Go(func() { late(&wg, out, in, roundTrip/2) })
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
