package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A wire carries datagrams one way, but for those that drop says.
type wire struct {
	net.Conn // for what is not used here
	out, in  chan []byte
	drop     func(n int) bool
	sent     int
	over     chan struct{}
	once     *sync.Once
}

// wires are the two ends of an association.
func wires(dropOut, dropIn func(int) bool) (a, b *wire) {
	x, y, over, once := make(chan []byte, 1000), make(chan []byte, 1000), make(chan struct{}), new(sync.Once)
	return &wire{out: x, in: y, drop: dropOut, over: over, once: once}, &wire{out: y, in: x, drop: dropIn, over: over, once: once}
}

func (w *wire) Write(p []byte) (int, error) {
	w.sent++
	if w.drop == nil || !w.drop(w.sent-1) {
		w.out <- append([]byte(nil), p...)
	}
	return len(p), nil
}

func (w *wire) Read(p []byte) (int, error) {
	select {
	case raw := <-w.in:
		return copy(p, raw), nil
	case <-w.over:
		return 0, net.ErrClosed
	}
}
func (w *wire) Close() error                    { w.once.Do(func() { close(w.over) }); return nil }
func (w *wire) SetReadDeadline(time.Time) error { return nil }

// A rig is a service on loopback, and how to call it.
type rig struct {
	service          *Service
	addr             string
	who              atomic.Bool // calls are a device's
	forced, released atomic.Int32
	refuse           error
	dropOut, dropIn  func(int) bool
	wg               sync.WaitGroup
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{addr: ln.Addr().String()}
	r.who.Store(true)
	r.service = NewService(Config{
		Listener: ln, Who: func(net.Addr) (string, bool) { return "laptop", r.who.Load() },
		Force: func(context.Context, string, string) (func(), error) {
			if r.refuse != nil {
				return nil, r.refuse
			}
			r.forced.Add(1)
			return func() { r.released.Add(1) }, nil
		},
	})
	t.Cleanup(func() {
		r.service.Close()
		r.wg.Wait()
	})
	return r
}

func (r *rig) dial(ctx context.Context, network string) (net.Conn, error) {
	if network == "tcp" {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", r.addr)
	}
	a, b := wires(r.dropOut, r.dropIn)
	r.wg.Go(func() { r.service.Datagrams("laptop", b) })
	return a, nil
}

// some drops n of ten.
func some(n int) func(int) bool { return func(i int) bool { return i*7%10 < n } }

func near(got, want float64) bool { return math.Abs(got-want) < 0.011 }

// TestRun measures ways that lose known shares each way.
func TestRun(t *testing.T) {
	for name, loss := range map[string]struct{ out, in int }{
		"none": {0, 0}, "out": {3, 0}, "in": {0, 3}, "both": {2, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.dropOut, r.dropIn = some(loss.out), some(loss.in)
			res, err := Run(t.Context(), r.dial, "relay")
			if err != nil {
				t.Fatal(err)
			}
			if !near(res.LossOut, float64(loss.out)/10) || !near(res.LossIn, float64(loss.in)/10) {
				t.Errorf("lost %.2f out and %.2f in, want %d and %d tenths", res.LossOut, res.LossIn, loss.out, loss.in)
			}
			if res.RTT <= 0 || res.RTT > time.Second || res.RateOut < 1e6 || res.RateIn < 1e6 || res.BytesIn == 0 || res.BytesOut == 0 {
				t.Errorf("%+v", res)
			}
			if res.BytesIn > streamBytes || res.BytesOut > streamBytes || res.Duration > 10*time.Second {
				t.Errorf("too much: %+v", res)
			}
			r.service.Close() // waits for the end of the session
			if r.forced.Load() != 1 || r.released.Load() != 1 {
				t.Errorf("forced %d times, released %d times", r.forced.Load(), r.released.Load())
			}
		})
	}
}

// TestAllIsLost ends all the same, and says so.
func TestAllIsLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.dropOut = some(10)
	res, err := Run(t.Context(), r.dial, "")
	if err != nil || res.LossOut != 1 || res.RTT != 0 || res.LossIn != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.refuse = errors.New("none")
	if _, err := Run(t.Context(), r.dial, "lan"); !errors.Is(err, ErrNoPath) {
		t.Errorf("without such a path: %v", err)
	}
	r.refuse = fmt.Errorf("kith: %w", ErrBusy)
	if _, err := Run(t.Context(), r.dial, "lan"); !errors.Is(err, ErrBusy) {
		t.Errorf("while another path is forced: %v", err)
	}
	if _, err := Run(t.Context(), r.dial, "sideways"); err == nil {
		t.Error("a force that is none")
	}
	hold, err := r.dial(t.Context(), "tcp")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Write(append([]byte{version, kindControl}, make([]byte, 9)...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(hold, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), r.dial, ""); !errors.Is(err, ErrBusy) {
		t.Errorf("while another one runs: %v", err)
	}
	hold.Close()
	r.who.Store(false)
	if _, err := Run(t.Context(), r.dial, ""); err == nil {
		t.Error("measured for a stranger")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, r.dial, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v", err)
	}
}

// TestQuota holds the 20 s in a minute of one device, and that another one has its own:
// what is left of them bounds a measurement.
func TestQuota(t *testing.T) {
	s := &Service{}
	now := time.Unix(1e9, 0)
	for i := range 3 {
		s.spent = append(s.spent, &spell{device: "laptop", begin: now.Add(time.Duration(i) * 10 * time.Second), over: now.Add(time.Duration(i)*10*time.Second + 7*time.Second)})
	}
	for _, test := range []struct {
		device string
		after  time.Duration
		want   status
		limit  time.Duration
	}{
		{"laptop", 28 * time.Second, statusSpent, 0},
		{"desk", 28 * time.Second, statusOK, sessionTime},
		{"laptop", 66 * time.Second, statusSpent, 0},
		{"laptop", 68 * time.Second, statusOK, 6 * time.Second},
	} {
		one, st := s.begin(test.device, [8]byte{1}, now.Add(test.after))
		if st != test.want || (one != nil) != (st == statusOK) || one != nil && one.limit != test.limit {
			t.Errorf("%s after %v: %d, %+v, want %d and %v", test.device, test.after, st, one, test.want, test.limit)
		}
		s.now = nil
	}
}

// TestBytes holds what one device is sent in an hour, and that it counts although its
// measurement ends before the stream does.
func TestBytes(t *testing.T) {
	s := &Service{}
	now := time.Unix(1e9, 0)
	for i, sent := range []int{bytesQuota - 5<<20, 4<<20 + 1} {
		at := now.Add(time.Duration(i) * 10 * time.Minute)
		s.spent = append(s.spent, &spell{device: "laptop", begin: at, over: at.Add(time.Second), sent: sent})
	}
	for _, test := range []struct {
		device string
		after  time.Duration
		want   status
		bytes  int
	}{
		{"laptop", 50 * time.Minute, statusSpent, 0},
		{"desk", 50 * time.Minute, statusOK, bytesQuota},
		{"laptop", 61 * time.Minute, statusOK, bytesQuota - 4<<20 - 1},
	} {
		one, st := s.begin(test.device, [8]byte{1}, now.Add(test.after))
		if st != test.want || one != nil && one.bytes != test.bytes {
			t.Errorf("%s after %v: %d, %+v, want %d and %d bytes", test.device, test.after, st, one, test.want, test.bytes)
		}
		s.now = nil
	}
	r := newRig(t)
	c := &caller{dial: r.dial, id: [8]byte{7}}
	c.begin(t)
	stream, err := c.call(t.Context(), kindStream, fromService)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := io.ReadFull(stream, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.control.Close()
	_, _ = io.Copy(io.Discard, stream) // it is hung up
	r.service.Close()
	if len(r.service.spent) != 1 || r.service.spent[0].sent < 1<<20 {
		t.Errorf("%+v were counted", r.service.spent)
	}
}

// TestPour holds that a sender stops by itself, whatever the receiver does.
func TestPour(t *testing.T) {
	for name, test := range map[string]struct {
		most   int
		wait   time.Duration // of the receiver, between two reads
		atMost int
		within time.Duration
	}{
		"it never closes":    {streamBytes, 10 * time.Millisecond, 201 * 32 << 10, 2 * time.Second},
		"little is left":     {100_000, 0, 100_000, 0},
		"it takes very much": {1 << 30, 0, streamBytes, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				start := time.Now()
				var last time.Time
				var got int
				var wg sync.WaitGroup
				wg.Go(func() {
					buf := make([]byte, 32<<10)
					for {
						n, err := b.Read(buf)
						if err != nil {
							return
						}
						got, last = got+n, time.Now()
						time.Sleep(test.wait)
					}
				})
				sent := pour(a, test.most)
				a.Close()
				wg.Wait()
				if sent != got || got > test.atMost || got < test.atMost/2 || last.Sub(start) > test.within {
					t.Errorf("%d bytes were sent and %d came, the last after %v, want %d within %v", sent, got, last.Sub(start), test.atMost, test.within)
				}
			})
		})
	}
}

// TestManyHellos holds that one device does not take all connections.
func TestManyHellos(t *testing.T) {
	s := &Service{}
	for i := range deviceConns + 1 {
		if got := s.enter("laptop"); got != (i < deviceConns) {
			t.Errorf("connection %d of one device: %v", i, got)
		}
	}
	all := deviceConns
	for i := 0; s.enter(fmt.Sprint("device", i/deviceConns)); i++ {
		all++
	}
	if all != maxConns {
		t.Errorf("%d connections, want %d", all, maxConns)
	}
	s.leave("laptop")
	if !s.enter("laptop") || len(s.conns) != maxConns/deviceConns {
		t.Errorf("%v", s.conns)
	}
	r := newRig(t)
	for i := range deviceConns + 1 {
		conn, err := r.dial(t.Context(), "tcp")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i < deviceConns {
			continue
		}
		if err := conn.SetReadDeadline(time.Now().Add(helloTime / 2)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("one connection too many: %v", err)
		}
	}
}

// TestOtherDatagrams holds that what is no measurement keeps no association.
func TestOtherDatagrams(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := wires(nil, nil)
	over := make(chan struct{})
	r.wg.Go(func() {
		defer close(over)
		r.service.Datagrams("laptop", b)
	})
	if _, err := a.Write(make([]byte, trainSize-1)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(5 * time.Second):
		t.Error("the association goes on")
		a.Close()
	}
}

// TestStreams holds that a stream of another measurement, or a second one, brings nothing.
func TestStreams(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := &caller{dial: r.dial, id: [8]byte{7}}
	ask := func(id [8]byte) (n int) {
		c := &caller{dial: r.dial, id: id}
		conn, err := c.call(t.Context(), kindStream, fromService)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		n, _ = io.ReadFull(conn, make([]byte, 1000)) // what comes counts
		return n
	}
	if n := ask(c.id); n > 0 {
		t.Errorf("%d bytes without a measurement", n)
	}
	c.begin(t)
	if n := ask([8]byte{8}); n > 0 {
		t.Errorf("%d bytes for another id", n)
	}
	if n := ask(c.id); n != 1000 {
		t.Errorf("%d bytes of the first stream", n)
	}
	if n := ask(c.id); n > 0 {
		t.Errorf("%d bytes of a second stream", n)
	}
}

// FuzzService talks to a service without rules.
func FuzzService(f *testing.F) {
	f.Add(append([]byte{version, kindControl}, make([]byte, 9)...))
	f.Add(append(append([]byte{version, kindControl}, make([]byte, 9)...), askCount, askCount, 9))
	f.Add(append([]byte{version, kindStream}, make([]byte, 8)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, b := net.Pipe()
		s := &Service{cfg: Config{Force: func(context.Context, string, string) (func(), error) { return func() {}, nil }}, ctx: t.Context()}
		var wg sync.WaitGroup
		wg.Go(func() {
			defer b.Close()
			s.serve(b, "laptop")
		})
		wg.Go(func() { _, _ = io.Copy(io.Discard, a) })
		_, _ = a.Write(raw) // it may hang up
		a.Close()
		wg.Wait()
		s.wg.Wait()
		if s.now != nil {
			t.Error("a measurement is left")
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add(make([]byte, trainSize), []byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw, id []byte) {
		if len(id) < 8 {
			return
		}
		if n, there, ok := readDatagram(raw, [8]byte(id)); ok && (there < 0 || there > sessionTime || n < 0 || n >= trainCount || uint32(n) != binary.BigEndian.Uint32(raw[8:])) {
			t.Errorf("number %d", n)
		}
	})
}

// begin opens the control connection, and has the service say that it may measure.
func (c *caller) begin(t *testing.T) {
	t.Helper()
	var err error
	if c.control, err = c.call(t.Context(), kindControl, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.control.Close() })
	if _, err := io.ReadFull(c.control, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
