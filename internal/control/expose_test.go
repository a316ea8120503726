package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// listenAny is a listener of localhost whose connections handle serves until the test
// ends, and its port.
func listenAny(t *testing.T, handle func(net.Conn)) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

// unusedPort is a TCP port of localhost that nobody uses at the moment.
func unusedPort(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

// TestExposeEnds carries a download through two nodes' tunnel, and ends it in each way in
// which the host's user can: the port is closed when the command returns.
func TestExposeEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openServer(t, medium, "desk"), openServer(t, medium, "laptop")
	pair(ctx, t, a.node, b.node)
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	service := listenAny(t, func(c net.Conn) {
		for {
			if _, err := c.Write(data); err != nil {
				return
			}
		}
	})
	port := unusedPort(t)
	here, there := Local(a), Local(b)
	right := func(take bool) Request {
		return Request{Op: OpRights, Device: "desk", Change: &Change{Take: take, Listen: []Port{{"tcp", port}}}}
	}
	do := func(c *Client, req Request) Reply {
		t.Helper()
		r, err := c.Do(ctx, req)
		if err != nil {
			t.Fatalf("%s: %v", req.Op, err)
		}
		return r
	}
	expose := Request{Op: OpExpose, Device: "laptop", Network: "tcp", Port: port, Address: net.JoinHostPort("localhost", strconv.Itoa(int(service))), Keep: true}
	var denied *Error
	if _, err := here.Do(ctx, expose); !errors.As(err, &denied) || denied.Kind != KindDenied {
		t.Fatalf("without the right: %v", err)
	}
	do(there, right(false))
	do(here, expose)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	blocked := func(take bool) Request {
		return Request{Op: OpRights, Device: "desk", Change: &Change{Blocked: true, Take: take}}
	}
	tryEnd(ctx, t, "withdrawn", address, data, func() { do(there, right(true)) })
	do(there, right(false))
	tryEnd(ctx, t, "blocked", address, data, func() { do(there, blocked(false)) })
	do(there, blocked(true))
	tryEnd(ctx, t, "unpaired", address, data, func() { do(there, Request{Op: OpUnpair, Device: "desk"}) })
}

// tryEnd awaits the port, downloads from it, and holds that end closes both.
func tryEnd(ctx context.Context, t *testing.T, name, address string, data []byte, end func()) {
	t.Helper()
	var c net.Conn
	for {
		var d net.Dialer
		var err error
		if c, err = d.DialContext(ctx, "tcp", address); err == nil {
			break
		}
		select { // desk asks again by itself
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v", name, err)
		}
	}
	defer c.Close()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%s: downloaded: %v", name, err)
	}
	end()
	if again, err := net.Dial("tcp", address); err == nil {
		again.Close()
		t.Errorf("%s: the port is open", name)
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %d bytes more, %v, want a reset", name, n, err)
	}
}

// TestExposeIsKept holds that what was kept is there again in the next run of either.
func TestExposeIsKept(t *testing.T) {
	s := openServer(t, rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}), "desk")
	d := kith.Device{}
	spec := exposeSpec(d, Request{Network: "udp", Port: 53, Address: "localhost:5353"})
	if _, err := s.forwards.add(spec, true); err != nil {
		t.Fatal(err)
	}
	next, err := newForwards(s)
	if err != nil {
		t.Fatal(err)
	}
	defer next.set.Close()
	if got := next.wanted(); len(got) != 1 || got[0] != spec {
		t.Errorf("%+v, want %+v", got, spec)
	}
}
