package lane

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/identity"
)

func mustOpen(t *testing.T, from, to *device, kind string) (near, far *Conn) {
	t.Helper()
	near, err := from.Open(t.Context(), to.id, kind)
	if err != nil {
		t.Fatal(err)
	}
	return near, <-to.got
}

func TestLoopback(t *testing.T) {
	w := newWorld()
	a := w.device(t, 1, kernel, "127.0.0.1")
	b := w.device(t, 2, kernel, "127.0.0.1", "::1")
	for range 3 {
		near, far := mustOpen(t, a, b, "files")
		if near.Peer() != b.id || far.Peer() != a.id || far.Kind() != "files" || near.Kind() != "files" || near.Dialed() == far.Dialed() {
			t.Errorf("a lane from %v to %v for %q", far.Peer(), near.Peer(), far.Kind())
		}
		if near.LocalAddr().String() != far.RemoteAddr().String() || near.RemoteAddr().String() != far.LocalAddr().String() {
			t.Errorf("%v-%v and %v-%v", near.LocalAddr(), near.RemoteAddr(), far.LocalAddr(), far.RemoteAddr())
		}
		for _, c := range []*Conn{near, far} {
			if s := c.t.ConnectionState(); s.CurveID != tls.X25519MLKEM768 || s.Version != tls.VersionTLS13 || c.CipherSuite() == "" {
				t.Errorf("%v %v %q", s.Version, s.CurveID, c.CipherSuite())
			}
		}
		echo(t, near, far)
		near.Close()
		far.Close()
	}
	if a.Lanes() != 0 || b.Lanes() != 0 {
		t.Errorf("%d and %d lanes stay", a.Lanes(), b.Lanes())
	}
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld()
	a := w.device(t, 1, kernel, "127.0.0.1")
	b := w.device(t, 2, kernel, "127.0.0.1")
	var wg sync.WaitGroup
	for i := range 40 {
		from, to := a, b
		if i%2 == 0 {
			from, to = b, a
		}
		wg.Go(func() {
			c, err := from.Open(t.Context(), to.id, "x")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte{byte(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := make([]bool, 40)
	for i := range 40 {
		from := a
		if i%2 == 0 {
			from = b
		}
		c := <-from.got
		var one [1]byte
		if _, err := io.ReadFull(c, one[:]); err != nil || seen[one[0]] {
			t.Errorf("%d: %v", one[0], err)
		}
		seen[one[0]] = true
		c.Close()
	}
}

// at returns a hole for addresses.
func at(addrs ...string) func(*device, netip.AddrPort) bool {
	return func(_ *device, to netip.AddrPort) bool { return slices.Contains(addrs, to.Addr().String()) }
}

// TestEitherDirection holds that one side whose listener can be reached is enough,
// and TestBlackHoles that endpoints which do not answer delay nothing.
func TestEitherDirection(t *testing.T) {
	for name, closed := range map[string]string{"asker": "192.168.7.1", "asked": "192.168.7.2"} {
		t.Run(name+" is behind a firewall", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				a := w.device(t, 1, nil, "192.168.7.1")
				b := w.device(t, 2, nil, "192.168.7.2")
				w.setHole(at(closed))
				start := time.Now()
				near, far := mustOpen(t, a, b, "files")
				if took := time.Since(start); took > dialBack {
					t.Errorf("it took %v", took)
				}
				if near.Dialed() != (name == "asker") || far.Dialed() == near.Dialed() {
					t.Errorf("dialed by the asker: %v, by the asked: %v", near.Dialed(), far.Dialed())
				}
				echo(t, near, far)
				near.Close()
				far.Close()
			})
		})
	}
}

func TestBlackHoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.21", "192.168.7.22", "192.168.7.23", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::1")
		w.setHole(func(_ *device, to netip.AddrPort) bool { return to.Addr().String() != "2001:db8::1" })
		start := time.Now()
		near, far := mustOpen(t, a, b, "files")
		if took := time.Since(start); took != 7*stagger || took > 300*time.Millisecond {
			t.Errorf("the last of eight endpoints took %v", took)
		}
		near.Close()
		far.Close()
	})
}

func TestNoLaneIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2", "10.9.9.9")
		w.setHole(at("192.168.7.1", "192.168.7.2", "10.9.9.9"))
		open := func(cached bool) {
			t.Helper()
			start, before := time.Now(), a.dialed()
			_, err := a.Open(t.Context(), b.id, "files")
			var no *NoLaneError
			if !errors.Is(err, ErrNoLane) || !errors.As(err, &no) || no.Cached != cached || no.Peer != b.id {
				t.Fatalf("got %v", err)
			}
			want := []Try{
				{To: netip.AddrPortFrom(b.addrs[0], no.Tries[0].To.Port()), Reason: ReasonTimeout},
				{To: netip.AddrPortFrom(b.addrs[1], no.Tries[0].To.Port()), Reason: ReasonTimeout},
			}
			if len(no.Tries) != 3 || !slices.Equal(no.Tries[:2], want) || !no.Tries[2].Theirs || no.Tries[2].Reason != ReasonTimeout {
				t.Errorf("tried %v", no.Tries)
			}
			if cached && (time.Since(start) != 0 || a.dialed() != before) {
				t.Errorf("a remembered failure took %v and %d dials", time.Since(start), a.dialed()-before)
			}
			if !cached && time.Since(start) > raceTime {
				t.Errorf("it took %v", time.Since(start))
			}
		}
		open(false)
		open(true)
		time.Sleep(firstNoLaneFor)
		open(false)
		time.Sleep(noLaneFor - time.Second)
		open(true)
		time.Sleep(time.Second)
		open(false)
		a.Forget(identity.DeviceID{9})
		open(true)
		a.Forget(b.id)
		open(false)
		a.ForgetAll()
		w.setHole(at())
		near, far := mustOpen(t, a, b, "files")
		near.Close()
		far.Close()
	})
}

func TestRefusedEverywhereIsKnownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		a.addrs, b.addrs = []netip.Addr{netip.MustParseAddr("10.1.1.1")}, []netip.Addr{netip.MustParseAddr("10.1.1.2")}
		gone := func(d *device, cfg *Config) {
			cfg.Addrs = func() []netip.Addr { return []netip.Addr{netip.AddrFrom4([4]byte{10, 2, 2, d.id[0]})} }
		}
		c := w.device(t, 3, gone, "192.168.7.3")
		d := w.device(t, 4, gone, "192.168.7.4")
		start := time.Now()
		_, err := c.Open(t.Context(), d.id, "files")
		var no *NoLaneError
		if !errors.As(err, &no) || len(no.Tries) != 2 || no.Tries[0].Reason != ReasonRefused || no.Tries[1].Reason != ReasonRefused || !no.Tries[1].Theirs {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != dialBack {
			t.Errorf("it took %v", took)
		}
	})
}

func TestWithoutAnyService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		_, err := a.Open(t.Context(), identity.DeviceID{2}, "files") // an older kith refuses the port
		if !errors.Is(err, ErrNoLane) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
		for _, kind := range []string{"", "a b", "a\n", "ä", string(make([]byte, MaxKind+1))} {
			if _, err := a.Open(t.Context(), identity.DeviceID{2}, kind); !errors.Is(err, ErrKind) {
				t.Errorf("%q: %v", kind, err)
			}
		}
		noPort := func(_ *device, cfg *Config) {
			cfg.ListenTCP = func(context.Context) (net.Listener, error) { return nil, syscall.EMFILE }
		}
		b := w.device(t, 3, noPort, "192.168.7.3")
		c := w.device(t, 4, noPort, "192.168.7.4")
		if _, err := b.Open(t.Context(), c.id, "files"); !errors.Is(err, ErrNoLane) {
			t.Errorf("without any listener: %v", err)
		}
		for from, to := range map[*device]*device{a: b, c: a} { // one is enough
			near, far := mustOpen(t, from, to, "files")
			near.Close()
			far.Close()
		}
	})
}

func TestRights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		b.deny("forward:22")
		if _, err := a.Open(t.Context(), b.id, "forward:22"); !errors.Is(err, ErrRefused) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if len(a.told()) != 1 || len(b.told()) != 0 || a.dialed() != 0 || b.dialed() != 0 {
			t.Errorf("a refused kind opened ports %v and dialed %d times", b.told(), b.dialed())
		}
		// Withdrawn between the ask and the choice: b's dial waits for dialBack, a's vanishes.
		w.setHole(at("192.168.7.2"))
		var once sync.Once
		w.touch = func(_ *device, c net.Conn) net.Conn { once.Do(func() { b.deny("files") }); return c }
		if _, err := a.Open(t.Context(), b.id, "files"); !errors.Is(err, ErrNoLane) {
			t.Errorf("got %v", err)
		}
		if len(b.got) != 0 || a.Lanes()+b.Lanes() != 0 {
			t.Error("there is a lane")
		}
	})
}

func TestCloseOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		c := w.device(t, 3, nil, "192.168.7.3")
		ab, ba := mustOpen(t, a, b, "files")
		ab2, ba2 := mustOpen(t, a, b, "forward:80")
		ac, ca := mustOpen(t, a, c, "files")

		b.CloseOf(a.id, "forward:80")
		if _, err := ab2.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("read %v from a lane that was cut", err)
		}
		if _, err := ba2.Write(make([]byte, 1)); err == nil {
			t.Error("a lane that was cut can be written to")
		}
		if b.Lanes() != 1 {
			t.Errorf("%d lanes are left", b.Lanes())
		}
		b.mu.Lock()
		b.strange = true // unpaired
		b.mu.Unlock()
		b.CloseOf(a.id)
		if _, err := ab.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("read %v from a lane that was cut", err)
		}
		if _, err := a.Open(t.Context(), b.id, "files"); !errors.Is(err, ErrNoLane) {
			t.Errorf("got %v", err)
		}
		// In the making on either side.
		a.ForgetAll()
		w.setHole(at("192.168.7.1", "192.168.7.3"))
		result := make(chan error)
		go func() {
			_, err := a.Open(t.Context(), c.id, "more")
			result <- err
		}()
		time.Sleep(time.Second)
		if a.makings() != 1 || c.makings() != 1 {
			t.Fatal("nothing is in the making")
		}
		c.CloseOf(a.id, "more")
		synctest.Wait()
		if c.makings() != 0 {
			t.Error("the asked side goes on")
		}
		a.CloseOf(c.id, "more")
		if err := <-result; !errors.Is(err, ErrWithdrawn) || errors.Is(err, ErrNoLane) {
			t.Errorf("got %v", err)
		}
		echo(t, ac, ca) // another device, another kind
		for _, c := range []*Conn{ab, ba, ab2, ba2, ac, ca} {
			c.Close()
		}
	})
}

func (s *Service) makings() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.making)
}

func TestContextAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		w.setHole(at("192.168.7.1", "192.168.7.2"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Open(ctx, b.id, "x"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoLane) {
			t.Errorf("got %v", err)
		}
		w.setHole(at())
		near, far := mustOpen(t, a, b, "x") // a cancelled Open says nothing about the path
		w.setHole(at("192.168.7.1", "192.168.7.2"))
		result := make(chan error)
		go func() {
			_, err := a.Open(t.Context(), b.id, "x")
			result <- err
		}()
		time.Sleep(time.Second)
		start := time.Now()
		a.Close()
		if err := <-result; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := a.Open(t.Context(), b.id, "x"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Error("a lane outlives its service")
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("closing took %v", took)
		}
		near.Close()
		far.Close()
	})
}

// TestListenerClosesWhenIdle holds that a device that wants no lane listens nowhere.
func TestListenerClosesWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.device(t, 1, nil, "192.168.7.1")
		b := w.device(t, 2, nil, "192.168.7.2")
		if a.socket() != nil || b.socket() != nil {
			t.Fatal("a new service listens")
		}
		near, far := mustOpen(t, a, b, "x")
		time.Sleep(doorIdle - time.Second)
		again, far2 := mustOpen(t, a, b, "x") // through the same door
		time.Sleep(doorIdle - time.Second)
		if len(b.told()) != 1 || b.socket() == nil {
			t.Errorf("listened on %v", b.told())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for _, d := range []*device{a, b} {
			if d.socket() != nil || len(d.told()) != 2 || d.told()[1] != 0 {
				t.Errorf("two minutes later it listens on %v", d.told())
			}
		}
		echo(t, near, far) // lanes stay
		third, far3 := mustOpen(t, a, b, "x")
		if len(b.told()) != 3 {
			t.Errorf("listened on %v", b.told())
		}
		for _, c := range []*Conn{near, far, again, far2, third, far3} {
			c.Close()
		}
	})
}

// TestCutIsNoEnd holds that a connection that ends without TLS's farewell errs.
func TestCutIsNoEnd(t *testing.T) {
	w := newWorld()
	a := w.device(t, 1, kernel, "127.0.0.1")
	b := w.device(t, 2, kernel, "127.0.0.1")
	near, far := mustOpen(t, a, b, "x")
	if _, err := near.Write([]byte("half of it")); err != nil {
		t.Fatal(err)
	}
	near.base.Close()
	got, err := io.ReadAll(far)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got, []byte("half of it")) {
		t.Errorf("read %q, %v", got, err)
	}
	near.Close()
	far.Close()
}

// TestDeadlineEndsWriting holds that nothing follows a record of which a part is lost.
func TestDeadlineEndsWriting(t *testing.T) {
	w := newWorld()
	a := w.device(t, 1, kernel, "127.0.0.1")
	b := w.device(t, 2, kernel, "127.0.0.1")
	near, far := mustOpen(t, a, b, "x")
	if err := near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 64<<20) // more than the kernel keeps
	if _, err := near.Write(big); err == nil {
		t.Fatal("nobody reads, and yet all was written")
	}
	if err := near.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, recordSize + 1} {
		if _, err := near.Write(big[:n]); err == nil {
			t.Errorf("%d bytes were written after a broken record", n)
		}
	}
	near.Close()
	far.Close()
}
