package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/identity"
)

func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

// roundTrip sends a message to an echo server and checks what comes back.
func roundTrip(c net.Conn, message []byte) error {
	if _, err := c.Write(message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, message) {
		return errors.New("the echo differs")
	}
	return nil
}

func TestEcho(t *testing.T) {
	a, b := newPair(t)
	serve(t, b, 7, echo)
	c := dial(t, a, b.addr(7))
	if err := roundTrip(c, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, want := c.RemoteAddr().String(), b.addr(7).String(); got != want {
		t.Errorf("remote address %s, want %s", got, want)
	}
	for _, s := range []struct {
		name string
		of   *side
		peer *side
	}{{"a", a, b}, {"b", b, a}} {
		st, ok := s.of.Stats(s.peer.id.ID())
		if !ok || st.LastHandshake.IsZero() || st.RxBytes == 0 || st.TxBytes == 0 {
			t.Errorf("stats of %s: %+v, %v", s.name, st, ok)
		}
	}
}

func TestBothDirections(t *testing.T) {
	a, b := newPair(t)
	serve(t, a, 7, echo)
	serve(t, b, 7, echo)
	for _, c := range []net.Conn{dial(t, a, b.addr(7)), dial(t, b, a.addr(7))} {
		if err := roundTrip(c, []byte("hello")); err != nil {
			t.Error(err)
		}
	}
}

func TestBulk(t *testing.T) {
	const size = 32 << 20
	a, b := newPair(t)
	type result struct {
		sum [sha256.Size]byte
		n   int64
		err error
	}
	results := make(chan result, 1)
	serve(t, b, 9, func(c net.Conn) {
		defer c.Close()
		h := sha256.New()
		n, err := io.Copy(h, c)
		results <- result{[sha256.Size]byte(h.Sum(nil)), n, err}
	})
	c := dial(t, a, b.addr(9))
	h := sha256.New()
	source := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
	if _, err := io.Copy(c, io.TeeReader(source, h)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*tracked).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-results:
		if r.err != nil || r.n != size || r.sum != [sha256.Size]byte(h.Sum(nil)) {
			t.Fatalf("%d bytes of %d, same sum %v, error %v", r.n, size, r.sum == [sha256.Size]byte(h.Sum(nil)), r.err)
		}
	case <-patient(t).Done():
		t.Fatal("the end did not arrive")
	}
}

func TestManyStreams(t *testing.T) {
	const streams, size = 64, 100_000
	a, b := newPair(t)
	serve(t, b, 7, echo)
	errs := make([]error, streams)
	var wg sync.WaitGroup
	ctx := patient(t)
	for i := range streams {
		wg.Go(func() {
			c, err := a.DialContext(ctx, "tcp", b.addr(7))
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				errs[i] = err
				return
			}
			message := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(message)
			errs[i] = roundTrip(c, message)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestHalfClose(t *testing.T) {
	a, b := newPair(t)
	serve(t, b, 9, func(c net.Conn) {
		defer c.Close()
		request, err := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes, %v", len(request), err)
	})
	c := dial(t, a, b.addr(9))
	if _, err := c.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*tracked).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "5000 bytes, <nil>" {
		t.Fatalf("answer %q, %v", answer, err)
	}
}

func TestRefused(t *testing.T) {
	a, b := newPair(t)
	if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
		t.Fatal(err)
	}
	refuse := func(identity.DeviceID, uint16, func() (net.Conn, error)) bool { return false }
	for _, tc := range []struct {
		name     string
		fallback Fallback
	}{{"no fallback", nil}, {"fallback refuses", refuse}} {
		t.Run(tc.name, func(t *testing.T) {
			b.SetFallback(tc.fallback)
			start := time.Now()
			c, err := a.DialContext(patient(t), "tcp", b.addr(22))
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("error %v, want refused", err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("refused after %v", took)
			}
		})
	}
}

func TestFallback(t *testing.T) {
	a, b := newPair(t)
	type call struct {
		from identity.DeviceID
		port uint16
	}
	calls := make(chan call, 2)
	b.SetFallback(func(from identity.DeviceID, port uint16, accept func() (net.Conn, error)) bool {
		calls <- call{from, port}
		if port != 80 {
			return false
		}
		c, err := accept()
		if err != nil {
			t.Error(err)
			return true
		}
		go echo(c)
		return true
	})
	c := dial(t, a, b.addr(80))
	if err := roundTrip(c, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, want := <-calls, (call{a.id.ID(), 80}); got != want {
		t.Errorf("fallback asked for %v, want %v", got, want)
	}
	if _, err := a.DialContext(patient(t), "tcp", b.addr(81)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port 81: %v", err)
	}
	b.SetFallback(nil)
	if _, err := a.DialContext(patient(t), "tcp", b.addr(80)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without fallback: %v", err)
	}
}

// TestAddressesAfterReset asks for the addresses of a connection that the other side reset.
func TestAddressesAfterReset(t *testing.T) {
	a, b := newPair(t)
	ends := make(chan net.Conn)
	handle := func(c net.Conn) {
		_, _ = c.Write([]byte("here"))
		_, _ = io.Copy(io.Discard, c)
		ends <- c
	}
	serve(t, b, 7, handle)
	b.SetFallback(func(_ identity.DeviceID, _ uint16, accept func() (net.Conn, error)) bool {
		c, err := accept()
		if err == nil {
			handle(c)
			c.Close()
		}
		return true
	})
	for _, port := range []uint16{7, 8} {
		c := dial(t, a, b.addr(port)).(*tracked)
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		near, far := c.LocalAddr().String(), c.RemoteAddr().String()
		c.Abort()
		end := <-ends
		if end.RemoteAddr().String() != near || end.LocalAddr().String() != far || far != b.addr(port).String() {
			t.Errorf("port %d: %v and %v; at the other end %v and %v", port, near, far, end.LocalAddr(), end.RemoteAddr())
		}
		if got := c.RemoteAddr().String(); got != far {
			t.Errorf("port %d: after the end %v", port, got)
		}
	}
}

// TestShortConnections opens many connections that the other side ends first, which then
// remembers their ports for a while.
func TestShortConnections(t *testing.T) {
	a, b := newPair(t)
	b.SetFallback(func(_ identity.DeviceID, _ uint16, accept func() (net.Conn, error)) bool {
		c, err := accept()
		if err != nil {
			return true
		}
		_, _ = c.Write([]byte("once"))
		c.Close()
		return true
	})
	for i := range 3000 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := a.DialContext(ctx, "tcp", b.addr(80))
		cancel()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if text, err := io.ReadAll(c); err != nil || string(text) != "once" {
			t.Fatalf("got %q, %v", text, err)
		}
		c.Close()
	}
}

func TestListenGoesBeforeFallback(t *testing.T) {
	a, b := newPair(t)
	b.SetFallback(func(identity.DeviceID, uint16, func() (net.Conn, error)) bool {
		t.Error("fallback asked for a port that is listened on")
		return false
	})
	serve(t, b, 7, echo)
	if err := roundTrip(dial(t, a, b.addr(7)), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if ln, err := b.Listen("tcp", 7); err == nil {
		ln.Close()
		t.Error("the same port twice")
	}
}

func TestWrongArguments(t *testing.T) {
	a, b := newPair(t)
	other, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	unknown := other.ID()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var network net.UnknownNetworkError
	for _, tc := range []struct {
		name string
		call func() error
		is   error
	}{
		{"dial stranger", func() error {
			_, err := a.DialContext(t.Context(), "tcp", netip.AddrPortFrom(unknown.Addr(), 1))
			return err
		}, ErrPeer},
		{"dial outside", func() error {
			_, err := a.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("192.0.2.1:1"))
			return err
		}, ErrPeer},
		{"dial ended", func() error { _, err := a.DialContext(ended, "tcp", b.addr(1)); return err }, context.Canceled},
		{"ping stranger", func() error { _, err := a.Ping(t.Context(), unknown.Addr()); return err }, ErrPeer},
		{"ping ended", func() error { _, err := a.Ping(ended, b.id.ID().Addr()); return err }, context.Canceled},
		{"psk of stranger", func() error { return a.SetPSK(unknown, [32]byte{}) }, ErrPeer},
		{"handshake with stranger", func() error { return a.Handshake(unknown) }, ErrPeer},
		{"own key", func() error {
			return a.AddPeer(Peer{ID: unknown, WireGuard: a.id.WireGuardPublic(), Endpoint: peerOf(t, b, 1).Endpoint})
		}, ErrPeer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(); !errors.Is(err, tc.is) {
				t.Errorf("error %v, want %v", err, tc.is)
			}
		})
	}
	if _, err := a.DialContext(t.Context(), "udp", b.addr(1)); !errors.As(err, &network) {
		t.Errorf("dial udp: %v", err)
	}
	if _, err := a.Listen("udp", 1); !errors.As(err, &network) {
		t.Errorf("listen udp: %v", err)
	}
	if _, ok := a.Stats(unknown); ok {
		t.Error("stats of a stranger")
	}
	a.RemovePeer(unknown) // nothing to do
}

func TestPing(t *testing.T) {
	a, b := newPair(t)
	for range 3 {
		d, err := a.Ping(patient(t), b.id.ID().Addr())
		if err != nil || d <= 0 || d > patience {
			t.Fatalf("%v, %v", d, err)
		}
	}
}

func TestHandshake(t *testing.T) {
	a, b := newPair(t)
	if err := a.Handshake(b.id.ID()); err != nil {
		t.Fatal(err)
	}
	// The handshake is complete once something has come through.
	if _, err := b.Ping(patient(t), a.id.ID().Addr()); err != nil {
		t.Fatal(err)
	}
	if st, _ := a.Stats(b.id.ID()); st.LastHandshake.IsZero() {
		t.Error("no handshake")
	}
}

func TestOtherPSK(t *testing.T) {
	a, b := newSide(t, newBind()), newSide(t, newBind())
	addPeer(t, a, peerOf(t, b, 1))
	addPeer(t, b, peerOf(t, a, 2))
	if _, err := a.Ping(impatient(t), b.id.ID().Addr()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ping in spite of another preshared key: %v", err)
	}
	if st, ok := a.Stats(b.id.ID()); !ok || !st.LastHandshake.IsZero() {
		t.Fatalf("handshake in spite of another preshared key: %+v, %v", st, ok)
	}
}

func TestSetPSK(t *testing.T) {
	a, b := newSide(t, newBind()), newSide(t, newBind())
	addPeer(t, a, peerOf(t, b, 1))
	addPeer(t, b, peerOf(t, a, 2))
	if err := a.SetPSK(b.id.ID(), [32]byte{2}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
		t.Fatalf("with the same key: %v", err)
	}
	// A new key leaves the session alone.
	for _, s := range []struct{ of, peer *side }{{a, b}, {b, a}} {
		if err := s.of.SetPSK(s.peer.id.ID(), [32]byte{3}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
		t.Fatalf("after another SetPSK: %v", err)
	}
}

func TestRemovePeer(t *testing.T) {
	a, b := newPair(t)
	serve(t, b, 7, echo)
	c := dial(t, a, b.addr(7))
	if err := roundTrip(c, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	a.RemovePeer(b.id.ID())
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a byte from a removed peer")
		}
	case <-patient(t).Done():
		t.Fatal("the connection outlives its peer")
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a removed peer can be written to")
	}
	if _, err := a.DialContext(t.Context(), "tcp", b.addr(7)); !errors.Is(err, ErrPeer) {
		t.Errorf("dial: %v", err)
	}
	if _, ok := a.Peer(b.id.ID().Addr()); ok {
		t.Error("the address is still known")
	}
	if _, err := b.Ping(impatient(t), a.id.ID().Addr()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping from a removed peer: %v", err)
	}
	addPeer(t, a, peerOf(t, b, 1))
	if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
		t.Errorf("added again: %v", err)
	}
}

func TestStranger(t *testing.T) {
	a, b := newPair(t)
	stranger := newSide(t, newBind())
	addPeer(t, stranger, peerOf(t, b, 1))
	if _, err := stranger.Ping(impatient(t), b.id.ID().Addr()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ping by a stranger: %v", err)
	}
	if st, _ := stranger.Stats(b.id.ID()); !st.LastHandshake.IsZero() || st.RxBytes != 0 {
		t.Errorf("a stranger was answered: %+v", st)
	}
	if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
		t.Errorf("a friend afterwards: %v", err)
	}
}

func TestForeignAddress(t *testing.T) {
	a, b := newSide(t, newBind()), newSide(t, newBind())
	other, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	// b may talk as other, and talks as itself.
	p := peerOf(t, b, 1)
	p.ID = other.ID()
	addPeer(t, a, p)
	addPeer(t, b, peerOf(t, a, 1))
	if _, err := b.Ping(impatient(t), a.id.ID().Addr()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ping from an address that is not the peer's: %v", err)
	}
	if st, _ := a.Stats(other.ID()); st.LastHandshake.IsZero() {
		t.Error("no handshake: the address was never looked at")
	}
}

func TestClose(t *testing.T) {
	options := goleak.IgnoreCurrent()
	for range 3 {
		t.Run("", func(t *testing.T) {
			a, b := newPair(t)
			serve(t, b, 7, echo)
			c := dial(t, a, b.addr(7))
			if err := roundTrip(c, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := c.Read(make([]byte, 1))
				ended <- err
			}()
			for range 2 {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}
			select {
			case err := <-ended:
				if err == nil {
					t.Error("a byte from a closed tunnel")
				}
			case <-patient(t).Done():
				t.Fatal("the connection outlives its tunnel")
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	goleak.VerifyNone(t, options)
}

func TestNewErrs(t *testing.T) {
	options := goleak.IgnoreCurrent()
	first := newSide(t, newBind())
	id, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if tun, err := New(Config{Identity: id, Bind: newBind(), Port: uint16(first.bind.port.Load())}); err == nil {
		tun.Close()
		t.Error("two tunnels on one UDP port")
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, options)
}

// TestHandshakeOfGone: a connection whose handshake is not over ends with its peer, and
// with the tunnel, and keeps nobody waiting.
func TestHandshakeOfGone(t *testing.T) {
	for name, end := range map[string]func(a, b *side) error{
		"peer removed": func(a, b *side) error { b.RemovePeer(a.id.ID()); return nil },
		"closed":       func(_, b *side) error { return b.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			bind := newBind()
			bind.lose = typeTransport
			a, b := newSide(t, newBind()), newSide(t, bind)
			introduce(t, a, b)
			if _, err := a.Ping(patient(t), b.id.ID().Addr()); err != nil {
				t.Fatal(err)
			}
			taken := make(chan struct{})
			accepted := make(chan error, 1)
			b.SetFallback(func(_ identity.DeviceID, _ uint16, accept func() (net.Conn, error)) bool {
				bind.losses.Store(math.MaxInt32) // no answer to the first packet arrives
				go func() {
					close(taken)
					_, err := accept()
					accepted <- err
				}()
				return true
			})
			ctx, cancel := context.WithCancel(t.Context())
			dialed := make(chan struct{})
			go func() {
				defer close(dialed)
				_, _ = a.DialContext(ctx, "tcp", b.addr(80))
			}()
			<-taken
			if err := end(a, b); err != nil {
				t.Error(err)
			}
			select {
			case err := <-accepted:
				if err == nil {
					t.Error("accepted from a peer that has gone")
				}
			case <-patient(t).Done():
				t.Error("accept still waits")
			}
			cancel()
			<-dialed
		})
	}
}
