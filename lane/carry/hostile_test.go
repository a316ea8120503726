package carry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestNeverAcks is a device that takes lanes and acknowledges nothing: what this side
// keeps for it is bounded, and it is served through the tunnel.
func TestNeverAcks(t *testing.T) {
	w := newWires(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	mine, theirs := w.pair()
	c := New(Config{Tunnel: mine, Go: func(f func()) error { wg.Go(f); return nil }})
	defer c.Abort()
	control, evil := w.pair()
	lane, evilLane := w.pair()
	defer theirs.Close()
	defer evil.Close()
	defer evilLane.Close()
	if err := errors.Join(c.Attach(control), c.Take(1, lane)); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _, _ = io.Copy(io.Discard, evilLane) })
	if err := c.SetWriteDeadline(time.Now().Add(stallAfter / 2)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > window+chunkSize {
		t.Errorf("wrote %d, %v", n, err)
	}
	c.mu.Lock()
	if held := c.held.size(); held > window+chunkSize {
		t.Errorf("%d bytes are held", held)
	}
	c.mu.Unlock()
	// It says back at last, to nothing: that much goes through the tunnel.
	seen := make(chan int, 1)
	wg.Go(func() {
		var b [Size]byte
		for {
			if _, err := io.ReadFull(evil, b[:]); err != nil {
				return
			}
			if m, err := parse(b); err == nil && m.kind == kindBack {
				back := message{kindBack, 1, 0}.encode()
				_, _ = evil.Write(back[:])
				got, _ := io.ReadFull(theirs, make([]byte, n))
				seen <- got
				return
			}
		}
	})
	select {
	case got := <-seen:
		if got != n {
			t.Errorf("the tunnel brought %d of %d", got, n)
		}
	case <-time.After(patience):
		t.Error("the lane is not left")
	}
}

// TestSwitchBeforeAnswer has the other device's switch overtake its answer on the lane: the
// program's Read waits for the lane, or goes on in the tunnel if there comes none.
func TestSwitchBeforeAnswer(t *testing.T) {
	for _, joined := range []bool{true, false} {
		w := newWires(t)
		var wg sync.WaitGroup
		mine, theirs := w.pair()
		control, evil := w.pair()
		lane, evilLane := w.pair()
		c := New(Config{Tunnel: mine, Dialer: true, Go: func(f func()) error { wg.Go(f); return nil }})
		if err := c.Attach(control); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		join, read := make(chan error, 1), make(chan string, 1)
		wg.Go(func() { join <- c.Join(ctx, lane) })
		if _, epoch, err := ReadLane(evilLane); err != nil || epoch != 1 {
			t.Fatal(epoch, err)
		}
		if _, err := evil.Write(encoded(message{kindSwitch, 1, 0})); err != nil {
			t.Fatal(err)
		}
		for {
			c.mu.Lock()
			come, changed := c.m.come, c.changed
			c.mu.Unlock()
			if come {
				break
			}
			if wait(changed, time.Now().Add(patience)) != nil {
				t.Fatal("the switch does not come")
			}
		}
		wg.Go(func() {
			b := make([]byte, 5)
			n, err := io.ReadFull(c, b)
			read <- fmt.Sprint(string(b[:n]), err)
		})
		from := evilLane
		if !joined {
			cancel()
			from = theirs
		} else if _, err := evilLane.Write([]byte{kindLane}); err != nil {
			t.Fatal(err)
		}
		if err := <-join; (err == nil) != joined {
			t.Errorf("joined %v: %v", joined, err)
		}
		if _, err := from.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if got := <-read; got != "hello<nil>" {
			t.Errorf("joined %v: read %s", joined, got)
		}
		cancel()
		c.Abort()
		for _, e := range []net.Conn{theirs, evil, evilLane} {
			e.Close()
		}
		wg.Wait()
	}
}

// TestCloseWriteDoesNotWait ends the stream while what the lane did not bring waits for
// the other device to read the tunnel.
func TestCloseWriteDoesNotWait(t *testing.T) {
	w := newWires(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	mine, theirs := net.Pipe() // takes nothing that is not read
	c := New(Config{Tunnel: mine, Go: func(f func()) error { wg.Go(f); return nil }})
	defer c.Abort()
	control, evil := w.pair()
	lane, evilLane := w.pair()
	for _, e := range []net.Conn{theirs, evil, evilLane} {
		defer e.Close()
	}
	if err := errors.Join(c.Attach(control), c.Take(1, lane)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := evil.Write(encoded(message{kindBack, 1, 0})); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil { // the rest waits
		t.Fatal(err)
	}
	if !c.OnLane() {
		t.Error("what is kept for the lane is not counted")
	}
	ended := make(chan error, 1)
	wg.Go(func() { ended <- c.CloseWrite() })
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("CloseWrite waits for the other device")
	}
	rest, err := io.ReadAll(io.LimitReader(theirs, 4))
	if err != nil || string(rest) != "ello" {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}

// TestCloseCannotWait closes where nothing can be started any more to deliver what is on the
// lane: the other side must not take what it got for the whole.
func TestCloseCannotWait(t *testing.T) {
	w := newWires(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	mine, theirs := w.pair()
	defer theirs.Close()
	closing := false
	c := New(Config{Tunnel: mine, Go: func(f func()) error {
		if closing {
			return net.ErrClosed
		}
		wg.Go(f)
		return nil
	}})
	control, evil := w.pair()
	lane, evilLane := w.pair()
	defer evil.Close()
	defer evilLane.Close()
	if err := errors.Join(c.Attach(control), c.Take(1, lane)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	closing = true
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the tunnel ends with %v", err)
	}
}

// TestCheats are claims that end the connection, rather than anything else.
func TestCheats(t *testing.T) {
	for name, say := range map[string][]byte{
		"ack of what was not sent": encoded(message{kindAck, 1, 1 << 40}),
		"another epoch":            encoded(message{kindSwitch, 9, 0}),
		"nonsense":                 []byte("GET / HTTP/1.1\r\n"),
		"two ends":                 append(encoded(message{kindEnd, 1, 5}), encoded(message{kindEnd, 1, 5})...),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWires(t)
			var wg sync.WaitGroup
			defer wg.Wait()
			mine, theirs := w.pair()
			c := New(Config{Tunnel: mine, Go: func(f func()) error { wg.Go(f); return nil }})
			defer c.Close()
			control, evil := w.pair()
			lane, evilLane := w.pair()
			for _, e := range []net.Conn{theirs, evil, evilLane} {
				defer e.Close()
			}
			if err := errors.Join(c.Attach(control), c.Take(1, lane)); err != nil {
				t.Fatal(err)
			}
			if _, err := evil.Write(say); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(patience)) // errs if it has ended already
			if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read %d, %v", n, err)
			}
		})
	}
	// Lanes that are not the next, or not asked for, are closed.
	c := newCouple(t)
	defer c.end()
	a, b := c.pair()
	defer b.Close()
	if err := c.far.Take(1, a); err == nil {
		t.Error("a lane without a control connection")
	}
	c.attach()
	for _, epoch := range []uint32{0, 2, 1 << 31} {
		a, b := c.pair()
		if err := c.far.Take(epoch, a); err == nil {
			t.Errorf("epoch %d", epoch)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("epoch %d is not closed: %v", epoch, err)
		}
		b.Close()
	}
}

func encoded(m message) []byte { b := m.encode(); return b[:] }
