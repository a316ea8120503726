package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A note is a connection that notes its end.
type note struct{ closed atomic.Bool }

func (n *note) Close() error {
	n.closed.Store(true)
	return nil
}

func always() bool { return true }

func TestLive(t *testing.T) {
	l := NewLive[string](3)
	conns := map[Key[string]]*note{
		{"laptop", TCP, 80}: {}, {"laptop", UDP, 80}: {}, {"laptop", TCP, 22}: {}, {"phone", TCP, 80}: {},
	}
	done := map[Key[string]]func(){}
	for key, c := range conns {
		var err error
		if done[key], err = l.Add(key, c, always); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Add(Key[string]{"laptop", TCP, 81}, &note{}, always); !errors.Is(err, ErrTooMany) {
		t.Errorf("a fourth connection: %v", err)
	}
	if _, err := l.Add(Key[string]{"phone", TCP, 81}, &note{}, func() bool { return false }); !errors.Is(err, ErrDenied) {
		t.Errorf("what is not allowed: %v", err)
	}
	if n := l.CloseWhere(func(k Key[string]) bool { return k == Key[string]{"laptop", TCP, 80} }); n != 1 {
		t.Errorf("%d were closed, want 1", n)
	}
	for key, c := range conns {
		if got, want := c.closed.Load(), key == (Key[string]{"laptop", TCP, 80}); got != want {
			t.Errorf("%v closed: %v, want %v", key, got, want)
		}
	}
	if n := l.CloseWhere(func(k Key[string]) bool { return k.Device == "laptop" }); n != 3 {
		t.Errorf("%d were closed, want 3 (one was before, and has not said done)", n)
	}
	for _, f := range done {
		f()
		f() // once is enough
	}
	all := func(Key[string]) bool { return true }
	if n := l.Count(all); n != 0 || len(l.open) != 0 || len(l.devices) != 0 {
		t.Errorf("%d remain, %v, %v", n, l.open, l.devices)
	}
}

// TestLiveLetsNothingThrough adds connections while their right is withdrawn: each
// must be refused or closed.
func TestLiveLetsNothingThrough(t *testing.T) {
	for range 300 {
		l := NewLive[int](0)
		var allowed atomic.Bool
		allowed.Store(true)
		notes := make([]note, 8)
		refused := make([]bool, len(notes))
		var wg sync.WaitGroup
		for i := range notes {
			wg.Go(func() {
				for range rand.IntN(20) {
					runtime.Gosched()
				}
				_, err := l.Add(Key[int]{1, TCP, 80}, &notes[i], allowed.Load)
				refused[i] = err != nil
			})
		}
		allowed.Store(false)
		l.CloseWhere(func(Key[int]) bool { return true })
		wg.Wait()
		for i := range notes {
			if !refused[i] && !notes[i].closed.Load() {
				t.Fatal("a connection without a right is open")
			}
		}
	}
}

// TestWithdrawnWhileItRuns takes the right away from a download.
func TestWithdrawnWhileItRuns(t *testing.T) {
	endless := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := endless.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for block := make([]byte, 1<<20); err == nil; {
					_, err = c.Write(block)
				}
			})
		}
	})
	t.Cleanup(func() { endless.Close(); wg.Wait() })
	near := listen(t)
	live := NewLive[string](0)
	var allowed atomic.Bool
	allowed.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- ServeTCP(ctx, near, func(ctx context.Context) (net.Conn, error) { return DialLocal(ctx, portOf(endless)) }, Options{
			Admit: func(_ net.Addr, c io.Closer) (func(), error) {
				return live.Add(Key[string]{"laptop", TCP, 80}, c, allowed.Load)
			},
		})
	}()
	c := dialTCP(t, near.Addr().String())
	if _, err := io.CopyN(io.Discard, c, 20<<20); err != nil { // the kernel carries it by now
		t.Fatal(err)
	}
	allowed.Store(false)
	start := time.Now()
	live.CloseWhere(func(k Key[string]) bool { return k.Port == 80 })
	n, err := io.Copy(io.Discard, c)
	if err == nil {
		t.Errorf("a stream that was cut after %d bytes more looks as if it had ended", n)
	}
	t.Logf("cut after %d bytes and %v", n, time.Since(start))
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestResetStaysReset holds that a stream that breaks does not look complete, however
// long it was.
func TestResetStaysReset(t *testing.T) {
	for name, size := range map[string]int{"short": 10, "long": 3 * bulkAfter} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			near, nearEnd := connect(t, ln)
			far, farEnd := connect(t, ln)
			done := make(chan struct{})
			go func() { defer close(done); Splice(t.Context(), nearEnd, farEnd) }()
			go func() { _, _ = far.Write(make([]byte, size)) }()
			if _, err := io.CopyN(io.Discard, near, int64(size)); err != nil {
				t.Fatal(err)
			}
			Abort(far)
			if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("got %v, want a reset", err)
			}
			<-done
		})
	}
}

// TestLastWordsArrive lets a server answer an upload that it does not read.
func TestLastWordsArrive(t *testing.T) {
	near, nearEnd := net.Pipe()
	farEnd, far := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); Splice(t.Context(), nearEnd, &deaf{Conn: farEnd}) }()
	go func() { _, _ = far.Write([]byte("too large")); far.Close() }()
	go func() { _, _ = near.Write([]byte("upload")) }()
	got, err := io.ReadAll(near)
	if string(got) != "too large" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	<-done
}

// deaf is a connection that takes nothing.
type deaf struct{ net.Conn }

func (deaf) Write([]byte) (int, error) { return 0, errors.New("deaf") }

// connect returns both ends of a connection.
func connect(t *testing.T, ln net.Listener) (dialed, accepted net.Conn) {
	t.Helper()
	dialed = dialTCP(t, ln.Addr().String())
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return dialed, accepted
}

// TestSpliceCarriesEverything sends sizes around those of the buffers, and counts.
func TestSpliceCarriesEverything(t *testing.T) {
	ln := listen(t)
	for _, wrap := range []func(net.Conn) net.Conn{func(c net.Conn) net.Conn { return c }, func(c net.Conn) net.Conn { return plainConn{c} }} {
		for _, size := range []int{0, 1, smallBuffer - 1, smallBuffer, smallBuffer + 1, largeBuffer, largeBuffer + smallBuffer, bulkAfter + 1, 2*bulkStep + bulkAfter} {
			near, nearEnd := connect(t, ln)
			far, farEnd := connect(t, ln)
			var counters Counters
			done := make(chan struct{})
			go func() { defer close(done); counters.Splice(t.Context(), wrap(nearEnd), wrap(farEnd)) }()
			want := bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size]
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = way[0].Write(want)
					_ = way[0].(*net.TCPConn).CloseWrite()
				}()
				if got, err := io.ReadAll(way[1]); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes of %d, %v", len(got), size, err)
				}
			}
			<-done
			if tr := counters.Traffic(); tr.Sent != int64(size) || tr.Received != int64(size) {
				t.Errorf("counted %+v, want %d", tr, size)
			}
		}
	}
}

// TestServeTCPIsBounded refuses connections beyond the bound, and takes new ones when
// there is room.
func TestServeTCPIsBounded(t *testing.T) {
	far, near := echo(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 10)
	served := make(chan error, 1)
	go func() {
		served <- ServeTCP(ctx, near, func(ctx context.Context) (net.Conn, error) { return DialLocal(ctx, portOf(far)) },
			Options{MaxConns: 2, Failed: func(err error) {
				select {
				case failed <- err:
				default: // the test has seen enough, and tries on
				}
			}})
	}()
	var conns []net.Conn
	for range 2 {
		c := dialTCP(t, near.Addr().String())
		if got := ask(t, c, []byte("x")); string(got) != "x" {
			t.Fatalf("got %q", got)
		}
		conns = append(conns, c)
	}
	if err := refusedAt(t, near.Addr().String()); err == nil {
		t.Error("a third connection is open")
	}
	if err := <-failed; !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
	conns[0].Close()
	for { // its place is free when its end has been carried
		c, err := net.Dial("tcp", near.Addr().String())
		if err != nil {
			continue
		}
		defer c.Close()
		if _, err := c.Write([]byte("y")); err == nil {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				break
			}
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A brittleListener fails for a while, as one does in a process with too many files.
type brittleListener struct {
	net.Listener
	errs []error
}

func (b *brittleListener) Accept() (net.Conn, error) {
	if len(b.errs) > 0 {
		err := b.errs[0]
		b.errs = b.errs[1:]
		return nil, err
	}
	return b.Listener.Accept()
}

type passingError struct{ error }

func (passingError) Temporary() bool { return true }

func TestServeTCPOutlivesPassingErrors(t *testing.T) {
	far := echo(t)
	many := passingError{errors.New("too many open files")}
	near := &brittleListener{Listener: listen(t), errs: slices.Repeat([]error{many}, 3)}
	last := errors.New("broken for good")
	served := make(chan error, 1)
	go func() {
		served <- Serve(t.Context(), near, func(ctx context.Context) (net.Conn, error) { return DialLocal(ctx, portOf(far)) }, nil)
	}()
	if got := ask(t, dialTCP(t, near.Addr().String()), []byte("x")); string(got) != "x" {
		t.Errorf("got %q", got)
	}
	near2 := &brittleListener{Listener: listen(t), errs: []error{many, last}}
	if err := Serve(t.Context(), near2, nil, nil); !errors.Is(err, last) {
		t.Errorf("got %v", err)
	}
	near.Close()
	if err := <-served; err == nil {
		t.Error("a listener that is closed is no error")
	}
}
