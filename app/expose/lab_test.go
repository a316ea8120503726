package expose

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/app/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// A lab is devices with a tunnel between all of them, which a test can cut.
type lab struct {
	t *testing.T

	mu      sync.Mutex
	devices map[string]*device
	since   time.Time // of the connection of all devices
	down    bool
	conns   []io.Closer
}

// A device is one run of a Service.
type device struct {
	*Service
	lab     *lab
	name    string
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
	told    chan string // of Listening and Refused

	mu   sync.Mutex
	may  map[place]bool
	flow sync.WaitGroup
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, devices: make(map[string]*device), since: time.Unix(1, 0)}
}

type nameAddr string

func (nameAddr) Network() string  { return "lab" }
func (a nameAddr) String() string { return string(a) }

// A labConn is a stream of the kernel whose other end is a device.
type labConn struct {
	*net.TCPConn
	from nameAddr
}

func (c labConn) RemoteAddr() net.Addr { return c.from }

// start begins a run of a device, which ends what was of the one before.
func (l *lab) start(name string) *device {
	l.t.Helper()
	d := &device{lab: l, name: name, streams: make(chan net.Conn), closed: make(chan struct{}), told: make(chan string, 1000), may: make(map[place]bool)}
	d.Service = newService(Config{
		Listener: d,
		Dial: func(ctx context.Context, protocol forward.Protocol, peer string) (net.Conn, error) {
			return l.dial(ctx, protocol, name, peer)
		},
		Who: func(remote net.Addr) (string, bool) { return remote.String(), remote.String() != "stranger" },
		May: func(_ string, protocol forward.Protocol, port uint16) bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.may[place{protocol, port}]
		},
		Up: func(peer string) (time.Time, bool) {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.since, !l.down && l.devices[peer] != nil
		},
		Listening: func(peer string, _ forward.Protocol, _ uint16, began bool) {
			d.told <- peer + " listens " + strconv.FormatBool(began)
		},
		Refused: func(peer string, _ forward.Protocol, _ uint16) { d.told <- peer + " refused" },
	})
	d.look = 5 * time.Millisecond
	d.wg.Go(d.accept)
	l.mu.Lock()
	l.devices[name] = d
	l.mu.Unlock()
	l.t.Cleanup(d.stop)
	return d
}

func (d *device) stop() {
	if err := d.Service.Close(); err != nil {
		d.lab.t.Error(err)
	}
	d.flow.Wait()
}

func (d *device) Accept() (net.Conn, error) {
	select {
	case c := <-d.streams:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *device) Close() error   { d.once.Do(func() { close(d.closed) }); return nil }
func (d *device) Addr() net.Addr { return nameAddr(d.name) }

// allow gives or takes a right, as the node does it.
func (d *device) allow(p place, may bool) {
	d.mu.Lock()
	d.may[p] = may
	d.mu.Unlock()
	d.Recheck()
}

func (d *device) await(what string) {
	d.lab.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case got := <-d.told:
			if got == what {
				return
			}
		case <-timeout:
			d.lab.t.Fatalf("%s never told that %s", d.name, what)
		}
	}
}

// connection makes the devices' connection another one, or cuts it.
func (l *lab) connection(since int64, up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since, l.down = time.Unix(since, 0), !up
}

// crash ends a device's run as a kill does: streams break when they are used.
func (l *lab) crash(name string) {
	l.mu.Lock()
	d := l.devices[name]
	delete(l.devices, name)
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for _, c := range conns {
		forward.Abort(c)
	}
	d.stop()
}

func (l *lab) dial(ctx context.Context, protocol forward.Protocol, from, to string) (net.Conn, error) {
	l.mu.Lock()
	d, down := l.devices[to], l.down
	l.mu.Unlock()
	if d == nil || down {
		return nil, errors.New("no way there")
	}
	if protocol == forward.UDP {
		near, far := packetPipe(nameAddr(to), nameAddr(from))
		d.flow.Go(func() { d.ServeUDP(from, far) })
		return near, nil
	}
	near, far, err := tcpPair(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.conns = append(l.conns, near, far)
	l.mu.Unlock()
	select {
	case d.streams <- labConn{far, nameAddr(from)}:
		return labConn{near, nameAddr(to)}, nil
	case <-d.closed:
		near.Close()
		far.Close()
		return nil, errors.New("refused")
	}
}

func tcpPair(ctx context.Context) (near, far *net.TCPConn, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	other, err := ln.Accept()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c.(*net.TCPConn), other.(*net.TCPConn), nil
}

// A packetConn is one end of a pipe of datagrams, of which those are lost that nobody
// reads in time.
type packetConn struct {
	net.Conn // nil; what is not here is not used
	to       net.Addr
	in, out  chan []byte
	ended    chan struct{}
	end      func()

	mu       sync.Mutex
	deadline *time.Timer
	late     chan struct{}
}

func packetPipe(near, far nameAddr) (a, b *packetConn) {
	x, y, ended := make(chan []byte, 64), make(chan []byte, 64), make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	return &packetConn{to: near, in: x, out: y, ended: ended, end: end}, &packetConn{to: far, in: y, out: x, ended: ended, end: end}
}

func (p *packetConn) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadline != nil {
		p.deadline.Stop()
	}
	p.deadline, p.late = nil, make(chan struct{})
	if late := p.late; !t.IsZero() {
		p.deadline = time.AfterFunc(time.Until(t), func() { close(late) })
	}
	return nil
}

func (p *packetConn) Read(b []byte) (int, error) {
	p.mu.Lock()
	late := p.late
	p.mu.Unlock()
	select {
	case d := <-p.in:
		return copy(b, d), nil
	case <-p.ended:
		return 0, net.ErrClosed
	case <-late:
		return 0, errors.New("late")
	}
}

func (p *packetConn) Write(b []byte) (int, error) {
	select {
	case p.out <- append([]byte{}, b...):
	case <-p.ended:
		return 0, net.ErrClosed
	default:
	}
	return len(b), nil
}

func (p *packetConn) Close() error         { p.end(); return nil }
func (p *packetConn) RemoteAddr() net.Addr { return p.to }

// freePort is one of localhost that nobody uses at the moment, for both protocols.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(ln.Addr().(*net.TCPAddr).Port)
		pc, err := net.ListenPacket("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		ln.Close()
		if err == nil {
			pc.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func local(port uint16) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

// serveTCP serves connections with handle until the test ends, and returns its address.
func serveTCP(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "localhost:" + port
}

func echoTCP(c net.Conn) { _, _ = io.Copy(c, c) }

func echoUDP(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	_, port, err := net.SplitHostPort(pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "localhost:" + port
}

// exposing runs Expose until stop, and gives what it reports.
func (d *device) exposing(e Exposure) (reports <-chan error, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	told, done := make(chan error, 1000), make(chan struct{})
	go func() {
		defer close(done)
		if err := d.Expose(ctx, e, func(err error) { told <- err }); err != nil {
			told <- err
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	d.lab.t.Cleanup(stop)
	return told, stop
}

// awaitReport returns when a report fits.
func awaitReport(t *testing.T, reports <-chan error, want error) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case got := <-reports:
			if want == nil && got == nil || want != nil && errors.Is(got, want) {
				return
			}
			t.Logf("reported: %v", got)
		case <-timeout:
			t.Fatalf("never reported %v", want)
		}
	}
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxDatagram)
	n := 0
	for n < len(text) {
		m, err := c.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if string(buf[:n]) != text {
		t.Fatalf("%q came back for %q", buf[:n], text)
	}
}

// refusedAt connects, and returns why that, or the first read, failed: a reset can come
// before the dial is done.
func refusedAt(t *testing.T, port uint16) error {
	t.Helper()
	c, err := net.Dial("tcp", local(port))
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

func closedAt(t *testing.T, port uint16) {
	t.Helper()
	if c, err := net.Dial("tcp", local(port)); err == nil {
		c.Close()
		t.Errorf("port %d is still open", port)
	}
}
