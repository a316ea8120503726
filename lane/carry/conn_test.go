package carry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait.
const patience = 30 * time.Second

// A tcp is a kernel connection that can be aborted, as those of lanes and of the tunnel can.
type tcp struct{ *net.TCPConn }

func (c tcp) Abort() { _ = c.SetLinger(0); c.Close() }

// wires makes connections on loopback.
type wires struct {
	t  testing.TB
	ln net.Listener
}

func newWires(t testing.TB) wires {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return wires{t, ln}
}

func (w wires) pair() (near, far net.Conn) {
	a, err := net.Dial("tcp", w.ln.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := w.ln.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	return tcp{a.(*net.TCPConn)}, tcp{b.(*net.TCPConn)}
}

// A couple is both ends of a connection.
type couple struct {
	wires
	near, far *Conn
	wg        sync.WaitGroup
	over      atomic.Int32
	wanted    chan struct{}
	sent      atomic.Uint64 // by lanes, from near
	received  atomic.Uint64 // by lanes, at near
}

func newCouple(t testing.TB) *couple {
	c := &couple{wires: newWires(t), wanted: make(chan struct{}, 1)}
	run := func(f func()) error { c.wg.Go(f); return nil }
	a, b := c.pair()
	over := func() { c.over.Add(1) }
	c.near = New(Config{Tunnel: a, Dialer: true, Go: run, Over: over, Sent: &c.sent, Received: &c.received, Wanted: func() {
		select {
		case c.wanted <- struct{}{}:
		default:
		}
	}})
	c.far = New(Config{Tunnel: b, Go: run, Over: over})
	return c
}

// end closes both ends and waits until nothing of them runs.
func (c *couple) end() {
	c.near.Close()
	c.far.Close()
	c.wg.Wait()
	if n := c.over.Load(); n != 2 {
		c.t.Errorf("%d of 2 connections said that they are over", n)
	}
}

func (c *couple) attach() {
	a, b := c.pair()
	if err := errors.Join(c.near.Attach(a), c.far.Attach(b)); err != nil {
		c.t.Fatal(err)
	}
}

// join opens a lane, and returns its ends. It errs if one side does not want it by now.
func (c *couple) join() (near, far net.Conn, err error) {
	near, far = c.pair()
	took := make(chan error, 1)
	go func() {
		p, epoch, err := ReadLane(far)
		if err == nil && p != c.near.Ports() {
			err = fmt.Errorf("a lane for %v", p)
		}
		if err == nil {
			err = c.far.Take(epoch, far)
		}
		if err != nil {
			far.Close()
		}
		took <- err
	}()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	err = c.near.Join(ctx, near)
	return near, far, errors.Join(err, <-took)
}

// onLane moves it to a lane, both ways.
func (c *couple) onLane() (near, far net.Conn) {
	c.attach()
	near, far, err := c.join()
	if err != nil {
		c.t.Fatal(err)
	}
	return near, far
}

// TestConnIsOne holds what the standard library says of net.Conn, inside the tunnel and on
// a lane.
func TestConnIsOne(t *testing.T) {
	for name, lane := range map[string]bool{"tunnel": false, "lane": true} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				c := newCouple(t)
				if lane {
					c.onLane()
				}
				return c.near, c.far, c.end, nil
			})
		})
	}
}

// pour writes size bytes in pieces of random sizes, and their end.
func pour(to *Conn, seed uint64, size int, readFrom bool) ([sha256.Size]byte, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, size)
	for i := 0; i < size; i += 8 {
		x := r.Uint64()
		for j := range min(8, size-i) {
			data[i+j] = byte(x >> (8 * j))
		}
	}
	sum := sha256.Sum256(data)
	if readFrom {
		n, err := to.ReadFrom(&chopped{data: data, r: r})
		if err == nil && n != int64(size) {
			err = fmt.Errorf("%d of %d", n, size)
		}
		return sum, errors.Join(err, to.CloseWrite())
	}
	for len(data) > 0 {
		n := min(1+r.IntN(1<<(1+r.IntN(20))), len(data))
		if m, err := to.Write(data[:n]); err != nil || m != n {
			return sum, fmt.Errorf("wrote %d of %d: %w", m, n, err)
		}
		data = data[n:]
	}
	return sum, to.CloseWrite()
}

// chopped is a reader of pieces of random sizes.
type chopped struct {
	data []byte
	r    *rand.Rand
}

func (c *chopped) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+c.r.IntN(1<<(1+c.r.IntN(20))))], c.data)
	c.data = c.data[n:]
	return n, nil
}

// both carries size bytes each way at once, and checks them.
func (c *couple) both(seed uint64, size int) error {
	errs := make(chan error, 4)
	sums := [2]chan [sha256.Size]byte{make(chan [sha256.Size]byte, 1), make(chan [sha256.Size]byte, 1)}
	for i, end := range []*Conn{c.near, c.far} {
		go func() {
			sum, err := pour(end, seed+uint64(i), size, (seed+uint64(i))%2 == 0)
			sums[i] <- sum
			if err != nil {
				err = fmt.Errorf("end %d: %w", i, err)
			}
			errs <- err
		}()
		go func() {
			sum := sha256.New()
			n, err := io.Copy(sum, struct{ io.Reader }{end})
			if err == nil && [sha256.Size]byte(sum.Sum(nil)) != <-sums[1-i] {
				err = fmt.Errorf("%d bytes of %d, or others", n, size)
			}
			errs <- err
		}()
	}
	var err error
	for range 4 {
		select {
		case e := <-errs:
			err = errors.Join(err, e)
		case <-time.After(patience):
			return errors.Join(err, errors.New("it stands"))
		}
	}
	return err
}

// TestCuts has lanes come, and end in every way, while bytes flow both ways: each arrives
// once and in order, and so do the ends.
func TestCuts(t *testing.T) {
	all, bytes := 0, uint64(0)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c := newCouple(t)
			defer c.end()
			c.attach()
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			lanes := 0
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, 2))
				for ctx.Err() == nil {
					near, far, err := c.join()
					if err == nil {
						lanes++
					}
					select {
					case <-ctx.Done():
					case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
					}
					switch r.IntN(5) {
					case 0:
						near.(tcp).Abort()
					case 1:
						far.(tcp).Abort()
					case 2:
						c.near.Leave()
					case 3:
						c.far.Leave()
					case 4:
						_ = near.(tcp).CloseWrite() // an end that nobody said
					}
				}
			})
			err := c.both(seed, 24<<20)
			cancel()
			wg.Wait()
			if err != nil {
				t.Fatalf("%v\nnear %+v\nfar %+v", err, c.near.m, c.far.m)
			}
			all += lanes
			bytes += c.sent.Load() + c.received.Load()
			t.Logf("%d lanes carried %d KiB there and %d back", lanes, c.sent.Load()>>10, c.received.Load()>>10)
		})
	}
	if all < 12 || bytes < 1<<20 {
		t.Errorf("%d lanes carried %d bytes", all, bytes)
	}
}

// TestCloseDelivers closes at once what was written to a lane, and what a lane did not
// bring: all of it arrives.
func TestCloseDelivers(t *testing.T) {
	for _, cut := range []bool{false, true} {
		c := newCouple(t)
		near, _ := c.onLane()
		data := make([]byte, 3<<20)
		for i := range data {
			data[i] = byte(i * 7 >> 4)
		}
		if _, err := c.near.Write(data); err != nil {
			t.Fatal(err)
		}
		if cut {
			near.(tcp).Abort()
		}
		if err := c.near.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.near.Write(data); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		got, err := io.ReadAll(c.far)
		if err != nil || string(got) != string(data) {
			t.Errorf("cut %v: %d of %d bytes, %v", cut, len(got), len(data), err)
		}
		c.end()
	}
}

// TestCloseIsAnEnd closes when all has been read: the other side reads the end, not a reset.
func TestCloseIsAnEnd(t *testing.T) {
	for _, leave := range []bool{false, true} {
		c := newCouple(t)
		c.onLane()
		data := make([]byte, 100_000)
		for _, end := range []*Conn{c.near, c.far} { // both have moved
			other := map[*Conn]*Conn{c.near: c.far, c.far: c.near}[end]
			if _, err := end.Write(data); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(other, data); err != nil {
				t.Fatal(err)
			}
		}
		for deadline := time.Now().Add(patience); ; {
			c.near.mu.Lock()
			acked, changed := c.near.m.acked == c.near.m.sent, c.near.changed
			c.near.mu.Unlock()
			if acked {
				break
			}
			if wait(changed, deadline) != nil {
				t.Fatal("nothing is acknowledged")
			}
		}
		if leave {
			c.near.Leave()
		}
		if err := c.near.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := c.far.Read(data); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("left %v: read %d, %v, want the end", leave, n, err)
		}
		c.end()
	}
}

// deaf is a connection of which nothing is read before the program ends it.
type deaf struct {
	tcp
	once  sync.Once
	ended chan struct{}
}

func (d *deaf) Read(p []byte) (int, error) { <-d.ended; return d.tcp.Read(p) }
func (d *deaf) CloseWrite() error          { d.once.Do(func() { close(d.ended) }); return d.tcp.CloseWrite() }
func (d *deaf) Close() error               { d.once.Do(func() { close(d.ended) }); return d.tcp.Close() }

// TestCloseWithUnreadControl closes a connection for which the other side is just opening
// a lane, while something that it said on the control connection is unread: what was
// written through the tunnel before arrives all the same.
func TestCloseWithUnreadControl(t *testing.T) {
	c := newCouple(t)
	defer c.end()
	a, b := c.pair()
	if err := errors.Join(c.near.Attach(a), c.far.Attach(&deaf{tcp: b.(tcp), ended: make(chan struct{})})); err != nil {
		t.Fatal(err)
	}
	near, far := c.pair()
	defer far.Close() // which says nothing
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	joined := make(chan error, 1)
	go func() { joined <- c.near.Join(ctx, near) }()
	if _, err := io.ReadFull(far, make([]byte, Size)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(make([]byte, Size)); err != nil { // unread there
		t.Fatal(err)
	}
	const size = 100_000 // fits into the buffers of a kernel
	if _, err := c.far.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	c.far.Close()
	c.near.mu.Lock()
	for c.near.err == nil && c.near.away == nil { // until it has heard of it
		changed := c.near.changed
		c.near.mu.Unlock()
		<-changed
		c.near.mu.Lock()
	}
	c.near.mu.Unlock()
	if got, err := io.ReadAll(c.near); err != nil || len(got) != size {
		t.Errorf("%d of %d bytes, %v", len(got), size, err)
	}
	cancel()
	if err := <-joined; err == nil {
		t.Error("it is on a lane")
	}
}

// TestAbort resets: the other side must not take it for the end.
func TestAbort(t *testing.T) {
	for _, lane := range []bool{false, true} {
		c := newCouple(t)
		if lane {
			c.onLane()
		}
		if _, err := c.near.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		c.near.Abort()
		if _, err := io.ReadAll(c.far); err == nil {
			t.Errorf("lane %v: a reset is read as an end", lane)
		}
		if _, err := c.near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("lane %v: read after abort: %v", lane, err)
		}
		c.end()
	}
}

// TestWanted is told of much, once, and again after Later and when a lane has been left.
func TestWanted(t *testing.T) {
	c := newCouple(t)
	defer c.end()
	go func() { _, _ = io.Copy(io.Discard, c.far) }()
	write := func(n int) bool {
		t.Helper()
		if _, err := c.near.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.wanted:
			return true
		default:
			return false
		}
	}
	if write(defaultAfter - 1) {
		t.Error("a lane is wanted for little")
	}
	if !write(1) || write(3*defaultAfter) {
		t.Error("a lane is wanted never, or twice")
	}
	c.near.Later(2)
	if write(2*defaultAfter-1) || !write(1) {
		t.Error("wanted at the wrong time")
	}
	c.onLane()
	if write(2 * defaultAfter) {
		t.Error("wanted while there is one")
	}
	c.near.Leave()
	if !write(2 * defaultAfter) {
		t.Error("not wanted when it was left")
	}
}
