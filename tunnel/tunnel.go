package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/kithproject/kith/identity"
)

const (
	// DefaultMTU is the MTU inside the tunnel, in bytes. Its packets make datagrams
	// of 1460 bytes (IPv4), which fit an Ethernet path, and of which a batch stays
	// below what the kernel can segment in one go. From 1408 on it would not.
	DefaultMTU = 1400
	// MinMTU is the least MTU, in bytes: that of IPv6 (RFC 8200 section 5).
	MinMTU = 1280
	// MaxMTU is the largest MTU, in bytes, that fits a UDP datagram.
	MaxMTU = 65000
)

// maxKeepalive is the longest persistent keepalive of WireGuard.
const maxKeepalive = 65535 * time.Second

// farewell is how long Close and RemovePeer leave the resets of live connections to get
// out, so that the other side need not find out by itself.
const farewell = 20 * time.Millisecond

// ErrPeer reports an operation on a device that the tunnel does not know, or not
// any more.
var ErrPeer = errors.New("tunnel: no such peer")

// ErrKeyTaken reports that a peer claims the WireGuard key of another one.
var ErrKeyTaken = errors.New("tunnel: the WireGuard key belongs to another peer")

// Config is what New needs. Identity and Bind must be set.
type Config struct {
	Identity *identity.Identity
	Bind     conn.Bind // carries the encrypted packets; the Tunnel opens and closes it
	Port     uint16    // UDP port number that Bind opens; default 0: any
	MTU      int       // of packets inside, in bytes, MinMTU to MaxMTU; default DefaultMTU
	Logger   *slog.Logger
}

// A Peer is a device that may talk through the tunnel. Printing one leaves the
// keys out.
type Peer struct {
	ID        identity.DeviceID
	WireGuard [32]byte // its public key
	PSK       [32]byte // preshared key of the pair
	Endpoint  conn.Endpoint
	Keepalive time.Duration // WireGuard's persistent keepalive, in whole seconds; default none
}

// String returns the peer's ID, without keys.
func (p Peer) String() string { return "tunnel.Peer(" + p.ID.Short() + ")" }

// GoString returns String.
func (p Peer) GoString() string { return p.String() }

// LogValue returns String.
func (p Peer) LogValue() slog.Value { return slog.StringValue(p.String()) }

// Format prints String for every verb, also those for which package fmt would
// print the keys.
func (p Peer) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, p.String()) }

// PeerStats are what WireGuard counts.
type PeerStats struct {
	LastHandshake    time.Time // zero: none yet
	RxBytes, TxBytes uint64    // encrypted bytes
}

// A Tunnel is a user-mode WireGuard interface. It is safe for concurrent use.
// Close ends it.
type Tunnel struct {
	id     *identity.Identity
	nic    *nic
	bind   *resendBind
	device *wg.Device
	asked  sync.WaitGroup // Fallbacks at work

	nextPort atomic.Uint32 // of connections that this device opens

	change sync.Mutex // serialises changes of peers; held before mu

	mu        sync.Mutex // guards the fields below; not held while calling out
	closed    bool
	peers     map[identity.DeviceID]Peer
	addrs     map[netip.Addr]identity.DeviceID
	conns     map[identity.DeviceID]map[*tracked]struct{}
	listeners map[*listener]struct{}
	requests  map[*request]struct{}
	fallback  Fallback

	datagrams   map[identity.DeviceID]map[*datagrams]struct{}
	udpFallback UDPFallback
}

// New opens the interface. It errs if the Config is incomplete, or if the Bind
// cannot be opened.
func New(cfg Config) (*Tunnel, error) {
	if cfg.Identity == nil || cfg.Bind == nil {
		return nil, errors.New("tunnel: Config needs Identity and Bind")
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < MinMTU || cfg.MTU > MaxMTU {
		return nil, fmt.Errorf("tunnel: MTU %d is not between %d and %d", cfg.MTU, MinMTU, MaxMTU)
	}
	quiet()
	n, err := newNIC(cfg.Identity.ID().Addr(), cfg.MTU)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{
		id: cfg.Identity, nic: n, bind: newResendBind(cfg.Bind), peers: make(map[identity.DeviceID]Peer),
		addrs: make(map[netip.Addr]identity.DeviceID), conns: make(map[identity.DeviceID]map[*tracked]struct{}),
		listeners: make(map[*listener]struct{}), requests: make(map[*request]struct{}),
		datagrams: make(map[identity.DeviceID]map[*datagrams]struct{}),
	}
	n.back = t.back
	t.nextPort.Store(rand.Uint32()) //nolint:gosec // so that a restart does not begin where the last run did
	forwarder := tcp.NewForwarder(n.stack, 0, maxInFlight, t.incoming)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, t.incomingUDP).HandlePacket)
	t.device = wg.NewDevice(device{n}, t.bind, logger(cfg.Logger))
	err = t.configure(newSetting().key("private_key", cfg.Identity.WireGuardPrivate()).number("listen_port", int(cfg.Port)))
	if err == nil {
		if err = t.device.Up(); err != nil {
			err = fmt.Errorf("tunnel: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// logger passes on what WireGuard says, which names peers by parts of their public
// keys and says nothing secret.
func logger(l *slog.Logger) *wg.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	say := func(key string) func(string, ...any) {
		return func(format string, args ...any) {
			if ctx := context.Background(); l.Enabled(ctx, slog.LevelDebug) {
				l.LogAttrs(ctx, slog.LevelDebug, "wireguard", slog.String(key, fmt.Sprintf(format, args...)))
			}
		}
	}
	return &wg.Logger{Verbosef: say("text"), Errorf: say("failed")}
}

// Close resets all connections and waits for the interface's goroutines and for
// Fallbacks that are at work. It is idempotent; its error is always nil.
func (t *Tunnel) Close() error {
	t.change.Lock()
	defer t.change.Unlock()
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	var conns []*tracked
	for _, of := range t.conns {
		for c := range of {
			conns = append(conns, c)
		}
	}
	var associations []*datagrams
	for _, of := range t.datagrams {
		associations = append(associations, keys(of)...)
	}
	listeners, requests := keys(t.listeners), keys(t.requests)
	t.mu.Unlock()

	for _, l := range listeners {
		l.Close()
	}
	for _, r := range requests {
		r.end()
	}
	for _, c := range conns {
		c.abort(net.ErrClosed)
	}
	for _, d := range associations {
		d.abort(net.ErrClosed)
	}
	if len(conns) > 0 {
		time.Sleep(farewell) //nolint:forbidigo // nothing tells when a packet has left
	}
	t.device.Close()
	t.nic.Close()
	t.nic.stack.Close()
	t.asked.Wait()
	t.nic.stack.Wait()
	t.nic.drain()
	return nil
}

func keys[K comparable](m map[K]struct{}) []K {
	all := make([]K, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	return all
}
