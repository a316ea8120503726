package expose

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kithproject/kith/app/forward"
)

// A pipeConn is a stream without the kernel.
type pipeConn struct {
	net.Conn
	from nameAddr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.from }

// from opens a stream to the device without the kernel, for tests that need many.
func (d *device) from(name nameAddr) net.Conn {
	near, far := net.Pipe()
	d.streams <- pipeConn{far, name}
	return near
}

// answer sends a hello and returns what comes back.
func answer(c net.Conn, h hello) (status, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	if _, err := c.Write(h.bytes()); err != nil {
		return 0, err
	}
	var st [1]byte
	_, err := io.ReadFull(c, st[:])
	return status(st[0]), err
}

// TestManyListeners has a device with the right to any port ask for 100,000 listeners,
// and keep what it gets.
func TestManyListeners(t *testing.T) {
	l := newLab(t)
	laptop := l.start("laptop")
	l.start("evil")
	laptop.cfg.May = func(string, forward.Protocol, uint16) bool { return true }
	laptop.cfg.Listening = nil
	const asks = 100_000
	var granted, busy, taken, other atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var kept []net.Conn
	before := runtime.NumGoroutine()
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < asks; i += 16 {
				// Different ports for as long as something is granted, above those that tests use.
				port := uint16(61000 + i%4000)
				c := laptop.from("evil")
				st, err := answer(c, hello{kind: kindAsk, place: place{forward.TCP, port}, token: newToken()})
				switch {
				case err != nil:
					other.Add(1)
				case st == statusOK:
					granted.Add(1)
					mu.Lock()
					kept = append(kept, c)
					mu.Unlock()
					continue
				case st == statusBusy:
					busy.Add(1)
				case st == statusTaken:
					taken.Add(1)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	if n := len(laptop.Hosted()); n == 0 || n > maxListeners {
		t.Errorf("%d listeners, want at most %d", n, maxListeners)
	}
	if n := runtime.NumGoroutine() - before; n > 20*maxListeners {
		t.Errorf("%d goroutines more", n)
	}
	t.Logf("granted %d, busy %d, taken %d, other %d", granted.Load(), busy.Load(), taken.Load(), other.Load())
	if busy.Load() < asks/2 {
		t.Errorf("only %d were refused", busy.Load())
	}
	// Nobody else is kept out.
	at := place{forward.TCP, freePort(t)}
	c := laptop.from("phone")
	defer c.Close()
	if st, err := answer(c, hello{kind: kindAsk, place: at, token: newToken()}); err != nil || st != statusOK {
		t.Errorf("phone: %v, %v", st, err)
	}
	for _, c := range kept {
		c.Close()
	}
}

// TestSilentStreams opens streams that say nothing, or half of a hello.
func TestSilentStreams(t *testing.T) {
	l := newLab(t)
	laptop := l.start("laptop")
	var open []net.Conn
	for range maxPending {
		open = append(open, laptop.from("evil"))
	}
	for laptop.pendingOf("evil") < maxPending { // accepted, and not yet counted
		runtime.Gosched()
	}
	for range 100 {
		c := laptop.from("evil")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("one more: %v", err)
		}
	}
	c := laptop.from("stranger")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a stranger: %v", err)
	}
	c = laptop.from("phone")
	if st, err := answer(c, hello{kind: kindAsk, place: place{forward.TCP, 80}}); err != nil || st != statusDenied {
		t.Errorf("phone: %v, %v", st, err)
	}
	for _, c := range open {
		c.Close()
	}
	for laptop.pendingOf("evil") > 0 {
		runtime.Gosched()
	}
}

func (d *device) pendingOf(name string) int {
	d.Service.mu.Lock()
	defer d.Service.mu.Unlock()
	return d.pending[name]
}

// TestWrongTokens tries tokens, ports and devices that are not what was exposed, as
// streams and as datagrams: the service sees none of them.
func TestWrongTokens(t *testing.T) {
	l := newLab(t)
	desk, laptop := l.start("desk"), l.start("laptop")
	l.start("evil")
	var reached atomic.Int64
	for _, protocol := range []forward.Protocol{forward.TCP, forward.UDP} {
		address := serveTCP(t, func(net.Conn) { reached.Add(1) })
		if protocol == forward.UDP {
			address = echoUDP(t)
		}
		e := Exposure{Peer: "laptop", Protocol: protocol, Port: freePort(t), Address: address, Counters: new(forward.Counters)}
		at := place{protocol, e.Port}
		laptop.allow(at, true)
		reports, _ := desk.exposing(e)
		awaitReport(t, reports, nil)
		desk.Service.mu.Lock()
		right := desk.Service.exposed[exposedKey{"laptop", at}].token
		desk.Service.mu.Unlock()
		near := right
		near[15]++
		for _, from := range []nameAddr{"laptop", "evil"} {
			tokens := []token{{}, near, newToken()}
			if from == "evil" {
				tokens = append(tokens, right) // it is not the device that was asked
			}
			for _, tok := range tokens {
				if protocol == forward.UDP {
					a, b := packetPipe("desk", from)
					if _, err := a.Write(append(tok[:], "hello"...)); err != nil {
						t.Fatal(err)
					}
					desk.ServeUDP(string(from), b) // returns at once
					continue
				}
				for _, port := range []uint16{e.Port, e.Port ^ 1} {
					c := desk.from(from)
					st, err := answer(c, hello{kind: kindCarry, place: place{forward.TCP, port}, token: tok})
					if err != nil || st != statusUnknown {
						t.Errorf("%s: %v, %v, want unknown", from, st, err)
					}
					c.Close()
				}
			}
		}
		if tr := e.Counters.Traffic(); tr.Total != 0 || reached.Load() != 0 {
			t.Errorf("%s: carried %+v", protocol, tr)
		}
	}
}

// TestForeignDatagrams puts datagrams without the token into a flow that has it.
func TestForeignDatagrams(t *testing.T) {
	_, desk, _, e, _, _ := exposed(t, forward.UDP, echoUDP(t))
	desk.Service.mu.Lock()
	tok := desk.Service.exposed[exposedKey{"laptop", place{forward.UDP, e.Port}}].token
	desk.Service.mu.Unlock()
	a, b := packetPipe("desk", "laptop")
	done := make(chan struct{})
	go func() { defer close(done); desk.ServeUDP("laptop", b) }()
	for _, d := range [][]byte{append(tok[:], "first"...), []byte("short"), append(make([]byte, tokenSize), "foreign"...), append(tok[:], "last"...)} {
		if _, err := a.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	for _, want := range []string{"first", "last"} {
		if n, err := a.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("%q, %v, want %q", buf[:n], err, want)
		}
	}
	a.Close()
	<-done
}

// TestDeafExposer floods its stream with pings and reads nothing; the right can be
// withdrawn at once all the same.
func TestDeafExposer(t *testing.T) {
	l := newLab(t)
	laptop := l.start("laptop")
	l.start("evil")
	at := place{forward.TCP, freePort(t)}
	laptop.allow(at, true)
	c := laptop.from("evil")
	if st, err := answer(c, hello{kind: kindAsk, place: at, token: newToken()}); err != nil || st != statusOK {
		t.Fatalf("%v, %v", st, err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Write(bytes.Repeat([]byte{msgPing}, 1000)) // until the host waits with an answer
	}()
	start := time.Now()
	laptop.allow(at, false)
	closedAt(t, at.port)
	if took := time.Since(start); took > answerWait/2 {
		t.Errorf("took %v", took)
	}
	c.Close()
	<-written
}

// TestGarbage sends bytes that are no hello, and bytes that are nothing on a stream that
// was agreed on.
func TestGarbage(t *testing.T) {
	l := newLab(t)
	laptop := l.start("laptop")
	l.start("evil")
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		c := laptop.from("evil")
		b := make([]byte, rnd.IntN(3*helloSize))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		if len(b) > 1 {
			b[0], b[1] = byte(rnd.IntN(4)), byte(rnd.IntN(20))
		}
		go func() {
			_, _ = c.Write(b)
			if len(b) < helloSize {
				c.Close()
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("%x: %v", b, err)
		}
		c.Close()
	}
	at := place{forward.TCP, freePort(t)}
	laptop.allow(at, true)
	for _, b := range []byte{0, 1, 0x20, 0x3f, 0x42, 0xff} {
		c := laptop.from("evil")
		if st, err := answer(c, hello{kind: kindAsk, place: at, token: newToken()}); err != nil || st != statusOK {
			t.Fatalf("%v, %v", st, err)
		}
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
		laptop.await("evil listens false")
		c.Close()
	}
}

// TestManyConnections has a host open more than an exposure has room for.
func TestManyConnections(t *testing.T) {
	_, desk, _, e, _, _ := exposed(t, forward.TCP, serveTCP(t, echoTCP))
	desk.Service.mu.Lock()
	a := desk.exposed[exposedKey{"laptop", place{forward.TCP, e.Port}}]
	desk.Service.mu.Unlock()
	h := hello{kind: kindCarry, place: place{forward.TCP, e.Port}, token: a.token}
	for range maxConns {
		a.places <- struct{}{} // as that many connections do
	}
	c := desk.from("laptop")
	if st, err := answer(c, h); err != nil || st != statusBusy {
		t.Errorf("%v, %v, want busy", st, err)
	}
	for range maxConns {
		<-a.places
	}
	c = desk.from("laptop")
	defer c.Close()
	if st, err := answer(c, h); err != nil || st != statusOK {
		t.Errorf("%v, %v", st, err)
	}
}

func FuzzHello(f *testing.F) {
	f.Add(hello{kind: kindAsk, place: place{forward.UDP, 53}, token: token{1}}.bytes())
	f.Add(hello{kind: kindCarry, place: place{forward.TCP, 65535}}.bytes())
	f.Add([]byte{2, 17, 0, 80})
	f.Add(make([]byte, helloSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		if !bytes.Equal(h.bytes(), b) || h.port == 0 || h.kind == kindCarry && h.protocol == forward.UDP {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}

func FuzzTalk(f *testing.F) {
	f.Add([]byte{msgPing, msgPong})
	f.Add([]byte{msgPing, byte(statusDenied), msgPong})
	f.Add([]byte{0, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		h := parseTalk(b)
		known := bytes.Trim(b, string([]byte{msgPing, msgPong}))
		if (h.ended != nil) != (len(known) > 0) {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}

// FuzzDatagrams gives an exposer datagrams of a paired device.
func FuzzDatagrams(f *testing.F) {
	f.Add([]byte{}, []byte("0123456789abcdefx"))
	f.Add([]byte("0123456789abcdefx"), []byte("0123456789abcdef"))
	f.Add([]byte("short"), []byte{})
	tok := token([]byte("0123456789abcdef"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		a, b := packetPipe("desk", "laptop")
		for _, d := range [][]byte{second, append(tok[:], 'e')} {
			if _, err := a.Write(d); err != nil {
				t.Fatal(err)
			}
		}
		u := &untokened{Conn: b, token: tok, first: append([]byte{}, first...)}
		want := [][]byte{first}
		if rest, ok := bytes.CutPrefix(second, tok[:]); ok {
			want = append(want, rest)
		}
		want = append(want, []byte("e"))
		buf := make([]byte, maxDatagram)
		for _, w := range want {
			if n, err := u.Read(buf); err != nil || !bytes.Equal(buf[:n], w) {
				t.Errorf("%x, %v, want %x", buf[:n], err, w)
			}
		}
	})
}
