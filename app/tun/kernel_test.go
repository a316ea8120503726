package tun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/kithproject/kith/app/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var (
	prefix   = netip.MustParsePrefix("fd6b:6974:6800::/40")
	own      = netip.MustParseAddr("fd6b:6974:6801::1")
	laptop   = netip.MustParseAddr("fd6b:6974:6802::2")
	tablet   = netip.MustParseAddr("fd6b:6974:6803::3") // away
	blocked  = netip.MustParseAddr("fd6b:6974:6804::4")
	nobody   = netip.MustParseAddr("fd6b:6974:6805::5")
	resolver = netip.MustParseAddr("fd6b:6974:6800::53")
)

// A kernel is the other side of the interface: a TCP/IP stack that programs use.
type kernel struct {
	t     *testing.T
	stack *stack.Stack
	link  *channel.Endpoint
	in    chan []byte // what a test itself sends
	seen  chan []byte // what is not for the stack: copies of all that comes
	done  chan struct{}
	once  sync.Once
}

func newKernel(t *testing.T, mtu uint32) *kernel {
	t.Helper()
	k := &kernel{t: t, link: channel.New(4096, mtu, ""), in: make(chan []byte), seen: make(chan []byte, 1024), done: make(chan struct{})}
	k.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
	})
	if err := k.stack.CreateNIC(nicID, k.link); err != nil {
		t.Fatal(err)
	}
	pa := tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(own.As16()).WithPrefix()}
	if err := k.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	k.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nicID}})
	t.Cleanup(func() {
		_ = k.Close()
		k.stack.Close()
		k.stack.Wait()
		k.link.Close()
	})
	return k
}

func (k *kernel) MTU() int { return int(k.link.MTU()) }

func (k *kernel) Close() error {
	k.once.Do(func() { close(k.done) })
	return nil
}

func (k *kernel) Read(b []byte) (int, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	packets := make(chan *stack.PacketBuffer)
	go func() {
		defer close(packets)
		if p := k.link.ReadContext(ctx); p != nil {
			packets <- p
		}
	}()
	select {
	case <-k.done:
	case raw := <-k.in:
		cancel()
		for p := range packets { // it came at the same time
			p.DecRef()
		}
		return copy(b[Headroom:], raw), nil
	case p, ok := <-packets:
		if !ok {
			break
		}
		defer p.DecRef()
		view := p.ToView()
		defer view.Release()
		return copy(b[Headroom:], view.AsSlice()), nil
	}
	cancel()
	for p := range packets {
		p.DecRef()
	}
	return 0, os.ErrClosed
}

func (k *kernel) Write(b []byte, partial bool) error {
	raw := append([]byte(nil), b[Headroom:]...)
	if len(raw) < ipHeader || int(header.IPv6(raw).PayloadLength()) != len(raw)-ipHeader || len(raw) > k.MTU() {
		k.t.Errorf("not a packet: % x", raw)
		return nil
	}
	if p, _ := parse(raw); partial {
		c := header.TCP(p.body)
		c.SetChecksum(0)
		c.SetChecksum(sum(header.TCPProtocolNumber, p.src, p.dst, p.body))
	}
	select {
	case k.seen <- raw:
	default:
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(raw)})
	defer p.DecRef()
	k.link.InjectInbound(header.IPv6ProtocolNumber, p)
	return nil
}

// send has a packet come from the interface.
func (k *kernel) send(raw []byte) {
	k.t.Helper()
	select {
	case k.in <- raw:
	case <-time.After(patience):
		k.t.Fatal("nobody reads")
	}
}

// await waits for a packet.
func (k *kernel) await(what string, is func(packet) bool) packet {
	k.t.Helper()
	late := time.After(patience)
	for {
		select {
		case raw := <-k.seen:
			if p, ok := parse(raw); ok && is(p) {
				return p
			}
		case <-late:
			k.t.Fatalf("no %s came", what)
		}
	}
}

func (k *kernel) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	conn, err := gonet.DialContextTCP(ctx, k.stack, tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom16(to.Addr().As16()), Port: to.Port()}, ipv6.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	k.t.Cleanup(func() { conn.Close() })
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

func (k *kernel) dialUDP(to netip.AddrPort) net.Conn {
	k.t.Helper()
	conn, err := gonet.DialUDP(k.stack, nil, &tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom16(to.Addr().As16()), Port: to.Port()}, ipv6.ProtocolNumber)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		k.t.Fatal(err)
	}
	return conn
}

// A network is the devices as a Tun sees them: laptop is there, tablet is away.
type network struct {
	t     *testing.T
	ports map[uint16]func(net.Conn) // of the laptop
	dials chan string               // each, if there is room
	hold  chan struct{}             // if not nil, dials wait until it is closed
}

func (n *network) dial(ctx context.Context, protocol forward.Protocol, peer string, port uint16) (net.Conn, error) {
	select {
	case n.dials <- fmt.Sprintf("%s %s %d", protocol, peer, port):
	default:
	}
	if n.hold != nil {
		select {
		case <-n.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch peer {
	case "laptop":
	case "tablet":
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", ErrNotConnected, ctx.Err())
	default:
		return nil, ErrBlocked
	}
	serve := n.ports[port]
	if serve == nil && protocol == forward.TCP {
		return nil, syscall.ECONNREFUSED
	}
	if protocol == forward.UDP {
		near, far := newDatagramPipe()
		if serve == nil {
			far.refuse = true
			near.refuse = true
			return near, nil
		}
		go serve(far)
		return near, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	far, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	go serve(far)
	return near, nil
}

// A datagramPipe is one end of an association in memory.
type datagramPipe struct {
	net.Conn
	in, out chan []byte
	done    chan struct{}
	once    *sync.Once
	refuse  bool
}

func newDatagramPipe() (a, b *datagramPipe) {
	x, y, done := make(chan []byte, 8), make(chan []byte, 8), make(chan struct{})
	once := new(sync.Once)
	return &datagramPipe{in: x, out: y, done: done, once: once}, &datagramPipe{in: y, out: x, done: done, once: once}
}

func (d *datagramPipe) Read(b []byte) (int, error) {
	select {
	case p := <-d.in:
		return copy(b, p), nil
	case <-d.done:
		return 0, net.ErrClosed
	}
}

func (d *datagramPipe) Write(b []byte) (int, error) {
	if d.refuse {
		return 0, syscall.ECONNREFUSED
	}
	select {
	case d.out <- append([]byte(nil), b...):
		return len(b), nil
	case <-d.done:
		return 0, net.ErrClosed
	}
}

func (d *datagramPipe) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// open returns a Tun that runs, the kernel at its interface and the network.
func open(t *testing.T, mtu uint32, change func(*Config)) (*Tun, *kernel, *network) {
	t.Helper()
	k := newKernel(t, mtu)
	n := &network{t: t, ports: make(map[uint16]func(net.Conn)), dials: make(chan string, 1024)}
	names := map[string]netip.Addr{"laptop": laptop, "tablet": tablet, "küche": blocked, "my phone": nobody, "desk": own}
	cfg := Config{
		Device: k, Addr: own, Prefix: prefix, Resolver: resolver, DialTimeout: 300 * time.Millisecond,
		Peer: func(a netip.Addr) (string, bool) {
			peer, ok := map[netip.Addr]string{laptop: "laptop", tablet: "tablet", blocked: "blocked"}[a]
			return peer, ok
		},
		Dial: n.dial,
		Ping: func(ctx context.Context, peer string) error {
			if peer != "laptop" {
				return ErrNotConnected
			}
			return ctx.Err()
		},
		Lookup: func(name string) (netip.Addr, bool) { a, ok := names[name]; return a, ok },
		Name: func(addr netip.Addr) (string, bool) {
			for name, a := range names {
				if a == addr {
					return name, true
				}
			}
			return "", false
		},
	}
	if change != nil {
		change(&cfg)
	}
	tun, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- tun.Run() }()
	t.Cleanup(func() {
		if err := errors.Join(tun.Close(), <-ran); err != nil {
			t.Error(err)
		}
	})
	return tun, k, n
}
