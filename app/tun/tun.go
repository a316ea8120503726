// Package tun gives any program the paired devices as ordinary IPv6 hosts: it takes
// packets from a network interface of the system and answers for the devices. It is
// given the interface, a way to find devices and to dial and ping them, and nothing
// else; it knows nothing of the network between, and adds no right to what the dialer
// has.
//
//	program ── kernel ── interface ── Tun (a TCP stack of its own) ── Dial ══ device
//
// What a program sees:
//
//	                               TCP                  UDP and ping
//	the port answers               connected            answers
//	refused, or not allowed        reset                port unreachable
//	the device is away             address unreachable, after DialTimeout
//	the device is blocked here     administratively prohibited
//	no device has the address      no route, at once
//
// A connection is accepted only after the dial has worked, and an echo request is
// answered only after the device has answered one. Connections are carried by
// forward.Splice, so that half-closed ones stay half-closed, and a reset is a reset.
//
// At Config.Resolver there is a DNS server, over UDP and TCP, for names in .kith and
// for the devices' addresses (PTR). There are AAAA records alone: the devices have no
// IPv4 address, so a program that knows only IPv4 needs kith forward or kith proxy.
//
// The interface is expected to have an MTU of up to 65535 bytes: both TCPs are on this
// machine, so that one packet as large as can be does what segmentation offload and
// merging do elsewhere.
//
// Bounds: connections and dials (Config.MaxConns, 64 dials to one device), flows of
// UDP (1024, the oldest goes), echo requests (64, 8 to one device), DNS queries (256, 192 of
// them for other servers).
// Packets whose source is not Config.Addr are dropped: the interface forwards for
// nobody. Fragments are dropped, too: the interface's MTU leaves none to TCP.
package tun

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/kithproject/kith/app/forward"
)

var (
	// ErrNotConnected is for Config.Dial and Config.Ping to wrap: the device cannot be
	// reached now.
	ErrNotConnected = errors.New("tun: the device is not connected")
	// ErrBlocked is for Config.Dial and Config.Ping to wrap: the device is blocked here.
	ErrBlocked = errors.New("tun: the device is blocked here")
	// errNoDevice reports an address that no device has.
	errNoDevice = errors.New("tun: no device has this address")
)

// Headroom is what a Device has before each packet in a buffer for itself, in bytes: the
// kernel's header for offloads is as large.
const Headroom = 10

// A Device is a network interface. Read and Write may be called at the same time, Write
// from several goroutines. The checksums of packets that are read are not looked at: they
// have not been anywhere. A TCP packet may be larger than the MTU.
type Device interface {
	// Read reads one packet to b[Headroom:], and returns its length. It errs with
	// os.ErrClosed after Close; any other error is that of one packet.
	Read(b []byte) (int, error)
	// Write sends the packet b[Headroom:]. If partial, it is TCP over IPv6 without
	// extension headers, and its checksum covers the pseudo-header alone: the kernel
	// completes it where it is needed. It errs if the packet is not sent.
	Write(b []byte, partial bool) error
	MTU() int
	Close() error
}

// Config is what a Tun needs. All functions may be called from any goroutine.
type Config struct {
	// Device is the interface. Close closes it.
	Device Device
	// Addr is this device's address, which the interface has.
	Addr netip.Addr
	// Prefix has all devices' addresses.
	Prefix netip.Prefix
	// Resolver is the address in Prefix at which DNS is answered.
	Resolver netip.Addr
	// Peer returns the device that has an address.
	Peer func(addr netip.Addr) (peer string, ok bool)
	// Dial opens a connection to a port of a device. It errs with ErrNotConnected,
	// ErrBlocked, syscall.ECONNREFUSED, the context's error or any other. Of UDP each
	// Read and each Write is one datagram.
	Dial func(ctx context.Context, protocol forward.Protocol, peer string, port uint16) (net.Conn, error)
	// Ping asks a device for a sign of life. It errs as Dial does.
	Ping func(ctx context.Context, peer string) error
	// Lookup returns the address of a name, which is in lower case and without .kith.
	Lookup func(name string) (netip.Addr, bool)
	// Name returns the name of an address, without .kith.
	Name func(addr netip.Addr) (string, bool)
	// Forward answers a DNS query for another name, over TCP if stream is set; nil
	// refuses those. It errs if there is no answer.
	Forward func(ctx context.Context, query []byte, stream bool) ([]byte, error)
	// DialTimeout is how long a connection waits for its device; default 15 s.
	DialTimeout time.Duration
	// MaxConns is how many TCP connections there may be at once; default 4096.
	MaxConns int
	// Logger is told of connections that fail; nil tells nobody.
	Logger *slog.Logger
}

const (
	defaultDialTimeout = 15 * time.Second
	defaultMaxConns    = 4096
	// maxFlows is how many flows of UDP there may be at once, in number.
	maxFlows = 1024
	// maxEchoes is how many echo requests are waited for at once, and maxEchoesPerPeer
	// how many of one device, in number.
	maxEchoes, maxEchoesPerPeer = 64, 8
	// maxDialsPerPeer is how many connections may wait for one device, in number.
	maxDialsPerPeer = 64
	// maxQueries is how many DNS queries are answered at once, and maxStreams how many
	// connections to the DNS server there may be, in number.
	maxQueries, maxStreams = 256, 64
	// maxForwarded is how many of those queries wait for other servers, in number: where
	// none is in reach, our own names are still answered.
	maxForwarded = 192
	// farewell is how long Close leaves connections that begin to be told.
	farewell = 200 * time.Millisecond
	// keepAliveIdle is how long a connection may be idle before the kernel is asked.
	keepAliveIdle = 2 * time.Minute
	// pingTimeout is how long an echo request waits for its device.
	pingTimeout = 5 * time.Second
)

// A Tun answers for the devices at an interface. Run does the work; Close ends it.
type Tun struct {
	cfg       Config
	nic       *nic
	stack     *stack.Stack
	forwarder *tcp.Forwarder
	flows     *forward.Flows[flow]
	echoes    *places[netip.Addr]
	queries   *places[struct{}]
	forwarded *places[struct{}]
	streams   *places[struct{}]
	idle      time.Duration // keepAliveIdle

	ctx    context.Context    //nolint:containedctx // ends every goroutine; Close cancels it
	cancel context.CancelFunc // idempotent
	once   sync.Once
	deaf   atomic.Bool   // packets are not answered any more
	closed chan struct{} // everything has ended
	err    error         // of closing the device; read after closed

	mu   sync.Mutex // guards the fields below; never held while calling out
	over bool
	wg   sync.WaitGroup
	tcp  connections
}

// New returns a Tun, whose Run is to be called. It errs if the Config is incomplete;
// the Device is then the caller's to close.
func New(cfg Config) (*Tun, error) {
	if cfg.Device == nil || cfg.Peer == nil || cfg.Dial == nil || cfg.Ping == nil || cfg.Lookup == nil || cfg.Name == nil {
		return nil, errors.New("tun: Config is incomplete")
	}
	if !cfg.Addr.Is6() || !cfg.Prefix.Contains(cfg.Addr) || !cfg.Prefix.Contains(cfg.Resolver) {
		return nil, fmt.Errorf("tun: %s and %s must be addresses in %s", cfg.Addr, cfg.Resolver, cfg.Prefix)
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = defaultDialTimeout
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = defaultMaxConns
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Tun{
		cfg: cfg, closed: make(chan struct{}), idle: keepAliveIdle,
		echoes:  newPlaces[netip.Addr](maxEchoes, maxEchoesPerPeer),
		queries: newPlaces[struct{}](maxQueries, maxQueries),
		streams: newPlaces[struct{}](maxStreams, maxStreams), forwarded: newPlaces[struct{}](maxForwarded, maxForwarded),
		tcp: connections{
			waiting: make(map[flow]*waiting), open: make(map[flow]struct{}), dials: make(map[netip.Addr]int),
		},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if err := t.openStack(); err != nil {
		t.cancel()
		return nil, err
	}
	t.flows = forward.NewFlows(t.ctx, forward.FlowsConfig[flow]{
		Dial: t.dialUDP, Reply: t.replyUDP, Options: forward.Options{MaxConns: maxFlows},
	})
	return t, nil
}

// Run reads packets until Close, and returns nil then. It errs if the interface fails.
func (t *Tun) Run() error {
	const maxFailures = 100 // in a row
	buf := make([]byte, Headroom+ipHeader+maxPacket)
	for failed := 0; ; {
		n, err := t.cfg.Device.Read(buf)
		switch {
		case t.deaf.Load():
			return nil
		case err == nil:
			failed = 0
			t.receive(buf[Headroom : Headroom+n])
		case errors.Is(err, os.ErrClosed) || failed >= maxFailures:
			return fmt.Errorf("tun: the interface has failed: %w", err)
		default:
			failed++
		}
	}
}

// Close resets all connections, closes the interface and waits for everything. It is
// idempotent; its error is that of closing the interface.
func (t *Tun) Close() error {
	t.once.Do(func() {
		t.mu.Lock()
		t.over = true
		t.mu.Unlock()
		t.cancel() // resets what is open
		ended := make(chan struct{})
		go func() { t.wg.Wait(); close(ended) }()
		select {
		case <-ended: // Run still hears programs that begin, and can tell them
		case <-time.After(farewell):
		}
		t.deaf.Store(true)
		t.stack.Close() // ends the wait for a kernel that does not answer
		<-ended
		_ = t.flows.Close() // always nil
		t.stack.Wait()
		t.err = t.cfg.Device.Close()
		close(t.closed)
	})
	<-t.closed
	return t.err
}

// start runs f as one of the goroutines that Close waits for, unless it was called.
func (t *Tun) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	t.wg.Go(f)
	return true
}

// peer returns the device that has an address. It errs with errNoDevice.
func (t *Tun) peer(addr netip.Addr) (string, error) {
	if peer, ok := t.cfg.Peer(addr); ok {
		return peer, nil
	}
	return "", errNoDevice
}

// A places is a bound on how much is done at once, in all and for each key. It is safe
// for concurrent use.
type places[K comparable] struct {
	all, each int

	mu    sync.Mutex
	used  int
	usedK map[K]int
}

func newPlaces[K comparable](all, each int) *places[K] {
	return &places[K]{all: all, each: each, usedK: make(map[K]int)}
}

// take reports whether there is a place, which give gives back.
func (p *places[K]) take(key K) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used >= p.all || p.usedK[key] >= p.each {
		return false
	}
	p.used++
	p.usedK[key]++
	return true
}

func (p *places[K]) give(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	if p.usedK[key]--; p.usedK[key] == 0 {
		delete(p.usedK, key)
	}
}
