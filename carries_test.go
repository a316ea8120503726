package kith_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// carriedPair is two nodes, and a connection from the first to a listener of the second.
type carriedPair struct {
	a, b      *kith.Node
	near, far net.Conn
}

func newCarriedPair(ctx context.Context, t *testing.T) carriedPair {
	t.Helper()
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	p := carriedPair{a: openNode(t, network, stateDir(t), "desk"), b: openNode(t, network, stateDir(t), "laptop")}
	pairNodes(ctx, t, p.a, p.b, code.MethodWords)
	ln, err := p.b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	p.open(ctx, t, ln)
	return p
}

func (p *carriedPair) open(ctx context.Context, t *testing.T, ln net.Listener) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	var err error
	if p.near, err = p.a.Dial(ctx, "tcp", "laptop:80"); err != nil {
		t.Fatal(err)
	}
	p.far = <-accepted
	t.Cleanup(func() { p.near.Close(); p.far.Close() })
}

// pour sends size bytes and their end from one connection to another, and checks them.
// between is called after each MiB that was written.
func pour(to, from net.Conn, size int, between func(mib int)) error {
	sent := make(chan [sha256.Size]byte, 1)
	failed := make(chan error, 1)
	go func() {
		sum, piece := sha256.New(), make([]byte, 1<<20)
		for i := range size >> 20 {
			for j := range piece {
				piece[j] = byte(i + j*j + j>>8)
			}
			sum.Write(piece)
			if _, err := from.Write(piece); err != nil {
				failed <- fmt.Errorf("write: %w", err)
				return
			}
			between(i)
		}
		sent <- [sha256.Size]byte(sum.Sum(nil))
		failed <- from.(interface{ CloseWrite() error }).CloseWrite()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, to)
	if err = errors.Join(err, <-failed); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if n != int64(size) || [sha256.Size]byte(sum.Sum(nil)) != <-sent {
		return fmt.Errorf("%d bytes of %d, or others than were sent", n, size)
	}
	return nil
}

// laneBytes is what the desk's connections to the laptop sent and received by lanes.
func laneBytes(t *testing.T, desk *kith.Node) (sent, received uint64) {
	t.Helper()
	d, err := desk.Device("laptop")
	if err != nil {
		t.Fatal(err)
	}
	return d.LaneSent, d.LaneReceived
}

// TestBulkGoesByALane has a connection carry much: it moves to a lane, both ways, and
// ends as one inside the tunnel does.
func TestBulkGoesByALane(t *testing.T) {
	ctx := testContext(t)
	p := newCarriedPair(ctx, t)
	const size = 128 << 20
	if err := pour(p.far, p.near, size, func(int) {}); err != nil {
		t.Fatal(err)
	}
	if err := pour(p.near, p.far, size, func(int) {}); err != nil {
		t.Fatal(err)
	}
	sent, received := laneBytes(t, p.a)
	if sent < size/2 || received < size/2 {
		t.Errorf("of %d bytes each way lanes carried %d and %d", size, sent, received)
	}
	t.Logf("lanes carried %d of %d MiB there, %d back", sent>>20, size>>20, received>>20)
	if p.far.Close() != nil || p.near.Close() != nil {
		t.Error("not closed")
	}
	if _, err := p.near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	// The port that nobody listens at is refused as ever.
	if _, err := p.a.Dial(testContext(t), "tcp", "laptop:81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port 81: %v", err)
	}
}

// TestBulkStaysInTheTunnel holds that Config.NoLanes, here or there, keeps everything
// inside the tunnel; there, it is what a version of kith without lanes looks like.
func TestBulkStaysInTheTunnel(t *testing.T) {
	for name, none := range map[string][2]bool{"here": {true, false}, "there": {false, true}} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
			var p carriedPair
			for i, n := range []**kith.Node{&p.a, &p.b} {
				*n = openNodeAs(t, network, []string{"desk", "laptop"}[i], func(c *kith.Config) { c.NoLanes = none[i] })
			}
			pairNodes(ctx, t, p.a, p.b, code.MethodWords)
			ln, err := p.b.Listen("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			p.open(ctx, t, ln)
			if err := pour(p.far, p.near, 24<<20, func(int) {}); err != nil {
				t.Fatal(err)
			}
			if sent, received := laneBytes(t, p.a); sent+received > 0 {
				t.Errorf("lanes carried %d and %d bytes", sent, received)
			}
		})
	}
}

// allowedPair is two nodes, where the second lets the first reach a port of localhost that
// takes what comes and sends without end.
func allowedPair(ctx context.Context, t *testing.T) (a, b *kith.Node, port uint16) {
	t.Helper()
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b = openNode(t, network, stateDir(t), "desk"), openNode(t, network, stateDir(t), "laptop")
	pairNodes(ctx, t, a, b, code.MethodWords)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, zeroes{}); conn.Close() }()
		}
	}()
	port = uint16(ln.Addr().(*net.TCPAddr).Port)
	if err := b.Allow("desk", port); err != nil {
		t.Fatal(err)
	}
	return a, b, port
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRightsEndLanes withdraws what a connection on a lane depends on: it ends at once, and
// not as if all had come.
func TestRightsEndLanes(t *testing.T) {
	for name, end := range map[string]func(b *kith.Node, port uint16) error{
		"deny": func(b *kith.Node, port uint16) error { return b.Deny("desk", port) },
		"block": func(b *kith.Node, _ uint16) error {
			_, err := b.SetRights("desk", func(r *kith.Rights) error { r.Blocked = true; return nil })
			return err
		},
		"unpair": func(b *kith.Node, _ uint16) error {
			ctx, cancel := context.WithTimeout(context.Background(), nodePatience)
			defer cancel()
			_, err := b.Unpair(ctx, "desk")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			a, b, port := allowedPair(ctx, t)
			conn, err := a.Dial(ctx, "tcp", fmt.Sprintf("laptop:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetReadDeadline(time.Now().Add(nodePatience)); err != nil {
				t.Fatal(err)
			}
			for buf := make([]byte, 1<<20); ; {
				if _, err := conn.Read(buf); err != nil {
					t.Fatal(err)
				}
				if _, received := laneBytes(t, a); received > 16<<20 {
					break
				}
			}
			if err := end(b, port); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if n, err := io.Copy(io.Discard, conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %d more bytes: %v", n, err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("it lasted %v more", d)
			}
		})
	}
}

// TestManyAtOnce has more connections carry much than may be on lanes: all of them go on,
// some inside the tunnel.
func TestManyAtOnce(t *testing.T) {
	ctx := testContext(t)
	p := newCarriedPair(ctx, t)
	ln, err := p.b.Listen("tcp", ":81")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const n, size = 48, 8 << 20
	errs := make(chan error, 2*n)
	go func() {
		for range n {
			conn, err := ln.Accept()
			if err != nil {
				errs <- err
				return
			}
			go func() {
				defer conn.Close()
				_, err := io.CopyN(conn, zeroes{}, size)
				errs <- err
			}()
		}
	}()
	for range n {
		go func() {
			conn, err := p.a.Dial(ctx, "tcp", "laptop:81")
			if err == nil {
				var got int64
				if got, err = io.Copy(io.Discard, conn); err == nil && got != size {
					err = fmt.Errorf("%d of %d bytes", got, size)
				}
				conn.Close()
			}
			errs <- err
		}()
	}
	for range 2 * n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	_, received := laneBytes(t, p.a)
	t.Logf("lanes carried %d of %d MiB", received>>20, n*size>>20)
}
