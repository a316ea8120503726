package kith_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

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

func laneBytes(t *testing.T, n *kith.Node, of string) (sent, received uint64) {
	t.Helper()
	d, err := n.Device(of)
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
	sent, received := laneBytes(t, p.a, "laptop")
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
	if _, err := p.a.Dial(ctx, "tcp", "laptop:81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port 81: %v", err)
	}
}
