package lane

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A memListener hands out what is put into it.
type memListener struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemListener(addr net.Addr) *memListener {
	return &memListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *memListener) Addr() net.Addr { return l.addr }

func (l *memListener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// memConn is one end of a pipe with addresses.
type memConn struct {
	net.Conn
	local, remote net.Addr
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

// dial connects to a listener. It errs as a kernel does if that is closed.
func (l *memListener) dial(ctx context.Context, from net.Addr) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- &memConn{far, l.addr, from}:
		return &memConn{near, from, l.addr}, nil
	case <-l.closed:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func tcpAddr(a netip.Addr, port uint16) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, port))
}

// A world is tunnels between devices, and a network beside them.
type world struct {
	mu      sync.Mutex
	tunnels map[identity.DeviceID]*memListener
	sockets map[netip.AddrPort]*memListener
	port    uint16
	// hole reports whether what is sent there vanishes.
	hole func(from *device, to netip.AddrPort) bool
	// touch may change a connection that is being dialed.
	touch func(from *device, c net.Conn) net.Conn
}

func newWorld() *world {
	return &world{
		tunnels: make(map[identity.DeviceID]*memListener),
		sockets: make(map[netip.AddrPort]*memListener), port: 40000,
		hole:  func(*device, netip.AddrPort) bool { return false },
		touch: func(_ *device, c net.Conn) net.Conn { return c },
	}
}

func (w *world) setHole(hole func(from *device, to netip.AddrPort) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hole = hole
}

// A device of a world.
type device struct {
	*Service
	w     *world
	id    identity.DeviceID
	addrs []netip.Addr
	got   chan *Conn // from Accept

	mu      sync.Mutex
	strange bool            // Who knows nobody
	denied  map[string]bool // kinds
	ports   []uint16        // what Listening was told
	dials   int             // of TCP
}

// device makes one more device of the world; change may change its Config.
func (w *world) device(t *testing.T, n byte, change func(*device, *Config), addrs ...string) *device {
	t.Helper()
	d := &device{w: w, id: identity.DeviceID{n}, got: make(chan *Conn, 256), denied: make(map[string]bool)}
	for _, a := range addrs {
		d.addrs = append(d.addrs, netip.MustParseAddr(a))
	}
	tun := newMemListener(tcpAddr(d.id.Addr(), Port))
	w.mu.Lock()
	w.tunnels[d.id] = tun
	w.mu.Unlock()
	cfg := Config{
		Listener: tun, Dial: d.ask, Who: d.who, Allow: d.allow, DialTCP: d.dialTCP, ListenTCP: d.listenTCP,
		Accept:    func(c *Conn) { d.got <- c },
		Addrs:     d.addresses,
		Listening: func(port uint16) { d.mu.Lock(); defer d.mu.Unlock(); d.ports = append(d.ports, port) },
	}
	if change != nil {
		change(d, &cfg)
	}
	d.Service = New(cfg)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *device) ask(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
	d.w.mu.Lock()
	l := d.w.tunnels[peer]
	d.w.mu.Unlock()
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	return l.dial(ctx, tcpAddr(d.id.Addr(), 50000))
}

func (d *device) who(remote net.Addr) (identity.DeviceID, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range byte(10) {
		id := identity.DeviceID{n}
		if netip.MustParseAddrPort(remote.String()).Addr() == id.Addr() {
			return id, !d.strange
		}
	}
	return identity.DeviceID{}, false
}

func (d *device) allow(_ identity.DeviceID, kind string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.denied[kind]
}

func (d *device) deny(kind string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.denied[kind] = true
}

func (d *device) told() []uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]uint16(nil), d.ports...)
}

func (d *device) dialed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dials
}

func (d *device) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d.mu.Lock()
	d.dials++
	d.mu.Unlock()
	d.w.mu.Lock()
	hole, touch := d.w.hole, d.w.touch
	d.w.mu.Unlock()
	if hole(d, to) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	d.w.mu.Lock()
	l := d.w.sockets[to]
	d.w.mu.Unlock()
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	c, err := l.dial(ctx, tcpAddr(d.addrs[0], 50001))
	if err != nil {
		return nil, err
	}
	return touch(d, c), nil
}

func (d *device) listenTCP(context.Context) (net.Listener, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.port++
	l := newMemListener(tcpAddr(netip.IPv6Unspecified(), d.w.port))
	for _, a := range d.addrs {
		d.w.sockets[netip.AddrPortFrom(a, d.w.port)] = l
	}
	return l, nil
}

// socket is the listener that a device has now, or nil.
func (d *device) socket() *memListener {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	for at, l := range d.w.sockets {
		if at.Addr() == d.addrs[0] && !l.isClosed() {
			return l
		}
	}
	return nil
}

// echo checks that a lane carries bytes both ways, and their end.
func echo(t *testing.T, near, far net.Conn) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(far, far)
		if err == nil {
			err = far.(interface{ CloseWrite() error }).CloseWrite()
		}
		done <- err
	}()
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := near.Write(want)
		if err == nil {
			err = near.(interface{ CloseWrite() error }).CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(near)
	if err != nil || string(got) != string(want) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(want), err)
	}
	for _, c := range []chan error{done, sent} {
		if err := <-c; err != nil {
			t.Error(err)
		}
	}
}

// kernel lets a device use the kernel's loopback.
func kernel(_ *device, cfg *Config) {
	cfg.ListenTCP, cfg.DialTCP, cfg.Loopback = nil, nil, true
}

var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}

func (d *device) addresses() []netip.Addr { return d.addrs }
