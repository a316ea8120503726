package waku

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

func mplexPair(t testing.TB) (a, b network.MuxedConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	one, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	two, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, _ = mplex{}.NewConn(one, false, &scope{})
	b, _ = mplex{}.NewConn(two, true, &scope{})
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

func TestMplexStreams(t *testing.T) {
	a, b := mplexPair(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // echo
		for range 10 {
			s, err := b.AcceptStream()
			if err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() {
				defer s.Close()
				if _, err := io.Copy(s, s); err != nil {
					t.Error(err)
				}
			})
		}
	})
	for i := range 10 {
		s, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{byte(i)}, i*20_000)
		if _, err := s.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
		}
		if _, err := s.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		s.Close()
	}
}

func TestMplexDeadlineAndReset(t *testing.T) {
	a, b := mplexPair(t)
	s, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(10 * time.Millisecond))
	var one [1]byte
	if _, err := s.Read(one[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := s.Write(one[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	s.SetDeadline(time.Time{})
	other, err := b.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	other.Reset()
	if _, err := s.Read(one[:]); !errors.Is(err, errStreamReset) {
		t.Errorf("read of a stream that was reset: %v", err)
	}
	// A reader that is too slow loses its stream, and no other.
	slow, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	good, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Write(make([]byte, 2*mplexBuffer)); err != nil && !errors.Is(err, errStreamReset) {
		t.Fatal(err)
	}
	if _, err := good.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Read(one[:]); !errors.Is(err, errStreamReset) {
		t.Errorf("the slow one: %v", err)
	}
	if _, err := b.AcceptStream(); err != nil {
		t.Fatal(err)
	}
	last, err := b.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := last.Read(one[:]); err != nil || one[0] != 'x' {
		t.Errorf("the other: %q, %v", one, err)
	}
	a.Close()
	if _, err := last.Read(one[:]); err == nil {
		t.Error("a stream outlives its connection")
	}
}

// TestMplexTooMany holds that one side cannot open streams without end.
func TestMplexTooMany(t *testing.T) {
	a, _ := mplexPair(t)
	for i := range nodeStreams + 1 {
		s, err := a.OpenStream(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if i < nodeStreams {
			continue
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errStreamReset) {
			t.Errorf("stream %d: %v, want a reset", i, err)
		}
	}
}

// FuzzMplex sends anything to a connection, which must take it or end, and give
// all memory back.
func FuzzMplex(f *testing.F) {
	f.Add([]byte{0, 1, 'a', 2, 3, 1, 2, 3, 4, 0})
	f.Add([]byte{0, 0, 8, 0, 6, 0, 5, 0, 1, 1, 9})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		one, two := net.Pipe()
		memory := &budget{most: 1 << 30}
		c, _ := mplex{}.NewConn(one, true, &scope{budget: memory})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				s, err := c.AcceptStream()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer s.Close()
					_, _ = io.Copy(io.Discard, s)
				})
			}
		})
		wg.Go(func() { _, _ = io.Copy(io.Discard, two) })
		_, _ = two.Write(b)
		two.Close()
		for !c.IsClosed() {
			if _, err := c.OpenStream(context.Background()); err != nil {
				break
			}
		}
		c.Close()
		wg.Wait()
		if n := memory.used.Load(); n != 0 {
			t.Errorf("%d bytes are not given back", n)
		}
	})
}
