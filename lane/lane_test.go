package lane

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestLoopback(t *testing.T) {
	w := newWorld()
	a := w.device(t, 1, real, "127.0.0.1")
	b := w.device(t, 2, real, "127.0.0.1", "::1")
	for range 3 {
		near, err := a.Open(t.Context(), b.id, "files")
		if err != nil {
			t.Fatal(err)
		}
		far := <-b.got
		if near.Peer() != b.id || far.Peer() != a.id || far.Kind() != "files" || near.Kind() != "files" || !near.Dialed() || far.Dialed() {
			t.Errorf("a lane from %v to %v for %q", far.Peer(), near.Peer(), far.Kind())
		}
		if near.LocalAddr().String() != far.RemoteAddr().String() || near.RemoteAddr().String() != far.LocalAddr().String() {
			t.Errorf("%v-%v and %v-%v", near.LocalAddr(), near.RemoteAddr(), far.LocalAddr(), far.RemoteAddr())
		}
		echo(t, near, far)
		near.Close()
		far.Close()
	}
	if a.Lanes() != 0 || b.Lanes() != 0 {
		t.Errorf("%d and %d lanes stay", a.Lanes(), b.Lanes())
	}
}

// TestEitherDirection holds that one side whose listener can be reached is enough.
func TestEitherDirection(t *testing.T) {
	for name, closed := range map[string]byte{"asker": 1, "asked": 2} {
		t.Run(name+" is behind a firewall", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				a := w.device(t, 1, nil, "192.168.7.1")
				b := w.device(t, 2, nil, "192.168.7.2", "10.9.9.9")
				w.hole = func(_ *device, to netip.AddrPort) bool { return to.Addr() == netip.AddrFrom4([4]byte{192, 168, 7, closed}) || to.Addr().Is4() && to.Addr().As4()[0] == 10 }
				start := time.Now()
				near, err := a.Open(t.Context(), b.id, "files")
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > dialBack {
					t.Errorf("%v", took)
				}
				far := <-b.got
				if near.Dialed() != (closed == 1) || far.Dialed() == near.Dialed() {
					t.Errorf("dialed by the asker: %v, by the asked: %v", near.Dialed(), far.Dialed())
				}
				echo(t, near, far)
				near.Close()
				far.Close()
			})
		})
	}
}

func TestNoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2", "10.9.9.9")
		w.hole = func(_ *device, to netip.AddrPort) bool { return to.Addr().As4()[0] == 192 || to.Addr().As4()[0] == 10 }
		start := time.Now()
		_, err := a.Open(t.Context(), b.id, "files")
		var no *NoLaneError
		if !errors.Is(err, ErrNoLane) || !errors.As(err, &no) || no.Cached || len(no.Tries) != 3 {
			t.Fatalf("got %v", err)
		}
		t.Log(err, time.Since(start))
	})
}

var _ = net.ErrClosed
