package link

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// A reader is the buffers with which a WireGuard device receives.
type reader struct {
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
}

func newReader(n int) *reader {
	r := &reader{bufs: make([][]byte, n), sizes: make([]int, n), eps: make([]conn.Endpoint, n)}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, asideSize)
	}
	return r
}

func numbered(n, size int) []byte {
	return binary.BigEndian.AppendUint32(make([]byte, size-4), uint32(n))
}

func number(b []byte) int { return int(binary.BigEndian.Uint32(b[len(b)-4:])) }

func TestAsideKeepsOrderUpToItsBounds(t *testing.T) {
	a, over, r := newAside(), make(chan struct{}), newReader(100)
	one, two := &Link{}, &Link{}
	next, want := 0, 0
	fill := func() {
		for ; a.push(numbered(next, 4+next%(asideSize-3)), []*Link{one, two}[next%2]); next++ { //nolint:revive // the condition does the work
		}
	}
	read := func() {
		n, err := a.receive(over, r.bufs, r.sizes, r.eps)
		if err != nil || n == 0 {
			t.Fatalf("%d packets, %v", n, err)
		}
		for i := range n {
			got := r.bufs[i][:r.sizes[i]]
			if number(got) != want || len(got) != 4+want%(asideSize-3) || r.eps[i] != conn.Endpoint([]*Link{one, two}[want%2]) {
				t.Fatalf("packet %d of %d bytes, want number %d", number(got), len(got), want)
			}
			want++
		}
	}
	fill()
	if next != asideLength {
		t.Errorf("room for %d packets, want %d", next, asideLength)
	}
	for range 50 {
		read()
		fill()
		if next-want != asideLength {
			t.Fatalf("%d packets wait, want %d", next-want, asideLength)
		}
	}
	for want < next {
		read()
	}
	for _, tc := range []struct {
		size int
		want bool
	}{{asideSize + 1, false}, {asideSize, true}, {65535, false}, {32, true}} {
		if got := a.push(make([]byte, tc.size), one); got != tc.want {
			t.Errorf("%d bytes: taken %v", tc.size, got)
		}
	}
	if n, err := a.receive(over, r.bufs, r.sizes, r.eps); n != 2 || err != nil || r.sizes[0] != asideSize || r.sizes[1] != 32 {
		t.Errorf("%d packets of %v bytes, %v", n, r.sizes[:n], err)
	}
}

// TestAsideLosesNothingBelowItsBound has many carriers deliver at once, never
// more than there is room for.
func TestAsideLosesNothingBelowItsBound(t *testing.T) {
	const carriers, each = 8, 5000
	a, over := newAside(), make(chan struct{})
	links := make([]*Link, carriers)
	room := make(chan struct{}, asideLength)
	var wg sync.WaitGroup
	for i := range links {
		links[i] = &Link{}
		wg.Go(func() {
			for k := range each {
				room <- struct{}{}
				if !a.push(numbered(k, 100), links[i]) {
					t.Error("no room below the bound")
				}
			}
		})
	}
	r := newReader(128)
	want := make([]int, carriers)
	for left := carriers * each; left > 0; {
		n, err := a.receive(over, r.bufs, r.sizes, r.eps)
		if err != nil {
			t.Fatal(err)
		}
		for k := range n {
			i := slices.IndexFunc(links, func(l *Link) bool { return r.eps[k] == conn.Endpoint(l) })
			if got := number(r.bufs[k][:r.sizes[k]]); got != want[i] {
				t.Fatalf("carrier %d: packet %d, want %d", i, got, want[i])
			}
			want[i]++
			<-room
		}
		left -= n
	}
	wg.Wait()
	close(over)
	if n, err := a.receive(over, r.bufs, r.sizes, r.eps); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%d packets too many, %v", n, err)
	}
}

func TestAsideEndsWithItsSocket(t *testing.T) {
	a, over, r := newAside(), make(chan struct{}), newReader(1)
	ended := make(chan error)
	go func() {
		_, err := a.receive(over, r.bufs, r.sizes, r.eps)
		ended <- err
	}()
	close(over)
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ended with %v", err)
	}
	// A socket that is opened again goes on with it.
	again := make(chan struct{})
	if !a.push([]byte("again"), nil) {
		t.Fatal("refused")
	}
	if n, err := a.receive(again, r.bufs, r.sizes, r.eps); n != 1 || err != nil || string(r.bufs[0][:r.sizes[0]]) != "again" {
		t.Errorf("%d packets, %v", n, err)
	}
}

// passAside moves a batch through, as carriers and WireGuard do in steady state.
func passAside(a *aside, r *reader, over chan struct{}, packet []byte, l *Link) int {
	for range r.bufs {
		a.push(packet, l)
	}
	n, _ := a.receive(over, r.bufs, r.sizes, r.eps)
	return n
}

func TestAsideAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools forget")
	}
	a, r, over, packet, l := newAside(), newReader(64), make(chan struct{}), make([]byte, DefaultDataSize), &Link{}
	if n := testing.AllocsPerRun(200, func() { passAside(a, r, over, packet, l) }); n != 0 {
		t.Errorf("%v allocations per 64 packets, want none", n)
	}
}

func BenchmarkAside(b *testing.B) {
	a, r, over, packet, l := newAside(), newReader(64), make(chan struct{}), make([]byte, DefaultDataSize), &Link{}
	b.SetBytes(DefaultDataSize)
	b.ReportAllocs()
	for n := 0; n < b.N; {
		n += passAside(a, r, over, packet, l)
	}
}
