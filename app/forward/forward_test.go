package forward

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func portOf(ln net.Listener) uint16 { return uint16(ln.Addr().(*net.TCPAddr).Port) }

// refusedAt connects, and returns why that, or the first read, failed: a reset can come
// before the dial is done.
func refusedAt(t *testing.T, address string) error {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err = c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection stays open")
	}
	return err
}

// echo answers every connection with what it sends, and then with its end.
func echo(t *testing.T) net.Listener {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln
}

func TestServeCarriesBothWaysWithHalfClose(t *testing.T) {
	far := echo(t)
	near := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, near, func(ctx context.Context) (net.Conn, error) { return DialLocal(ctx, portOf(far)) }, nil)
	}()
	want := make([]byte, 3<<20)
	if _, err := rand.Read(want); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			c, err := net.Dial("tcp", near.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			go func() {
				_, _ = c.Write(want)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d came back, %v", len(got), len(want), err)
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestServeReportsWhatCannotBeReached(t *testing.T) {
	near := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	served := make(chan error, 1)
	down := errors.New("no way there")
	go func() {
		served <- Serve(ctx, near, func(context.Context) (net.Conn, error) { return nil, down }, func(err error) { failed <- err })
	}()
	if err := refusedAt(t, near.Addr().String()); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v, want a reset: an end would look like an empty answer", err)
	}
	if err := <-failed; !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestRights(t *testing.T) {
	open := echo(t)
	closed := listen(t)
	closedPort := portOf(closed)
	closed.Close()
	ln := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ServeRightsFor(ctx, ln, func(from netip.Addr, protocol Protocol, port uint16) bool {
			return from.IsLoopback() && (protocol == TCP && (port == portOf(open) || port == closedPort) || protocol == UDP && port == 5353)
		})
	}()
	ask := func(port uint16) error {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return Ask(c, port)
	}
	if err := ask(portOf(open)); err != nil {
		t.Errorf("an allowed port: %v", err)
	}
	if err := ask(closedPort); !errors.Is(err, ErrClosed) {
		t.Errorf("an allowed port without a listener: %v", err)
	}
	if err := ask(1); !errors.Is(err, ErrDenied) {
		t.Errorf("a port that is not allowed: %v", err)
	}
	udp := func(port uint16) error {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return AskFor(c, UDP, port)
	}
	if err := udp(5353); err != nil {
		t.Errorf("an allowed port of UDP: %v", err)
	}
	if err := udp(portOf(open)); !errors.Is(err, ErrDenied) {
		t.Errorf("a port that is allowed for TCP alone: %v", err)
	}
	for _, junk := range []string{"\n", "hello\n", "99999\n", "-1\n", "80/sctp\n", "/udp\n", "80/udp/udp\n", "1234567890123456789012345678901234567890"} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(junk))
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, _ := c.Read(make([]byte, 16)); n != 0 {
			t.Errorf("%q was answered", junk)
		}
		c.Close()
	}
	cancel()
	ln.Close()
	<-done
}

func TestSpliceEndsWithItsContext(t *testing.T) {
	a, b := net.Pipe()
	c, d := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); Splice(ctx, b, c) }()
	cancel()
	<-done
	for _, conn := range []net.Conn{a, d} {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a connection stays open")
		}
	}
}

func FuzzParseAsk(f *testing.F) {
	for _, line := range []string{"80\n", "53/udp\n", "65536\n", "/udp", "80/tcp", " 80 \n", "+1", "\x00"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		protocol, port, err := parseAsk(line)
		if err != nil {
			return
		}
		if protocol != TCP && protocol != UDP {
			t.Fatalf("%q is of %q", line, protocol)
		}
		text := strconv.Itoa(int(port))
		if protocol == UDP {
			text += "/udp"
		}
		if p, n, err := parseAsk(text + "\n"); p != protocol || n != port || err != nil {
			t.Fatalf("%q is %s %d, and written again %s %d, %v", line, protocol, port, p, n, err)
		}
	})
}
