package kith_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// A change is what happens to the network of two connected devices.
type change struct {
	name string
	a, b nettest.NAT
	do   func(ctx context.Context, r *reachLab)
}

func changes() []change {
	return []change{
		{"one moves to another network", nettest.NATEasy, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.spare.Move(r.nodes[0].host)
		}},
		{"one moves behind a hard NAT", nettest.NATEasy, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.hard.Move(r.nodes[0].host)
		}},
		{"new public address", nettest.NATEasy, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.sites[0].Reboot(true)
		}},
		{"NAT reboot, port not kept", nettest.NATEIM, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.sites[0].Reboot(false)
		}},
		{"hub restart, straight path", nettest.NATEasy, nettest.NATEasy, func(ctx context.Context, r *reachLab) {
			r.up.Kill()
			r.startHub(ctx)
		}},
		{"NAT reboot, port not kept, and no hub any more", nettest.NATEIM, nettest.NATEasy, func(_ context.Context, r *reachLab) {
			r.up.Kill()
			r.sites[0].Reboot(false)
		}},
		{"hub restart, relayed", nettest.NATHard, nettest.NATHard, func(ctx context.Context, r *reachLab) {
			r.up.Kill()
			r.startHub(ctx)
		}},
		{"20 s without a link", nettest.NATEasy, nettest.NATEasy, func(ctx context.Context, r *reachLab) {
			r.sites[0].Cut(true)
			select {
			case <-time.After(20 * time.Second):
			case <-ctx.Done():
			}
			r.sites[0].Cut(false)
		}},
	}
}

// TestNetworkRoam holds that connections inside the tunnel live through changes of
// the network, and measures how long there is no traffic.
func TestNetworkRoam(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			r := newReachLab(ctx, t, c.a, c.b)
			r.spare, r.hard = r.inet.Site("spare", nettest.NATEasy), r.inet.Site("hard", nettest.NATHard)
			if c.a != nettest.NATHard {
				r.nodes[0].run(ctx, "ping", "--until-direct", "laptop")
				r.nodes[1].run(ctx, "ping", "--until-direct", "desk")
			}
			done := r.transfer(ctx, t)
			c.do(ctx, r)
			start := time.Now()
			r.nodes[0].run(ctx, "ping", "-c", "1", "--wait", "30s", "laptop")
			t.Logf("%s: traffic again after %v", c.name, time.Since(start).Round(time.Millisecond))
			if err := <-done; err != nil {
				t.Errorf("transfer: %v", err)
			}
		})
	}
}

// transferSize is what goes through the tunnel while the network changes, in bytes.
const transferSize = 100 << 20

// transfer begins to send data from the second device to the first by a forwarded
// port, slowly enough that it is under way when the network changes.
func (r *reachLab) transfer(ctx context.Context, t *testing.T) <-chan error {
	t.Helper()
	var ln net.Listener
	var err error
	r.nodes[1].host.Do(func() { ln, err = net.Listen("tcp", "127.0.0.1:8099") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	sent := make(chan [32]byte, 1)
	first := make(chan struct{})
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if sum, ok := pour(conn); ok {
				sent <- sum
				return
			} // it only asked whether anybody listens
		}
	}()
	r.nodes[1].run(ctx, "allow", "desk", "8099")
	fwd := r.nodes[0].start("forward", "18099", "laptop:8099")
	t.Cleanup(fwd.Stop)
	fwd.Await(ctx, "is port 8099")
	var conn net.Conn
	r.nodes[0].host.Do(func() { conn, err = net.Dial("tcp", "127.0.0.1:18099") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	done := make(chan error, 1)
	go func() {
		sum := sha256.New()
		n, err := io.CopyN(sum, conn, 1<<20)
		close(first)
		if err == nil {
			var rest int64
			rest, err = io.Copy(sum, conn)
			n += rest
		}
		switch {
		case err != nil:
			done <- err
		case n != transferSize:
			done <- fmt.Errorf("%d bytes of %d", n, transferSize)
		case [32]byte(sum.Sum(nil)) != <-sent:
			done <- fmt.Errorf("other bytes arrived than were sent")
		default:
			done <- nil
		}
	}()
	select {
	case <-first:
	case <-ctx.Done():
		t.Fatal("the transfer does not begin")
	}
	return done
}

// pour writes transferSize bytes and returns their hash.
func pour(conn net.Conn) (hash [32]byte, ok bool) {
	defer conn.Close()
	sum, chunk := sha256.New(), make([]byte, 1<<20)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := range transferSize / len(chunk) {
		for j := range chunk {
			chunk[j] = byte(i + j*j)
		}
		sum.Write(chunk)
		if _, err := conn.Write(chunk); err != nil {
			return hash, false
		}
		<-tick.C
	}
	return [32]byte(sum.Sum(nil)), true
}
